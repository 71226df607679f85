"""The metric families of HTTP requests and WebSocket connections, and the series that one application changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ..metrics import Counter, Gauge, Histogram, StoredMetric, declared_once
from ..options import SIZE_BUCKETS, Options
from ..process.log import log_or_raise
from .names import MEASURED, NAMES, OTHER_METHOD, PDC, SCHEME, UNMATCHED, Named, Names, check_labels

WEBSOCKET_BUCKETS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
"""A tenth of a second to a day."""

Series = tuple[Any, Any, tuple[tuple[int, Callable[[float], None]], ...], "Callable[[float, Any], None] | None"]
"""The count and the durations of requests with one method, route, status and labels; functions that observe further
measurements, each with its place in `MEASURED`; and, where one function can, one that counts a request of that duration, which
is not in progress any more, where the other argument showed it."""
Facts = Mapping[str, str]
"""Values of labels, by the facts that `Named.labels` has."""


class RequestFamily(NamedTuple):
    """A family of requests."""

    measures: str
    metric: Any
    facts: tuple[str, ...]
    """The facts that are the values of its labels."""

    def child(self, facts: Facts) -> tuple[Any, bool]:
        """Return the child for these facts, and whether it is theirs alone."""
        return self.metric.bounded(*[facts[fact] for fact in self.facts]) if self.facts else (self.metric, True)


class WebSocketFamilies(NamedTuple):
    """The families of WebSocket connections."""

    connections: Counter
    in_progress: Gauge
    duration: Histogram
    exceptions: Counter


class _Unnamed:
    """In place of a metric that the names do not have."""

    def inc(self, amount: float = 1.0, exemplar: object = None) -> None:
        """Do nothing."""


_UNNAMED = _Unnamed()


@declared_once
def _metric(kind: type[StoredMetric], name: str, documentation: str, labelnames: tuple[str, ...], **more: Any) -> StoredMetric:
    return kind(name, documentation, labelnames, registry=None, **more)


def _asked_for(options: Options) -> list[Named]:
    """The families of requests that the options ask for."""
    measures = ["requests", "duration", "in_progress", "exceptions", "info"]
    measures += (["received", "sent"] if options.sizes else []) + (["start"] if options.first_byte else [])
    return [named for measure in measures for named in NAMES[options.names].of(measure)]


def _request_families(options: Options) -> Iterator[RequestFamily]:
    """Declare the families of requests that the options ask for, under their names."""
    names = NAMES[options.names]
    for named in _asked_for(options):
        facts = _facts_of(named, options)
        namespace = options.namespace or (names.namespace if named in names.families else "")
        more = {"namespace": namespace, "max_series": options.max_series, **_particulars(named, options)}
        yield RequestFamily(
            named.measures, _metric(named.kind, named.name, named.documentation, tuple(facts), **more), tuple(facts.values())
        )


def _facts_of(named: Named, options: Options) -> dict[str, str]:
    """The facts that are the values of the labels of a family, by label, with the labels of the application."""
    facts = dict(named.labels)
    if named.measures == "in_progress" and options.in_progress_by_route:
        durations = NAMES[options.names].of("duration")[0] if named not in PDC.families else PDC.of("duration")[0]
        facts |= {label: fact for label, fact in durations.labels.items() if fact in ("method", "route")}
    own = [label for label in options.labels if label != SCHEME]
    if named.measures in ("in_progress", "info"):  # of no request in particular
        own = [label for label in own if label in facts]
    return facts | {label: _own(label) for label in own}


def _own(label: str) -> str:
    """The name of the fact that is the value of an application's own label."""
    return f"own {label}"


def _particulars(named: Named, options: Options) -> dict[str, Any]:
    """The arguments that only one kind of metric has."""
    if named.kind is Gauge:
        return {"multiprocess_mode": "livesum" if named.measures == "in_progress" else "livemax"}
    of_bytes = named.name.endswith("_bytes")
    unit = {"unit": "bytes"} if of_bytes else {}
    if named.kind is not Histogram:
        return unit
    chosen, default = (options.size_buckets, SIZE_BUCKETS) if of_bytes else (options.buckets, Histogram.DEFAULT_BUCKETS)
    buckets = named.buckets if named.buckets and chosen == default else chosen
    return {**unit, "buckets": buckets, "native": options.native_histograms}


@declared_once
def _websocket_families(
    namespace: str, labels: tuple[str, ...], max_series: int, by_route: bool, native: bool
) -> WebSocketFamilies:
    common: dict[str, Any] = {"namespace": namespace, "registry": None, "max_series": max_series}
    route = ["route", *labels]
    return WebSocketFamilies(
        Counter("websocket_connections", "WebSocket connections that were accepted.", route, **common),
        Gauge(
            "websocket_connections_in_progress",
            "Open WebSocket connections.",
            ["route"] if by_route else [],
            multiprocess_mode="livesum",
            **common,
        ),
        Histogram(
            "websocket_duration_seconds",
            "Time from the acceptance of a WebSocket connection to its end.",
            route,
            buckets=WEBSOCKET_BUCKETS,
            native=native,
            **common,
        ),
        Counter("websocket_exceptions", "Exceptions that left a view of WebSockets.", [*route, "exception"], **common),
    )


