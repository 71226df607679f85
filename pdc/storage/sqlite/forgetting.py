"""Folds or drops values of writers that deregister or are forgotten, and adds native buckets of series to coarser ones.

Twins: `fold.lua`, `forget.lua` and `coarsen.lua`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from sqlite3 import Cursor

from .. import FOLDED, MARK, Batch, Kind, Limits, Mark, Operation
from ..coarsening import MOST_ADDED, Coarsening
from ..fields import fold, old
from ..labels import EXEMPLAR, NATIVE
from .rows import Rows, after_all_with

MOST_FOLDED = 250
"""How many values are folded or dropped in one transaction."""
MOST_FORGOTTEN = 250
"""How many writers are forgotten in one transaction."""
MOST_FOUND = 1000
"""How many fields are looked at in one transaction."""


class Folding:
    """Folds values in these rows, of a metric with these limits, into the values of the dead."""

    def __init__(self, rows: Rows, limits: Limits) -> None:
        self._rows = rows
        self._limits = limits
        self._heirs: dict[str, int] = {}
        """By mode, how many values of the dead there are, where that had to be counted."""

    def fold_final(self, batch: Batch) -> bool:
        """Fold or drop some values of the writer that deregistered with this batch; return whether there may be more."""
        own = MARK + batch.writer
        mark = Mark.loads(self._rows.get(own))
        if mark.sequence != batch.sequence or mark.mode in ("", "all"):
            return False
        if self._take_from([batch.writer]):
            return True
        self._rows.put(own, old(mark).dumps())
        return False

    def forget(self, writer: str) -> bool:
        """Forget some writers that were not seen for long, but not this one, or values of them; return whether to go on."""
        now = time.time()
        marks = ((field.removeprefix(MARK), Mark.loads(stored)) for field, stored in self._rows.starting_with(MARK))
        gone = [(other, mark) for other, mark in marks if other != writer and mark.is_forgotten(now)][:MOST_FORGOTTEN]
        if self._take_from([other for other, mark in gone if mark.mode]):
            return True
        self._rows.delete(MARK + other for other, _ in gone)
        return len(gone) == MOST_FORGOTTEN

    def _take_from(self, writers: list[str]) -> bool:
        """Fold or drop some values of these writers; return whether there were any."""
        count = 0
        for mode, writer in product((*FOLDED, "live", "all"), writers):
            prefix = f"#{mode}:{writer}:"
            values = dict(self._rows.starting_with(prefix, MOST_FOLDED - count))
            for field, value in values.items() if mode in FOLDED else ():
                heir = self._heir(f"#{mode}::", field.removeprefix(prefix))
                self._rows.put(heir, fold(mode, self._rows.get(heir), value))
            self._rows.delete(values)
            count += len(values)
        return count > 0

    def _heir(self, start: str, labels: str) -> str:
        """The field of the dead into which a value of that series is folded."""
        most, overflow, *_ = self._limits
        if not most or labels == overflow or self._rows.get(start + labels) is not None:
            return start + labels
        if start not in self._heirs:
            self._heirs[start] = self._rows.count_labelled(start) - (self._rows.get(start + overflow) is not None)
        if self._heirs[start] >= most:
            return start + overflow
        self._heirs[start] += 1
        return start + labels


def search(name: str, limits: Limits, writer: str) -> Iterator[Callable[[Cursor], bool]]:
    """Yield the work of a search for writers to forget, but not this one, each part to be done as long as it returns True."""
    yield lambda cursor: Folding(Rows(cursor, name), limits).forget(writer)
    if limits.max_buckets:
        yield coarsener(name, limits.max_buckets)


def coarsener(name: str, most: int) -> Callable[[Cursor], bool]:
    """A function that adds some native buckets to coarser ones where a series has too many; it returns whether to go on."""
    coarsening = Coarsening(most)
    moves = coarsening.moves()
    after: str | None = NATIVE

    def coarsen_some(cursor: Cursor) -> bool:
        nonlocal after
        rows = Rows(cursor, name)
        if after is None:
            some = [*islice(moves, MOST_ADDED)]
            coarsen(rows, some)
            return len(some) == MOST_ADDED
        fields = rows.after(after, MOST_FOUND, after_all_with(NATIVE))
        coarsening.add(fields)
        after = fields[-1] if len(fields) == MOST_FOUND else None
        return True

    return coarsen_some


def coarsen(rows: Rows, moves: Iterable[tuple[str, str]]) -> None:
    """Add the count of each first field to the second one, which gets its exemplar, too, unless it has one."""
    for field, into in moves:
        for kind, start in ((Kind.ADD, ""), (Kind.INIT, EXEMPLAR)):
            if (value := rows.get(start + field)) is not None:
                rows.write(kind, [Operation(kind, start + into, value)], 0.0)
                rows.delete([start + field])
