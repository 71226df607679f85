"""The changes that bring the series of one storage into another one, each exactly once.

The other storage has a field beside each series, ``#copied:<writer>:<labels>``, with the numbers that it got so far. A batch
changes both at once, so that a copy which is repeated, or broken off, adds only the rest.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..exemplars import EXEMPLAR
from ..family import Family, Fields, dump, number
from ..native import Bucket
from ..storage import Kind, Operation, Stamped
from ..storage.labels import around_bound
from .words import own_values

LIMIT = 100
"""The most series of a batch: a histogram has many numbers."""
COPIED = "#copied:"
BEGUN, SUM, NATIVE = "_created", "_sum", "_native"
ADDED = ("counter", "summary", "histogram")
"""The types whose numbers add up."""


class Part(NamedTuple):
    """The changes of one series; empty where it has not changed."""

    operations: list[Operation]


class Copier:
    """Copies a metric to a storage that knows the source by that writer, and has these fields of the metric."""

    def __init__(self, family: Family, writer: str, there: Fields) -> None:
        self._family = family
        self._writer = writer
        self._there = there

    def _record(self, labels: str) -> str:
        return f"{COPIED}{self._writer}:{labels}"

    def _copied(self, labels: str) -> dict[str, Any]:
        """The numbers of a series that were copied so far."""
        found: dict[str, Any] = json.loads(self._there.get(self._record(labels), "{}"))
        return found

    def numbers_of(self, fields: Fields) -> Iterator[Part]:
        """The changes of each series with one value for all processes."""
        series: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for field, pairs, (suffix, bound) in self._family.located(fields):
            series[dump(dict(pairs))][suffix + bound] = field
        for labels, names in series.items():
            yield self._part(labels, names, fields)

    def _part(self, labels: str, names: Mapping[str, str], fields: Fields) -> Part:
        """The changes of the series that has these fields, each by the end of its name and the bound of its bucket."""
        stored = {key: fields[field] for key, field in names.items()}
        is_added = self._family.type in ADDED
        values, copied, coarser = _in_one_schema(stored, self._copied(labels), around_bound(labels))
        if is_added and _began_again(values, copied):
            copied = {}
        change = self._added if is_added else self._replaced
        now, operations = dict(copied), []
        for key, value in values.items():
            field = names[key] if key in names else coarser[key]
            if key == BEGUN:
                operations.append(Operation(Kind.INIT, field, float(value)))
                now[key] = value
            elif (operation := change(field, value, copied.get(key))) is not None:
                operations.append(operation)
                now[key] = value
            if (exemplar := fields.get(EXEMPLAR + field)) is not None:
                operations.append(Operation(Kind.INIT, EXEMPLAR + field, exemplar))
        if now == copied:
            return Part([])
        if coarser:
            now = {key: value for key, value in now.items() if key not in coarser} | stored
        return Part([*operations, Operation(Kind.SET, self._record(labels), json.dumps(now, separators=(",", ":")))])

    def _added(self, field: str, value: Any, copied: Any) -> Operation | None:
        """Add the part that was not copied yet."""
        stored, before = number(value), number(copied or 0.0)
        return None if copied is not None and stored == before else Operation(Kind.ADD, field, stored - before)

    def _replaced(self, field: str, value: Any, copied: Any) -> Operation | None:
        """Set a gauge or a text that nobody has changed in the other storage since it was copied."""
        read: Callable[[Any], Any] = number if self._family.type == "gauge" else str
        stored = read(value)
        if copied is None:
            return Operation(Kind.INIT, field, stored)
        before = read(copied)
        if stored == before or field not in self._there or read(self._there[field]) != before:
            return None
        if self._family.type == "gauge":
            return Operation(Kind.ADD, field, stored - before)
        return Operation(Kind.SET, field, stored)

    def values_of(self, fields: Fields, now: float) -> Iterator[Part]:
        """The changes of each series that has a value per process: all processes together are one writer."""
        merged: dict[str, tuple[float, float]] = {}
        for own in own_values(self._family, fields):
            merged[own.labels] = self._merged(merged.get(own.labels), (own.value, own.set_at))
        for labels, (value, set_at) in merged.items():
            field = f"{self._family.process_prefix(self._writer)}{labels}"
            copied = self._copied(labels)
            is_folded = bool(copied) and field not in self._there  # the storage has forgotten this writer after a day
            if is_folded or copied.get("") == value:
                yield Part([])
            else:
                stamped = Stamped(value, time.monotonic() - max(now - set_at, 0.0))
                record = Operation(Kind.SET, self._record(labels), json.dumps({"": value}))
                yield Part([Operation(Kind.STAMP, field, stamped), record])

    def _merged(self, first: tuple[float, float] | None, other: tuple[float, float]) -> tuple[float, float]:
        """Two values and their times as one."""
        if first is None:
            return other
        (value, set_at), (new, new_set_at) = first, other
        latest = max(set_at, new_set_at)
        if self._family.mode == "mostrecent":
            return first if set_at >= new_set_at else other
        return {"sum": value + new, "min": min(value, new), "max": max(value, new)}[self._family.mode], latest


def _in_one_schema(stored: Fields, copied: Fields, around: tuple[str, str]) -> tuple[Fields, Fields, dict[str, str]]:
    """The stored and the copied numbers of a series, and the fields of their native buckets where these were folded.

    They are folded to one schema where the storage has added some that were copied to coarser ones since.
    """
    if all(number(stored.get(key, 0.0)) >= number(value) for key, value in copied.items() if key.startswith(NATIVE)):
        return stored, copied, {}
    schema = min(_bucket(key).schema for key in (*stored, *copied) if key.startswith(NATIVE))
    before, after = around
    coarser = {
        NATIVE + text: f"{NATIVE}:{before}{text}{after}"
        for text in {_bucket(key).folded(schema).dumps() for key in (*stored, *copied) if key.startswith(NATIVE)}
    }
    return _folded(stored, schema), _folded(copied, schema), coarser


def _bucket(key: str) -> Bucket:
    return Bucket.loads(key.removeprefix(NATIVE))


def _folded(values: Fields, schema: int) -> Fields:
    """The numbers with those of native buckets added up in that schema."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith(NATIVE):
            into = NATIVE + _bucket(key).folded(schema).dumps()
            found[into] = found.get(into, 0.0) + number(value)
        else:
            found[key] = value
    return found


def _began_again(values: Fields, copied: Fields) -> bool:
    """True for a series that was deleted since it was copied, and began anew: a count is lower, or its time is another one."""
    pairs = [(key, float(values[key]), float(copied[key])) for key in values.keys() & copied.keys()]
    return any(now != before if key == BEGUN else now < before for key, now, before in pairs if key != SUM)
