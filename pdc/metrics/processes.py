"""Metrics of every process that lives: those that prometheus_client shows of the process that answers a scrape."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from math import inf
from typing import ClassVar

from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample

from .. import config
from ..cells import CallbackGaugeCell, Holder, MetricCells
from ..delivery import Buffer
from ..family import Family, clean
from ..process import log, servers
from ..process.interruption import interruption, tolerate
from ..process.once import once

TOGETHER_SECONDS = 0.05
"""Values that are asked for within this time are read together."""

Key = tuple[str, tuple[str, ...]]
"""The name of a sample, and the values of its labels."""


class ProcessMetrics:
    """Shows ``process_*``, ``python_gc_*`` and ``python_info`` of this process and of those that it forks.

    They have the names, types and help of prometheus_client's collectors, and the labels ``host`` and ``pid`` of their process.
    Call this once, before or after `setup`; nobody has to keep the object. A background thread reads the values every 5 s, and
    a scrape those of the process that answers. The series of a process go at its end, or 15 s after it was killed. A master
    that loads the application for its workers (``gunicorn --preload``, uWSGI) has none.
    """

    buffer: ClassVar[Buffer] = config.DEFAULT

    def __init__(self) -> None:
        holders = _declared(self.buffer)
        if not servers.is_master():
            for holder in holders:
                for cell in list(holder.metric.cells):
                    cell.compute()
                    self.buffer.send(cell)


@once
def _declared(buffer: Buffer) -> list[Holder]:
    """Declare the families that this system has."""
    readings, host = _Readings(), clean(socket.gethostname())
    holders = []
    for metric in readings.collect():
        for sample in metric.samples[:1]:
            names = ("host", *sample.labels)
            family = Family(metric.name, metric.type, metric.documentation, labelnames=names, mode="liveall")
            metric_cells = MetricCells(buffer, family, {"max_series": inf, "expire_series": inf})
            metric_cells.reports_idle = True
            holders.append(Holder(metric_cells))
            buffer.register(metric_cells)
        for sample in metric.samples:
            key = _key(sample)
            metric_cells.add(_ProcessCell(metric_cells, (host, *key[1]), partial(readings.value, key)))
    return holders


class _ProcessCell(CallbackGaugeCell):
    """A number of this process, also of a counter. It stays as it was where it cannot be read."""

    __slots__ = ()

    def compute(self, *, unharmed: bool = False) -> None:  # noqa: ARG002 - only an exception of a handler can end this
        with tolerate(KeyError):
            self._value = self._function()


class _Readings:
    """The values of this process, all of which are read where one is asked for."""

    def __init__(self) -> None:
        self._master = os.getpid() if servers.is_master() else None
        registry = CollectorRegistry()
        self._collectors = [ProcessCollector(registry=registry), PlatformCollector(registry=registry), GCCollector(registry)]
        self._values: dict[Key, float] = {}
        self._read_at = 0.0
        self._read_by = 0

    def collect(self) -> Iterator[Metric]:
        """Read all families. One that cannot be read is in the log once."""
        for collector in self._collectors:
            try:
                yield from collector.collect()
            except Exception as error:  # noqa: BLE001 - it must break no program, which has nothing to do with it
                if (raised := interruption(error)) is not None:
                    raise raised from None
                name = type(collector).__name__
                log.defer_once(name, logging.WARNING, "%s of prometheus_client cannot read this process: %r", name, error)

    def value(self, key: Key) -> float:
        """The value of that sample now. Raises KeyError where there is none, and in a master."""
        pid = os.getpid()
        if pid != self._read_by or not 0 <= time.monotonic() - self._read_at < TOGETHER_SECONDS:
            samples = (sample for metric in self.collect() for sample in metric.samples if pid != self._master)
            self._values = {_key(sample): float(sample.value) for sample in samples}
            self._read_at, self._read_by = time.monotonic(), pid
        return self._values[key]


def _key(sample: Sample) -> Key:
    return sample.name, tuple(sample.labels.values())
