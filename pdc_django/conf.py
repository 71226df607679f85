"""The settings of the app, read when they are first needed and again when a test overrides them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from prometheus_client.registry import CollectorRegistry

from pdc.http import Hooks, HTTPMetrics
from pdc.options import Options, option, parse_flag, parse_items
from pdc.process.interruption import tolerate
from pdc.process.log import log_or_raise
from pdc.process.once import once

DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For queries and cache operations, which are faster than requests."""
CONFIG_ERRORS = (ValueError, TypeError, ImportError)
"""Errors of wrong options (OptionError is a ValueError), of a storage that refuses them, and of a missing driver."""
HOOKS = Hooks()
"""The hooks of this process."""
REGISTRY = CollectorRegistry(auto_describe=False)
"""The collectors of this app, whose families come after the families of the storage; `apps` registers them."""


def _models(value: Any) -> tuple[str, ...]:
    models = tuple(parse_items(value))
    if any(not isinstance(model, str) or model.count(".") > 1 for model in models):
        raise ValueError(value)
    return models


@dataclass(frozen=True, kw_only=True)
class DjangoOptions(Options):
    """The options of every framework, and five of Django alone."""

    django_databases: bool = option(True, parse_flag, "true or false", "Count and time database queries.")
    django_caches: bool = option(False, parse_flag, "true or false", "Count and time cache operations.")
    django_migrations: bool = option(False, parse_flag, "true or false", "Show how many migrations are applied.")
    django_models: tuple[str, ...] = option(
        (),
        _models,
        "labels of apps or models, such as 'shop' or 'shop.Order'",
        "Count rows of these models that are inserted, updated or deleted.",
    )
    django_readable_routes: bool = option(
        False, parse_flag, "true or false", "Show regular expressions of routes as templates: `/posts/{pk}/`."
    )

    @property
    def has_peer_names(self) -> bool:
        """True if metrics of databases, caches, models and migrations have the names of django-prometheus, too."""
        return self.names == "django-prometheus"


@once
def options() -> DjangoOptions:
    """The options from the settings or the environment. Raises OptionError."""
    return DjangoOptions.load({name: getattr(settings, name) for name in dir(settings) if name.startswith("PDC_")})


@once
def http_metrics() -> HTTPMetrics | None:
    """The metrics of the project's requests, None where PDC_ENABLED is false. Sets the storage up. Raises OptionError."""
    if not options().enabled:
        options().setup()
        return None
    metrics = HTTPMetrics(options(), REGISTRY, hooks=HOOKS)
    metrics.labels.run_in_thread((SynchronousOnlyOperation,), _in_thread)
    return metrics


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function where Django uses its database."""
    return await sync_to_async(function, thread_sensitive=True)(*args)


def start() -> None:
    """Set the storage up, without I/O. The system checks report wrong options, and the middleware refuses them."""
    with tolerate(*CONFIG_ERRORS):
        http_metrics()


def active() -> DjangoOptions | None:
    """The options; None where nothing is to be counted: PDC_ENABLED is false, or an option is wrong."""
    try:
        return None if http_metrics() is None else options()
    except CONFIG_ERRORS:
        return None


def reload(*, setting: str, **_: Any) -> None:
    """Start again after a test has changed an option."""
    if setting.startswith("PDC_"):
        options.cache_clear()
        http_metrics.cache_clear()
        start()


@contextmanager
def log_errors() -> Iterator[None]:
    """Log errors of counting, which must not break the operation that is counted."""
    try:
        yield
    except Exception as error:
        log_or_raise(error, "something that Django did could not be counted")
