"""What one process has gathered of its series since it last sent them: a cell per series."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from functools import wraps
from json.encoder import encode_basestring_ascii as spell
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from . import log
from .family import EXEMPLAR, Family, labels_with, shows_created
from .forks import FORKS
from .interruption import is_raised_by_handler, locked, release_own
from .storage import SWEEPS, Kind, Operation, Stamped, updated

if TYPE_CHECKING:
    from .buffer import Buffer

MOST_REMOVALS = 1000
"""How many removals are sent together: as many as storages find in one go, and as may make a batch larger."""

FREE_THREADED = "t" in getattr(sys, "abiflags", "")
"""Whether this build of Python can run without the GIL, as it may at any time, whatever PYTHON_GIL says."""

CellT = TypeVar("CellT", bound="Cell")
HasMetricT = TypeVar("HasMetricT", bound="MetricCells | Removal | Cell")
P = ParamSpec("P")
T = TypeVar("T")


def wait_for_threads() -> None:
    """Return once no other thread is in the middle of an update that had begun before.

    A build without the GIL stops all threads for this, which it does where one with the GIL would switch between them.
    """
    if FREE_THREADED:
        sys._current_exceptions()


def with_lock_held(method: Callable[Concatenate[HasMetricT, P], T]) -> Callable[Concatenate[HasMetricT, P], T]:
    """Call the method with the lock of the metric held: no other thread does anything else to its cells than update them."""

    @wraps(method)
    def held(self: HasMetricT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return locked(self.metric.lock, method, self, *args, **kwargs)

    return held


class Turn:
    """What threads take in turns where there is no GIL: after `alone`, no other one gets there until `together`.

    These are attributes, since handlers of signals, which may want the turn too, run where code calls something, or jumps
    back, but not where it reads an attribute. So nothing of that may be in between, nor anything that may raise.
    """

    alone: Any = None
    together: Any = None
    lock: threading.RLock
    """What these hold. Calls to it take less time, and are for where a handler may have the turn amid it and raise."""
    release: Callable[[], None]

    @classmethod
    def begin(cls) -> None:
        """Let it be nobody's turn: that of the threads which this process had before a fork is over."""
        if FREE_THREADED:
            from operator import methodcaller  # which others need not import

            lock = cls.lock = threading.RLock()
            cls.release = lock.release
            cls.alone = property(lock.acquire)  # it takes the object for an argument that says to wait
            cls.together = property(methodcaller("release"))


TURN = Turn()
TURN.begin()


class Entry(Protocol):
    """Something that waits to be sent."""

    @property
    def metric(self) -> MetricCells:
        """The metric."""

    def drain(self) -> list[Operation]:
        """Hand over what there is to send, and keep nothing of it."""

    def acknowledge(self) -> None:
        """Note that the storage has what was taken."""

    def journaled(self) -> Sequence[Journaled]:
        """What a journal holds of it."""


