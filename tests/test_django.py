"""The Django app: the same requests over WSGI and ASGI, and the same expected metrics."""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib
import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import FileWrapper, setup_testing_defaults

import django
import django_project
import pytest
from conftest import ROOT
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection
from django.db.backends.signals import connection_created
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import include, path
from django.views import View
from django_project import OURS, seen
from prometheus_client.parser import text_string_to_metric_families
from rest_framework.routers import SimpleRouter
from rest_framework.viewsets import ViewSet

from pdc.http import HTTPMetrics
from pdc.options import OptionError
from pdc.process import once
from pdc_django import conf, exclude, urls, views
from pdc_django.middleware import PrometheusMiddleware
from pdc_django.routes import readable
from pdc_django.testing import assert_change

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
def _own_storage(change: Settings, tmp_path: Path) -> Iterator[None]:
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


def test_requests_are_counted_by_method_route_and_status(send: Send) -> None:
    """Every request counts once, under the route as the URLconf writes it, with the prefixes of `include`."""
    for url in ("/", "/shop/tea/", "/shop/cake/", "/shop/async/tea/", "/shop/123", "/archive/2024", "/nowhere", "/elsewhere"):
        send(url)
    send("/shop/tea/", "POST")
    send("/shop/tea/", "HEAD")
    send("/shop/tea/", "BREW")
    expected = {
        ("GET", "/", "200"): 1.0,
        ("GET", "/shop/<slug:name>/", "200"): 2.0,
        ("GET", "/shop/async/<slug:name>/", "200"): 1.0,
        ("GET", "/shop/(?P<name>[0-9]{3})$", "200"): 1.0,
        ("GET", "^archive/(?P<name>[0-9]{4})$", "200"): 1.0,
        ("GET", "<unmatched>", "404"): 2.0,
        ("POST", "/shop/<slug:name>/", "200"): 1.0,
        ("HEAD", "/shop/<slug:name>/", "200"): 1.0,
        ("<other>", "/shop/<slug:name>/", "200"): 1.0,
    }
    assert scraped("http_requests_total") == expected
    assert scraped("http_request_duration_seconds_count") == expected
    assert nothing_is_in_progress()


@pytest.mark.parametrize("path", ["/fail/key", "/fail-async/key"])
@pytest.mark.parametrize("handled", [False, True])
def test_exceptions_of_views_count_once_handled_or_not(send: Send, change: Settings, path: str, handled: bool) -> None:
    """An exception that leaves a view counts once, also one that another middleware answers."""
    change(MIDDLEWARE=[OURS, *(["django_project.handling"] if handled else [])])
    status = str(send(path).status)
    route = path.replace("/key", "/<name>")
    assert status == ("418" if handled else "500")
    assert scraped("http_exceptions_total") == {("KeyError", "GET", route): 1.0}
    assert scraped("http_requests_total") == {("GET", route, status): 1.0}
    assert nothing_is_in_progress()


def test_exceptions_of_inner_middleware_count_under_the_route(send: Send, change: Settings) -> None:
    """An exception of a middleware after ours counts, under the route of the request."""
    change(MIDDLEWARE=[OURS, "django_project.breaking"])
    assert send("/shop/tea/?broken").status == 500
    assert scraped("http_exceptions_total") == {("LookupError", "GET", "/shop/<slug:name>/"): 1.0}
    assert scraped("http_requests_total") == {("GET", "/shop/<slug:name>/", "500"): 1.0}


@pytest.mark.usefixtures("collect")
def test_exceptions_that_propagate_count_once(send: Send, change: Settings) -> None:
    """With DEBUG_PROPAGATE_EXCEPTIONS exceptions reach the server; each counts once and as status 500."""
    change(DEBUG_PROPAGATE_EXCEPTIONS=True, MIDDLEWARE=[OURS, "django_project.limiting"])
    with pytest.raises(KeyError):
        send("/fail/key")
    assert scraped("http_exceptions_total") == {("KeyError", "GET", "/fail/<name>"): 1.0}
    assert scraped("http_requests_total") == {("GET", "/fail/<name>", "500"): 1.0}
    assert nothing_is_in_progress()


