"""The rows of one metric: one for each field."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from .. import BEGINNINGS, MARK, Batch, Kind, Mark, Operation
from ..fields import stored

LAST = "\U0010ffff"
"""It sorts after all text in a field."""
MOST_NAMED = 250
"""How many fields one query names."""

_INSERT = "INSERT INTO pdc_metrics (metric_key, subkey, value) VALUES (?1, ?2, {}) ON CONFLICT (metric_key, subkey) DO "
_WRITE = {
    Kind.INIT: _INSERT.format("?3") + "NOTHING",
    Kind.SET: _INSERT.format("?3") + "UPDATE SET value = ?3",
    Kind.ADD: _INSERT.format("0.0 + ?3") + "UPDATE SET value = value + ?3",
}
_VALUE = "(SELECT value FROM pdc_metrics WHERE metric_key = ?1 AND subkey = ?{})"
_THREE = "SELECT " + ", ".join(map(_VALUE.format, range(2, 5)))
_WRITE[Kind.STAMP] = _WRITE[Kind.SET]
_ADD_TO_KNOWN = "UPDATE pdc_metrics SET value = value + ?3 WHERE metric_key = ?1 AND subkey = ?2"


class Rows:
    """Reads and writes the fields of a metric inside a transaction."""

    def __init__(self, cursor: sqlite3.Cursor, name: str) -> None:
        self.cursor = cursor
        self.name = name

    def get(self, field: str) -> Any:
        """The value of a field; None where there is no such field."""
        query = "SELECT value FROM pdc_metrics WHERE metric_key = ? AND subkey = ?"
        found = self.cursor.execute(query, (self.name, field)).fetchone()
        return None if found is None else found[0]

    def three(self, *fields: str) -> tuple[Any, Any, Any]:
        """The values of three fields, each as `get` gives it, from one query."""
        found: tuple[Any, Any, Any] = self.cursor.execute(_THREE, (self.name, *fields)).fetchone()
        return found

    def put(self, field: str, value: float | str) -> None:
        """Set the value of a field."""
        self.cursor.execute(_WRITE[Kind.SET], (self.name, field, value))

    def write(self, kind: Kind, operations: list[Operation], now: float) -> set[str]:
        """Apply operations of one kind, at this time; return the fields that inits and additions made."""
        rows = [(self.name, field, stored(value, now)) for _, field, value in operations]
        new: set[str] = set()
        if kind in BEGINNINGS:
            changed = self.cursor.executemany(_ADD_TO_KNOWN, rows).rowcount if kind is Kind.ADD else None
            if changed == len(rows):
                return new
            new = {field for _, field, _ in rows}
            if changed != 0:
                new -= self.known({field: field for field in new})
            rows = [row for row in rows if row[1] in new]
        self.cursor.executemany(_WRITE[kind], rows)
        return new

    def delete(self, fields: Iterable[str]) -> int:
        """Delete the fields, and return how many there were."""
        statement = "DELETE FROM pdc_metrics WHERE metric_key = ? AND subkey = ?"
        return self.cursor.executemany(statement, ((self.name, field) for field in fields)).rowcount

    def first(self, start: str, end: str = LAST) -> str | None:
        """The first field from ``start`` on, before ``end``."""
        query = "SELECT subkey FROM pdc_metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ? ORDER BY subkey LIMIT 1"
        return next((field for (field,) in self.cursor.execute(query, (self.name, start, end))), None)

    def after(self, field: str, most: int, end: str = LAST) -> list[str]:
        """The next fields after this one, before ``end``, so many at most; no BLOB, which sorts after all texts."""
        query = "SELECT subkey FROM pdc_metrics WHERE metric_key = ? AND subkey > ? AND subkey < ? ORDER BY subkey LIMIT ?"
        return [found for (found,) in self.cursor.execute(query, (self.name, field, end, most))]

    def starting_with(self, prefix: str, most: int = -1) -> list[tuple[str, Any]]:
        """The fields with a prefix that ends with a colon, and their values; so many at most, or all."""
        query = "SELECT subkey, value FROM pdc_metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ? LIMIT ?"
        return self.cursor.execute(query, (self.name, prefix, after_all_with(prefix), most)).fetchall()

    def count_labelled(self, stem: str) -> int:
        """How many fields have this stem before their labels."""
        query = "SELECT COUNT(*) FROM pdc_metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ?"
        return int(self.cursor.execute(query, (self.name, f"{stem}{{", f"{stem}|")).fetchone()[0])

    def known(self, series: Mapping[str, str]) -> set[str]:
        """The series that exist among these, each given with one of its fields."""
        wanted = list(series.items())
        found: set[str] = set()
        for start in range(0, len(wanted), MOST_NAMED):
            part = {field: labels for labels, field in wanted[start : start + MOST_NAMED]}
            query = f"SELECT subkey FROM pdc_metrics WHERE metric_key = ? AND subkey IN ({','.join('?' * len(part))})"  # noqa: S608
            found.update(part[field] for (field,) in self.cursor.execute(query, (self.name, *part)))
        return found

    def has_applied(self, batch: Batch) -> bool:
        """True if the batch, or a later one of its writer, was applied to the metric."""
        mark = self.get(MARK + batch.writer)
        return mark is not None and Mark.loads(mark).sequence >= batch.sequence


def after_all_with(prefix: str) -> str:
    """The end of the range of fields with this prefix, which ends with a colon."""
    return prefix.removesuffix(":") + ";"
