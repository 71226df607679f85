"""The cells of gauges: one value for all processes, one for each process, or the value of a function."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from ..family import Family
from ..process import log
from ..process.forks import FREE_THREADED
from ..process.interruption import is_raised_by_handler, release_own
from ..storage import Kind, Operation, Stamped
from .journaled import Unsent
from .metric import Cell, MetricCells
from .numeric import NumericCell
from .turn import TURN, TURN_LOCK

P = ParamSpec("P")
T = TypeVar("T")

NEVER = -1.0
"""The time at which a `ProcessGaugeCell` was set that never was."""


class SharedGaugeCell(NumericCell):
    """A gauge with one value for all processes: a number to add to it, or to set it to.

    The memory holds the state and three slots, each with such a number::

        offset   number
        0        the state
        1 2 3    the slots

    One slot takes the updates. Another one belongs to the batch in flight, if there is one; the third is spare. The state says
    which is which in one store, so that the reader of a journal sees every change whole or not at all. It is an integer::

        state = 16 * slot + 8 * is_set + 2 * flying + was_set

        slot      1 to 3   the slot of updates
        is_set    0 or 1   whether it holds a number to set, not one to add
        flying    0 to 3   the slot of the batch in flight, 0 without one
        was_set   0 or 1   the same for that slot

    The states that a gauge goes through, beginning with slot 1::

        event                  slot  is_set  flying  was_set  state
        start                  1     0       0       0        16
        inc(1)                 1     0       0       0        16     slot 1 grows
        set(5)                 2     1       0       0        40     slot 2 was written before the state
        a batch drains it      3     0       2       1        53     slot 3 was cleared before the state
        set(7)                 1     1       2       1        29     the third slot: neither 3 nor 2
        the storage has it     1     1       0       0        24
    """

    __slots__ = ("_flying", "_is_set", "_slot", "_was_set")

    size = 4

    def start_anew(self) -> None:
        super().start_anew()
        self._slot, self._is_set, self._flying, self._was_set = 1, 0, 0, 0
        self.memory[1] = -0.0  # a sum of 0.0 and -0.0 would change the sign of a stored -0.0
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
            slot = slot % 3 + 1  # also the third one, while a batch is in flight
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
            try:
                TURN_LOCK.acquire()
                self.memory[self.offset + self._slot] += number
            except BaseException:  # of a handler: perhaps before this thread had its turn
                release_own(TURN_LOCK)
                raise
            TURN_LOCK.release()
            if not self.quiet:
                self.changed()

        def set(self, value: float) -> None:
            if not self.quiet:
                self.enqueue()
            try:
                TURN_LOCK.acquire()
                slot, flying = self._slot, self._flying
                if not self._is_set:
                    slot = slot % 3 + 1  # also the third one, while a batch is in flight
                self.memory[self.offset + slot] = value
                self.memory[self.offset] = 16 * slot + 8 + 2 * flying + self._was_set
                self._slot = slot
                self._is_set = 1
            except BaseException:
                release_own(TURN_LOCK)
                raise
            TURN_LOCK.release()
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

    def _operation(self, slot: int, is_set: int) -> Operation:
        return shared_gauge_operation(self.metric.family, self.values, is_set, self.memory[self.offset + slot])


class SharedGaugeState(NamedTuple):
    """The parts of the state of a `SharedGaugeCell`, which has a table of them."""

    slot: int
    is_set: int
    flying: int
    was_set: int

    @classmethod
    def parse(cls, number: float) -> SharedGaugeState:
        """Take a state apart. Raises ValueError for an impossible one."""
        state = int(number)
        parts = cls(state // 16, state // 8 % 2, state // 2 % 4, state % 2)
        if not 1 <= parts.slot <= 3 or parts.slot == parts.flying:
            raise ValueError(f"expected the state of a gauge, got {number}")
        return parts


def shared_gauge_operation(family: Family, values: tuple[str, ...], is_set: int, number: float) -> Operation:
    """The operation that sets a shared gauge with these label values to the number, or adds it."""
    return Operation(Kind.SET if is_set else Kind.ADD, f":{family.labels(values)}", number)


def unsent_shared_gauge(family: Family, values: tuple[str, ...], numbers: Sequence[float], in_flight: bool) -> Unsent:
    """The unsent part of the numbers of a `SharedGaugeCell`."""
    slot, is_set, flying, was_set = SharedGaugeState.parse(numbers[0])
    gathered = [shared_gauge_operation(family, values, is_set, numbers[slot])] if is_set or numbers[slot] else []
    if not flying:
        return Unsent([], gathered)
    drained = shared_gauge_operation(family, values, was_set, numbers[flying])
    if in_flight:
        return Unsent([drained], gathered)
    return Unsent([], gathered if is_set else [drained._replace(value=numbers[flying] + numbers[slot])])


class ProcessGaugeCell(NumericCell):
    """A gauge with a value for each process: the value of this one, and the time at which it was last set.

    The memory holds two pairs of value and time, and first the offset of the pair that counts. In live modes an unchanged
    value is sent only on each beat: requests in progress come and go.
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
        super().forget_stored()
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
        """The value, and the time at which it was set."""
        _ = TURN.alone
        value, set_at = self.memory[self.offset + self._slot], self.memory[self.offset + self._slot + 1]
        _ = TURN.together
        return value, set_at

    def add(self, amount: float) -> None:
        """Add to the value as `SumCell` does: only the modes that refuse this need the time at which it was set."""
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
        if self._stored == (value, set_at) and self.metric.family.live:
            return []
        self._drained = value, set_at
        return [process_gauge_operation(self.metric.family, self.values, self.sender.writer, value, set_at)]


