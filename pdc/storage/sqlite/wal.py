"""The write-ahead log of a database file."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from ...process import log
from ...process.interruption import tolerate

WAL = "-wal"
"""How the name of the write-ahead log ends."""
WAL_BYTES = 4 * 1024 * 1024
"""The size to which a longer file ``-wal`` is cut, at which SQLite usually moves it into the database."""
MOST_WAL_BYTES = 4 * WAL_BYTES
"""The size beyond which we move it there ourselves: readers that overlap, or read for long, keep SQLite from that."""
SHORTEN_SECONDS = 5.0
"""How often we do so."""
TIMES_KEPT = 3
"""How often in a row that must fail before we log it: readers that overlap may keep us from it now and then."""


class WriteAheadLog:
    """The file ``-wal`` of a database, and which file that is for the connection."""

    def __init__(self, database: str) -> None:
        self._path = database + WAL
        self._file: tuple[int, int] | None = None
        """The file that the connection uses."""
        self._shorten_at = 0.0
        self._times_kept = 0

    def attach(self) -> None:
        """Note the file at the path as the one that the connection uses."""
        self._file = identity(self._path)

    def expect_file(self) -> None:
        """Raise an error that the database is busy where the file was deleted: the next try opens the database anew."""
        if self._file not in (None, identity(self._path)):
            raise sqlite3.OperationalError(f"database is locked: {self._path} was deleted")

    def rescue(self, connection: sqlite3.Connection) -> bool:
        """Move the content of a deleted file into the database; return whether the file was deleted.

        Raises an error that the database is busy.
        """
        found = identity(self._path)
        if self._file in (None, found):
            self._file = found
            return False
        is_busy = 0
        with tolerate(sqlite3.Error):  # another process has done so, or this one may not write
            is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy:
            raise sqlite3.OperationalError(f"database is locked: {self._path} was deleted")
        log.defer(logging.WARNING, "%s was deleted while it was in use; the database is opened anew", self._path)
        return True

    def shorten(self, cursor: sqlite3.Cursor) -> None:
        """From time to time, move a long file into the database and cut it; log once where others keep us from that."""
        if self._file is None or time.monotonic() < self._shorten_at:
            return
        self._shorten_at = time.monotonic() + SHORTEN_SECONDS
        size = 0
        with tolerate(FileNotFoundError):  # the next call will notice
            size = Path(self._path).stat().st_size
        if size <= MOST_WAL_BYTES:
            self._times_kept = 0
            return
        is_kept = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        self._times_kept = self._times_kept + 1 if is_kept else 0
        if self._times_kept == TIMES_KEPT:
            text = "%s has %d MB and grows, since another program has been reading the file for long: end its transaction"
            log.defer(logging.WARNING, text, self._path, size // 1_000_000)


def identity(path: str) -> tuple[int, int] | None:
    """The file at the path at this moment: its device and its number there; None where there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a `Path` takes another call of Python, and each batch asks three times
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
