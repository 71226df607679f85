"""What one process has gathered of its series since it last sent them: a cell per series."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from .family import EXEMPLAR, Family, labels_with
from .storage import Kind, Operation, Stamped

if TYPE_CHECKING:
    from .buffer import Buffer

logger = logging.getLogger("pdc")

CellT = TypeVar("CellT", bound="Cell")


class Entry(Protocol):
    """Something that waits to be sent."""

    pending: Pending

    def take(self) -> list[Operation]:
        """Hand over what there is to send, and keep nothing of it."""


class Pending:
    """The cells of one metric of this process. Sending it without cells renews the metric in the storage."""

    def __init__(self, buffer: Buffer, family: Family) -> None:
        self.buffer = buffer
        self.family = family
        self.lock = threading.RLock()
        """Of the cells, for moments in which nothing else can run in the same thread; see `Cell`."""
        self.cells: dict[Cell, None] = {}
        self.computed = False
        self.pending = self
        buffer.adopt(self)

    def take(self) -> list[Operation]:
        return []

    def add(self, cell: CellT) -> CellT:
        """Take in the cell of a series that has none."""
        self.cells[cell] = None
        return cell

    def restless(self, *, beat: bool) -> list[Cell]:
        """The cells to send though nothing changed them: those that are computed and, on a beat, those with a lease.

        Calls the functions of computed cells, so not with a lock of the buffer held: they may take any lock themselves.
        """
        cells = list(self.cells) if self.computed or (beat and self.family.live) else []
        computed = [cell for cell in cells if isinstance(cell, Computed)]
        for cell in computed:
            cell.compute()
        return cells if beat and self.family.live else list(computed)

    def drop(self, cells: Iterable[Cell]) -> None:
        """Forget these series; whoever still holds one updates it in vain."""
        for cell in cells:
            cell.drop()
            self.cells.pop(cell, None)

    def remove(self, selector: str) -> None:
        """Remove every series of the storage whose labels include those of `selector` (JSON)."""
        self.buffer.declare(Removal(self, selector))

    def discard(self) -> None:
        """Drop what has been gathered."""
        with self.lock:
            for cell in list(self.cells):
                cell.queued = cell.quiet = False
                cell.reset()

    def after_fork(self) -> None:
        """Start as a new process: a lock that nobody holds, cells with nothing in them."""
        self.lock = threading.RLock()
        for cell in list(self.cells):
            cell.start_anew()
        self.discard()


class Removal:
    """The removal of series, as an entry of its own, so that it keeps its place among the updates."""

    def __init__(self, pending: Pending, selector: str) -> None:
        self.pending = pending
        self._selector = selector

    def take(self) -> list[Operation]:
        return [Operation(Kind.DELETE, self._selector)]


class Cell:
    """What one series has gathered since it was last sent.

    An update changes the cell, then marks it unless it is quiet. Marking takes no lock: it may leave the cell in the queue
    twice, but never out of it, since `take` makes the cell loud again before it looks at what was gathered.

    Handlers of signals and finalizers may update metrics, and Python runs them wherever code calls or allocates. So an
    update that holds the lock of its metric does neither, and `operations` takes away what was gathered before it does
    either.
    """

    __slots__ = ("buffer", "created", "dropped", "fresh", "labels", "pending", "queued", "quiet")

    def __init__(self, pending: Pending, labels: str) -> None:
        self.pending = pending
        self.buffer = pending.buffer
        self.labels = labels
        self.created = time.time()
        self.queued = False
        self.quiet = False
        """Whether an update has nothing to do but to change the cell: it is queued, and nobody waits for it to be sent."""
        self.dropped = False
        self.fresh = True
        self.reset()

    def reset(self) -> None:
        """Forget what was gathered."""
        raise NotImplementedError

    def start_anew(self) -> None:
        """Start at zero, in memory."""

    def leave_journal(self) -> None:
        """Go on in memory."""

    def operations(self) -> list[Operation]:
        """Hand over what was gathered; called with the lock held."""
        raise NotImplementedError

    def take(self) -> list[Operation]:
        with self.pending.lock:
            self.queued = self.quiet = False
            if self.dropped:
                return []
            operations = self.operations()
            self.fresh = False
            return operations

    def drop(self) -> None:
        """Never send anything again; whoever still holds the series updates it in vain."""
        with self.pending.lock:
            self.dropped = True
        self.buffer.forget(self)

    def changed(self) -> None:
        """Mark the cell after a change. Raises NotConfigured."""
        buffer = self.buffer
        if buffer.write_through:
            if not (self.queued and buffer.down):  # while the storage is down, the queue must not grow with every update
                buffer.mark(self)
            buffer.write()
        elif not self.queued:
            buffer.mark(self)

    def subkey(self, suffix: str) -> str:
        """The field of this series with that suffix."""
        return f"{suffix}:{self.labels}"

    def creation(self, kind: Kind = Kind.INIT) -> Operation:
        """Record when the series was created: as declared at first, later as now, in case somebody deleted it."""
        return Operation(kind, self.subkey("_created"), self.created if self.fresh else time.time())


class Sums(Cell):
    """A series of which updates only ever add: numbers that grow while the process lives, and what was sent of them.

    An update is ``cell.totals[index] += amount`` for one or more numbers, without a lock. CPython runs other threads,
    handlers and finalizers when code calls something or jumps back, and such a statement does neither, where the amount is
    a float. What it must not do between looking at `totals` and the last addition is call anything.

    There are three rows: the totals, those that went into a batch, and those that are in the storage. Where a journal has
    them, another process can go on from there.
    """

    __slots__ = ("record", "rows", "totals")

    width: int
    rows: memoryview[float]
    totals: memoryview[float]
    record: memoryview | None

    def reset(self) -> None:
        if not hasattr(self, "rows"):
            self.start_anew()
        width = self.width
        self.rows[2 * width :] = self.totals
        self.rows[width : 2 * width] = self.totals

    def start_anew(self) -> None:
        self.rows = _rows(self.width)
        self.totals = self.rows[: self.width]
        self.record = None

    def leave_journal(self) -> None:
        if self.record is not None:
            self.move(_rows(self.width), None)

    def move(self, rows: memoryview[float], record: memoryview | None) -> None:
        """Keep the numbers in these rows, which are 0, from now on; updates may go on meanwhile."""
        with self.pending.lock:
            width, before = self.width, self.totals
            rows[width:] = self.rows[width:]
            self.rows, self.record = rows, record
            self.totals = totals = rows[:width]
            for index in range(width):
                totals[index] += before[index]

    def operations(self) -> list[Operation]:
        width = self.width
        before = self.rows[width : 2 * width].tolist()
        self.rows[width : 2 * width] = self.totals
        return self.additions(self.gained(self.rows[width : 2 * width].tolist(), before))

    def settle(self) -> None:
        """Note that the storage has what went into the last batch."""
        width = self.width
        self.rows[2 * width :] = self.rows[width : 2 * width]
        if not math.isfinite(self.rows[width]):  # nothing can be added to it any more
            self.begin_again()

    def begin_again(self) -> None:
        """Count the first number from 0 again."""
        self.rows[0] = self.rows[self.width] = self.rows[2 * self.width] = 0.0

    def gained(self, now: Sequence[float], then: Sequence[float]) -> list[float]:
        """What each number gained; of one that was infinite and is, or that did not change, what changes nothing."""
        return [-0.0 if new == old else new - old for new, old in zip(now, then, strict=True)]

    def additions(self, gained: list[float]) -> list[Operation]:
        """The operations that add to the storage what each number gained."""
        raise NotImplementedError


def _rows(width: int) -> memoryview[float]:
    """Three rows of so many numbers, which are 0."""
    return memoryview(bytearray(3 * 8 * width)).cast("d")


class Total(Sums):
    """A counter."""

    __slots__ = ("_restarted", "exemplar")

    width = 1

    def reset(self) -> None:
        super().reset()
        self._restarted = False
        self.exemplar = ""

    def restart(self) -> None:
        """Set the counter to zero, as created now."""
        now = time.time()
        with self.pending.lock:
            self.begin_again()
            self.created = now
            self.fresh = self._restarted = True
        self.changed()

    def additions(self, gained: list[float]) -> list[Operation]:
        restarted, exemplar = self._restarted, self.exemplar
        self._restarted, self.exemplar = False, ""
        field = self.subkey("_total")
        if restarted:
            operations = [Operation(Kind.SET, field, gained[0] + 0.0), self.creation(Kind.SET)]
        else:
            operations = [Operation(Kind.ADD, field, gained[0]), self.creation()]
        if exemplar:
            operations.append(Operation(Kind.SET, EXEMPLAR + field, exemplar))
        return operations


class Observations(Sums):
    """A summary: the sum of its observations, and how many there were."""

    __slots__ = ()

    width = 2

    def additions(self, gained: list[float]) -> list[Operation]:
        total, count = gained
        kind = Kind.ADD if count else Kind.INIT
        return [
            Operation(kind, self.subkey("_count"), count + 0.0),
            Operation(kind, self.subkey("_sum"), total + 0.0),
            self.creation(),
        ]


class Buckets(Sums):
    """A histogram: the sum of its observations, and how many there were in each bucket, not cumulated."""

    __slots__ = ("bounds", "exemplars", "width")

    def __init__(self, pending: Pending, labels: str, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.width = 1 + len(bounds)
        super().__init__(pending, labels)

    def reset(self) -> None:
        super().reset()
        self.exemplars: dict[int, str] = {}

    def additions(self, gained: list[float]) -> list[Operation]:
        exemplars, self.exemplars = self.exemplars, {}
        total, *observed = gained
        operations = [Operation(Kind.ADD if total else Kind.INIT, self.subkey("_sum"), total + 0.0), self.creation()]
        for bucket, count in enumerate(observed):
            if count:
                field = self._bucket(bucket)
                operations.append(Operation(Kind.ADD, field, count))
                if bucket in exemplars:
                    operations.append(Operation(Kind.SET, EXEMPLAR + field, exemplars[bucket]))
        return operations

    def _bucket(self, index: int) -> str:
        return "_bucket:" + labels_with(self.labels, "le", self.pending.family.bounds[index])


class Number(Cell):
    """A gauge with one value for all processes: the last number set, and what was added since."""

    __slots__ = ("_added", "_set")

    def reset(self) -> None:
        self._set: float | None = None
        self._added = -0.0  # unlike 0.0 it changes nothing it is added to

    def add(self, amount: float) -> None:
        with self.pending.lock:
            self._added += amount
        self.changed()

    def set(self, value: float) -> None:
        with self.pending.lock:
            self._set = value
            self._added = -0.0
        self.changed()

    def operations(self) -> list[Operation]:
        base, added = self._set, self._added
        self._set, self._added = None, -0.0
        if base is None:
            return [Operation(Kind.ADD, self.subkey(""), float(added))]
        return [Operation(Kind.SET, self.subkey(""), float(base + added))]


class ProcessNumber(Cell):
    """A gauge with a value for each process: the value of this one, and when it was last set."""

    __slots__ = ("_set_at", "_value")

    def reset(self) -> None:
        self._value = 0.0
        self._set_at: float | None = None

    def add(self, amount: float) -> None:
        """Add to the value, as `Sums` are updated: only the modes that refuse this tell when a number was set."""
        number = amount + 0.0
        self._value += number
        if not self.quiet:
            self.changed()

    def set(self, value: float) -> None:
        now = time.monotonic()
        with self.pending.lock:
            self._value = value
            self._set_at = now
        self.changed()

    def operations(self) -> list[Operation]:
        field = self.pending.family.process_prefix(self.buffer.writer) + self.labels
        return [Operation(Kind.STAMP, field, Stamped(float(self._value), self._set_at))]


class Computed(Cell):
    """A gauge whose value is a function, called whenever the buffer is flushed or read and every `BEAT_SECONDS`."""

    __slots__ = ("_function", "_value")

    def __init__(self, pending: Pending, labels: str, function: Callable[[], float]) -> None:
        self._function = function
        super().__init__(pending, labels)
        pending.computed = True

    def reset(self) -> None:
        self._value: float | None = None

    def compute(self) -> None:
        """Call the function; where it fails, the value stays as it was and the error is logged."""
        try:
            self._value = float(self._function())
        except Exception:
            logger.exception("the function of the gauge %s failed; its value stays as it was", self.pending.family.name)

    def add(self, amount: float) -> None:
        """Do nothing: the function alone says the value."""

    def set(self, value: float) -> None:
        """Do nothing: the function alone says the value."""

    def operations(self) -> list[Operation]:
        if self._value is None:
            return []
        if self.pending.family.mode == "shared":
            return [Operation(Kind.SET, self.subkey(""), self._value)]
        field = self.pending.family.process_prefix(self.buffer.writer) + self.labels
        return [Operation(Kind.STAMP, field, Stamped(self._value, time.monotonic()))]


class Text(Cell):
    """An info or an enum: the last text set, or one to start with."""

    __slots__ = ("_first", "_suffix", "_text")

    def __init__(self, pending: Pending, labels: str, suffix: str, first: str) -> None:
        self._suffix = suffix
        self._first = first
        super().__init__(pending, labels)

    def reset(self) -> None:
        self._text: str | None = None

    def set(self, text: str) -> None:
        with self.pending.lock:
            self._text = text
        self.changed()

    def operations(self) -> list[Operation]:
        chosen, self._text = self._text, None
        kind, text = (Kind.INIT, self._first) if chosen is None else (Kind.SET, chosen)
        return [Operation(kind, self.subkey(self._suffix), text)]
