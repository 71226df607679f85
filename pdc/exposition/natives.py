"""The native buckets of a series as fields of the message ``Histogram``, as client_golang sends them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from math import fsum, nan
from operator import sub
from struct import pack
from typing import Any, NamedTuple

from prometheus_client.samples import Exemplar

from ..exemplars import exemplar_from
from ..native import NAN, Bucket, Native, bound, common, place
from .protobuf import KEYS, MOST_WHOLE, Kept, content, encode_double, exemplar_message, numbers, varint, zigzag

MOST_EMPTY = 2
"""Empty buckets that are sent between two others: another span takes as much room."""
MOST_EXEMPLARS = 10
"""Exemplars of a series without classic buckets, whose buckets have their own."""


class Side(NamedTuple):
    """The buckets of positive or of negative numbers."""

    texts: tuple[str, ...]
    """The stored buckets, which are empty where one fills a gap."""
    runs: tuple[int, ...]
    """How many stored buckets are in each bucket; empty where it is always one."""
    spans: tuple[tuple[int, int], ...]
    """Offsets and lengths of consecutive buckets."""

    @classmethod
    def of(cls, buckets: Mapping[int, Sequence[str]]) -> Side:
        """The stored buckets by their indices in the schema of the series."""
        spans: list[tuple[int, int]] = []
        texts: list[Sequence[str]] = []
        end = 0
        for index in sorted(buckets):
            empty = index - end
            if spans and empty <= MOST_EMPTY:
                offset, length = spans.pop()
                spans.append((offset, length + empty + 1))
                texts += [("",)] * empty
            else:
                spans.append((empty, 1))
            texts.append(buckets[index])
            end = index + 1
        runs = tuple(map(len, texts))
        return cls(tuple(chain.from_iterable(texts)), runs if max(runs, default=1) > 1 else (), tuple(spans))

    def totals(self, counts: Iterator[float]) -> list[float]:
        """The counts of the buckets, from those of the stored ones."""
        if self.runs:
            return [fsum(islice(counts, run)) for run in self.runs]
        return [*islice(counts, len(self.texts))]


class Plan(NamedTuple):
    """The buckets of one schema, and the stored buckets that add up to them."""

    about: bytes
    """The fields of the schema, the zero threshold and the spans."""
    positive: Side
    negative: Side
    zero: tuple[str, ...]
    nan: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The stored buckets in the order of the counts."""
        return self.positive.texts + self.negative.texts + self.zero + self.nan

    def message(self, counts: Sequence[float], total: float) -> bytes:
        """The fields with these counts, and that sum of all observations: as floats unless all counts are whole numbers."""
        rest, observed = iter(counts), fsum(counts)
        positive, negative = self.positive.totals(rest), self.negative.totals(rest)
        zero, without = fsum(islice(rest, len(self.zero))), fsum(rest)
        shown = self.about + KEYS["Histogram.sample_sum"] + encode_double(nan if without else total)
        if all(map(float.is_integer, counts)) and min(counts, default=0.0) >= 0 and observed < MOST_WHOLE:
            shown += KEYS["Histogram.sample_count"] + varint(int(observed)) + KEYS["Histogram.zero_count"] + varint(int(zero))
            return shown + _deltas("positive", positive) + _deltas("negative", negative)
        shown += KEYS["Histogram.sample_count_float"] + encode_double(observed)
        shown += KEYS["Histogram.zero_count_float"] + encode_double(zero)
        return shown + _floats("positive", positive) + _floats("negative", negative)


@lru_cache(maxsize=1024)
def plan_of(texts: frozenset[str], native: Native) -> Plan:
    """The plan for these stored buckets. The declared resolution is one of the schemas, of which the coarsest is shown."""
    buckets = {text: Bucket.loads(text) for text in sorted(texts)}
    schema, zero = common(native, buckets.values())
    found: dict[str, dict[int, list[str]]] = {"p": {}, "n": {}, "z": {}, NAN: {}}
    for text, bucket in buckets.items():
        kind, index = place(bucket, schema, zero)
        found[kind].setdefault(index, []).append(text)
    positive, negative = Side.of(found["p"]), Side.of(found["n"])
    threshold = 0.0 if zero is None else bound(schema, zero)
    about = KEYS["Histogram.schema"] + zigzag(schema) + KEYS["Histogram.zero_threshold"] + encode_double(threshold)
    spans = _spans("positive", positive.spans) + _spans("negative", negative.spans)
    if not threshold and not spans:  # only this span shows that the histogram is a native one
        spans = _spans("positive", [(0, 0)])
    return Plan(about + spans, positive, negative, *(tuple(chain.from_iterable(found[kind].values())) for kind in ("z", NAN)))


_DELTAS = Kept(lambda value: zigzag(int(value)))


class NativeFields:
    """The fields of a series with native buckets. The bytes of its numbers are kept until one changes."""

    def __init__(self, plan: Plan, counts: array[int], total: int, exemplars: array[int]) -> None:
        self._plan = plan
        self._numbers = array("I", [*counts, total])
        self._exemplars = exemplars
        self._last = b"", b""

    def shown(self, stored: Sequence[Any]) -> bytes:
        """The fields of the message with the stored values."""
        read = numbers(map(stored.__getitem__, self._numbers))
        before, shown = self._last
        if (now := array("d", read).tobytes()) != before:
            shown = self._plan.message(read[:-1], read[-1])
            self._last = now, shown
        if not self._exemplars:
            return shown
        exemplars = sorted((exemplar_from(stored[field]) for field in self._exemplars), key=_moment)[-MOST_EXEMPLARS:]
        return shown + b"".join([KEYS["Histogram.exemplars"] + exemplar_message(each) for each in exemplars])


def _moment(exemplar: Exemplar) -> float:
    return float(exemplar.timestamp or 0.0)


def _spans(side: str, spans: Iterable[tuple[int, int]]) -> bytes:
    """The spans as fields."""
    texts = (
        KEYS["BucketSpan.offset"] + zigzag(offset) + KEYS["BucketSpan.length"] + varint(length) for offset, length in spans
    )
    return b"".join(content(f"Histogram.{side}_span", text) for text in texts)


def _deltas(side: str, counts: list[float]) -> bytes:
    """The counts as whole numbers, each as the difference from the one before."""
    deltas = b"".join(map(_DELTAS.__getitem__, map(sub, counts, [0.0, *counts])))
    return content(f"Histogram.{side}_delta", deltas) if counts else b""


def _floats(side: str, counts: list[float]) -> bytes:
    return content(f"Histogram.{side}_count", pack(f"<{len(counts)}d", *counts)) if counts else b""
