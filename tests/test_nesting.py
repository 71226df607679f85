"""Instrumented applications in instrumented applications: one request is one count, under the outermost."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import pytest
from a2wsgi import ASGIMiddleware, WSGIMiddleware
from asgiref.wsgi import WsgiToAsgi
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path as django_path
from django_project import OURS
from fastapi import FastAPI
from flask import Flask, Response, request
from http_applications import DENY, FRAMEWORKS, Answer, Application, leave_asgi, over_asgi, over_wsgi
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette_applications import ignore, never
from test_http_contract import counted, raised, without_durations
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from pdc_django import conf
from pdc_flask import PrometheusMetrics
from pdc_starlette import instrument

Wrap = Callable[[Any], Any]
ADAPTERS: dict[str, Wrap] = {"a2wsgi": WSGIMiddleware, "asgiref": WsgiToAsgi}
"""They make an ASGI application of a WSGI application."""
with suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.middleware.wsgi import WSGIMiddleware as StarlettesOwn

    ADAPTERS["starlette"] = StarlettesOwn
ROUTE, PATH = "/shops/{shop}", "/shops/7"
"""The mount where the outer application has templates of mounts."""
PLAIN = "/shops"
"""The mount where it has none."""


class Nested(NamedTuple):
    """An inner application in an outer one."""

    app: Any
    send: Callable[[Any, str, str, Mapping[str, str], bytes], Answer]
    route: str
    path: str

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send a request to the inner application."""
        return self.send(self.app, method, self.path + path, headers or {}, body)

    def lines(self) -> list[str]:
        """The samples of the page of the outer application."""
        return without_durations(self.send(self.app, "GET", "/metrics", {}, b"").text)


def in_starlette(wrap: Wrap, inner: Any, options: dict[str, Any], framework: type[Starlette] = Starlette) -> Nested:
    """Mount it in Starlette or FastAPI, below a parameter."""
    app = framework(routes=[Mount(ROUTE, wrap(inner)), Route("/own", lambda _: PlainTextResponse("own"))])
    instrument(app, **options)
    return Nested(app, over_asgi, ROUTE, PATH)


def in_flask(wrap: Wrap, inner: Any, options: dict[str, Any]) -> Nested:
    """Mount it in Flask with Werkzeug's dispatcher."""
    app = Flask("outer")
    app.config.update({f"PDC_{name.upper()}": value for name, value in options.items()})
    app.add_url_rule("/own", view_func=lambda: "own")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {PLAIN: wrap(inner)})  # type: ignore[method-assign] # documented
    PrometheusMetrics(app)
    return Nested(app, over_wsgi, PLAIN, PLAIN)


def unchanged(app: Any) -> Any:
    """For applications of the same kind as the outer one."""
    return app


