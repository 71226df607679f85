"""The same application in every framework, ways to send it requests, and servers for it."""

from __future__ import annotations

import asyncio
import functools
import importlib
import io
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import django
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
from conftest import free_port, wait_until
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include
from django.urls import path as django_path
from django.utils.decorators import sync_only_middleware
from django.views import View
from django_project import OURS, inner
from fastapi import FastAPI
from flask import Flask, abort
from flask import Response as FlaskResponse
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import pdc_django
import pdc_starlette
from pdc.http import RequestRecord, exclude
from pdc_django import conf, urls
from pdc_django.views import metrics as metrics_of_django
from pdc_flask import PrometheusMetrics
from pdc_starlette import instrument
from pdc_starlette import metrics as metrics_of_starlette

# The behaviour of every application: its views, an answer to X-Deny before any of them, an answer to the exception Handled.

DENY = "X-Deny"
HEADERS = {"X-Brand": "tea"}
"""The headers of every answer of a view."""
ITEMS = "/items/{name}"
QUIET = "/quiet/{name}"
ELSEWHERE = "/monitoring/metrics"
"""Another path of the metrics page than the option's."""
ROUTES = {  # the path, as Starlette writes it, to the method
    ITEMS: "GET",
    "/orders": "POST",
    "/missing/{name}": "GET",
    "/broken": "GET",
    "/handled": "GET",
    "/stream": "GET",
    "/broken-stream": "GET",
    "/endless": "GET",
    "/wait": "GET",
    "/health": "GET",
    "/static/{name}": "GET",
    QUIET: "GET",
}


class Handled(Exception):  # noqa: N818 - the applications handle it, as no error
    """An exception that the application's error handler answers."""


guarded: list[str] = []
"""The names of the views that `guard` decorates."""


