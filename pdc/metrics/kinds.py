"""The metric classes, one for each of prometheus_client's."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import prometheus_client
from prometheus_client.registry import REGISTRY, CollectorRegistry
from prometheus_client.validation import _validate_exemplar

from ..cells import (
    FREE_THREADED,
    TURN_LOCK,
    CallbackGaugeCell,
    Cell,
    CounterCell,
    HistogramCell,
    ProcessGaugeCell,
    SharedGaugeCell,
    SummaryCell,
    TextCell,
)
from ..exemplars import exemplar_text
from ..family import Family, bucket_bounds, clean, dump, text
from ..native import Native
from ..process.forks import FORKS
from ..process.interruption import locked, release_own
from .stored import OUR_CONSTRUCTORS, StoredMetric, SummedMetric

Mode = Literal["shared", "all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum", "mostrecent", "livemostrecent"]
"""The ways in which the values of several processes make one; see `Gauge`."""


class Counter(SummedMetric, prometheus_client.Counter):
    """A counter of `prometheus_client.Counter`, shared by every process."""

    _cell: CounterCell

    def _new_cell(self, values: tuple[str, ...]) -> CounterCell:
        return CounterCell(self._metric_cells, values)

    def inc(self, amount: float = 1.0, exemplar: dict[str, str] | None = None) -> None:
        """Add `amount`, and keep the exemplar where there is one.

        Raises ValueError for a negative amount or a wrong exemplar, before anything is counted.
        """
        if amount < 0:
            raise ValueError(f"Counters can only be incremented by non-negative amounts, got {amount!r}.")
        cell = self._cell
        number = amount + 0.0  # a float, by whatever rules the type of the amount has
        if exemplar:
            FORKS.notice()
            cell.set_exemplar(_exemplar(exemplar, amount))
        if cell.quiet:
            cell.memory[cell.offset] += number
        else:
            cell.enqueue()
            cell.memory[cell.offset] += number
            cell.changed()

    if FREE_THREADED and not TYPE_CHECKING:

        def inc(self, amount: float = 1.0, exemplar: dict[str, str] | None = None) -> None:
            """Add `amount`, and keep the exemplar where there is one.

            Raises ValueError for a negative amount or a wrong exemplar, before anything is counted.
            """
            if amount < 0:
                raise ValueError(f"Counters can only be incremented by non-negative amounts, got {amount!r}.")
            try:
                cell = self._own.cell
            except AttributeError:
                cell = self._cell_of_thread()
            number = amount + 0.0  # a float, by whatever rules the type of the amount has
            if exemplar:
                FORKS.notice()
                cell.set_exemplar(_exemplar(exemplar, amount))
            if not cell.quiet:
                cell.enqueue()
            cell.total = total = cell.total + number
            cell.memory[cell.offset] = total
            if not cell.quiet:
                cell.changed()

    def reset(self) -> None:
        """Set the counter to zero for every process, created now."""
        if self._cell.dropped:
            return
        new = self._metric_cells.add(self._cell.reset_now())
        self._metric_cells.drop(locked(self._metric_cells.lock, self._exchange, new))
        new.changed()

    def _exchange(self, new: CounterCell) -> Iterator[Cell]:
        """Go on with that cell, and return those before it."""
        before, self._cell = self._series_cells(), new
        return before


class Gauge(StoredMetric, prometheus_client.Gauge):
    """A gauge of `prometheus_client.Gauge`.

    With the `multiprocess_mode` ``shared``, the default, it has one value for all processes: the last `set` wins,
    `inc` and `dec` add up. In the other modes, those of prometheus_client, every process has a value of its own. The live
    ones count processes that live. Of the rest, ``sum``, ``min``, ``max`` and ``mostrecent`` count dead ones for ever;
    ``all`` shows a dead one for a day.
    """

    _MULTIPROC_MODES = prometheus_client.Gauge._MULTIPROC_MODES | {"shared"}
    _cell: SharedGaugeCell | ProcessGaugeCell | CallbackGaugeCell

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: CollectorRegistry | None = REGISTRY,
        _labelvalues: Sequence[str] | None = None,
        multiprocess_mode: Mode = "shared",
        *,
        max_series: float | None = None,
        expire_series: float | None = None,
    ) -> None:
        arguments: Any = name, documentation, labelnames, namespace, subsystem, unit, registry, _labelvalues, multiprocess_mode
        super().__init__(*arguments, max_series=max_series, expire_series=expire_series)

    def _family(self) -> Family:
        mode = text("multiprocess_mode", self._multiprocess_mode)
        return super()._family()._replace(mode=mode)

    def _new_cell(self, values: tuple[str, ...]) -> SharedGaugeCell | ProcessGaugeCell:
        return (SharedGaugeCell if self._metric_cells.family.mode == "shared" else ProcessGaugeCell)(self._metric_cells, values)

    def inc(self, amount: float = 1) -> None:
        """Add `amount`. Raises RuntimeError in the modes ``mostrecent`` and ``livemostrecent``."""
        if self._is_most_recent:
            raise RuntimeError("inc must not be used with the mostrecent mode")
        self._cell.add(amount)

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount`. Raises RuntimeError in the modes ``mostrecent`` and ``livemostrecent``."""
        if self._is_most_recent:
            raise RuntimeError("dec must not be used with the mostrecent mode")
        self._cell.add(-amount)

    def set(self, value: float) -> None:
        """Set the gauge to `value`."""
        self._cell.set(float(value))

    if FREE_THREADED and not TYPE_CHECKING:

        def inc(self, amount: float = 1) -> None:
            """Add `amount`. Raises RuntimeError in the modes ``mostrecent`` and ``livemostrecent``."""
            if self._is_most_recent:
                raise RuntimeError("inc must not be used with the mostrecent mode")
            cell = self._cell
            number = amount - 0.0
            if not cell.quiet:
                if type(cell) is CallbackGaugeCell:
                    return
                cell.enqueue()
            turn = TURN_LOCK  # calls of imported names are slower
            try:
                turn.acquire()
                cell.memory[cell.offset + cell._slot] += number
            except BaseException:  # of a handler: perhaps before this thread had its turn
                release_own(turn)
                raise
            turn.release()
            if not cell.quiet:
                cell.changed()

        def set(self, value: float) -> None:
            """Set the gauge to `value`."""
            self._cell.set(value if type(value) is float else float(value))

    def adder(self) -> Callable[[float], None]:
        """Return a function that adds to the gauge as `inc` does, for callers that do so all the time.

        It is of use until `set_function` is called, and in all modes but ``mostrecent`` and ``livemostrecent``.
        """
        return self._cell.add

    def set_function(self, f: Callable[[], float]) -> None:
        """Take the value from `f`, which a background thread may call; the other methods then do nothing.

        It is called once per scrape, and may read and update any metric. Where it raises, the value stays as it was and the
        error is logged. Of two gauges of one name, only the function of the one that was declared last is called.
        """
        before, self._cell = self._cell, self._metric_cells.add(CallbackGaugeCell(self._metric_cells, self._cell.values, f))
        self._metric_cells.drop([before])
        self._cell.compute()
        self.buffer.send(self._cell)


