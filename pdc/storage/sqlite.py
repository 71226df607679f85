"""Metrics in one SQLite table, ``metrics(metric_key, subkey, value)``; NaN is stored as NULL."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..process import log
from ..process.files import Descriptor, keep_for_ever
from ..process.interruption import locked
from . import (
    BUCKETS,
    FOLDED,
    FORGET_WRITER_SECONDS,
    ID,
    LEFT_SECONDS,
    MARK,
    META,
    MOST_TOGETHER,
    REMOVALS,
    SEARCH,
    SERIES,
    SWEEP,
    SWEEPS,
    UPDATED,
    Batch,
    ForkSafe,
    Kind,
    Limits,
    Mark,
    Operation,
    Outcome,
    Parts,
    Selectors,
    Snapshot,
    Stamped,
    StorageError,
    Update,
    around_bound,
    foreign,
    is_url,
    new_id,
    series_of,
    without_secrets,
)
from .version2 import VERSION2, report, taken_over

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long one call waits for other writers before it says that the database is busy."""
TRY_SECONDS = 0.1
"""How long one try of it lasts: in between, this process may fork."""
PAUSE_SECONDS = 0.005
"""How long it is until the next one."""
FORK_SECONDS = 10.0
"""How long a fork waits for a thread that is using the database, but not for other programs that hold it."""
CACHE_KIB = 256
"""The pages that a connection keeps: the kernel has them too, once for all processes."""

WAL_BYTES = 4 * 1024 * 1024
"""How long a file ``-wal`` stays that became longer: as long as SQLite lets one become before it moves it into the database."""
MOST_WAL_BYTES = 4 * WAL_BYTES
"""Beyond which we move it there ourselves: what reads one after the other, or for long, keeps SQLite from that."""
SHORTEN_SECONDS = 5.0
"""How often we do so."""
TIMES_KEPT = 3
"""How often in a row we cannot before we say so: those who read one after the other may keep us from it now and then."""

MOST_FIELDS = 250
"""How many fields are removed in one transaction, or a few more: others wait for the lock meanwhile."""
MOST_STEMS = 100
"""In how many ways the fields of series may begin where they are named, not searched: one look at the index for each."""
MOST_FORGOTTEN = 250
"""How many writers are forgotten in one transaction."""
MOST_FOUND = 1000
"""How many fields are looked at in one go."""
LAST = "\U0010ffff"
"""It sorts after all that is in a field."""

BESIDE = "pdc_metrics"
"""Our table in a database that has version 2's table `metrics`."""
VERSION2_COLUMNS = {"metric_key": True, "subkey": True, "value": True}
"""Those of that table, which all refuse NULL."""

WAL = "-wal"
"""How the name of the write-ahead log ends."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS metrics (
        metric_key TEXT NOT NULL,
        subkey TEXT NOT NULL,
        value,
        PRIMARY KEY (metric_key, subkey)
    ) WITHOUT ROWID
"""
_INSERT = "INSERT INTO metrics (metric_key, subkey, value) VALUES (:name, :field, {}) ON CONFLICT (metric_key, subkey) DO "
_WRITE = {
    Kind.INIT: _INSERT.format(":value") + "NOTHING",
    Kind.SET: _INSERT.format(":value") + "UPDATE SET value = :value",
    Kind.ADD: _INSERT.format("0.0 + :value") + "UPDATE SET value = value + :value",
}
_WRITE[Kind.STAMP] = _WRITE[Kind.SET]
_BEGINNING = b"SQLite format 3\0"
_CLOSED = (
    "somebody closed all descriptors of this process, as a daemon does, and SQLite would write to the files that have their "
    "numbers now; call setup() after that, and update no metric before"
)
_CLONED = (
    "this process was cloned, not by Python, while a thread was using it; the journal has what is counted here, and another "
    "process sends that"
)
_lost: dict[tuple[int, int] | None, str] = {}
"""The files that this process can use no more, and why."""


