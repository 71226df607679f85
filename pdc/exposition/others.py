"""The collectors that a metrics page shows beside the metrics of the storage."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, REGISTRY, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from .. import config
from ..family import Page
from ..metrics import StoredMetric
from ..metrics.registries import StorageCollector, StoredRegistry
from ..process import log
from ..process.interruption import interruption_of_callable
from ..process.once import once
from ..storage import StorageError
from .rendering import AnyEncoder

BY_DEFAULT = (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR)
"""Collectors that prometheus_client registers by itself. Each scrape would show another process."""
OF_ONE_PROCESS = tuple(map(type, BY_DEFAULT))
"""The collectors whose families `pdc.ProcessMetrics` has for all processes."""
FAILED = "pdc_collectors_failed"
MOST_NAMED = 20
"""Metrics that one line of the log names."""


class OtherCollectors:
    """The collectors of these registries, as the page of an application shows them.

    A collector that raises is left out: the other metrics stay on the page, the log has its error once, and
    `pdc_collectors_failed` counts it. The collectors that prometheus_client registers by itself are left out, too. In the
    multiprocess mode of prometheus_client, the metrics of its default registry come from the files of all processes.
    """

    def __init__(self, *registries: CollectorRegistry) -> None:
        self._registries = registries
        self._logged: set[tuple[str, type[Exception]]] = set()

    def render(self, encoder: AnyEncoder, page: Page, names: Collection[str] | None = None) -> bytes:
        """The text of the families that the page does not show yet, or of their samples of these names."""
        rendered, failed = [], 0
        for collector in self._collectors(names):
            try:
                rendered.append(encoder.encode(chosen(list(admitted(collector, page)), names, whole=not encoder.splits)))
            except StorageError:  # a page without metrics of pdc is none
                raise
            except Exception as error:  # noqa: BLE001 - the code of others, which may raise any
                if (raised := interruption_of_callable(error)) is not None:
                    raise raised from None
                failed += 1
                self._log_failure(_name(collector), error)
        if page.admits(FAILED, "gauge") and (names is None or FAILED in names):
            rendered.append(_count(encoder, failed))
        return b"".join(rendered)

    def _collectors(self, names: Collection[str] | None) -> Iterator[Collector]:
        for registry in self._registries:
            others = [each for each in collectors(registry, names) if each not in BY_DEFAULT]
            if registry is REGISTRY and values.ValueClass._multiprocess:  # noqa: SLF001 - it has no public name
                others = [each for each in others if not _is_in_memory(each)]
                yield from () if isinstance(registry, StoredRegistry) else (_OfFiles(),)  # `pdc.install` writes no files
            yield from others
            if any(map(_is_in_memory, others)):
                _warn_of_others(registry)

    def _log_failure(self, name: str, error: Exception) -> None:
        if (name, type(error)) not in self._logged:
            self._logged.add((name, type(error)))
            log.write(logging.ERROR, "the collector %s failed, and its metrics are not on the page", name, error=error)


@lru_cache(maxsize=64)
def _count(encoder: AnyEncoder, failed: int) -> bytes:
    """The text of the count of collectors that failed: the same on most pages."""
    about = "Collectors that this page leaves out, since they failed (the log says why)."
    return encoder.encode([GaugeMetricFamily(FAILED, about, failed)])


class _Target(Collector):
    """The target info of a registry."""

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        metric = Metric("target", "Target metadata", "info")
        metric.add_sample("target_info", self._labels, 1)
        return [metric]


class _OfFiles(Collector):
    """The metrics in the files of PROMETHEUS_MULTIPROC_DIR."""

    def collect(self) -> Iterable[Metric]:
        metrics: Iterable[Metric] = MultiProcessCollector(CollectorRegistry()).collect()
        return metrics


def collectors(registry: CollectorRegistry, names: Collection[str] | None = None) -> Iterator[Collector]:
    """Yield the collectors of the registry without the metrics of the default storage; the target info is the first one.

    With `names`, those that declare other names only are left out, as a restricted registry does.
    """
    if target := registry.get_target_info():
        yield _Target(target)
    with registry._lock:  # noqa: SLF001 - a registry has no public list of its collectors
        declared = list(registry._collector_to_names.items())  # noqa: SLF001 - the same
    for collector, own in declared:
        if isinstance(collector, StorageCollector):
            continue
        if isinstance(collector, StoredMetric) and collector.buffer.storage is config.DEFAULT.storage:
            continue
        if names is None or not own or any(name in names for name in own):
            yield collector


def admitted(collector: Collector, page: Page) -> Iterator[Metric]:
    """The families of the collector that the page does not show yet. Those of all processes replace those of this one.

    Raises ValueError for a sample without a value, which OpenMetrics would show as a line that Prometheus refuses.
    """
    found: Iterable[Metric] = list(collector.collect())
    if unset := [sample.name for metric in found for sample in metric.samples if sample.value is None]:
        raise ValueError(f"expected numbers as values of {unset[0]}, got None")
    if isinstance(collector, OF_ONE_PROCESS):
        found = [metric for metric in found if not page.has(metric.name)]
    return page.admitted(found)


def chosen(metrics: Iterable[Metric], names: Collection[str] | None, *, whole: bool = False) -> Iterable[Metric]:
    """The families with only the samples of these names, if any, or `whole`; without families that have none of them."""
    if names is None:
        return metrics
    if whole:
        return [metric for metric in metrics if metric.name in names or _restricted(metric, names).samples]
    return [some for metric in metrics if (some := _restricted(metric, names)).samples]


def _restricted(metric: Metric, names: Collection[str]) -> Metric:
    restricted = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    restricted.samples = [sample for sample in metric.samples if sample.name in names]
    return restricted


def _is_in_memory(collector: Collector) -> bool:
    """True for a metric of prometheus_client, whose values are those of one process."""
    return isinstance(collector, MetricWrapperBase) and not isinstance(collector, StoredMetric)


def _name(collector: Collector) -> str:
    return str(getattr(collector, "_name", "")) or type(collector).__qualname__


@once
def _warn_of_others(registry: CollectorRegistry) -> None:
    """Log once which metrics of the registry differ from process to process."""
    found = sorted(_name(each) for each in collectors(registry) if _is_in_memory(each))
    named = ", ".join(found[:MOST_NAMED]) + (f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "")
    log.write(
        logging.WARNING,
        "the page shows metrics of prometheus_client, which each process has for itself: %s. Make them with pdc.Counter, "
        "pdc.Gauge and the other classes of pdc, or call pdc.install() (PDC_INSTALL), to share them, or set PDC_REGISTRY to "
        "none to leave them out",
        named,
    )
