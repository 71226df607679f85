"""Metrics of other packages: from `install` to `uninstall` the classes of prometheus_client make objects of ours.

The seam is `__new__`. The new object is of a subclass of ours, and of the class that was called, so its constructor runs as
the package wrote it, and `isinstance` is true for both. Objects that exist already change their class.
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, get_args

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, CollectorRegistry

from .. import config
from ..delivery import NotConfigured
from ..process import log
from ..process.interruption import let_through
from .installed import InstalledCounter, InstalledGauge, InstalledHistogram, InstalledSummary
from .kinds import Enum, Info, Mode
from .moving import declare, is_whole, move_in, move_out
from .registries import StorageCollector, StoredRegistry
from .stored import StoredMetric

P = ParamSpec("P")

MODES: tuple[Mode, ...] = get_args(Mode)

_KINDS: dict[type, type] = {
    prometheus_client.Counter: InstalledCounter,
    prometheus_client.Gauge: InstalledGauge,
    prometheus_client.Summary: InstalledSummary,
    prometheus_client.Histogram: InstalledHistogram,
    prometheus_client.Info: Info,
    prometheus_client.Enum: Enum,
    CollectorRegistry: StoredRegistry,
    MultiProcessCollector: StorageCollector,
}
_ROOTS: tuple[Any, ...] = (MetricWrapperBase, CollectorRegistry, MultiProcessCollector)
"""The classes whose `__new__` makes all of these."""
_OURS = {StoredMetric, StoredRegistry, StorageCollector}
_SAMPLERS = ("_samples", "_multi_samples", "_child_samples")
"""Methods of prometheus_client's metrics by which a subclass computes samples of its own. It stays as it is."""
_INSTALLED: dict[type, type] = {}
"""The classes of other packages, each with the class of its objects from `install` on."""


def install(*, gauge_mode: Mode = "shared") -> None:
    """Keep the metrics of plain `prometheus_client` classes in the storage: those of other packages and of the application.

    This counts for all metrics of the process, also those that exist already, wherever their modules imported the classes
    from, and for subclasses. Their counts so far go to the storage. `prometheus_client.REGISTRY` then shows all that the
    storage holds, and another registry its own metrics, with the values of all processes. A `MultiProcessCollector` shows
    all, too, and needs no folder. Call it before the fork where a server loads the application before its workers.

    `gauge_mode` is the mode of gauges that name none. Where PDC_ENABLED is false, nothing changes. Raises NotConfigured before
    `setup`, and ValueError for another mode.
    """
    if config.DEFAULT.storage is None:
        raise NotConfigured("pdc.install() needs a storage: call pdc.setup(...) or pdc.setup_from_environ() before it")
    if gauge_mode not in MODES:
        raise ValueError(f"gauge_mode must be one of {', '.join(MODES)}, got {gauge_mode!r}")
    if config.is_off():
        return
    InstalledGauge.mode = gauge_mode
    for root in _ROOTS:
        root.__new__ = staticmethod(_new)
        root.__signature__ = _Signature()
    for each in _objects():
        cls = _installed(type(each))
        if cls is not type(each):
            _move_in(each, cls)


def uninstall() -> None:
    """Let the classes of prometheus_client make their own metrics again, and make those of `install` plain ones.

    Plain metrics count in the memory of this process, from zero. The storage keeps what was counted there.
    """
    for root in _ROOTS:
        root.__new__ = staticmethod(_plain)  # a class whose `__new__` is deleted makes no objects any more (CPython)
    theirs = {ours: cls for cls, ours in _INSTALLED.items()}
    for each in _objects():
        cls = theirs.get(type(each))
        if cls is not None and not isinstance(each, StoredMetric):
            each.__class__ = cls
        elif cls is not None and is_whole(each):
            _move(each, "the metric %s stays in the storage: %s", move_out, each, cls)


class _Signature:
    """The signature of a class as without a `__new__` of ours, which takes any arguments: that of its constructor."""

    def __get__(self, made: object, cls: Any) -> inspect.Signature:
        _, *others = (signature := inspect.signature(cls.__init__)).parameters.values()
        return signature.replace(parameters=others)


