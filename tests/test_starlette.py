"""The middleware for Starlette and FastAPI, over equivalent applications of both, and under a real Uvicorn."""

# ruff: noqa: ARG001 - views, handlers and applications accept the arguments of the framework

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import starlette_applications
from conftest import ROOT, RedisServer, free_port, wait_until
from fastapi import APIRouter, FastAPI
from helpers import has_live_values, mainly
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.websockets import WebSocket
from starlette_applications import (
    ASGI,
    Make,
    Message,
    ScopeCopy,
    TestClient,
    add,
    client,
    fail,
    fine,
    nest,
    requests,
    sorry,
    stored,
)

import pdc
from pdc_starlette import PrometheusMiddleware, exclude, instrument

# pytest finds these fixtures by their names here.
framework = starlette_applications.framework
options = starlette_applications.options
make_app = starlette_applications.make_app


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


@pytest.mark.parametrize(("inner", "found", "lost"), [([], "200", "404"), ([Middleware(TooMany)], "429", "429")])
def test_hosts_have_routes(make_app: Make, inner: list[Middleware], found: str, lost: str) -> None:
    """The template of a route for one host is that of its path, also where hosts share a view, or a middleware answers."""
    app = make_app(inner=inner)
    for host, name in (("api", "id"), ("www", "name")):
        app.router.routes.append(Host(f"{host}.example.org", Router([Route(f"/things/{{{name}}}", fine)])))
        client(app, base_url=f"http://{host}.example.org:80").get("/things/1")
    client(app).get("/things/1")
    routes = {"/things/{id}": found, "/things/{name}": found, "<unmatched>": lost}
    assert requests() == {("GET", route, status): 1.0 for route, status in routes.items()}


def test_an_answer_of_a_middleware_has_no_route_where_none_matches(make_app: Make) -> None:
    """The only route of an application is not that of all paths for which a middleware answers."""
    web = client(make_app({"/things/{id}": fine}, [Middleware(TooMany)], metrics_path=None))
    for path in ("/things/1", "/nowhere"):
        web.get(path)
    assert requests() == {("GET", "/things/{id}", "429"): 1.0, ("GET", "<unmatched>", "429"): 1.0}


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


def test_an_application_of_another_framework_is_refused() -> None:
    """The error names the object, and the extension of Flask."""
    application: Any = object()
    with pytest.raises(TypeError, match=r"expected an application of Starlette or FastAPI, got <object .*>: pdc_flask"):
        instrument(application)


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


def of_options(storage: dict[str, Any]) -> dict[str, Any]:
    """The options of the middleware for these arguments of `pdc.setup`."""
    places = {"sqlite": "sqlite_path", "redis": "redis_url", "redis_prefix": "redis_prefix"}
    return {places[name]: value for name, value in storage.items()}


@mainly("redis")
@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_stops_as_any_process_does(framework: str, storage: dict[str, Any], tmp_path: Path, workers: int) -> None:
    """Uvicorn ends by the signal it got, without exit handlers: by then all is sent, no journal and no live value is left."""
    name = {"fastapi": "fastapi.FastAPI", "starlette": "starlette.applications.Starlette"}[framework]
    module, _, kind = name.rpartition(".")
    options = of_options(storage) | {"journal": str(tmp_path / "journal")}
    source = f"""
from {module} import {kind}
from pdc_starlette import instrument
app = {kind}()
instrument(app, **{options!r}, flush_interval=600)
"""
    (tmp_path / "shop.py").write_text(source)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", f"--port={port}", f"--workers={workers}", "--log-level=warning", "shop:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_until(lambda: _answers(port))
        for _ in range(3):
            _answers(port)
        assert list((tmp_path / "journal").iterdir())
    finally:
        server.terminate()
        server.wait(30)
    assert list((tmp_path / "journal").iterdir()) == []
    pdc.setup(**storage)
    assert stored("http_requests_total") == {("GET", "<unmatched>", "404"): 4.0}
    assert stored("http_requests_in_progress") == {}


def test_lifespans_of_one_process_follow_each_other(
    framework: str, storage: dict[str, Any], tmp_path: Path, registry: CollectorRegistry
) -> None:
    """The first update after the end of a lifespan begins another journal; values of the process come back, and add up once."""
    pdc.setup(**storage, flush_interval=600, journal=tmp_path / "journal")
    app = (FastAPI if framework == "fastapi" else Starlette)()
    instrument(app, **of_options(storage), flush_interval=600, journal=str(tmp_path / "journal"))
    live = pdc.Gauge("livesum", "Help", multiprocess_mode="livesum", registry=registry)
    total = pdc.Gauge("sum", "Help", multiprocess_mode="sum", registry=registry)
    for number in (1.0, 2.0, 3.0):
        with TestClient(app) as web:
            web.get("/")
            live.inc()
            total.inc()
            assert len(list((tmp_path / "journal").iterdir())) == 1
            assert (stored("livesum"), stored("sum")) == ({(): number}, {(): number})
        assert list((tmp_path / "journal").iterdir()) == []
        assert not has_live_values("livesum")
        assert stored("http_requests_total") == {("GET", "<unmatched>", "404"): number}
        assert stored("sum") == {(): number}


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
