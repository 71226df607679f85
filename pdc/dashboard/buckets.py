"""Native buckets as classic ones, so that estimates of quantiles are as exact as their schema."""

from __future__ import annotations

import re
from typing import Any

from ..family import Family, Fields, bucket_bounds, explained, number
from ..native import Bucket
from ..storage import META

_NATIVE = re.compile(r'(_native:.*"le":")([^"]+)(".*)')


def as_classic(name: str, fields: Fields) -> Fields:
    """The fields of a metric; a histogram that has native buckets alone gets classic ones with their bounds.

    Raises StorageError for fields that pdc did not write.
    """
    with explained(name):
        family = Family.from_meta(fields[META]) if '"native"' in fields.get(META, "") else None
        if family is None or not family.native or family.classic:
            return fields
        found: dict[str, Any] = {**fields, META: family._replace(native=()).meta}
        for field in [each for each in fields if each.startswith("_native:")]:
            count = number(found.pop(field))
            if (parts := _NATIVE.fullmatch(field)) is None:
                raise ValueError(f"expected the field of a native bucket, got {field!r}")
            start, text, end = parts.groups()
            for bound, added in zip(bucket_bounds(Bucket.loads(text).limits), (0.0, count), strict=True):
                classic = f"_bucket{start.removeprefix('_native')}{bound}{end}"
                found[classic] = found.get(classic, 0.0) + added
        return found
