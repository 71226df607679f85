"""The Django app: the same requests over WSGI and ASGI, and the same expected metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import django
import django_project
import pytest
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.core.handlers.asgi import ASGIHandler
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, AsyncRequestFactory, Client
from django.urls import include, path
from django.views import View
from django_project import OURS, Send, Settings, asgi, nothing_is_in_progress, scope_of, scraped, seen, wsgi
from rest_framework.routers import SimpleRouter
from rest_framework.viewsets import ViewSet

from pdc.http import HTTPMetrics
from pdc_django import exclude
from pdc_django.middleware import PrometheusMiddleware
from pdc_django.routes import readable
from pdc_django.testing import assert_change

# pytest finds these fixtures by their names here.
own_storage = django_project.own_storage
change = django_project.change
send = django_project.send
collect = django_project.collect


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


def test_a_view_needs_no_hash(send: Send, change: Settings) -> None:
    """A view that is an object without a hash counts under its route."""

    class Page:
        __hash__: Any = None

        def __call__(self, _: HttpRequest) -> HttpResponse:
            return HttpResponse("fine")

    change(ROOT_URLCONF=routes(path("page", Page())))
    assert send("/page").status == 200
    assert {route for _, route, _ in scraped("http_requests_total")} == {"/page"}


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


def test_a_test_can_use_the_clients_of_django() -> None:
    """The clients of django.test count as servers do, streams once they are read."""
    assert Client().get("/stream").getvalue() == b"ab"
    assert asyncio.run(AsyncClient().get("/shop/async/tea/")).content == b"tea"
    assert scraped("http_requests_total") == {("GET", "/stream", "200"): 1.0, ("GET", "/shop/async/<slug:name>/", "200"): 1.0}


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


@pytest.fixture
def session(tmp_path: Path) -> Iterator[str]:
    """The session of a user who logged in, in a file that all threads use."""
    settings = connections.settings["default"]
    memory, settings["NAME"] = settings["NAME"], str(tmp_path / "users.db")
    connections["default"].close()
    del connections["default"]
    call_command("migrate", verbosity=0)
    request = HttpRequest()
    request.session = SessionStore()
    login(request, User.objects.create_user("ada"))
    request.session.save()
    yield request.session.session_key or ""
    connections["default"].close()
    del connections["default"]
    settings["NAME"] = memory


def test_labels_may_use_the_user_of_a_session(change: Settings, session: str, caplog: pytest.LogCaptureFixture) -> None:
    """A callable that asks for `request.user` gets it also under ASGI: it runs in Django's thread once it needed that."""
    runs: list[tuple[str, bool]] = []

    def own(name: str, value: Callable[[HttpRequest], object]) -> Callable[[HttpRequest], object]:
        def label(request: HttpRequest) -> object:
            runs.append((name, threading.current_thread() is threading.main_thread()))
            return value(request)

        return label

    labels = {
        "staff": own("staff", lambda request: request.user.is_staff),  # type: ignore[union-attr] # it depends on settings
        "user": own("user", lambda request: request.user),
        "verb": own("verb", lambda request: request.method),
    }
    users = ["django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware"]
    for kind, more, names, needing in [
        ("wsgi", [], "staff user verb", ""),
        ("asgi", [], "user staff verb", "user"),  # the first callable that asks loads the user for the others
        ("asgi", ["http_applications.passing"], "staff user verb", "staff"),
    ]:
        change(MIDDLEWARE=[OURS, *more, *users], labels={name: labels[name] for name in names.split()})
        runs.clear()
        for url in ("/shop/async/tea/", "/shop/tea/", "/fail-async/key"):
            Send(kind)(url, Cookie=f"sessionid={session}")
        Send(kind)("/shop/tea/")
        for name in labels:
            in_main_thread = [is_main for each, is_main in runs if each == name]
            assert in_main_thread == ([True, False, False, False, False] if name == needing else [True] * 4)
    routes = {"/shop/async/<slug:name>/": "200", "/shop/<slug:name>/": "200", "/fail-async/<name>": "500"}
    expected = {("GET", route, "False", status, "ada", "GET"): 3.0 for route, status in routes.items()}
    expected["GET", "/shop/<slug:name>/", "False", "200", "AnonymousUser", "GET"] = 3.0
    assert scraped("http_requests_total") == expected
    assert scraped("http_exceptions_total") == {("KeyError", "GET", "/fail-async/<name>", "False", "ada", "GET"): 3.0}
    assert "failed" not in caplog.text


def test_views_and_templates_have_the_names_of_django_prometheus(send: Send, change: Settings) -> None:
    """With these PDC_NAMES a view is its name in its namespaces, and responses count by the names of their templates."""
    template = "django.template.backends.django.DjangoTemplates"
    loaders = [("django.template.loaders.locmem.Loader", {"mug.html": "tea"})]
    names: dict[str, Any] = {"mug": "mug.html", "any": ["cup.html", "mug.html"]}

    def show(request: HttpRequest, name: str) -> TemplateResponse:
        return TemplateResponse(request, names.get(name) or engines["django"].from_string("tea"))

    shop = [path("<name>", show, name="show")]
    urls = (
        path("shop/", include((shop, "shop"))),
        path("plain", lambda _: HttpResponse()),
        path("", include("pdc_django.urls")),
    )
    change(names="django-prometheus", TEMPLATES=[{"BACKEND": template, "OPTIONS": {"loaders": loaders}}], ROOT_URLCONF=urls)
    answers = [send(url).status for url in ("/shop/mug", "/shop/mug", "/shop/any", "/shop/own", "/plain", "/nowhere")]
    assert answers == [200, 200, 200, 200, 200, 404]
    assert scraped("django_http_responses_total_by_status_view_method_total") == {
        ("GET", "200", "shop:show"): 4.0,
        ("GET", "200", "test_django.<lambda>"): 1.0,
        ("GET", "404", "<unnamed view>"): 1.0,
    }
    assert scraped("django_http_responses_total_by_templatename_total") == {
        ("mug.html",): 2.0,
        ("['cup.html', 'mug.html']",): 1.0,
        ("None",): 1.0,
    }
