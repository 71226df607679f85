"""Starlette and FastAPI with exporters of other packages, which Gunicorn serves. Each page is that of its exporter."""

from __future__ import annotations

from typing import Any

import starlette_exporter
from fastapi import FastAPI
from plain_metrics import serve
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


def of_starlette(_: Request) -> PlainTextResponse:
    """Answer in Starlette."""
    return PlainTextResponse(serve())


of_fastapi = FastAPI()
Instrumentator(should_instrument_requests_inprogress=True).instrument(of_fastapi).expose(of_fastapi)
of_fastapi.get("/hit")(serve)
routes: list[Any] = [
    Route("/hit", of_starlette),
    Route("/metrics", starlette_exporter.handle_metrics),
    Mount("/fastapi", of_fastapi),
]
app = Starlette(routes=routes)
app.add_middleware(starlette_exporter.PrometheusMiddleware, app_name="shop")
