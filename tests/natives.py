"""The buckets of a native histogram by another program: the oracle of tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdc.family import Family
from pdc.native import NAN, Bucket, Native, bound, coarser, common
from pdc.storage import META, Batch, Kind, Limits, Operation, Snapshot, Storage, Update


@dataclass(frozen=True)
class Folded:
    """The observations of a series in buckets of one schema: their counts by indices."""

    schema: int
    zero_threshold: float
    zero_count: float
    positive: dict[int, float]
    negative: dict[int, float]
    nan: float

    @property
    def count(self) -> float:
        """The count of all observations."""
        return self.zero_count + sum(self.positive.values()) + sum(self.negative.values()) + self.nan

    @classmethod
    def of(cls, counts: Mapping[str, float], native: Native) -> Folded:
        """Fold the counts by the texts of their buckets."""
        buckets = [(Bucket.loads(text), count) for text, count in counts.items()]
        schema, zero = common(native, [bucket for bucket, _ in buckets])
        found: dict[str, dict[int, float]] = {"p": {}, "n": {}, "z": {}, NAN: {}}
        for bucket, count in buckets:
            kind, index = bucket.kind, 0
            if bucket.kind in "pn":
                index = coarser(bucket.index or 0, bucket.schema - schema)
                kind, index = ("z", 0) if zero is not None and index <= zero else (kind, index)
            found[kind][index] = found[kind].get(index, 0.0) + count
        threshold = 0.0 if zero is None else bound(schema, zero)
        return cls(schema, threshold, found["z"].get(0, 0.0), found["p"], found["n"], found[NAN].get(0, 0.0))


def coarsen(storage: Storage, name: str, most: int, sequence: int = 1) -> int:
    """Let the storage search the metric for writers to forget; return how many native buckets there are then."""
    limits = Limits(max_buckets=most)
    for more, operations in enumerate(([Operation(Kind.SET, "#search", 0.0)], [])):
        storage.apply(Batch("0-search", 2 * sequence + more, [Update(name, "{}", operations, limits=limits)]))
    return sum(field.startswith("_native:") for field in storage.read([name]).metrics[name])


def folded(snapshot: Snapshot, name: str, schema: int | None = None) -> Folded:
    """The native buckets of a metric with one series, also in a coarser schema."""
    fields = snapshot.metrics[name]
    native = Family.from_meta(fields[META]).resolution
    assert native is not None
    if schema is not None:
        native = Native(2.0**2.0**-schema, native.max_buckets, native.zero_threshold)
    stored = {field: value for field, value in fields.items() if field.startswith("_native:")}
    return Folded.of({field.split('"le":"')[1].split('"')[0]: float(value) for field, value in stored.items()}, native)
