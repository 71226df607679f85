"""Registries of prometheus_client that read the storage once for all of their metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, CollectorRegistry, RestrictedRegistry

from .. import config
from ..cells import in_one_scrape
from ..delivery import health
from ..family import Page, families
from .stored import StoredMetric


class StoredRegistry(CollectorRegistry):
    """A registry whose stored metrics come from one read, with the values of all processes.

    The default registry shows all metrics of the storage, also those that only other processes have declared. It leaves out
    those that this process keeps from it, in another registry or in none.
    """

    def collect(self) -> Iterable[Metric]:
        """The metrics of the storage, then those of other collectors. Raises NotConfigured and StorageError."""
        return iter(self.collect_only(None))  # an iterator, as of prometheus_client

    def restricted_registry(self, names: Iterable[str]) -> RestrictedRegistry:
        """A registry of the samples with these names."""
        return _Restricted(names, self)

    def collect_only(self, names: Collection[str] | None) -> list[Metric]:
        """The samples with these names, or all. Calls no collector that has none of them."""
        metrics = in_one_scrape(self._collect, names)
        if names is None:
            return metrics
        return [chosen for metric in metrics if (chosen := metric._restricted_metric(names))]

    def _collect(self, names: Collection[str] | None) -> list[Metric]:
        page = Page()
        with self._lock:
            collectors: list[Any] = list(self._collector_to_names)
            others = collectors if names is None else self._named(names)
            target = [Metric("target", "Target metadata", "info")] if self._target_info else []
        for metric in target:
            metric.add_sample("target_info", dict(self._target_info or {}), 1)
        found = [*page.admitted(target)]
        declared = {each._name for each in collectors if _is_stored(each)}
        if any(isinstance(each, StorageCollector) for each in collectors):
            found += _stored(page, names)
        elif self is REGISTRY:
            found += _stored(page, names, besides=declared)
        elif declared:
            found += _stored(page, names, only=declared)
        for each in others:
            if not _is_stored(each) and not isinstance(each, StorageCollector):
                found += page.admitted(metric for metric in each.collect() if not page.has(metric.name))
        return found

    def _named(self, names: Collection[str]) -> list[Any]:
        """The collectors of samples with these names, and those without names."""
        named = (self._names_to_collectors[name] for name in names if name in self._names_to_collectors)
        without_names = vars(self).get("_collectors_without_names", ())  # older versions have none
        return list(dict.fromkeys([*without_names, *named]))


class _Restricted(RestrictedRegistry):
    """Chooses from all that the registry shows, which a metric of another process is a part of."""

    _registry: StoredRegistry

    def collect(self) -> Iterable[Metric]:
        """The chosen samples. Raises NotConfigured and StorageError."""
        return self._registry.collect_only(self._name_set)


class StorageCollector(MultiProcessCollector):
    """Collects all metrics of the storage instead of files."""

    def __init__(self, registry: CollectorRegistry | None, path: str | None = None) -> None:
        self._path = path
        if registry:
            registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Claim no names: the registry may have metrics that the storage has, too."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The metrics of the storage. Raises NotConfigured and StorageError."""
        return in_one_scrape(_stored, Page())


def _stored(
    page: Page,
    samples: Collection[str] | None = None,
    *,
    only: Collection[str] | None = None,
    besides: Collection[str] | None = None,
) -> list[Metric]:
    """The metrics of the storage that the page has room for, `only` these, or `besides` these those of other processes.

    With `samples`, those of them that may have such samples.
    """
    snapshot = config.read(config.DEFAULT, only)
    shown = {
        name: fields
        for name, fields in snapshot.metrics.items()
        if name not in health.NAMES and (besides is None or name in besides or config.DEFAULT.last_declared(name) is None)
    }
    return families(shown, snapshot.now, page, samples)


def _is_stored(collector: Any) -> bool:
    """True for a metric of the storage that `setup` chose last, unless it has a `collect` of its own."""
    return (
        isinstance(collector, StoredMetric)
        and type(collector).collect is StoredMetric.collect
        and collector.buffer.storage is config.DEFAULT.storage
    )
