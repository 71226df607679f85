"""Prints the families that exporters of other packages have after a request: as JSON, names with their labels."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import django
import httpx
from django.conf import settings
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

before: set[Collector] = set(REGISTRY._collector_to_names)
found: dict[str, list[str]] = {}


def note(exporter: str) -> None:
    """Note the families that are new."""
    new = [each for each in REGISTRY._collector_to_names if each not in before and isinstance(each, MetricWrapperBase)]
    before.update(new)
    names = (f"{each._name}{'_total' if each._type == 'counter' else ''}" for each in new)
    labels = (f"{{{','.join(each._labelnames)}}}" if each._labelnames else "" for each in new)
    found[exporter] = sorted(map("".join, zip(names, labels, strict=True)))


def ask(app: Any) -> None:
    """Send a request."""

    async def get() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.get("/")

    asyncio.run(get())


import flask  # noqa: E402 - the families of each exporter are noted apart
import prometheus_flask_exporter  # noqa: E402

prometheus_flask_exporter.PrometheusMetrics(flask.Flask("shop"))
note("prometheus-flask-exporter")

import starlette_exporter  # noqa: E402
from starlette_exporter.optional_metrics import request_body_size, response_body_size  # noqa: E402

of_starlette = Starlette(routes=[Route("/", lambda _: PlainTextResponse("tea"))])
of_starlette.add_middleware(starlette_exporter.PrometheusMiddleware, optional_metrics=[request_body_size, response_body_size])
ask(of_starlette)
note("starlette-exporter")

from prometheus_fastapi_instrumentator import Instrumentator  # noqa: E402

of_fastapi = FastAPI()
Instrumentator(should_instrument_requests_inprogress=True).instrument(of_fastapi)
ask(of_fastapi)
note("prometheus-fastapi-instrumentator")

settings.configure(INSTALLED_APPS=["django_prometheus"], DATABASES={})
django.setup()
import django_prometheus.cache.metrics  # noqa: E402
import django_prometheus.db.metrics  # noqa: E402
import django_prometheus.middleware  # noqa: E402
import django_prometheus.migrations  # noqa: E402
import django_prometheus.models  # noqa: E402

django_prometheus.middleware.Metrics.get_instance()
note("django-prometheus")
print(json.dumps(found))