def by_hand(app: Any) -> Any:
    """A function that calls it, in which Starlette finds no routes."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return call


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread, for ASGI applications in WSGI applications."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


in_fastapi = partial(in_starlette, framework=FastAPI)
NESTINGS: dict[str, tuple[str, Callable[..., Nested], str | Wrap]] = {
    "flask in flask": ("flask", in_flask, unchanged),
    "django in flask": ("django", in_flask, unchanged),
    "starlette in flask": ("starlette", in_flask, "loop"),
    "fastapi in flask": ("fastapi", in_flask, "loop"),
    "async django in fastapi": ("django-async", in_fastapi, unchanged),
    "fastapi in fastapi": ("fastapi", in_fastapi, unchanged),
    "starlette in starlette": ("starlette", in_starlette, unchanged),
    "fastapi in starlette by hand": ("fastapi", in_starlette, by_hand),
    **{f"flask in starlette by {name}": ("flask", in_starlette, adapter) for name, adapter in ADAPTERS.items()},
    "django in fastapi by asgiref": ("django", in_fastapi, WsgiToAsgi),
}
Nest = Callable[..., Nested]


@pytest.fixture(params=NESTINGS)
def nest(request: pytest.FixtureRequest, tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Nest]:
    """Make an application in another one; `outer` and `inner` are options."""
    framework, put, wrap = NESTINGS[request.param]
    made: list[Application] = []
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}

    def nesting(outer: dict[str, Any] | None = None, **inner: Any) -> Nested:
        made.append(FRAMEWORKS[framework](**storage, **inner))
        adapter: Any = partial(ASGIMiddleware, loop=loop) if wrap == "loop" else wrap
        return put(adapter, made[0].app, {**storage, **(outer or {})})

    yield nesting
    made[0].close()


def test_one_request_is_one_count(nest: Nest) -> None:
    """Requests of an inner application count once, under the whole template, with their statuses and exceptions."""
    app = nest()
    statuses = [
        app.request("GET", path).status for path in ("/items/tea", "/items/cake", "/missing/tea", "/nowhere", "/stream")
    ]
    assert statuses == [200, 200, 404, 404, 200]
    assert app.request("POST", "/orders", body=b"tea").text == "ordered tea"
    assert (app.request("GET", "/broken").status, app.request("GET", "/handled").status) == (500, 418)
    assert app.request("GET", "/items/tea", {DENY: "1"}).status == 401
    assert app.send(app.app, "GET", "/own", {}, b"").text == "own"
    route = app.route
    assert app.lines() == counted(
        "GET /own 200",
        f"GET {route}/items/{{name}} 200 = 2",
        f"GET {route}/items/{{name}} 401",
        f"GET {route}/missing/{{name}} 404",
        "GET <unmatched> 404",
        f"GET {route}/stream 200",
        f"POST {route}/orders 201",
        f"GET {route}/broken 500",
        f"GET {route}/handled 418",
        more=(raised("KeyError", f"{route}/broken"), raised("Handled", f"{route}/handled")),
    )


def test_the_inner_application_leaves_out_too(nest: Nest) -> None:
    """The page, views, paths and methods that the inner application excludes are not counted; the outer one excludes more."""
    outer = {"exclude_paths": [re.compile("/shops.*/static/.*")], "exclude_methods": ("DELETE",)}
    app = nest(outer, exclude_paths=["/health"], exclude_methods=("PATCH",))
    paths = ("/metrics", "/monitoring/metrics", "/quiet/tea", "/health", "/static/app.js", "/items/tea")
    assert [app.request("GET", path).status for path in paths] == [200] * 6
    assert [app.request(method, "/items/tea").status for method in ("PATCH", "DELETE", "PUT")] == [405] * 3
    forgotten = 'http_requests_in_progress{method="PATCH"} 0.0'
    items = f"{app.route}/items/{{name}}"
    assert app.lines() == counted(f"GET {items} 200", f"PUT {items} 405", more=(forgotten,))


def test_labels_and_sizes_are_those_of_the_outer_application(nest: Nest) -> None:
    """A request has the labels of the outermost application, which get its request, and the sizes of its bodies."""
    app = nest({"labels": {"shop": "7"}, "sizes": True})
    assert app.request("POST", "/orders", body=b"tea").status == 201
    series = f'{{method="POST",route="{app.route}/orders",shop="7",status="201"}}'
    found = [line for line in app.lines() if "_bucket" not in line and "_created" not in line]
    assert f"http_requests_total{series} 1.0" in found
    assert [f"http_{name}_size_bytes_sum{series} {size}" in found for name, size in (("request", 3.0), ("response", 11.0))] == [
        True,
        True,
    ]


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_labels_get_the_request_of_the_outer_application(adapter: Wrap, tmp_path: Path) -> None:
    """A callable for a label takes a request of the outermost framework, also for requests of other frameworks."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    inner = FRAMEWORKS["flask"](**storage, labels={"wrong": "label"})
    app = in_starlette(adapter, inner.app, {**storage, "labels": {"shop": lambda request: request.path_params["shop"]}})
    assert app.request("GET", "/items/tea").status == 200
    assert app.lines() == counted(f"GET {ROUTE}/items/{{name}} 200", labels=',shop="7"')


