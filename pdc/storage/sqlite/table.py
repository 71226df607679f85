"""The table of metrics, and cursors that use it."""

from __future__ import annotations

import sqlite3

from .. import ID

VERSION2_COLUMNS = {"metric_key": True, "subkey": True, "value": True}
"""The columns of version 2's table ``metrics``, which all refuse NULL. It fails at fields of ours, so ours are in another."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS pdc_metrics (
        metric_key TEXT NOT NULL,
        subkey TEXT NOT NULL,
        value,
        PRIMARY KEY (metric_key, subkey)
    ) WITHOUT ROWID
"""


def cursor_of(connection: sqlite3.Connection) -> sqlite3.Cursor:
    """A cursor with rows that are tuples, whatever its connection makes of them."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor


def has_table(cursor: sqlite3.Cursor) -> bool:
    """True if our table exists."""
    return bool(_columns(cursor, "pdc_metrics"))


def has_version2(cursor: sqlite3.Cursor) -> bool:
    """True if version 2 has its table in the database, too."""
    return _columns(cursor, "metrics") == VERSION2_COLUMNS


def _columns(cursor: sqlite3.Cursor, table: str) -> dict[str, bool]:
    """The columns of a table, each with True where it refuses NULL; empty where there is no such table."""
    return {name: bool(not_null) for _, name, _, not_null, _, _ in cursor.execute(f"PRAGMA table_info({table})")}


def make_table(cursor: sqlite3.Cursor) -> None:
    """Create our table, unless it exists."""
    cursor.execute(_SCHEMA)


def id_of(cursor: sqlite3.Cursor) -> str:
    """The id of the storage; empty where it has none."""
    query = "SELECT metric_key FROM pdc_metrics WHERE metric_key >= ? AND metric_key < '#id;' LIMIT 1"
    found = cursor.execute(query, (ID,)).fetchone()
    return found[0] if found else ""


def give_id(cursor: sqlite3.Cursor, new: str) -> str:
    """Give this id to the storage, and return it."""
    cursor.execute("INSERT INTO pdc_metrics (metric_key, subkey, value) VALUES (?, '', 0)", (new,))
    return new


def use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which the file keeps; the database is busy where another process does the same at that moment."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")
