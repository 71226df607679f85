"""The counts of one read of the storage, from which the page computes rates."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric

from .. import config
from ..exposition import read_storage
from ..family import LEASE_SECONDS, Labels, dump, families
from ..storage import Storage, writers
from .buckets import as_classic
from .traffic import EXCEPTIONS, ROUTES, Traffic, is_failed, one_of

_SHOWN = re.compile("^pdc_|request|response|exception")
"""Only metrics with such names are parsed: the storage may have many others."""
_PLACES = ROUTES | {"alias", "job_name", "task"}
"""The labels that say where an exception was raised."""


COSTLY_SECONDS = 0.5
SHARED = 5.0
"""Pages that are open get the same answer for so many times as long as it occupied a processor, if that was long."""


class _Costly(NamedTuple):
    storage: object
    until: float
    """The time of `time.monotonic` until which it is the answer."""
    answer: bytes


_COSTLY: list[_Costly] = []
"""The last answer, if it was costly: many open pages together must not occupy the process."""


def counts() -> bytes:
    """The counts as JSON. Each series has its name, so that one that is new, or begins again, is seen as such.

    Raises StorageError and NotConfigured.
    """
    storage = config.DEFAULT.required()
    for known in [*_COSTLY]:
        if known.storage is storage and time.monotonic() < known.until:
            return known.answer
    began = time.thread_time()
    answer = _counts(storage)
    seconds = time.thread_time() - began
    _COSTLY[:] = [_Costly(storage, time.monotonic() + SHARED * seconds, answer)] if seconds > COSTLY_SECONDS else []
    return answer


def _counts(storage: Storage) -> bytes:
    began = time.monotonic()
    snapshot = read_storage(own=True)
    seconds = time.monotonic() - began
    shown = {name: as_classic(name, fields) for name, fields in snapshot.metrics.items() if _SHOWN.search(name)}
    found = families(shown, snapshot.now)
    metrics = {metric.name: metric for metric in found}
    first = {name: _labels(metric.samples[0].labels) if metric.samples else () for name, metric in metrics.items()}
    traffic = Traffic({name: metric.type for name, metric in metrics.items()}, first)
    seen = writers(snapshot.metrics.values()).values()
    gauges = [metrics[name] for name in traffic.in_progress]
    answer = {
        "at": snapshot.now,
        "storage": config.described(storage),
        "seconds": seconds,
        "workers": sum(abs(snapshot.now - each) <= LEASE_SECONDS for each in seen),
        "in_progress": _finite(sum(sample.value for gauge in gauges for sample in gauge.samples)) if gauges else None,
        "requests": [row for name, suffix in traffic.requests for row in _requests(metrics[name], suffix)],
        "durations": [row for name in traffic.durations for row in _durations(metrics[name])],
        "exceptions": [row for name in traffic.exceptions for row in _exceptions(metrics[name])],
        "own": {
            sample.name: _finite(sample.value)
            for name, metric in metrics.items()
            for sample in metric.samples
            if name.startswith("pdc_") and not sample.labels
        },
    }
    return json.dumps(answer, allow_nan=False).encode()


def _requests(metric: Metric, suffix: str) -> Iterator[tuple[str, str, bool, float]]:
    """Each series that counts requests: its name, the route, true for failures, the count."""
    for labels, value in _series(metric, suffix):
        yield _name(metric, labels), one_of(ROUTES, labels) or "", is_failed(labels), value


def _durations(metric: Metric) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Each series of a histogram: its name, the route, the cumulated buckets."""
    buckets: dict[Labels, dict[str, float]] = {}
    for labels, value in _series(metric, "_bucket"):
        buckets.setdefault(labels[:-1], {})[labels[-1][1]] = value  # `le` is the last label of a bucket
    for labels, counted in buckets.items():
        yield _name(metric, labels), one_of(ROUTES, labels) or "", counted


def _exceptions(metric: Metric) -> Iterator[tuple[str, str, str, float]]:
    """Each series that counts exceptions: its name, the exception, its place, the count."""
    for labels, value in _series(metric, "_total"):
        yield _name(metric, labels), one_of(EXCEPTIONS, labels) or "", one_of(_PLACES, labels) or "", value


def _series(metric: Metric, suffix: str) -> Iterator[tuple[Labels, float]]:
    """The labels and the value of each sample whose name ends so."""
    name = metric.name + suffix
    return ((_labels(sample.labels), _finite(sample.value)) for sample in metric.samples if sample.name == name)


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(labels.items())


def _name(metric: Metric, labels: Labels) -> str:
    return metric.name + dump(dict(labels))


def _finite(value: Any) -> float:
    """The value; 0 for one that JSON cannot have."""
    return value if math.isfinite(value) else 0.0
