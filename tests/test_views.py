"""Metrics pages that are views of applications without an extension."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import django_project  # noqa: F401 - it configures Django
import flask
import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette_applications import client
from werkzeug.test import Client

import pdc

Answer = tuple[bytes, int, dict[str, str]]
Ask = Callable[..., Answer]
REGISTRY = CollectorRegistry()


@pytest.fixture(autouse=True)
def _own() -> Iterator[None]:
    """A metric of prometheus_client in the registry."""
    own = Gauge("own", "Of this process.", registry=REGISTRY)
    own.set(5)
    yield
    REGISTRY.unregister(own)


def lowered(headers: Any) -> dict[str, str]:
    """The headers by their names in lower case."""
    return {name.lower(): value for name, value in headers}


def ask_flask(method: str = "GET", query: str = "", **headers: str) -> Answer:
    """The answer of a view of Flask."""
    app = flask.Flask("shop")
    app.add_url_rule("/metrics", "metrics", lambda: pdc.scrape_response(flask.request, REGISTRY), methods=["GET", "PUT"])
    answer = app.test_client().open(f"/metrics?{query}", method=method, headers=headers)
    return answer.data, answer.status_code, lowered(answer.headers)


def ask_django(method: str = "GET", query: str = "", factory: Any = RequestFactory, **headers: str) -> Answer:
    """The answer of a view of Django."""

    def view(request: HttpRequest) -> HttpResponse:
        body, status, headers = pdc.scrape_response(request, REGISTRY)
        return HttpResponse(body, status=status, headers=headers)

    answer = view(factory().generic(method, f"/metrics?{query}", headers=headers))
    return answer.content, answer.status_code, lowered(answer.items())


def ask_django_asgi(method: str = "GET", query: str = "", **headers: str) -> Answer:
    """The answer of a view of Django under ASGI."""
    return ask_django(method, query, AsyncRequestFactory, **headers)


def view(request: Request) -> Response:
    """A view of Starlette or FastAPI."""
    return Response(*pdc.scrape_response(request, REGISTRY))


def ask_starlette(method: str = "GET", query: str = "", app: Any = None, **headers: str) -> Answer:
    """The answer of a view of Starlette."""
    app = app or Starlette(routes=[Route("/metrics", view, methods=["GET", "PUT"])])
    with client(app).stream(method, f"/metrics?{query}", headers={"accept-encoding": "", **headers}) as answer:
        return b"".join(answer.iter_raw()), answer.status_code, lowered(answer.headers.items())


def ask_fastapi(method: str = "GET", query: str = "", **headers: str) -> Answer:
    """The answer of a view of FastAPI."""
    app = FastAPI()
    app.add_api_route("/metrics", view, methods=["GET", "HEAD", "PUT"], response_model=None)
    return ask_starlette(method, query, app, **headers)


def ask_wsgi(method: str = "GET", query: str = "", **headers: str) -> Answer:
    """The answer of a WSGI application."""

    def app(environ: Any, start_response: Any) -> Any:
        body, status, headers = pdc.scrape_response(environ, REGISTRY)
        start_response(f"{int(status)} -", list(headers.items()))
        return [body]

    answer = Client(app).open(f"/metrics?{query}", method=method, headers=headers)
    return answer.data, answer.status_code, lowered(answer.headers)


ASKS = [ask_flask, ask_django, ask_django_asgi, ask_starlette, ask_fastapi, ask_wsgi]


@pytest.fixture(params=ASKS, ids=[ask.__name__.removeprefix("ask_") for ask in ASKS])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask a view of each framework."""
    found: Ask = request.param
    return found


def test_a_view_answers_as_the_extensions_do(ask: Ask, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """One call negotiates format and compression, chooses by name, and shows the storage and a registry."""
    pdc.setup(**storage)
    pdc.Counter("visits", "Visits.", registry=registry).inc()
    body, status, headers = ask()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["content-length"] == str(len(body))
    assert {"visits_total 1.0", "own 5.0"} < set(body.decode().splitlines())
    body, status, headers = ask(Accept="application/openmetrics-text", **{"Accept-Encoding": "gzip"})
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(body).endswith(b"# EOF\n")
    assert b"own" not in ask(query="name[]=visits_total")[0]
    assert ask("HEAD")[:2] == (b"", 200)
    assert ask("PUT")[1] == 405


def test_a_view_without_its_storage_is_a_503(ask: Ask) -> None:
    """A storage that cannot be read is a 503 with the reason, in plain text."""
    pdc.setup(sqlite="/nonexistent/metrics.db", journal=False)
    body, status, headers = ask()
    assert (status, headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert b"/nonexistent/metrics.db" in body


def test_another_request_is_refused() -> None:
    """The error quotes the request and names the kinds that are known."""
    with pytest.raises(
        TypeError, match="must be a request of Flask, Django or Starlette, a WSGI environment or an ASGI scope, got 5"
    ):
        pdc.scrape_response(5)
