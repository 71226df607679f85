"""Numbers that a journal can hold, and operations that a storage does once."""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as spell
from typing import Any, NamedTuple, Protocol

from ..family import Family
from ..storage import Operation
from .turn import TURN


class Journaled(Protocol):
    """Numbers that a journal can hold, so that another process can send them where this one is killed."""

    memory: memoryview[float]
    offset: int
    """The index in `memory` at which the numbers begin: 0 in memory of their own, more in a journal."""
    dropped: bool

    @property
    def size(self) -> int:
        """The count of the numbers."""

    @property
    def family(self) -> Family:
        """The family of the metric."""

    @property
    def key(self) -> str:
        """The name of the numbers within the family: the items of a list in JSON."""

    def move(self, memory: memoryview[float], offset: int) -> None:
        """Continue in this memory, where the numbers are 0 so far. Updates may go on meanwhile."""

    def detach(self) -> tuple[memoryview[float], int]:
        """Continue in memory of their own, without the numbers so far. Return the place, which the journal may use again."""


class Unsent(NamedTuple):
    """The operations of one entry of a journal that the storage may lack, since the process died that wrote it."""

    drained: list[Operation]
    """The operations of the batch in flight, which the storage may have."""
    gathered: list[Operation]
    """The later operations, which the storage cannot have."""


class JournaledOperation:
    """An operation that the storage does once; a journal holds it until then.

    Its one number is 1 once the operation is in a batch.
    """

    __slots__ = ("family", "memory", "offset", "operation")

    dropped = False
    size = 1

    def __init__(self, family: Family, operation: Operation) -> None:
        self.family = family
        self.operation = operation
        self.memory: Any = [0.0]  # a list is made sooner than the memory of `zeros`
        self.offset = 0

    @property
    def key(self) -> str:
        kind, field, value = self.operation
        spelled = spell(value) if isinstance(value, str) else repr(value)
        return '"' + kind + f'",{spell(field)},{spelled}'

    @property
    def is_drained(self) -> bool:
        """True once the operation is in a batch."""
        _ = TURN.alone
        drained = self.memory[self.offset]
        _ = TURN.together
        return bool(drained)

    def journaled(self) -> Sequence[Journaled]:
        """The operation itself."""
        return (self,)

    def drain(self) -> Operation:
        """Hand the operation over to a batch."""
        _ = TURN.alone
        self.memory[self.offset] = 1.0
        _ = TURN.together
        return self.operation

    def move(self, memory: memoryview[float], offset: int) -> None:
        _ = TURN.alone
        before = self.memory  # it lives until the stores are done, as in `NumericCell.move`
        memory[offset] = before[self.offset]
        self.memory = memory
        self.offset = offset
        _ = TURN.together

    def detach(self) -> tuple[memoryview[float], int]:
        place = self.memory, self.offset
        self.move(zeros(self.size), 0)
        return place


def zeros(count: int) -> memoryview[float]:
    """So many numbers, all 0, in memory of their own."""
    return memoryview(bytearray(8 * count)).cast("d")
