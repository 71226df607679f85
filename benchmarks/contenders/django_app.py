"""Requests to a Django project, bare and instrumented, under WSGI and ASGI."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import django
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.decorators import sync_and_async_middleware

from benchmarks.worker import Operation

from . import requests

urlpatterns: list[URLPattern] = []

_PDC = {"INSTALLED_APPS": ["pdc_django"], "MIDDLEWARE": ["pdc_django.middleware.PrometheusMiddleware"]}
_DJANGO_PROMETHEUS = "django_prometheus.middleware.Prometheus"
INSTRUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "bare": lambda: {"MIDDLEWARE": []},
    "by_hand": lambda: {"MIDDLEWARE": [f"{__name__}.by_hand_middleware"]},
    "pdc_sqlite": lambda: {**_PDC, "PDC_SQLITE_PATH": "metrics.db"},
    "pdc_redis": lambda: {**_PDC, "PDC_REDIS_URL": os.environ["REDIS_URL"]},
    "django_prometheus": lambda: {
        "INSTALLED_APPS": ["django_prometheus"],
        "MIDDLEWARE": [f"{_DJANGO_PROMETHEUS}BeforeMiddleware", f"{_DJANGO_PROMETHEUS}AfterMiddleware"],
    },
}


def make(instrument: str, routes: int, asynchronous: bool = False) -> Operation:
    """Requests to the last of that many routes."""
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="none", **INSTRUMENTS[instrument]())
    django.setup()
    view = _view_async if asynchronous else _view
    urlpatterns.extend(path(f"items{number}/<str:name>", view()) for number in range(routes))
    target = f"/items{routes - 1}/apple"
    if asynchronous:
        return requests.asgi(get_asgi_application(), target)
    return requests.wsgi(get_wsgi_application(), target)


def _view() -> Callable[..., HttpResponse]:
    def item(_: HttpRequest, name: str) -> HttpResponse:  # noqa: ARG001 - the route has this parameter
        return HttpResponse(requests.BODY)

    return item


def _view_async() -> Callable[..., Coroutine[Any, Any, HttpResponse]]:
    async def item(_: HttpRequest, name: str) -> HttpResponse:  # noqa: ARG001 - the route has this parameter
        return HttpResponse(requests.BODY)

    return item


@sync_and_async_middleware
def by_hand_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """The leanest middleware for both modes."""
    from .by_hand import ByHand

    metrics = ByHand()

    def end(request: HttpRequest, response: HttpResponse, start: float) -> HttpResponse:
        match = request.resolver_match
        metrics.end(request.method or "", match.route if match else "<unmatched>", response.status_code, start)
        return response

    def middleware(request: HttpRequest) -> HttpResponse:
        start = metrics.begin(request.method or "")
        return end(request, get_response(request), start)

    async def middleware_async(request: HttpRequest) -> HttpResponse:
        start = metrics.begin(request.method or "")
        return end(request, await get_response(request), start)

    return middleware_async if iscoroutinefunction(get_response) else middleware
