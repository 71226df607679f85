"""Counts and times database queries, on connections as they are: no other ENGINE is needed."""

from __future__ import annotations

from collections.abc import Callable, Sized
from time import perf_counter
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from pdc import Counter, Histogram
from pdc.metrics import declared_once

from . import conf


class _Families(NamedTuple):
    queries: Counter
    errors: Counter
    duration: Histogram


@declared_once
def _families(namespace: str, has_peer_names: bool, native: bool) -> _Families:
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
    labels = ["alias", "vendor"]
    timed: dict[str, Any] = {**common, "buckets": conf.DURATION_BUCKETS, "native": native}
    if has_peer_names:
        return _Families(
            Counter("django_db_execute", "Statements that were sent to a database.", labels, **common),
            Counter("django_db_errors", "Statements that raised an exception.", [*labels, "type"], **common),
            Histogram("django_db_query_duration_seconds", "Time of a query.", labels, **timed),
        )
    return _Families(
        Counter("django_db_queries", "Queries that were sent to a database.", labels, **common),
        Counter("django_db_query_errors", "Queries that raised an exception.", [*labels, "exception"], **common),
        Histogram("django_db_query_duration_seconds", "Time of a query.", labels, **timed),
    )


@declared_once
def _peer_family(name: str, documentation: str, namespace: str) -> Counter:
    """A metric that only django-prometheus has."""
    return Counter(name, documentation, ["alias", "vendor"], namespace=namespace, registry=None)


def watch(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Receive the signal ``connection_created``, which comes again whenever the connection reconnects."""
    if count_query not in connection.execute_wrappers:
        connection.execute_wrappers.append(count_query)
    options = conf.active()
    if options is not None and options.django_databases and options.has_peer_names:
        with conf.log_errors():
            connections = _peer_family("django_db_new_connections", "Connections to a database.", options.namespace)
            connections.labels(connection.alias, connection.vendor).inc()


def count_query(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Execute a query for ``connection.execute_wrapper``, and count it; ``executemany`` counts as one query."""
    options = conf.active()
    if options is None or not options.django_databases:
        return execute(sql, params, many, context)
    error: BaseException | None = None
    start = perf_counter()
    try:
        return execute(sql, params, many, context)
    except BaseException as raised:
        error = raised
        raise
    finally:
        bulk = params if many else None
        _count(options, context["connection"], perf_counter() - start, error, bulk)


def _count(
    options: conf.DjangoOptions, connection: BaseDatabaseWrapper, seconds: float, error: BaseException | None, bulk: Any
) -> None:
    with conf.log_errors():
        families = _families(options.namespace, options.has_peer_names, options.native_histograms)
        labels = (connection.alias, connection.vendor)
        statements = 1
        if options.has_peer_names and bulk is not None:
            statements = len(bulk) if isinstance(bulk, Sized) else 1
            many = _peer_family("django_db_execute_many", "Statements of bulk operations.", options.namespace)
            many.labels(*labels).inc(statements)
        families.queries.labels(*labels).inc(statements)
        families.duration.labels(*labels).observe(seconds)
        if error is not None:
            families.errors.labels(*labels, type(error).__name__).inc()
