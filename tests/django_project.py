"""A Django project for tests. Django is configured once per process: tests change it with `override_settings`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import django
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path

OURS = "pdc_django.middleware.PrometheusMiddleware"

settings.configure(
    ALLOWED_HOSTS=["*"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "pdc_django"],
    LOGGING={"version": 1, "disable_existing_loggers": False, "loggers": {"django": {"level": "CRITICAL"}}},
    MIDDLEWARE=[OURS],
    PDC_FLUSH_INTERVAL=0,
    PDC_SQLITE_PATH="/nonexistent/metrics.db",  # start-up does not touch it; each test has its own file
    ROOT_URLCONF=__name__,
    SECRET_KEY="of tests",
    USE_TZ=True,
)
django.setup()


def inner(before: Callable[[HttpRequest], HttpResponse | None], handled: tuple[type[Exception], ...] = ()) -> type:
    """A middleware, for both modes, that answers with `before`, and answers those exceptions of views that are `handled`."""

    class Inner:
        sync_capable = async_capable = True

        def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
            self.get_response = get_response
            self.is_async = iscoroutinefunction(get_response)
            if self.is_async:
                markcoroutinefunction(self)

        def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
            return self.answer(request) if self.is_async else before(request) or self.get_response(request)

        async def answer(self, request: HttpRequest) -> HttpResponse:
            return before(request) or await self.get_response(request)

        def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
            return HttpResponse("sorry", status=418) if isinstance(error, handled) else None

    return Inner


def _limit(request: HttpRequest) -> HttpResponse | None:
    return HttpResponse(status=429) if "limited" in request.GET else None


def _break(request: HttpRequest) -> HttpResponse | None:
    if "broken" in request.GET:
        raise LookupError("in a middleware")
    return None


limiting, breaking, handling = inner(_limit), inner(_break), inner(lambda _: None, handled=(Exception,))


def item(_: HttpRequest, name: str) -> HttpResponse:
    """A view with a parameter."""
    return HttpResponse(name)


async def item_async(_: HttpRequest, name: str) -> HttpResponse:
    """A view that is a coroutine."""
    await asyncio.sleep(0)
    return HttpResponse(name)


raised: dict[str, type[Exception]] = {
    "key": KeyError,
    "missing": Http404,
    "denied": PermissionDenied,
    "suspicious": SuspiciousOperation,
}


def fail(_: HttpRequest, name: str) -> HttpResponse:
    """A view that raises."""
    raise raised[name](name)


async def fail_async(_: HttpRequest, name: str) -> HttpResponse:
    """A coroutine that raises."""
    raise raised[name](name)


seen: list[Any] = []
"""Notes of the views for tests."""


def chunks() -> Iterator[bytes]:
    """A stream that fails where `seen` begins with an exception."""
    yield b"a"
    if seen and isinstance(seen[0], Exception):
        raise seen[0]
    yield b"b"


async def chunks_async() -> AsyncIterator[bytes]:
    """The same stream, made asynchronously."""
    for chunk in chunks():
        await asyncio.sleep(0)
        yield chunk


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Answer with a stream of the kind that suits the handler."""
    return StreamingHttpResponse(chunks_async() if hasattr(request, "scope") else chunks())


def stream_sync(_: HttpRequest) -> StreamingHttpResponse:
    """Answer with a synchronous stream under any handler."""
    return StreamingHttpResponse(chunks())


def stream_async(_: HttpRequest) -> StreamingHttpResponse:
    """Answer with an asynchronous stream under any handler."""
    return StreamingHttpResponse(chunks_async())


def file(_: HttpRequest) -> FileResponse:
    """Answer with a file."""
    return FileResponse(Path(__file__).open("rb"))


async def wait(_: HttpRequest) -> HttpResponse:
    """Never answer."""
    seen.append("waiting")
    await asyncio.Event().wait()
    raise AssertionError


async def where(_: HttpRequest) -> HttpResponse:
    """Note the thread of a coroutine."""
    seen.append(threading.get_ident())
    return HttpResponse()


shop = [
    path("<slug:name>/", item, name="item"),
    path("async/<slug:name>/", item_async),
    re_path(r"^(?P<name>[0-9]{3})$", item),
]

urlpatterns = [
    path("", item, {"name": "index"}),
    path("shop/", include(shop)),
    re_path(r"^archive/(?P<name>[0-9]{4})$", item),
    path("fail/<name>", fail),
    path("fail-async/<name>", fail_async),
    path("stream", stream),
    path("stream-sync", stream_sync),
    path("stream-async", stream_async),
    path("file", file),
    path("wait", wait),
    path("where", where),
    path("", include("pdc_django.urls")),
]
