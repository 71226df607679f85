"""Finds native buckets to add to coarser ones: processes with other buckets leave more and more fields in a series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..native import coarsened
from .labels import NATIVE, around_bound, without_bound

MOST_ADDED = 250
"""How many buckets one call adds to others."""


def coarser_fields(fields: Iterable[str], most: int) -> Iterator[tuple[str, str]]:
    """Yield the fields of native buckets whose counts are to be added to other fields, each with the other one.

    At most so many are left of each series. Series with buckets that no version wrote stay as they are.
    """
    series: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for field in fields:
        with suppress(ValueError, TypeError, AttributeError):
            labels, bucket = without_bound(field.removeprefix(NATIVE))
            series[labels][bucket] = field
    for labels, found in series.items():
        if len(found) > most:
            before, after = around_bound(labels)
            with suppress(ValueError, TypeError, AttributeError):
                for bucket, coarser in coarsened(found, most).items():
                    yield found[bucket], f"{NATIVE}{before}{coarser}{after}"
