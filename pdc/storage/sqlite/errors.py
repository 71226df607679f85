"""Errors of SQLite, and paths that it cannot use."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ...process.interruption import let_through, tolerate
from ..redaction import is_url, without_secrets

_BEGINNING = b"SQLite format 3\0"
_OTHER_TABLE = ". The table pdc_metrics of that file is another program's, and stays as it is: choose another path."
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


def is_busy(error: BaseException | None) -> bool:
    """True if another program holds the database."""
    return isinstance(error, sqlite3.Error) and ("locked" in str(error) or "busy" in str(error))


def remedy(error: Exception, path: str, seconds: float) -> str:
    """The remedy for an error, as the end of its message; a call waits so many seconds for other programs."""
    text = str(error)
    if "not a database" in text and not _is_database(path):
        return ". Check the path: another kind of file is there, and stays as it is."
    if is_busy(error):
        return f". Another program held it for more than {seconds:g} s."
    return next((remedy for part, remedy in _REMEDIES.items() if part in text), "")


def _is_database(path: str) -> bool:
    """True if the file begins as one of SQLite does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError as error:
        let_through(error)
        return False


def expect_database(database: object) -> None:
    """Raise ValueError or TypeError for a value of setup(sqlite=...) that can never be a database."""
    if isinstance(database, (str, os.PathLike)):
        _expect_path(os.fspath(database), database)
    elif not isinstance(database, sqlite3.Connection):
        raise TypeError(f"setup(sqlite=...) takes a path or a sqlite3.Connection, got {without_secrets(repr(database))}")
    elif getattr(database, "autocommit", None) is False:
        raise ValueError(
            "setup(sqlite=...) got a connection with autocommit=False, on which a transaction is always open: "
            "open it with autocommit=True, or give setup() a path"
        )


def _expect_path(path: str | bytes, given: object) -> None:
    if path in ("", ":memory:"):
        raise ValueError(
            f"setup(sqlite={given!r}) names no file: give it a path, or a connection such as sqlite3.connect(':memory:')"
        )
    if is_url(str(path)):
        raise ValueError("setup(sqlite=...) takes a path or a sqlite3.Connection, got a URL: one of Redis is setup(redis=...)")
    if isinstance(path, bytes) or path.startswith("file:"):
        raise ValueError(f"setup(sqlite={path!r}) takes the path of a file, such as '/var/lib/shop/metrics.db', and no URI")
    with tolerate(OSError):  # a folder on the way may be closed to this user, as long as nobody writes there
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError(f"setup(sqlite={path!r}) takes the path of a file, got that of a folder or a device")
