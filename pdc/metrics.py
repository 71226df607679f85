"""The metric classes: prometheus_client's, with their values in the storage that `setup` chose."""

from __future__ import annotations

import inspect
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.validation import _validate_exemplar

from . import config
from .cells import (
    FREE_THREADED,
    TURN_LOCK,
    CallbackGaugeCell,
    Cell,
    CounterCell,
    HistogramCell,
    Holder,
    MetricCells,
    ProcessGaugeCell,
    SharedGaugeCell,
    SummaryCell,
    TextCell,
)
from .delivery import Buffer
from .family import OVERFLOW, Family, bucket_bounds, check_unit, clean, dump, exemplar_text, text
from .forks import FORKS
from .interruption import locked, release_own
from .storage import Kind

MetricT = TypeVar("MetricT", bound="StoredMetric")

_PARENTS_OWN = frozenset(
    {"_arguments", "_cells", "_kwargs", "_lock", "_metrics", "_namespace", "_original_name", "_own", "_subsystem"}
)
"""Attributes that only serve to make children."""


Mode = Literal["shared", "all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum", "mostrecent", "livemostrecent"]
"""How the values of several processes make one; see `Gauge`."""


class _Signature:
    """The signature of a metric class: that of its constructor, or of prometheus_client's, which ours takes after."""

    def __get__(self, metric: object, cls: Any) -> inspect.Signature:
        constructor, own = cls.__init__, []
        if constructor is StoredMetric.__init__:
            known = inspect.signature(constructor, eval_str=True).parameters.values()
            own = [each for each in known if each.kind is each.KEYWORD_ONLY]
            constructor = next(base.__init__ for base in cls.__mro__ if not issubclass(base, StoredMetric))
        signature = inspect.signature(constructor, eval_str=constructor in _OUR_CONSTRUCTORS)
        public = [each for name, each in signature.parameters.items() if name != "self" and not name.startswith("_")]
        return signature.replace(parameters=[*public, *own], return_annotation=signature.empty)


