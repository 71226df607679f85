"""The cell of a summary."""

from __future__ import annotations

from ..storage import Kind, Operation
from .numeric import SeriesSumCell


class SummaryCell(SeriesSumCell):
    """A summary: the sum of its observations, and their count."""

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
