"""Settings of the shop; what is about metrics is marked."""

ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["pdc_django"]  # metrics
MIDDLEWARE = [
    "pdc_django.middleware.PrometheusMiddleware",  # metrics: first, to see what the others do
    "shop.name_worker",
]
ROOT_URLCONF = "shop"
SECRET_KEY = "of an example"
TIME_ZONE = "UTC"
USE_TZ = True
