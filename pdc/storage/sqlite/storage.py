"""The storage in SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Collection
from functools import partial
from itertools import chain
from typing import Any

from .. import REMOVALS, Batch, Kind, Outcome, Snapshot, Update, new_id
from ..labels import Selectors
from ..version2 import VERSION2, report
from .database import Database
from .reading import marks, metrics
from .removing import Remover, find_series, remove_some_fields
from .rows import Rows
from .table import give_id, has_table, has_version2, id_of
from .writing import Work, apply, take_over


class SqliteStorage:
    """Metrics in a database file, or on a connection that the application made and keeps."""

    def __init__(self, database: str | os.PathLike[str] | sqlite3.Connection) -> None:
        self.database = Database(database)
        self._begun: set[str] = set()
        """Metrics for which nothing of version 2 is to be taken over any more."""

    def __str__(self) -> str:
        return str(self.database)

    @property
    def identity(self) -> str | None:
        return str(self) if self.database.path else None

    def places(self) -> list[str]:
        return [f"{status.st_dev}:{status.st_ino}" for status in self.database.folders()]

    def connection(self) -> sqlite3.Connection:
        """The given connection, or one to the same file in autocommit mode, which the caller may use as it likes.

        Raises StorageError where the file cannot be opened.
        """
        return self.database.use(self.database.lend, "open")

    def bound_to_thread(self) -> int | None:
        """The only thread that may use the given connection, which that thread made; None where any thread may."""
        return self.database.bound_to_thread()

    def id(self) -> str:
        return self.database.use(self._read_id, "read")

    def _read_id(self) -> str:
        if self.database.is_to_be_made():
            return ""
        cursor = self.database.for_reading()
        return id_of(cursor) if has_table(cursor) else ""

    def apply(self, batch: Batch) -> Outcome:
        if new := [update for update in batch.updates if update.name not in self._begun and update.meta]:
            self.database.use(self._take_over, "write", new)
        self.remove(batch)
        outcome = Outcome(set(), {}, {}, {})
        ids: list[str] = []
        left: list[Work] = []

        def apply_updates(cursor: sqlite3.Cursor) -> None:
            left.clear()
            for update in batch.updates:
                left.extend(apply(Rows(cursor, update.name), batch, update, outcome))
            if outcome.unknown:
                ids.append(id_of(cursor) or give_id(cursor, batch.storage or new_id()))

        self.database.write(apply_updates)
        for work in left:
            self.database.write_in_pieces(work)
        return outcome._replace(storage=ids[-1]) if ids else outcome

    def _take_over(self, updates: list[Update]) -> None:
        """Begin new metrics with the data of version 2, in one transaction; or note, and log, that this cannot be."""
        refused: dict[str, str] = {}

        def take_over_all(cursor: sqlite3.Cursor) -> None:
            refused.clear()
            for update in updates:
                if reason := take_over(Rows(cursor, update.name), update.meta):
                    refused[update.name] = reason

        cursor = self.database.for_writing()
        if has_version2(cursor):
            self.database.change(cursor, take_over_all)
        self._begun.update(update.name for update in updates)
        for name, reason in refused.items():
            report(name, f"the table metrics of {self}", reason)

    def _remove(self, batch: Batch, update: Update) -> None:
        """Do the removals in short transactions; once the batch is applied, its mark keeps them from being done again."""
        series, wanted = update.removals(Kind.REMOVE), update.removals(Kind.DELETE)
        if not self._remove_series(batch, update.name, series):
            wanted += series
        selectors = Selectors(map(json.loads, wanted))
        last: str | None = "" if wanted else None
        while last is not None:
            found, last = self.database.use(self._find, "write", update.name, selectors, last)
            if not self._remove_series(batch, update.name, list(found)):
                fields = list(chain.from_iterable(found.values()))
                self.database.write_in_pieces(partial(remove_some_fields, batch, update.name, fields))

    def _find(self, name: str, selectors: Selectors, after: str) -> tuple[dict[str, list[str]], str | None]:
        """Find series to remove. It takes no lock, or a shared one for the moment."""
        return find_series(Rows(self.database.for_writing(), name), selectors, after)

    def _remove_series(self, batch: Batch, name: str, series: list[str]) -> bool:
        """Remove the series with these labels, and let others write in between; return whether their fields can be named."""
        remover = Remover(batch, name, series)
        if series:
            self.database.write_in_pieces(remover)
        return remover.names_fields

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        return self.database.use(self._read, "read", names)

    def _read(self, names: Collection[str] | None) -> Snapshot:
        if self.database.is_to_be_made():
            return Snapshot(time.time(), {})
        cursor = self.database.for_reading()
        found = dict(metrics(cursor, names, self._marks)) if has_table(cursor) else {}
        return Snapshot(time.time(), found)

    def _marks(self, name: str, _: Collection[str] | None) -> dict[str, Any]:
        """All marks of a metric, whichever are wanted: they are side by side."""
        return self.database.use(self._read_marks, "read", name)

    def _read_marks(self, name: str) -> dict[str, Any]:
        if self.database.is_to_be_made():
            return {}
        cursor = self.database.for_reading()
        return marks(cursor, name) if has_table(cursor) else {}

    def remove(self, batch: Batch) -> None:
        for update in batch.updates:
            if any(operation.kind in REMOVALS for operation in update.operations):
                self._remove(batch, update)

    def delete(self, names: Collection[str] | None = None) -> None:
        def delete_all(cursor: sqlite3.Cursor) -> None:
            if names is not None:
                cursor.executemany("DELETE FROM pdc_metrics WHERE metric_key = ?", [(name,) for name in names])
            else:
                notes = cursor.execute("SELECT * FROM pdc_metrics WHERE metric_key = ?", (VERSION2,)).fetchall()
                cursor.execute("DELETE FROM pdc_metrics")  # which takes no time, as SQLite looks at no row
                cursor.executemany("INSERT INTO pdc_metrics VALUES (?, ?, ?)", notes)

        self.database.write(delete_all)

    def set_deadline(self, deadline: float) -> None:
        self.database.set_deadline(deadline)

    def close(self) -> None:
        self.database.close()
