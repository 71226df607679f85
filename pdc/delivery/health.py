"""The metrics ``pdc_...`` of pdc itself, which every HTTP endpoint adds to the metrics of the storage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..cells import CounterCell, HistogramCell, Holder, MetricCells, Sender
from ..family import Family, Fields, Page, bucket_bounds, known_families
from ..storage import META, Kind, Operation, Stamped

BOUNDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 15.0, 60.0, 600.0, math.inf)
"""Of durations, in seconds: a write takes milliseconds, an outage minutes."""
FLUSHED = "#flushed"
"""The field beside the durations that says when a batch came last, by the storage's clock."""
ONLY = "{}"
"""The labels of the one series of a metric without labels."""

FLUSH_DURATION = Family(
    "pdc_flush_duration_seconds",
    "histogram",
    "Time from the first try to write a batch until the storage had it, outages included; of processes that buffer.",
    bounds=bucket_bounds(BOUNDS),
)
BATCHES_RETRIED = Family(
    "pdc_batches_retried", "counter", "Batches that were sent again after an error, once for each time, by all processes."
)
SERIES_REFUSED = Family(
    "pdc_series_refused",
    "counter",
    "Updates and flushes of new series that all processes counted as <overflow>, since their metric had max_series of them.",
)
MESSAGES_LOST = Family(
    "pdc_log_messages_lost",
    "counter",
    "Messages of pdc that were not logged, since a filter or handler of the log raised or did not return, by all processes.",
)
LAST_FLUSH = Family(
    "pdc_last_flush_timestamp_seconds",
    "gauge",
    "When any process that buffers last wrote a batch, by the clock of the storage; up to 5 s old.",
)
SERIES_PENDING = Family(
    "pdc_series_pending",
    "gauge",
    "Series of the process that answers which wait in memory: they could not be written, or the storage refuses their metric.",
)
STORAGE_UP = Family(
    "pdc_storage_up",
    "gauge",
    "1 where the process that answers can write to all of its storages. Without the one it shows it answers 503 instead.",
)
FAMILIES_HIDDEN = Family(
    "pdc_families_hidden",
    "gauge",
    "Metrics in the storage that no scrape shows, as they share the name of a sample with another one (the log says which), or "
    "are of a type of a later version.",
)
NAMES = frozenset(
    family.name
    for family in (
        BATCHES_RETRIED,
        FAMILIES_HIDDEN,
        FLUSH_DURATION,
        LAST_FLUSH,
        MESSAGES_LOST,
        SERIES_PENDING,
        SERIES_REFUSED,
        STORAGE_UP,
    )
)


class Health:
    """Counts what happens to the batches of one buffer, in its own storage: any process may answer a scrape.

    A metric exists once there is something to count, so a process that only reads writes nothing.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.is_due = True
        """There was a scrape or a beat since durations of flushes were sent."""
        self.forget()

    def forget(self) -> None:
        """Start with nothing counted, as with another storage."""
        self._held: list[Holder] = []
        self._counters: dict[Family, CounterCell] = {}
        self._flushes: Flushes | None = None

    def count(self, family: Family, amount: float = 1.0) -> None:
        """Count so many of this counter, to be sent with the next batch."""
        counter = self._counters.get(family)
        if counter is None:
            metric = self._declare(family)
            counter = self._counters.setdefault(family, metric.add(CounterCell(metric, ())))
        counter.add(0, amount)
        if not counter.queued:
            self._sender.enqueue(counter)

    def _declare(self, family: Family) -> MetricCells:
        metric = MetricCells(self._sender, family)
        self._held.append(Holder(metric))
        self._sender.register(metric)
        return metric

    def passenger(self, interval: float) -> Flushes | None:
        """The durations of flushes in this interval since the last scrape or beat, which go along with the next batch."""
        if not interval or not self.is_due:
            return None
        self.is_due = False
        return self.flushes

    @property
    def flushes(self) -> Flushes:
        """The durations of flushes. The caller holds the lock of the buffer."""
        if self._flushes is None:
            metric = self._declare(FLUSH_DURATION)
            self._flushes = metric.add(Flushes(metric, ()))
        return self._flushes


class Flushes(HistogramCell):
    """The durations of flushes. They only go along with batches of other metrics: an idle process stays idle."""

    __slots__ = ()

    was_missed = False  # it waits for a batch of others

    def observe(self, seconds: float) -> None:
        """Note the duration of a flush."""
        self.add(0, seconds)
        self.add(self.buckets.place_of(seconds), 1.0)

    def additions(self, gained: list[float]) -> list[Operation]:
        """Add the durations, and note when the storage applied the batch."""
        return [*super().additions(gained), Operation(Kind.STAMP, FLUSHED, Stamped.when_applied())]


def fields(stored: Mapping[str, Fields], *, waiting: int, is_up: bool) -> dict[str, Fields]:
    """The fields of all these metrics, by name: those of the storage or 0, and those of this process.

    `waiting` is the count of its series that wait to be sent; `is_up` says whether it can write to all of its storages.
    """
    flushed = stored.get(FLUSH_DURATION.name, {}).get(FLUSHED)
    own: dict[str, Fields] = {
        BATCHES_RETRIED.name: _stored_or(stored, BATCHES_RETRIED, "_total"),
        FLUSH_DURATION.name: _stored_or(stored, FLUSH_DURATION, "_sum"),
        LAST_FLUSH.name: _value(LAST_FLUSH, flushed.partition(" ")[2]) if flushed else {},
        MESSAGES_LOST.name: _stored_or(stored, MESSAGES_LOST, "_total"),
        SERIES_PENDING.name: _value(SERIES_PENDING, waiting),
        SERIES_REFUSED.name: _stored_or(stored, SERIES_REFUSED, "_total"),
        STORAGE_UP.name: _value(STORAGE_UP, is_up),
    }
    shown = {name: fields[META] for name, fields in {**stored, **own}.items() if META in fields}
    return {**own, FAMILIES_HIDDEN.name: _value(FAMILIES_HIDDEN, _hidden(frozenset(shown.items())))}


@lru_cache(maxsize=1)
def _hidden(metas: frozenset[tuple[str, str]]) -> int:
    """The count of families of these names and descriptions that no page shows. Raises StorageError for foreign ones."""
    metrics = {name: {META: meta} for name, meta in metas}
    return len(metrics) - len(known_families(metrics, Page()))


def _stored_or(stored: Mapping[str, Fields], family: Family, suffix: str) -> Fields:
    return stored.get(family.name) or {META: family.meta, f"{suffix}:{ONLY}": 0.0}


def _value(family: Family, value: Any) -> Fields:
    return {META: family.meta, f":{ONLY}": value}
