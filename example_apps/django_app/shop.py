"""The views and URLs of the shop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.http import require_POST

import pdc

orders = pdc.Counter("shop_orders", "Orders that were placed.", ["item"])


def index(_: HttpRequest) -> HttpResponse:
    """Say hello."""
    return HttpResponse("A small shop. Try /items/tea, /report, /broken and /metrics.\n", "text/plain")


def item(_: HttpRequest, name: str) -> HttpResponse:
    """Show an item, which takes a moment."""
    if name == "nothing":
        raise Http404
    time.sleep(random.uniform(0.001, 0.02))
    return JsonResponse({"name": name, "price": len(name)})


@require_POST
def order(_: HttpRequest, name: str) -> HttpResponse:
    """Order an item."""
    orders.labels(name).inc()
    return JsonResponse({"ordered": name}, status=201)


def report(_: HttpRequest) -> StreamingHttpResponse:
    """Stream a report, line by line."""

    def lines() -> Iterator[str]:
        for number in range(5):
            time.sleep(0.002)
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def broken(_: HttpRequest) -> HttpResponse:
    """Fail."""
    raise RuntimeError("this page is broken on purpose")


def name_worker(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Tell which process answered."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Worker"] = str(os.getpid())
        return response

    return answer


urlpatterns = [
    path("", index),
    path("items/<name>", item),
    path("items/<name>/order", order),
    path("report", report),
    path("broken", broken),
    path("", include("pdc_django.urls")),  # /metrics
]
