"""A small shop in Flask. Run ``gunicorn app:app`` in this folder, where ``gunicorn.conf.py`` has the rest.

Metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

from flask import Flask, Response, abort, jsonify
from flask.typing import ResponseReturnValue

import pdc
from pdc_flask import PrometheusMetrics

orders = pdc.Counter("shop_orders", "Orders that were placed.", ["item"])
metrics = PrometheusMetrics()


def create_app() -> Flask:
    """Make the application; every worker of Gunicorn calls this."""
    app = Flask(__name__)
    metrics.init_app(app)
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/items/<name>", view_func=item)
    app.add_url_rule("/items/<name>/order", view_func=order, methods=["POST"])
    app.add_url_rule("/report/<int:lines>", view_func=report)
    app.add_url_rule("/slow/<int:milliseconds>", view_func=slow)
    app.add_url_rule("/broken", view_func=broken)
    app.after_request(name_worker)
    return app


def index() -> ResponseReturnValue:
    """Greet the customer."""
    return "A small shop. Try /items/tea, /report/5, /slow/100, /broken and /metrics.\n"


def item(name: str) -> ResponseReturnValue:
    """Show an item, which takes a moment."""
    if name == "nothing":
        abort(404)
    time.sleep(random.uniform(0.001, 0.02))
    return jsonify(name=name, price=len(name))


def order(name: str) -> ResponseReturnValue:
    """Order an item."""
    orders.labels(name).inc()
    return jsonify(ordered=name), 201


def report(lines: int) -> ResponseReturnValue:
    """Stream a report, a line every 20 ms; it is timed to its end."""

    def stream() -> Iterator[str]:
        for number in range(lines):
            time.sleep(0.02)
            yield f"line {number}\n"

    return Response(stream(), mimetype="text/plain")


def slow(milliseconds: int) -> ResponseReturnValue:
    """Sleep that long."""
    time.sleep(milliseconds / 1000)
    return "done\n"


def broken() -> ResponseReturnValue:
    """Fail."""
    raise RuntimeError("this page is broken on purpose")


def name_worker(response: Response) -> Response:
    """Name the process that answered."""
    response.headers["X-Worker"] = str(os.getpid())
    return response


app = create_app()
