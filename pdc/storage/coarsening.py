"""Finds native buckets to add to coarser ones: processes with other buckets leave more and more fields in a series."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ..native import coarsened
from ..process.interruption import tolerate
from .labels import NATIVE, around_bound, without_bound

MOST_ADDED = 100
"""How many buckets one call adds to others."""


class Coarsening:
    """The native buckets of the series of a metric, each of which keeps so many at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: defaultdict[str, set[str]] = defaultdict(set)
        """The bounds of the buckets by the labels of their series."""

    def add(self, fields: Iterable[str]) -> None:
        """Note the native buckets among these fields; not those that no version wrote."""
        for field in fields:
            if field.startswith(NATIVE):
                with tolerate(ValueError, TypeError, AttributeError):
                    labels, bound = without_bound(field.removeprefix(NATIVE))
                    self._found[labels].add(sys.intern(bound))

    def moves(self) -> Iterator[tuple[str, str]]:
        """Yield the fields whose counts are to be added to other fields, each with the other one."""
        for labels, bounds in self._found.items():
            if len(bounds) > self._most:
                before, after = around_bound(labels)
                with tolerate(ValueError):  # no version wrote one of the bounds
                    for bound, coarser in coarsened(bounds, self._most).items():
                        yield f"{NATIVE}{before}{bound}{after}", f"{NATIVE}{before}{coarser}{after}"
