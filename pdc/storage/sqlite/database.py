"""Opens the database, and does work on it in one thread at a time."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from ...process.files import Descriptor, keep_for_ever
from ...process.forks import FREE_THREADED
from ...process.interruption import locked, tolerate
from .. import ForkSafe, StorageError
from .errors import expect_database, is_busy, remedy
from .table import cursor_of, has_table, make_table, use_wal
from .wal import WAL_BYTES, WriteAheadLog, identity

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long one call waits for other writers before it reports that the database is busy."""
TRY_SECONDS = 0.1
"""How long one try of a call waits: in between, this process may fork."""
PAUSE_SECONDS = 0.005
"""The pause between two tries."""
FORK_SECONDS = 10.0
"""How long a fork waits for a thread that is using the database, but not for other programs that hold it."""
CACHED_STATEMENTS = 0 if FREE_THREADED else 128
"""The most statements that a connection keeps.

Without the GIL, Python frees them in the thread that made them. That thread has no lock then, and may be amid a fork of another
one: SQLite hangs in the child.
"""
CACHE_KIB = 256
"""The pages that a connection keeps: the kernel has them too, once for all processes."""

_CLOSED = (
    "somebody closed all descriptors of this process, as a daemon does, and SQLite would write to the files that have their "
    "numbers now; call setup() after that, and update no metric before"
)
_CLONED = (
    "this process was cloned, not by Python, while a thread was using it; the journal has what is counted here, and another "
    "process sends that"
)
_lost: dict[tuple[int, int] | None, str] = {}
"""By file that this process cannot use any more, the reason."""


