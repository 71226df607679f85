"""An application in Django that Gunicorn serves, as `shop:wsgi` and `shop:asgi`."""

from __future__ import annotations

import os
import time

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path


def answer(_request: HttpRequest) -> HttpResponse:
    """The id of the process."""
    return HttpResponse(str(os.getpid()))


def stuck(_request: HttpRequest) -> HttpResponse:
    """Hang, with interruptions."""
    while True:
        time.sleep(0.01)


async def stuck_async(request: HttpRequest) -> HttpResponse:
    """Hang, and the event loop as well."""
    return stuck(request)


urlpatterns = [path("", answer), path("stuck", stuck), path("stuck-async", stuck_async)]
settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["pdc_django"],
    MIDDLEWARE=["pdc_django.middleware.PrometheusMiddleware"],
    PDC_FLUSH_INTERVAL=600,
    PDC_JOURNAL=False,  # which would do it, too
    PDC_METRICS_PATH=None,
    PDC_SQLITE_PATH="metrics.db",
    ROOT_URLCONF=__name__,
)
django.setup()
asgi, wsgi = get_asgi_application(), get_wsgi_application()
