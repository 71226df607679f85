"""The buckets that a histogram counts in one cell, and the numbers of the cell that an observation changes."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from ..native import NAN, SCHEMAS, Bucket, Native, bound, coarser, index_of, last

FURTHEST = 1 << 19
"""A limit of indices, below which those of all numbers are."""
BLOCK = 8
"""How many neighbours a native bucket brings along: they are soon in use, too."""

Key = tuple[str, int]
"""The kind and the index of a native bucket, as `Bucket` has them; the index of zero is 0."""
Runs = tuple[tuple[int, int], ...]
"""The first index and the count of each run of buckets."""
Field = tuple[str, str]
"""The beginning and the bound of the field of a bucket."""


class Window(NamedTuple):
    """The native buckets that a cell can count. Another bucket needs a cell with a wider window."""

    schema: int
    positive: Runs = ()
    negative: Runs = ()

    @classmethod
    def of(cls, schema: int, keys: Collection[Key]) -> Window:
        """The window of these buckets."""
        positive, negative = (_runs(index for kind, index in keys if kind == sign) for sign in "pn")
        return cls(schema, positive, negative)

    @classmethod
    def loads(cls, schema: Any, *signs: Any, most: int) -> Window:
        """The window with these parts, as a journal has them. Raises errors for parts that no version wrote."""
        positive, negative = (tuple((int(first), int(count)) for first, count in runs) for runs in signs)
        if any(abs(first) > FURTHEST or not 0 < count <= most for first, count in (*positive, *negative)):
            raise ValueError(f"expected runs of 1 to {most} buckets, got {signs}")
        return cls(SCHEMAS[SCHEMAS.index(schema)], positive, negative)

    def dumps(self) -> str:
        """The window as JSON."""
        return json.dumps(self, separators=(",", ":"))

    @property
    def keys(self) -> frozenset[Key]:
        """The buckets, without that of zero, which each window has."""
        signs = (("p", self.positive), ("n", self.negative))
        return frozenset((kind, first + i) for kind, runs in signs for first, count in runs for i in range(count))

    def widened(self, native: Native, used: frozenset[Key], number: float) -> tuple[Window, frozenset[Key]]:
        """The window that also has the bucket of the number, where the used buckets are these; and the used ones in its schema.

        It keeps all buckets of this window as long as they are few enough, then only those in use. Where even these are too
        many, its schema is coarser.
        """
        schema, kept = self.schema, self.keys | used
        key = key_of(native, schema, number)
        while len(used | {key}) > native.max_buckets and schema > SCHEMAS[0]:
            schema -= 1
            zero = native.zero_index(schema)
            used = frozenset((kind, coarser(index, 1)) for kind, index in used)
            kept = used = frozenset(each for each in used if zero is None or each[1] > zero)
            key = key_of(native, schema, number)
        added = frozenset() if key[0] == "z" else frozenset({key})
        block = _block(native, schema, key) if added else added
        choices = (kept | block, used | block, used | added)
        chosen = next((each for each in choices if len(each) <= native.max_buckets), choices[-1])
        return Window.of(schema, chosen), used


def _runs(indices: Iterable[int]) -> Runs:
    runs = ([index for _, index in run] for _, run in groupby(enumerate(sorted(indices)), key=lambda pair: pair[1] - pair[0]))
    return tuple((run[0], len(run)) for run in runs)


def key_of(native: Native, schema: int, number: float) -> Key:
    """The native bucket of a number."""
    size, zero = abs(number), native.zero_index(schema)
    index = index_of(schema, size) if size else None
    if index is None or (zero is not None and index <= zero):
        return "z", 0
    return ("p" if number > 0 else "n"), index


def _block(native: Native, schema: int, key: Key) -> frozenset[Key]:
    """The bucket and its neighbours."""
    kind, index = key
    first, zero = (index - 1) // BLOCK * BLOCK + 1, native.zero_index(schema)
    lowest = first if zero is None else max(first, zero + 1)
    return frozenset((kind, each) for each in range(lowest, min(first + BLOCK, last(schema) + 2)))


class Buckets:
    """The numbers of a row, each the count of one interval, and the fields of a storage to which each adds.

    An observation changes the number ``places[bisect_left(bounds, observation)]``. At the place 0 is the sum: the observation
    is a NaN, or -Inf, or in no bucket of the window. Where a histogram has buckets of both kinds, an interval is the part of a
    classic bucket that is in one native bucket, so that an update changes one number.
    """

    __slots__ = ("_keys", "_of_infinity", "_of_nan", "bounds", "fields", "places", "width", "window")

    def __init__(self, classic: tuple[str, ...], native: Native | None, window: Window | None) -> None:
        self.window = window
        self.fields: list[tuple[Field, ...]] = [()]
        """The fields of each place; the sum, at the place 0, has none."""
        self._keys: dict[int, Key] = {}
        """The native buckets of places."""
        self._of_nan, self._of_infinity = 0, min(1, len(classic))
        bounds = [float(each) for each in classic]
        if window is None or native is None:
            self.fields += [(("_bucket:", each),) for each in classic]
            self.bounds: tuple[float, ...] = (-math.inf, *bounds)
            self.places: tuple[int, ...] = tuple(range(1 + len(bounds)))
        else:
            self._divide(dict(zip(bounds, classic, strict=True)), native, window)
        self.width = len(self.fields)

    def _divide(self, classic: dict[float, str], native: Native, window: Window) -> None:
        """Divide the numbers into intervals, of which those in a bucket of the window have places."""
        keys, bounds, places = window.keys, [*classic], [0]

        def add(key: Key, highest: float) -> int:
            """Add a place for an interval in that native bucket, with that highest number."""
            place, (kind, index) = len(self.fields), key
            shown = native.zero_index(window.schema) if kind == "z" else index
            own: tuple[Field, ...] = (("_native:", NAN if kind == NAN else Bucket(window.schema, kind, shown).dumps()),)
            self.fields.append((("_bucket:", classic[bounds[bisect_left(bounds, highest)]]), *own) if classic else own)
            if kind in "pn":
                self._keys[place] = key
            return place

        edges = sorted(_edges(keys, native, window.schema).union(classic, (-math.inf,)))
        self._of_nan = add((NAN, 0), math.inf)
        for edge in edges[1:]:
            key = key_of(native, window.schema, edge)
            places.append(add(key, edge) if key in keys or key[0] == "z" else 0)
        lowest = "n", last(window.schema) + 1
        self._of_infinity = add(lowest, -math.inf) if lowest in keys else 0
        self.bounds, self.places = tuple(edges), (*places, 0)

    def place_of(self, number: float) -> int:
        """The place that an observation changes, also a NaN and -Inf; 0 where it is in no bucket."""
        if number != number:
            return self._of_nan
        return self._of_infinity if number == -math.inf else self.places[bisect_left(self.bounds, number)]

    def used(self, row: Iterable[float]) -> frozenset[Key]:
        """The native buckets that have a count in this row of numbers."""
        return frozenset(self._keys[place] for place, count in enumerate(row) if count and place in self._keys)


def _edges(keys: Iterable[Key], native: Native, schema: int) -> set[float]:
    """The last number of each bucket, and the one before its first number, in the order of all numbers."""
    index = native.zero_index(schema)
    zero = 0.0 if index is None else bound(schema, index)
    edges = {zero, math.nextafter(-zero, -math.inf)}
    for kind, index in keys:
        sides = max(bound(schema, index - 1), zero), bound(schema, index)
        edges.update(sides if kind == "p" else [math.nextafter(-side, -math.inf) for side in sides])
    return edges


@lru_cache(maxsize=1024)
def buckets_of(classic: tuple[str, ...], native: Native | None, window: Window | None = None) -> Buckets:
    """The buckets of a histogram with these classic bounds, and with native buckets where there is a resolution.

    Without a window they are the fewest, with which a process begins.
    """
    return Buckets(classic, native, Window(native.schema) if native is not None and window is None else window)
