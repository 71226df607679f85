"""Cells that are numbers, and among them those of which updates only ever add."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import cache
from json.encoder import encode_basestring_ascii as spell
from operator import sub
from typing import TYPE_CHECKING

from ..family import Family
from ..process.forks import FORKS, FREE_THREADED
from ..storage import Operation
from .journaled import Journaled, Unsent, zeros
from .metric import Cell, with_lock_held
from .turn import TURN, wait_for_threads


class NumericCell(Cell):
    """A series that is some numbers, which a journal can hold."""

    __slots__ = ("memory", "offset")

    size: int
    memory: memoryview[float]
    offset: int

    @property
    def family(self) -> Family:
        return self.metric.family

    @property
    def key(self) -> str:
        created = "null" if self.created is None else repr(self.created)
        return f"[{','.join(map(spell, self.values))}],{created}"

    def journaled(self) -> Sequence[Journaled]:
        return (self,)

    def start_anew(self) -> None:
        memory = zeros(self.size)
        _ = TURN.alone
        self.memory, self.offset = memory, 0
        _ = TURN.together

    @with_lock_held
    def move(self, memory: memoryview[float], offset: int) -> None:
        """Copy the numbers, and continue in that memory, while other threads update.

        No thread can run between the copy and the store of `memory`, since neither calls nor jumps back (see `Cell`)::

            this thread                             an updating thread
            copies the numbers
            stores memory, then offset
                                                    reads memory and offset, both new
                                                    adds to the copy

        A thread that read the old memory has also stored into it: nothing switches within its update. The old memory lives
        until the stores are done, since CPython 3.14 switches threads where it frees the memory of a journal.
        """
        size = self.size
        _ = TURN.alone
        start, before = self.offset, self.memory
        memory[offset : offset + size] = before[start : start + size]
        self.memory = memory
        self.offset = offset
        _ = TURN.together

    def detach(self) -> tuple[memoryview[float], int]:
        """Leave the memory of a series that was dropped. Later updates are lost, in memory that all such series share."""
        place = self.memory, self.offset
        memory = _lost_updates(self.size)
        _ = TURN.alone
        self.memory = memory
        self.offset = 0
        _ = TURN.together
        return place


class SumCell(NumericCell):
    """A series of which updates only ever add: numbers that grow while the process lives, and how much of them was sent.

    An update is ``cell.memory[cell.offset + index] += amount`` for one or more numbers. Such a statement needs no lock as
    long as the amount is a float: it calls nothing and does not jump back. No call may come between reading `memory` and the
    last addition (see `Cell`).

    The memory holds three rows of `width` numbers: the totals, the totals that a batch carried, and the totals that the
    storage has. In a journal they let another process go on from there.
    """

    __slots__ = ()

    width: int
    """The count of numbers in a row."""

    @property
    def size(self) -> int:  # type: ignore[override]  # the base declares an attribute; here it follows from the width
        return SUM_ROWS * self.width

    def add(self, index: int, amount: float) -> None:
        """Add to that total a float. This does not queue the cell."""
        self.memory[self.offset + index] += amount

    def current(self) -> list[float]:
        """The totals of the first row."""
        return [*self.row(0)]

    def row(self, number: int) -> memoryview[float]:
        """One of the three rows."""
        start = self.offset + number * self.width
        return self.memory[start : start + self.width]

    def reset(self) -> None:
        totals = self.row(0)
        self.row(2)[:] = totals
        self.row(1)[:] = totals

    def operations(self) -> list[Operation]:
        memory, width, start = self.memory, self.width, self.offset
        drained = start + width
        memory[drained : drained + width] = memory[start:drained]
        numbers = memory[drained : drained + 2 * width].tolist()
        return self.additions(gains(numbers[:width], numbers[width:]))

    @property
    def has_unsent(self) -> bool:
        return self.row(0) != self.row(1)

    @property
    def is_stored(self) -> bool:
        """True where the storage has all of the totals."""
        return self.row(0) == self.row(2)

    def acknowledge(self) -> None:
        super().acknowledge()
        memory, width = self.memory, self.width
        drained = self.offset + width
        memory[drained + width : drained + 2 * width] = memory[drained : drained + width]
        if not math.isfinite(memory[drained]):  # no addition changes it any more
            self.restart_first()

    def restart_first(self) -> None:
        """Restart the first number at 0. The total comes last: a reader in between would compute 0 - inf."""
        memory, offset, width = self.memory, self.offset, self.width
        memory[offset + 2 * width] = memory[offset + width] = memory[offset] = 0.0

    def additions(self, gained: list[float]) -> list[Operation]:
        """The operations that add these amounts to the numbers of the storage."""
        raise NotImplementedError


SUM_ROWS = 3
"""The count of rows in a `SumCell`."""


def gains(now: Sequence[float], then: Sequence[float]) -> list[float]:
    """The differences. A first number that did not change gives -0.0, which changes no sum. It may be infinite, others not."""
    gained = [*map(sub, now, then)]
    if now[0] == then[0]:
        gained[0] = -0.0
    return gained


def unsent_sums(numbers: Sequence[float], in_flight: bool, additions: Callable[[list[float]], list[Operation]]) -> Unsent:
    """The unsent part of the numbers of a `SumCell`; `additions` makes operations of gains."""
    width = len(numbers) // SUM_ROWS
    totals, drained, stored = (numbers[start : start + width] for start in range(0, SUM_ROWS * width, width))

    def added(now: Sequence[float], then: Sequence[float]) -> list[Operation]:
        gained = gains(now, then)
        return additions(gained) if any(gained) else []

    return Unsent(added(drained, stored), added(totals, drained)) if in_flight else Unsent([], added(totals, stored))


JOURNAL_PLACE = 2
"""The offset of a cell's numbers in the memory that a journal gives it where there is no GIL: after the head of its record."""


