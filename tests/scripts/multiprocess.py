"""Prints the pages of a program of three processes, before and after two of them end, in one of two ways to share metrics."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest, multiprocess
from prometheus_client.openmetrics import exposition as openmetrics

if sys.argv[1] == "installed":
    import pdc

    pdc.setup(sqlite="metrics.db")
    pdc.install(gauge_mode="all")

warnings.simplefilter("ignore")
orders = Counter("orders", "Orders.", ["till"])
wait = Histogram("wait_seconds", "Wait.", buckets=(1,))
MODES = ["all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum", "mostrecent", "livemostrecent"]
gauges = [Gauge(mode, "Of a process.", multiprocess_mode=cast("Any", mode)) for mode in MODES]
gauges.append(Gauge("default", "Without a mode."))
for each in gauges:
    each.set(0)
Info("version", "Version.").info({"number": "3"})


def work(number: int, done: int, end: int) -> None:
    """Count, and wait for the end."""
    orders.labels("1").inc(number)
    orders.labels("2").inc(exemplar={"trace": "a"})
    wait.observe(0.5)
    for gauge in gauges:
        gauge.set(number)
    orders.remove("2")
    orders.labels("3").inc(exemplar={"trace": "a"})
    os.write(done, b".")
    os.read(end, 1)


def show(render: Any = generate_latest) -> None:
    """Print a page."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    print(render(registry).decode())
    print("END OF PAGE")


children = []
for number in (1, 2):
    (done, to_parent), (end, to_child) = os.pipe(), os.pipe()
    if not (child := os.fork()):
        work(number, to_parent, end)
        if sys.argv[1] == "installed":
            pdc.shutdown()
        os._exit(0)
    os.read(done, 1)
    children.append((child, to_child))
show()
show(openmetrics.generate_latest)
for child, to_child in children:
    os.write(to_child, b".")
    os.waitpid(child, 0)
    if sys.argv[1] == "plain":
        multiprocess.mark_process_dead(child)
show()
print("process_cpu_seconds_total" in generate_latest(REGISTRY).decode())
