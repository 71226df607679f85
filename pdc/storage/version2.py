"""Converts data of version 2 of this library to our format.

Version 2 stored each series under the same fields, but the buckets of histograms cumulated, and with no bookkeeping. It reads
every field of its keys, and fails at one of ours: so ours are beside its own, under a key or in a table that it never reads,
and its own stay as they are. Unlike the rest of a storage this module knows types of metrics, of version 2 only.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ..process import log
from ..process.interruption import let_through
from .labels import around_bound, series_of

VERSION2 = "#version2"
"""How the names of our notes about version 2 begin: ``#version2:<metric>`` says that its data is not to be taken over again."""
DEFAULT_PREFIX = "prometheus"
"""Version 2's `redis_prefix`, where it was given none."""

SUFFIXES = {
    "counter": frozenset({"_total", "_created"}),
    "gauge": frozenset({""}),
    "summary": frozenset({"_count", "_sum", "_created"}),
    "histogram": frozenset({"_bucket", "_count", "_sum", "_created"}),
}
"""How fields of version 2 begin, by the type of their metric."""
_FIELD = re.compile(r"(?:_total|_created|_count|_sum|_bucket|):(\{.*\})", re.DOTALL)


def taken_over(stored: Mapping[str, Any], meta: str) -> dict[str, float]:
    """Our fields for a metric of version 2. Raises ValueError, with the reason, for fields that we cannot continue."""
    declared = json.loads(meta)
    kind, mode = declared["type"], declared["mode"]
    numbers = {field: _number(field, value) for field, value in stored.items()}
    found = {field.partition(":")[0] for field in numbers}
    if not found <= SUFFIXES.get(kind, frozenset()):
        raise ValueError(f"it was a {_kind_of(found)} there and is declared as {kind} now")
    if mode != "shared":
        raise ValueError(f"it was one value for all processes there and has multiprocess_mode={mode!r} now")
    return _one_by_one(numbers) if kind == "histogram" else numbers


def report(name: str, where: str, reason: str) -> None:
    """Log that the data of a metric, which is at that place, is not taken over."""
    text = "metric %s starts anew, since what version 2 stored in %s cannot be taken over: %s"
    log.defer(logging.WARNING, text, name, where, reason)


def _number(field: str, value: Any) -> float:
    """The value of a field, which must be one of version 2."""
    found = _FIELD.fullmatch(field)
    try:
        if found is not None and json.dumps(json.loads(found[1]), sort_keys=True, separators=(",", ":")) == found[1]:
            return float(value)
    except ValueError as error:  # the next line says more
        let_through(error)
    raise ValueError(f"expected fields and numbers as version 2 writes them, got {field!r:.80} with {value!r:.80}")


def _kind_of(found: Iterable[str]) -> str:
    """The type of a metric with such fields; ``_created`` alone fits several."""
    return next((kind for kind, suffixes in SUFFIXES.items() if suffixes.issuperset(found)), "mixture of types")


def _one_by_one(numbers: Mapping[str, float]) -> dict[str, float]:
    """The fields of histograms with their buckets one by one.

    A process in the middle of an observation has entered it in lower buckets, and not yet in higher ones and the count: it
    counts. So no bucket has less than the one below it.
    """
    fields: dict[str, float] = {}
    series: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for field, number in numbers.items():
        suffix, _, labels = field.partition(":")
        if suffix == "_bucket":
            series[series_of(field) or ""][json.loads(labels).get("le", "")] = number
        elif suffix == "_count":
            series.setdefault(labels, {})
        else:
            fields[field] = number
    for labels, buckets in series.items():
        before, after = around_bound(labels)
        buckets["+Inf"] = max(buckets.get("+Inf", 0.0), numbers.get(f"_count:{labels}", 0.0))
        below = 0.0
        for bound in sorted(buckets, key=float):
            if buckets[bound] > below:
                fields[f"_bucket:{before}{bound}{after}"] = buckets[bound] - below
                below = buckets[bound]
    return fields
