"""The messages of the protobuf format, ``io.prometheus.client.MetricFamily``, as templates: written without a library.

The parts of a message are bytes with gaps for its numbers. Gaps of one size for numbers of one kind make the lengths of
messages parts of the template. So counts are varints of eight bytes, which all decoders accept as they do shorter ones,
and times are two of five. Only exemplars and native buckets differ in size: lengths of messages around them fill gaps, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from math import nan
from struct import Struct
from typing import Any, NamedTuple

from prometheus_client.samples import Exemplar

from ..family import Key, number
from ..process.interruption import let_through
from .rendering import MOST_TEXTS

VARINT, DOUBLE, LENGTH = 0, 1, 2
"""Wire types: an integer, eight bytes, a length before a text or a message."""
FIELDS = {
    "MetricFamily": {"name": (1, LENGTH), "help": (2, LENGTH), "type": (3, VARINT), "metric": (4, LENGTH), "unit": (5, LENGTH)},
    "Metric": {
        "label": (1, LENGTH),
        "gauge": (2, LENGTH),
        "counter": (3, LENGTH),
        "summary": (4, LENGTH),
        "untyped": (5, LENGTH),
        "timestamp_ms": (6, VARINT),
        "histogram": (7, LENGTH),
    },
    "LabelPair": {"name": (1, LENGTH), "value": (2, LENGTH)},
    "Counter": {"value": (1, DOUBLE), "exemplar": (2, LENGTH), "created_timestamp": (3, LENGTH)},
    "Gauge": {"value": (1, DOUBLE)},
    "Untyped": {"value": (1, DOUBLE)},
    "Quantile": {"quantile": (1, DOUBLE), "value": (2, DOUBLE)},
    "Summary": {
        "sample_count": (1, VARINT),
        "sample_sum": (2, DOUBLE),
        "quantile": (3, LENGTH),
        "created_timestamp": (4, LENGTH),
    },
    "Histogram": {
        "sample_count": (1, VARINT),
        "sample_sum": (2, DOUBLE),
        "bucket": (3, LENGTH),
        "sample_count_float": (4, DOUBLE),
        "schema": (5, VARINT),
        "zero_threshold": (6, DOUBLE),
        "zero_count": (7, VARINT),
        "zero_count_float": (8, DOUBLE),
        "negative_span": (9, LENGTH),
        "negative_delta": (10, LENGTH),
        "negative_count": (11, LENGTH),
        "positive_span": (12, LENGTH),
        "positive_delta": (13, LENGTH),
        "positive_count": (14, LENGTH),
        "created_timestamp": (15, LENGTH),
        "exemplars": (16, LENGTH),
    },
    "BucketSpan": {"offset": (1, VARINT), "length": (2, VARINT)},
    "Bucket": {
        "cumulative_count": (1, VARINT),
        "upper_bound": (2, DOUBLE),
        "exemplar": (3, LENGTH),
        "cumulative_count_float": (4, DOUBLE),
    },
    "Exemplar": {"label": (1, LENGTH), "value": (2, DOUBLE), "timestamp": (3, LENGTH)},
    "Timestamp": {"seconds": (1, VARINT), "nanos": (2, VARINT)},
}
"""The fields of each message: number and wire type."""
MOST_WHOLE = 2**53
"""From here on not every whole number is a float."""
MOST_SECONDS = 2**35
"""Seconds since 1970 that have a varint of five bytes: until the year 3058."""
COUNT_SIZE, DOUBLE_SIZE, TIME_SIZE, LENGTH_SIZE = 9, 8, 12, 5
"""Bytes in the gaps for a count with its key, for a double, for the content of a Timestamp, and for a length."""
MORE_OF_5, MORE_OF_8 = 0x80808080, 0x80808080808080
"""The bits of varints of five and eight bytes that promise one more byte."""
_BYTES = tuple(bytes((value,)) for value in range(0x80))
_MORE = tuple(bytes((value | 0x80,)) for value in range(0x80))

encode_double: Callable[[float], bytes] = Struct("<d").pack


class Kept(dict[Any, bytes]):
    """The bytes that a function returns, by its arguments."""

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, value: Any) -> bytes:
        shown = self._encode(value)
        if value != 0 or self._encode is not encode_double:  # the zeros are equal, but one of them is negative
            if len(self) >= MOST_TEXTS:
                self.clear()
            self[value] = shown
        return shown


def numbers(values: Iterable[Any]) -> list[float]:
    """The stored values as `number` reads them."""
    read = [*values]
    try:
        return [*map(float, read)]
    except ValueError as error:
        let_through(error)
        return [*map(number, read)]


def varint(value: int) -> bytes:
    """The integer in as few bytes as it takes."""
    if value < 0x80:
        return _BYTES[value]
    return _MORE[value & 0x7F] + varint(value >> 7)


def zigzag(value: int) -> bytes:
    """The integer, which may be negative, as the types sint32 and sint64 have it."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


