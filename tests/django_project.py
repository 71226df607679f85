"""A Django project for tests, and requests to it. Django is configured once per process: tests change it with fixtures."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import django
import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include, path, re_path
from prometheus_client.parser import text_string_to_metric_families

from pdc.process import once

OURS = "pdc_django.middleware.PrometheusMiddleware"

settings.configure(
    ALLOWED_HOSTS=["*"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "pdc_django"],
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

Settings = Callable[..., None]


class Answer(NamedTuple):
    """The answer of a handler."""

    status: int
    headers: dict[str, str]
    body: bytes


class Send:
    """Sends requests to a handler that is made anew for each, since settings may have changed."""

    def __init__(self, kind: str) -> None:
        self.is_async = kind == "asgi"

    def __call__(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        """Send a request as a server does, and read the answer to its end."""
        path, _, query = path.partition("?")
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return (asgi if self.is_async else wsgi)(path, method, query, body, headers)


def wsgi(
    path: str,
    method: str = "GET",
    query: str = "",
    body: bytes = b"",
    headers: Any = (),
    *,
    chunks: int | None = None,
    file_wrapper: Any = None,
) -> Answer:
    """Call the WSGI handler and read all of its body, or that many chunks, and close it."""
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body)}
    environ.update({f"HTTP_{name}".upper().replace("-", "_"): value for name, value in dict(headers).items()})
    environ["CONTENT_LENGTH"] = environ.pop("HTTP_CONTENT_LENGTH", str(len(body)))
    setup_testing_defaults(environ)
    environ["wsgi.file_wrapper"] = file_wrapper
    started: list[Any] = []
    answer: Any = WSGIHandler()(environ, lambda status, headers, *_: started.extend([status, headers]))
    try:
        content = b"".join(chunk for _, chunk in zip(range(chunks if chunks is not None else 10**6), answer, strict=False))
    finally:
        answer.close()
    return Answer(int(started[0][:3]), {name.lower(): value for name, value in started[1]}, content)


def asgi(path: str, method: str = "GET", query: str = "", body: bytes = b"", headers: Any = (), **_: Any) -> Answer:
    """Call the ASGI handler in its own event loop."""
    return asyncio.run(_asgi(path, method, query, body, headers))


def scope_of(path: str, method: str = "GET", query: str = "", headers: Any = ()) -> dict[str, Any]:
    """The scope of a request."""
    named = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": named}


async def _asgi(path: str, method: str, query: str, body: bytes, headers: Any) -> Answer:
    incoming = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"Content-Length": str(len(body)), **dict(headers)}
    await ASGIHandler()(scope_of(path, method, query, headers), receive, send)
    named = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], named, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture(params=["wsgi", "asgi"])
def send(request: pytest.FixtureRequest) -> Send:
    """Send a request over WSGI, and over ASGI."""
    return Send(request.param)


@pytest.fixture
def change() -> Iterator[Settings]:
    """Override settings until the end of the test; options of pdc without their prefix, in lower case."""
    overridden: list[Any] = []

    def changing(**changes: Any) -> None:
        named = {name if name.isupper() else f"PDC_{name.upper()}": value for name, value in changes.items()}
        overridden.append(override_settings(**named))
        overridden[-1].enable()

    yield changing
    for override in reversed(overridden):
        override.disable()
    once.forget()  # the metrics of the test end with it


@pytest.fixture(autouse=True)
def own_storage(change: Settings, tmp_path: Path) -> Iterator[None]:
    """A new storage for each test."""
    change(sqlite_path=str(tmp_path / "metrics.db"))
    yield
    seen.clear()


@pytest.fixture
def collect() -> Iterator[Callable[[], None]]:
    """Collect garbage, and do so after the test: Django leaves a request body's file open where an answer fails."""

    def collecting() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    yield collecting
    seen.clear()  # an exception has a traceback, which has the request
    collecting()


def scraped(name: str, page: str | None = None) -> dict[tuple[str, ...], float]:
    """The samples of that name on the metrics page: label values, sorted by label name, to value."""
    if page is None:
        answer = wsgi("/metrics")
        assert answer.status == 200, answer
        page = answer.body.decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def nothing_is_in_progress() -> bool:
    """True if no request is counted as in progress."""
    return set(scraped("http_requests_in_progress").values()) <= {0.0}