class SqliteStorage(ForkSafe):
    """A database file, or a connection that the application made and keeps.

    A file is opened in WAL mode, once per process, when it is first needed. A given connection is used as it is:
    its pragmas stay, a transaction that is open on it is never committed, and the threads that may use it are those
    that `sqlite3.connect(check_same_thread=...)` allowed.
    """

    fork_seconds = FORK_SECONDS

    def __init__(self, database: str | os.PathLike[str] | sqlite3.Connection) -> None:
        if isinstance(database, (str, os.PathLike)) and os.fspath(database) in ("", ":memory:"):
            raise ValueError(
                f"setup(sqlite={database!r}) names no file: give it a path, or a connection such as sqlite3.connect(':memory:')"
            )
        if not isinstance(database, (str, os.PathLike, sqlite3.Connection)):
            raise TypeError(f"setup(sqlite=...) takes a path or a sqlite3.Connection, got {without_secrets(repr(database))}")
        if isinstance(database, (str, os.PathLike)) and is_url(str(os.fspath(database))):
            raise ValueError(
                "setup(sqlite=...) takes a path or a sqlite3.Connection, got a URL: one of Redis is setup(redis=...)"
            )
        if isinstance(database, (str, os.PathLike)):
            _expect_path_of_file(os.fspath(database))
        if getattr(database, "autocommit", None) is False:
            raise ValueError(
                "setup(sqlite=...) got a connection with autocommit=False, on which a transaction is always open: "
                "open it with autocommit=True, or give setup() a path"
            )
        super().__init__()
        self._given = database if isinstance(database, sqlite3.Connection) else None
        self._path = "" if isinstance(database, sqlite3.Connection) else os.path.abspath(os.fspath(database))
        self._file_path, self._wal_path = Path(self._path), Path(self._path + WAL)
        self._owner = os.getpid()
        self._connection = self._given
        self._lent: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._wal: tuple[int, int] | None = None
        """Which file the connection has for its write-ahead log."""
        self._shorten_at = 0.0
        self._times_kept = 0
        """Whether the log of the program knows that others keep that file long."""
        self._sentinel: Descriptor | None = None
        self._prepared = False
        self._in_transaction = False
        self._beside_version2 = False
        self._begun: set[str] = set()
        """Metrics of which it is known that nothing of version 2 is to be taken over any more."""

    def __str__(self) -> str:
        return f"SQLite {self._path or 'connection'}"

    @property
    def identity(self) -> str | None:
        return f"SQLite {self._path}" if self._path else None

    def connection(self) -> sqlite3.Connection:
        """The given connection, or one to the same file in autocommit mode, which the caller may use as it likes.

        Raises StorageError where the file cannot be opened.
        """
        return self._used(self._open, "open")

    def _open(self) -> sqlite3.Connection:
        self._for_writing()
        if self._given is not None:
            return self._given
        if self._lent is None:
            self._lent = self._connect("rwc", BUSY_SECONDS)
        return self._lent

    def bound_to_thread(self) -> int | None:
        """The only thread that may use the given connection, as it made it; None where any may."""
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

    def apply(self, batch: Batch) -> Outcome:
        if new := [update for update in batch.updates if update.name not in self._begun and update.meta]:
            self._used(self._take_over, "write", new)
        for update in batch.updates:
            self._remove(batch, update)
        outcome = Outcome(set(), {}, {}, {})
        ids: list[str] = []
        left: list[Callable[[sqlite3.Cursor], bool]] = []

        def apply_updates(cursor: sqlite3.Cursor) -> None:
            left.clear()
            ids.append(_id(cursor) or _give_id(cursor, batch.storage or new_id()))
            for update in batch.updates:
                left.extend(_Metric(cursor, update.name).apply(batch, update, outcome))

        self._used(self._write, "write", apply_updates)
        for work in left:
            self._in_pieces(work)
        return outcome._replace(storage=ids[-1])

    def _take_over(self, updates: list[Update]) -> None:
        """Begin new metrics with what version 2 counted, in one transaction; or note, and log, that this cannot be."""
        refused: dict[str, str] = {}

        def take_over(cursor: sqlite3.Cursor) -> None:
            refused.clear()
            for update in updates:
                if reason := _Metric(cursor, update.name).take_over(update.meta):
                    refused[update.name] = reason

        cursor = self._for_writing()
        if self._beside_version2:
            self._change(cursor, take_over)
        self._begun.update(update.name for update in updates)
        for name, reason in refused.items():
            report(name, f"the table metrics of {self}", reason)

    def places(self) -> list[str]:
        found = []
        for folder in self._file_path.parents:
            with suppress(OSError):  # it is not there yet, or not this user's to enter
                status = folder.stat()
                found.append(f"{status.st_dev}:{status.st_ino}")
        return found

    def id(self) -> str:
        return self._used(self._read_id, "read")

    def _read_id(self) -> str:
        if self._to_be_made():
            return ""
        cursor = self._for_reading()
        return _id(cursor) if _columns(cursor) else ""

    def _in_pieces(self, work: Callable[[sqlite3.Cursor], bool]) -> None:
        """Work in short transactions until nothing is left to do, and let others write in between.

        SQLite does not queue those who wait for its lock: they look for it now and then.
        """
        left = True

        def do_some(cursor: sqlite3.Cursor) -> None:
            nonlocal left
            left = work(cursor)

        while left:
            began = time.monotonic()
            self._used(self._write, "write", do_some)
            if left:
                time.sleep(time.monotonic() - began)

    def _remove(self, batch: Batch, update: Update) -> None:
        """Remove series in short transactions, which the mark of the batch keeps from doing anything once it is applied."""
        series, wanted = update.removals(Kind.REMOVE), update.removals(Kind.DELETE)
        if not self._remove_series(batch, update.name, series):
            wanted += series
        selectors = Selectors(map(json.loads, wanted))
        last: str | None = "" if wanted else None
        while last is not None:
            found, last = self._used(self._find, "write", update.name, selectors, last)
            if not self._remove_series(batch, update.name, list(found)):
                self._remove_fields(batch, update.name, list(chain.from_iterable(found.values())))

    def _find(self, name: str, selectors: Selectors, after: str) -> tuple[dict[str, list[str]], str | None]:
        """The series to remove among some fields, with these, and the last of all.

        It takes no lock, or a shared one for the moment.
        """
        query = "SELECT subkey FROM metrics WHERE metric_key = ? AND subkey > ? ORDER BY subkey LIMIT ?"
        fields = [field for (field,) in self._for_writing().execute(query, (name, after, MOST_FOUND))]
        found: defaultdict[str, list[str]] = defaultdict(list)
        for field in fields:
            if (labels := series_of(field)) is not None:
                found[labels].append(field)
        wanted = {labels: own for labels, own in found.items() if selectors.match_text(labels)}
        return wanted, fields[-1] if fields else None

    def _remove_series(self, batch: Batch, name: str, series: list[str]) -> bool:
        """Remove the series with these labels, and let others write in between; return whether their fields could be named."""
        left, done = series, 0

        def remove_some(cursor: sqlite3.Cursor) -> bool:
            nonlocal left, done
            done = _Metric(cursor, name).remove(batch, left)
            left = left[done:]
            return done >= 0 and bool(left)

        if left:
            self._in_pieces(remove_some)
        return done >= 0

    def _remove_fields(self, batch: Batch, name: str, fields: list[str]) -> None:
        """Remove these fields, and let others write in between."""

        def remove_some(cursor: sqlite3.Cursor) -> bool:
            _Metric(cursor, name).remove_fields(batch, fields[:MOST_FIELDS])
            del fields[:MOST_FIELDS]
            return bool(fields)

        self._in_pieces(remove_some)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        return self._used(self._read, "read", names)

    def _read(self, names: Collection[str] | None) -> Snapshot:
        if self._to_be_made():
            return Snapshot(time.time(), {})
        cursor = self._for_reading()
        metrics = dict(_metrics(cursor, names)) if _columns(cursor) else {}
        return Snapshot(time.time(), metrics)

    def delete(self) -> None:
        def delete_all(cursor: sqlite3.Cursor) -> None:
            if self._beside_version2:
                cursor.execute("DELETE FROM metrics WHERE metric_key != ?", (VERSION2,))
            else:
                cursor.execute("DELETE FROM metrics")  # which takes no time, as SQLite looks at no row

        self._used(self._write, "write", delete_all)

    def close(self) -> None:
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
        """Close connections; those that a thread was using stay open for ever, and SQLite is not called any more."""
        self._in_transaction = False
        if idle:
            with suppress(sqlite3.Error):
                self.close()
        elif self._given is None:
            for connection in (self._connection, self._lent):
                keep_for_ever(connection)
            _lost[_identity(self._file_path)] = _CLONED  # SQLite's own locks are held by a thread that is not there
            self._connection = self._lent = None
            self._prepared = False

    def _used(self, work: Callable[P, T], action: str, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work as the only thread that uses the connection. Raises what `_work` does."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return locked(self.lock, self._work, partial(work, *args, **kwargs), action)
            except StorageError as error:
                if self._given is not None or not _is_busy(error.__cause__) or time.monotonic() >= min(deadline, self.until):
                    raise
            time.sleep(PAUSE_SECONDS)  # a fork has its turn

    def _work(self, work: Callable[[], T], action: str) -> T:
        """Do the work.

        Whatever raises, also a handler of a signal, leaves no transaction open. Raises StorageError, which names the file and
        what may help, in place of errors of the driver.
        """
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._break_off(is_lost=not _is_busy(error))
            raise StorageError(f"cannot {action} {self}: {error}{_remedy(error, self._path)}") from error
        except BaseException:
            self._break_off()
            raise

    def _write(self, change: Callable[[sqlite3.Cursor], None]) -> None:
        cursor = self._for_writing()
        self._change(cursor, change)
        if self._wal is not None and time.monotonic() >= self._shorten_at:
            self._shorten_wal(cursor)

    def _change(self, cursor: sqlite3.Cursor, change: Callable[[sqlite3.Cursor], None]) -> None:
        """Change it in a transaction that takes the write lock at once, so that no other writer makes it fail half way."""
        self._in_transaction = True
        cursor.execute("BEGIN IMMEDIATE")
        if self._wal not in (None, _identity(self._wal_path)):
            raise sqlite3.OperationalError(f"database is locked: {self._wal_path} was deleted")  # the next try leaves it
        change(cursor)
        cursor.execute("COMMIT")
        self._in_transaction = False

    def _shorten_wal(self, cursor: sqlite3.Cursor) -> None:
        """Move a long log into the database and cut it; where others keep us from that, say so once."""
        self._shorten_at = time.monotonic() + SHORTEN_SECONDS
        size = 0
        with suppress(FileNotFoundError):  # the next call will notice
            size = self._wal_path.stat().st_size
        if size <= MOST_WAL_BYTES:
            self._times_kept = 0
            return
        is_kept = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        self._times_kept = self._times_kept + 1 if is_kept else 0
        if self._times_kept == TIMES_KEPT:
            text = "%s has %d MB and grows, since another program has been reading the file for long: end its transaction"
            log.defer(logging.WARNING, text, self._wal_path, size // 1_000_000)

    def _leave_deleted_files(self) -> None:
        """Close connections to files that were moved away or deleted: they would write to what is left of them."""
        if self._file not in (None, _identity(self._file_path)):
            self.close()
        elif self._connection is not None:
            wal = _identity(self._wal_path)
            if self._wal not in (None, wal):
                self._rescue(self._connection)
                self.close()
            self._wal = wal

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Move what is in a log that was deleted into the database. Raises an error that it is busy."""
        is_busy = 0
        with suppress(sqlite3.Error):  # another process has done so, or this one may not write
            is_busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy:
            raise sqlite3.OperationalError(f"database is locked: {self._wal_path} was deleted")
        log.defer(logging.WARNING, "%s was deleted while it was in use; the database is opened anew", self._wal_path)

    def _break_off(self, *, is_lost: bool = True) -> None:
        """End the transaction that may be open; connect anew where the connection `is_lost`, unless it is a given one."""
        with suppress(sqlite3.Error):  # after a full disk SQLite has rolled back by itself
            if self._in_transaction and self._connection is not None:
                self._connection.rollback()  # closing it does not end what a cursor of an interrupted frame goes on with
            if is_lost:
                self._disconnect()
        self._in_transaction = False

    def _to_be_made(self) -> bool:
        """Whether there is no file yet, in a folder where the first write can make it."""
        return self._given is None and _identity(self._file_path) is None and self._file_path.parent.is_dir()

    def _for_reading(self, mode: str = "rw") -> sqlite3.Cursor:
        """A cursor of this process's connection, for our table."""
        if self._given is not None and os.getpid() != self._owner:
            raise StorageError(f"cannot use {self} after a fork: call setup() in the child process, or give it a path")
        self._abandon_lost()
        if self._given is None:
            self._leave_deleted_files()
        if self._in_transaction:  # an exception came while one broke off
            self._break_off()
        if self._connection is None:
            self._connection = self._connect(mode, min(TRY_SECONDS, BUSY_SECONDS))
            self._file, self._wal = _identity(self._file_path), _identity(self._wal_path)
        if self._given is None:  # one field that is no text must not keep all others from being written
            self._connection.text_factory = str if mode == "rw" else _text
        return self._cursor(self._connection)

    def _cursor(self, connection: sqlite3.Connection) -> sqlite3.Cursor:
        """A cursor that uses our table, which is another one where version 2 has its own of the same name."""
        cursor = _of_tuples(connection.cursor())
        if not self._prepared:
            self._beside_version2 = _columns(cursor) == VERSION2_COLUMNS
        return _of_tuples(connection.cursor(_Beside)) if self._beside_version2 else cursor

    def _for_writing(self) -> sqlite3.Cursor:
        """The same, with the table there and no transaction open."""
        cursor = self._for_reading("rwc")
        if cursor.connection.in_transaction:
            raise StorageError(
                f"cannot write {self}: the application has an open transaction on it; commit it, or give setup() a path"
            )
        if not self._prepared:
            if self._given is None:
                _use_wal(cursor)
            cursor = self._create_table(cursor)
            if self._given is None:
                self._wal = _identity(self._wal_path)
            self._prepared = True
        return cursor

    def _connect(self, mode: str, seconds: float) -> sqlite3.Connection:
        """Open the file, with the mode "rwc" also one that is not there; one that may only be read can be read with either.

        Each try of a call waits so many seconds for others.
        """
        if (why := _lost.get(_identity(self._file_path))) is not None:
            raise StorageError(f"cannot use {self} any more: {why}")
        if self._sentinel is None:
            self._sentinel = Descriptor.sentinel()
        uri = f"{self._file_path.as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=seconds, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _abandon_lost(self) -> None:
        """Never touch connections again whose descriptors were closed by others: SQLite would use those of other files."""
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
            connection, self._connection = self._connection, None  # one that is closed is never found here
            connection.close()

    def _create_table(self, cursor: sqlite3.Cursor) -> sqlite3.Cursor:
        """Create the table unless it is there; return a cursor that uses it."""
        while not _columns(cursor):
            self._change(cursor, _make_table)
            cursor = self._cursor(cursor.connection)  # version 2 may have been faster
        return cursor


class _Beside(sqlite3.Cursor):
    """Uses our table where version 2 has its own, whose values can be neither NaN nor text, and which it reads."""

    def execute(self, statement: str, parameters: Any = (), /) -> _Beside:
        return super().execute(_beside(statement), parameters)

    def executemany(self, statement: str, parameters: Any, /) -> _Beside:
        return super().executemany(_beside(statement), parameters)


def _of_tuples(cursor: sqlite3.Cursor) -> sqlite3.Cursor:
    """The cursor, with rows that are tuples whatever its connection makes of them."""
    cursor.row_factory = None
    return cursor


@lru_cache(maxsize=128)
def _beside(statement: str) -> str:
    """The statement for our table; names and values are among its parameters."""
    return re.sub(r"\bmetrics\b", BESIDE, statement)


_UNLIMITED = Limits()


class _Metric:
    """The rows of one metric, inside a transaction."""

    def __init__(self, cursor: sqlite3.Cursor, name: str, limits: Limits = _UNLIMITED) -> None:
        self._cursor = cursor
        self._name = name
        self._limits = limits
        self._heirs: dict[str, int] = {}
        """How many values of the dead there are of each fate, where that had to be counted."""

    def apply(self, batch: Batch, update: Update, outcome: Outcome) -> Iterator[Callable[[sqlite3.Cursor], bool]]:
        """Apply the update unless the batch was seen before, and book what there was to see; yield what to do afterwards."""
        own = MARK + batch.writer
        meta, mark = self._get(META), self._get(own)
        if meta is None or mark is None:
            outcome.unknown.add(self._name)
        if batch.leaving and meta is None:
            return
        self._change(batch, update, None if mark is None else Mark.loads(mark), outcome)
        if update.declare and meta not in (None, update.meta):
            outcome.replaced[self._name] = meta
        if update.declare or meta is None:
            self._set(META, update.meta)
        idle = update.limits.expire_series
        if idle and self._is_time_to_sweep(idle) and meta is not None:
            yield _sweeper(self._name, idle)
        if batch.leaving and Mark.loads(self._get(own)).fate not in ("", "all"):
            yield lambda cursor: _Metric(cursor, self._name, update.limits).fold_own(batch)
        if self._is_time_to_search(batch.leaving) and meta is not None:
            yield lambda cursor: _Metric(cursor, self._name, update.limits).forget(batch.writer)

    def take_over(self, meta: str) -> str:
        """Begin the metric with what version 2 counted, unless that was done or refused; return why it cannot be."""
        note = _Metric(self._cursor, VERSION2)
        if note._get(self._name) is not None or self.first("") is not None:
            return ""
        plain = _of_tuples(self._cursor.connection.cursor())  # which sees version 2's table
        stored = plain.execute("SELECT subkey, value FROM metrics WHERE metric_key = ?", (self._name,)).fetchall()
        if not stored:
            return ""
        note._set(self._name, time.time())
        try:
            fields = taken_over(dict(stored), meta)
        except ValueError as error:
            return str(error)
        self._write(Kind.INIT, [Operation(Kind.INIT, field, number) for field, number in fields.items()], 0.0)
        return ""

    def _change(self, batch: Batch, update: Update, mark: Mark | None, outcome: Outcome) -> None:
        now = time.time()
        last, fate = (-1, "") if mark is None else (mark.sequence, mark.fate)
        if last < batch.sequence:
            if update.limits.max_series:
                update = self._limited(update, outcome)
            for kind, operations in update.by_kind():
                if kind not in REMOVALS:
                    self._write(kind, operations, now)
        if last <= batch.sequence:
            fates = [found for each in update.operations if each.kind is Kind.STAMP and (found := _fate(each.field))]
            self._mark(batch, Mark(batch.sequence, now, fates[-1] if fates else fate))

    def _limited(self, update: Update, outcome: Outcome) -> Update:
        """The update, with operations on new series that are over the limit done to another one."""
        most, overflow, _ = update.limits
        series = {labels: each.field for each in update.operations if (labels := _limited_series(each)) is not None}
        new = series.keys() - self._known_series(series)
        if not new:
            return update
        stored, has_overflow = self._count_series(update), self._known_series({overflow: _moved(series[min(new)], overflow)})
        room = max(most - stored + len(has_overflow), 0)
        candidates = [labels for labels in series if labels in new and labels != overflow]
        refused = set(candidates[room:])
        is_new_overflow = not has_overflow and (overflow in new or bool(refused))
        self._set(SERIES, float(stored + len(candidates) - len(refused) + is_new_overflow))
        if not refused:
            return update
        outcome.overflowed[self._name] = len(refused)
        operations = [
            each._replace(field=_moved(each.field, overflow)) if series_of(each.field) in refused else each
            for each in update.operations
        ]
        return update._replace(operations=operations)

    def _known_series(self, series: Mapping[str, str]) -> set[str]:
        """Those of these series that exist, each with one of its fields."""
        wanted = list(series.items())
        found: set[str] = set()
        for start in range(0, len(wanted), MOST_FIELDS):
            part = {field: labels for labels, field in wanted[start : start + MOST_FIELDS]}
            query = f"SELECT subkey FROM metrics WHERE metric_key = ? AND subkey IN ({','.join('?' * len(part))})"  # noqa: S608
            found.update(part[field] for (field,) in self._cursor.execute(query, (self._name, *part)))
        return found

    def _count_series(self, update: Update) -> int:
        """How many series there are; in a metric that had no limit before, they are counted."""
        stored = self._get(SERIES)
        if isinstance(stored, float):
            return int(stored)
        stems = {each.field.partition("{")[0] for each in update.operations if _limited_series(each) is not None}
        return max(map(self._count_starting_with, stems))

    def _is_time_to_search(self, leaving: bool) -> bool:
        """Whether to look for writers to forget; then, and when one leaves, note when to do that next."""
        now, search_at = time.time(), self._get(SEARCH)
        searches = not isinstance(search_at, float) or not now < search_at <= now + FORGET_WRITER_SECONDS
        if searches:
            search_at = now + FORGET_WRITER_SECONDS
        self._set(SEARCH, min(search_at, now + 2 * LEFT_SECONDS) if leaving else search_at)
        return searches

    def _write(self, kind: Kind, operations: list[Operation], now: float) -> None:
        values = ((operation.field, _stored(operation.value, now)) for operation in operations)
        self._cursor.executemany(
            _WRITE[kind], ({"name": self._name, "field": field, "value": value} for field, value in values)
        )

    def remove(self, batch: Batch, series: Sequence[str]) -> int:
        """Remove some of these series, the first ones, and return how many: all where the batch was applied.

        It is -1 where their fields begin in too many ways, as in a gauge with values of hundreds of processes.
        """
        if self._has_applied(batch):
            return len(series)
        return self._remove_some(series)

    def _remove_some(self, series: Sequence[str]) -> int:
        """Remove some of these series, the first ones, and return how many; -1 where it takes less to search their fields."""
        stems, bounds, done, deleted, gone = self._stems(), _Bounds(self), 0, 0, 0
        if len(stems) > MOST_STEMS:
            return -1
        while done < len(series) and (not done or deleted < MOST_FIELDS):
            doomed = list(_fields_of(series[done], stems, bounds))
            gone += self._delete(doomed) > 0
            deleted += len(doomed)
            done += 1
        count = self._get(SERIES)
        if isinstance(count, float):
            self._set(SERIES, max(count - gone, 0.0))
        return done

    def remove_fields(self, batch: Batch, fields: Iterable[str]) -> None:
        """Remove these fields unless the batch was applied."""
        if not self._has_applied(batch):
            self._delete(fields)

    def _has_applied(self, batch: Batch) -> bool:
        mark = self._get(MARK + batch.writer)
        return mark is not None and Mark.loads(mark).sequence >= batch.sequence

    def _is_time_to_sweep(self, idle: float) -> bool:
        """Whether to look for idle series; then note when to do that next."""
        now, sweep_at = time.time(), self._get(SWEEP)
        sweeps = not isinstance(sweep_at, float) or not now < sweep_at <= now + idle
        if sweeps:
            self._set(SWEEP, now + idle / SWEEPS)
        return sweeps

    def sweep(self, idle: float, after: str) -> str | None:
        """Remove idle series among some fields after this one; return the field after which to go on, if there are more.

        A series that was never updated since the metric has this limit is as if it were now.
        """
        now = time.time()
        query = "SELECT subkey FROM metrics WHERE metric_key = ? AND subkey > ? ORDER BY subkey LIMIT ?"
        fields = [field for (field,) in self._cursor.execute(query, (self._name, after, MOST_FIELDS))]
        series = {labels: UPDATED + labels for field in fields if (labels := series_of(field)) is not None}
        for labels in series.keys() - self._known_series(series):
            self._set(series[labels], f"0.0 {now!r}")
        doomed = [labels for labels, field in series.items() if (_stamped(self._get(field)) or (0.0, now))[1] <= now - idle]
        done = self._remove_some(doomed)
        if done < 0:
            self._delete(field for field in fields if series_of(field) in doomed)
        elif done < len(doomed):
            return after
        return fields[-1] if fields else None

    def _stems(self) -> list[str]:
        """How the fields of series begin, before their labels, found by a look at the index of the table for each.

        It looks no further once there are too many.
        """
        stems: list[str] = []
        field = self.first("")
        while field is not None and len(stems) <= MOST_STEMS:
            stem, brace, _ = field.partition("{")
            if brace:
                stems.append(stem)
            field = self.first(f"{stem}|" if brace else _after_all_with(MARK) if field.startswith(MARK) else f"{field}\1")
        return stems

    def first(self, start: str, end: str = LAST) -> str | None:
        """The first field from here to there."""
        query = "SELECT subkey FROM metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ? ORDER BY subkey LIMIT 1"
        return next((field for (field,) in self._cursor.execute(query, (self._name, start, end))), None)

    def _mark(self, batch: Batch, mark: Mark) -> None:
        """Record the batch; the mark of a writer that leaves without values is old."""
        if batch.leaving and not mark.fate:
            mark = _old(mark)
        self._set(MARK + batch.writer, mark.dumps())

    def fold_own(self, batch: Batch) -> bool:
        """Let some values of the writer, which left with this batch, meet their fate; return whether there may be more."""
        mark = Mark.loads(self._get(MARK + batch.writer))
        if mark.sequence != batch.sequence or mark.fate in ("", "all"):
            return False
        if self._take_from([batch.writer]):
            return True
        self._set(MARK + batch.writer, _old(mark).dumps())
        return False

    def forget(self, writer: str) -> bool:
        """Forget some writers that were not seen for long, but for this one, and values of theirs; return whether to go on."""
        now = time.time()
        marks = ((field.removeprefix(MARK), Mark.loads(stored)) for field, stored in self._starting_with(MARK))
        gone = [(other, mark) for other, mark in marks if other != writer and mark.forgotten(now)][:MOST_FORGOTTEN]
        if self._take_from([other for other, mark in gone if mark.fate]):
            return True
        self._delete(MARK + other for other, _ in gone)
        return len(gone) == MOST_FORGOTTEN

    def _take_from(self, writers: list[str]) -> bool:
        """Drop some values of these writers, or fold them into those of the dead; return whether there were any."""
        count = 0
        for fate, writer in product((*FOLDED, "live", "all"), writers):
            prefix = f"#{fate}:{writer}:"
            values = dict(self._starting_with(prefix, MOST_FIELDS - count))
            for field, value in values.items() if fate in FOLDED else ():
                heir = self._heir(f"#{fate}::", field.removeprefix(prefix))
                self._set(heir, _fold(fate, self._get(heir), value))
            self._delete(values)
            count += len(values)
        return count > 0

    def _heir(self, start: str, labels: str) -> str:
        """The value of the dead into which one of that series is folded."""
        most, overflow, _ = self._limits
        if not most or labels == overflow or self._get(start + labels) is not None:
            return start + labels
        if start not in self._heirs:
            self._heirs[start] = self._count_starting_with(start) - (self._get(start + overflow) is not None)
        if self._heirs[start] >= most:
            return start + overflow
        self._heirs[start] += 1
        return start + labels

    def _count_starting_with(self, start: str) -> int:
        query = "SELECT COUNT(*) FROM metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ?"
        return int(self._cursor.execute(query, (self._name, f"{start}{{", f"{start}|")).fetchone()[0])

    def _get(self, field: str) -> Any:
        query = "SELECT value FROM metrics WHERE metric_key = ? AND subkey = ?"
        found = self._cursor.execute(query, (self._name, field)).fetchone()
        return None if found is None else found[0]

    def _starting_with(self, prefix: str, most: int = -1) -> list[tuple[str, Any]]:
        """The fields that start with a prefix that ends with a colon, and their values; so many at most, or all."""
        query = "SELECT subkey, value FROM metrics WHERE metric_key = ? AND subkey >= ? AND subkey < ? LIMIT ?"
        return self._cursor.execute(query, (self._name, prefix, _after_all_with(prefix), most)).fetchall()

    def _set(self, field: str, value: float | str) -> None:
        self._write(Kind.SET, [Operation(Kind.SET, field, value)], 0.0)

    def _delete(self, fields: Iterable[str]) -> int:
        """Delete the fields, and return how many there were."""
        statement = "DELETE FROM metrics WHERE metric_key = ? AND subkey = ?"
        return self._cursor.executemany(statement, ((self._name, field) for field in fields)).rowcount


class _Bounds(dict[str, list[str]]):
    """The bounds of buckets by what stands before them in a field, each found by a look at the index of the table."""

    def __init__(self, metric: _Metric) -> None:
        self._metric = metric

    def __missing__(self, start: str) -> list[str]:
        bounds = self[start] = []
        while (field := self._metric.first(f"{start}{bounds[-1]}#" if bounds else start, start + LAST)) is not None:
            bounds.append(field.removeprefix(start).partition('"')[0])
        return bounds


def _sweeper(name: str, idle: float) -> Callable[[sqlite3.Cursor], bool]:
    """Removes some idle series of the metric each time; returns whether there may be more."""
    after: str | None = ""

    def sweep_some(cursor: sqlite3.Cursor) -> bool:
        nonlocal after
        after = _Metric(cursor, name).sweep(idle, after or "")
        return after is not None

    return sweep_some


def _limited_series(operation: Operation) -> str | None:
    """The labels of the series that the operation may begin: bounds of buckets, and creation times, come with another field."""
    if operation.kind is Kind.STAMP or operation.kind in REMOVALS or operation.field.startswith(("_bucket:", "_created:", "#")):
        return None
    return series_of(operation.field)


def _moved(field: str, labels: str) -> str:
    """The same field of another series."""
    stem, _, own = field.partition("{")
    if stem in BUCKETS:
        before, after = around_bound(labels)
        return f"{stem}{before}{json.loads('{' + own)['le']}{after}"
    return stem + labels


def _fields_of(labels: str, stems: Iterable[str], bounds: Mapping[str, list[str]]) -> Iterator[str]:
    """The fields of the series with these labels."""
    before, after = around_bound(labels)
    for stem in stems:
        if stem in BUCKETS:
            yield from (f"{stem}{before}{bound}{after}" for bound in bounds[stem + before])
        else:
            yield stem + labels


def _old(mark: Mark) -> Mark:
    """The mark of a writer that left, which stays until no duplicate can be on its way."""
    return Mark(mark.sequence, time.time() - FORGET_WRITER_SECONDS + LEFT_SECONDS)


def _after_all_with(prefix: str) -> str:
    """The end of the range of fields with this prefix, which ends with a colon."""
    return prefix.removesuffix(":") + ";"


def _stored(value: float | str | Stamped, now: float) -> float | str:
    if not isinstance(value, Stamped):
        return value
    age = value.age(time.monotonic())
    return f"{value.number!r} {0.0 if age is None else now - age!r}"


def _fate(field: str) -> str:
    """That of the value of a process; empty for another field."""
    start, _, rest = field.removeprefix("#").partition(":")
    return start if rest and start.isalpha() else ""


def _stamped(value: object) -> tuple[float, float] | None:
    """A number and the time it was set; nothing for what nobody of us wrote."""
    try:
        number, set_at = map(float, str(value).split(" "))
    except ValueError:
        return None
    return number, set_at


def _fold(fate: str, dead: Any, value: Any) -> Any:
    """The value of the dead together with that of one more, each with the time it was set."""
    before, after = _stamped(dead), _stamped(value)
    if before is None:
        return value
    if after is None:
        return dead
    (number, set_at), (new, new_set_at) = before, after
    if fate == "sum":
        return f"{number + new!r} {max(set_at, new_set_at)!r}"
    wins = {"min": new < number, "max": new > number, "mostrecent": new_set_at > set_at}[fate]
    return value if wins else dead


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which is kept in the file; where others do the same at that moment, the database is busy."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")


def _id(cursor: sqlite3.Cursor) -> str:
    """The id of the storage; empty where it has none."""
    query = "SELECT metric_key FROM metrics WHERE metric_key >= ? AND metric_key < '#id;' LIMIT 1"
    found = cursor.execute(query, (ID,)).fetchone()
    return found[0] if found else ""


def _give_id(cursor: sqlite3.Cursor, new: str) -> str:
    cursor.execute("INSERT INTO metrics (metric_key, subkey, value) VALUES (?, '', 0)", (new,))
    return new


def _columns(cursor: sqlite3.Cursor) -> dict[str, bool]:
    """The columns of the table, and whether each refuses NULL; nothing where there is no table."""
    return {name: bool(not_null) for _, name, _, not_null, _, _ in cursor.execute("PRAGMA table_info(metrics)")}


def _metrics(cursor: sqlite3.Cursor, names: Collection[str] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the metrics of these names, or all, with their fields; one by one, or each row would have the name again."""
    if names is None:
        names = [name for (name,) in cursor.execute("SELECT DISTINCT metric_key FROM metrics")]
    for name in names:
        if not isinstance(name, str):
            raise foreign(_text(name), TypeError(f"expected a metric_key that is text, got {name!r:.80}"))
        if not name.startswith(ID) and name != VERSION2 and (parts := list(_parts(cursor, name))):
            yield name, parts[0] if len(parts) == 1 else Parts(parts)


def _parts(cursor: sqlite3.Cursor, name: str) -> Iterator[dict[str, Any]]:
    """The fields of a metric, in parts. Raises StorageError for what is neither text nor number."""
    rows = cursor.execute("SELECT subkey, value FROM metrics WHERE metric_key = ? ORDER BY subkey", (name,))
    while part := _fields(name, islice(rows, MOST_TOGETHER)):
        yield part


def _fields(name: str, rows: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Those of one part."""
    try:
        fields = {field: math.nan if value is None else value for field, value in rows}
    except sqlite3.OperationalError as error:
        if "decode" in str(error):
            raise foreign(name, error) from error
        raise
    if bytes in {*map(type, islice(reversed(fields), 1)), *map(type, fields.values())}:  # as a field it comes last
        blob = next(pair for pair in fields.items() if bytes in map(type, pair))
        raise foreign(name, TypeError(f"expected text or a number, got a BLOB: {blob!r:.80}"))
    return fields


def _make_table(cursor: sqlite3.Cursor) -> None:
    cursor.execute(_SCHEMA)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file the path leads to at the moment."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _text(stored: bytes) -> str:
    """A text, whatever bytes it is of."""
    return stored.decode(errors="replace")


def _is_busy(error: BaseException | None) -> bool:
    """Whether another program holds the database."""
    return isinstance(error, sqlite3.Error) and ("locked" in str(error) or "busy" in str(error))


def _expect_path_of_file(path: str | bytes) -> None:
    """Raise ValueError for a path that can never be one of a database."""
    if isinstance(path, bytes) or path.startswith("file:"):
        raise ValueError(f"setup(sqlite={path!r}) takes the path of a file, such as '/var/lib/shop/metrics.db', and no URI")
    with suppress(OSError):  # a folder on the way may be closed to this user, as long as nobody writes there
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError(f"setup(sqlite={path!r}) takes the path of a file, got that of a folder or a device")


def _is_database(path: str) -> bool:
    """Whether the file begins as one of SQLite does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def _remedy(error: Exception, path: str) -> str:
    """What may help against an error, as the end of its message."""
    text = str(error)
    if "not a database" in text and not _is_database(path):
        return ". Check the path: another kind of file is there, and stays as it is."
    if _is_busy(error):
        return f". Another program held it for more than {BUSY_SECONDS:g} s."
    return next((remedy for part, remedy in _REMEDIES.items() if part in text), "")


_OTHER_TABLE = ". The table metrics of that file is another program's, and stays as it is: choose another path."
_REMEDIES = {
    "no such column": _OTHER_TABLE,
    "no column named": _OTHER_TABLE,
    "closed": " Call setup() again with an open one, or with a path.",
    "thread": " Open it with check_same_thread=False, or give setup() a path.",
    "unable to open": ". Check that the folder exists and may be written.",
    "readonly": ". Check the permissions of the file and its folder.",
    "malformed": ". Move the file away; a new one is made by itself.",
    "not a database": ". Move the file away; a new one is made by itself.",
    "full": ". Free some space; what is pending is kept in memory until then.",
    "disk I/O": ". Check the disk and quotas; what is pending is kept in memory until then.",
}
"""By a part of the message of the error."""
