"""The table of metrics, and cursors that use it."""

from __future__ import annotations

import re
import sqlite3
from functools import lru_cache
from typing import Any

from .. import ID

BESIDE = "pdc_metrics"
"""Our table in a database where version 2 has its table `metrics`."""
VERSION2_COLUMNS = {"metric_key": True, "subkey": True, "value": True}
"""The columns of version 2's table, which all refuse NULL."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS metrics (
        metric_key TEXT NOT NULL,
        subkey TEXT NOT NULL,
        value,
        PRIMARY KEY (metric_key, subkey)
    ) WITHOUT ROWID
"""


class Beside(sqlite3.Cursor):
    """Uses our table where version 2 has its own, which it still reads, and whose values can be neither NaN nor text."""

    def execute(self, statement: str, parameters: Any = (), /) -> Beside:
        """Execute the statement on our table."""
        return super().execute(_beside(statement), parameters)

    def executemany(self, statement: str, parameters: Any, /) -> Beside:
        """Execute the statement on our table for each of the parameters."""
        return super().executemany(_beside(statement), parameters)


@lru_cache(maxsize=128)
def _beside(statement: str) -> str:
    """The statement for our table; names and values are among its parameters."""
    return re.sub(r"\bmetrics\b", BESIDE, statement)


def cursor_of(connection: sqlite3.Connection, kind: type[sqlite3.Cursor] = sqlite3.Cursor) -> sqlite3.Cursor:
    """A cursor with rows that are tuples, whatever its connection makes of them."""
    cursor = connection.cursor(kind)
    cursor.row_factory = None
    return cursor


def columns(cursor: sqlite3.Cursor) -> dict[str, bool]:
    """The columns of the table, each with True where it refuses NULL; empty where there is no table."""
    return {name: bool(not_null) for _, name, _, not_null, _, _ in cursor.execute("PRAGMA table_info(metrics)")}


def make_table(cursor: sqlite3.Cursor) -> None:
    """Create the table, unless it exists."""
    cursor.execute(_SCHEMA)


def id_of(cursor: sqlite3.Cursor) -> str:
    """The id of the storage; empty where it has none."""
    query = "SELECT metric_key FROM metrics WHERE metric_key >= ? AND metric_key < '#id;' LIMIT 1"
    found = cursor.execute(query, (ID,)).fetchone()
    return found[0] if found else ""


def give_id(cursor: sqlite3.Cursor, new: str) -> str:
    """Give this id to the storage, and return it."""
    cursor.execute("INSERT INTO metrics (metric_key, subkey, value) VALUES (?, '', 0)", (new,))
    return new


def use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which the file keeps; the database is busy where another process does the same at that moment."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")
