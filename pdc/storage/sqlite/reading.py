"""Reads metrics from the table."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from .. import ID, MOST_TOGETHER, Parts, foreign
from ..version2 import VERSION2
from .database import text_of


def metrics(cursor: sqlite3.Cursor, names: Collection[str] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the metrics of these names, or all, with their fields; one by one, or each row would have the name again."""
    if names is None:
        names = [name for (name,) in cursor.execute("SELECT DISTINCT metric_key FROM pdc_metrics")]
    for name in names:
        if not isinstance(name, str):
            raise foreign(text_of(name), TypeError(f"expected a metric_key that is text, got {name!r:.80}"))
        if not name.startswith(ID) and name != VERSION2 and (parts := list(_parts(cursor, name))):
            yield name, parts[0] if len(parts) == 1 else Parts(parts)


def _parts(cursor: sqlite3.Cursor, name: str) -> Iterator[dict[str, Any]]:
    """The fields of a metric, in parts. Raises StorageError for a field or value that is neither text nor number."""
    rows = cursor.execute("SELECT subkey, value FROM pdc_metrics WHERE metric_key = ? ORDER BY subkey", (name,))
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
