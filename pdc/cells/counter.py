"""The cell of a counter."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..exemplars import EXEMPLAR
from ..family import Family
from ..process.forks import FORKS, FREE_THREADED
from ..storage import ADD, Kind, Operation
from .journaled import Journaled, JournaledOperation
from .metric import creation, made_operation, with_lock_held
from .numeric import SeriesSumCell
from .turn import TURN


class CounterCell(SeriesSumCell):
    """A counter."""

    __slots__ = ("_drained_exemplar", "_resets", "exemplar")

    width = 1

    if FREE_THREADED and not TYPE_CHECKING:  # an attribute is faster than a list
        __slots__ = ("_drained_exemplar", "_resets", "exemplar", "total")

        @property
        def totals(self) -> list[float]:
            return [self.total]

        @totals.setter
        def totals(self, totals: list[float]) -> None:
            self.total = totals[0]

        def restart_total(self) -> None:
            self.total = 0.0

        def add(self, _index: int, amount: float) -> None:
            _ = TURN.alone
            self.total += amount
            self.memory[self.offset] = self.total
            _ = TURN.together

    else:

        def operations(self) -> list[Operation]:
            memory, start = self.memory, self.offset  # as of the base, without lists: each row has one number
            total = memory[start + 1] = memory[start]
            stored = memory[start + 2]
            return self.additions([-0.0 if total == stored else total - stored])

    def start_anew(self) -> None:
        super().start_anew()
        self._resets: tuple[JournaledOperation, ...] = ()
        """The operations of a reset that the storage has not done yet."""
        self.exemplar = self._drained_exemplar = ""

    def journaled(self) -> Sequence[Journaled]:
        return (*self._resets, self)

    def set_exemplar(self, exemplar: str) -> None:
        """Send the exemplar with the next batch."""
        _ = TURN.alone
        self.exemplar = exemplar
        _ = TURN.together

    def reset(self) -> None:
        super().reset()
        self._forget(self._resets)
        self.exemplar = self._drained_exemplar = ""

    def reset_now(self) -> CounterCell:
        """A cell to continue with, which sets the counter to zero, created now. The journal's record of this one is void."""
        FORKS.notice()
        new, labels = CounterCell(self.metric, self.values), self.labels
        new.exemplar, new.created = self.exemplar, (now := time.time())
        new._resets = (
            JournaledOperation(self.family, Operation(Kind.SET, f"_total:{labels}", 0.0)),
            JournaledOperation(self.family, Operation(Kind.SET, f"_created:{labels}", now)),
        )
        self.sender.journal(new)
        return new

    def acknowledge(self) -> None:
        super().acknowledge()
        self._drained_exemplar = ""
        if self._resets:
            self._forget([reset for reset in self._resets if reset.is_drained])

    @with_lock_held
    def _forget(self, resets: Collection[JournaledOperation]) -> None:
        for reset in resets:
            self.sender.unjournal(reset)
        self._resets = tuple(reset for reset in self._resets if reset not in resets)

    def additions(self, gained: list[float]) -> list[Operation]:
        if self.exemplar:
            _ = TURN.alone
            self._drained_exemplar = self.exemplar
            self.exemplar = ""
            _ = TURN.together
        operations = counter_additions(self.metric.family, self.values, gained, self.created, self._drained_exemplar)
        return [*(reset.drain() for reset in self._resets), *operations] if self._resets else operations


def counter_additions(
    family: Family, values: tuple[str, ...], gained: Sequence[float], created: float | None, exemplar: str = ""
) -> list[Operation]:
    """The operations that add a gain to the series of a counter with these label values."""
    labels = family.labels(values)
    field = f"_total:{labels}"
    operations = [made_operation((ADD, field, gained[0]))]
    if created is not None:
        operations += creation(labels, created)
    if exemplar:
        operations.append(Operation(Kind.SET, EXEMPLAR + field, exemplar))
    return operations
