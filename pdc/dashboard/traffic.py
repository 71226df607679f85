"""The metrics of requests among all metrics of a storage, under the names of pdc or of another exporter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..family import Labels

ROUTES = frozenset({"endpoint", "handler", "http_route", "path", "path_template", "route", "url_rule", "view"})
STATUSES = frozenset({"code", "http_response_status_code", "status", "status_code"})
EXCEPTIONS = frozenset({"exception", "exception_type", "type"})
"""The labels that exporters have for the route, the status and the exception of a request."""


def one_of(names: frozenset[str], labels: Labels) -> str | None:
    """The value of the label that has one of these names."""
    return next((value for name, value in labels if name in names), None)


def is_failed(labels: Labels) -> bool:
    """True for requests that the application failed to answer: their status is 5xx."""
    return (one_of(STATUSES, labels) or "").startswith("5")


class Traffic:
    """The names of the metrics of requests.

    `types` has the types of all metrics, `labels` those of one series of each, which is empty for a metric without any.
    """

    def __init__(self, types: Mapping[str, str], labels: Mapping[str, Labels]) -> None:
        self._types = types
        self._labels = labels
        histograms = self._of_type("histogram", "request", "response")
        timed = [name for name in histograms if "duration" in name or "latency" in name]
        self.durations = [name for name in timed if self._has(name, ROUTES)]
        """Histograms of the durations of requests by route."""
        counters = [name for name in self._of_type("counter", "request", "response") if "bytes" not in name]
        counted = [name for name in counters if self._has(name, ROUTES) and self._has(name, STATUSES)]
        observed = [name for name in self.durations if self._has(name, STATUSES)]
        self.requests = [(name, "_total") for name in counted] or [(name, "_count") for name in observed]
        """The metrics that count requests, and how their samples end: counters by route and status, or durations."""
        active = self._of_type("gauge", "request")
        self.in_progress = [name for name in active if "in_progress" in name or "inprogress" in name or "active" in name]
        """Gauges of the requests in progress."""
        raised = self._of_type("counter", "exception")
        self.exceptions = [name for name in raised if self._has(name, EXCEPTIONS) or not self._has(name, ROUTES)]
        """Counters of exceptions; without one that has them by route alone, beside another one that has their types."""

    def _of_type(self, kind: str, *words: str) -> Iterator[str]:
        return (name for name, each in self._types.items() if each == kind and any(word in name for word in words))

    def _has(self, name: str, labels: frozenset[str]) -> bool:
        return one_of(labels, self._labels[name]) is not None
