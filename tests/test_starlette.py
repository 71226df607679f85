"""The middleware for Starlette and FastAPI, over equivalent applications of both, and under a real Gunicorn."""

# ruff: noqa: ARG001 - views, handlers and applications accept the arguments of the framework

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RedisServer, free_port, wait_until
from fastapi import APIRouter, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import pdc
from pdc.exposition import Scrape
from pdc.options import OptionError, from_header
from pdc_starlette import PrometheusMiddleware, exclude, instrument, metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette 1 would rather have httpx2, which the oldest Starlette does not know
    from starlette.testclient import TestClient

View = Callable[[Request], Awaitable[Response]]
Routes = dict[str, View]
Message = MutableMapping[str, Any]
ASGI = Any
Make = Callable[..., Starlette]


async def fine(request: Request) -> Response:
    """Answer with the parameters of the path."""
    return PlainTextResponse(repr(request.path_params))


async def fail(request: Request) -> Response:
    """Raise an exception that no view should raise."""
    raise KeyError(request.url.path)


def add(app: Any, path: str, view: View, methods: list[str] | None = None) -> None:
    """Add a route in the way of the framework of the application or router."""
    if isinstance(app, (FastAPI, APIRouter)):
        app.add_api_route(path, view, methods=methods or ["GET"], response_model=None)
    else:
        app.add_route(path, view, methods=methods or ["GET"])


def nest(app: Any, prefix: str, router: Any) -> None:
    """Put a router below a prefix: FastAPI includes it, Starlette mounts it."""
    if isinstance(app, (FastAPI, APIRouter)):
        app.include_router(router, prefix=prefix)
    else:
        app.mount(prefix, router)


@pytest.fixture(params=["starlette", "fastapi"])
def framework(request: pytest.FixtureRequest) -> str:
    """The framework of the application."""
    return str(request.param)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options for the storage of one test, written through."""
    return {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}


@pytest.fixture
def make_app(framework: str, options: dict[str, Any]) -> Make:
    """Make an instrumented application with these routes; `inner` middlewares are inside ours, other keywords are options."""

    def make(routes: Routes | None = None, inner: list[Middleware] | None = None, **more: Any) -> Starlette:
        app = (FastAPI if framework == "fastapi" else Starlette)(middleware=inner)
        for path, view in (routes or {}).items():
            add(app, path, view)
        instrument(app, **{**options, **more})
        return app

    return make


def client(app: ASGI, **more: Any) -> TestClient:
    """A client that neither raises the application's exceptions nor follows redirects."""
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, **more)


def stored(name: str) -> dict[tuple[str, ...], float]:
    """The samples of that name in the storage: label values, sorted by label name, to value."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for metric in pdc.exposition.collect()
        for sample in metric.samples
        if sample.name == name
    }


def requests() -> dict[tuple[str, ...], float]:
    """The counted requests, when none is in progress."""
    assert set(stored("http_requests_in_progress").values()) <= {0.0}
    assert stored("http_requests_total") == stored("http_request_duration_seconds_count")
    return stored("http_requests_total")


def scope(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    """The scope of a request, in a server's form."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
        **more,
    }


async def never() -> Message:
    """Receive nothing, as from a client that waits."""
    await asyncio.Event().wait()
    raise AssertionError


async def ignore(_: Message) -> None:
    """Discard the message."""


class ScopeCopy:
    """A middleware that passes on a copy of the scope."""

    def __init__(self, app: ASGI) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass on."""
        await self.app(dict(scope), receive, send)


class Versioned(ScopeCopy):
    """A middleware that hands on a copy of the scope with another path."""

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass on what is below the version."""
        await self.app({**scope, "path": scope["path"].removeprefix("/v1")}, receive, send)


