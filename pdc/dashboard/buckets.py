"""Native buckets as classic ones, so that estimates of quantiles are as exact as their schema."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

from ..family import Family, Fields, bucket_bounds, explained, number
from ..native import Bucket, common
from ..storage import META
from ..storage.labels import NATIVE

SMALLEST = math.ulp(0.0)
_NATIVE = re.compile(r'_native(:.*"le":")([^"]+)(".*)')


def as_classic(name: str, fields: Fields) -> Fields:
    """The fields of a metric; a histogram that has native buckets alone gets classic ones with their bounds.

    The bounds of a series are those of its coarsest schema: no count falls where the storage adds buckets to coarser ones.
    Raises StorageError for fields that pdc did not write.
    """
    with explained(name):
        family = Family.from_meta(fields[META]) if '"native"' in fields.get(META, "") else None
        native = None if family is None else family.resolution
        if family is None or native is None or family.classic:
            return fields
        found: dict[str, Any] = {**fields, META: family._replace(native=()).meta}
        for (start, end), counts in _series(found).items():
            schema, _ = common(native, map(Bucket.loads, counts))
            is_signed = any(Bucket.loads(text).kind == "n" for text in counts)
            for text, count in counts.items():
                limits = _limits(Bucket.loads(text).folded(schema), is_signed=is_signed)
                for bound, added in zip(bucket_bounds(limits), (0.0, count), strict=True):
                    classic = f"_bucket{start}{bound}{end}"
                    found[classic] = found.get(classic, 0.0) + added
        return found


def _limits(bucket: Bucket, *, is_signed: bool) -> tuple[float, float]:
    """The limits of a bucket; in a series that `is_signed`, that of zeros begins below 0, where the negative ones end."""
    lower, upper = bucket.limits
    return (-upper or -SMALLEST if is_signed and bucket.kind == "z" else lower), upper


def _series(fields: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Take the native buckets out of the fields: their counts, by the text of a field before and after the bucket."""
    series: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for field in [each for each in fields if each.startswith(NATIVE)]:
        count = number(fields.pop(field))
        if (parts := _NATIVE.fullmatch(field)) is None:
            raise ValueError(f"expected the field of a native bucket, got {field!r}")
        start, text, end = parts.groups()
        series[start, end][text] = count
    return series
