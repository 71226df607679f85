"""Requests to a Flask application, bare and instrumented."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request

from benchmarks.worker import Operation

from . import requests


def make(instrument: str, routes: int) -> Operation:
    """Requests to the last of that many routes."""
    return requests.wsgi(application(instrument, routes), f"/items{routes - 1}/apple")


def application(instrument: str, routes: int = 1) -> Flask:
    """The application; its first route is ``/items0/<name>``."""
    app = Flask(__name__)
    for number in range(routes):
        app.add_url_rule(f"/items{number}/<name>", f"item{number}", lambda name: requests.BODY)  # noqa: ARG005
    INSTRUMENTS[instrument](app)
    return app


def _by_hand(app: Flask, **options: Any) -> None:
    from .by_hand import ByHand

    metrics = ByHand(**options)

    @app.before_request
    def begin() -> None:
        g.start = metrics.begin(request.method)

    @app.after_request
    def end(response: Response) -> Response:
        rule = request.url_rule
        metrics.end(request.method, rule.rule if rule else "<unmatched>", response.status_code, g.start)
        return response


def _multiprocess(app: Flask) -> None:
    _by_hand(app, multiprocess_mode="livesum")


def _version2_redis(app: Flask) -> None:
    from .libraries import LIBRARIES

    _by_hand(app, library=LIBRARIES["version2_redis"]().metrics)


def _pdc(app: Flask) -> None:
    from pdc_flask import PrometheusMetrics

    PrometheusMetrics(app)


def _pdc_sqlite(app: Flask) -> None:
    app.config["PDC_SQLITE_PATH"] = "metrics.db"
    _pdc(app)


def _pdc_redis(app: Flask) -> None:
    app.config["PDC_REDIS_URL"] = os.environ["REDIS_URL"]
    _pdc(app)


def _prometheus_flask_exporter(app: Flask) -> None:
    from prometheus_flask_exporter import PrometheusMetrics

    PrometheusMetrics(app, group_by="url_rule")


INSTRUMENTS: dict[str, Callable[[Flask], object]] = {
    "bare": lambda app: app,
    "by_hand": _by_hand,
    "multiprocess": _multiprocess,
    "version2_redis": _version2_redis,
    "pdc_sqlite": _pdc_sqlite,
    "pdc_redis": _pdc_redis,
    "prometheus_flask_exporter": _prometheus_flask_exporter,
}