@pytest.mark.parametrize(("name", "status"), [("missing", "404"), ("denied", "403"), ("suspicious", "400")])
def test_answers_of_django_are_no_exceptions(send: Send, name: str, status: str) -> None:
    """Http404, PermissionDenied and SuspiciousOperation are answers, under the route of the view."""
    assert str(send(f"/fail/{name}").status) == status
    assert scraped("http_requests_total") == {("GET", "/fail/<name>", status): 1.0}
    assert scraped("http_exceptions_total") == {}


def test_answers_of_inner_middleware_are_counted(send: Send, change: Settings) -> None:
    """An answer of a middleware after ours counts under the route of the path, if it has one."""
    change(MIDDLEWARE=[OURS, "django_project.limiting"])
    for url in ("/shop/tea/?limited", "/nowhere?limited"):
        assert send(url).status == 429
    assert scraped("http_requests_total") == {("GET", "/shop/<slug:name>/", "429"): 1.0, ("GET", "<unmatched>", "429"): 1.0}


def test_a_redirect_to_https_is_counted(send: Send, change: Settings) -> None:
    """A redirect of SecurityMiddleware counts under its route."""
    change(MIDDLEWARE=[OURS, "django.middleware.security.SecurityMiddleware"], SECURE_SSL_REDIRECT=True)
    assert send("/shop/tea/", Host="shop").status == 301
    change(SECURE_SSL_REDIRECT=False)
    assert scraped("http_requests_total") == {("GET", "/shop/<slug:name>/", "301"): 1.0}


def test_a_stream_lasts_to_its_last_byte(send: Send, change: Settings) -> None:
    """A stream counts when its end was sent, with its size."""
    change(sizes=True)
    assert send("/stream").body == b"ab"
    assert scraped("http_requests_total") == {("GET", "/stream", "200"): 1.0}
    assert scraped("http_response_size_bytes_sum") == {("GET", "/stream", "200"): 2.0}
    assert nothing_is_in_progress()


@pytest.mark.usefixtures("collect")
def test_a_stream_that_fails_is_an_exception(send: Send) -> None:
    """An exception in mid-stream counts, and so does the request."""
    seen.append(ValueError("in mid-stream"))
    with pytest.raises(ValueError, match="mid-stream"):
        send("/stream")
    assert scraped("http_exceptions_total") == {("ValueError", "GET", "/stream"): 1.0}
    assert scraped("http_requests_total") == {("GET", "/stream", "200"): 1.0}
    assert nothing_is_in_progress()


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_is_closed_early_is_a_499(read: int) -> None:
    """A stream whose client disconnects before the end is status 499."""
    wsgi("/stream", chunks=read)
    assert scraped("http_requests_total") == {("GET", "/stream", "499"): 1.0}
    assert nothing_is_in_progress()


def test_a_stream_of_the_other_kind_is_counted(send: Send) -> None:
    """Django converts a stream that does not suit the handler, with its warning; the stream counts all the same."""
    path = "/stream-sync" if send.is_async else "/stream-async"
    with pytest.warns(Warning, match="StreamingHttpResponse must consume"):
        assert send(path).body == b"ab"
    assert scraped("http_requests_total") == {("GET", path, "200"): 1.0}


def test_files_are_counted_and_left_to_the_server(change: Settings) -> None:
    """A file counts with its size, read through Django or sent by the server's own `wsgi.file_wrapper`."""
    change(sizes=True)
    content = Path(django_project.__file__).read_bytes()
    assert wsgi("/file").body == wsgi("/file", file_wrapper=FileWrapper).body == content
    assert scraped("http_requests_total") == {("GET", "/file", "200"): 2.0}
    assert scraped("http_response_size_bytes_sum") == {("GET", "/file", "200"): 2.0 * len(content)}
    assert nothing_is_in_progress()


