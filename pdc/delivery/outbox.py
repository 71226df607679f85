"""Entries that wait to be sent, and the batch in flight."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..cells import FREE_THREADED, Cell, Entry, MetricCells, Removal
from ..storage import MOST_ENTRIES, MOST_NUMBERS, Batch, Update
from .outcomes import Outcomes


class Outbox:
    """The queue of a writer, and its batch in flight.

    Handlers of signals may raise an exception between any two bytecodes. An entry is in the queue or among the drained ones
    until the outcome of its batch is recorded. Where there are drained entries and no batch, they are drained once more.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        last_declared: Callable[[str], MetricCells | None],
        passenger: Callable[[], Entry | None],
    ) -> None:
        self._outcomes = outcomes
        self._last_declared = last_declared
        self._passenger = passenger
        """Gives an entry that only goes along with a batch of others."""
        self.queue: deque[Entry] = deque()
        self.due = 0
        """The count of the entries, from the first on, that are to be sent now. Later ones wait for the next time."""
        self.in_flight: Batch | None = None
        self.drained: dict[Entry, None] = {}
        """The entries of the batch in flight, or of the one that is being made."""
        self.first_try = 0.0
        """The time of the first try to send the batch in flight."""
        self.start_as_new_writer()

    def start_as_new_writer(self) -> None:
        """Continue with another id, and the sequence from 0."""
        self.writer, self.sequence = f"{os.getpid()}-{os.urandom(8).hex()}", 0

    def clear(self) -> None:
        """Forget all entries and the batch in flight."""
        self.queue.clear()
        self.drained.clear()
        self.in_flight = None

    def hand_over(self, cells: Iterable[Entry]) -> None:
        """Continue as another writer, without what these cells and all entries gathered: another process sends that."""
        for entry in dict.fromkeys([*self.waiting(), *cells]):
            entry.metric.drain_all([entry])
            entry.acknowledge()
        self.clear()
        self.start_as_new_writer()

    @property
    def is_busy(self) -> bool:
        """True where something is to be sent."""
        return bool(self.queue or self.drained or self.in_flight is not None)

    @property
    def has_updates(self) -> bool:
        """True where something is to be sent that an update or a removal queued. A beat queues cells and metrics, too."""
        entries = self.queue.copy()
        is_queued = any(entry.queued if isinstance(entry, Cell) else isinstance(entry, Removal) for entry in entries)
        return is_queued or bool(self.drained) or self.in_flight is not None

    @property
    def sent(self) -> tuple[str, int] | None:
        """The writer and the sequence of its last batch; None where something is to be sent.

        Where two are the same, nothing was queued in between.
        """
        return None if self.is_busy else (self.writer, self.sequence)

    @property
    def has_due(self) -> bool:
        """True where something is to be sent now."""
        return bool(self.drained or self.in_flight is not None or (self.due > 0 and self.queue))

    def waiting(self) -> list[Entry]:
        """The entries that wait, in their order; one may be there twice."""
        return [*self.drained, *self.queue.copy()]

    def unsent(self) -> list[Entry]:
        """The entries of the batch in flight, and those that wait with something to send: a beat queues others, too."""
        return [*self.drained, *(each for each in self.queue.copy() if not isinstance(each, Cell) or each.has_unsent)]

    def next_batch(self) -> Batch | None:
        """The batch in flight, or a new one; None where the due entries have nothing to send."""
        if self.in_flight is None:
            updates = self._drain()
            if updates:
                self.in_flight = self.batch(updates)
                self.first_try = time.monotonic()
            else:
                self.drained.clear()
        return self.in_flight

    @property
    def has_single(self) -> bool:
        """True where one entry is queued, and nothing else is to be sent."""
        return len(self.queue) == 1 and not self.drained and self.in_flight is None and not self._outcomes.refused

    def next_single(self) -> Batch | None:
        """As `next_batch`, where there is a single entry."""
        entry = self.queue[0]
        self.drained[entry] = None
        self.queue.popleft()
        metric = entry.metric
        operations = metric.drain_all([entry])
        if operations or entry is metric:
            update = self._update_of(metric)
            update.operations.extend(operations)
            self.in_flight = self.batch([update])
            self.first_try = time.monotonic()
        else:
            self.drained.clear()
        return self.in_flight

    def batch(self, updates: list[Update], *, final: bool = False) -> Batch:
        """A batch with the next sequence."""
        self.sequence += 1
        return Batch(self.writer, self.sequence, updates, final)

    def _drain(self) -> list[Update]:
        """Drain the first entries of the queue, each once: within a batch, values that are set apply before additions.

        Drained entries are drained once more where an exception kept them from becoming a batch. Updates since then may
        belong to the next batch, so the entries are queued, too.
        """
        again = bool(self.drained)
        if not again:
            self._dequeue()
        updates: dict[str, Update] = {}
        for metric, entries in self._drained_by_metric():
            operations = metric.drain_all(entries)
            if operations or metric in entries:
                name = metric.family.name
                update = updates.get(name)
                if update is None:
                    update = updates[name] = self._update_of(metric)
                update.operations.extend(operations)
        if again:
            self.queue.extend(self.drained)
        return list(updates.values())

    def _drained_by_metric(self) -> Iterable[tuple[MetricCells, list[Entry]]]:
        """The drained entries by their metric, without the cells of those that are refused.

        Of two metrics with one name, both may set a series: their entries stay in order.
        """
        found: dict[MetricCells, list[Entry]] = {}
        refused = self._outcomes.refused
        for entry in list(self.drained):
            metric = entry.metric
            if refused and entry is not metric and metric.family.name in refused:
                del self.drained[entry]  # every cell is queued when the storage accepts the metric
            elif metric in found:
                found[metric].append(entry)
            else:
                found[metric] = [entry]
        if len({metric.family.name for metric in found}) < len(found):
            return [(entry.metric, [entry]) for entry in list(self.drained)]
        return found.items()

    def _update_of(self, metric: MetricCells) -> Update:
        """An update of the metric without operations. It declares the metric unless the storage knows the declaration."""
        name = metric.family.name
        last = self._last_declared(name) or metric
        limits = self._outcomes.limits[name] = last.storage_limits
        declare = self._outcomes.declared.get(name) != last.meta
        return Update(name, last.meta, [], declare, limits, last.family.has_created)

    def _dequeue(self) -> None:
        """Move entries from the queue to the drained ones. At each moment an entry is in one of the two at least."""
        size = 0
        while self.queue and len(self.drained) < MOST_ENTRIES and size < MOST_NUMBERS:
            entry = self.queue[0]
            self.drained[entry] = None
            self.queue.popleft()
            self.due -= 1
            size += entry.metric.numbers
        passenger = self._passenger() if self.drained else None
        if passenger is not None:
            self.drained[passenger] = None

    def acknowledge(self) -> None:
        """Note that no batch is in flight any more: the storage has it, or refused some of its metrics."""
        refused = self._outcomes.refused
        for entry in list(self.drained):
            # a refused cell is drained once more
            if not refused or not isinstance(entry, Cell) or entry.metric.family.name not in refused:
                entry.acknowledge()
        # A thread may have updated a cell while it was drained, and each have missed the other. Cells of a metric that was
        # refused first give once more what was refused, and then what they gathered since.
        if FREE_THREADED or self._outcomes.regained:
            self.queue.extend(entry for entry in self.drained if isinstance(entry, Cell) and entry.was_missed)
        self.drained.clear()
        self.in_flight = None