def _keys() -> dict[str, bytes]:
    """The bytes before the content of each field: number and wire type."""
    fields = ((f"{message}.{name}", *about) for message, known in FIELDS.items() for name, about in known.items())
    return {name: varint(number << 3 | wire) for name, number, wire in fields}


KEYS = _keys()


def content(name: str, value: bytes) -> bytes:
    """The field of a message with that text or message as its content."""
    return KEYS[name] + varint(len(value)) + value


@lru_cache(maxsize=1024)
def pair(field: str, name: str) -> Callable[[str], bytes]:
    """A function that encodes values of a label as that field."""
    named = content("LabelPair.name", name.encode()) + KEYS["LabelPair.value"]

    def head(size: int) -> bytes:
        """The bytes before a value of that size."""
        inner = named + varint(size)
        return KEYS[field] + varint(len(inner) + size) + inner

    heads = Kept(head)

    def encode(value: str) -> bytes:
        raw = value.encode()
        return heads[len(raw)] + raw

    return encode


def _padded(value: int, more: int) -> int:
    """The bytes of the integer below 2**56 as a varint, as an integer: the first byte is the lowest. `more` gives its size."""
    low = value & 0x7F | value << 1 & 0x7F00 | more
    if value < 0x4000:
        return low
    low |= value << 2 & 0x7F0000 | value << 3 & 0x7F000000 | value << 4 & 0x7F00000000
    return low | value << 5 & 0x7F0000000000 | value << 6 & 0x7F000000000000 | value << 7 & 0x7F00000000000000


def encode_whole(value: float) -> bytes:
    """A count of a summary with its key; the nearest whole number, since the format has no other counts of summaries."""
    near = 0 if value != value else round(min(max(value, 0.0), MOST_WHOLE))
    return (_padded(near, MORE_OF_8) << 8 | 0x08).to_bytes(COUNT_SIZE, "little")


def encode_count(value: float) -> bytes:
    """A count of a histogram with its key, as an integer where it is one: keys of both kinds are alike in all messages."""
    if 0 <= value < MOST_WHOLE and value == (exact := int(value)):
        return (_padded(exact, MORE_OF_8) << 8 | 0x08).to_bytes(COUNT_SIZE, "little")
    return b"\x21" + encode_double(value)


def encode_time(value: float) -> bytes:
    """The content of a Timestamp, rounded to microseconds, which is all that a float has; 0 for no time after 1970."""
    seconds, micros = divmod(round(value * 1e6), 1_000_000) if 0 <= value < MOST_SECONDS else (0, 0)
    found = 0x08 | _padded(seconds, MORE_OF_5) << 8 | 0x10 << 48 | _padded(1000 * micros, MORE_OF_5) << 56
    return found.to_bytes(TIME_SIZE, "little")


def exemplar_message(exemplar: Exemplar) -> bytes:
    """The exemplar with its length."""
    labels = [pair("Exemplar.label", name)(value) for name, value in sorted(exemplar.labels.items())]
    found = b"".join(labels) + KEYS["Exemplar.value"] + encode_double(exemplar.value)
    if exemplar.timestamp is not None:
        found += content("Exemplar.timestamp", encode_time(float(exemplar.timestamp)))
    return varint(len(found)) + found


class Length(NamedTuple):
    """The length of a message with inserts."""

    size: int
    inserts: tuple[int, ...]

    def of(self, inserts: Mapping[int, bytes]) -> bytes:
        """The length with these inserts, as a varint that fills its gap."""
        size = self.size + sum(len(inserts[each]) for each in self.inserts)
        return _padded(size, MORE_OF_5).to_bytes(LENGTH_SIZE, "little")


class Part(NamedTuple):
    """A part of a message, as a template. Inserts are bytes of any size: exemplars, and native buckets."""

    template: bytes
    size: int
    """The size of the filled template without its inserts."""
    gaps: tuple[Any, ...] = ()
    """The indices of numbers; inverted ones (`~`) mean their inserts, and a `Length` is that of a message."""
    inserts: tuple[int, ...] = ()
    """The gaps of inserts."""

    def filled(self, numbers: Sequence[bytes], inserts: Mapping[int, bytes]) -> bytes:
        """The part with these numbers, and the inserts by their gaps."""
        return self.template % tuple([_value(gap, numbers, inserts) for gap in self.gaps])


def _value(gap: Any, numbers: Sequence[bytes], inserts: Mapping[int, bytes]) -> bytes:
    if isinstance(gap, Length):
        return gap.of(inserts)
    return inserts[gap] if gap < 0 else numbers[gap]


def _static(raw: bytes) -> Part:
    return Part(raw.replace(b"%", b"%%"), len(raw))


def _gap(gap: int, size: int, name: str = "") -> Part:
    """A gap of that size for a value, after the key of its field."""
    key = KEYS[name] if name else b""
    return Part(key + b"%s", len(key) + size, (gap,))


def _insert(gap: int, key: bytes = b"") -> Part:
    """The insert of a number, after that key."""
    return Part(key + b"%s", len(key), (~gap,), (~gap,))