class Summary(SummedMetric, prometheus_client.Summary):
    """A summary of `prometheus_client.Summary`, shared by every process."""

    _cell: SummaryCell

    def _new_cell(self, values: tuple[str, ...]) -> SummaryCell:
        return SummaryCell(self._metric_cells, values)

    def observe(self, amount: float) -> None:
        """Observe `amount`."""
        cell = self._cell
        number = amount + 0.0
        if cell.quiet:
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            memory[offset + 1] += 1.0
        else:
            cell.enqueue()
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            memory[offset + 1] += 1.0
            cell.changed()

    if FREE_THREADED and not TYPE_CHECKING:

        def observe(self, amount: float) -> None:
            """Observe `amount`."""
            try:
                cell = self._own.cell
            except AttributeError:
                cell = self._cell_of_thread()
            number = amount + 0.0
            if not cell.quiet:
                cell.enqueue()
            totals = cell.totals
            totals[0] += number
            totals[1] += 1.0
            memory, offset = cell.memory, cell.offset
            memory[offset] = totals[0]
            memory[offset + 1] = totals[1]
            if not cell.quiet:
                cell.changed()


class Histogram(SummedMetric, prometheus_client.Histogram):
    """A histogram of `prometheus_client.Histogram`, shared by every process.

    With ``native=True``, or a `Native` for another resolution, it also has the buckets of a native histogram, which nobody
    has to choose; with ``buckets=()`` it has no others. Pages in protobuf show both kinds. Pages of text show a histogram
    without others by its counts up to powers of two.
    """

    _cell: HistogramCell
    _native: Native | None = None

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: CollectorRegistry | None = REGISTRY,
        _labelvalues: Sequence[str] | None = None,
        buckets: Sequence[float | str] = prometheus_client.Histogram.DEFAULT_BUCKETS,
        *,
        native: bool | Native = False,
        max_series: float | None = None,
        expire_series: float | None = None,
    ) -> None:
        if not isinstance(native, (bool, Native)):
            raise TypeError(f"native must be True, False or a pdc.Native, got {native!r}")
        resolution = native if isinstance(native, Native) else Native()
        self._native = Native(*resolution) if native else None  # checked again: `_replace` checks nothing
        arguments: Any = name, documentation, labelnames, namespace, subsystem, unit, registry, _labelvalues, buckets
        super().__init__(*arguments, max_series=max_series, expire_series=expire_series)

    def _prepare_buckets(self, source_buckets: Sequence[float | str]) -> None:
        if self._native is None or len(source_buckets):
            super()._prepare_buckets(source_buckets)
        else:
            self._upper_bounds = []

    def _family(self) -> Family:
        if any(bound != bound for bound in self._upper_bounds):
            raise ValueError(f"each bucket must be a number, got {self._upper_bounds}")
        native = () if self._native is None else tuple(self._native)
        return super()._family()._replace(bounds=bucket_bounds(self._upper_bounds or [math.inf]), native=native)

    def _new_cell(self, values: tuple[str, ...]) -> HistogramCell:
        return HistogramCell(self._metric_cells, values)

    def _series_cells(self) -> Iterator[HistogramCell]:
        cells: Iterator[Any] = super()._series_cells()
        for cell in cells:
            yield cell
            yield from cell.successors()  # after the cell was dropped: an update that adds one looks at that then

    def _widened(self, cell: HistogramCell, number: float) -> tuple[HistogramCell, int]:
        """The cell that counts a number for which this one has no place, and the place; without one, the NaN counts as sum."""
        FORKS.notice()
        number = float(number)  # one of numpy, such as a float32, may equal bounds that are next to it
        place = cell.buckets.place_of(number)
        while not place and number == number:
            before, cell = cell, cell.begin_successor(number)
            if before.dropped:
                self._metric_cells.drop([cell])
            place = cell.buckets.place_of(number)
            self._go_on_with(cell)
        return cell, place

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe `amount`, and keep the exemplar of its bucket where there is one.

        Raises ValueError for a wrong exemplar, before anything is counted.
        """
        cell = self._cell
        number = amount + 0.0
        place = cell.places[bisect_left(cell.bounds, number)]
        if not place:  # also for a NaN, for which `bisect_left` finds 0
            cell, place = self._widened(cell, number)
        if exemplar and number == number:
            FORKS.notice()
            cell.set_exemplar(place, _exemplar(exemplar, amount))
        if cell.quiet:
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            memory[offset + place] += 1.0  # of a NaN in classic buckets only: the sum, which is a NaN and stays one
        else:
            cell.enqueue()
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            memory[offset + place] += 1.0
            cell.changed()

    if FREE_THREADED and not TYPE_CHECKING:

        def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
            """Observe `amount`, and keep the exemplar of its bucket where there is one.

            Raises ValueError for a wrong exemplar, before anything is counted.
            """
            try:
                cell = self._own.cell
            except AttributeError:
                cell = self._cell_of_thread()
            number = amount + 0.0
            place = cell.places[bisect_left(cell.bounds, number)]
            if not place:
                cell, place = self._widened(cell, number)
            if exemplar and number == number:
                FORKS.notice()
                cell.set_exemplar(place, _exemplar(exemplar, amount))
            if not cell.quiet:
                cell.enqueue()
            totals = cell.totals
            totals[0] += number
            totals[place] += 1.0
            memory, offset = cell.memory, cell.offset
            memory[offset] = totals[0]
            memory[offset + place] = totals[place]
            if not cell.quiet:
                cell.changed()

    def finisher(self, counter: Counter) -> Callable[[float, Any], None]:
        """Return a function that does `observe` of a float that is no NaN, `counter.inc()`, and `add(-1.0)` of a `Gauge.adder`.

        It is for callers that do these all the time. The adder is that of the start: the gauge may have another by the end.
        """

        def finish(amount: float, add: Any) -> None:
            level, counted, observed = add.__self__, counter._cell, self._cell
            place = observed.places[bisect_left(observed.bounds, amount)]
            if place and level.quiet and counted.quiet and observed.quiet and not FREE_THREADED:
                level.memory[level.offset + level._slot] -= 1.0
                counted.memory[counted.offset] += 1.0
                memory, offset = observed.memory, observed.offset
                memory[offset] += amount
                memory[offset + place] += 1.0
            else:
                add(-1.0)
                counter.inc()
                self.observe(amount)

        return finish


class Info(StoredMetric, prometheus_client.Info):
    """An info metric of `prometheus_client.Info`: all processes show the pairs that were set last."""

    _cell: TextCell

    def _new_cell(self, values: tuple[str, ...]) -> TextCell:
        return TextCell(self._metric_cells, values, "_info", "{}")

    def info(self, val: dict[str, str]) -> None:
        """Set the key-value pairs. Raises ValueError for a key that is a label or empty, and for None as a value."""
        if overlapping := set(self._labelnames).intersection(val):
            raise ValueError(f"Overlapping labels for Info metric {self._name}: {sorted(overlapping)}")
        if nones := [key for key, value in val.items() if value is None]:
            raise ValueError(f"Label value cannot be None: {nones} of Info metric {self._name}")
        if "" in val:
            raise ValueError(f"each key of Info metric {self._name} must have a letter at least, got {list(val)}")
        self._cell.set(dump({clean(key): clean(str(value)) for key, value in val.items()}))


class Enum(StoredMetric, prometheus_client.Enum):
    """An enum metric of `prometheus_client.Enum`: all processes show the state that was set last."""

    _cell: TextCell

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            documentation: str,
            labelnames: Iterable[str] = (),
            namespace: str = "",
            subsystem: str = "",
            unit: str = "",
            registry: CollectorRegistry | None = REGISTRY,
            _labelvalues: Sequence[str] | None = None,
            states: Sequence[str] | None = None,
            *,
            max_series: float | None = None,
            expire_series: float | None = None,
        ) -> None: ...

    def _family(self) -> Family:
        self._states = tuple(dict.fromkeys([text("each state", state) for state in self._states]))
        if self._name in self._labelnames:
            raise ValueError(f"Overlapping labels for Enum metric: {self._name} is one of {self._labelnames}")
        return super()._family()._replace(states=self._states)

    def _new_cell(self, values: tuple[str, ...]) -> TextCell:
        return TextCell(self._metric_cells, values, "", self._states[0])

    def state(self, state: str) -> None:
        """Set the state. Raises ValueError for one that the metric does not have."""
        chosen = clean(state) if isinstance(state, str) else state
        if chosen not in self._states:
            raise ValueError(f"{state!r} is not a state of {self._name}: expected one of {list(self._states)}")
        self._cell.set(str(self._states[self._states.index(chosen)]))


OUR_CONSTRUCTORS.update({Gauge.__init__, Histogram.__init__})


def _exemplar(labels: dict[str, str], amount: float) -> str:
    _validate_exemplar(labels)
    return exemplar_text({name: clean(value) for name, value in labels.items()}, float(amount), time.time())