def test_head_of_a_file_is_no_client_that_went_away() -> None:
    """HEAD has no body to read: its status is the one that was sent."""
    wsgi("/file", "HEAD", chunks=0)
    wsgi("/stream", "HEAD", chunks=0)
    assert scraped("http_requests_total") == {("HEAD", "/file", "200"): 1.0, ("HEAD", "/stream", "200"): 1.0}


def test_sizes_are_counted_when_asked_for(send: Send, change: Settings) -> None:
    """The sizes of bodies are histograms; the answer to HEAD has no body."""
    change(sizes=True)
    send("/shop/tea/", "POST", b"12345")
    send("/shop/tea/", "HEAD")
    route = "/shop/<slug:name>/"
    assert scraped("http_request_size_bytes_sum") == {("POST", route, "200"): 5.0, ("HEAD", route, "200"): 0.0}
    assert scraped("http_response_size_bytes_sum") == {("POST", route, "200"): 3.0, ("HEAD", route, "200"): 0.0}


@pytest.mark.parametrize("length", ["", "many", "-1", "\u00b2"])
def test_a_malformed_content_length_does_no_harm(send: Send, change: Settings, length: str) -> None:
    """A Content-Length that is no number is 0 bytes."""
    change(sizes=True)
    assert send("/shop/tea/", Content_Length=length).status == 200
    assert set(scraped("http_request_size_bytes_sum").values()) == {0.0}
    assert nothing_is_in_progress()


async def _send_until(path: str, fails: Callable[[int], bool], receive: Any = None) -> None:
    """Send an ASGI request to a server that cannot send the messages for whose number `fails` is true."""
    sent: list[Any] = []
    incoming = [{"type": "http.request", "body": b""}]

    async def receiving() -> Any:
        return incoming.pop() if incoming else await (receive or asyncio.Event().wait)()

    async def sending(message: Any) -> None:
        sent.append(message)
        if fails(len(sent)):
            raise OSError("the client is gone")

    await ASGIHandler()(scope_of(path), receiving, sending)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stream_that_cannot_be_sent_is_a_499(collect: Callable[[], None], number: int) -> None:
    """Under ASGI a client may disconnect before the first chunk or after it; Django does not even close such a response."""
    with pytest.raises(OSError, match="gone"):
        asyncio.run(_send_until("/stream", lambda sent: sent == number))
    collect()
    assert scraped("http_requests_total") == {("GET", "/stream", "499"): 1.0}
    assert scraped("http_exceptions_total") == {}
    assert nothing_is_in_progress()


def test_a_request_that_is_cancelled_is_a_499() -> None:
    """A coroutine that is cancelled while its view runs is status 499 and no exception."""

    async def cancelled() -> None:
        async def get_response(request: HttpRequest) -> HttpResponse:
            return await django_project.wait(request)

        response = PrometheusMiddleware(get_response)(AsyncRequestFactory().get("/wait"))
        task = asyncio.ensure_future(response)  # type: ignore[arg-type]  # a coroutine
        while not seen:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert scraped("http_requests_total") == {("GET", "/wait", "499"): 1.0}
    assert scraped("http_exceptions_total") == {}
    assert nothing_is_in_progress()


if django.VERSION >= (5, 0):  # before, Django did not notice

    def test_a_client_that_disconnects_is_a_499() -> None:
        """Django cancels the view of a client that disconnects."""

        async def disconnect() -> Any:
            while not seen:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        asyncio.run(_send_until("/wait", lambda _: False, disconnect))
        assert scraped("http_requests_total") == {("GET", "/wait", "499"): 1.0}
        assert nothing_is_in_progress()


def test_async_views_stay_in_their_thread() -> None:
    """Under ASGI the middleware runs a coroutine in its own thread, the one of the event loop."""
    asgi("/where")
    assert seen == [threading.get_ident()]


