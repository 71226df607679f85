"""The cell of a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..family import EXEMPLAR, Family, labels_with
from ..storage import Kind, Operation
from .metric import MetricCells, creation
from .numeric import SeriesSumCell
from .turn import TURN


class HistogramCell(SeriesSumCell):
    """A histogram: the sum of its observations, and the count of each bucket, not cumulated."""

    __slots__ = ("_drained_exemplars", "bounds", "exemplars", "width")

    def __init__(self, metric: MetricCells, values: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.width = 1 + len(bounds)
        super().__init__(metric, values)

    def start_anew(self) -> None:
        super().start_anew()
        self.exemplars: dict[int, str] = {}
        """Exemplars by the index of their bucket."""
        self._drained_exemplars: dict[int, str] | None = None

    def set_exemplar(self, bucket: int, exemplar: str) -> None:
        """Send the exemplar of that bucket with the next observation in it."""
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
        return histogram_additions(self.metric.family, self.values, gained, self.created, self._drained_exemplars or {})


def histogram_additions(
    family: Family,
    values: tuple[str, ...],
    gained: Sequence[float],
    created: float | None,
    exemplars: Mapping[int, str] = MappingProxyType({}),
) -> list[Operation]:
    """The operations that add the gains of sum and buckets to the series of a histogram with these label values."""
    total, *observed = gained
    labels = family.labels(values)
    operations = [Operation(Kind.ADD if total else Kind.INIT, f"_sum:{labels}", total + 0.0), *creation(labels, created)]
    for bucket, count in enumerate(observed):
        if count:
            field = "_bucket:" + labels_with(labels, "le", family.bounds[bucket])
            operations.append(Operation(Kind.ADD, field, count))
            if bucket in exemplars:
                operations.append(Operation(Kind.SET, EXEMPLAR + field, exemplars[bucket]))
    return operations
