"""The metric classes of other packages: ours, with the attributes by which methods of prometheus_client reach their values.

Such a method runs where a subclass calls it by its name (``Counter.inc(self)``), or somebody kept it before `install`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from .kinds import Counter, Gauge, Histogram, Mode, Summary
from .stored import OUR_CONSTRUCTORS


class Number:
    """A number of a series in the form of prometheus_client's values: that of its cell with this index."""

    def __init__(self, metric: Any, index: int = 0) -> None:
        self._metric = metric
        self._index = index

    def inc(self, amount: float) -> None:
        """Add to the number."""
        cell = self._metric._cell
        cell.enqueue()
        cell.add(self._index, amount + 0.0)
        cell.changed()

    def set(self, value: float) -> None:
        """Set the number of all processes."""
        self.inc(value - self.get())

    def set_exemplar(self, exemplar: object) -> None:
        """Keep no exemplar: only our methods do."""

    def get(self) -> float:
        """Read the number of all processes. Raises NotConfigured and StorageError."""
        (family,) = self._metric.collect()
        found: dict[str, list[float]] = {}
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix(family.name), []).append(sample.value)
        if self._metric._type == "histogram":
            buckets = [later - earlier for earlier, later in pairwise([0.0, *found.get("_bucket", [])])]
            return [*found.get("_sum", [0.0]), *buckets][self._index]
        suffixes = {"counter": ["_total"], "summary": ["_sum", "_count"], "gauge": [""]}
        return sum(found.get(suffixes[self._metric._type][self._index], []))


class GaugeNumber(Number):
    """The same for a gauge."""

    def inc(self, amount: float) -> None:
        """Add to the gauge."""
        self._metric._cell.add(amount)

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - the cell takes the time itself
        """Set the gauge."""
        self._metric._cell.set(value)


class InstalledCounter(Counter):
    """A counter of another package."""

    _value = property(Number)


class InstalledGauge(Gauge):
    """A gauge of another package. Where it names no mode, it has that of `install`."""

    mode: ClassVar[Mode] = "shared"
    _value = property(GaugeNumber)

    def __init__(self, *args: Any, **options: Any) -> None:
        if len(args) <= _PLACE_OF_MODE:
            options.setdefault("multiprocess_mode", self.mode)
        super().__init__(*args, **options)


class InstalledSummary(Summary):
    """A summary of another package."""

    _sum = property(Number)
    _count = property(lambda self: Number(self, 1))


class InstalledHistogram(Histogram):
    """A histogram of another package."""

    _sum = property(Number)
    _buckets = property(lambda self: [Number(self, index + 1) for index in range(len(self._upper_bounds))])


_PLACE_OF_MODE = 8
"""The index of `multiprocess_mode` among the arguments of a gauge."""
OUR_CONSTRUCTORS.add(InstalledGauge.__init__)
