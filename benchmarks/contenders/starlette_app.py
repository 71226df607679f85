"""Requests to a Starlette or FastAPI application, bare and instrumented."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.worker import Operation

from . import requests


def make(instrument: str, routes: int, fastapi: bool = False) -> Operation:
    """Requests to the last of that many routes."""
    app = (_fastapi if fastapi else _starlette)([f"/items{number}/{{name}}" for number in range(routes)])
    INSTRUMENTS[instrument](app)
    return requests.asgi(app, f"/items{routes - 1}/apple")


def _starlette(paths: list[str]) -> Starlette:
    def view() -> Callable[[Request], Awaitable[PlainTextResponse]]:
        async def item(_: Request) -> PlainTextResponse:
            return PlainTextResponse(requests.BODY)

        return item

    return Starlette(routes=[Route(path, view()) for path in paths])


def _fastapi(paths: list[str]) -> Starlette:
    from fastapi import FastAPI

    app = FastAPI()
    for path in paths:

        @app.get(path)
        async def item(name: str) -> PlainTextResponse:  # noqa: ARG001 - the route has this parameter
            return PlainTextResponse(requests.BODY)

    return app


class ByHand:
    """The leanest middleware."""

    def __init__(self, app: ASGIApp) -> None:
        from .by_hand import ByHand as Metrics

        self._app = app
        self._metrics = Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and time a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = self._metrics.begin(scope["method"])
        try:
            await self._app(scope, receive, watched)
        finally:
            route = scope.get("route")
            self._metrics.end(scope["method"], route.path if route else "<unmatched>", status, start)


def _pdc_sqlite(app: Starlette) -> None:
    from pdc_starlette import instrument

    instrument(app, sqlite_path="metrics.db")


def _pdc_redis(app: Starlette) -> None:
    from pdc_starlette import instrument

    instrument(app, redis_url=os.environ["REDIS_URL"])


def _starlette_exporter(app: Starlette) -> None:
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    app.add_route("/metrics", handle_metrics)


def _instrumentator(app: Starlette) -> None:
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app)


INSTRUMENTS: dict[str, Callable[[Starlette], object]] = {
    "bare": lambda app: app,
    "by_hand": lambda app: app.add_middleware(ByHand),
    "pdc_sqlite": _pdc_sqlite,
    "pdc_redis": _pdc_redis,
    "starlette_exporter": _starlette_exporter,
    "instrumentator": _instrumentator,
}