class RequestSeries:
    """The series that the requests of one application change.

    It keeps each that it found, so that a request looks up one key. Series over `max_series` share one, which is not kept:
    their keys have no end. Raises OptionError.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._names: Names = NAMES[options.names]
        check_labels(options, _asked_for(options))
        self.known: dict[tuple[str, str, int, tuple[str, ...]], Series] = {}
        """By method, route, status and the values of the application's own labels."""
        self.adders: dict[str, Callable[[float], None]] = {}
        """By method: functions that add to the number of requests in progress. Empty with PDC_IN_PROGRESS_BY_ROUTE."""
        self._by_route: dict[tuple[str, str], Callable[[float], None]] = {}

    @cached_property
    def families(self) -> tuple[RequestFamily, ...]:
        """The families. To ask for them declares them, so a process that serves no requests, such as a command, does not."""
        return tuple(_request_families(self._options))

    def find(self, method: str, route: str, status: int, labels: tuple[str, ...]) -> Series:
        """Find the series that a request with that answer changes."""
        facts = {
            **self._facts(method, route, labels),
            "status": f"{status // 100}xx" if self._options.group_status else str(int(status)),
            "error": str(int(status)) if status >= 500 else "",
        }
        found = [(MEASURED.index(measures), *family.child(facts)) for measures, family in self._of(MEASURED)]
        counts, durations = ([child for place, child, _ in found if place == first] for first in (0, 1))
        requests = counts[0] if counts else _UNNAMED
        others = ((place, child) for place, child, _ in found if child not in (requests, durations[0]))
        more = tuple((place, getattr(child, "observe", None) or child.inc) for place, child in others)
        finish = None
        if isinstance(requests, Counter) and not self._options.in_progress_by_route:
            finish = durations[0].finisher(requests)
        series = (requests, durations[0], more, finish)
        if all(is_own for _, _, is_own in found):
            self.known[method, route, status, labels] = series
        self.inform()
        return series

    def inform(self) -> None:
        """Show what no request changes: the first request does, and each scrape, as nothing is written before."""
        try:
            for _, info in self._of(("info",)):
                info.child(self._constants())[0].set(1.0)
        except Exception as error:
            log_or_raise(error, "the facts about an application could not be shown")

    def adder(self, method: str, find_route: Callable[[Any], Any] | None, source: Any) -> Callable[[float], None]:
        """Find the function that adds to the number of requests of that method, and of that route if asked for, in progress.

        Without a `find_route`, the framework finds the route in a moment, and `adder_of` the function.
        """
        if self._options.in_progress_by_route:
            return _UNNAMED.inc if find_route is None else self._adder_of_match(method, find_route, source)
        adder, is_own = self._adder(self._facts(method, UNMATCHED, ()))
        if is_own:
            self.adders[method] = adder
        return adder

    def _adder_of_match(self, method: str, find_route: Callable[[Any], Any], source: Any) -> Callable[[float], None]:
        try:
            match = find_route(source)
        except Exception as error:
            log_or_raise(error, "the route of a request could not be found")
            return self.adder_of(method, UNMATCHED)
        return _UNNAMED.inc if match.excluded else self.adder_of(method, match.route)

    def adder_of(self, method: str, route: str) -> Callable[[float], None]:
        """Find the function that adds to the number of requests of that method and route in progress."""
        known = self._by_route.get((method, route))
        if known is not None:
            return known
        adder, is_own = self._adder(self._facts(method, route, ()))
        if is_own:
            self._by_route[method, route] = adder
        return adder

    def raised(self, method: str, route: str, exception: str, labels: tuple[str, ...]) -> None:
        """Count an exception that left a view."""
        facts = {**self._facts(method, route, labels), "exception": exception}
        for _, family in self._of(("exceptions",)):
            family.child(facts)[0].inc()

    @property
    def websockets(self) -> WebSocketFamilies:
        """The families of WebSocket connections: only a process that had one declares them."""
        options = self._options
        own = tuple(self._names.scheme_label if label == SCHEME else label for label in options.labels)
        return _websocket_families(
            options.namespace, own, options.max_series, options.in_progress_by_route, options.native_histograms
        )

    def open_websockets(self, route: str) -> Gauge:
        """The gauge that has an open connection of this route."""
        gauge = self.websockets.in_progress
        return gauge.labels(route) if self._options.in_progress_by_route else gauge

    def _of(self, measures: tuple[str, ...]) -> Iterator[tuple[str, RequestFamily]]:
        return ((family.measures, family) for family in self.families if family.measures in measures)

    def _adder(self, facts: Facts) -> tuple[Callable[[float], None], bool]:
        (family,) = (family for _, family in self._of(("in_progress",)))
        gauge, is_own = family.child(facts)
        return gauge.adder(), is_own

    def _facts(self, method: str, route: str, labels: tuple[str, ...]) -> dict[str, str]:
        names = self._names
        own = dict(zip(self._options.labels, labels, strict=False))
        return {
            **self._constants(),
            **{_own(label): value for label, value in own.items()},
            "method": names.other_method if method == OTHER_METHOD else method,
            "route": names.unmatched if route == UNMATCHED else route,
            "scheme": own.get(SCHEME, ""),
        }

    def _constants(self) -> dict[str, str]:
        """The facts that no request changes: constants of the names, and labels that are texts."""
        constants = self._names.constants
        own = {
            label: value if isinstance(value, str) else constants.get(label, "")
            for label, value in self._options.labels.items()
        }
        return {**constants, **{_own(label): value for label, value in own.items()}}
