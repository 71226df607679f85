"""The cells of one metric in this process, and the base of a cell, which holds what a series gathered since it was last sent.

Cells know the sender of their updates as a `Sender` only. It is the buffer of `pdc.delivery`, which stands above them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar

from ..family import Family, shows_created
from ..process.forks import FORKS, FREE_THREADED
from ..process.interruption import is_own
from ..storage import SWEEPS, Kind, Operation, updated
from .journaled import Journaled, JournaledOperation

MOST_REMOVALS = 1000
"""The most removals that go together: as many as a storage finds in one pass, and as a batch may be longer by."""

UNKNOWN = 0.0
"""The time of creation of a series that the storage had once."""

LOCK_HOLDERS: set[int] = set()
"""The threads that may hold the lock of a metric. A handler there must not wait for the sending thread, which may want it."""

CellT = TypeVar("CellT", bound="Cell")
HasMetricT = TypeVar("HasMetricT", bound="MetricCells | Removal | Cell")
P = ParamSpec("P")
T = TypeVar("T")


def with_lock_held(method: Callable[Concatenate[HasMetricT, P], T]) -> Callable[Concatenate[HasMetricT, P], T]:
    """Call the method with the lock of the metric held. Other threads can only update its cells meanwhile."""

    @wraps(method)
    def held(self: HasMetricT, /, *args: Any) -> T:
        lock = self.metric.lock  # the same as `locked` without one more call: each update that is sent takes some of these
        is_nested = is_own(lock)
        me = threading.get_ident()
        try:
            LOCK_HOLDERS.add(me)
            with lock:
                return method(self, *args)  # type: ignore[call-arg]  # keywords, which no call has, would cost time
        except BaseException:
            if not is_nested and is_own(lock):
                lock.release()
            raise
        finally:
            if not is_nested:
                LOCK_HOLDERS.discard(me)

    return held  # type: ignore[return-value]  # as above


class Entry(Protocol):
    """A thing that waits in the queue of a sender: a metric to declare or to renew, a removal, or a cell."""

    @property
    def metric(self) -> MetricCells:
        """The metric that the entry belongs to."""

    def drain(self) -> list[Operation]:
        """Hand over the operations to send, and keep nothing of them. The caller holds the lock of the metric."""

    def acknowledge(self) -> None:
        """Note that the storage has the operations that were drained."""

    def journaled(self) -> Sequence[Journaled]:
        """The parts of the entry that a journal holds."""


class Sender(Protocol):
    """Sends what cells gather. This is all that cells, and the metrics that own them, know of the delivery."""

    @property
    def writer(self) -> str:
        """The id of this process in the storage."""

    @property
    def write_through(self) -> bool:
        """True where each update is sent before its call returns."""

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits of metrics that have none of their own, by the names of the fields of `Family`."""

    def register(self, metric: MetricCells, /) -> None:
        """Know the metric until it is retired."""

    def retire(self, metric: MetricCells, /) -> None:
        """Stop declaring the metric. A finalizer calls this, in any thread and amid any code."""

    def last_declared(self, name: str, /) -> MetricCells | None:
        """The metric of this name that was declared last, of those that are registered."""

    def enqueue(self, entry: Entry, /) -> None:
        """Queue the entry. Raises NotConfigured."""

    def send(self, entry: Entry, /) -> None:
        """Queue the entry, and write it through. Do nothing where no storage is set up."""

    def send_queued(self) -> None:
        """Send what is queued, unless the storage was found down a moment ago."""

    def journal(self, entry: Entry | JournaledOperation, /) -> None:
        """Put the entry into the journal of this process, if there is one."""

    def unjournal(self, journaled: Journaled, /) -> None:
        """Take these numbers out of the journal."""