def guard(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for the view of the metrics page: requests with the header X-Guard get the answer to `Handled`."""
    guarded.append(view.__name__)

    @functools.wraps(view)
    def guarding(*arguments: Any, **values: Any) -> Any:
        if "X-Guard" in (arguments[0] if arguments else flask_request).headers:
            raise Handled
        return view(*arguments, **values)

    return guarding


class NotThere(Exception):  # noqa: N818 - each framework raises its own for it
    """The object of a request does not exist."""


waiting = threading.Event()
"""Set when a view waits for a client that will leave."""


class Said(NamedTuple):
    """The answer of a view, for which each framework has a class."""

    body: bytes
    status: int = 200
    breaks: bool | None = None
    """True if a streamed body fails before its end, None without a stream."""
    ends: bool = True


def say(route: str, body: bytes) -> Said:
    """The answer of a route's view to a body; every view of every application calls it."""
    if route == "/broken":
        raise KeyError(route)
    if route == "/handled":
        raise Handled
    if route.startswith("/missing"):
        raise NotThere
    if route == "/orders":
        return Said(b"ordered " + body, 201)
    if route == "/endless":
        return Said(b"abcde", breaks=False, ends=False)
    if route.endswith("stream"):
        return Said(b"abcde", breaks=route == "/broken-stream")
    return Said(b"an item")


def decorated(route: str, view: Any) -> Any:
    """The view of a route; one route's view is excluded."""
    return exclude(view) if route == QUIET else view


def chunks(said: Said) -> Iterator[bytes]:
    """A stream that fails on request."""
    yield said.body[:3]
    while not said.ends:
        yield said.body
    if said.breaks:
        raise LookupError
    yield said.body[3:]


async def chunks_async(said: Said) -> AsyncIterator[bytes]:
    """The same stream, made asynchronously."""
    for chunk in chunks(said):
        await asyncio.sleep(0)
        yield chunk


class Answer(NamedTuple):
    """The answer that a server would have sent."""

    status: int
    text: str
    headers: Mapping[str, str] = {}


def over_wsgi(app: Any, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Send a request as a WSGI server does, and read the answer to its end or its failure."""
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "wsgi.input": io.BytesIO(body),
    }
    environ.update({f"HTTP_{name}".upper().replace("-", "_"): value for name, value in headers.items()})
    environ["CONTENT_LENGTH"] = environ.pop("HTTP_CONTENT_LENGTH", str(len(body)))
    setup_testing_defaults(environ)
    started: list[tuple[int, list[tuple[str, str]]]] = []
    answer = app(environ, lambda status, headers, *_: started.append((int(status[:3]), headers)))
    sent = b""
    with closing(answer), suppress(LookupError):  # the server closes the connection
        for chunk in answer:
            sent += chunk
    status, sent_headers = started[-1]
    return Answer(status, sent.decode(), {name.lower(): value for name, value in sent_headers})


def asgi_scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The scope of a request as a server makes it."""
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("shop", 80),
    }


def over_asgi(app: Any, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Send a request as an ASGI server does, in an event loop of its own."""
    incoming = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if incoming else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "shop", "content-length": str(len(body)), **{name.lower(): value for name, value in headers.items()}}
    with suppress(LookupError):  # the server closes the connection
        asyncio.run(app(asgi_scope(method, path, named), receive, send))
    sent_headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode(), sent_headers)


def leave_wsgi(app: Any, path: str) -> None:
    """Send a request, and leave after two chunks of the answer, as a WSGI server sees it."""
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    with closing(app(environ, lambda *_: None)) as answer:
        chunks = iter(answer)
        assert next(chunks) + next(chunks) == b"abcabcde"


def leave_asgi(app: Any, path: str) -> None:
    """Send a request, and leave after two chunks, or before any if the answer does not begin, as an ASGI server sees it."""
    incoming = [{"type": "http.request", "body": b""}]
    bodies: list[bytes] = []
    waiting.clear()

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        while len(bodies) < 2 and not waiting.is_set():
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        bodies.extend([message["body"]] if message.get("body") else [])
        await asyncio.sleep(0)

    asgi = {"version": "3.0", "spec_version": "2.3"}  # as Uvicorn has it, which raises nothing
    asyncio.run(asyncio.wait_for(app({**asgi_scope("GET", path, {"host": "shop"}), "asgi": asgi}, receive, send), 20))


Send = Callable[[Any, str, str, Mapping[str, str], bytes], Answer]


Serve = Callable[[Any], AbstractContextManager[int]]


@contextmanager
def uvicorn_server(app: Any) -> Iterator[int]:
    """Serve the application with Uvicorn, in a thread, at a free port."""
    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield port
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def hypercorn_server(app: Any) -> Iterator[int]:
    """Serve the application with Hypercorn, in a thread, at a free port."""
    config = hypercorn.config.Config()
    config.bind, config.graceful_timeout, config.errorlog = [f"127.0.0.1:{free_port()}"], 1, None
    port = int(config.bind[0].rpartition(":")[2])
    ended = threading.Event()

    async def end() -> None:
        while not ended.is_set():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(hypercorn.asyncio.serve(app, config, shutdown_trigger=end)))
    thread.start()
    try:
        wait_until(lambda: _listens(port))
        yield port
    finally:
        ended.set()
        thread.join()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


SERVERS = [uvicorn_server, hypercorn_server]


class Application:
    """An application of one framework with the routes above and these options."""

    send: Send = staticmethod(over_asgi)
    leave: Callable[[Any, str], None] = staticmethod(leave_asgi)
    head = options = 405
    """The status of the framework's own answer to HEAD, and to OPTIONS, for a route of GET."""
    sees_error_pages = True
    """True if the answer to a failure passes through our tracking."""

    def __init__(self, **options: Any) -> None:
        self.app = self.make(options)
        self.prefix = ""

    def make(self, options: dict[str, Any]) -> Any:
        """The WSGI or ASGI application."""
        raise NotImplementedError

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int:
        """Send a request and return the status of the answer."""
        return type(self).send(self.app, method, path, headers or {}, body).status

    def get(self, path: str, times: int = 1) -> int:
        """Send that many requests of method GET and return the status of the last answer."""
        return [self.request("GET", path) for _ in range(times)][-1]

    def scrape(self, **headers: str) -> Answer:
        """The answer of the metrics page."""
        return self.answer("GET", f"{self.prefix}/metrics", headers)

    def answer(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """The whole answer to a request without a body."""
        return type(self).send(self.app, method, path, headers or {}, b"")

    def mount(self, prefix: str) -> None:
        """Put the application below a prefix of another one."""
        self.prefix = prefix
        if type(self).send is over_wsgi:
            self.app = DispatcherMiddleware(NotFound(), {prefix: self.app})
        else:
            self.app = Starlette(routes=[Mount(prefix, self.app)])

    def move_clients(self, address: str | None) -> None:
        """Let all requests come from that address; None is a Unix socket."""
        app = self.app

        def wsgi(environ: Any, start_response: Any) -> Any:
            return app({**environ, "REMOTE_ADDR": address or ""}, start_response)

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "client": None if address is None else (address, 1)}, receive, send)

        self.app = wsgi if type(self).send is over_wsgi else asgi

    def add(self, hook: Callable[[RequestRecord], object]) -> None:
        """Add a hook."""
        raise NotImplementedError

    def close(self) -> None:
        """Undo the changes that `make` and `add` made to the process."""


class OfFlask(Application):
    """Flask, with a hook before requests and an error handler."""

    send = staticmethod(over_wsgi)
    leave = staticmethod(leave_wsgi)
    head = options = 200

    def make(self, options: dict[str, Any]) -> Any:
        """Make it."""
        app = Flask("shop")
        app.logger.setLevel(logging.CRITICAL)
        app.config.update({f"PDC_{name.upper()}": value for name, value in options.items()})
        self.metrics = PrometheusMetrics(app)
        for route, method in ROUTES.items():
            rule = re.sub(r"\{(\w+)\}", r"<\1>", route)
            app.add_url_rule(rule, route.replace("/", "-"), decorated(route, self._view(route)), methods=[method])
        if options.get("enabled", True):
            app.add_url_rule(ELSEWHERE, view_func=app.view_functions["pdc_metrics"])
        app.before_request(lambda: abort(401) if DENY in flask_request.headers else None)
        app.register_error_handler(Handled, lambda _: ("sorry", 418))
        return app

    def add(self, hook: Callable[[RequestRecord], object]) -> None:
        """Add a hook."""
        self.metrics.add(hook)

    @staticmethod
    def _view(route: str) -> Callable[..., FlaskResponse]:
        def view(**_: str) -> FlaskResponse:
            try:
                said = say(route, flask_request.get_data() if flask_request.method == "POST" else b"")
            except NotThere:
                abort(404)
            return FlaskResponse(said.body if said.breaks is None else chunks(said), said.status, HEADERS)

        return view


def _deny(request: HttpRequest) -> HttpResponse | None:
    return HttpResponse(status=401) if DENY in request.headers else None


hooks = inner(_deny, handled=(Handled,))


class OfDjango(Application):
    """Django under WSGI, with a middleware that denies and handles."""

    send = staticmethod(over_wsgi)
    leave = staticmethod(leave_wsgi)
    head = options = 200
    handler: Callable[[], Any] = WSGIHandler
    middlewares: tuple[str, ...] = (OURS, f"{__name__}.hooks")

    def make(self, options: dict[str, Any]) -> Any:
        """Make it."""
        patterns = [
            django_path(
                route[1:].replace("{name}", "<str:name>"), decorated(route, self._view(route, method)).as_view(), name=route
            )
            for route, method in ROUTES.items()
        ]
        self._settings = override_settings(
            MIDDLEWARE=list(self.middlewares),
            ROOT_URLCONF=(
                *patterns,
                django_path("", include("pdc_django.urls")),
                django_path(ELSEWHERE[1:], metrics_of_django),
            ),
            **{f"PDC_{name.upper()}": value for name, value in options.items()},
        )
        self._settings.enable()
        importlib.reload(urls)  # they depend on the options
        return type(self).handler()

    def add(self, hook: Callable[[RequestRecord], object]) -> None:
        """Add a hook."""
        pdc_django.add(hook)

    def close(self) -> None:
        """Restore the settings, and remove hooks."""
        self._settings.disable()
        conf.http_metrics.cache_clear()
        importlib.reload(urls)
        conf.HOOKS.clear()

    @classmethod
    def _view(cls, route: str, method: str) -> type[View]:
        return type("OneView", (View,), {method.lower(): cls._handle(route)})

    @staticmethod
    def _handle(route: str) -> Callable[..., Any]:
        def handle(_: View, request: HttpRequest, **__: str) -> Any:
            try:
                said = say(route, request.body if request.method == "POST" else b"")
            except NotThere as error:
                raise Http404 from error
            if said.breaks is None:
                return HttpResponse(said.body, status=said.status, headers=HEADERS)
            body = chunks_async(said) if hasattr(request, "scope") else chunks(said)
            return StreamingHttpResponse(body, headers=HEADERS)

        return handle


class OfAsyncDjango(OfDjango):
    """Django under ASGI, with views that are coroutines."""

    send = staticmethod(over_asgi)
    leave = staticmethod(leave_asgi)
    handler = ASGIHandler

    @staticmethod
    def _handle(route: str) -> Callable[..., Any]:
        answer = OfDjango._handle(route)

        async def handle(view: View, request: HttpRequest, **_: str) -> Any:
            if route == "/wait":
                waiting.set()
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return answer(view, request)

        return handle


@sync_only_middleware
def passing(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware of Django that is no coroutine, so that all before it run in threads."""
    return get_response


class OfMixedDjango(OfAsyncDjango):
    """Django under ASGI, with coroutines behind a middleware that is none."""

    middlewares = (OURS, f"{__name__}.passing", f"{__name__}.hooks")


async def _deny_async(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return Response(status_code=401) if DENY in request.headers else await call_next(request)


def _sorry(_: Request, __: Exception) -> Response:
    return PlainTextResponse("sorry", 418)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":  # the body comes first
        await asyncio.sleep(0)


class OfStarlette(Application):
    """Starlette, with a middleware inside ours and an exception handler."""

    head = 200
    sees_error_pages = False

    def add(self, hook: Callable[[RequestRecord], object]) -> None:
        """Add a hook."""
        pdc_starlette.add(hook)

    def close(self) -> None:
        """Remove hooks."""
        pdc_starlette.HOOKS.clear()

    def make(self, options: dict[str, Any]) -> Any:
        """Make it."""
        app = self.framework()(
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=_deny_async)], exception_handlers={Handled: _sorry}
        )
        for route, method in ROUTES.items():
            self.add_route(app, route, decorated(route, self._view(route)), [method])
        self.add_route(app, ELSEWHERE, metrics_of_starlette, ["GET"])
        instrument(app, **options)
        return app

    def framework(self) -> Callable[..., Starlette]:
        """The class of the application."""
        return Starlette

    def add_route(self, app: Any, route: str, view: Any, methods: list[str]) -> None:
        """Add a route."""
        app.add_route(route, view, methods=methods)

    @staticmethod
    def _view(route: str) -> Callable[[Request], Awaitable[Response]]:
        async def view(request: Request) -> Response:
            if route == "/wait":
                waiting.set()
                await _disconnect(request)
            try:
                said = say(route, await request.body() if request.method == "POST" else b"")
            except NotThere as error:
                raise HTTPException(404) from error
            if said.breaks is None:
                return PlainTextResponse(said.body, said.status, HEADERS)
            return StreamingResponse(chunks_async(said), headers=HEADERS)

        return view


class OfFastAPI(OfStarlette):
    """FastAPI, with the same."""

    head = 405

    def framework(self) -> Callable[..., Starlette]:
        """The class of the application."""
        return FastAPI

    def add_route(self, app: Any, route: str, view: Any, methods: list[str]) -> None:
        """Add a route."""
        app.add_api_route(route, view, methods=methods, response_model=None)


FRAMEWORKS = {
    "flask": OfFlask,
    "django": OfDjango,
    "django-async": OfAsyncDjango,
    "django-mixed": OfMixedDjango,
    "starlette": OfStarlette,
    "fastapi": OfFastAPI,
}

Make = Callable[..., Application]


@pytest.fixture(params=FRAMEWORKS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make an application of each framework; keywords are options."""
    made: list[Application] = []

    def making(**options: Any) -> Application:
        written_through = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
        made.append(FRAMEWORKS[request.param](**{**written_through, **options}))
        return made[-1]

    yield making
    for application in reversed(made):
        application.close()


NOTICING = [name for name in FRAMEWORKS if django.VERSION >= (5, 0) or not name.startswith("django-")]
"""Frameworks that hear of a client that leaves: Django under ASGI does from version 5 on."""
