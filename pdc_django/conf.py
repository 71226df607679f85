"""The settings of the app, read when they are first needed and again when a test overrides them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.conf import settings

from pdc.http import HTTPMetrics
from pdc.log import log_or_raise
from pdc.options import Options, _flag, _items, _option

DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For queries and cache operations, which are faster than requests."""


WRONG = (ValueError, TypeError, ImportError)
"""What options raise that are wrong (OptionError), or that storages refuse, or for want of a driver."""


def _models(value: Any) -> tuple[str, ...]:
    models = tuple(_items(value))
    if any(not isinstance(model, str) or model.count(".") > 1 for model in models):
        raise ValueError(value)
    return models


@dataclass(frozen=True, kw_only=True)
class DjangoOptions(Options):
    """What can be configured: the options of every framework, and those that only Django has."""

    django_databases: bool = _option(True, _flag, "true or false")
    django_caches: bool = _option(False, _flag, "true or false")
    django_migrations: bool = _option(False, _flag, "true or false")
    django_models: tuple[str, ...] = _option((), _models, "labels of apps or models, such as 'shop' or 'shop.Order'")


@cache
def options() -> DjangoOptions:
    """The options from the settings or the environment. Raises OptionError."""
    return DjangoOptions.load({name: getattr(settings, name) for name in dir(settings) if name.startswith("PDC_")})


@cache
def http_metrics() -> HTTPMetrics | None:
    """The metrics of the project's requests, None where PDC_ENABLED is false. Sets the storage up. Raises OptionError."""
    from .migration_state import registry

    return HTTPMetrics(options(), registry) if options().enabled else None


def start() -> None:
    """Set the storage up, without I/O. What is wrong is for the system checks to tell, and for the middleware to refuse."""
    with suppress(*WRONG):
        http_metrics()


def active() -> DjangoOptions | None:
    """The options of what is to be counted; None where nothing is: PDC_ENABLED is false, or something is wrong."""
    try:
        return None if http_metrics() is None else options()
    except WRONG:
        return None


def reload(*, setting: str, **_: Any) -> None:
    """Start again after a test has changed an option."""
    if setting.startswith("PDC_"):
        options.cache_clear()
        http_metrics.cache_clear()
        start()


@contextmanager
def harmless() -> Iterator[None]:
    """Log what goes wrong while something is counted: it must not break what is being counted."""
    try:
        yield
    except Exception as error:
        log_or_raise(error, "something that Django did could not be counted")