class Journaled(Protocol):
    """Numbers that a journal can hold, so that another process can go on from there, and what they are about."""

    memory: memoryview[float]
    offset: int
    """Where in `memory` they begin: 0 in memory of their own, further on in a journal."""
    dropped: bool

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def family(self) -> Family:
        """The metric."""

    @property
    def key(self) -> str:
        """What the numbers are about, as the items of a list in JSON."""

    def move(self, memory: memoryview[float], offset: int) -> None:
        """Keep the numbers in these rows from now on, which are 0 there; updates may go on meanwhile."""

    def detach(self) -> tuple[memoryview[float], int]:
        """Leave the journal without the numbers, and return where it had them."""

    def unsent(self, in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        """What a dead process had not sent: what was in its batch in flight, where there was one, and the rest."""


class MetricCells:
    """The cells of one metric of this process. Sending it without cells renews the metric in the storage.

    It counts once the buffer has adopted it, and until it is `retired`, as nobody has the metric any more.
    """

    def __init__(self, buffer: Buffer, family: Family, limits: Mapping[str, float | None] = MappingProxyType({})) -> None:
        self.buffer = buffer
        self._limits = limits
        self.family = family
        self.limit()
        self.retired = False
        self.lock = threading.RLock()
        """Of the cells, for moments in which nothing else can run in the same thread; see `Cell`."""
        self.cells: dict[Cell, None] = {}
        self.removal: Removal | None = None
        """The last one that waits to be sent, which takes in more."""
        self.computed = False
        self._updated: dict[Cell, float] = {}
        """When cells were updated last, where idle series go."""
        self.unacknowledged: set[Cell] = set()
        """Cells whose last update is on its way to the storage, where idle series go."""
        self._sweep_at = 0.0

    @property
    def metric(self) -> MetricCells:
        return self

    def limit(self) -> None:
        """Have the limits of the metric, or where it has none, those that `setup` gave to all; only labels make series."""
        if self.family.labelnames:
            own = {name: limit for name, limit in self._limits.items() if limit is not None}
            limits: dict[str, Any] = {**self.buffer.limits, **own}
            for name, limit in limits.items():
                limits[name] = 0 if limit == math.inf else limit
            self.family = self.family._replace(**limits)
        self.meta = self.family.meta
        """What the storage keeps of the family, made once."""

    def drain(self) -> list[Operation]:
        return []

    def acknowledge(self) -> None:
        """Nothing was taken."""

    def journaled(self) -> Sequence[Journaled]:
        return ()

    def add(self, cell: CellT) -> CellT:
        """Take in the cell of a series that has none."""
        self.cells[cell] = None
        return cell

    def unprompted(self, *, beat: bool) -> list[Cell]:
        """The cells to send though nothing changed them: those that are computed and, on a beat, those with a lease.

        Calls the functions of computed cells, so not with a lock of the buffer held: they may take any lock themselves. A
        beat is of a thread of our own, which no function may end.
        """
        cells = list(self.cells) if self.computed and self.is_last else []
        computed = [cell for cell in cells if isinstance(cell, CallbackGaugeCell)]
        for cell in computed:
            cell.compute(unharmed=beat)
        return self.cells_to_resend() if beat and self.family.live else list(computed)

    @property
    def is_last(self) -> bool:
        """Whether no other metric of this name was declared later and lives: that one says how the family is declared."""
        return self.buffer.last_declared(self.family.name) in (self, None)

    def cells_to_resend(self) -> list[Cell]:
        """All cells but idle ones, which are to be told even where nothing changed."""
        cells = list(self.cells)
        for cell in cells:
            cell.forget_stored()
        idle_since = time.monotonic() - (self.family.expire_series or math.inf)
        return [cell for cell in cells if self._updated.get(cell, math.inf) > idle_since]

    def is_update(self, cell: Cell, was_updated: bool) -> bool:
        """Whether the storage is to know that the cell was updated, now or when it was taken before without being settled."""
        if was_updated and self.family.expire_series:
            self.unacknowledged.add(cell)
        return cell in self.unacknowledged

    def note_update(self, cell: Cell) -> Operation:
        """Note that the cell is updated, here and in the storage."""
        self._updated[cell] = time.monotonic()
        return updated(cell.labels)

    def is_to_be_swept(self, now: float) -> bool:
        """Whether the storage has to look for idle series, though nothing may be updated."""
        if not self.family.expire_series or now < self._sweep_at:
            return False
        self._sweep_at = now + self.family.expire_series / SWEEPS
        return True

    def drop(self, cells: Iterable[Cell]) -> None:
        """Forget these series; whoever still holds one updates it in vain."""
        FORKS.notice()
        self._drop(cells)

    def _drop(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            cell.drop()
            self.cells.pop(cell, None)
            self._updated.pop(cell, None)
            self.unacknowledged.discard(cell)

    def remove(self, kind: Kind, labels: str, cells: Iterable[Cell] = ()) -> None:
        """Remove series of the storage by all or some of their labels (JSON), as that kind says, and forget these `cells`."""
        FORKS.notice()
        note = JournaledOperation(self.family, Operation(kind, labels))
        self.buffer.journal(note)
        self._drop(cells)
        waiting = self.removal
        if waiting is None or not waiting.accepts(note):
            new = Removal(self, note)
            self.buffer.send(new)
            self.removal = new  # only now: an exception may have kept it out of the queue
        elif self.buffer.write_through:
            self.buffer.send_queued()

    @with_lock_held
    def discard(self) -> None:
        """Drop what has been gathered."""
        self.removal = None
        self.unacknowledged.clear()
        for cell in list(self.cells):
            cell.queued = cell.quiet = False
            cell.reset()

    def after_fork(self) -> None:
        """Start as a new process: a lock that nobody holds, cells with nothing in them."""
        self.lock = threading.RLock()
        for cell in list(self.cells):
            cell.start_anew()
        self.discard()


class Holder:
    """What the objects of one metric, parent and children, share: with the last of them the metric retires.

    Then the buffer declares it no more. Updates that wait are sent.
    """

    __slots__ = ("metric",)

    def __init__(self, metric: MetricCells) -> None:
        self.metric = metric

    def __del__(self) -> None:
        self.metric.buffer.retire(self.metric)


_CALLED: ContextVar[set[CallbackGaugeCell] | None] = ContextVar("_CALLED", default=None)
"""The cells whose functions were called for this scrape."""


def in_one_scrape(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do the work, and call each function of a gauge once at most meanwhile, also where such functions read metrics."""
    if _CALLED.get() is not None:
        return work(*args, **kwargs)

    def begin() -> T:
        _CALLED.set(set())
        return work(*args, **kwargs)

    return copy_context().run(begin)  # which ends with the call, whatever raises


class JournaledOperation:
    """An operation that the storage does once; a journal holds it until then."""

    __slots__ = ("family", "memory", "offset", "operation")

    dropped = False
    size = 1

    def __init__(self, family: Family, operation: Operation) -> None:
        self.family = family
        self.operation = operation
        self.memory, self.offset = zeros(self.size), 0

    @property
    def key(self) -> str:
        kind, field, value = self.operation
        return f'"{kind.value}",{spell(field)},{spell(value) if isinstance(value, str) else repr(value)}'

    @property
    def is_drained(self) -> bool:
        """Whether it is in a batch."""
        _ = TURN.alone
        drained = self.memory[self.offset]
        _ = TURN.together
        return bool(drained)

    def journaled(self) -> Sequence[Journaled]:
        """What a journal holds of it."""
        return (self,)

    def drain(self) -> Operation:
        """Hand it over."""
        _ = TURN.alone
        self.memory[self.offset] = 1.0
        _ = TURN.together
        return self.operation

    def move(self, memory: memoryview[float], offset: int) -> None:
        _ = TURN.alone
        memory[offset] = self.memory[self.offset]
        self.memory = memory
        self.offset = offset
        _ = TURN.together

    def detach(self) -> tuple[memoryview[float], int]:
        place = self.memory, self.offset
        self.move(zeros(self.size), 0)
        return place

    def unsent(self, in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        return ([self.operation], []) if in_flight and self.is_drained else ([], [self.operation])


class Removal:
    """Removals of series of one metric, as an entry of its own, so that they keep their place among the updates."""

    def __init__(self, metric: MetricCells, note: JournaledOperation) -> None:
        self.metric = metric
        self._notes = {note.operation: note}
        self._is_drained = False

    @with_lock_held
    def accepts(self, note: JournaledOperation) -> bool:
        """Remove these series, too, unless it is too late for that."""
        if self._is_drained or len(self._notes) >= MOST_REMOVALS:
            return False
        known = self._notes.setdefault(note.operation, note)
        if known is not note:
            self.metric.buffer.unjournal(note)
        return True

    @with_lock_held
    def drain(self) -> list[Operation]:
        self._is_drained = True
        return [note.drain() for note in self._notes.values()]

    def acknowledge(self) -> None:
        for note in self._notes.values():
            self.metric.buffer.unjournal(note)

    def journaled(self) -> Sequence[Journaled]:
        return list(self._notes.values())


class Cell:
    """What one series has gathered since it was last sent.

    An update of a quiet cell changes it and does nothing else. Otherwise it announces the cell, changes it, and looks whether
    it was taken meanwhile. Marking takes no lock: it may leave the cell in the queue twice, but never out of it, since `drain`
    makes the cell loud again before it looks at what was gathered. A handler may raise an exception into an update: the cell
    has its place in the queue before it changes.

    Handlers of signals and finalizers may update metrics too, and Python runs them, and other threads, wherever code calls,
    allocates what the garbage collector looks after, or jumps back. So the update of a number takes no lock. From where it
    looks at the cell, and whether it is quiet, to its last store it does none of that; nor does `operations` until it has
    taken what was gathered. CPython 3.10 also does so where it jumps forward: the code of a quiet cell comes first.

    Without the GIL other threads run all the time. There gauges and texts change in a `Turn`; of what only ever adds, each
    thread has a cell of its own.
    """

    __slots__ = ("created", "dropped", "metric", "queued", "quiet", "values")

    def __init__(self, metric: MetricCells, values: tuple[str, ...]) -> None:
        self.metric = metric
        self.values = values
        self.created: float | None = time.time()
        """When the series was created, in Unix seconds, until that is in a batch."""
        self.queued = False
        self.quiet: Any = False
        """Whether an update has nothing to do but to change the cell: it is queued, and nobody waits for it to be sent.

        True here is what `Forks.unforked` gives: in a fork no cell is quiet, so that it leaves the parent's memory first.
        """
        self.dropped = False
        self.start_anew()

    def start_anew(self) -> None:
        """Start at zero, in memory."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was gathered; called with the lock held."""
        raise NotImplementedError

    def journaled(self) -> Sequence[Journaled]:
        return ()

    def acknowledge(self) -> None:
        """Note that the storage has what was taken."""
        self.created = None
        self.metric.unacknowledged.discard(self)

    @property
    def has_unsent(self) -> bool:
        """Whether something was gathered that was not taken."""
        return False

    @property
    def was_missed(self) -> bool:
        """Whether it has something unsent and is not queued, though nothing was raised into an update."""
        return not self.queued and not self.dropped and self.has_unsent

    def forget_stored(self) -> None:
        """Do not rely on what the storage has."""

    def operations(self) -> list[Operation]:
        """Hand over what was gathered; called with the lock held.

        Called once more before `acknowledge`, it hands over at least the same: no batch was made of that.
        """
        raise NotImplementedError

    @with_lock_held
    def drain(self) -> list[Operation]:
        was_updated = self.queued
        self.queued = self.quiet = False
        if self.dropped:
            return []
        operations = self.operations()
        if self.metric.is_update(self, was_updated or bool(operations and isinstance(self, CallbackGaugeCell))):
            operations.append(self.metric.note_update(self))
        return operations

    @with_lock_held
    def drop(self) -> None:
        """Never send anything again; whoever still holds the series updates it in vain."""
        self.dropped = True
        for journaled in self.journaled():
            self.buffer.unjournal(journaled)

    def enqueue(self) -> None:
        """Queue the cell before a change. Raises NotConfigured."""
        FORKS.notice()
        if not self.queued:
            self.buffer.enqueue(self)

    def changed(self) -> None:
        """Queue the cell after a change, where it was taken before that; written through, send it. Raises NotConfigured."""
        self.enqueue()
        if self.buffer.write_through:
            self.buffer.send_queued()

    @property
    def buffer(self) -> Buffer:
        return self.metric.buffer

    @property
    def labels(self) -> str:
        """The labels as JSON, made whenever they are needed: of idle series they would take more room than the numbers."""
        return self.metric.family.labels(self.values)

    def creation(self, labels: str) -> list[Operation]:
        """Record when the series was created: as it was at first, later as now, in case somebody deleted it."""
        if not shows_created():
            return []
        return [Operation(Kind.INIT, f"_created:{labels}", time.time() if self.created is None else self.created)]


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
        """Nothing can come between the copy and the stores that follow: see `Cell`."""
        size = self.size
        _ = TURN.alone
        start = self.offset
        memory[offset : offset + size] = self.memory[start : start + size]
        self.memory = memory
        self.offset = offset
        _ = TURN.together

    @with_lock_held
    def detach(self) -> tuple[memoryview[float], int]:
        place = self.memory, self.offset
        self.start_anew()
        return place

    def unsent(self, in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        raise NotImplementedError


class SumCell(NumericCell):
    """A series of which updates only ever add: numbers that grow while the process lives, and what was sent of them.

    An update is ``cell.rows[cell.at + index] += amount`` for one or more numbers, without a lock. CPython runs other threads,
    handlers and finalizers when code calls something or jumps back, and such a statement does neither, where the amount is
    a float. What it must not do between looking at `memory` and the last addition is call anything.

    There are three rows: the totals, those that went into a batch, and those that are in the storage. Where a journal has
    them, another process can go on from there.
    """

    __slots__ = ()

    width: int
    """How many numbers a row has."""

    @property
    def size(self) -> int:  # type: ignore[override]
        return 3 * self.width

    def add(self, index: int, amount: float) -> None:
        """Add to the total of that number, a float, without telling anybody."""
        self.memory[self.offset + index] += amount

    def row(self, number: int) -> memoryview[float]:
        """That row of the three."""
        start = self.offset + number * self.width
        return self.memory[start : start + self.width]

    def reset(self) -> None:
        totals = self.row(0)
        self.row(2)[:] = totals
        self.row(1)[:] = totals

    def unsent(self, in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        totals, drained, stored = (self.row(number).tolist() for number in range(3))
        if in_flight:
            return self._additions_of(drained, stored), self._additions_of(totals, drained)
        return [], self._additions_of(totals, stored)

    def _additions_of(self, now: Sequence[float], then: Sequence[float]) -> list[Operation]:
        gained = self.gained(now, then)
        return self.additions(gained) if any(gained) else []

    def operations(self) -> list[Operation]:
        drained = self.row(1)
        drained[:] = self.row(0)
        return self.additions(self.gained(drained.tolist(), self.row(2).tolist()))

    @property
    def has_unsent(self) -> bool:
        return self.row(0) != self.row(1)

    def acknowledge(self) -> None:
        """Note that the storage has what went into the last batch."""
        super().acknowledge()
        memory, width = self.memory, self.width
        drained = self.offset + width
        memory[drained + width : drained + 2 * width] = memory[drained : drained + width]
        if not math.isfinite(memory[drained]):  # nothing can be added to it any more
            self.restart_first()

    def restart_first(self) -> None:
        """Count the first number from 0 again; the total goes last, or who finds the rest would subtract what is infinite."""
        memory, offset, width = self.memory, self.offset, self.width
        memory[offset + 2 * width] = memory[offset + width] = memory[offset] = 0.0

    def gained(self, now: Sequence[float], then: Sequence[float]) -> list[float]:
        """What each number gained; of one that was infinite and is, or that did not change, what changes nothing."""
        return [-0.0 if new == old else new - old for new, old in zip(now, then, strict=True)]

    def additions(self, gained: list[float]) -> list[Operation]:
        """The operations that add to the storage what each number gained."""
        raise NotImplementedError


JOURNAL_PLACE = 2
"""Where the numbers of a cell are in the rows that a journal gives it, where there is no GIL: after their record's head."""


class ThreadSumCell(SumCell):
    """Sums to which one thread adds: without the GIL, each thread that updates a series has such a cell.

    The totals are a list, which no other thread changes, and what was sent of them is the sender's. The rows only repeat both
    for a journal: an update stores its new totals in whatever rows it finds. While the cell moves, these are none that count.
    """

    __slots__ = ("sent", "thread", "totals")

    def start_anew(self) -> None:
        self.thread = threading.get_ident()
        self.totals: list[float] = [0.0] * self.width
        self.sent = zeros(2 * self.width)
        """What went into a batch, and what is in the storage."""
        self.memory = self._passing_rows()
        self.offset = 0

    def _passing_rows(self) -> memoryview[float]:
        """Rows for an update that finds them with a place in a journal, too."""
        return zeros(self.size + JOURNAL_PLACE)

    def add(self, index: int, amount: float) -> None:
        """Add as any thread."""
        _ = TURN.alone
        self.totals[index] += amount
        self.memory[self.offset + index] = self.totals[index]
        _ = TURN.together

    def enqueue(self) -> None:
        FORKS.notice()  # or a clone would repeat its totals in the journal of its parent
        self._repeat_totals()  # somebody may have moved the cell amid the last update
        self.queued = self.queued and self.buffer.write_through  # or it would stay loud until it is taken
        super().enqueue()

    def reset(self) -> None:
        totals = self.totals.copy()
        self._note(totals, totals)

    def move(self, memory: memoryview[float], offset: int) -> None:
        size, width = self.size, self.width
        self.memory = self._passing_rows()
        self._wait_for_thread()
        _ = TURN.alone
        self.offset = offset
        self.memory = memory
        memory[offset + width : offset + size] = self.sent
        _ = TURN.together
        for _ in range(3):  # a thread that still goes on adding repeats its totals itself, since the cell is not quiet
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

    def _note(self, drained: Sequence[float], stored: Sequence[float]) -> None:
        """Note what went into a batch, and what is in the storage."""
        size, width = self.size, self.width
        for index, number in enumerate((*drained, *stored)):
            self.sent[index] = number
        _ = TURN.alone
        self.memory[self.offset + width : self.offset + size] = self.sent
        _ = TURN.together

    def operations(self) -> list[Operation]:
        totals = self.totals.copy()
        stored = list(self.sent)[self.width :]
        self._note(totals, stored)
        return self.additions(self.gained(totals, stored))

    @property
    def has_unsent(self) -> bool:
        return self.totals != list(self.sent)[: self.width]

    def acknowledge(self) -> None:
        super(SumCell, self).acknowledge()
        drained = list(self.sent)[: self.width]
        if not math.isfinite(drained[0]):
            self.restart_total()
            drained[0] = 0.0
        self._note(drained, drained)

    def restart_total(self) -> None:
        """Set the first total to 0."""
        self.totals[0] = 0.0


if TYPE_CHECKING or not FREE_THREADED:
    SeriesSumCell = SumCell
else:
    SeriesSumCell = ThreadSumCell


def zeros(count: int) -> memoryview[float]:
    """So many numbers, which are 0."""
    return memoryview(bytearray(8 * count)).cast("d")


class CounterCell(SeriesSumCell):
    """A counter."""

    __slots__ = ("_drained_exemplar", "_notes", "exemplar")

    width = 1

    if FREE_THREADED and not TYPE_CHECKING:  # an attribute is faster than a list
        __slots__ = ("_drained_exemplar", "_notes", "exemplar", "total")

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

    def start_anew(self) -> None:
        super().start_anew()
        self._notes: tuple[JournaledOperation, ...] = ()
        """A reset that the storage has not done yet."""
        self.exemplar = self._drained_exemplar = ""

    def journaled(self) -> Sequence[Journaled]:
        return (*self._notes, self)

    def set_exemplar(self, exemplar: str) -> None:
        """Send the exemplar with what is counted next."""
        _ = TURN.alone
        self.exemplar = exemplar
        _ = TURN.together

    def reset(self) -> None:
        super().reset()
        self._forget(self._notes)
        self.exemplar = self._drained_exemplar = ""

    def reset_now(self) -> CounterCell:
        """A cell to go on with, which sets the counter to zero, as created now; what the journal has of this one is void."""
        FORKS.notice()
        new, labels = CounterCell(self.metric, self.values), self.labels
        new.exemplar, new.created = self.exemplar, (now := time.time())
        new._notes = (
            JournaledOperation(self.family, Operation(Kind.SET, f"_total:{labels}", 0.0)),
            JournaledOperation(self.family, Operation(Kind.SET, f"_created:{labels}", now)),
        )
        self.buffer.journal(new)
        return new

    def operations(self) -> list[Operation]:
        return [*(note.drain() for note in self._notes), *super().operations()]

    def acknowledge(self) -> None:
        super().acknowledge()
        self._drained_exemplar = ""
        if self._notes:
            self._forget([note for note in self._notes if note.is_drained])

    @with_lock_held
    def _forget(self, notes: Collection[JournaledOperation]) -> None:
        for note in notes:
            self.buffer.unjournal(note)
        self._notes = tuple(note for note in self._notes if note not in notes)

    def additions(self, gained: list[float]) -> list[Operation]:
        if self.exemplar:
            _ = TURN.alone
            self._drained_exemplar = self.exemplar
            self.exemplar = ""
            _ = TURN.together
        labels = self.labels
        field = f"_total:{labels}"
        operations = [Operation(Kind.ADD, field, gained[0]), *self.creation(labels)]
        if self._drained_exemplar:
            operations.append(Operation(Kind.SET, EXEMPLAR + field, self._drained_exemplar))
        return operations


class SummaryCell(SeriesSumCell):
    """A summary: the sum of its observations, and how many there were."""

    __slots__ = ()

    width = 2

    def additions(self, gained: list[float]) -> list[Operation]:
        total, count = gained
        kind, labels = Kind.ADD if count else Kind.INIT, self.labels
        return [
            Operation(kind, f"_count:{labels}", count + 0.0),
            Operation(kind, f"_sum:{labels}", total + 0.0),
            *self.creation(labels),
        ]


class HistogramCell(SeriesSumCell):
    """A histogram: the sum of its observations, and how many there were in each bucket, not cumulated."""

    __slots__ = ("_drained_exemplars", "bounds", "exemplars", "width")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.width = 1 + len(bounds)
        super().__init__(metric, values)

    def start_anew(self) -> None:
        super().start_anew()
        self.exemplars: dict[int, str] = {}
        """By the index of the bucket."""
        self._drained_exemplars: dict[int, str] | None = None

    def set_exemplar(self, bucket: int, exemplar: str) -> None:
        """Send the exemplar of that bucket with what is observed next."""
        _ = TURN.alone
        self.exemplars[bucket] = exemplar
        _ = TURN.together

    def reset(self) -> None:
        super().reset()
        self.exemplars = {}
        self._drained_exemplars = None

    def acknowledge(self) -> None:
        super().acknowledge()
        self._drained_exemplars = None

    def additions(self, gained: list[float]) -> list[Operation]:
        new: dict[int, str] = {}
        _ = TURN.alone
        new, self.exemplars = self.exemplars, new
        _ = TURN.together
        if new:
            self._drained_exemplars = {**(self._drained_exemplars or {}), **new}
        exemplars = self._drained_exemplars or {}
        total, *observed = gained
        labels = self.labels
        operations = [Operation(Kind.ADD if total else Kind.INIT, f"_sum:{labels}", total + 0.0), *self.creation(labels)]
        for bucket, count in enumerate(observed):
            if count:
                field = "_bucket:" + labels_with(labels, "le", self.family.bounds[bucket])
                operations.append(Operation(Kind.ADD, field, count))
                if bucket in exemplars:
                    operations.append(Operation(Kind.SET, EXEMPLAR + field, exemplars[bucket]))
        return operations


class SharedGaugeCell(NumericCell):
    """A gauge with one value for all processes: a number to add to it, or to set it to.

    Three slots have such a number each: that of updates, that of the batch in flight, and a spare one. Another number, the
    state, says which is which, so that whoever finds a journal sees every change whole or not at all.
    """

    __slots__ = ("_flying", "_is_set", "_slot", "_was_set")

    size = 4

    def start_anew(self) -> None:
        super().start_anew()
        self._slot, self._is_set, self._flying, self._was_set = 1, 0, 0, 0
        self.memory[1] = -0.0  # unlike 0.0 it changes nothing it is added to
        self.memory[0] = 16.0

    def reset(self) -> None:
        self.acknowledge()
        self.operations()
        self.acknowledge()

    def add(self, amount: float) -> None:
        number = amount - 0.0  # a float; plus 0.0 would lose the sign of -0.0
        if self.quiet:
            self.memory[self.offset + self._slot] += number
        else:
            self.enqueue()
            self.memory[self.offset + self._slot] += number
            self.changed()

    def set(self, value: float) -> None:
        if not self.quiet:
            self.enqueue()
        slot, flying = self._slot, self._flying
        if not self._is_set:
            slot = 6 - slot - flying if flying else slot % 3 + 1
        self.memory[self.offset + slot] = value
        self.memory[self.offset] = 16 * slot + 8 + 2 * flying + self._was_set
        self._slot = slot
        self._is_set = 1
        if not self.quiet:
            self.changed()

    if FREE_THREADED and not TYPE_CHECKING:

        def add(self, amount: float) -> None:
            number = amount - 0.0
            if not self.quiet:
                self.enqueue()
            turn = Turn.lock
            try:
                turn.acquire()
                self.memory[self.offset + self._slot] += number
            except BaseException:  # of a handler: perhaps before this thread had its turn
                release_own(turn)
                raise
            turn.release()
            if not self.quiet:
                self.changed()

        def set(self, value: float) -> None:
            if not self.quiet:
                self.enqueue()
            turn = Turn.lock
            try:
                turn.acquire()
                slot, flying = self._slot, self._flying
                if not self._is_set:
                    slot = 6 - slot - flying if flying else slot % 3 + 1
                self.memory[self.offset + slot] = value
                self.memory[self.offset] = 16 * slot + 8 + 2 * flying + self._was_set
                self._slot = slot
                self._is_set = 1
            except BaseException:
                release_own(turn)
                raise
            turn.release()
            if not self.quiet:
                self.changed()

    @property
    def has_unsent(self) -> bool:
        return bool(self._is_set or self.memory[self.offset + self._slot])

    def operations(self) -> list[Operation]:
        if self._flying:
            return [self._operation(self._flying, self._was_set)]
        _ = TURN.alone
        flying, was_set = self._slot, self._is_set
        slot = flying % 3 + 1
        self.memory[self.offset + slot] = -0.0
        self.memory[self.offset] = 16 * slot + 2 * flying + was_set
        self._slot = slot
        self._is_set = 0
        self._flying = flying
        self._was_set = was_set
        _ = TURN.together
        return [self._operation(flying, was_set)]

    def acknowledge(self) -> None:
        super().acknowledge()
        _ = TURN.alone
        self.memory[self.offset] = 16 * self._slot + 8 * self._is_set
        self._flying = self._was_set = 0
        _ = TURN.together

    def unsent(self, in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        memory = self.memory[self.offset : self.offset + self.size]
        slot, is_set, flying, was_set = _state(memory[0])
        metric = [self._operation(slot, is_set)] if is_set or memory[slot] else []
        if not flying:
            return [], metric
        drained = self._operation(flying, was_set)
        if in_flight:
            return [drained], metric
        return [], metric if is_set else [drained._replace(value=memory[flying] + memory[slot])]

    def _operation(self, slot: int, is_set: int) -> Operation:
        return Operation(Kind.SET if is_set else Kind.ADD, f":{self.labels}", self.memory[self.offset + slot])


def _state(number: float) -> tuple[int, int, int, int]:
    """The slot of updates and whether it sets, that of the batch in flight (0: none) and the same, from the state of a gauge.

    It is 16 and 8 times the first two, 2 and 1 times the others. Raises ValueError where it is none.
    """
    state = int(number)
    slot, is_set, flying, was_set = state // 16, state // 8 % 2, state // 2 % 4, state % 2
    if not 1 <= slot <= 3 or slot == flying:
        raise ValueError(f"expected the state of a gauge, got {number}")
    return slot, is_set, flying, was_set


class ProcessGaugeCell(NumericCell):
    """A gauge with a value for each process: the value of this one, and when it was last set.

    There are two pairs of a value and a time. The first number says where the pair is that counts. In the live modes, where
    every value is told again with each beat, one that is as it was stored need not be told in between: requests in progress
    come and go.
    """

    __slots__ = ("_drained", "_slot", "_stored")

    size = 5

    def start_anew(self) -> None:
        super().start_anew()
        self._slot = 1
        self.memory[2] = NEVER
        self.memory[0] = 1.0
        self.forget_stored()

    def reset(self) -> None:
        self._change(0.0, NEVER)
        self.forget_stored()

    def forget_stored(self) -> None:
        self._stored: tuple[float, float] | None = None
        self._drained: tuple[float, float] | None = None

    def acknowledge(self) -> None:
        super().acknowledge()
        self._stored = self._drained

    @property
    def has_unsent(self) -> bool:
        return (self._drained or (0.0, NEVER)) != self._current

    @property
    def _current(self) -> tuple[float, float]:
        """The value, and when it was set."""
        _ = TURN.alone
        value, set_at = self.memory[self.offset + self._slot], self.memory[self.offset + self._slot + 1]
        _ = TURN.together
        return value, set_at

    def add(self, amount: float) -> None:
        """Add to the value, as `SumCell` are updated: only the modes that refuse this tell when a number was set."""
        number = amount + 0.0
        if self.quiet:
            self.memory[self.offset + self._slot] += number
        else:
            self.enqueue()
            self.memory[self.offset + self._slot] += number
            self.changed()

    def set(self, value: float) -> None:
        if not self.quiet:
            self.enqueue()
        self._change(value, time.monotonic())
        if not self.quiet:
            self.changed()

    def _change(self, value: float, set_at: float) -> None:
        slot = 4 - self._slot
        self.memory[self.offset + slot] = value
        self.memory[self.offset + slot + 1] = set_at
        self.memory[self.offset] = self._slot = slot

    if FREE_THREADED and not TYPE_CHECKING:
        add = SharedGaugeCell.add

        def _change(self, value: float, set_at: float) -> None:
            _ = TURN.alone
            slot = 4 - self._slot
            self.memory[self.offset + slot] = value
            self.memory[self.offset + slot + 1] = set_at
            self.memory[self.offset] = self._slot = slot
            _ = TURN.together

    def operations(self) -> list[Operation]:
        value, set_at = self._current
        if self._stored == (value, set_at) and self.family.live:
            return []
        self._drained = value, set_at
        field = self.family.process_prefix(self.buffer.writer) + self.labels
        return [Operation(Kind.STAMP, field, Stamped(value, None if set_at == NEVER else set_at))]

    def unsent(self, _in_flight: bool, /) -> tuple[list[Operation], list[Operation]]:
        if self.family.live:
            return [], []
        self._slot = int(self.memory[self.offset])
        return [], self.operations()


NEVER = -1.0
"""The time at which a `ProcessGaugeCell` was set that never was."""


class CallbackGaugeCell(Cell):
    """A gauge whose value is a function, called whenever the buffer is flushed or read and every `BEAT_SECONDS`."""

    __slots__ = ("_function", "_value")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], function: Callable[[], float]) -> None:
        self._function = function
        super().__init__(metric, values)
        metric.computed = True

    @property
    def quiet(self) -> bool:
        """Never: an update would do nothing but look."""
        return False

    @quiet.setter
    def quiet(self, _: object) -> None:
        """Do nothing."""

    def start_anew(self) -> None:
        self._value: float | None = None

    def reset(self) -> None:
        self.start_anew()

    def compute(self, *, unharmed: bool = False) -> None:
        """Call the function, unless it was called for this scrape; where it fails, the value stays, and the error is logged.

        What a handler of a signal raises, and what is no `Exception`, reaches the caller unless that must stay `unharmed`.
        """
        in_one_scrape(self._compute, unharmed)

    def _compute(self, unharmed: bool) -> None:
        called = _CALLED.get()
        if called is None or self in called:
            return
        called.add(self)
        try:
            self._value = float(self._function())
        except BaseException as error:
            if not unharmed and (not isinstance(error, Exception) or is_raised_by_handler(error.__traceback__)):
                raise
            name = self.metric.family.name
            log.defer(logging.ERROR, "the function of the gauge %s failed; its value stays as it was", name, error=error)

    def add(self, amount: float) -> None:
        """Do nothing: the function alone says the value."""

    def set(self, value: float) -> None:
        """Do nothing: the function alone says the value."""

    def operations(self) -> list[Operation]:
        if self._value is None or not self.metric.is_last:
            return []
        if self.metric.family.mode == "shared":
            return [Operation(Kind.SET, f":{self.labels}", self._value)]
        field = self.metric.family.process_prefix(self.buffer.writer) + self.labels
        return [Operation(Kind.STAMP, field, Stamped(self._value, time.monotonic()))]


class TextCell(Cell):
    """An info or an enum: the last text set, or one to start with."""

    __slots__ = ("_drained", "_first", "_suffix", "_text")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], suffix: str, first: str) -> None:
        self._suffix = suffix
        self._first = first
        super().__init__(metric, values)

    def start_anew(self) -> None:
        self._text: JournaledOperation | None = None
        self._drained: JournaledOperation | None = None

    def reset(self) -> None:
        for note in self.journaled():
            self.buffer.unjournal(note)
        self.start_anew()

    def journaled(self) -> Sequence[Journaled]:
        return [note for note in (self._drained, self._text) if note is not None]

    def set(self, text: str) -> None:
        note = JournaledOperation(self.metric.family, Operation(Kind.SET, f"{self._suffix}:{self.labels}", text))
        self.enqueue()
        _ = TURN.alone
        before, self._text = self._text, note
        _ = TURN.together
        self.buffer.journal(self)
        if before is not None:
            self.buffer.unjournal(before)
        self.changed()

    @property
    def has_unsent(self) -> bool:
        return self._text is not None

    def operations(self) -> list[Operation]:
        if self._drained is None:
            _ = TURN.alone
            self._drained, self._text = self._text, None
            _ = TURN.together
        if self._drained is None:
            return [Operation(Kind.INIT, f"{self._suffix}:{self.labels}", self._first)]
        return [self._drained.drain()]

    def acknowledge(self) -> None:
        super().acknowledge()
        if self._drained is not None:
            self.buffer.unjournal(self._drained)
            self._drained = None
