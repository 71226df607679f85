"""The same HTTP metrics as pdc's, by hand on prometheus_client: the least that such metrics can cost in a framework."""

from __future__ import annotations

from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("http_requests", "Requests.", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time.", ["method", "route", "status"])
IN_PROGRESS = Gauge("http_requests_in_progress", "In progress.", ["method"])


def begin(method: str) -> float:
    """Note the start of a request, and return its time."""
    IN_PROGRESS.labels(method).inc()
    return perf_counter()


def end(method: str, route: str, status: int, start: float) -> None:
    """Count and time the request."""
    labels = (method, route, str(status))
    REQUESTS.labels(*labels).inc()
    DURATION.labels(*labels).observe(perf_counter() - start)
    IN_PROGRESS.labels(method).dec()
