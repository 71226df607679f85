"""The cell of a summary."""

from __future__ import annotations

from collections.abc import Sequence

from ..family import Family
from ..storage import Kind, Operation
from .metric import creation
from .numeric import SeriesSumCell


class SummaryCell(SeriesSumCell):
    """A summary: the sum of its observations, and their count."""

    __slots__ = ()

    width = 2

    def additions(self, gained: list[float]) -> list[Operation]:
        return summary_additions(self.metric.family, self.values, gained, self.created)


def summary_additions(
    family: Family, values: tuple[str, ...], gained: Sequence[float], created: float | None
) -> list[Operation]:
    """The operations that add the gains of sum and count to the series of a summary with these label values."""
    total, count = gained
    kind, labels = Kind.ADD if count or total else Kind.INIT, family.labels(values)
    return [
        Operation(kind, f"_count:{labels}", count + 0.0),
        Operation(kind, f"_sum:{labels}", total + 0.0),
        *creation(labels, created),
    ]
