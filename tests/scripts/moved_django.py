"""Prints the samples of requests of an application of Django with django-prometheus (before) or pdc (after)."""

from __future__ import annotations

import sys

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import include, path

MIDDLEWARE = {
    "django_prometheus": [
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
    "pdc_django": ["pdc_django.middleware.PrometheusMiddleware"],
}


def item(_: HttpRequest) -> HttpResponse:
    """Answer."""
    return HttpResponse("tea")


package = "django_prometheus" if sys.argv[1] == "before" else "pdc_django"
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={},
    INSTALLED_APPS=[package],
    MIDDLEWARE=MIDDLEWARE[package],
    PDC_FLUSH_INTERVAL=0,
    PDC_NAMES="django-prometheus",
    PDC_SQLITE_PATH="metrics.db",
    ROOT_URLCONF=__name__,
)
django.setup()
urlpatterns = [path("item", item, name="item"), path("", include(f"{package}.urls"))]
client = Client()
for asked in ("/item", "/item", "/missing", "/metrics"):
    client.get(asked)
for line in client.get("/metrics").content.decode().splitlines():
    if line.startswith("django_http_requests_total_by") and "_created{" not in line:
        print(line)
