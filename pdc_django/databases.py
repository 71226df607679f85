"""Counts and times database queries, on connections as they are: no other ENGINE is needed."""

from __future__ import annotations

from collections.abc import Callable
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
def _families(namespace: str) -> _Families:
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
    labels = ["alias", "vendor"]
    return _Families(
        Counter("django_db_queries", "Queries that were sent to a database.", labels, **common),
        Counter("django_db_query_errors", "Queries that raised an exception.", [*labels, "exception"], **common),
        Histogram("django_db_query_duration_seconds", "Time of a query.", labels, buckets=conf.DURATION_BUCKETS, **common),
    )


def watch(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Receive the signal ``connection_created``, which comes again whenever the connection reconnects."""
    if count_query not in connection.execute_wrappers:
        connection.execute_wrappers.append(count_query)


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
        _count(options.namespace, context["connection"], perf_counter() - start, error)


def _count(namespace: str, connection: BaseDatabaseWrapper, seconds: float, error: BaseException | None) -> None:
    with conf.log_errors():
        families = _families(namespace)
        labels = (connection.alias, connection.vendor)
        families.queries.labels(*labels).inc()
        families.duration.labels(*labels).observe(seconds)
        if error is not None:
            families.errors.labels(*labels, type(error).__name__).inc()