class TooMany:
    """A middleware that answers by itself."""

    def __init__(self, app: ASGI) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Refuse."""
        await PlainTextResponse("too many", 429)(scope, receive, send)


class Swallow(BaseHTTPMiddleware):
    """A middleware that turns exceptions into answers."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        """Answer."""
        try:
            return await call_next(request)  # type: ignore[no-any-return]  # call_next is Any
        except KeyError:
            return PlainTextResponse("sorry", 418)


def test_requests_are_counted_by_method_route_and_status(make_app: Make, framework: str) -> None:
    """Every request counts once under the template of its path, with any method; redirects to a slash have no route."""
    app = make_app()
    add(app, "/users/{id}", fine, ["GET", "POST"])
    web = client(app)
    for method in ("GET", "GET", "POST", "HEAD", "OPTIONS", "DELETE", "BREW"):
        web.request(method, "/users/7")
    for path in ("/nowhere", "/elsewhere", "/users/1/", "/users/2/"):
        web.get(path)
    head = "405" if framework == "fastapi" else "200"
    assert requests() == {
        ("GET", "/users/{id}", "200"): 2.0,
        ("POST", "/users/{id}", "200"): 1.0,
        ("HEAD", "/users/{id}", head): 1.0,
        ("OPTIONS", "/users/{id}", "405"): 1.0,
        ("DELETE", "/users/{id}", "405"): 1.0,
        ("<other>", "/users/{id}", "405"): 1.0,
        ("GET", "<unmatched>", "404"): 2.0,
        ("GET", "<unmatched>", "307"): 2.0,
    }


@pytest.mark.parametrize("inner", [[], [Middleware(ScopeCopy)], [Middleware(TooMany)]])
@pytest.mark.parametrize(("root_path", "before"), [("", ""), ("/proxy", ""), ("/proxy", "/proxy")])
def test_templates_have_the_prefixes_of_routers_and_mounts(
    make_app: Make, framework: str, inner: list[Middleware], root_path: str, before: str
) -> None:
    """A template has every prefix as it is written and never that of a proxy, whatever middlewares do with the scope."""
    new = APIRouter if framework == "fastapi" else Router
    leaf, branch, part = new(), new(), Starlette(routes=[Route("/{id}", fine)])
    add(leaf, "/items/{name:path}", fine)
    nest(branch, "/v1", leaf)
    app = make_app(inner=inner)
    nest(app, "/api", branch)
    nest(app, "/old", leaf)
    app.mount("/shops/{id}", CORSMiddleware(part))
    app.mount("/parts", part)
    app.mount("/raw", raw)
    web = client(app, root_path=root_path)
    paths = ["/api/v1/items/a/b", "/old/items/c", "/shops/7/8", "/parts/9", "/raw/file", "/shops/7/8/9", "/api/v2", "/"]
    for path in paths:
        web.get(before + path)
    assert {route for _, route, _ in requests()} == {
        *("/api/v1/items/{name:path}", "/old/items/{name:path}", "/shops/{id}/{id}", "/parts/{id}", "/raw", "<unmatched>"),
    }


async def raw(scope: Message, receive: Any, send: Any) -> None:
    """An application without Starlette, which sends no headers."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"raw"})


@pytest.mark.parametrize("inner", [[], [Middleware(ScopeCopy)], [Middleware(TooMany)]])
def test_one_view_may_have_several_routes(make_app: Make, inner: list[Middleware]) -> None:
    """Of several templates of a view, the first that matches path and method counts."""
    app = make_app({"/users/me": fine, "/users/{id}": fine}, inner)
    add(app, "/users/{name}", fine, ["PUT"])
    for method, path in [("GET", "/users/7"), ("GET", "/users/me"), ("PUT", "/users/me"), ("PATCH", "/users/7")]:
        client(app).request(method, path)
    assert {key[:2] for key in requests()} == {
        ("GET", "/users/{id}"),
        ("GET", "/users/me"),
        ("PUT", "/users/{name}"),
        ("PATCH", "/users/{id}"),
    }


def test_middlewares_may_rewrite_the_path(make_app: Make, options: dict[str, Any]) -> None:
    """A request counts under the route that it took, also where a middleware wrote its path anew in a copy of the scope."""
    web = client(make_app({"/users/me": fine, "/users/{id}": fine, "/broken/{id}": fail}, [Middleware(Versioned)]))
    for path in ("/v1/users/me", "/v1/users/7", "/v1/broken/1", "/v1/nowhere", "/users/7"):
        web.get(path)
    web = client(PrometheusMiddleware(Versioned(Router([Route("/router/{id}", fine)])), **options))
    web.get("/v1/router/1")
    assert requests() == {
        ("GET", "/users/me", "200"): 1.0,
        ("GET", "/users/{id}", "200"): 2.0,
        ("GET", "/broken/{id}", "500"): 1.0,
        ("GET", "<unmatched>", "404"): 1.0,
        ("GET", "/router/{id}", "200"): 1.0,
    }
    assert stored("http_exceptions_total") == {("KeyError", "GET", "/broken/{id}"): 1.0}


