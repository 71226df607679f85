"""An application whose requests observe numbers in histograms of every kind."""

from __future__ import annotations

import json

from flask import Flask, request

import pdc
from pdc_flask import PrometheusMetrics

CLASSIC = (0.1, 1.0, 10.0)
waits = [
    pdc.Histogram("wait_classic", "Waits.", buckets=CLASSIC),
    pdc.Histogram("wait_native", "Waits.", ["till"], buckets=(), native=True),
    pdc.Histogram("wait_both", "Waits.", buckets=CLASSIC, native=pdc.Native(factor=1.5)),
]
took = pdc.Summary("took", "Times.")
orders = pdc.Counter("orders", "Orders.", ["item"])
stock = pdc.Gauge("stock", "Stock.")
build = pdc.Info("build", "Version.")
light = pdc.Enum("light", "State.", states=["on", "off"])
app = Flask(__name__)
PrometheusMetrics(app)


@app.post("/observe")
def observe() -> str:
    """Observe the numbers of the body."""
    for number in json.loads(request.data):
        took.observe(number)
        waits[0].observe(number)
        waits[1].labels("7").observe(number, {"trace_id": "abc"})
        waits[2].observe(number, {"trace_id": "abc"})
    return "observed"


@app.post("/order/<item>/<int:count>")
def order(item: str, count: int) -> str:
    """Count orders, and set metrics of the other types."""
    orders.labels(item).inc(count, {"trace_id": "abc"})
    stock.set(-7.5)
    build.info({"version": "1"})
    light.state("off")
    return "ordered"