@cache
def _lost_updates(size: int) -> memoryview[float]:
    """Memory for updates that nobody sends, also for an update that finds it with an offset in a journal."""
    return zeros(size + JOURNAL_PLACE)


class ThreadSumCell(SumCell):
    """Sums to which one thread adds. Without the GIL, each thread that updates a series has such a cell.

    The totals are a list that no other thread changes; how much of them was sent is the sender's to note. The memory only
    repeats both for a journal: an update stores its new totals in the memory that it finds. While the cell moves, it finds
    memory that nobody reads.
    """

    __slots__ = ("sent", "thread", "totals")

    def start_anew(self) -> None:
        self.thread = threading.get_ident()
        self.totals: list[float] = [0.0] * self.width
        self.sent = zeros(2 * self.width)
        """The totals that a batch carried, and those that the storage has."""
        self.memory = self._passing_memory()
        self.offset = 0

    def _passing_memory(self) -> memoryview[float]:
        """Memory for an update that finds it with the offset of a place in a journal, too."""
        return zeros(self.size + JOURNAL_PLACE)

    def add(self, index: int, amount: float) -> None:
        """Add in any thread."""
        _ = TURN.alone
        self.totals[index] += amount
        self.memory[self.offset + index] = self.totals[index]
        _ = TURN.together

    def enqueue(self) -> None:
        FORKS.notice()  # a clone would repeat its totals in the journal of its parent
        self._repeat_totals()  # another thread may have moved the cell amid the last update
        if not self.sender.write_through:  # or another thread, which drains the cell meanwhile, would be overruled
            self.queued = False  # it stays loud until it is drained
        super().enqueue()

    def current(self) -> list[float]:
        return self.totals.copy()

    def reset(self) -> None:
        totals = self.totals.copy()
        self._note_sent(totals, totals)

    def move(self, memory: memoryview[float], offset: int) -> None:
        size, width = self.size, self.width
        self.memory = self._passing_memory()
        self._wait_for_thread()
        _ = TURN.alone
        self.offset = offset
        self.memory = memory
        memory[offset + width : offset + size] = self.sent
        _ = TURN.together
        for _ in range(3):  # a thread that goes on adding repeats its totals itself, since the cell is not quiet
            self.quiet = False
            self._wait_for_thread()
            self._repeat_totals()
            self._wait_for_thread()
            if [memory[index] for index in range(offset, offset + width)] == self.totals:
                break

    def _wait_for_thread(self) -> None:
        if self.thread != threading.get_ident():
            wait_for_threads()

    def _repeat_totals(self) -> None:
        width, totals = self.width, zeros(self.width)
        for index, total in enumerate(self.totals.copy()):
            totals[index] = total
        _ = TURN.alone
        self.memory[self.offset : self.offset + width] = totals
        _ = TURN.together

    def _note_sent(self, drained: Sequence[float], stored: Sequence[float]) -> None:
        """Note the totals that a batch carried, and those that the storage has."""
        size, width = self.size, self.width
        for index, number in enumerate((*drained, *stored)):
            self.sent[index] = number
        _ = TURN.alone
        self.memory[self.offset + width : self.offset + size] = self.sent
        _ = TURN.together

    def operations(self) -> list[Operation]:
        totals = self.totals.copy()
        stored = list(self.sent)[self.width :]
        self._note_sent(totals, stored)
        return self.additions(gains(totals, stored))

    @property
    def has_unsent(self) -> bool:
        return self.totals != list(self.sent)[: self.width]

    @property
    def is_stored(self) -> bool:
        return self.totals == list(self.sent)[self.width :]

    def acknowledge(self) -> None:
        super(SumCell, self).acknowledge()
        drained = list(self.sent)[: self.width]
        if not math.isfinite(drained[0]):
            self.restart_total()
            drained[0] = 0.0
        self._note_sent(drained, drained)

    def restart_total(self) -> None:
        """Restart the first total at 0."""
        self.totals[0] = 0.0


if TYPE_CHECKING or not FREE_THREADED:
    SeriesSumCell = SumCell
else:
    SeriesSumCell = ThreadSumCell
