"""Equivalent applications of Starlette and FastAPI for tests, and what their storage has."""

# ruff: noqa: ARG001 - views, handlers and applications accept the arguments of the framework

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import pdc
from pdc_starlette import instrument

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette 1 would rather have httpx2, which the oldest Starlette does not know
    from starlette.testclient import TestClient as TestClient  # tests import it from here

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


def sorry(request: Request, error: Exception) -> Response:
    """Handle an exception in a thread."""
    return PlainTextResponse("sorry", 418)


def failed(request: Request, error: Exception) -> Response:
    """Answer with another page for status 500."""
    return PlainTextResponse("failed", 500)


async def sorry_async(request: Request, error: Exception) -> Response:
    """Handle an exception."""
    return PlainTextResponse("sorry", 418)