def test_scrapes_do_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ASGI the storage is read in another thread."""
    answer = HTTPMetrics.answer

    def noting(*arguments: Any) -> Any:
        seen.append(threading.get_ident())
        return answer(*arguments)

    monkeypatch.setattr(HTTPMetrics, "answer", noting)
    assert asgi("/metrics").status == 200
    assert len(seen) == 1
    assert seen != [threading.get_ident()]


def routes(*patterns: Any) -> type:
    """A URLconf of these patterns and the metrics page."""
    return type("Routes", (), {"urlpatterns": [*patterns, path("", include("pdc_django.urls"))]})


@pytest.mark.parametrize(
    ("route", "template"),
    [
        ("api/posts/<int:pk>/", "api/posts/<int:pk>/"),
        ("Products(<int:pk>)/+a.b?", "Products(<int:pk>)/+a.b?"),
        (r"api/^posts/(?P<pk>[^/.]+)/$", "api/posts/{pk}/"),
        (r"^posts/(?P<pk>[^/.]+)/comments\.(?P<format>[a-z0-9]+)/?$", "posts/{pk}/comments.{format}/"),
        (r"<slug:shop>/^(?P<year>[0-9]{4})/(?P<rest>(a|\)|[)])*(?:b))/\Z", "<slug:shop>/{year}/{rest}/"),
        (r"items/([0-9]+)/(?:page-(?P<page>\d+)/)?$", "items/{var}/page-{page}/"),
        (r"^(?!admin/)(?i:a|b){2}x/(?:en|fr){1,2}/[a-z^]+\-\d+$", "x/(en|fr)/[a-z^]-\\d"),
        (r"^(?P<a>x)/(?P=a)/(unclosed", "{a}/{a}/{var}"),
    ],
)
def test_regular_expressions_are_readable(route: str, template: str) -> None:
    """Named groups are their names, anchors and quantifiers go; a route that is no expression stays."""
    assert readable(route) == template


def test_routes_of_rest_framework_are_readable_when_asked_for(send: Send, change: Settings) -> None:
    """PDC_DJANGO_READABLE_ROUTES changes the templates of regular expressions; without it they stay as they are."""

    class Posts(ViewSet):  # type: ignore[misc]  # it has no types
        def retrieve(self, _: Any, pk: str) -> HttpResponse:
            return HttpResponse(pk)

    router = SimpleRouter()
    router.register("posts", Posts, basename="post")
    for wanted in (False, True):
        change(
            ROOT_URLCONF=routes(path("api/", include(router.urls))),
            django_readable_routes=wanted,
        )
        assert send("/api/posts/5/").status == 200
    assert {route for _, route, _ in scraped("http_requests_total")} == {
        "/api/posts/(?P<pk>[^/.]+)/$",
        "/api/posts/{pk}/",
    }


@pytest.mark.parametrize("whole", [True, False])
def test_a_class_of_views_can_be_excluded(send: Send, change: Settings, whole: bool) -> None:
    """`exclude` works on a class of views or of Django REST framework, and on one of its functions; HEAD goes with GET."""

    class Health(View):
        def get(self, _: HttpRequest) -> HttpResponse:
            return HttpResponse("fine")

        def post(self, _: HttpRequest) -> HttpResponse:
            return HttpResponse("fine")

    class Items(ViewSet):  # type: ignore[misc]  # it has no types
        def retrieve(self, _: Any, pk: str) -> HttpResponse:
            return HttpResponse(pk)

        def update(self, _: Any, pk: str) -> HttpResponse:
            return HttpResponse(pk)

    for view in (Health, Items) if whole else (Health.get, Items.retrieve):
        exclude(view)
    router = SimpleRouter()
    router.register("items", Items, basename="item")
    change(ROOT_URLCONF=routes(path("health", Health.as_view()), *router.urls))
    for page, methods in (("/health", ("GET", "HEAD", "POST")), ("/items/5/", ("GET", "HEAD", "PUT"))):
        assert [send(page, method).status for method in methods] == [200] * 3
    assert {labels[0] for labels in scraped("http_requests_total")} == (set() if whole else {"POST", "PUT"})


def test_the_page_is_not_counted(send: Send, change: Settings) -> None:
    """The metrics page never counts itself, whatever the method, also under a prefix."""
    change(ROOT_URLCONF=Prefixed)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert send("/internal/metrics", method).status == 200
    assert send("/internal/metrics", "POST").status == 405
    assert b"http_requests_total{" not in send("/internal/metrics").body
    assert b'http_requests_in_progress{method="GET"} 0.0' in send("/internal/metrics").body


def test_the_page_negotiates_and_asks_for_the_token(send: Send, change: Settings) -> None:
    """The page answers in OpenMetrics and compressed when asked to, and with 401 without the token."""
    change(metrics_token="secret")
    assert send("/metrics").status == 401
    page = send("/metrics", Authorization="Bearer secret", Accept="application/openmetrics-text", Accept_Encoding="gzip")
    assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(page.body).endswith(b"# EOF\n")


def test_the_page_needs_no_login_no_csrf_token_and_no_cache(send: Send, change: Settings) -> None:
    """Other middleware leaves the page alone."""
    change(
        MIDDLEWARE=[
            OURS,
            "django.middleware.cache.UpdateCacheMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.middleware.cache.FetchFromCacheMiddleware",
        ]
    )
    before = send("/metrics").body
    send("/shop/tea/")
    assert send("/metrics").body != before
    assert send("/metrics", "POST").status == 405
    assert views.metrics.login_required is False  # type: ignore[attr-defined]  # set by Django


def test_a_storage_that_cannot_be_read_is_a_503(send: Send, change: Settings) -> None:
    """Without its storage the project answers requests, and the metrics page gives the reason."""
    change(sqlite_path="/nonexistent/metrics.db")
    assert send("/shop/tea/").body == b"tea"
    page = send("/metrics")
    assert page.status == 503
    assert b"/nonexistent/metrics.db" in page.body


def test_options_are_settings(send: Send, change: Settings) -> None:
    """Options are settings, and labels take Django's request."""
    change(namespace="shop", group_status=True, exclude_paths=["/stream"], labels={"shop": lambda request: request.GET["at"]})
    for url in ("/?at=north", "/stream"):
        send(url)
    assert scraped("shop_http_requests_total") == {("GET", "/", "north", "2xx"): 1.0}


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, change: Settings) -> None:
    """Without a setting, the environment variable applies."""
    monkeypatch.setenv("PDC_DJANGO_MODELS", "auth, contenttypes.ContentType")
    change(namespace="")
    assert conf.options().django_models == ("auth", "contenttypes.ContentType")


