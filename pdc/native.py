"""The arithmetic of native histograms, as client_golang and Prometheus have it.

A schema from -4 to 8 divides the positive numbers into buckets whose bounds are powers of ``2 ** 2**-schema``: the bucket of an
index has the numbers above that power to the index minus 1, up to and with that power to the index. Negative numbers have
buckets of their absolute values. Two buckets of a schema are one bucket of the next coarser schema, so that histograms of
different schemas add up exactly. The bucket around zero ends at the upper bound of a bucket, or has only zeros. A NaN is in no
bucket; it counts, as every observation does.

A storage has each bucket in a field of its own, whose label ``le`` is the `Bucket` as a text. The text has the schema, since
processes with different schemas may observe in one histogram.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterable
from functools import cache, lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

SCHEMAS = range(-4, 9)
"""The schemas of Prometheus, from the coarsest to the finest."""
NAN = "nan"
USUAL_CHANGES = 32
"""About how many buckets of a series change between two batches."""
_PRECISION = 128
"""Binary digits with which bounds are computed, more than a double has."""


class _Resolution(NamedTuple):
    factor: float
    max_buckets: int
    zero_threshold: float


class Native(_Resolution):
    """The resolution of a native histogram.

    `factor` limits the growth from one bucket bound to the next, `max_buckets` the buckets that one process uses in one series:
    over that it continues with larger buckets. Observations up to `zero_threshold` count as zeros, also negative ones; it is
    raised to the next bucket bound. Raises ValueError for impossible numbers.
    """

    __slots__ = ()

    def __new__(cls, factor: float = 1.1, max_buckets: int = 160, zero_threshold: float = 2.0**-128) -> Native:
        """Check the numbers."""
        if not isinstance(factor, (int, float)) or not factor > 1:
            raise ValueError(f"factor must be a number above 1, as 1.1, got {factor!r}")
        if isinstance(max_buckets, bool) or not isinstance(max_buckets, int) or max_buckets < 1:
            raise ValueError(f"max_buckets must be a whole number from 1 on, as 160, got {max_buckets!r}")
        if not isinstance(zero_threshold, (int, float)) or not 0 <= zero_threshold < sys.float_info.max:
            raise ValueError(f"zero_threshold must be a finite number from 0 on, as 0.001, got {zero_threshold!r}")
        return super().__new__(cls, factor, max_buckets, zero_threshold)

    @property
    def most_stored(self) -> int:
        """The most fields of buckets that all processes together leave in one series of a storage; see `coarsened`."""
        return 2 * self.max_buckets

    @property
    def schema(self) -> int:
        """The coarsest schema whose bounds grow by the factor at most; the finest one where no schema does."""
        return next((schema for schema in SCHEMAS if 2.0**2.0**-schema <= self.factor), SCHEMAS[-1])

    def zero_index(self, schema: int) -> int | None:
        """The index of the highest bucket that counts as zero in that schema; None where only zeros do."""
        return index_of(schema, self.zero_threshold) if self.zero_threshold else None


@lru_cache(maxsize=256)
def resolution(fields: tuple[Any, ...]) -> Native:
    """The resolution with these fields. Raises errors for fields that no version wrote."""
    return Native(*fields)


class Bucket:
    """A bucket of a native histogram."""

    __slots__ = ("index", "kind", "schema")

    def __init__(self, schema: int, kind: str, index: int | None = None) -> None:
        self.schema = schema
        self.kind = kind
        """``p`` for positive numbers, ``n`` for negative ones, ``z`` for zero; ``nan`` is no bucket, but has a count, too."""
        self.index = index
        """For ``z`` the index of the highest bucket that it includes; None where it has zeros only."""

    @classmethod
    @lru_cache(maxsize=4096)
    def loads(cls, text: str) -> Bucket:
        """Parse the text. Raises ValueError for any other one."""
        if text == NAN:
            return cls(SCHEMAS[-1], NAN)
        for kind in "pnz":
            schema, found, index = text.partition(kind)
            if found and int(schema) in SCHEMAS and (index or kind == "z"):
                return cls(int(schema), kind, int(index) if index else None)
        raise ValueError(f"expected a bucket of a native histogram, as 3p17, got {text!r}")

    def dumps(self) -> str:
        """The bucket as a text: ``3p17``, ``3n-5``, ``3z-1024``, ``3z`` or ``nan``."""
        return NAN if self.kind == NAN else f"{self.schema}{self.kind}{'' if self.index is None else self.index}"

    @property
    def limits(self) -> tuple[float, float]:
        """The numbers between which those of the bucket are."""
        if self.kind not in "pn" or self.index is None:
            end = math.inf if self.kind == NAN else _end_of_zero(self.schema, self.index)
            return end, end
        lower, upper = bound(self.schema, self.index - 1), bound(self.schema, self.index)
        return (lower, upper) if self.kind == "p" else (-upper, -lower)

    def folded(self, schema: int) -> Bucket:
        """The bucket of that schema, no finer one, that includes this one."""
        index = None if self.index is None else coarser(self.index, self.schema - schema)
        return Bucket(schema, self.kind, index)


def place(bucket: Bucket, schema: int, zero: int | None) -> tuple[str, int]:
    """The kind and the index of the bucket to which this one is folded."""
    if bucket.kind not in "pn" or bucket.index is None:
        return bucket.kind, 0
    index = coarser(bucket.index, bucket.schema - schema)
    return ("z", 0) if zero is not None and index <= zero else (bucket.kind, index)


def common(native: Native, buckets: Iterable[Bucket]) -> tuple[int, int | None]:
    """The coarsest schema of the buckets and the declaration, and the index of the highest bucket that counts as zero there."""
    counted = [bucket for bucket in buckets if bucket.kind != NAN]
    schema = min([native.schema, *(bucket.schema for bucket in counted)])
    zeros = [native.zero_index(schema)]
    zeros += [bucket.folded(schema).index for bucket in counted if bucket.kind == "z"]
    return schema, max((index for index in zeros if index is not None), default=None)


def coarsened(texts: Collection[str], most: int) -> dict[str, str]:
    """The stored buckets to add to others so that at most so many are left; each with the bucket that includes it.

    Buckets of the finest schema go to the next coarser one, and so on, no further than it takes. Where another bucket is in a
    coarser schema, readers see the same as before. More are left only in the coarsest schema.
    """
    found = {text: text for text in texts}
    finest = max((Bucket.loads(text).schema for text in texts if text != NAN), default=SCHEMAS[0])
    for schema in range(finest, SCHEMAS[0], -1):
        if len({*found.values()}) <= most:
            break
        found = {text: _in_next_schema(into, schema) for text, into in found.items()}
    return {text: into for text, into in found.items() if into != text}


def _in_next_schema(text: str, schema: int) -> str:
    """The stored bucket of the next coarser schema that includes this one, if this is one of that schema."""
    bucket = Bucket.loads(text)
    return text if bucket.kind == NAN or bucket.schema != schema else bucket.folded(schema - 1).dumps()


def coarser(index: int, steps: int) -> int:
    """The index of the bucket that includes this one, so many schemas coarser."""
    return -(-index >> steps)


@cache
def _fractions(schema: int) -> tuple[float, ...]:
    """The bounds of a schema above 0 from 1/2 on, below 1: the nearest doubles, on every machine."""
    root = 2 << _PRECISION  # with so many binary digits after the point
    for _ in range(schema):
        root = math.isqrt(root << _PRECISION)
    powers = accumulate(range(1, 2**schema), lambda power, _: power * root >> _PRECISION, initial=1 << _PRECISION)
    return tuple(math.ldexp(power, -_PRECISION - 1) for power in powers)


def index_of(schema: int, value: float) -> int:
    """The index of the bucket of a number above 0."""
    if value == math.inf:
        return last(schema) + 1
    fraction, exponent = math.frexp(value)
    if schema > 0:
        fractions = _fractions(schema)
        return bisect_left(fractions, fraction) + (exponent - 1) * len(fractions)
    return coarser(exponent - (fraction == 0.5), -schema)


def last(schema: int) -> int:
    """The index of the last bucket of finite numbers. The next one has infinity."""
    return coarser(1024 << max(schema, 0), max(-schema, 0))


def bound(schema: int, index: int) -> float:
    """The upper bound of a bucket: the largest number in it. It is 0 where all numbers in it are too small for a double."""
    if index >= last(schema):
        return sys.float_info.max if index == last(schema) else math.inf
    if schema <= 0:
        return math.ldexp(1.0, index << -schema)
    fractions = _fractions(schema)
    exponent, step = divmod(index, len(fractions))
    found = math.ldexp(fractions[step], exponent + 1)
    while found and index_of(schema, found) > index:  # a small number has fewer digits
        found = math.nextafter(found, 0.0)
    return found


@lru_cache(maxsize=256)
def in_order(buckets: frozenset[str], native: Native) -> tuple[str | float, ...]:
    """The stored buckets, from the lowest numbers to the highest, and between them the bounds that a text format shows.

    A bound comes after all buckets below it. Bounds are the limits of all powers of two with observations (in a schema below 0
    of such larger steps as its buckets have), those of the zero bucket if there are negative numbers, and infinity. A bound
    below 0 belongs to the bucket above it, unlike that of a text format, where an observation equal to it is below.
    """
    schema, zero = common(native, map(Bucket.loads, buckets))
    shown = {math.inf}
    steps: list[tuple[float, int, str | float]] = []
    for text in buckets:
        end, bounds = _limits(text, schema, zero)
        steps.append((end, 0, text))
        shown.update(bounds)
    if min(shown) < 0:
        shown.add(0.0 - _end_of_zero(schema, zero))
    steps += ((each, 1, each) for each in shown)
    steps.sort(key=itemgetter(0, 1))
    return tuple(each for *_, each in steps)


@lru_cache(maxsize=8192)
def _limits(text: str, schema: int, zero: int | None) -> tuple[float, tuple[float, ...]]:
    """The highest number of the stored bucket in that schema, and the limits of its power of two."""
    bucket, least = Bucket.loads(text), _end_of_zero(schema, zero)
    kind, index = place(bucket, schema, zero)
    if kind not in "pn":
        return (math.inf, ()) if kind == NAN else (least, (least,))
    octave = coarser(index, schema - min(schema, 0))
    lower, upper = (max(bound(min(schema, 0), each), least) for each in (octave - 1, octave))
    if kind == "p":
        return min(upper, bound(schema, index)), (lower, upper)
    return -max(bound(schema, index - 1), lower), (0.0 - lower,) if upper == math.inf else (0.0 - lower, -upper)


def _end_of_zero(schema: int, zero: int | None) -> float:
    return 0.0 if zero is None else bound(schema, zero)


def native_changes(old: tuple[float, ...], new: tuple[float, ...]) -> list[str]:
    """The difference between two resolutions of a histogram, in words; empty where there is none."""
    before = f"native buckets (factor {old[0]:g})" if old else "no native buckets"
    if old and not new:
        return [f"had {before}, has none now: set PDC_NATIVE_HISTOGRAMS, or native=, in this process, too"]
    return [f"had {before}, has factor {new[0]:g} now"] if old != new else []