class StoredMetric(MetricWrapperBase):
    """What the metric classes share: a cell per series instead of a value, and samples read from the storage."""

    buffer: ClassVar[Buffer] = config.DEFAULT
    _holder: Holder
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    """Of the constructor of a subclass, which makes children, too, as in prometheus_client."""
    _parent: StoredMetric | None = None
    """Of a child that the constructor of a subclass is making."""
    _metrics: Any = MappingProxyType({})  # the children; only a parent has some
    _cell: Any

    if not TYPE_CHECKING:  # type checkers see the signatures of prometheus_client
        __signature__ = _Signature()

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Note the arguments of a subclass's constructor."""
            metric = super().__new__(cls)
            if cls.__init__ not in _OUR_CONSTRUCTORS:
                metric._arguments = args, kwargs
            return metric

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
            *args: Any,
            max_series: float | None = None,
            expire_series: float | None = None,
            **options: Any,
        ) -> None:
            limits = config.series_limits(max_series, expire_series)
            self.__dict__ = {**self.__dict__}  # not split, or every child has room for the attributes that only a parent has
            name, namespace, subsystem, unit = [
                text(about, value) if value else ""
                for about, value in (("name", name), ("namespace", namespace), ("subsystem", subsystem), ("unit", unit))
            ]
            documentation = text("documentation", documentation)
            check_unit(unit)
            labelnames = tuple([text("each label name", each) for each in labelnames])
            if "" in labelnames:
                raise ValueError(f"each label name must have a letter at least, got {labelnames}")
            parent = self.__dict__.pop("_parent", None)
            values = _labelvalues if parent is None else self._labelvalues
            super().__init__(name, documentation, labelnames, namespace, subsystem, unit, None, values, *args, **options)
            if parent is None:
                self._declare(registry, limits)
            else:
                self._holder = parent._holder
                self._cell = self._new_cell(self._labelvalues)

    else:

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
            *,
            max_series: float | None = None,
            expire_series: float | None = None,
        ) -> None: ...

    def _declare(self, registry: CollectorRegistry | None, limits: Mapping[str, float | None]) -> None:
        """Let the registry and the storage have the metric; where that raises, neither has it."""
        metric_cells = MetricCells(self.buffer, self._family(), limits)
        self._holder = Holder(metric_cells)
        self._cell = _NoCell(self) if self._labelnames else metric_cells.add(self._new_cell(()))
        if registry:
            registry.register(self)
        try:
            self.buffer.register(metric_cells)
            self.buffer.declare(metric_cells if self._labelnames else self._cell)
        except BaseException:
            if registry:
                registry.unregister(self)
            raise

    @property
    def _metric_cells(self) -> MetricCells:
        return self._holder.metric

    def _metric_init(self) -> None:
        """Do nothing: `_declare` makes the cell."""

    def _new_cell(self, values: tuple[str, ...]) -> Cell:
        raise NotImplementedError

    def _family(self) -> Family:
        return Family(self._name, str(self._type), self._documentation, self._unit, self._labelnames)

    def labels(self: MetricT, *labelvalues: object, **labelkwargs: object) -> MetricT:
        """Return the child for these label values, which the storage shows from now on.

        A metric with `max_series` has a child for all that are over the limit. With `expire_series` the storage forgets a
        child that is not updated for so many seconds; it starts anew with its next update. Raises ValueError where the labels
        are not those of the metric.
        """
        values: Any = self._values_by_name(labelvalues, labelkwargs) if labelkwargs else labelvalues
        for value in values:
            if type(value) is not str:  # subclasses may have another `str()`
                values = tuple(map(str, values))
                break
        child: MetricT | None = self._metrics.get(values)
        return self._child(values) if child is None else child

    def bounded(self: MetricT, *labelvalues: str) -> tuple[MetricT, bool]:
        """Return the child for these label values, and whether it is theirs alone.

        It is not for series over `max_series`, which share one child: callers that keep children must not keep that one for
        each of their values.
        """
        child = self.labels(*labelvalues)
        return child, child._labelvalues == labelvalues

    def _values_by_name(self, labelvalues: tuple[object, ...], labelkwargs: dict[str, object]) -> tuple[object, ...]:
        if labelvalues:
            raise ValueError("Can't pass both *args and **kwargs")
        if self._labelnames and labelkwargs.keys() != set(self._labelnames):
            raise ValueError(f"Incorrect label names: {self} has {self._labelnames}, got {tuple(labelkwargs)}")
        return tuple([labelkwargs[name] for name in self._labelnames])

    def _child(self: MetricT, values: tuple[str, ...]) -> MetricT:
        if self._labelvalues:
            labels = dict(zip(self._labelnames, self._labelvalues, strict=True))
            raise ValueError(f"{self} already has labels set ({labels}); can not chain calls to .labels()")
        self._check_label_count(values)
        values = tuple(map(clean, values))
        if self._is_full() and values not in self._metrics:
            self.buffer.overflowed(self._name)
            values = (OVERFLOW,) * len(values)
        known: MetricT | None = self._metrics.get(values)
        if known is not None:
            return known
        new = self._new_child(values)
        self._metric_cells.add(new._cell)
        child: MetricT = self._metrics.setdefault(values, new)
        if child is not new:  # another thread was faster
            self._metric_cells.cells.pop(new._cell, None)
        self.buffer.declare(child._cell)
        return child

    def _is_full(self) -> bool:
        """Whether this process has as many series of the metric as the storage may have, without the one for the others."""
        most = self._metric_cells.family.max_series
        return 0 < most <= len(self._metrics) - ((OVERFLOW,) * len(self._labelnames) in self._metrics)

    def _new_child(self: MetricT, values: tuple[str, ...]) -> MetricT:
        child = object.__new__(type(self))
        if "_arguments" in self.__dict__:
            args, kwargs = self._arguments
            child._parent, child._labelvalues = self, values
            type(self).__init__(child, *args, **kwargs)
            return child
        for name, value in list(self.__dict__.items()):
            if name not in _PARENTS_OWN:
                setattr(child, name, value)  # one by one, since a `__dict__` that was asked for takes more room
        child._labelvalues = values
        child._cell = child._new_cell(values)
        return child

    def _check_label_count(self, values: Sequence[object]) -> None:
        if not self._labelnames:
            raise ValueError(f"No label names were set when constructing {self}")
        if len(values) != len(self._labelnames):
            raise ValueError(f"Incorrect label count: {self} has {self._labelnames}, got {values}")

    def remove(self, *labelvalues: Any) -> None:
        """Remove the series with these label values, for every process; its next update starts it again at 0.

        Raises ValueError where the labels are not those of the metric.
        """
        if not 0 < len(self._labelnames) == len(labelvalues):
            self._check_label_count(labelvalues)
        values: tuple[str, ...] = labelvalues
        for value in labelvalues:
            if type(value) is not str:  # subclasses may have another `str()`
                values = tuple(map(str, labelvalues))
                break
        child, metric_cells = self._metrics.pop(values, None), self._holder.metric
        if child is None:  # or the values are clean, as those of all children are
            values = tuple(map(clean, values))
            child = self._metrics.pop(values, None)
        metric_cells.remove(Kind.REMOVE, metric_cells.family.labels(values), () if child is None else child._series_cells())

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove all series with these values of some labels, for every process; none for an empty dict.

        Raises TypeError for anything but a dict, and ValueError for labels that the metric does not have.
        """
        self._check_label_count(self._labelnames)
        if not isinstance(labels, dict):
            raise TypeError(f"labels must be a dict of label names and values, got {labels!r}")
        if unknown := [name for name in labels if name not in self._labelnames]:
            raise ValueError(f"Unknown label names {unknown}: {self} has {self._labelnames}")
        if labels:
            wanted = {name: clean(str(value)) for name, value in labels.items()}
            places = [self._labelnames.index(name) for name in wanted]
            chosen, found = itemgetter(*places), itemgetter(*range(len(places)))(tuple(wanted.values()))
            doomed = [values for values in list(self._metrics) if chosen(values) == found]
            self._metric_cells.remove(Kind.DELETE, dump(wanted), self._dropped(doomed))

    def clear(self) -> None:
        """Remove all series of a metric with labels, for every process."""
        if self._labelnames and not self._labelvalues:
            self._metric_cells.remove(Kind.DELETE, "{}", self._dropped(list(self._metrics)))

    def _dropped(self, doomed: Collection[tuple[str, ...]]) -> list[Cell]:
        """Take the children with these label values out, and return their cells."""
        removed = [self._metrics.pop(values, None) for values in doomed if values in self._metrics]
        return [cell for child in removed if child is not None for cell in child._series_cells()]

    def _series_cells(self) -> Iterator[Cell]:
        """The cells of the series."""
        return iter((self._cell,))

    def collect(self) -> Iterable[Metric]:
        """Read the metric from the storage, with what this process has pending.

        A child gives its own samples, without its labels. Raises NotConfigured and StorageError.
        """
        snapshot = config.read(self.buffer, [self._name])
        metric = self._metric_cells.family.metric(snapshot.metrics.get(self._name, {}), snapshot.now)
        if self._labelvalues:
            own = dict(zip(self._labelnames, self._labelvalues, strict=True))
            metric.samples = [_without(own, sample) for sample in metric.samples if own.items() <= sample.labels.items()]
        return [metric]


class _NoCell:
    """In place of the cell of a metric with labels, of which only the children have one: using it is a ValueError.

    A `__getattr__` of the metrics could say the same, but would slow down every access to their attributes.
    """

    def __init__(self, metric: StoredMetric) -> None:
        name = f"{metric._type} metric {metric._name}"
        self.__dict__["error"] = f"{name} is missing label values: call labels() for {metric._labelnames}"

    def __getattr__(self, name: str) -> Any:
        raise ValueError(self.error)

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError(self.error)


class SummedMetric(StoredMetric):
    """A metric of which updates only ever add. Without the GIL, each thread that updates a series has a cell of its own."""

    if FREE_THREADED and not TYPE_CHECKING:

        @property
        def _cell(self) -> Any:
            """The cell of this thread."""
            try:
                return self._own.cell
            except AttributeError:
                return self._cell_of_thread()

        @_cell.setter
        def _cell(self, cell: Any) -> None:
            """Begin with one cell, which is this thread's."""
            self._cells = {get_ident(): cell}
            own = threading.local()
            own.cell = cell
            self._own = own

        def _cell_of_thread(self) -> Any:
            """The cell of a thread which has none yet: that of a thread that was, or a new one."""
            own, cells = self._own, self._cells
            first = next(iter(list(cells.values())))
            if isinstance(first, _NoCell):
                return first
            cell = cells.get(get_ident())
            if cell is None:
                new = self._new_cell(first.values)
                new.created = first.created
                cell = cells.setdefault(get_ident(), new)
                if cell is new:
                    self._metric_cells.add(cell)
                if first.dropped:
                    self._metric_cells.drop([cell])
                else:
                    self.buffer.journal(cell)
            cell.thread = get_ident()
            own.cell = cell
            return cell

        def _series_cells(self) -> Iterator[Cell]:
            return _each(self._cells)