def test_wrong_options_stop_the_start(send: Send, change: Settings) -> None:
    """A handler with an unknown or wrong option is not made."""
    change(bucket=[1])
    with pytest.raises(OptionError, match=r"unknown option PDC_BUCKET; did you mean PDC_BUCKETS\?"):
        send("/")


def test_the_app_can_be_switched_off(send: Send, change: Settings) -> None:
    """With PDC_ENABLED false nothing is counted and there is no page."""
    change(enabled=False)
    assert send("/shop/tea/").body == b"tea"
    assert send("/metrics").status == 404
    change(enabled=True)
    assert scraped("http_requests_total") == {}


def test_the_middleware_needs_the_app(send: Send, change: Settings) -> None:
    """The error of the middleware without the app names the remedy."""
    change(INSTALLED_APPS=[])
    with pytest.raises(ImproperlyConfigured, match="needs 'pdc_django' in INSTALLED_APPS"):
        send("/")


class Prefixed:
    """A URLconf that has the page under a prefix."""

    urlpatterns = (path("internal/", include("pdc_django.urls")),)


class Empty:
    """A URLconf without the page."""

    urlpatterns = ()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, []),
        ({"buckets": "wide"}, ["pdc_django.E001"]),
        ({"django_models": ["shop.Order", "auth"]}, ["pdc_django.E002"]),
        ({"MIDDLEWARE": [OURS, OURS]}, ["pdc_django.E003"]),
        ({"MIDDLEWARE": []}, ["pdc_django.W001"]),
        ({"MIDDLEWARE": [], "enabled": False}, []),
        ({"MIDDLEWARE": ["django_project.limiting", OURS]}, ["pdc_django.W002"]),
        ({"ROOT_URLCONF": Empty}, ["pdc_django.W003"]),
        ({"ROOT_URLCONF": Empty, "metrics_path": None}, []),
        ({"metrics_path": None}, ["pdc_django.W004"]),
    ],
)
def test_system_checks_name_each_fault(change: Settings, settings: dict[str, Any], found: list[str]) -> None:
    """`manage.py check` names each fault of the configuration, with a hint."""
    change(**settings)
    messages = [message for message in run_checks() if str(message.id).startswith("pdc_django")]
    assert [message.id for message in messages] == found
    assert all(message.hint for message in messages)


