"""Decodes the protobuf format with Google's library, from a table of its own of the fields that Prometheus reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, proto
from prometheus_client.utils import floatToGoString

PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
"""The content type of a page, before the name of an escaping."""
PACKAGE = "io.prometheus.client"
TYPES = {
    "double": 1,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "string": 9,
    "message": 11,
    "uint32": 13,
    "enum": 14,
    "sint32": 17,
    "sint64": 18,
}
"""The numbers of `google.protobuf.FieldDescriptorProto.Type`."""
METRIC_TYPES = ("COUNTER", "GAUGE", "SUMMARY", "UNTYPED", "HISTOGRAM", "GAUGE_HISTOGRAM")
MESSAGES = """
LabelPair: 1 string name, 2 string value
Gauge: 1 double value
Counter: 1 double value, 2 Exemplar exemplar, 3 Timestamp created_timestamp
Quantile: 1 double quantile, 2 double value
Summary: 1 uint64 sample_count, 2 double sample_sum, 3 repeated Quantile quantile, 4 Timestamp created_timestamp
Untyped: 1 double value
Histogram: 1 uint64 sample_count, 4 double sample_count_float, 2 double sample_sum, 3 repeated Bucket bucket,
 15 Timestamp created_timestamp, 5 sint32 schema, 6 double zero_threshold, 7 uint64 zero_count, 8 double zero_count_float,
 9 repeated BucketSpan negative_span, 10 repeated sint64 negative_delta, 11 repeated double negative_count,
 12 repeated BucketSpan positive_span, 13 repeated sint64 positive_delta, 14 repeated double positive_count,
 16 repeated Exemplar exemplars
Bucket: 1 uint64 cumulative_count, 4 double cumulative_count_float, 2 double upper_bound, 3 Exemplar exemplar
BucketSpan: 1 sint32 offset, 2 uint32 length
Exemplar: 1 repeated LabelPair label, 2 double value, 3 Timestamp timestamp
Metric: 1 repeated LabelPair label, 2 Gauge gauge, 3 Counter counter, 4 Summary summary, 5 Untyped untyped,
 7 Histogram histogram, 6 int64 timestamp_ms
MetricFamily: 1 string name, 2 string help, 3 MetricType type, 4 repeated Metric metric, 5 string unit
Timestamp: 1 int64 seconds, 2 int32 nanos
"""


def _family_class() -> Any:
    """The class of MetricFamily."""
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package=PACKAGE, syntax="proto2")
    kinds = file.enum_type.add(name="MetricType")
    for number, name in enumerate(METRIC_TYPES):
        kinds.value.add(name=name, number=number)
    for line in MESSAGES.replace(",\n", ",").strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for field in fields.split(","):
            *words, kind, field_name = field.split()
            added = message.field.add(name=field_name, number=int(words[0]), label=3 if "repeated" in words else 1)
            if kind not in TYPES:
                added.type_name = f".{PACKAGE}.{kind}"
            added.type = TYPES.get(kind, TYPES["enum" if kind == "MetricType" else "message"])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.MetricFamily"))


MetricFamily = _family_class()


Row = tuple[Any, ...]
"""Name, labels, and a value, an exemplar or the time of creation."""


def decoded(body: bytes) -> list[Any]:
    """The families of a page, without fields that the table does not have."""
    families, rest = [], io.BytesIO(body)
    while (family := proto.parse_length_prefixed(MetricFamily, rest)) is not None:
        known = family.SerializeToString()
        family.DiscardUnknownFields()
        assert family.SerializeToString() == known
        families.append(family)
    return families


def rows(body: bytes) -> Iterator[Row]:
    """Yield the numbers of a page as samples, as Prometheus reads them, each followed by its exemplar."""
    for family in decoded(body):
        for metric in family.metric:
            labels = tuple((label.name, label.value) for label in metric.label)
            if family.type in (2, 4, 5):
                yield from _distribution(family.name, labels, metric.summary if family.type == 2 else metric.histogram)
            else:
                yield from _number(family.name, labels, (metric.counter, metric.gauge, None, metric.untyped)[family.type])


def _number(name: str, labels: Row, message: Any) -> Iterator[Row]:
    yield name, labels, "value", repr(message.value)
    yield from _further(name, labels, message)


def _distribution(name: str, labels: Row, message: Any) -> Iterator[Row]:
    for quantile in getattr(message, "quantile", ()):
        yield name, (*labels, ("quantile", floatToGoString(quantile.quantile))), "value", repr(quantile.value)
    for bucket in getattr(message, "bucket", ()):
        le = (*labels, ("le", floatToGoString(bucket.upper_bound)))
        yield f"{name}_bucket", le, "value", _count(bucket, "cumulative_count")
        yield from _further(f"{name}_bucket", le, bucket)
    yield f"{name}_count", labels, "value", _count(message, "sample_count")
    yield f"{name}_sum", labels, "value", repr(message.sample_sum)
    yield from _further(name, labels, message)


def _count(message: Any, field: str) -> str:
    """The count, which is an integer or a float."""
    found = [value for known, value in message.ListFields() if known.name in (field, f"{field}_float")]
    assert len(found) == 1
    return repr(float(found[0]))


def _further(name: str, labels: Row, message: Any) -> Iterator[Row]:
    """Yield the exemplar and the time of creation that the message has."""
    for field, found in message.ListFields():
        if field.name == "exemplar":
            at = seconds(found.timestamp) if found.HasField("timestamp") else None
            yield name, labels, "exemplar", ([(label.name, label.value) for label in found.label], repr(found.value), at)
        elif field.name == "created_timestamp":
            yield name, labels, "created", seconds(found)


def seconds(timestamp: Any) -> float:
    """The time in seconds."""
    found: float = timestamp.seconds + timestamp.nanos / 1e9
    return found


def native(histogram: Any) -> tuple[Any, ...]:
    """Schema, zero threshold, zero count, the buckets of positive and negative numbers by their indices, count and sum."""
    found = {field.name: value for field, value in histogram.ListFields()}
    zero = found.get("zero_count_float", float(found.get("zero_count", 0)))
    count = found.get("sample_count_float", float(found.get("sample_count", 0)))
    sides = [_buckets(found, side) for side in ("positive", "negative")]
    return histogram.schema, histogram.zero_threshold, zero, *sides, count, histogram.sample_sum


def _buckets(found: dict[str, Any], side: str) -> dict[int, float]:
    """The buckets in the spans of a side, which are counts or differences of counts, without empty ones."""
    counts = iter(found.get(f"{side}_count") or accumulate(found.get(f"{side}_delta", ())))
    buckets, index = {}, 0
    for span in found.get(f"{side}_span", ()):
        index += span.offset
        buckets.update({index + place: float(next(counts)) for place in range(span.length)})
        index += span.length
    assert not [*counts]
    return {index: count for index, count in buckets.items() if count}
