"""The Flask extension, driven with Flask's test client and under a real Gunicorn."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ROOT, RedisServer
from flask import Blueprint, Flask, Response, abort, send_file, stream_with_context
from prometheus_client.parser import text_string_to_metric_families

import pdc
from pdc.options import OptionError
from pdc_flask import PrometheusMetrics

Make = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Any) -> Make:
    """Make an application with the extension; keywords are options."""

    def make(**options: Any) -> Flask:
        app = Flask("shop")
        app.config.update({"PDC_SQLITE_PATH": str(tmp_path / "metrics.db"), "PDC_FLUSH_INTERVAL": 0})
        app.config.update({f"PDC_{name.upper()}": value for name, value in options.items()})
        PrometheusMetrics(app)
        app.logger.setLevel(logging.CRITICAL)
        return app

    return make


def scraped(app: Flask, name: str) -> dict[tuple[str, ...], float]:
    """The samples of that name at ``/metrics``: label values, sorted by label name, to value."""
    page = app.test_client().get("/metrics")
    assert page.status_code == 200
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted_by_method_route_and_status(make_app: Make) -> None:
    """Every request is counted under the template of its route, also in blueprints; the others are unmatched."""
    app = make_app()
    shop = Blueprint("shop", __name__, url_prefix="/shop")
    shop.add_url_rule("/<int:number>", "item", lambda number: f"{number}", methods=["GET", "POST"])
    app.register_blueprint(shop)
    client = app.test_client()
    for path in ("/shop/1", "/shop/2", "/nowhere", "/elsewhere"):
        client.get(path)
    client.post("/shop/3")
    client.head("/shop/3")
    client.options("/shop/3")
    client.open("/shop/3", method="BREW")
    client.delete("/shop/3")
    assert scraped(app, "http_requests_total") == {
        ("GET", "/shop/<int:number>", "200"): 2.0,
        ("POST", "/shop/<int:number>", "200"): 1.0,
        ("HEAD", "/shop/<int:number>", "200"): 1.0,
        ("OPTIONS", "/shop/<int:number>", "200"): 1.0,
        ("GET", "<unmatched>", "404"): 2.0,
        ("<other>", "<unmatched>", "405"): 1.0,
        ("DELETE", "<unmatched>", "405"): 1.0,
    }
    assert set(scraped(app, "http_requests_in_progress").values()) == {0.0}


def test_the_duration_lasts_to_the_end_of_a_stream(make_app: Make) -> None:
    """A streamed body is in progress until its end, then in the histogram with the count of its requests."""
    app = make_app()
    seen: list[float] = []

    @app.get("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[str]:
            yield "a"
            seen.append(sum(sample.value for sample in pdc_samples("http_requests_in_progress")))
            yield "b"

        return Response(stream_with_context(chunks()))

    assert app.test_client().get("/stream").text == "ab"
    assert seen == [1.0]
    assert scraped(app, "http_request_duration_seconds_count") == {("GET", "/stream", "200"): 1.0}


def fail() -> str:
    """A view that raises."""
    raise KeyError("nothing")


def pdc_samples(name: str) -> list[Any]:
    """The samples of that name in the storage."""
    return [sample for metric in pdc.exposition.collect() for sample in metric.samples if sample.name == name]


@pytest.mark.parametrize("handled", [False, True])
def test_exceptions_are_counted_whether_handled_or_not(make_app: Make, handled: bool) -> None:
    """An exception that leaves a view counts once, with or without an error handler; the status is what was sent."""
    app = make_app()
    app.add_url_rule("/broken", view_func=fail)
    if handled:
        app.register_error_handler(KeyError, lambda _: ("sorry", 418))
    status = str(app.test_client().get("/broken").status_code)
    assert status == ("418" if handled else "500")
    assert scraped(app, "http_exceptions_total") == {("KeyError", "GET", "/broken"): 1.0}
    assert scraped(app, "http_requests_total") == {("GET", "/broken", status): 1.0}


def test_exceptions_that_propagate_are_counted_once(make_app: Make) -> None:
    """In testing mode, where exceptions reach the server, each still counts once and as status 500."""
    app = make_app()
    app.testing = True
    app.add_url_rule("/broken", view_func=fail)
    with pytest.raises(KeyError):
        app.test_client().get("/broken")
    assert scraped(app, "http_exceptions_total") == {("KeyError", "GET", "/broken"): 1.0}
    assert scraped(app, "http_requests_total") == {("GET", "/broken", "500"): 1.0}


def test_an_abort_is_no_exception(make_app: Make) -> None:
    """`abort` in a view or in an earlier hook is a status, counted under the route."""
    app = make_app()
    app.before_request(lambda: abort(401))
    app.add_url_rule("/", view_func=lambda: "never")
    app.test_client().get("/")
    app.before_request_funcs.clear()
    assert scraped(app, "http_requests_total") == {("GET", "/", "401"): 1.0}
    assert scraped(app, "http_exceptions_total") == {}


def test_async_views_and_files_are_counted(make_app: Make) -> None:
    """Async views and files that Flask sends are requests like any other."""
    app = make_app()

    @app.get("/async")
    async def view() -> str:
        await asyncio.sleep(0)
        return "done"

    app.add_url_rule("/file", view_func=lambda: send_file(__file__))
    client = app.test_client()
    assert client.get("/async").text == "done"
    with client.get("/file") as page:
        assert b"Async views" in page.data
    assert scraped(app, "http_requests_total") == {("GET", "/async", "200"): 1.0, ("GET", "/file", "200"): 1.0}


def test_metrics_are_not_counted_and_can_be_moved(make_app: Make) -> None:
    """The metrics page is where the option says and never counts itself, whatever the method."""
    app = make_app(metrics_path="/internal/metrics")
    client = app.test_client()
    for method in ("GET", "HEAD", "OPTIONS"):
        assert client.open("/internal/metrics", method=method).status_code == 200
    assert b"http_requests_total{" not in client.get("/internal/metrics").data
    assert client.get("/metrics").status_code == 404


def test_the_page_negotiates_and_asks_for_the_token(make_app: Make) -> None:
    """The page answers in OpenMetrics when asked to, and with 401 without the token."""
    client = make_app(metrics_token="secret").test_client()
    assert client.get("/metrics").status_code == 401
    page = client.get("/metrics", headers={"Authorization": "Bearer secret", "Accept": "application/openmetrics-text"})
    assert page.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.text.endswith("# EOF\n")


def test_a_storage_that_cannot_be_read_is_a_503(make_app: Make) -> None:
    """Without its storage the application answers requests, and the metrics page says what is wrong."""
    app = make_app(sqlite_path="/nonexistent/metrics.db")
    app.add_url_rule("/", view_func=lambda: "fine")
    client = app.test_client()
    assert client.get("/").text == "fine"
    page = client.get("/metrics")
    assert page.status_code == 503
    assert "/nonexistent/metrics.db" in page.text


def test_options_come_from_the_config_and_wrong_ones_are_refused(make_app: Make) -> None:
    """Options are keys of app.config; an unknown one is an error at start-up."""
    app = make_app(namespace="shop", group_status=True, exclude_paths=["/health"])
    app.add_url_rule("/", view_func=lambda: "fine")
    for path in ("/", "/health"):
        app.test_client().get(path)
    assert scraped(app, "shop_http_requests_total") == {("GET", "/", "2xx"): 1.0}
    with pytest.raises(OptionError, match="unknown option PDC_BUCKET"):
        make_app(bucket=[1])


def test_the_extension_can_be_switched_off(make_app: Make) -> None:
    """With PDC_ENABLED false nothing is mounted and nothing is counted."""
    client = make_app(enabled=False).test_client()
    assert client.get("/metrics").status_code == 404


def test_an_application_factory_may_be_called_twice(make_app: Make) -> None:
    """Two applications of one process count into the same metrics; the same application twice is an error."""
    first, second = make_app(), make_app()
    for app in (first, second):
        app.add_url_rule("/", view_func=lambda: "fine")
        app.test_client().get("/")
    assert scraped(first, "http_requests_total") == scraped(second, "http_requests_total") == {("GET", "/", "200"): 2.0}
    with pytest.raises(RuntimeError, match="already"):
        PrometheusMetrics().init_app(first)


@pytest.mark.parametrize("options", [[], ["--", "--max-requests", "50"], ["--", "--preload", "--threads", "4"]])
def test_the_demo_counts_every_request(storage: dict[str, Any], redis_server: RedisServer, options: list[str]) -> None:
    """Under Gunicorn with four workers, also recycled, preloaded or threaded, any worker counts what was sent."""
    environment = {"PDC_REDIS_URL": redis_server.url} if "redis" in storage else {}
    done = subprocess.run(
        [sys.executable, str(ROOT / "example_apps" / "demo.py"), "--once", "--port", "0", "--requests", "300", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every worker counts what was sent: yes" in done.stdout
