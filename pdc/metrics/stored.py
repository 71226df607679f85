"""The base of the metric classes: prometheus_client's class, with a cell per series and samples from the storage."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import _lru_cache_wrapper, wraps
from operator import itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, CollectorRegistry
from prometheus_client.samples import Sample

from .. import config
from ..arguments import series_limits
from ..cells import FREE_THREADED, Cell, Holder, MetricCells
from ..delivery import Buffer
from ..family import OVERFLOW, Family, check_unit, clean, dump, text
from ..process.once import once
from ..storage import Kind
from .reads import fields_of
from .samples import Sampler

T = TypeVar("T")
MetricT = TypeVar("MetricT", bound="StoredMetric")

_PARENTS_OWN = frozenset(
    {"_arguments", "_cells", "_kwargs", "_lock", "_metrics", "_namespace", "_original_name", "_own", "_sampler", "_subsystem"}
)
"""Attributes that only serve to make children."""


class _Signature:
    """The signature of a metric class: that of its constructor, or of prometheus_client's, which ours takes after."""

    def __get__(self, metric: object, cls: Any) -> inspect.Signature:
        constructor, own = cls.__init__, []
        if constructor is StoredMetric.__init__:
            known = inspect.signature(constructor, eval_str=True).parameters.values()
            own = [each for each in known if each.kind is each.KEYWORD_ONLY]
            constructor = next(base.__init__ for base in cls.__mro__ if not issubclass(base, StoredMetric))
        signature = inspect.signature(constructor, eval_str=constructor in OUR_CONSTRUCTORS)
        public = [each for name, each in signature.parameters.items() if name != "self" and not name.startswith("_")]
        return signature.replace(parameters=[*public, *own], return_annotation=signature.empty)


class StoredMetric(MetricWrapperBase):
    """The base of the metric classes: a cell per series instead of a value, and samples read from the storage."""

    buffer: ClassVar[Buffer] = config.DEFAULT
    _holder: Holder
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    """Of the constructor of a subclass, which makes children, too, as in prometheus_client."""
    _parent: StoredMetric | None = None
    """Of a child that the constructor of a subclass is making."""
    _metrics: Any = MappingProxyType({})  # the children; only a parent has some
    _cell: Any
    _sampler = Sampler()
    """Of children. A parent has its own, which keeps what it has made."""

    if not TYPE_CHECKING:  # type checkers see the signatures of prometheus_client
        __signature__ = _Signature()

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Note the arguments of a subclass's constructor."""
            metric = super().__new__(cls)
            if cls.__init__ not in OUR_CONSTRUCTORS:
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
            limits = series_limits(max_series, expire_series)
            # Objects of a class share the keys of their attributes. A dict of its own keeps the parent's out of these, or each
            # child would have room for them: 48 bytes of 830 (CPython 3.11).
            self.__dict__ = {**self.__dict__}
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
        self._holder, self._sampler = Holder(metric_cells), Sampler()
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
        """True where this process has as many series of the metric as the storage may have, without the overflow series."""
        most, known = self._metric_cells.family.max_series, len(self._metrics) - len(self._metric_cells.resting)
        return 0 < most <= known - ((OVERFLOW,) * len(self._labelnames) in self._metrics)

    def _new_child(self: MetricT, values: tuple[str, ...]) -> MetricT:
        child = object.__new__(type(self))
        if "_arguments" in self.__dict__:
            args, kwargs = self._arguments
            child._parent, child._labelvalues = self, values
            type(self).__init__(child, *args, **kwargs)
            return child
        for name, value in list(self.__dict__.items()):
            if name not in _PARENTS_OWN:
                setattr(child, name, value)  # asking for the child's `__dict__` would make one: 64 bytes more (CPython 3.11)
        child._labelvalues = values
        child._cell = child._new_cell(values)
        child._metric_init()  # of a subclass
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
        """Read the metric from the storage, with what this process has pending: in a scrape of a registry, all of its metrics.

        A child gives its own samples, without its labels. Raises NotConfigured and StorageError.
        """
        metric = self._sampler.metric(self._metric_cells.family, *fields_of(self, sys._getframe(1)))
        if self._labelvalues:
            own = dict(zip(self._labelnames, self._labelvalues, strict=True))
            metric.samples = [_without(own, sample) for sample in metric.samples if own.items() <= sample.labels.items()]
        return [metric]

    def _samples(self) -> Iterable[Sample]:
        """The samples of `collect`, named by the ends of their names, as prometheus_client's methods have them."""
        (metric,) = self.collect()
        return [sample._replace(name=sample.name.removeprefix(metric.name)) for sample in metric.samples]

    _multi_samples = _child_samples = _samples


def declared_once(declare: Callable[..., T]) -> _lru_cache_wrapper[T]:
    """Declare metrics that all applications of this process share, once for each set of arguments.

    Applications may use storages one after the other. Each storage shows the series that were updated there, and no others.
    """

    @wraps(declare)
    def declaring(*arguments: Any, **options: Any) -> T:
        declared = declare(*arguments, **options)
        for metric in _metrics_in(declared):
            metric._metric_cells.is_shared = True
        return declared

    return once(declaring)


def _metrics_in(declared: Any) -> Iterator[StoredMetric]:
    if isinstance(declared, StoredMetric):
        yield declared
        return
    for each in declared:
        yield from _metrics_in(each)


class _NoCell:
    """In place of the cell of a metric with labels, of which only the children have one: using it is a ValueError.

    A `__getattr__` of the metrics could say the same, but would slow down every access to their attributes.
    """

    def __init__(self, metric: StoredMetric) -> None:
        name = f"{metric._type} metric {metric._name}"
        self.__dict__["error"] = f"{name} is missing label values: call labels() for {metric._labelnames}"

    def __getattr__(self, name: str) -> Any:
        raise (AttributeError if name.startswith("_") else ValueError)(self.error)  # mocks look for names of their own

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError(self.error)


class SummedMetric(StoredMetric):
    """A metric of which updates only ever add. Without the GIL, each thread that updates a series has a cell of its own."""

    def _go_on_with(self, cell: Cell) -> None:
        """Update that cell from now on, which takes the place of one of this thread."""
        self._cell = cell

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

        def _go_on_with(self, cell: Cell) -> None:
            cell.thread = get_ident()
            self._cells[get_ident()] = self._own.cell = cell

        def _series_cells(self) -> Iterator[Cell]:
            return _each(self._cells)


def _each(cells: Mapping[int, Cell]) -> Iterator[Cell]:
    """The first, then all of these: who drops the first one finds whatever was added before that."""
    yield next(iter(list(cells.values())))
    yield from list(cells.values())


def _without(labels: Mapping[str, str], sample: Sample) -> Sample:
    return sample._replace(labels={name: value for name, value in sample.labels.items() if name not in labels})


OUR_CONSTRUCTORS: set[Callable[..., None]] = {StoredMetric.__init__}
"""The constructors of the metric classes themselves. Others belong to subclasses of the application."""
