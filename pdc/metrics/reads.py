"""The read of the storage that all metrics of a scrape share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import dropwhile
from types import FrameType
from typing import Any

from prometheus_client import Gauge, registry
from prometheus_client.metrics import MetricWrapperBase

from .. import config
from ..family import Fields

_READS = "the reads of pdc"
"""The name of our reads among the variables of a scrape. No variable of Python code can have it."""


def fields_of(metric: Any, caller: FrameType) -> tuple[Fields, float]:
    """The stored fields of a metric and the storage's clock, for the caller of its `collect`.

    A registry of prometheus_client calls `collect` of one collector after the other, in a generator with the variable
    `collectors`. There, one read serves all of our metrics of one storage. It stays among the variables of that generator:
    each scrape has its own, and they end with it, however it ends. So a read is never older than its scrape, and scrapes that
    run at once share none. For other callers the metric is read alone. Raises NotConfigured and StorageError.
    """
    variables = caller.f_locals if caller.f_globals is vars(registry) else {}
    collectors = variables.get("collectors")
    if not isinstance(collectors, Collection):
        return _Read(metric, ()).take(metric._name)
    reads: dict[int, _Read] = variables.setdefault(_READS, {})
    storage = id(metric.buffer.storage)  # it may have no hash; the read holds it
    if storage not in reads or not reads[storage].serves(metric._name):
        reads[storage] = _Read(metric, dropwhile(lambda each: each is not metric, collectors))
    return reads[storage].take(metric._name)


class _Read:
    """A read of a metric, and of those of the collectors after it that are in the same storage."""

    def __init__(self, metric: Any, collectors: Iterable[Any]) -> None:
        self._buffer, self._storage = metric.buffer, metric.buffer.storage
        self._next: dict[str, None] = {metric._name: None}
        """The metrics that come before a collector of other code, in the order in which functions of gauges are called."""
        self._later: dict[str, None] = {}
        """The metrics after it. That code may update them, or do what the function of a gauge needs to come before it."""
        names = self._next
        for each in collectors:
            collect = getattr(type(each), "collect", None)
            if collect is not type(metric).collect:
                is_plain = collect is MetricWrapperBase.collect and not isinstance(each, Gauge)  # which may have a function
                names = names if is_plain else self._later
            elif each.buffer.storage is self._storage and not (names is self._later and each._metric_cells.has_callbacks):
                names[each._name] = None
        self._now, self._metrics = config.read(self._buffer, [*self._next, *self._later])
        self._sent = self._sent_now()

    def serves(self, name: str) -> bool:
        """True where the read has the metric, with all that other code of this process can have updated since then."""
        return name in self._next or (name in self._later and None not in self._sent and self._sent_now() == self._sent)

    def take(self, name: str) -> tuple[Fields, float]:
        """The fields of the metric, once, and the storage's clock."""
        self._next.pop(name, None)
        self._later.pop(name, None)
        return self._metrics.pop(name, {}), self._now

    def _sent_now(self) -> list[tuple[str, int] | None]:
        """The last batch of each buffer of this process for the storage; None where updates wait."""
        return [each.outbox.sent for each in (self._buffer, *config.BUFFERS) if each.storage is self._storage]
