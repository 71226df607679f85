"""The views and URLs of the shop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.http import require_POST, require_safe

import pdc

orders = pdc.Counter("shop_orders", "Orders that were placed.", ["item"])


@require_safe
def index(_: HttpRequest) -> HttpResponse:
    """Greet the customer."""
    return HttpResponse("A small shop. Try /items/tea, /report/5, /slow/100, /broken and /metrics.\n", "text/plain")


@require_safe
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


@require_safe
def report(_: HttpRequest, lines: int) -> StreamingHttpResponse:
    """Stream a report, a line every 20 ms; it is timed to its end."""

    def stream() -> Iterator[str]:
        for number in range(lines):
            time.sleep(0.02)
            yield f"line {number}\n"

    return StreamingHttpResponse(stream(), content_type="text/plain")


@require_safe
def slow(_: HttpRequest, milliseconds: int) -> HttpResponse:
    """Sleep that long."""
    time.sleep(milliseconds / 1000)
    return HttpResponse("done\n", "text/plain")


@require_safe
def broken(_: HttpRequest) -> HttpResponse:
    """Fail."""
    raise RuntimeError("this page is broken on purpose")


def name_worker(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Name the process that answered."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Worker"] = str(os.getpid())
        return response

    return answer


urlpatterns = [
    path("", index),
    path("items/<name>", item),
    path("items/<name>/order", order),
    path("report/<int:lines>", report),
    path("slow/<int:milliseconds>", slow),
    path("broken", broken),
    path("", include("pdc_django.urls")),  # /metrics
]
