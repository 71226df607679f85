"""Reads metrics from the table."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from .. import ID, MARK, foreign
from ..ordered import MOST_TOGETHER, Parts
from ..version2 import VERSION2
from .database import text_of
from .rows import after_all_with

_NAMES = """
    WITH RECURSIVE names (name) AS (
        SELECT min(metric_key) FROM pdc_metrics
        UNION ALL
        SELECT (SELECT min(metric_key) FROM pdc_metrics WHERE metric_key > name) FROM names WHERE name IS NOT NULL
    )
    SELECT name FROM names WHERE name IS NOT NULL
"""
"""Finds one row of each metric, where ``DISTINCT`` looks at all rows."""
_FIELDS = "SELECT subkey, value FROM pdc_metrics WHERE metric_key = ?1 AND subkey "
_MARKS = f"{_FIELDS} >= ?2 AND subkey < ?3"
_BUT_MARKS = f"{_FIELDS} < ?2 UNION ALL {_FIELDS} >= ?3 ORDER BY subkey"


def metrics(
    cursor: sqlite3.Cursor,
    names: Collection[str] | None,
    read_marks: Callable[[str, Collection[str] | None], Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the metrics of these names, or all, with their fields; one by one, or each row would have the name again.

    The marks of a metric are read when they are asked for: with thousands of writers, a scrape would mostly read marks.
    """
    if names is None:
        names = [name for (name,) in cursor.execute(_NAMES)]
    for name in names:
        if not isinstance(name, str):
            raise foreign(text_of(name), TypeError(f"expected a metric_key that is text, got {name!r:.80}"))
        if not name.startswith(ID) and name != VERSION2 and (parts := list(_parts(cursor, name))):
            yield name, Parts(parts, partial(read_marks, name))


def marks(cursor: sqlite3.Cursor, name: str) -> dict[str, Any]:
    """All marks of a metric. Raises StorageError for one that is neither text nor number."""
    return _fields(name, cursor.execute(_MARKS, (name, MARK, after_all_with(MARK))))


def _parts(cursor: sqlite3.Cursor, name: str) -> Iterator[dict[str, Any]]:
    """The fields of a metric but for the marks, in parts. Raises StorageError for one that is neither text nor number."""
    rows = cursor.execute(_BUT_MARKS, (name, MARK, after_all_with(MARK)))
    size = MOST_TOGETHER
    while size == MOST_TOGETHER and (part := _fields(name, islice(rows, MOST_TOGETHER))):
        size = len(part)
        yield part


def _fields(name: str, rows: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of one part."""
    try:
        fields = {field: math.nan if value is None else value for field, value in rows}
    except sqlite3.OperationalError as error:
        if "decode" in str(error):
            raise foreign(name, error) from error
        raise
    if bytes in {*map(type, islice(reversed(fields), 1)), *map(type, fields.values())}:  # a BLOB sorts after all texts
        blob = next(pair for pair in fields.items() if bytes in map(type, pair))
        raise foreign(name, TypeError(f"expected text or a number, got a BLOB: {blob!r:.80}"))
    return fields