def process_gauge_operation(family: Family, values: tuple[str, ...], writer: str, value: float, set_at: float) -> Operation:
    """The operation that replaces the value of one process in a gauge with these label values.

    A value that only grows and falls, such as requests in progress, was never set. In live modes the storage notes when it has
    got it: while that is new, the process is alive, and scrapes do not look at its mark.
    """
    field = family.process_prefix(writer) + family.labels(values)
    if set_at != NEVER:
        return Operation(Kind.STAMP, field, Stamped(value, set_at))
    is_noted = family.live and family.mode != "livemostrecent"
    return Operation(Kind.STAMP, field, Stamped.when_applied(value) if is_noted else Stamped(value, None))


def unsent_process_gauge(family: Family, values: tuple[str, ...], numbers: Sequence[float], writer: str) -> Unsent:
    """The unsent part of the numbers of a `ProcessGaugeCell`: the value, unless it ends with its process.

    It never counts as drained: replacing a value twice is replacing it once.
    """
    if family.live:
        return Unsent([], [])
    slot = int(numbers[0])
    return Unsent([], [process_gauge_operation(family, values, writer, numbers[slot], numbers[slot + 1])])


_CALLED: ContextVar[set[Cell] | None] = ContextVar("_CALLED", default=None)
"""The cells whose functions were called in this scrape."""


def in_one_scrape(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do the work. Each function of a gauge is called once at most meanwhile, also where such functions read metrics."""
    if _CALLED.get() is not None:
        return work(*args, **kwargs)

    def begin() -> T:
        _CALLED.set(set())
        return work(*args, **kwargs)

    return copy_context().run(begin)  # the context ends with the call, whatever raises


class CallbackGaugeCell(Cell):
    """A gauge whose value is a function. It is called on each flush and each scrape, and on each beat of the sender."""

    __slots__ = ("_function", "_value")

    is_callback = True

    def __init__(self, metric: MetricCells, values: tuple[str, ...], function: Callable[[], float]) -> None:
        self._function = function
        super().__init__(metric, values)
        metric.has_callbacks = True

    @property
    def quiet(self) -> bool:
        """Never: no update changes the cell."""
        return False

    @quiet.setter
    def quiet(self, _: object) -> None:
        """Do nothing."""

    def start_anew(self) -> None:
        self._value: float | None = None

    def reset(self) -> None:
        self.start_anew()

    def compute(self, *, unharmed: bool = False) -> None:
        """Call the function, unless this scrape has called it. Where it fails, the value stays, and the error is logged.

        The exceptions that a handler of a signal raises, and those that are no `Exception`, reach the caller unless that must
        stay `unharmed`.
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
        """Do nothing: only the function gives the value."""

    def set(self, value: float) -> None:
        """Do nothing: only the function gives the value."""

    def operations(self) -> list[Operation]:
        if self._value is None or not self.metric.is_last:
            return []
        if self.metric.family.mode == "shared":
            return [Operation(Kind.SET, f":{self.labels}", self._value)]
        field = self.metric.family.process_prefix(self.sender.writer) + self.labels
        return [Operation(Kind.STAMP, field, Stamped(self._value, time.monotonic()))]