class MetricCells:
    """The cells of one metric in this process.

    As an entry of a queue it has no operations: to send it declares the metric in the storage, or renews its expiry.
    The sender knows it from `Sender.register` until it is `retired`, when no metric object is left.
    """

    def __init__(self, sender: Sender, family: Family, limits: Mapping[str, float | None] = MappingProxyType({})) -> None:
        self.sender = sender
        self._limits = limits
        self.family = family
        self.apply_limits()
        self.retired = False
        self.lock = threading.RLock()
        """Guards the cells where nothing else may run in the same thread; see `Cell`."""
        self.cells: dict[Cell, None] = {}
        self.removal: Removal | None = None
        """The last removal that waits to be sent. It accepts more."""
        self.buckets: Any = None
        """The buckets with which new series of a native histogram begin; None while no series has any."""
        self.has_callbacks = False
        self.reports_idle = False
        """True where a process sends it from its start on, also while it updates nothing."""
        self._updated: dict[Cell, float] = {}
        """The time of each cell's last update, in a metric whose idle series expire."""
        self.unacknowledged: set[Cell] = set()
        """The cells whose last update is on its way to the storage, in a metric whose idle series expire."""
        self._sweep_at = 0.0
        self.is_shared = False
        """True for a metric that the applications of this process share, whatever storages they use one after the other."""
        self.resting: set[Cell] = set()
        """The cells of a shared metric that nobody has updated since the storage changed."""

    @property
    def metric(self) -> MetricCells:
        return self

    def apply_limits(self) -> None:
        """Use the limits of the metric, or else those that `setup` gave to all. Only labels make series."""
        if self.family.labelnames:
            own = {name: limit for name, limit in self._limits.items() if limit is not None}
            limits: dict[str, Any] = {**self.sender.limits, **own}
            for name, limit in limits.items():
                limits[name] = 0 if limit == math.inf else limit
            self.family = self.family._replace(**limits)
        self.meta = self.family.meta
        """The family as the storage keeps it, made once."""
        self.storage_limits, self.numbers = self.family.limits, self.family.numbers

    def drain(self) -> list[Operation]:
        return []

    @with_lock_held
    def drain_all(self, entries: Iterable[Entry]) -> list[Operation]:
        """Drain these entries of the metric, which are one or those of a batch."""
        return [operation for entry in entries for operation in entry.drain()]

    def acknowledge(self) -> None:
        """Do nothing: nothing was drained."""

    def journaled(self) -> Sequence[Journaled]:
        return ()

    def add(self, cell: CellT) -> CellT:
        """Add the cell of a series that has none yet."""
        self.cells[cell] = None
        return cell

    def unprompted(self, *, beat: bool) -> list[Cell]:
        """The cells to send though no update queued them: callbacks and, on a beat, those with a lease.

        This calls the functions of callbacks, which may take any lock, so the caller holds no lock of the sender. A beat is
        work of our own thread, which no function may end.
        """
        cells = list(self.cells) if self.has_callbacks and self.is_last else []
        callbacks = [cell for cell in cells if cell.is_callback]
        for cell in callbacks:
            cell.compute(unharmed=beat)
        return self.cells_to_resend() if beat and self.family.live else callbacks

    @property
    def is_last(self) -> bool:
        """True for the metric that was declared last under its name. Its family is the declared one."""
        return self.sender.last_declared(self.family.name) in (self, None)

    def cells_to_resend(self) -> list[Cell]:
        """All cells but idle ones, to be sent though nothing changed them."""
        cells = list(self.cells)
        for cell in cells:
            cell.forget_stored()
        if self.resting:
            cells = [cell for cell in cells if cell not in self.resting]
        idle_since = time.monotonic() - (self.family.expire_series or math.inf)
        return [cell for cell in cells if self._updated.get(cell, math.inf) > idle_since]

    def rest(self) -> None:
        """Start in another storage: series of a shared metric that the one before has come with their next update."""
        for cell in list(self.cells) if self.is_shared else ():
            cell.forget_stored()
            if not cell.created and not cell.queued and not cell.has_unsent:
                self.resting.add(cell)

    def is_update(self, cell: Cell, was_updated: bool) -> bool:
        """True where the storage must hear of an update of the cell: a new one, or one that no batch carried yet."""
        if was_updated and self.resting:
            self.resting.discard(cell)
        if was_updated and self.family.expire_series:
            self.unacknowledged.add(cell)
        return cell in self.unacknowledged

    def note_update(self, cell: Cell) -> Operation:
        """Note the update of the cell here, and return the operation that notes it in the storage."""
        self._updated[cell] = time.monotonic()
        return updated(cell.labels)

    def is_to_be_swept(self, now: float) -> bool:
        """True where the storage has to look for idle series now, even without an update."""
        if not self.family.expire_series or now < self._sweep_at:
            return False
        self._sweep_at = now + self.family.expire_series / SWEEPS
        return True

    def drop(self, cells: Iterable[Cell]) -> None:
        """Forget these series. Updates of somebody who still holds one are lost."""
        FORKS.notice()
        self._drop(cells)

    def _drop(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            cell.drop()
            self.forget(cell)

    def forget(self, cell: Cell) -> None:
        """Let the cell be none of this metric any more."""
        self.cells.pop(cell, None)
        self._updated.pop(cell, None)
        self.unacknowledged.discard(cell)
        self.resting.discard(cell)

    def remove(self, kind: Kind, labels: str, cells: Iterable[Cell] = ()) -> None:
        """Remove series from the storage, by all or by some of their labels (JSON) as the kind says, and drop these `cells`."""
        FORKS.notice()
        operation = JournaledOperation(self.family, Operation(kind, labels))
        self.sender.journal(operation)
        self._drop(cells)
        waiting = self.removal
        if waiting is None or not waiting.accepts(operation):
            new = Removal(self, operation)
            self.sender.send(new)
            self.removal = new  # after `send`: an exception may have kept it out of the queue
        elif self.sender.write_through:
            self.sender.send_queued()

    @with_lock_held
    def discard(self) -> None:
        """Drop everything that was gathered."""
        self.removal = None
        self.unacknowledged.clear()
        for cell in list(self.cells):
            cell.queued = cell.quiet = False
            cell.reset()

    def after_fork(self) -> None:
        """Start as a new process: a free lock, and empty cells."""
        self.lock = threading.RLock()
        LOCK_HOLDERS.clear()  # threads of the parent, whose ids new threads may get
        for cell in list(self.cells):
            cell.start_anew()
        self.discard()


class Holder:
    """Shared by the objects of one metric, parent and children. When the last of them goes, the metric retires.

    Updates that wait are still sent.
    """

    __slots__ = ("metric",)

    def __init__(self, metric: MetricCells) -> None:
        self.metric = metric

    def __del__(self) -> None:
        metric: MetricCells | None = getattr(self, "metric", None)  # a copy that failed has none
        if metric is not None:
            metric.sender.retire(metric)


class Removal:
    """Removals of series of one metric. They are an entry of their own, to keep their place among the updates."""

    def __init__(self, metric: MetricCells, operation: JournaledOperation) -> None:
        self.metric = metric
        self._operations = {operation.operation: operation}
        self._is_drained = False

    @with_lock_held
    def accepts(self, operation: JournaledOperation) -> bool:
        """Take in one more removal; return False where this entry is drained or full."""
        if self._is_drained or len(self._operations) >= MOST_REMOVALS:
            return False
        known = self._operations.setdefault(operation.operation, operation)
        if known is not operation:
            self.metric.sender.unjournal(operation)
        return True

    def drain(self) -> list[Operation]:
        self._is_drained = True
        return [operation.drain() for operation in self._operations.values()]

    def acknowledge(self) -> None:
        for operation in self._operations.values():
            self.metric.sender.unjournal(operation)

    def journaled(self) -> Sequence[Journaled]:
        return list(self._operations.values())


class Cell:
    """Holds what one series gathered since it was last sent.

    An update of a quiet cell changes the cell and does nothing else. An update of a loud one queues the cell, changes it, and
    queues it again if a batch drained it in between. Flags need no lock: they may put the cell into the queue twice, but never
    keep it out, since `drain` makes the cell loud before it looks at the numbers. A handler of a signal may raise an exception
    into an update; the cell is queued before it changes.

    An update of a number takes no lock either. CPython switches threads, and runs handlers and finalizers, only at calls,
    at allocations of what the garbage collector tracks, and at backward jumps. From reading the cell and `quiet` to the last
    store an update does none of these; nor does `operations` until it has copied the numbers. CPython 3.10 also switches at
    forward jumps: the code of a quiet cell comes first.

    Threads run at all times where there is no GIL. Gauges and texts change in a `Turn` there, and each thread has a cell of
    its own for numbers that only grow.
    """

    __slots__ = ("created", "dropped", "metric", "queued", "quiet", "values")

    is_callback: ClassVar[bool] = False
    """True where a function of the application gives the value."""

    def __init__(self, metric: MetricCells, values: tuple[str, ...]) -> None:
        self.metric = metric
        self.values = values
        self.created: float | None = time.time()
        """When the series was created, in Unix seconds; None once the storage has that, `UNKNOWN` where it may have lost it."""
        self.queued = False
        self.quiet: Any = False
        """True where an update only needs to change the cell: it is queued, and nobody waits for it.

        The value is that of `Forks.unforked`. It turns false in a fork: there each cell leaves the parent's memory first.
        """
        self.dropped = False
        self.start_anew()

    def start_anew(self) -> None:
        """Start at zero, in memory of its own."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was gathered. The caller holds the lock of the metric."""
        raise NotImplementedError

    def journaled(self) -> Sequence[Journaled]:
        return ()

    def acknowledge(self) -> None:
        """Note that the storage has what was drained."""
        if self.created is not None:
            self.created = None if shows_created() else UNKNOWN
        self.metric.unacknowledged.discard(self)

    @property
    def has_unsent(self) -> bool:
        """True where the cell gathered something that was not drained."""
        return False

    @property
    def was_missed(self) -> bool:
        """True where the cell has something unsent and is not queued."""
        return not self.queued and not self.dropped and self.has_unsent

    def forget_stored(self) -> None:
        """Assume nothing about what the storage has."""
        self.created = self.created or UNKNOWN

    def compute(self, *, unharmed: bool = False) -> None:
        """Update the value of a callback. An error of the function reaches the caller unless that must stay `unharmed`."""

    def operations(self) -> list[Operation]:
        """Drain the numbers. The caller holds the lock of the metric.

        A second call before `acknowledge` gives at least the same: the first one became no batch.
        """
        raise NotImplementedError

    def drain(self) -> list[Operation]:
        was_updated = self.queued
        self.queued = self.quiet = False
        if self.dropped:
            return []
        operations = self.operations()
        if self.metric.is_update(self, was_updated or bool(operations and self.is_callback)):
            operations.append(self.metric.note_update(self))
        return operations

    @with_lock_held
    def drop(self) -> None:
        """Never send anything again. Updates of somebody who still holds the series are lost."""
        self.dropped = True
        sender = self.metric.sender
        for journaled in self.journaled():
            sender.unjournal(journaled)

    def enqueue(self) -> None:
        """Queue the cell before a change. Raises NotConfigured."""
        FORKS.notice()
        if not self.queued:
            self.metric.sender.enqueue(self)

    def changed(self) -> None:
        """Queue the cell after a change if a batch drained it in between, and write it through. Raises NotConfigured."""
        if FREE_THREADED or not self.queued:
            self.enqueue()
        sender = self.metric.sender
        if sender.write_through:
            sender.send_queued()

    @property
    def sender(self) -> Sender:
        return self.metric.sender

    @property
    def labels(self) -> str:
        """The labels as JSON. They are made on demand: in idle series they would take more memory than the numbers."""
        return self.metric.family.labels(self.values)


made_operation: Callable[[tuple[Kind, str, float]], Operation] = partial(tuple.__new__, Operation)
"""The same as ``Operation(*parts)`` without a call of Python: each flush makes one or two for every series."""


def creation(labels: str, created: float | None) -> list[Operation]:
    """The operation that stores when the series was created, unless the storage has that; the present where it is unknown."""
    if created is None or not shows_created():
        return []
    return [Operation(Kind.INIT, f"_created:{labels}", created or time.time())]