def test_labels_of_flask_around_another_framework_are_empty(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Flask makes no request object for a request of an inner application that is not Flask: its callables are not called."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    inner = FRAMEWORKS["fastapi"](**storage).app
    labels = {"shop": lambda request: request.path}
    app = in_flask(partial(ASGIMiddleware, loop=loop), inner, {**storage, "labels": labels})
    assert app.request("GET", "/items/tea").status == 200
    assert app.lines() == counted(f"GET {PLAIN}/items/{{name}} 200", labels=',shop=""')


def test_a_client_that_leaves_an_inner_stream_is_a_499(tmp_path: Path) -> None:
    """A client that leaves the stream of an inner application counts once, as 499."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    app = in_starlette(unchanged, FRAMEWORKS["fastapi"](**storage).app, storage, FastAPI)
    leave_asgi(app.app, f"{PATH}/endless")
    assert app.lines() == counted(f"GET {ROUTE}/endless 499")


class Dispatcher:
    """A middleware that sends some paths to another application."""

    def __init__(self, app: Any, inner: Any) -> None:
        self.app, self._inner = app, inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call one of the two."""
        if scope["path"].startswith(f"{PLAIN}/"):
            await self._inner({**scope, "root_path": PLAIN}, receive, send)
        else:
            await self.app(scope, receive, send)


@pytest.mark.parametrize("framework", ["fastapi", "django-async"])
def test_a_middleware_may_send_requests_to_an_inner_application(framework: str, tmp_path: Path) -> None:
    """Requests that a middleware sends to another application count under its routes, not under those of the outer one."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    inner = FRAMEWORKS[framework](**storage)
    outer = FastAPI(middleware=[Middleware(Dispatcher, inner=inner.app)])
    instrument(outer, **storage)
    outer.add_route("/{path:path}", lambda _: PlainTextResponse("own"))
    app = Nested(outer, over_asgi, PLAIN, PLAIN)
    assert [app.request("GET", path).status for path in ("/items/tea", "/broken", "/nowhere", "/metrics")] == [
        200,
        500,
        404,
        200,
    ]
    assert over_asgi(outer, "GET", "/items/tea", {}, b"").text == "own"
    assert app.lines() == counted(
        f"GET {PLAIN}/items/{{name}} 200",
        f"GET {PLAIN}/broken 500",
        "GET <unmatched> 404",
        "GET /{path:path} 200",
        more=(raised("KeyError", f"{PLAIN}/broken"),),
    )
    inner.close()


def _asks(client: Client) -> Callable[[Any], Any]:
    async def view(request: Any) -> PlainTextResponse:
        answer = await run_in_threadpool(client.get, request.query_params["path"])
        return PlainTextResponse(answer.text)

    return view


def test_requests_that_an_application_sends_itself_count(tmp_path: Path) -> None:
    """An application that asks another one, in the same process and the same context, is not around that one."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    asked = FRAMEWORKS["flask"](**storage).app
    client = Client(asked)
    app = Starlette(routes=[Route("/ask", _asks(client))])
    instrument(app, **storage, exclude_paths=["/items/cake"])

    async def several() -> None:
        for path, query in (("/ask", b"path=/items/tea"), ("/items/cake", b"")):
            scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": []}
            await app(scope, never, ignore)
            assert client.get(path).status_code == 404 - 204 * (path != "/ask")

    asyncio.run(several())
    found = without_durations(client.get("/metrics").text)
    assert [re.sub("<name>", "{name}", line) for line in found] == counted(
        "GET /ask 200", "GET <unmatched> 404", "GET /items/{name} 200 = 2"
    )


def test_applications_side_by_side_count_by_themselves(tmp_path: Path) -> None:
    """Two applications of a dispatcher that is not instrumented count their own requests."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    one, other = (FRAMEWORKS["flask"](**storage).app for _ in range(2))
    app = Nested(DispatcherMiddleware(one, {PLAIN: other}), over_wsgi, PLAIN, PLAIN)
    assert (app.request("GET", "/items/tea").status, over_wsgi(app.app, "GET", "/items/tea", {}, b"").status) == (200, 200)
    assert app.lines() == counted("GET /items/{name} 200", f"GET {PLAIN}/items/{{name}} 200")


def test_an_application_in_a_view_counts_under_its_own_route(tmp_path: Path) -> None:
    """A Django view that calls a WSGI application counts once, under the route of that application."""
    inner = FRAMEWORKS["flask"](sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0).app

    def view(request: HttpRequest, **_: str) -> HttpResponse:
        answer = over_wsgi_environ(inner, request.META)
        return HttpResponse(answer.text, status=answer.status)

    with override_settings(
        MIDDLEWARE=[OURS],
        ROOT_URLCONF=(django_path("<path:rest>", view),),
        PDC_SQLITE_PATH=str(tmp_path / "metrics.db"),
        PDC_FLUSH_INTERVAL=0,
    ):
        app = Nested(WSGIHandler(), over_wsgi, "", "")
        assert [app.request("GET", path).status for path in ("/items/tea", "/nowhere", "/broken", "/quiet/tea")] == [
            *(200, 404, 500, 200)
        ]
        found = app.lines()
    conf.http_metrics.cache_clear()
    assert found == counted(
        "GET /items/{name} 200", "GET <unmatched> 404", "GET /broken 500", more=(raised("KeyError", "/broken"),)
    )


def test_an_application_in_a_view_of_flask_counts_under_its_own_route(tmp_path: Path) -> None:
    """A request that no route of the inner application matches is unmatched, whatever route led to the inner one."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    inner, outer = FRAMEWORKS["flask"](**storage).app, Flask("outer")
    outer.config.update(PDC_SQLITE_PATH=storage["sqlite_path"], PDC_FLUSH_INTERVAL=0)
    PrometheusMetrics(outer)
    outer.add_url_rule("/<path:rest>", view_func=lambda rest: Response.from_app(inner, request.environ))  # noqa: ARG005
    app = Nested(outer, over_wsgi, "", "")
    assert [app.request("GET", path).status for path in ("/items/tea", "/nowhere")] == [200, 404]
    assert app.lines() == counted("GET /items/{name} 200", "GET <unmatched> 404")


def over_wsgi_environ(app: Any, environ: dict[str, Any]) -> Answer:
    """Call a WSGI application with the environment of a request."""
    started: list[int] = []
    content = b"".join(app(environ, lambda status, *_: started.append(int(status[:3]))))
    return Answer(started[0], content.decode())


def test_an_environment_may_be_used_again(tmp_path: Path) -> None:
    """A request whose environment an earlier one has used counts, too."""
    app = FRAMEWORKS["flask"](sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0).app
    environ: dict[str, Any] = {"PATH_INFO": "/items/tea", "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    assert [over_wsgi_environ(app, environ).status for _ in range(2)] == [200, 200]
    assert Nested(app, over_wsgi, "", "").lines() == counted("GET /items/{name} 200 = 2")


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_the_mount_may_have_another_name_outside(adapter: Wrap, tmp_path: Path) -> None:
    """Below the root path of a proxy, and in a project with FORCE_SCRIPT_NAME, requests count once."""
    storage: dict[str, Any] = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0}
    inner = FRAMEWORKS["django"](**storage)
    app = in_starlette(adapter, inner.app, storage)
    for forced in (None, "/forced"):
        for root in ("", "/proxy"):
            scope = {"root_path": root, "path": f"{root}{PATH}/items/tea"}
            with override_settings(FORCE_SCRIPT_NAME=forced):
                assert over_asgi(partial(_with, app.app, scope), "GET", "", {}, b"").status == 200
    assert app.lines() == counted(f"GET {ROUTE}/items/{{name}} 200 = 2", "GET /forced/items/{name} 200 = 2")
    inner.close()


async def _with(app: Any, changes: dict[str, Any], scope: Any, receive: Any, send: Any) -> None:
    await app({**scope, **changes}, receive, send)
