"""Findings about SQLite: the file, its folder, its disk, and the tables of others."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..storage.sqlite import SqliteStorage
from ..storage.sqlite.database import BUSY_SECONDS
from ..storage.sqlite.errors import remedy
from ..storage.sqlite.wal import WAL_BYTES
from .findings import ERROR, OK, WARNING, Finding
from .words import size

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.s3fs", "glusterfs", "ceph", "lustre")
"""File systems whose files two hosts share: the WAL mode needs memory that all processes share."""
LEAST_FREE = 0.05
"""The least part of a disk that is free."""
PAGE_BYTES = 4096
"""The least that SQLite writes."""
OUR_TABLES = {"metrics", "pdc_metrics"}


def of_sqlite(storage: SqliteStorage) -> Iterator[Finding]:
    """All findings about the file of a storage."""
    path = Path(storage.database.path)
    yield Finding(OK, "version", f"SQLite {sqlite3.sqlite_version}")
    yield from _of_rights(path)
    yield from _of_disk(path)
    yield from _of_content(path)


def _of_rights(path: Path) -> Iterator[Finding]:
    closed = [str(each) for each in (path, path.parent) if not os.access(each, os.W_OK)]
    if closed:
        needed = "programs that count need the right to write the file and its folder"
        yield Finding(WARNING, "rights", f"this user may not write {' and '.join(closed)}", needed)
    else:
        yield Finding(OK, "rights", "this user may read and write the file and its folder")


def _of_disk(path: Path) -> Iterator[Finding]:
    kind = _file_system(path)
    if kind in NETWORK:
        instead = "put the file on a local disk, or use Redis for several hosts"
        yield Finding(ERROR, "disk", f"the file is on a network ({kind}), where WAL does not work", instead)
    usage = shutil.disk_usage(path.parent)
    level = ERROR if usage.free < PAGE_BYTES else WARNING if usage.free < LEAST_FREE * usage.total else OK
    why = "" if level == OK else "free some space: updates wait in memory while the disk is full"
    yield Finding(level, "disk", f"{size(usage.free)} of {size(usage.total)} are free", why)


def _file_system(path: Path) -> str:
    """The type of the file system; empty where this host has no list of them."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    parents = {str(path.resolve()), *map(str, path.resolve().parents)}
    found = [(mount[1], mount[2]) for mount in mounts if mount[1] in parents]
    return max(found, default=("", ""), key=lambda mount: len(mount[0]))[1]


def _of_content(path: Path) -> Iterator[Finding]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        except sqlite3.Error as error:
            yield Finding(ERROR, "file", f"{path} cannot be read: {error}", remedy(error, str(path), BUSY_SECONDS).strip(". "))
            return
    written, log = path.stat().st_size, path.with_name(f"{path.name}-wal")
    log_size = log.stat().st_size if log.exists() else 0
    if log_size > WAL_BYTES:
        yield Finding(
            WARNING, "file", f"{log} has {log_size:,} bytes", "end the transaction of a reader that stays (a backup, sqlite3)"
        )
    text = f"{written:,} bytes, {log_size:,} more in its log, journal mode {mode}"
    yield (
        Finding(OK, "file", text)
        if mode == "wal"
        else Finding(WARNING, "file", text, "the first program that counts switches it to WAL, so that readers wait for nobody")
    )
    if others := tables - OUR_TABLES:
        yield Finding(OK, "tables", f"other tables in the file: {', '.join(sorted(others))}")
    if tables >= OUR_TABLES:
        yield Finding(OK, "tables", "the table of version 2 is there, too: see `pdc migrate`")
