"""Rates and latencies between two reads of a storage."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from ..dashboard import ROUTES, Traffic, as_classic, is_failed, one_of
from ..family import Labels, families
from ..storage import Snapshot
from .words import QUANTILES, SeriesOf, quantile, series_of, spelled


class Moment(NamedTuple):
    """The series of a storage at a time, by the names of their metrics."""

    at: float
    types: dict[str, str]
    series: dict[str, dict[Labels, SeriesOf]]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Moment:
        """The series of a snapshot."""
        metrics = families({name: as_classic(name, fields) for name, fields in snapshot.metrics.items()}, snapshot.now)
        types = {metric.name: metric.type for metric in metrics}
        return cls(snapshot.now, types, {metric.name: {each.labels: each for each in series_of(metric)} for metric in metrics})

    @property
    def traffic(self) -> Traffic:
        """The metrics of requests."""
        return Traffic(self.types, {name: next(iter(series), ()) for name, series in self.series.items()})


class RouteRow(NamedTuple):
    """The requests of a route between two moments."""

    route: str
    rate: float
    errors: float
    """The part of them that the application failed to answer: a status of 5xx."""
    quantiles: tuple[float, ...]
    """Of their durations."""


class CounterRow(NamedTuple):
    """A series that grows, and how fast."""

    name: str
    rate: float
    mean: float
    """Of the observations of a histogram or summary; NaN for a counter."""


def _grown(before: float, now: float) -> float:
    """The growth of a counter, which may have begun again."""
    return now - before if now >= before else now


class Rates:
    """The growth of all series between two moments."""

    def __init__(self, before: Moment, now: Moment) -> None:
        self._before = before
        self._now = now
        self._traffic = now.traffic
        self._seconds = max(now.at - before.at, 1e-9)

    def routes(self) -> list[RouteRow]:
        """The routes of HTTP requests, the busiest first, under the names of pdc or of another exporter."""
        counts: defaultdict[str, float] = defaultdict(float)
        failed: defaultdict[str, float] = defaultdict(float)
        for name, suffix in self._traffic.requests:
            for labels, each in self._now.series[name].items():
                route, grown = one_of(ROUTES, labels) or "-", _grown(self._value(name, labels, suffix), each.value(suffix))
                counts[route] += grown
                failed[route] += grown if is_failed(labels) else 0.0
        buckets = self._buckets()
        rows = [self._route(route, count, failed[route], buckets[route]) for route, count in counts.items() if count]
        return sorted(rows, key=lambda row: -row.rate)

    def _route(self, route: str, count: float, failed: float, buckets: Mapping[float, float]) -> RouteRow:
        bounds = sorted(buckets)
        found = [*zip(bounds, accumulate(buckets[bound] for bound in bounds), strict=True)]
        return RouteRow(route, count / self._seconds, failed / count, tuple(quantile(each, found) for each in QUANTILES))

    def _value(self, name: str, labels: Labels, suffix: str) -> float:
        """The earlier value of a series; 0 for a new one."""
        before = self._before.series.get(name, {}).get(labels)
        return 0.0 if before is None else before.value(suffix)

    def _buckets(self) -> defaultdict[str, defaultdict[float, float]]:
        """By route, the growth of each bucket of durations, without that of those below: histograms may have other bounds."""
        found: defaultdict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
        for name in self._traffic.durations:
            for labels, each in self._now.series[name].items():
                before = self._before.series.get(name, {}).get(labels)
                known = deque(before.buckets() if before is not None else ())
                earlier = below = 0.0
                for bound, count in each.buckets():
                    while known and known[0][0] <= bound:  # a new bound had the count of the one below it
                        _, earlier = known.popleft()
                    grown = max(_grown(earlier, count), below)
                    found[one_of(ROUTES, labels) or "-"][bound] += grown - below
                    below = grown
        return found

    def others(self) -> list[CounterRow]:
        """Other counters, histograms and summaries that have grown, the fastest first."""
        names = [name for name, kind in self._now.types.items() if kind in ("counter", "histogram", "summary")]
        shown = {*self._traffic.durations, *(name for name, _ in self._traffic.requests)}
        rows = [row for name in names if name not in shown for row in self._others_of(name)]
        return sorted(rows, key=lambda row: -row.rate)

    def _others_of(self, name: str) -> Iterator[CounterRow]:
        suffix = "_total" if self._now.types[name] == "counter" else "_count"
        for labels, each in self._now.series[name].items():
            grown = _grown(self._value(name, labels, suffix), each.value(suffix))
            total = _grown(self._value(name, labels, "_sum"), each.value("_sum"))
            if grown:
                yield CounterRow(name + (spelled(labels) if labels else ""), grown / self._seconds, total / grown)


def in_progress(moment: Moment) -> float | None:
    """The requests in progress; None where no application counts them."""
    names = moment.traffic.in_progress
    return sum(each.value("") for name in names for each in moment.series[name].values()) if names else None