def _new(cls: Any, /, *args: Any, **options: Any) -> Any:
    """Make an object of our class; its constructor is next."""
    ours = _installed(cls)
    return object.__new__(cls) if ours is cls else _kind(cls).__new__(ours, *args, **options)


def _plain(cls: Any, /, *_: Any, **__: Any) -> Any:
    return object.__new__(cls)


def _installed(cls: Any) -> Any:
    """The class of the objects that this class makes: itself, unless it is of prometheus_client or inherits from such a one."""
    known = _INSTALLED.get(cls)
    if known is None:
        made = _make(cls)
        known = cls if made is cls else _INSTALLED.setdefault(cls, made)  # another thread may have been faster
    return known


class _Unnoticed(MetricWrapperBase):
    """Keeps `__init_subclass__` of a package from noticing the class that `install` makes.

    It is a base only where needed: as the first one, it would keep objects of a class with another first base from moving.
    """

    def __init_subclass__(cls) -> None:
        """Do nothing."""


def _make(cls: Any) -> Any:
    kind = _kind(cls)
    if kind is None or not _OURS.isdisjoint(cls.__mro__) or (issubclass(kind, StoredMetric) and _has_samples_of_its_own(cls)):
        return cls
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if cls in _KINDS:
        return type(cls)(cls.__name__, (kind,), about)
    if not issubclass(kind, StoredMetric):
        return type(cls)(cls.__name__, (cls, kind), about)
    if cls.__init__ not in _constructors():
        about["__init__"] = _completed(cls.__init__)
    first = (_Unnoticed,) if _is_noticed(cls) else ()
    return type(cls)(cls.__name__, (*first, cls, kind), about)


def _is_noticed(cls: Any) -> bool:
    """True for a class with an `__init_subclass__` that prometheus_client's do not have."""
    own, theirs = (getattr(each.__init_subclass__, "__func__", None) for each in (cls, MetricWrapperBase))
    return own is not theirs


def _kind(cls: Any) -> Any:
    """Our class for the kind of metric, registry or collector that the class is, if any."""
    return next((ours for theirs, ours in _KINDS.items() if theirs in cls.__mro__), None)


def _has_samples_of_its_own(cls: Any) -> bool:
    theirs = next(theirs for theirs in _KINDS if theirs in cls.__mro__)
    return any(getattr(cls, name) is not getattr(theirs, name) for name in _SAMPLERS)


def _constructors() -> set[Any]:
    return {cls.__dict__.get("__init__", MetricWrapperBase.__init__) for cls in _KINDS}


def _completed(constructor: Any) -> Any:
    """That constructor of a subclass. It may call prometheus_client's by its name, which declares nothing to the storage."""

    @wraps(constructor)
    def completed(self: Any, *args: Any, **options: Any) -> None:
        constructor(self, *args, **options)
        if "_holder" not in vars(self):
            declare(self, InstalledGauge.mode)

    return completed


def _objects() -> list[Any]:
    """The metrics, registries and collectors of this process."""
    classes = {cls for root in _ROOTS for cls in _subclasses(root)}
    registered = [REGISTRY, *REGISTRY._collector_to_names]  # the garbage collector may have forgotten them: gc.freeze()
    found = {id(each): each for each in (*registered, *gc.get_objects()) if type(each) in classes}
    return list(found.values())


def _subclasses(cls: Any) -> Iterator[type]:
    yield cls
    for each in type.__subclasses__(cls):
        yield from _subclasses(each)


def _move_in(each: Any, cls: Any) -> None:
    """Let the object be one of that class of ours; the log names a metric that cannot be."""
    if not issubclass(cls, StoredMetric):
        each.__class__ = cls
    elif is_whole(each):
        text = "the metric %s stays in the memory of this process: %s; make it after pdc.install(), or change it"
        _move(each, text, move_in, each, cls, InstalledGauge.mode)


def _move(metric: Any, text: str, move: Callable[P, None], *args: P.args, **options: P.kwargs) -> None:
    """Move the metric; the log has that text where it cannot be."""
    try:
        move(*args, **options)
    except (ValueError, TypeError) as error:
        let_through(error)
        log.write(logging.WARNING, text, metric, error)
