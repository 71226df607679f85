"""Applies an update to the rows of its metric, inside a transaction. Twin: `pdc/storage/lua/apply.lua`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from ...process.interruption import let_through
from .. import (
    FINAL_MARK_SECONDS,
    FORGET_WRITER_SECONDS,
    MARK,
    META,
    REMOVALS,
    SEARCH,
    SWEEP,
    SWEEPS,
    Batch,
    Kind,
    Mark,
    Operation,
    Outcome,
    Update,
)
from ..fields import created_of, mode_of, old
from ..version2 import VERSION2, taken_over
from .forgetting import Folding, search
from .limiting import limited
from .removing import sweeper
from .rows import Rows

Work: TypeAlias = Callable[[sqlite3.Cursor], bool]
"""Does a piece of some work; returns whether there may be more of it."""


def apply(rows: Rows, batch: Batch, update: Update, outcome: Outcome) -> Iterator[Work]:
    """Apply the update unless the batch was seen before, and record the outcome; yield the work for after the transaction."""
    name, own = rows.name, MARK + batch.writer
    meta, mark, search_at = rows.three(META, own, SEARCH)
    if meta is None or mark is None:
        outcome.unknown.add(name)
    if batch.final and meta is None:
        return
    mode = _change(rows, batch, update, None if mark is None else Mark.loads(mark), outcome)
    if update.declare and meta not in (None, update.meta):
        outcome.replaced[name] = meta
    if update.declare or meta is None:
        rows.put(META, update.meta)
    idle = update.limits.expire_series
    if idle and is_time_to_sweep(rows, idle) and meta is not None:
        yield sweeper(name, idle)
    if batch.final and mode not in ("", "all"):
        yield lambda cursor: Folding(Rows(cursor, name), update.limits).fold_final(batch)
    if is_time_to_search(rows, search_at, is_final=batch.final) and meta is not None:
        yield from search(name, update.limits, batch.writer)


def _change(rows: Rows, batch: Batch, update: Update, mark: Mark | None, outcome: Outcome) -> str:
    """Apply the operations, and write the mark of the writer; return the mode of the writer's values."""
    now = time.time()
    last, mode = (-1, "") if mark is None else (mark.sequence, mark.mode)
    if last < batch.sequence:
        if update.limits.max_series:
            update = limited(rows, update, outcome)
        new: set[str] = set()
        for kind, operations in update.by_kind():
            if kind not in REMOVALS:
                new |= rows.write(kind, operations, now)
        missing = created_of(new) - new if update.created else set()
        if missing:
            rows.write(Kind.INIT, [Operation(Kind.INIT, field, now) for field in missing], now)
    if last <= batch.sequence:
        mode = mode_of(update) or mode
        rows.put(MARK + batch.writer, new_mark(batch, mode, now).dumps())
    return mode


def new_mark(batch: Batch, mode: str, now: float) -> Mark:
    """The mark of the batch; the mark of a writer that deregisters without values is old."""
    mark = Mark(batch.sequence, now, mode)
    return old(mark) if batch.final and not mode else mark


def is_time_to_search(rows: Rows, search_at: Any, *, is_final: bool) -> bool:
    """True if it is time to look for writers to forget. Then, and when a writer deregisters, note the next time."""
    now = time.time()
    searches = not isinstance(search_at, float) or not now < search_at <= now + FORGET_WRITER_SECONDS
    if searches:
        search_at = now + FORGET_WRITER_SECONDS
    if searches or is_final:
        rows.put(SEARCH, min(search_at, now + 2 * FINAL_MARK_SECONDS) if is_final else search_at)
    return searches


def is_time_to_sweep(rows: Rows, idle: float) -> bool:
    """True if it is time to look for idle series. Then note the next time."""
    now, sweep_at = time.time(), rows.get(SWEEP)
    sweeps = not isinstance(sweep_at, float) or not now < sweep_at <= now + idle
    if sweeps:
        rows.put(SWEEP, now + idle / SWEEPS)
    return sweeps


def take_over(rows: Rows, meta: str) -> str:
    """Begin the metric with the data of version 2, unless that was done or refused; return why it cannot be."""
    notes = Rows(rows.cursor, VERSION2)
    if notes.get(rows.name) is not None or rows.first("") is not None:
        return ""
    stored = rows.cursor.execute("SELECT subkey, value FROM metrics WHERE metric_key = ?", (rows.name,)).fetchall()
    if not stored:
        return ""
    notes.put(rows.name, time.time())
    try:
        fields = taken_over(dict(stored), meta)
    except ValueError as error:
        let_through(error)
        return str(error)
    rows.write(Kind.INIT, [Operation(Kind.INIT, field, number) for field, number in fields.items()], 0.0)
    return ""