def test_a_wrong_option_is_quoted_by_its_check(change: Settings) -> None:
    """The check names the wrong setting, the allowed values and the given one."""
    change(max_series=0)
    (message,) = run_checks()
    assert message.msg == "The settings of pdc are wrong: PDC_MAX_SERIES must be a whole number, at least 1, got 0."


def test_the_path_of_the_page_is_a_setting(change: Settings) -> None:
    """PDC_METRICS_PATH is read when the URLconf is made; None leaves the page out."""
    try:
        change(metrics_path="/internal/metrics")
        assert [str(route.pattern) for route in importlib.reload(urls).urlpatterns] == ["internal/metrics"]
        change(metrics_path=None)
        assert importlib.reload(urls).urlpatterns == []
    finally:
        change(metrics_path="/metrics")
        importlib.reload(urls)


def test_queries_are_counted_and_timed(change: Settings) -> None:
    """Every query counts with its alias and vendor, errors by exception, also from an iterator of parameters."""
    queries = ("default", "sqlite")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE notes (text)")
        cursor.executemany("INSERT INTO notes VALUES (%s)", iter([("a",), ("b",)]))
        with pytest.raises(OperationalError):
            cursor.execute("SELECT * FROM nothing")
        assert scraped("django_db_queries_total") == {queries: 3.0}
        assert scraped("django_db_query_duration_seconds_count") == {queries: 3.0}
        assert scraped("django_db_query_errors_total") == {("default", "OperationalError", "sqlite"): 1.0}
        change(django_databases=False)
        cursor.execute("DROP TABLE notes")
    assert scraped("django_db_queries_total") == {queries: 3.0}


