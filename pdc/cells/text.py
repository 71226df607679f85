"""The cell of an info or an enum."""

from __future__ import annotations

from collections.abc import Sequence

from ..storage import Kind, Operation
from .journaled import Journaled, JournaledOperation
from .metric import Cell, MetricCells
from .turn import TURN


class TextCell(Cell):
    """An info or an enum: the last text that was set, or the first one."""

    __slots__ = ("_drained", "_first", "_suffix", "_text")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], suffix: str, first: str) -> None:
        self._suffix = suffix
        self._first = first
        super().__init__(metric, values)

    def start_anew(self) -> None:
        self._text: JournaledOperation | None = None
        self._drained: JournaledOperation | None = None

    def reset(self) -> None:
        for operation in self.journaled():
            self.sender.unjournal(operation)
        self.start_anew()

    def journaled(self) -> Sequence[Journaled]:
        return [operation for operation in (self._drained, self._text) if operation is not None]

    def set(self, text: str) -> None:
        operation = JournaledOperation(self.metric.family, Operation(Kind.SET, f"{self._suffix}:{self.labels}", text))
        self.enqueue()
        _ = TURN.alone
        before, self._text = self._text, operation
        _ = TURN.together
        self.sender.journal(self)
        if before is not None:
            self.sender.unjournal(before)
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
            self.sender.unjournal(self._drained)
            self._drained = None