def test_routes_may_be_replaced(make_app: Make, framework: str) -> None:
    """A route that another one of the same view replaces gives its template, wherever it is."""
    app, router = make_app({"/old/{id}": fine}), Router([Route("/old", fine)])
    app.mount("/nested", router)
    web = client(app)
    for path in ("/old/1", "/nested/old"):
        assert web.get(path).status_code == 200
    other = FastAPI() if framework == "fastapi" else Starlette()
    add(other, "/new/{id}", fine)
    app.router.routes[-2] = router.routes[0] = other.router.routes[-1]
    for path in ("/new/1", "/nested/new/1"):
        assert web.get(path).status_code == 200
    assert {route for _, route, _ in requests()} == {"/old/{id}", "/nested/old", "/new/{id}", "/nested/new/{id}"}


def test_routes_may_be_added_late(make_app: Make) -> None:
    """Routes that are added after the first request have their templates, also in nested routers."""
    app, router = make_app({"/": fine}), Router()
    app.mount("/nested", router)
    web = client(app)
    web.get("/")
    add(app, "/late/{id}", fine)
    router.add_route("/later/{id}", fine)
    for path in ("/late/1", "/nested/later/1"):
        web.get(path)
    assert {route for _, route, _ in requests()} == {"/", "/late/{id}", "/nested/later/{id}"}


def test_hosts_have_routes(make_app: Make) -> None:
    """The template of a route for one host is that of its path."""
    app = make_app()
    app.router.routes.append(Host("api.example.org", Router([Route("/things/{id}", fine)])))
    client(app, base_url="http://api.example.org").get("/things/1")
    client(app).get("/things/1")
    assert requests() == {("GET", "/things/{id}", "200"): 1.0, ("GET", "<unmatched>", "404"): 1.0}


def sorry(request: Request, error: Exception) -> Response:
    """Handle an exception in a thread."""
    return PlainTextResponse("sorry", 418)


def failed(request: Request, error: Exception) -> Response:
    """Answer with another page for status 500."""
    return PlainTextResponse("failed", 500)


async def sorry_async(request: Request, error: Exception) -> Response:
    """Handle an exception."""
    return PlainTextResponse("sorry", 418)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("handled", "status"), [(None, "500"), (sorry, "418"), (sorry_async, "418"), (Swallow, "418"), (Exception, "500")]
)
def test_exceptions_are_counted_whether_handled_or_not(make_app: Make, handled: Any, status: str, copied: bool) -> None:
    """An exception that leaves a view counts once, whichever handler answers it."""
    inner = [Middleware(ScopeCopy)] if copied else []
    app = make_app({"/broken/{id}": fail}, inner + ([Middleware(Swallow)] if handled is Swallow else []))
    if handled in (sorry, sorry_async):
        app.add_exception_handler(LookupError, handled)
    elif handled is Exception:
        app.add_exception_handler(Exception, failed)
    assert str(client(app).get("/broken/1").status_code) == status
    assert stored("http_exceptions_total") == {("KeyError", "GET", "/broken/{id}"): 1.0}
    assert requests() == {("GET", "/broken/{id}", status): 1.0}


def test_exceptions_of_mounted_applications_are_counted(make_app: Make) -> None:
    """An exception that a mounted application handles counts under the whole template, once wherever it is mounted."""
    part = Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry})
    app = make_app()
    app.mount("/a", part)
    app.mount("/b", CORSMiddleware(part))
    for path in ("/a/broken", "/b/broken"):
        assert client(app).get(path).status_code == 418
    assert stored("http_exceptions_total") == {("KeyError", "GET", f"/{prefix}/broken"): 1.0 for prefix in "ab"}


def test_exceptions_of_applications_that_are_mounted_late_are_counted(make_app: Make) -> None:
    """An exception that a mounted application handles counts, also where it was mounted after the first request."""
    app, outer = make_app({"/": fine}), Starlette()
    app.mount("/outer", outer)
    web = client(app)
    web.get("/")
    for number, parent in enumerate((app, outer)):
        parent.mount(f"/{number}", Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry}))
    for path in ("/0/broken", "/outer/1/broken"):
        assert web.get(path).status_code == 418
    app.routes[-1] = Mount("/2", Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry}))
    assert web.get("/2/broken").status_code == 418
    assert {route for _, _, route in stored("http_exceptions_total")} == {"/0/broken", "/outer/1/broken", "/2/broken"}


