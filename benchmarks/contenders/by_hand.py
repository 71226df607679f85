"""The same HTTP metrics as pdc's, by hand: the least that prometheus_client in memory can cost in a framework."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import prometheus_client


class ByHand:
    """The metrics of requests, made with a library whose classes are those of prometheus_client."""

    def __init__(self, library: Any = prometheus_client, *, registry: Any = prometheus_client.REGISTRY, **options: Any) -> None:
        answer = ["method", "route", "status"]
        self._requests = library.Counter("http_requests", "Requests.", answer, registry=registry)
        self._duration = library.Histogram("http_request_duration_seconds", "Time.", answer, registry=registry)
        in_progress = "http_requests_in_progress", "In progress.", ["method"]
        self._in_progress = library.Gauge(*in_progress, registry=registry, **options)

    def begin(self, method: str) -> float:
        """Note the start of a request, and return its time."""
        self._in_progress.labels(method).inc()
        return perf_counter()

    def end(self, method: str, route: str, status: int, start: float) -> None:
        """Count and time the request."""
        labels = (method, route, str(status))
        self._requests.labels(*labels).inc()
        self._duration.labels(*labels).observe(perf_counter() - start)
        self._in_progress.labels(method).dec()