def _each(cells: Mapping[int, Cell]) -> Iterator[Cell]:
    """The first, then all of these: who drops the first one finds whatever was added before that."""
    yield next(iter(list(cells.values())))
    yield from list(cells.values())


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
    """A histogram of `prometheus_client.Histogram`, shared by every process."""

    _cell: HistogramCell

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
            buckets: Sequence[float | str] = prometheus_client.Histogram.DEFAULT_BUCKETS,
            *,
            max_series: float | None = None,
            expire_series: float | None = None,
        ) -> None: ...

    def _family(self) -> Family:
        if any(bound != bound for bound in self._upper_bounds):
            raise ValueError(f"each bucket must be a number, got {self._upper_bounds}")
        return super()._family()._replace(bounds=bucket_bounds(self._upper_bounds))

    def _new_cell(self, values: tuple[str, ...]) -> HistogramCell:
        return HistogramCell(self._metric_cells, values, tuple(self._upper_bounds))

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe `amount`, and keep the exemplar of its bucket where there is one.

        Raises ValueError for a wrong exemplar, before anything is counted.
        """
        cell = self._cell
        number = amount + 0.0
        bucket = bisect_left(cell.bounds, number)
        if exemplar and number == number:
            FORKS.notice()
            cell.set_exemplar(bucket, _exemplar(exemplar, amount))
        if cell.quiet:
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            if number == number:  # a NaN is in no bucket, as in prometheus_client
                memory[offset + bucket + 1] += 1.0
        else:
            cell.enqueue()
            memory, offset = cell.memory, cell.offset
            memory[offset] += number
            if number == number:
                memory[offset + bucket + 1] += 1.0
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
            bucket = bisect_left(cell.bounds, number)
            if exemplar and number == number:
                FORKS.notice()
                cell.set_exemplar(bucket, _exemplar(exemplar, amount))
            if not cell.quiet:
                cell.enqueue()
            totals = cell.totals
            totals[0] += number
            if number == number:
                totals[bucket + 1] += 1.0
            memory, offset = cell.memory, cell.offset
            memory[offset] = totals[0]
            if number == number:
                memory[offset + bucket + 1] = totals[bucket + 1]
            if not cell.quiet:
                cell.changed()


class Info(StoredMetric, prometheus_client.Info):
    """An info metric of `prometheus_client.Info`: what a process sets last is what all show."""

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
    """An enum metric of `prometheus_client.Enum`: the state that a process sets last is what all show."""

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


_OUR_CONSTRUCTORS = (StoredMetric.__init__, Gauge.__init__)


def _exemplar(labels: dict[str, str], amount: float) -> str:
    _validate_exemplar(labels)
    return exemplar_text({name: clean(value) for name, value in labels.items()}, float(amount), time.time())


def _without(labels: Mapping[str, str], sample: Sample) -> Sample:
    return sample._replace(labels={name: value for name, value in sample.labels.items() if name not in labels})