def test_a_connection_that_reconnects_counts_once() -> None:
    """Each query counts once, however often the connection was made."""
    for _ in range(2):
        connection.inc_thread_sharing()
        connection_created.send(type(connection), connection=connection)
    connection.cursor().execute("SELECT 1")
    assert scraped("django_db_queries_total") == {("default", "sqlite"): 1.0}


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables of the installed apps, empty again after the test."""
    call_command("migrate", verbosity=0)
    yield
    Group.objects.all().delete()


@pytest.mark.usefixtures("tables")
def test_changes_of_models_are_counted_after_the_write(change: Settings) -> None:
    """Inserts, updates and deletes of the named models count when they are written; failed ones do not."""
    change(django_models=["auth.Group"])
    group = Group.objects.create(pk=1, name="cooks")
    with pytest.raises(IntegrityError):
        Group.objects.create(name="cooks")
    group.name = "waiters"
    group.save()
    group.delete()
    ContentType.objects.create(app_label="shop", model="tea").delete()
    assert scraped("django_model_changes_total") == {
        ("auth.Group", "insert"): 1.0,
        ("auth.Group", "update"): 1.0,
        ("auth.Group", "delete"): 1.0,
    }


@pytest.mark.usefixtures("tables")
def test_bulk_writes_count_every_row(change: Settings) -> None:
    """Whole querysets count by their rows, cascades too; a deletion that Django does in one query stays one query."""
    change(django_models=["auth.Group", "auth.Permission"])
    ContentType.objects.create(pk=1000, app_label="shop", model="tea")
    Group.objects.bulk_create(Group(name=f"cooks {number}") for number in range(5))
    Group(pk=2000, name="with a key of its own").save()
    groups = list(Group.objects.filter(name__startswith="cooks"))
    for group in groups:
        group.name += "!"
    Group.objects.bulk_update(groups, ["name"])
    assert Group.objects.filter(name="nobody").update(name="somebody") == 0
    assert Permission.objects.filter(content_type=1000).count() == 0
    Permission.objects.bulk_create(Permission(content_type_id=1000, codename=code, name=code) for code in "abc")
    with CaptureQueriesContext(connection) as queries:
        Group.permissions.through.objects.all().delete()
    assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "DELETE", "COMMIT"]
    Group.objects.filter(name__startswith="cooks").delete()
    ContentType.objects.filter(pk=1000).delete()
    assert scraped("django_model_changes_total") == {
        ("auth.Group", "insert"): 6.0,
        ("auth.Group", "update"): 5.0,
        ("auth.Group", "delete"): 5.0,
        ("auth.Permission", "insert"): 3.0,
        ("auth.Permission", "delete"): 3.0,
    }


@pytest.mark.usefixtures("tables")
def test_models_are_counted_by_app(change: Settings) -> None:
    """The label of an app selects all of its models."""
    change(django_models="auth")
    Group.objects.create(name="cooks")
    assert scraped("django_model_changes_total") == {("auth.Group", "insert"): 1.0}


@pytest.mark.usefixtures("tables")
def test_migrations_are_read_when_scraped(send: Send, change: Settings) -> None:
    """The page shows the numbers of applied and unapplied migrations that the database has at that moment."""
    assert b"django_migrations" not in send("/metrics").body
    change(django_migrations=True, namespace="shop")
    assert set(scraped("shop_django_migrations_unapplied").items()) == {(("default",), 0.0)}
    applied = scraped("shop_django_migrations_applied")["default",]
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("auth", "0012_alter_user_first_name_max_length")
    try:
        page = wsgi("/metrics").body.decode()
    finally:
        recorder.record_applied("auth", "0012_alter_user_first_name_max_length")
    assert scraped("shop_django_migrations_unapplied", page) == {("default",): 1.0}
    assert scraped("shop_django_migrations_applied", page) == {("default",): applied - 1}


def test_a_database_that_cannot_be_read_has_no_migrations(change: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows everything else where a database is down."""

    def broken(*_: Any) -> None:
        raise OperationalError("down")

    monkeypatch.setattr(MigrationRecorder, "applied_migrations", broken)
    change(django_migrations=True)
    wsgi("/")
    assert scraped("django_migrations_applied") == {}
    assert scraped("http_requests_total") == {("GET", "/", "200"): 1.0}


