"""Counts and times cache operations, on backends as they are: no other BACKEND is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial, wraps
from time import perf_counter
from typing import Any, NamedTuple

from django.core.cache import BaseCache, caches

from pdc import Counter, Histogram
from pdc.metrics import declared_once

from . import conf

OPERATIONS = (
    *("add", "clear", "decr", "delete", "delete_many", "get", "get_many"),
    *("has_key", "incr", "set", "set_many", "touch"),
)
"""The timed methods; other methods, and coroutines, call these."""
_inside: ContextVar[bool] = ContextVar("pdc_inside_cache_operation", default=False)
_missing = object()


class _Families(NamedTuple):
    hits: Counter
    misses: Counter
    duration: Histogram


@declared_once
def _families(namespace: str, has_peer_names: bool, native: bool) -> _Families:
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
    start, label = ("django_cache_get", "backend") if has_peer_names else ("django_cache", "alias")
    return _Families(
        Counter(f"{start}_hits", "Keys that were asked for and found.", [label], **common),
        Counter(f"{start}_misses", "Keys that were asked for and not found.", [label], **common),
        Histogram(
            "django_cache_operation_duration_seconds",
            "Time of an operation, with those it calls in turn.",
            ["alias", "operation"],
            buckets=conf.DURATION_BUCKETS,
            native=native,
            **common,
        ),
    )


@declared_once
def _peer_family(namespace: str) -> Counter:
    return Counter("django_cache_get", "Keys that were asked for.", ["backend"], namespace=namespace, registry=None)


def watch() -> None:
    """Watch every backend that ``django.core.cache.caches`` makes from now on, where PDC_DJANGO_CACHES asks for it."""
    create = caches.create_connection

    def create_connection(alias: str) -> BaseCache:
        backend = create(alias)
        options = conf.active()
        if options is not None and options.django_caches:
            counted_as = type(backend).__name__.removesuffix("Cache").lower() if options.has_peer_names else alias
            for operation in OPERATIONS:
                setattr(backend, operation, _timed(getattr(backend, operation), operation, alias, counted_as))
        return backend

    caches.create_connection = create_connection  # type: ignore[method-assign]  # Django has no hook there


def _timed(call: Callable[..., Any], operation: str, alias: str, counted_as: str) -> Callable[..., Any]:
    """Wrap an operation of a backend; it is counted unless another operation calls it."""
    counted = {"get": partial(_get, call, counted_as), "get_many": partial(_get_many, call, counted_as)}.get(operation, call)

    @wraps(call)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        if _inside.get():
            return call(*arguments, **keywords)
        token = _inside.set(True)
        start = perf_counter()
        try:
            return counted(*arguments, **keywords)
        finally:
            _inside.reset(token)
            seconds = perf_counter() - start
            with conf.log_errors():
                _current().duration.labels(alias, operation).observe(seconds)

    return timed


def _get(call: Callable[..., Any], counted_as: str, key: Any, default: Any = None, *rest: Any, **keywords: Any) -> Any:
    value = call(key, _missing, *rest, **keywords)
    _count(counted_as, 0 if value is _missing else 1, 1)
    return default if value is _missing else value


def _get_many(call: Callable[..., Any], counted_as: str, keys: Iterable[Any], *rest: Any, **keywords: Any) -> Any:
    keys = list(keys)
    found = call(keys, *rest, **keywords)
    _count(counted_as, len(found), len(set(keys)))
    return found


def _count(counted_as: str, hits: int, keys: int) -> None:
    with conf.log_errors():
        families, options = _current(), conf.options()
        if hits:
            families.hits.labels(counted_as).inc(hits)
        if keys > hits:
            families.misses.labels(counted_as).inc(keys - hits)
        if options.has_peer_names:
            _peer_family(options.namespace).labels(counted_as).inc(keys)


def _current() -> _Families:
    options = conf.options()
    return _families(options.namespace, options.has_peer_names, options.native_histograms)
