"""The metrics of version 2 in SQLite."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from ..storage.sqlite import SqliteStorage
from ..storage.sqlite.table import has_table, has_version2
from ..storage.version2 import VERSION2


def contents(storage: SqliteStorage) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The names and fields of version 2's metrics, and the names of metrics that are not to be taken over again."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    uri = f"{Path(storage.database.path).as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        cursor = connection.cursor()
        if not has_version2(cursor):
            return {}, set()
        for name, field, value in cursor.execute("SELECT metric_key, subkey, value FROM metrics"):
            found[name][field] = value
        query = "SELECT subkey FROM pdc_metrics WHERE metric_key = ?"
        known = {name for (name,) in cursor.execute(query, (VERSION2,))} if has_table(cursor) else set()
    return dict(found), known
