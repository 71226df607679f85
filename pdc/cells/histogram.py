"""The cell of a histogram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import compress, count
from types import MappingProxyType

from ..exemplars import EXEMPLAR
from ..family import Family
from ..storage import ADD, INIT, Kind, Operation
from ..storage.labels import around_bound
from .buckets import Buckets, Field, Key, buckets_of
from .journaled import Journaled, zeros
from .metric import MetricCells, creation, made_operation
from .numeric import SeriesSumCell
from .turn import TURN

_around_bound = lru_cache(maxsize=512)(around_bound)


class HistogramCell(SeriesSumCell):
    """A histogram: the sum of its observations, and the counts of the intervals of its `Buckets`, not cumulated.

    Where an observation is in no bucket of a native histogram's cell, the series goes on with a successor of the cell, which
    has that bucket too and begins at 0: the storage adds both up. The cell stays until all of it is sent. A thread that has
    it in its hands may still update it, and what becomes of the series becomes of it.
    """

    __slots__ = ("_drained_exemplars", "bounds", "buckets", "exemplars", "places", "successor", "used", "width")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], buckets: Buckets | None = None) -> None:
        family = metric.family
        self.buckets = buckets or metric.buckets or buckets_of(family.classic, family.resolution)
        self.bounds, self.places, self.width = self.buckets.bounds, self.buckets.places, self.buckets.width
        self.used: frozenset[Key] = frozenset()
        """The native buckets that the cells before this one used."""
        self.successor: HistogramCell | None = None
        super().__init__(metric, values)

    @property
    def key(self) -> str:
        return super().key + ("" if self.buckets.window is None else f",{self.buckets.window.dumps()}")

    def journaled(self) -> Sequence[Journaled]:
        is_removed = not self.offset and self.successor is not None and any(cell.dropped for cell in self.successors())
        return () if is_removed else super().journaled()  # `drain` drops it

    def start_anew(self) -> None:
        super().start_anew()
        self.exemplars: dict[Field, str] = {}
        """Exemplars by the fields of their buckets."""
        self._drained_exemplars: dict[Field, str] | None = None

    def set_exemplar(self, place: int, exemplar: str) -> None:
        """Send the exemplar of the bucket of that place with the next observation in it."""
        field = self.buckets.fields[place][0]
        _ = TURN.alone
        self.exemplars[field] = exemplar
        _ = TURN.together

    def reset(self) -> None:
        super().reset()
        self.exemplars = {}
        self._drained_exemplars = None

    def begin_successor(self, number: float) -> HistogramCell:
        """Return the successor of the cell; it has the bucket of the number unless there was one before."""
        native, before = self.metric.family.resolution, self.buckets.window
        if self.successor is None and native is not None and before is not None:
            window, used = before.widened(native, self.used | self.buckets.used(self.current()), number)
            buckets = buckets_of(self.family.classic, native, window)
            new = HistogramCell(self.metric, self.values, buckets)
            new.used, new.created = used, self.created
            try:
                self.metric.add(new)
                self.successor = self.successor or new  # at once: see `Cell`
            finally:
                if self.successor is not new or self.dropped:  # another thread was faster, or a handler raised
                    self.metric.forget(new)
            if self.successor is new and window.schema == native.schema:
                self.metric.buckets = buckets
        self._leave()  # also where a handler kept it from doing so before
        return self.successor or self

    def _leave(self) -> None:
        """Be no cell of the metric any more, and not in the journal, once a successor is there and the storage has all."""
        if self.successor is not None and not self.queued and self.is_stored:
            self.metric.forget(self)
            self.sender.unjournal(self)
            self._come_back()

    def _come_back(self) -> None:
        """Be that again where an update came meanwhile."""
        if self.queued:
            self.metric.cells[self] = None
            self.sender.journal(self)

    def successors(self) -> Iterator[HistogramCell]:
        """Yield the cells after this one."""
        cell = self.successor
        while cell is not None:
            yield cell
            cell = cell.successor

    def enqueue(self) -> None:
        super().enqueue()
        if self.successor is not None:
            self._come_back()

    def drain(self) -> list[Operation]:
        if self.successor is not None and not self.dropped and any(cell.dropped for cell in self.successors()):
            self.metric.drop([self])
        return super().drain()

    def acknowledge(self) -> None:
        super().acknowledge()
        self._drained_exemplars = None
        if self.successor is not None:
            self._leave()

    def detach(self) -> tuple[memoryview[float], int]:
        """As the base, but where the cell only has a successor, later updates count."""
        if self.dropped:
            return super().detach()
        place = self.memory, self.offset
        self.move(zeros(self.size), 0)
        return place

    def additions(self, gained: list[float]) -> list[Operation]:
        if self.exemplars:
            new: dict[Field, str] = {}
            _ = TURN.alone
            new, self.exemplars = self.exemplars, new
            _ = TURN.together
            self._drained_exemplars = {**(self._drained_exemplars or {}), **new}
        exemplars = self._drained_exemplars or {}
        return histogram_additions(self.metric.family, self.values, gained, self.created, self.buckets, exemplars)


def histogram_additions(
    family: Family,
    values: tuple[str, ...],
    gained: Sequence[float],
    created: float | None,
    buckets: Buckets,
    exemplars: Mapping[Field, str] = MappingProxyType({}),
) -> list[Operation]:
    """The operations that add the gains of sum and intervals to the series of a histogram with these label values."""
    total, labels = gained[0], family.labels(values)
    operations = [made_operation((ADD if total else INIT, f"_sum:{labels}", total + 0.0))]
    if created is not None:
        operations += creation(labels, created)
    counts: dict[Field, float] = {}
    for place in compress(count(), gained):
        for field in buckets.fields[place]:  # the sum has none
            counts[field] = counts.get(field, 0.0) + gained[place]
    if not counts:
        return operations
    before, after = _around_bound(labels)
    for (stem, le), gain in counts.items():
        name = f"{stem}{before}{le}{after}"
        operations.append(made_operation((ADD, name, gain)))
        if (stem, le) in exemplars:
            operations.append(Operation(Kind.SET, EXEMPLAR + name, exemplars[stem, le]))
    return operations
