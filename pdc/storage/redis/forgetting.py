"""Folds or drops values of writers that deregister or are forgotten, and adds native buckets of series to coarser ones."""

from __future__ import annotations

from itertools import chain, islice

from .. import FINAL_MARK_SECONDS, FORGET_VALUES_SECONDS, FORGET_WRITER_SECONDS, Batch, Update
from ..coarsening import MOST_ADDED, Coarsening
from ..labels import NATIVE
from .commands import text_of
from .keys import Keys
from .reading import INCOMPLETE, Reader

MOST_FOUND = 500
"""How many fields one call looks at."""
MOST_FORGOTTEN = 250
"""How many writers one call forgets."""


def fold_final(keys: Keys, batch: Batch, update: Update) -> None:
    """Fold or drop the values of the writer, which deregisters with this batch."""
    _fold(keys, batch, update)


def forget(keys: Keys, batch: Batch, update: Update) -> None:
    """Forget other writers that were not seen for long, and fold or drop their values."""
    gone = _fold(keys, batch, update, is_final=False)
    for first in range(0, len(gone), MOST_FORGOTTEN):
        some = gone[first : first + MOST_FORGOTTEN]
        keys.call("forget", batch, update.name, FORGET_WRITER_SECONDS, FORGET_VALUES_SECONDS, *some)


def coarsen(keys: Keys, reader: Reader, batch: Batch, update: Update) -> None:
    """Add native buckets to coarser ones where a series has too many. A metric with few bounds has no such series."""
    name, most = update.name, update.limits.max_buckets
    stems = reader.stems(name) if most else INCOMPLETE
    if stems.startswith(INCOMPLETE) or stems.count(f"\n{NATIVE}{{") <= most:
        return
    coarsening = Coarsening(most)
    for piece in reader.pieces(name, "MATCH", f"{NATIVE}*"):
        coarsening.add(piece)
    moves = coarsening.moves()
    while some := [*islice(moves, MOST_ADDED)]:
        keys.call("coarsen", batch, name, *chain.from_iterable(some))


def _fold(keys: Keys, batch: Batch, update: Update, *, is_final: bool = True) -> list[str]:
    """Fold the values of the writer that deregisters, or of all writers that are to be forgotten; return those writers."""
    ages = FINAL_MARK_SECONDS - FORGET_WRITER_SECONDS, FORGET_WRITER_SECONDS, FORGET_VALUES_SECONDS
    most, overflow, *_ = update.limits
    gone: list[str] = []
    cursor = None
    while cursor != "0":
        arguments = cursor or "0", MOST_FOUND, int(is_final), *ages, most, overflow
        cursor, *forgotten = map(text_of, keys.call("fold", batch, update.name, *arguments))
        gone += forgotten
    return gone
