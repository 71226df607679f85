"""The answers of the storage about the metrics of this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..cells import Cell, Entry, MetricCells
from ..family import OVERFLOW, Family
from ..process import log
from ..storage import META, Batch, Limits, Outcome, StorageError
from .backoff import LAST_RETRY_SECONDS


class Outcomes:
    """The outcomes of all batches: metrics that the storage has, and metrics that it refuses.

    The outcome of a duplicate may be recorded after that of its original; the record is the same then.
    """

    def __init__(self) -> None:
        self.applied: set[str] = set()
        """Metrics of this process that the storage has."""
        self.declared: dict[str, str] = {}
        """Metrics that the storage knows from this process, as they were declared."""
        self.limits: dict[str, Limits] = {}
        """The limits of metrics that were sent. The metrics may be gone when this process deregisters."""
        self.refused: dict[str, str] = {}
        """Metrics that the storage refuses, with the reason. Their updates wait in the cells."""
        self.regained: set[str] = set()
        """Metrics that the storage refused once and accepts now."""
        self._retry_refused_at = 0.0
        self._replaced: set[str] = set()
        self._overflowed: set[str] = set()

    def forget_storage(self) -> None:
        """Start as with another storage."""
        self.applied.clear()
        self.declared.clear()
        self.refused.clear()
        self._overflowed.clear()

    def record(self, batch: Batch, outcome: Outcome, resend: Callable[[str], None]) -> None:
        """Note the outcome of the batch; `resend` queues a metric that is no longer refused."""
        for update in batch.updates:
            if not batch.final and update.name not in outcome.refused:
                self.applied.add(update.name)
            if update.declare:
                self.declared[update.name] = update.meta
        if outcome.refused or self.refused:
            self.applied.difference_update(outcome.refused)
            self._record_refusals(batch, outcome, resend)
        if outcome.note:
            log.defer(logging.WARNING, "%s", outcome.note)
        if outcome.replaced:
            self._log_replaced(batch, outcome)

    def missing(self, found: Collection[str], names: Collection[str] | None) -> set[str]:
        """The metrics that the storage had, all or those with these names, and that were not found there."""
        return (self.applied if names is None else self.applied.intersection(names)).difference(found)

    def of_other_kinds(
        self, found: Mapping[str, Mapping[str, Any]], last: Callable[[str], MetricCells | None]
    ) -> list[MetricCells]:
        """The histograms to declare again, as another process gave or took a kind of buckets since this one declared them.

        So the page of a process has the kinds of buckets that it declares itself.
        """
        stored = {name: found[name].get(META) for name in self.declared if name in found}
        replaced = [last(name) for name, meta in stored.items() if meta != self.declared[name]]
        others = [each for each in replaced if each is not None and each.family.has_other_kind(stored[each.family.name])]
        for metric in others:
            del self.declared[metric.family.name]
        return others

    def _record_refusals(self, batch: Batch, outcome: Outcome, resend: Callable[[str], None]) -> None:
        for name, reason in outcome.refused.items():
            if name not in self.refused:
                log.defer(logging.ERROR, f"metric {name} is refused, what it counts waits in memory: {reason}")
                self._retry_refused_at = time.monotonic() + LAST_RETRY_SECONDS
            self.refused[name] = reason
        for update in batch.updates if self.refused else ():
            if update.name in self.refused and update.name not in outcome.refused:
                self.regained.add(update.name)
                resend(update.name)
                del self.refused[update.name]
                log.defer(logging.WARNING, f"metric {update.name} is not refused any more; what it counted is sent")

    def _log_replaced(self, batch: Batch, outcome: Outcome) -> None:
        """Log, once per process and metric, that another version of the program had declared it otherwise."""
        for update in batch.updates:
            if update.name in outcome.replaced and update.name not in self._replaced:
                self._replaced.add(update.name)
                changes = Family.from_meta(update.meta).changed_since(outcome.replaced[update.name])
                log.defer(logging.WARNING, f"metric {update.name} was declared otherwise before; its counts go on: {changes}")

    def log_overflow(self, name: str) -> None:
        """Log, once per process and metric, that it has as many series as it may have."""
        if name not in self._overflowed:
            self._overflowed.add(name)
            reason = "has as many series as it may have (max_series, PDC_MAX_SERIES)"
            log.defer(logging.WARNING, f"metric {name} {reason}: new ones count as {OVERFLOW!r}")

    def refusals(self, names: Collection[str] | None = None) -> str:
        """The reasons for which the storage refuses metrics of these names, or any; empty where it refuses none."""
        refused = [(name, why) for name, why in list(self.refused.items()) if names is None or name in names]
        return "; ".join(f"metric {name!r} is refused: {why}" for name, why in refused)

    def raise_if_refused(self, names: Collection[str] | None = None) -> None:
        """Raise StorageError where the storage refuses one of these metrics, or any."""
        if refusals := self.refusals(names):
            raise StorageError(refusals)

    def waiting_series(self, unsent: Collection[Entry], named: Callable[[str], list[MetricCells]]) -> int:
        """The count of the series that wait: those among the unsent entries, and those of refused metrics."""
        waiting: set[Entry] = {entry for entry in unsent if isinstance(entry, Cell)}
        for metric in [metric for name in list(self.refused) for metric in named(name)]:
            waiting.update(list(metric.cells))
        return len(waiting)

    def retry_refused_now(self) -> None:
        """Wait no longer before refused metrics are tried again."""
        self._retry_refused_at = 0.0

    def refused_to_retry(self, named: Callable[[str], list[MetricCells]]) -> list[MetricCells]:
        """The refused metrics to try again, now and then: their renewal shows whether the storage still refuses them."""
        for name in [name for name in list(self.refused) if not named(name)]:
            self.refused.pop(name, None)
        if not self.refused or time.monotonic() < self._retry_refused_at:
            return []
        self._retry_refused_at = time.monotonic() + LAST_RETRY_SECONDS
        return [metric for name in list(self.refused) for metric in named(name)[-1:]]
