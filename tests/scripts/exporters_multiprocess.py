"""Flask with a multiprocess class of prometheus_flask_exporter, which Gunicorn serves."""

from __future__ import annotations

import flask
from plain_metrics import serve
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

app = flask.Flask("shop")
metrics = GunicornInternalPrometheusMetrics(app)
app.get("/hit")(metrics.counter("shop_views", "Views.", labels={"status": lambda response: response.status_code})(serve))