def test_commands_print_and_clear_the_metrics(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """`manage.py metrics` prints the page; `clear_metrics` asks, and deletes the metrics."""
    send("/")
    printed = io.StringIO()
    call_command("metrics", stdout=printed)
    assert scraped("http_requests_total", printed.getvalue()) == {("GET", "/", "200"): 1.0}
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(CommandError, match="nothing was deleted"):
        call_command("clear_metrics")
    call_command("clear_metrics", "--noinput", stdout=io.StringIO())
    assert scraped("http_requests_total") == {}


@pytest.mark.parametrize("command", [["metrics"], ["clear_metrics", "--noinput"]])
def test_commands_fail_with_the_reason_of_the_storage(change: Settings, command: list[str]) -> None:
    """A command whose storage is down fails with the reason."""
    change(sqlite_path="/nonexistent/metrics.db")
    conf.http_metrics()
    with pytest.raises(CommandError, match=r"/nonexistent/metrics\.db"):
        call_command(*command)


@pytest.fixture
def counted_cache(change: Settings) -> Any:
    """A cache whose operations are counted."""
    change(django_caches=True, CACHES={"fast": {"BACKEND": LOCMEM}, "default": {"BACKEND": LOCMEM, "LOCATION": "tests"}})
    cache.clear()
    return cache


LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


def test_hits_and_misses_are_counted(counted_cache: Any) -> None:
    """Each requested key is a hit or a miss, also one whose value is false; callers see no change."""
    counted_cache.set_many({"zero": 0, "none": None, "tea": "green"})
    assert counted_cache.get("zero", 1) == 0
    assert counted_cache.get("none", 1) is None
    assert counted_cache.get("nothing", 1) == 1
    assert counted_cache.get("nothing", default=2) == 2
    assert counted_cache.get_many(["tea", "nothing", "none"]) == {"tea": "green", "none": None}
    assert list(counted_cache.get_many(iter(["tea"]))) == ["tea"]
    assert counted_cache.get_or_set("cake", lambda: "plum") == "plum"
    assert scraped("django_cache_hits_total") == {("default",): 6.0}
    assert scraped("django_cache_misses_total") == {("default",): 4.0}
    assert scraped("django_cache_operation_duration_seconds_count") == {
        ("default", "set_many"): 1.0,
        ("default", "get"): 6.0,
        ("default", "get_many"): 2.0,
        ("default", "add"): 1.0,
        ("default", "clear"): 1.0,
    }


def test_cache_operations_are_counted_in_coroutines(counted_cache: Any) -> None:
    """The coroutines of a cache count as its methods do."""

    async def use() -> Any:
        await counted_cache.aset("tea", "green")
        return await counted_cache.aget("tea")

    assert asyncio.run(use()) == "green"
    assert scraped("django_cache_hits_total") == {("default",): 1.0}


def test_caches_are_left_alone_unless_asked_for() -> None:
    """Without PDC_DJANGO_CACHES no operation of a cache is counted."""
    cache.get("tea")
    assert scraped("django_cache_misses_total") == {}


def test_a_test_can_use_the_clients_of_django() -> None:
    """The clients of django.test count as servers do, streams once they are read."""
    assert Client().get("/stream").getvalue() == b"ab"
    assert asyncio.run(AsyncClient().get("/shop/async/tea/")).content == b"tea"
    assert scraped("http_requests_total") == {("GET", "/stream", "200"): 1.0, ("GET", "/shop/async/<slug:name>/", "200"): 1.0}


def test_nothing_is_counted_with_wrong_options_and_nothing_breaks(change: Settings) -> None:
    """With wrong options, which the checks report, databases and caches work unchanged."""
    change(buckets="wide", CACHES={"default": {"BACKEND": LOCMEM, "LOCATION": "plain"}})
    connection.cursor().execute("SELECT 1")
    cache.get("tea")
    with pytest.raises(CommandError, match="PDC_BUCKETS must be increasing numbers of seconds, got 'wide'"):
        call_command("check")


def test_a_test_can_assert_a_change(send: Send) -> None:
    """`assert_change` sums the samples with the given labels, and reports the actual change."""
    with assert_change("http_requests_total", route="/"), assert_change("http_requests_total", 2):
        send("/")
        send("/nowhere")
    with (
        pytest.raises(AssertionError, match=r"should change by 1, but changed by 0, from 1"),
        assert_change("http_requests_total", route="/"),
    ):
        pass


@pytest.mark.parametrize("command", ["check", "metrics"])
def test_the_shop_is_managed(tmp_path: Path, command: str) -> None:
    """The example's manage.py passes its checks, and prints its metrics."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "example_apps" / "django_app" / "manage.py"), command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PDC_SQLITE_PATH": str(tmp_path / "shop.db")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ("no issues" if command == "check" else "# TYPE http_requests_total counter") in done.stdout
