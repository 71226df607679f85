"""The removal of series from a metric that has many."""

from __future__ import annotations

from benchmarks.worker import Operation

from .libraries import LIBRARIES


def make(library: str, series: int) -> Operation:
    """Removals, each of a different series."""
    chosen = LIBRARIES[library]()
    counter = chosen.counter("events")
    children = [chosen.values("GET", f"/items/{number}", "200") for number in range(series)]
    for values in children:
        counter.labels(*values).inc()
    chosen.settle()

    def remove(times: int) -> None:
        for values in children[:times]:
            counter.remove(*values)

    return remove