@pytest.mark.parametrize("handler", [sorry, sorry_async])
def test_the_handler_of_every_exception_makes_the_answer(make_app: Make, handler: Any) -> None:
    """A request counts with the status and the size that the application's handler of `Exception` answers."""
    app = make_app({"/broken": fail, "/stream": broken_stream}, sizes=True)
    app.add_exception_handler(Exception, handler)
    web = client(app)
    answer = web.get("/broken")
    assert answer.status_code == 418
    web.get("/stream")
    assert requests() == {("GET", "/broken", "418"): 1.0, ("GET", "/stream", "200"): 1.0}
    assert stored("http_response_size_bytes_sum")["GET", "/broken", "418"] == len(answer.content)


def test_a_handler_of_every_exception_may_fail(make_app: Make) -> None:
    """Where the application's handler of `Exception` raises, the request counts as status 500."""
    app = make_app({"/broken": fail})
    app.add_exception_handler(Exception, failed)
    assert client(app).get("/broken").status_code == 500
    assert requests() == {("GET", "/broken", "500"): 1.0}


def test_an_http_exception_is_an_answer(make_app: Make) -> None:
    """HTTPException is a status, also where the application has a handler for it."""

    async def missing(request: Request) -> Response:
        raise HTTPException(404)

    app = make_app({"/missing": missing})
    app.add_exception_handler(404, sorry)
    assert client(app).get("/missing").status_code == 418
    assert stored("http_exceptions_total") == {}
    assert requests() == {("GET", "/missing", "418"): 1.0}


def test_input_that_fastapi_refuses_is_no_exception(options: dict[str, Any]) -> None:
    """A request that does not validate is a status 422; an answer that does not is an exception."""
    app = FastAPI()
    instrument(app, **options)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return "no number"  # type: ignore[return-value]  # the tested value

    for path in ("/number/x", "/number/1"):
        client(app).get(path)
    assert stored("http_exceptions_total") == {("ResponseValidationError", "GET", "/number/{number}"): 1.0}
    assert requests() == {("GET", "/number/{number}", status): 1.0 for status in ("422", "500")}


def test_a_stream_is_in_progress_until_its_last_byte(make_app: Make) -> None:
    """A streamed body is in progress until its end; then it is counted, before background tasks run."""
    seen: list[tuple[float, int]] = []

    def look() -> None:
        seen.append((stored("http_requests_in_progress")[("GET",)], len(stored("http_requests_total"))))

    async def stream(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "a"
            look()
            yield "b"

        return StreamingResponse(chunks(), background=BackgroundTask(look))

    assert client(make_app({"/stream": stream})).get("/stream").text == "ab"
    assert seen == [(1.0, 0), (0.0, 1)]
    assert requests() == {("GET", "/stream", "200"): 1.0}


async def broken_stream(request: Request) -> Response:
    """Fail in mid-stream."""

    async def chunks() -> AsyncIterator[str]:
        yield "a"
        raise KeyError("b")

    return StreamingResponse(chunks())


def test_a_failure_in_mid_stream_is_an_exception(make_app: Make) -> None:
    """A stream that breaks keeps the status that was sent already; the exception is counted."""
    client(make_app({"/stream": broken_stream})).get("/stream")
    assert stored("http_exceptions_total") == {("KeyError", "GET", "/stream"): 1.0}
    assert requests() == {("GET", "/stream", "200"): 1.0}


async def endless(request: Request) -> Response:
    """Stream until the client disconnects."""

    async def chunks() -> AsyncIterator[str]:
        while True:
            yield "more"
            await asyncio.sleep(0)

    return StreamingResponse(chunks())


async def upload(request: Request) -> Response:
    """Wait for the body."""
    return PlainTextResponse(await request.body())


@pytest.mark.parametrize("path", ["/endless", "/upload"])
@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])
@pytest.mark.parametrize("inner", [[], [Middleware(Swallow)]])
def test_a_client_that_goes_away_is_a_499(make_app: Make, path: str, spec_version: str, inner: list[Middleware]) -> None:
    """A client that disconnects while it sends or receives a body is status 499, and causes no exception."""
    app = make_app({"/endless": endless}, inner)
    add(app, "/upload", upload, ["GET"])
    sent: list[Message] = []

    async def receive() -> Message:
        while path == "/endless" and len(sent) < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 3:
            raise OSError("the client is gone")

    async def run() -> None:
        asgi = {"version": "3.0", "spec_version": spec_version}
        try:
            await app(scope(path, asgi=asgi), receive, send)
        except Exception as error:  # noqa: BLE001 - the exception that reaches the server differs between versions
            assert isinstance(error, (OSError, ClientDisconnect)), error  # noqa: PT017

    asyncio.run(run())
    assert requests() == {("GET", path, "499"): 1.0}
    assert stored("http_exceptions_total") == {}


