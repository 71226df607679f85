"""The flush of a process whose series have all changed."""

from __future__ import annotations

from benchmarks.worker import Operation

from .by_hand import ByHand
from .libraries import LIBRARIES


def make(library: str, routes: int) -> Operation:
    """Flushes after a request to each of so many routes."""
    chosen = LIBRARIES[library]()
    metrics = ByHand(chosen.metrics, multiprocess_mode="livesum")

    def flush(times: int) -> None:
        for _ in range(times):
            answer_requests(metrics, routes)
            chosen.settle()

    return flush


def answer_requests(metrics: ByHand, routes: int) -> None:
    """Update the metrics of a request to each of so many routes."""
    for number in range(routes):
        metrics.end("GET", f"/items{number}/<name>", 200, metrics.begin("GET"))