class Database(ForkSafe):
    """A database file, or a connection of the application.

    A file is opened in WAL mode, once per process, when it is first needed. A given connection is used as it is: its pragmas
    stay, a transaction that is open on it is never committed, and it may be used by the threads that
    `sqlite3.connect(check_same_thread=...)` allowed.
    """

    fork_seconds = FORK_SECONDS

    def __init__(self, database: str | os.PathLike[str] | sqlite3.Connection) -> None:
        expect_database(database)
        super().__init__()
        self._given = database if isinstance(database, sqlite3.Connection) else None
        self.path = "" if isinstance(database, sqlite3.Connection) else os.path.abspath(os.fspath(database))
        """The path of the file; empty for a connection."""
        self._file_path = Path(self.path)
        self._owner = os.getpid()
        self._connection = self._given
        self._lent: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._wal = WriteAheadLog(self.path)
        self._sentinel: Descriptor | None = None
        self._prepared = False
        self._in_transaction = False

    def __str__(self) -> str:
        return f"SQLite {self.path or 'connection'}"

    def folders(self) -> Iterator[os.stat_result]:
        """The status of the folders that the file is in, the closest first, as far as they are known."""
        for folder in self._file_path.parents:
            with tolerate(OSError):  # it is not there yet, or not this user's to enter
                yield folder.stat()

    def lend(self) -> sqlite3.Connection:
        """The given connection, or one to the same file in autocommit mode, which the caller may use as it likes."""
        self.for_writing()
        if self._given is not None:
            return self._given
        if self._lent is None:
            self._lent = self._connect("rwc", BUSY_SECONDS)
        return self._lent

    def bound_to_thread(self) -> int | None:
        """The only thread that may use the given connection, which that thread made; None where any thread may."""
        refusals: list[str] = []

        def probe(connection: sqlite3.Connection) -> None:
            try:
                connection.execute("SELECT 1")
            except sqlite3.ProgrammingError as error:
                refusals.append(str(error))

        if self._given is not None:
            thread = threading.Thread(target=probe, args=(self._given,))
            thread.start()
            thread.join()
        makers = [int(found[1]) for refusal in refusals if (found := re.search(r"created in thread id (\d+)", refusal))]
        return makers[0] if makers else None

    def use(self, work: Callable[P, T], action: str, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work, with the lock held.

        No exception leaves a transaction open, also none of a signal handler. Raises StorageError, which names the file and
        the remedy, in place of errors of the driver.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return locked(self.lock, self._try, partial(work, *args, **kwargs), action)
            except StorageError as error:
                last = min(deadline, self.deadline)
                if self._given is not None or not is_busy(error.__cause__) or time.monotonic() >= last:
                    raise
            time.sleep(PAUSE_SECONDS)  # a fork has its turn

    def _try(self, work: Callable[[], T], action: str) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._break_off(is_lost=not is_busy(error))
            raise StorageError(f"cannot {action} {self}: {error}{remedy(error, self.path, BUSY_SECONDS)}") from error
        except BaseException:
            self._break_off()
            raise

    def write(self, change: Callable[[sqlite3.Cursor], None]) -> None:
        """Make the change in one transaction."""
        self.use(self._write, "write", change)

    def write_in_pieces(self, work: Callable[[sqlite3.Cursor], bool]) -> None:
        """Do the work in short transactions as long as it returns True, and let others write in between.

        SQLite does not queue writers that wait for its lock: they look for it now and then.
        """
        goes_on = True

        def do_some(cursor: sqlite3.Cursor) -> None:
            nonlocal goes_on
            goes_on = work(cursor)

        while goes_on:
            began = time.monotonic()
            self.write(do_some)
            if goes_on:
                time.sleep(time.monotonic() - began)

    def _write(self, change: Callable[[sqlite3.Cursor], None]) -> None:
        cursor = self.for_writing()
        self.change(cursor, change)
        self._wal.shorten(cursor)

    def change(self, cursor: sqlite3.Cursor, change: Callable[[sqlite3.Cursor], None]) -> None:
        """Make the change in a transaction that takes the write lock at once: no other writer makes it fail half way."""
        self._in_transaction = True
        cursor.execute("BEGIN IMMEDIATE")
        self._wal.expect_file()
        change(cursor)
        cursor.execute("COMMIT")
        self._in_transaction = False

    def is_to_be_made(self) -> bool:
        """True if there is no file yet, in a folder where the first write can make it."""
        return self._given is None and identity(self.path) is None and self._file_path.parent.is_dir()

    def for_reading(self, mode: str = "rw") -> sqlite3.Cursor:
        """A cursor of this process's connection."""
        if self._given is not None and os.getpid() != self._owner:
            raise StorageError(f"cannot use {self} after a fork: call setup() in the child process, or give it a path")
        self._abandon_lost()
        if self._given is None:
            self._leave_deleted_files()
        if self._in_transaction:  # an exception came while another one ended the transaction
            self._break_off()
        if self._connection is None:
            self._connection = self._connect(mode, min(TRY_SECONDS, BUSY_SECONDS))
            self._file = identity(self.path)
            self._wal.attach()
        if self._given is None:  # one field that is no text must not keep all others from being written
            self._connection.text_factory = str if mode == "rw" else text_of
        return cursor_of(self._connection)

    def for_writing(self) -> sqlite3.Cursor:
        """The same, with the table there and no transaction open."""
        cursor = self.for_reading("rwc")
        if cursor.connection.in_transaction:
            raise StorageError(
                f"cannot write {self}: the application has an open transaction on it; commit it, or give setup() a path"
            )
        if not self._prepared:
            if self._given is None:
                use_wal(cursor)
            if not has_table(cursor):
                self.change(cursor, make_table)
            if self._given is None:
                self._wal.attach()
            self._prepared = True
        return cursor

    def _connect(self, mode: str, seconds: float) -> sqlite3.Connection:
        """Open the file, with the mode "rwc" also a new one; a file that may only be read can be read with either mode.

        Each try of a call waits so many seconds for others.
        """
        if (why := _lost.get(identity(self.path))) is not None:
            raise StorageError(f"cannot use {self} any more: {why}")
        if self._sentinel is None:
            self._sentinel = Descriptor.sentinel()
        uri = f"{self._file_path.as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=seconds, isolation_level=None, check_same_thread=False, cached_statements=CACHED_STATEMENTS
        )
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connections to the file; the next call opens new ones."""
        with self.lock:
            self._abandon_lost()
            sentinel, self._sentinel = self._sentinel, None  # an interrupted close must not look like that of a daemon
            self._disconnect()
            if self._lent is not None:
                lent, self._lent = self._lent, None
                lent.close()
            if sentinel is not None:
                sentinel.close()

    def before_fork(self) -> None:
        """Close connections: SQLite's locks are per process, and a child that inherits a connection breaks both."""
        self.close()

    def inherit(self, *, idle: bool) -> None:
        """Close connections. One that another thread was using stays open for ever, and SQLite is not called any more."""
        self._in_transaction = False
        if idle:
            with tolerate(sqlite3.Error):
                self.close()
        elif self._given is None:
            for connection in (self._connection, self._lent):
                keep_for_ever(connection)
            _lost[identity(self.path)] = _CLONED  # a thread of the parent holds SQLite's own locks
            self._connection = self._lent = None
            self._prepared = False

    def _leave_deleted_files(self) -> None:
        """Close connections to files that were moved away or deleted: they would write where nobody reads."""
        if self._file not in (None, identity(self.path)) or (
            self._connection is not None and self._wal.rescue(self._connection)
        ):
            self.close()

    def _break_off(self, *, is_lost: bool = True) -> None:
        """End the transaction that may be open; connect anew where the connection `is_lost`, unless it is a given one."""
        with tolerate(sqlite3.Error):  # after a full disk SQLite has rolled back by itself
            if self._in_transaction and self._connection is not None:
                self._connection.rollback()  # a close does not end the statement of a cursor in an interrupted frame
            if is_lost:
                self._disconnect()
        self._in_transaction = False

    def _abandon_lost(self) -> None:
        """Never touch connections again whose descriptors were closed by others: SQLite would use other files."""
        if self._sentinel is not None and self._sentinel.status() is None:
            for connection in (self._connection, self._lent):
                if connection is not None:
                    keep_for_ever(connection)
            if self._file is not None:
                _lost[self._file] = _CLOSED  # SQLite shares descriptors among the connections to a file
            self._connection = self._lent = self._sentinel = None
            self._prepared = False

    def _disconnect(self) -> None:
        self._abandon_lost()
        self._prepared = False
        if self._given is None and self._connection is not None:
            connection, self._connection = self._connection, None  # a closed connection is never found here
            connection.close()


def text_of(stored: bytes) -> str:
    """A text, whatever bytes it is of."""
    return stored.decode(errors="replace")
