"""The metric families of HTTP requests and WebSocket connections, and the series that one application changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..metrics import Counter, Gauge, Histogram, declared_once
from ..options import Options

SIZE_BUCKETS = tuple(float(4**power) for power in range(3, 14))
"""64 bytes to 64 MiB."""
WEBSOCKET_BUCKETS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
"""A tenth of a second to a day."""

Series = tuple[Counter, Histogram, list[Histogram]]
"""The count and the durations of requests with one method, route, status and labels, and their sizes if asked for."""


class RequestFamilies(NamedTuple):
    """The families of requests."""

    requests: Counter
    duration: Histogram
    in_progress: Gauge
    exceptions: Counter
    sizes: tuple[Histogram, ...]
    """Of the body of the request, and of the response; empty unless asked for."""


class WebSocketFamilies(NamedTuple):
    """The families of WebSocket connections."""

    connections: Counter
    in_progress: Gauge
    duration: Histogram
    exceptions: Counter


@declared_once
def _request_families(
    namespace: str, buckets: tuple[float, ...], labels: tuple[str, ...], sizes: bool, max_series: int
) -> RequestFamilies:
    common: dict[str, Any] = {"namespace": namespace, "registry": None, "max_series": max_series}
    answer = ["method", "route", "status", *labels]

    def size(name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, answer, unit="bytes", buckets=SIZE_BUCKETS, **common)

    return RequestFamilies(
        Counter("http_requests", "Requests that were answered.", answer, **common),
        Histogram(
            "http_request_duration_seconds",
            "Time from the start of a request to the last byte of its answer.",
            answer,
            buckets=buckets,
            **common,
        ),
        Gauge("http_requests_in_progress", "Requests in progress.", ["method"], multiprocess_mode="livesum", **common),
        Counter("http_exceptions", "Exceptions that left a view.", ["method", "route", "exception", *labels], **common),
        (size("http_request_size", "Bytes of request bodies."), size("http_response_size", "Bytes of response bodies."))
        if sizes
        else (),
    )


@declared_once
def _websocket_families(namespace: str, labels: tuple[str, ...], max_series: int) -> WebSocketFamilies:
    common: dict[str, Any] = {"namespace": namespace, "registry": None, "max_series": max_series}
    route = ["route", *labels]
    return WebSocketFamilies(
        Counter("websocket_connections", "WebSocket connections that were accepted.", route, **common),
        Gauge("websocket_connections_in_progress", "Open WebSocket connections.", multiprocess_mode="livesum", **common),
        Histogram(
            "websocket_duration_seconds",
            "Time from the acceptance of a WebSocket connection to its end.",
            route,
            buckets=WEBSOCKET_BUCKETS,
            **common,
        ),
        Counter("websocket_exceptions", "Exceptions that left a view of WebSockets.", [*route, "exception"], **common),
    )


class RequestSeries:
    """The series that the requests of one application change.

    It keeps each that it found, so that a request looks up one key. Series over `max_series` share one, which is not kept:
    their keys have no end.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.families = _request_families(
            options.namespace, options.buckets, tuple(options.labels), options.sizes, options.max_series
        )
        self.known: dict[tuple[str, str, int, tuple[str, ...]], Series] = {}
        """By method, route, status and the values of the application's own labels."""
        self.adders: dict[str, Callable[[float], None]] = {}
        """By method: functions that add to the number of requests in progress."""

    def find(self, method: str, route: str, status: int, labels: tuple[str, ...]) -> Series:
        """Find the series that a request with that answer changes."""
        values = (method, route, f"{status // 100}xx" if self._options.group_status else str(int(status)), *labels)
        families = self.families
        requests, is_own = families.requests.bounded(*values)
        series = (requests, families.duration.labels(*values), [size.labels(*values) for size in families.sizes])
        if is_own:
            self.known[method, route, status, labels] = series
        return series

    def adder(self, method: str) -> Callable[[float], None]:
        """Find the function that adds to the number of requests of that method in progress."""
        gauge, is_own = self.families.in_progress.bounded(method)
        adder = gauge.adder()
        if is_own:
            self.adders[method] = adder
        return adder

    @property
    def websockets(self) -> WebSocketFamilies:
        """The families of WebSocket connections: only a process that had one declares them."""
        options = self._options
        return _websocket_families(options.namespace, tuple(options.labels), options.max_series)