def _joined(parts: Iterable[Part]) -> Part:
    """The parts as one."""
    templates, sizes, gaps, inserts = zip(*parts, strict=True)
    return Part(b"".join(templates), sum(sizes), tuple(chain(*gaps)), tuple(chain(*inserts)))


def _message(name: str, *parts: Part) -> Part:
    """The parts as the message in that field."""
    inner = _joined(parts)
    if inner.inserts:
        length = Part(b"%s", LENGTH_SIZE, (Length(inner.size, inner.inserts),))
        return _joined((_static(KEYS[name]), length, inner))
    return _joined((_static(KEYS[name] + varint(inner.size)), inner))


def _exemplar(name: str, gap: int, inserts: Collection[int]) -> Iterator[Part]:
    """The exemplar of a value, if it has one, where the message has such a field."""
    if gap in inserts and name in KEYS:
        yield _insert(gap, KEYS[name])


def _number(kind: str, keys: Sequence[Key], inserts: Collection[int]) -> Iterator[Part]:
    """The fields of Counter, Gauge and Untyped."""
    for gap, (suffix, _) in enumerate(keys):
        if suffix == "_created":
            yield _message(f"{kind}.created_timestamp", _gap(gap, TIME_SIZE))
        else:
            yield _gap(gap, DOUBLE_SIZE, f"{kind}.value")
            yield from _exemplar(f"{kind}.exemplar", gap, inserts)


def _distribution(kind: str, keys: Sequence[Key], inserts: Collection[int]) -> Iterator[Part]:
    """The fields of Summary and Histogram; the sum is NaN where there is no sum, since without the field it would be 0."""
    for gap, (suffix, bound) in enumerate(keys):
        if suffix == "_created":
            yield _message(f"{kind}.created_timestamp", _gap(gap, TIME_SIZE))
        elif suffix == "_bucket":
            limit = _static(KEYS["Bucket.upper_bound"] + encode_double(float(bound)))
            yield _message(f"{kind}.bucket", _gap(gap, COUNT_SIZE), limit, *_exemplar("Bucket.exemplar", gap, inserts))
        elif suffix == "_count":
            yield _gap(gap, COUNT_SIZE)
        elif suffix == "_sum":
            yield _gap(gap, DOUBLE_SIZE, f"{kind}.sample_sum")
        elif suffix == "_native":
            yield _insert(gap)
        else:
            quantile = _static(KEYS["Quantile.quantile"] + encode_double(float(bound)))
            yield _message(f"{kind}.quantile", quantile, _gap(gap, DOUBLE_SIZE, "Quantile.value"))
    if ("_sum", "") not in keys and NATIVE not in keys:
        yield _static(KEYS[f"{kind}.sample_sum"] + encode_double(nan))


NATIVE = ("_native", "")
"""The key of count, sum and native buckets, which are an insert."""
MESSAGES = {0: "Counter", 1: "Gauge", 2: "Summary", 3: "Untyped", 4: "Histogram"}
"""The message of each MetricType."""


@lru_cache(maxsize=256)
def value_part(kind: int, keys: tuple[Key, ...], inserts: tuple[int, ...] = ()) -> Part:
    """The message with the numbers of a series of that MetricType. Gaps have the indices of the keys; some have inserts."""
    message = MESSAGES[kind]
    fields = (_distribution if message in ("Summary", "Histogram") else _number)(message, keys, inserts)
    return _message(f"Metric.{message.lower()}", *fields)


def series_part(labels: bytes, value: Part, milliseconds: int | None = None) -> Part:
    """The message of a series with the fields of its labels, its value, and its time where it has one."""
    if milliseconds is not None:
        value = _joined((value, _static(KEYS["Metric.timestamp_ms"] + varint(milliseconds & (1 << 64) - 1))))
    return _message("MetricFamily.metric", _static(labels), value)


def series_templates(labels: Sequence[bytes], value: Part) -> list[bytes]:
    """The templates of series with these fields of labels, all with that value. Inserts make lengths gaps."""
    sizes = [*map(len, labels)]
    key = KEYS["MetricFamily.metric"]
    heads = {size: key + (b"%s" if value.inserts else varint(size + value.size).replace(b"%", b"%%")) for size in {*sizes}}
    shown = [each.replace(b"%", b"%%") for each in labels]
    return [*map(b"".join, zip(map(heads.__getitem__, sizes), shown, repeat(value.template), strict=False))]


def encoder_of(kind: int, suffix: str) -> Callable[[float], bytes]:
    """The function that encodes numbers with that suffix for the gaps of that MetricType."""
    if suffix == "_created":
        return encode_time
    if suffix == "_count" and MESSAGES[kind] == "Summary":
        return encode_whole
    return encode_count if suffix in ("_bucket", "_count") else encode_double


ENCODERS = (encode_double, encode_count, encode_whole, encode_time)
"""The functions that `encoder_of` returns."""