def test_a_request_that_is_cancelled_is_a_499(make_app: Make) -> None:
    """A server that cancels a request leaves it counted as 499."""

    async def run() -> None:
        entered = asyncio.Event()

        async def wait(request: Request) -> Response:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

        task = asyncio.create_task(make_app({"/wait": wait})(scope("/wait"), never, ignore))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert requests() == {("GET", "/wait", "499"): 1.0}


@pytest.mark.parametrize("length", [b"many", b"-1", "²".encode("latin-1")])
def test_a_malformed_length_is_no_matter(make_app: Make, length: bytes) -> None:
    """A Content-Length that is no number, in request or response, breaks nothing; the passing bodies are measured."""

    async def odd(request: Request) -> Response:
        response = Response(await request.body())
        response.raw_headers = [(b"content-length", length)]
        return response

    app, messages = make_app({"/odd": odd}, sizes=True), [{"type": "http.request", "body": b"12345"}]

    async def receive() -> Message:
        return messages.pop()

    asyncio.run(app(scope("/odd", headers=[(b"content-length", length)]), receive, ignore))
    assert requests() == {("GET", "/odd", "200"): 1.0}
    for size in ("http_request_size_bytes_sum", "http_response_size_bytes_sum"):
        assert stored(size) == {("GET", "/odd", "200"): 5.0}


