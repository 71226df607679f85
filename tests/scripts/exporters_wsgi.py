"""Flask and Django with exporters of other packages, which Gunicorn serves. Each page is that of its exporter."""

from __future__ import annotations

import django
import flask
import prometheus_flask_exporter
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from plain_metrics import serve
from werkzeug.middleware.dispatcher import DispatcherMiddleware

of_flask = flask.Flask("shop")
of_flask_metrics = prometheus_flask_exporter.PrometheusMetrics(of_flask)
of_flask_metrics.info("shop_info", "Shop.", version="3")
count_views = of_flask_metrics.counter("shop_views", "Views.", labels={"status": lambda response: response.status_code})
of_flask.get("/hit")(count_views(serve))


def of_django(_: HttpRequest) -> HttpResponse:
    """Answer in Django."""
    return HttpResponse(serve())


urlpatterns = [path("hit", of_django, name="hit"), path("", include("django_prometheus.urls"))]
settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
    ROOT_URLCONF=__name__,
)
django.setup()
app = DispatcherMiddleware(get_wsgi_application(), {"/flask": of_flask})
