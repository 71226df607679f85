"""Counts written rows of the models that PDC_DJANGO_MODELS names, after each write."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.db.models import Model
from django.db.models.sql.compiler import SQLCompiler, SQLDeleteCompiler, SQLInsertCompiler, SQLUpdateCompiler

from pdc import Counter
from pdc.metrics import declared_once

from . import conf


@declared_once
def _family(namespace: str) -> Counter:
    return Counter(
        "django_model_changes",
        "Rows of models that were inserted, updated or deleted, by whatever method but raw SQL.",
        ["model", "operation"],
        namespace=namespace,
        registry=None,
    )


@declared_once
def _peer_family(namespace: str, operation: str) -> Counter:
    meaning = f"Rows of models: each {operation}, by whatever method but raw SQL."
    return Counter(f"django_model_{operation}s", meaning, ["model"], namespace=namespace, registry=None)


def watch() -> None:
    """Watch the compilers of SQL, through which all writes go: of objects with their cascades, and of whole querysets.

    Signals would miss bulk operations, and their receivers would make every deletion read the objects first.
    """
    _watch(SQLInsertCompiler, "execute_sql", "insert", lambda compiler, _: len(compiler.query.objs))
    _watch(SQLUpdateCompiler, "execute_sql", "update", _affected)
    if hasattr(SQLUpdateCompiler, "execute_returning_sql"):  # since Django 6.0
        _watch(SQLUpdateCompiler, "execute_returning_sql", "update", _returned)
    _watch(SQLDeleteCompiler, "execute_sql", "delete", _affected)


def _watch(compiler: type[SQLCompiler], method: str, operation: str, rows: Callable[[Any, Any], int]) -> None:
    execute = getattr(compiler, method)

    @wraps(execute)
    def counting(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = execute(self, *arguments, **keywords)
        options = conf.active()
        if options is not None and options.django_models:
            with conf.log_errors():
                _count(options, self.query.model, operation, rows(self, result))
        return result

    setattr(compiler, method, counting)


def _affected(_: Any, result: Any) -> int:
    """The rows that a statement affected: its result, or before Django 5.2 the result's `rowcount`."""
    return int(getattr(result, "rowcount", result) or 0)


def _returned(_: Any, rows: list[tuple[Any, ...]]) -> int:
    """The rows that a statement returned; empty ones come from `execute_sql`, which has counted them."""
    return len(rows) if rows and rows[0] else 0


def _count(options: conf.DjangoOptions, model: type[Model], operation: str, rows: int) -> None:
    meta = (model._meta.concrete_model or model)._meta
    if rows > 0 and {meta.label, meta.app_label} & set(options.django_models):
        if options.has_peer_names:
            _peer_family(options.namespace, operation).labels(meta.model_name).inc(rows)
        else:
            _family(options.namespace).labels(meta.label, operation).inc(rows)