def test_a_file_that_the_server_sends_is_counted(make_app: Make) -> None:
    """With the extension http.response.pathsend the message that names the file ends the answer."""

    async def sendfile(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.pathsend", "path": "/some/file"})
        assert requests() == {("GET", "/files", "200"): 1.0}

    app = make_app(sizes=True)
    app.mount("/files", sendfile)
    asyncio.run(app(scope("/files/a"), never, ignore))
    assert stored("http_response_size_bytes_sum") == {("GET", "/files", "200"): 7.0}


def test_websockets_are_counted_apart(make_app: Make) -> None:
    """A WebSocket counts once accepted, is in progress until it ends, and is never a request; a refused one is not counted."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(stored("websocket_connections_in_progress")[()]))

    async def refuse(websocket: WebSocket) -> None:
        await websocket.close()

    async def broken(websocket: WebSocket) -> None:
        await websocket.accept()
        raise KeyError(websocket.url.path)

    app = make_app({"/rooms/{room}": fine}, exclude_paths=["/quiet"])
    for path, endpoint in {"/rooms/{room}": echo, "/refused": refuse, "/broken": broken, "/quiet": echo}.items():
        app.router.routes.append(WebSocketRoute(path, endpoint))
    web = client(app)
    with web.websocket_connect("/rooms/1") as websocket:
        assert websocket.receive_text() == "1.0"
    for path, error in {"/refused": WebSocketDisconnect, "/nowhere": WebSocketDisconnect, "/broken": KeyError}.items():
        with pytest.raises(error), web.websocket_connect(path):
            pass
    with web.websocket_connect("/quiet") as websocket:
        assert websocket.receive_text() == "0.0"
    assert stored("websocket_connections_total") == {("/rooms/{room}",): 1.0, ("/broken",): 1.0}
    assert stored("websocket_duration_seconds_count") == {("/rooms/{room}",): 1.0, ("/broken",): 1.0}
    assert stored("websocket_connections_in_progress") == {(): 0.0}
    assert requests() == {}


async def _fail_socket(websocket: WebSocket) -> None:
    if websocket.url.path == "/refused":
        raise WebSocketException(1008)
    if websocket.url.path == "/early":
        raise LookupError
    await websocket.accept()
    if websocket.url.path == "/left":
        await websocket.receive_text()
    raise ZeroDivisionError if websocket.url.path == "/handled" else KeyError


async def _close(websocket: WebSocket, _: Exception) -> None:
    await websocket.close()


@pytest.mark.parametrize("inner", [[], [Middleware(ScopeCopy)]])
def test_exceptions_in_websockets_are_counted(make_app: Make, inner: list[Middleware]) -> None:
    """An exception that leaves the view of a WebSocket counts once, handled or not; refusals and clients that leave do not."""

    async def zone(connection: HTTPConnection) -> str:
        await asyncio.sleep(0)
        return connection.headers["x-zone"]

    app = make_app({"/": fine}, inner, labels={"zone": zone}, exclude_paths=["/quiet"])
    app.add_exception_handler(ZeroDivisionError, _close)
    for path in ("/broken/{id}", "/early", "/handled", "/refused", "/left", "/quiet"):
        app.router.routes.append(WebSocketRoute(path, _fail_socket))
    app.router.routes.append(WebSocketRoute("/unseen", exclude(partial(_fail_socket))))
    web = client(app)
    for path in ("/broken/1", "/early", "/handled", "/refused", "/left", "/quiet", "/unseen"):
        with (
            suppress(LookupError, TypeError, WebSocketDisconnect),
            web.websocket_connect(path, headers={"X-Zone": "eu"}) as websocket,
        ):
            if path != "/left":
                websocket.receive_text()
    assert stored("websocket_exceptions_total") == {
        ("KeyError", "/broken/{id}", "eu"): 1.0,
        ("LookupError", "/early", "eu"): 1.0,
        ("ZeroDivisionError", "/handled", "eu"): 1.0,
    }
    assert stored("websocket_connections_in_progress") == {(): 0.0}


def test_excluded_websockets_are_not_counted(make_app: Make) -> None:
    """A WebSocket whose endpoint is excluded works and is not counted."""

    @exclude
    async def quiet(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app = make_app()
    app.router.routes.append(WebSocketRoute("/quiet", quiet))
    with client(app).websocket_connect("/quiet") as socket, pytest.raises(WebSocketDisconnect):
        socket.receive_text()
    assert not stored("websocket_connections_total")
    assert not any(stored("websocket_duration_seconds_count").values())


def test_a_method_of_an_endpoint_can_be_excluded(options: dict[str, Any]) -> None:
    """`exclude` works on one of the functions of a class of Starlette; HEAD goes with GET."""

    class Health(HTTPEndpoint):
        @exclude
        async def get(self, request: Request) -> Response:
            return await fine(request)

        async def post(self, request: Request) -> Response:
            return await fine(request)

    app = Starlette(routes=[Route("/health", Health)])
    instrument(app, **options)
    assert [client(app).request(method, "/health").status_code for method in ("GET", "HEAD", "POST")] == [200] * 3
    assert requests() == {("POST", "/health", "200"): 1.0}


def page(app: ASGI, path: str = "/metrics", **headers: str) -> Any:
    """The metrics page."""
    return client(app).get(path, headers=headers)


@pytest.mark.parametrize("path", ["/metrics", "/internal/metrics", "/sub/metrics"])
def test_scrapes_are_not_counted_wherever_they_are(make_app: Make, path: str) -> None:
    """The page is no request, whether at the path of the option or mounted by hand, in the application or below."""
    app = make_app({"/": fine}, metrics_path=path if path == "/metrics" else None)
    if path == "/internal/metrics":
        add(app, path, metrics)
    elif path == "/sub/metrics":
        app.mount("/sub", Starlette(routes=[Route("/metrics", metrics)]))
    client(app).get("/")
    for _ in range(2):
        answer = page(app, path)
        assert answer.status_code == 200
        samples = {sample.name: sample for family in text_string_to_metric_families(answer.text) for sample in family.samples}
        assert samples["http_requests_total"].labels["route"] == "/"
        assert samples["http_requests_in_progress"].value == 0.0
    assert requests() == {("GET", "/", "200"): 1.0}


def test_the_page_is_before_routes_for_every_path(make_app: Make) -> None:
    """The page answers GET, HEAD and OPTIONS, also where the application has a route for every path."""
    web = client(make_app({"/{anything:path}": fine}))
    statuses = {method: web.request(method, "/metrics").status_code for method in ("GET", "HEAD", "OPTIONS", "POST")}
    assert statuses == {"GET": 200, "HEAD": 200, "OPTIONS": 200, "POST": 405}
    assert web.head("/metrics").headers["content-length"] == web.get("/metrics").headers["content-length"]
    assert requests() == {}


def test_the_page_negotiates_and_asks_for_the_token(make_app: Make) -> None:
    """The page answers in OpenMetrics when asked to, and with 401 without the token."""
    app = make_app(metrics_token="secret")
    assert page(app).status_code == page(app, authorization="Bearer secre").status_code == 401
    answer = page(app, authorization="Bearer secret", accept="application/openmetrics-text")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


def test_the_page_reads_the_storage_in_a_thread(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs on while the storage is read."""
    threads: list[int] = []
    answer = Scrape.answer

    def watched(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return answer(*arguments)

    monkeypatch.setattr(Scrape, "answer", watched)

    async def run() -> int:
        await make_app()(scope("/metrics"), never, ignore)
        return threading.get_ident()

    loop = asyncio.run(run())
    assert len(threads) == 1
    assert loop not in threads


def test_a_storage_that_cannot_be_read_is_a_503(make_app: Make) -> None:
    """Without its storage the application answers requests, and the metrics page gives the reason."""
    app = make_app({"/": fine}, sqlite_path="/nonexistent/metrics.db")
    assert client(app).get("/").status_code == 200
    answer = page(app)
    assert answer.status_code == 503
    assert "/nonexistent/metrics.db" in answer.text


def test_the_page_needs_the_middleware() -> None:
    """Without the middleware the page names it as the remedy."""
    app = Starlette(routes=[Route("/metrics", metrics)])
    with pytest.raises(RuntimeError, match=r"add_middleware\(PrometheusMiddleware\)"):
        TestClient(app).get("/metrics")


def test_options_are_keywords(make_app: Make) -> None:
    """Options are keywords, labels may be callables that take the request."""
    app = make_app(
        {"/": fine, "/health": fine},
        namespace="shop",
        group_status=True,
        exclude_paths=["/health"],
        labels={"tier": from_header("x-tier"), "place": "here"},
    )
    for path in ("/", "/health"):
        client(app).get(path, headers={"x-tier": "gold"})
    assert stored("shop_http_requests_total") == {("GET", "here", "/", "2xx", "gold"): 1.0}


def test_options_come_from_the_environment(framework: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that are no keywords come from environment variables."""
    monkeypatch.setenv("PDC_NAMESPACE", "shop")
    app = (FastAPI if framework == "fastapi" else Starlette)()
    app.add_middleware(PrometheusMiddleware, **options)
    app.add_route("/metrics", metrics)
    client(app).get("/nowhere")
    assert 'shop_http_requests_total{method="GET",route="<unmatched>",status="404"} 1.0' in page(app).text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"bucket": [1]}, "unknown option PDC_BUCKET; did you mean PDC_BUCKETS"), ({"buckets": [2, 1]}, "PDC_BUCKETS must be")],
)
def test_wrong_options_fail_the_start(make_app: Make, framework: str, wrong: dict[str, Any], message: str) -> None:
    """A wrong option is refused at once by `instrument`, by the middleware when the server starts, or at each request."""
    with pytest.raises(OptionError, match=message):
        make_app(**wrong)
    app = (FastAPI if framework == "fastapi" else Starlette)()
    app.add_middleware(PrometheusMiddleware, **wrong)
    with pytest.raises(OptionError, match=message):
        asyncio.run(app(scope("/"), never, ignore))
    sent: list[Message] = []

    async def start() -> Message:
        return {"type": "lifespan.startup"}

    async def send(answer: Message) -> None:
        sent.append(answer)

    with pytest.raises(OptionError):
        asyncio.run(app({"type": "lifespan", "state": {}}, start, send))
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert message in sent[0]["message"]


def test_the_middleware_can_be_switched_off(make_app: Make) -> None:
    """With `enabled=False` nothing is counted, and there is no page."""
    app = make_app({"/": fine}, enabled=False)
    assert client(app).get("/").status_code == 200
    assert page(app).status_code == 404


def test_either_event_loop_will_do(make_app: Make) -> None:
    """Requests, WebSockets and scrapes work on trio as on asyncio."""

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = make_app({"/": fine, "/broken": fail})
    app.router.routes.append(WebSocketRoute("/echo", echo))
    for backend in ("asyncio", "trio"):
        web = client(app, backend=backend)
        assert [web.get(path).status_code for path in ("/", "/broken", "/metrics")] == [200, 500, 200]
        with web.websocket_connect("/echo") as socket:
            socket.send_text("tea")
            assert socket.receive_text() == "tea"
    assert requests() == {("GET", "/", "200"): 2.0, ("GET", "/broken", "500"): 2.0}
    assert stored("websocket_connections_total") == {("/echo",): 2.0}


def test_applications_share_metrics_and_count_once(make_app: Make) -> None:
    """Two applications of one process count into the same metrics; one mounted in the other does not count twice."""
    first, second = make_app({"/": fine}), make_app({"/": fine})
    for app in (first, second):
        client(app).get("/")
    first.mount("/second", second)
    client(first).get("/second/")
    assert requests() == {("GET", "/", "200"): 2.0, ("GET", "/second/", "200"): 1.0}
    with pytest.raises(RuntimeError, match="already"):
        instrument(first)


def test_an_application_may_be_wrapped(framework: str, options: dict[str, Any]) -> None:
    """The middleware may also wrap an application, mounted or not; exceptions that the application answers are counted."""
    app = (FastAPI if framework == "fastapi" else Starlette)()
    app.add_exception_handler(KeyError, sorry)
    add(app, "/broken/{id}", fail)
    wrapped = PrometheusMiddleware(CORSMiddleware(app), **options)
    client(wrapped).get("/broken/1")
    client(Starlette(routes=[Mount("/outer", wrapped)])).get("/outer/broken/1")
    client(wrapped).options("/broken/1", headers={"Origin": "http://here", "Access-Control-Request-Method": "GET"})
    assert requests() == {
        ("GET", "/broken/{id}", "418"): 1.0,
        ("GET", "/outer/broken/{id}", "418"): 1.0,
        ("OPTIONS", "/broken/{id}", "400"): 1.0,
    }
    assert len(stored("http_exceptions_total")) == 2


def test_lifespan_passes_through(framework: str, options: dict[str, Any]) -> None:
    """Start and end of the application are its own, with its state."""
    events = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, str]]:
        events.append("start")
        yield {"who": "me"}
        events.append("end")

    async def who(request: Request) -> Response:
        return PlainTextResponse(request.state.who)

    app = (FastAPI if framework == "fastapi" else Starlette)(lifespan=lifespan)
    add(app, "/", who)
    instrument(app, **options)
    with TestClient(app) as web:
        assert web.get("/").text == "me"
    assert events == ["start", "end"]
    assert requests() == {("GET", "/", "200"): 1.0}


def test_no_update_is_lost_when_uvicorn_stops(framework: str, tmp_path: Path) -> None:
    """Uvicorn ends by the signal it got, without exit handlers; pending updates are in the storage by then."""
    name = {"fastapi": "fastapi.FastAPI", "starlette": "starlette.applications.Starlette"}[framework]
    module, _, kind = name.rpartition(".")
    source = f"""
from {module} import {kind}
from pdc_starlette import instrument
app = {kind}()
instrument(app, sqlite_path="metrics.db", flush_interval=600)
"""
    (tmp_path / "shop.py").write_text(source)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "warning", "shop:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_until(lambda: _answers(port))
        for _ in range(3):
            _answers(port)
    finally:
        server.terminate()
        server.wait(30)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert stored("http_requests_total") == {("GET", "<unmatched>", "404"): 4.0}


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 404
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


def test_the_end_of_an_application_waits_for_no_server(own_redis_server: RedisServer) -> None:
    """While Redis is frozen, the shutdown of the lifespan takes no longer than `exit_timeout`."""
    app = Starlette()
    instrument(app, redis_url=own_redis_server.url, exit_timeout=0.2)
    with TestClient(app) as web:
        web.get("/")
        pdc.flush()
        own_redis_server.freeze()
        web.get("/")
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    own_redis_server.thaw()
    pdc.flush()
    assert 'http_requests_total{method="GET",route="<unmatched>",status="404"} 2.0' in pdc.generate_latest().decode()
