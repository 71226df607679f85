"""Settings of the shop; comments mark the lines for metrics."""

ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["pdc_django"]  # metrics
MIDDLEWARE = [
    "pdc_django.middleware.PrometheusMiddleware",  # metrics: first, to see the work of the others
    "shop.name_worker",
]
ROOT_URLCONF = "shop"
SECRET_KEY = "of an example"
TIME_ZONE = "UTC"
USE_TZ = True
