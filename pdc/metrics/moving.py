"""Moves a metric that prometheus_client's classes made to the storage, and back: the object stays, its class changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..family import clean
from .installed import Number
from .kinds import Mode
from .stored import StoredMetric

_OURS = ("_holder", "_cell", "_own", "_cells", "_arguments")
"""Attributes that only a metric of ours has."""
_LAST = {"gauge": "_is_most_recent", "stateset": "_states"}
"""Attributes that constructors of prometheus_client set last, after the registry may have refused the metric."""
_MADE = ("_metrics", "_value", "_sum", "_holder")
"""Attributes of a metric whose name is allowed: each has one at least."""
_VALUES: Mapping[str, Callable[[dict[str, Any]], tuple[Any, ...]]] = {
    "counter": lambda own: (own["_value"],),
    "summary": lambda own: (own["_sum"], own["_count"]),
    "histogram": lambda own: (own["_sum"], *own["_buckets"]),
}
"""The values of prometheus_client among the attributes of a metric, in the order of the numbers in our cells."""


def is_whole(metric: Any) -> bool:
    """True for a metric whose constructor came to its end, and no child: children go with their parent."""
    own = vars(metric).keys()
    return {"_kwargs", _LAST.get(metric._type, "_kwargs")} <= own and not own.isdisjoint(_MADE) and not metric._labelvalues


def move_in(metric: Any, cls: type[StoredMetric], gauge_mode: Mode) -> None:
    """Make the metric one of that class of ours, with its children, and what they counted so far.

    Another thread may update it meanwhile: the class changes once all is ready. Raises ValueError and TypeError for a metric
    that the storage cannot have.
    """
    object.__new__(type(metric)).__class__ = cls  # raises where the objects of both differ in their layout
    ready = _as(cls, metric)
    declare(ready, gauge_mode)
    _become(metric, ready)
    if not metric._labelnames:
        _count_again(metric)
        return
    for values, child in list(metric._metrics.items()):
        _move_in_child(metric, child, gauge_mode)
        _count_again(child)
        metric._metrics[child._labelvalues] = metric._metrics.pop(values)


def _move_in_child(parent: Any, child: Any, gauge_mode: Mode) -> None:
    ready = _as(type(parent), child)
    _set_mode(ready, gauge_mode)
    ready._labelvalues = tuple(map(clean, child._labelvalues))
    ready._holder = parent._holder
    ready._cell = ready._new_cell(ready._labelvalues)
    (cell,) = {*ready._series_cells()}
    parent._metric_cells.add(cell)
    _become(child, ready)
    parent.buffer.declare(cell)


def declare(metric: Any, gauge_mode: Mode) -> None:
    """Declare a metric of ours that a constructor of prometheus_client made."""
    _set_mode(metric, gauge_mode)
    vars(metric).pop("_arguments", None)  # a constructor that calls that one by its name makes no children of ours
    metric._declare(None, {})


def _count_again(metric: Any) -> None:
    """Count what prometheus_client's values have. A value that is as it began does not touch the storage."""
    own = vars(metric)
    if metric._type in _VALUES:
        for index, value in enumerate(_VALUES[metric._type](own)):
            if counted := value.get():
                Number(metric, index).inc(counted)
    elif metric._type == "gauge":
        function = own.pop("_child_samples", None)  # which set_function made
        if function is not None:
            metric.set_function(lambda: next(iter(function())).value)
        elif value := own["_value"].get():
            metric._cell.set(value)
    elif value := own["_value"]:
        metric.info(value) if metric._type == "info" else metric.state(metric._states[value])


def _set_mode(metric: Any, mode: str) -> None:
    """Give a gauge that names no mode this one. It is not known from one that names `all`, prometheus_client's default."""
    if metric._type == "gauge":
        if metric._multiprocess_mode in ("all", "shared"):
            metric._multiprocess_mode = mode
            if "_kwargs" in vars(metric):  # our children have none
                metric._kwargs = {**metric._kwargs, "multiprocess_mode": mode}
        metric._is_most_recent = metric._multiprocess_mode in metric._MOST_RECENT_MODES


def move_out(metric: Any, cls: Any) -> None:
    """Make the metric one of that class of prometheus_client, which begins anew; the storage keeps what it counted.

    Raises TypeError for a metric that cannot be one.
    """
    object.__new__(type(metric)).__class__ = cls
    children = list(metric._metrics.values()) if metric._labelnames else []
    for each in (*children, metric):
        ready = _as(cls, each)
        if each._type == "gauge" and each._multiprocess_mode == "shared":
            _set_mode(ready, "all")
        if ready._is_observable():
            cls._metric_init(ready)
        _become(each, ready)


def _as(cls: Any, metric: Any) -> Any:
    """A copy of the metric in that class."""
    copy = object.__new__(cls)
    vars(copy).update({name: value for name, value in vars(metric).items() if name not in _OURS})
    return copy


def _become(metric: Any, ready: Any) -> None:
    """Take over the attributes and the class of that copy. Those of the former class go last: another thread may use them."""
    former = vars(metric).keys() - vars(ready).keys()
    metric.__dict__ = {**vars(metric), **vars(ready)}  # one of its own is faster than one that shares keys with others
    metric.__class__ = type(ready)
    for name in former.intersection(_OURS):
        del vars(metric)[name]
