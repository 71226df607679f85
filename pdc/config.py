"""The storages that the metrics of this process use."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .arguments import expect_redis, only, seconds, series_limits
from .cells import TURN, in_one_scrape
from .delivery import ENDS, EXIT_SECONDS, MESSAGES_LOST, Buffer, NotConfigured, call_storage, checked
from .process import log, servers
from .process.files import HAS_LOCKS
from .process.forks import FORKS
from .process.interruption import let_through, tolerate
from .process.once import once
from .storage import FORGET_WRITER_SECONDS, Snapshot, Storage, StorageError
from .storage.off import Off

if TYPE_CHECKING:
    import sqlite3

    from .delivery.journal import Journals
    from .storage.redis import RedisStorage
    from .storage.sqlite import SqliteStorage

P = ParamSpec("P")
T = TypeVar("T")

REDIS_EXPIRE = 3600.0
"""Seconds, where `setup` is not given others."""

DEFAULT, REDIS, SQLITE = Buffer(), Buffer(), Buffer()
"""The buffers of the metrics of `pdc`, `pdc.redis` and `pdc.sqlite`."""
BUFFERS = (DEFAULT, REDIS, SQLITE)
_OWN: list[sqlite3.Connection] = []
"""The databases in memory that a process of tests has for itself, whatever storage `setup` is given; the last one counts."""


def setup(
    redis: Any = None,
    sqlite: str | os.PathLike[str] | sqlite3.Connection | None = None,
    *,
    storage: Storage | None = None,
    redis_prefix: str = "",
    redis_expire: float | None = REDIS_EXPIRE,
    flush_interval: float = 0.0,
    journal: str | os.PathLike[str] | bool = True,
    exit_timeout: float = EXIT_SECONDS,
    max_series: int | None = None,
    expire_series: float | None = None,
) -> None:
    """Choose the storage of metrics: Redis, SQLite, or one of your own; exactly one of them.

    It may be called again at any time, before or after metrics are declared: pending updates go to the storage so far.
    The metrics of `pdc` use the storage that was chosen last. The metrics of `pdc.redis` and `pdc.sqlite` keep to their
    own, so that one process can use both. Nothing connects until the first update or scrape.

    - `redis`: a client of redis-py (`Redis`, `RedisCluster`, what `Sentinel.master_for` returns), or a URL of a
      server (``redis://``), a cluster (``redis+cluster://``) or sentinels (``redis+sentinel://``).
    - `sqlite`: a path, or a `sqlite3.Connection`, which is then used as it is.
    - `storage`: an object that keeps the contract of `pdc.storage.Storage`, for the metrics of `pdc` alone.
    - `redis_prefix`: part of every key, so that several programs can share a database; for Redis only.
    - `redis_expire`: seconds after which a metric that no living process has declared is gone; None for never. For Redis only.
    - `flush_interval`: seconds between two batches that a background thread sends; updates then cost no I/O, which is
      right for servers. With 0 every update is in the storage when its call returns: right for scripts.
    - `journal`: the folder where updates are kept that are not in the storage yet, so that the next process of this host
      that uses the same storage sends what a killed one left. True is a folder that only this user can make (of XDG, or
      among temporary files); False is none. A folder of your own must be on a local disk, and for this user only to write.
    - `exit_timeout`: seconds that the end of the process, and `shutdown`, wait for the storages, all together; that of the last
      call counts. Updates that are not sent by then stay in the journal.
    - `max_series`: how many series a metric with labels may have in the storage, whatever processes make them, unless the
      metric says so itself; None for no limit. Further ones count as one, whose labels are all ``<overflow>``.
    - `expire_series`: seconds after which a series of a metric with labels is gone that nobody updated, unless the metric says
      so itself; None for never. It starts anew with its next update.

    Raises ValueError for arguments that make no sense, TypeError for a client or a storage that is none, and ImportError where
    `redis` is not installed.
    """
    interval, timeout = seconds("flush_interval", flush_interval), seconds("exit_timeout", exit_timeout)
    folder = _folder(journal)
    limits = {name: limit for name, limit in series_limits(max_series, expire_series).items() if limit is not None}
    chosen = only(redis=redis, sqlite=sqlite, storage=storage)
    expect_redis(chosen, redis_prefix=(redis_prefix, ""), redis_expire=(redis_expire, REDIS_EXPIRE))
    if _OWN:
        _attach_own(limits)
    elif redis is not None:
        expire = None if redis_expire is None else seconds("redis_expire", redis_expire, least=0.001)
        renew_seconds = min(expire or math.inf, FORGET_WRITER_SECONDS) / 3
        in_redis = redis_storage(redis, redis_prefix, expire)
        _attach((REDIS, DEFAULT), in_redis, interval, folder, renew_seconds, limits)
        _announce(in_redis, interval, folder)
    elif storage is not None:
        _attach_own_kind(checked(storage), interval, folder, limits)
    else:
        _attach_sqlite(sqlite, interval, folder, limits)
    Buffer.exit_timeout = timeout


def _folder(journal: str | os.PathLike[str] | bool) -> Path | bool:
    """The folder of journals, True for the default ones, False for none."""
    if journal is not False and not HAS_LOCKS:
        _note_missing_journal()
        return False
    return journal if isinstance(journal, bool) else Path(journal).absolute()  # a daemon changes the working directory


@once
def _note_missing_journal() -> None:
    """Log once that there is none."""
    log.write(
        logging.WARNING,
        "there is no journal, as this system has no locks of POSIX (fcntl): updates that are not sent yet go with the process "
        "when it is killed; setup(journal=False) or PDC_JOURNAL=false accept that",
    )


def switch_off() -> None:
    """Drop all updates from now on, and show nothing, until a `setup`; after one, nothing changes."""
    if DEFAULT.storage is not None:
        return
    for buffer in BUFFERS:
        if buffer.storage is None:
            buffer.attach(Off(), 1.0, None)  # an update then costs no more than with a storage
    log.write(logging.INFO, "metrics go to %s", DEFAULT.storage)


def expect_on() -> None:
    """Raise StorageError where the metrics of `pdc` go nowhere."""
    if is_off():
        raise StorageError("nothing is counted: PDC_ENABLED is false")


def is_off() -> bool:
    """True where the metrics of `pdc` go nowhere."""
    return isinstance(DEFAULT.storage, Off)


def get_redis_conn() -> Any:
    """The client that `setup(redis=...)` was given or made from the URL. Raises NotConfigured and StorageError."""
    if _OWN:
        raise NotConfigured("the metrics of this process are in its own storage (pdc.testing.own_storage): there is no Redis")
    storage: RedisStorage = REDIS.required()  # type: ignore[assignment]  # REDIS has no other storage
    return storage.client


def get_sqlite_conn() -> sqlite3.Connection:
    """A connection to the database that `setup(sqlite=...)` was given.

    For a path it is one of its own in autocommit mode, so that your statements and pdc's never share a transaction;
    ask again after a fork or another `setup`. Raises NotConfigured and StorageError.
    """
    storage: SqliteStorage = SQLITE.required()  # type: ignore[assignment]  # SQLITE has no other storage
    return storage.connection()


def use_own_storage() -> None:
    """Keep all metrics of this process in its memory, whatever storage `setup` was given, or is given from now on."""
    import sqlite3

    _OWN.append(sqlite3.connect(":memory:", check_same_thread=False))
    _attach_own({})


def has_own_storage() -> bool:
    """True from `use_own_storage` on."""
    return bool(_OWN)


def leave_own_storage() -> None:
    """Forget the metrics of the last `use_own_storage`, and go back to those of the one before.

    Without such a one, further updates need another `setup`.
    """
    if _OWN:
        _shut_down()
        _OWN.pop().close()
    if _OWN:
        _attach_own({})


def _attach_own(limits: Mapping[str, float]) -> None:
    from .storage.sqlite import SqliteStorage

    _attach(BUFFERS, SqliteStorage(_OWN[-1]), 0.0, False, FORGET_WRITER_SECONDS / 3, limits)


def flush() -> None:
    """Send everything pending in this process. Raises StorageError; unsent updates stay pending.

    A storage that does not answer is given up after 5 s, or the shorter timeout of its client.
    """
    errors = []
    down: list[Storage] = []
    for buffer in BUFFERS:
        if buffer.storage is not None and not any(buffer.storage is each for each in down):
            try:
                buffer.flush()
            except StorageError as error:
                errors.append(error)
                if buffer.down:
                    down.append(buffer.storage)
    if errors:
        raise errors[0].with_traceback(None) from None


_OVERDUE: list[threading.Thread] = []
"""The thread that took longer than `exit_timeout` before the end: while it waits, exit does not wait again."""


def flush_before_end(seconds: float | None = None, *, deregister: bool = False) -> None:
    """Send pending updates of a process that may be about to end, and wait for that so many seconds, or `exit_timeout`.

    The journal keeps the rest. With `deregister`, it leaves each storage that has all, until its next update or scrape.
    """
    end = partial(_flush_as_far_as_can_be, deregister)
    thread = threading.Thread(target=end, name="pdc-end", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:  # there are too many, there is no memory for it, or the interpreter ends
        let_through(error)
        end()
    else:
        thread.join(Buffer.exit_timeout if seconds is None else seconds)
        _OVERDUE[:] = [thread] if seconds is None and thread.is_alive() else []


def _flush_as_far_as_can_be(deregister: bool) -> None:
    for step in (flush, *(buffer.pause for buffer in BUFFERS if deregister)):
        with tolerate(StorageError, NotConfigured):  # it is logged, or another thread has called `shutdown` meanwhile
            step()


def clear() -> None:
    """Delete every metric from the storage that `setup` chose last.

    The metrics of this process start again: metrics without labels export 0, series with labels come back with their
    next update. Raises NotConfigured and StorageError.
    """
    _without_traceback(_clear)


def _clear() -> None:
    _settle_others(DEFAULT)
    DEFAULT.clear()
    for other in _others(DEFAULT):
        other.start_again()


def shutdown() -> None:
    """Send pending updates, deregister this process from the storages, and close them. Errors are logged.

    Like the end of a process, this lasts no longer than `exit_timeout`; the journal keeps unsent updates. Call `flush` first
    where all must be sent. Metrics need another `setup` before their next update. A process that ends calls this by itself.
    Metrics of tests in a storage of their own stay there, as with `setup`.
    """
    limits = DEFAULT.limits
    _shut_down()
    if _OWN:
        _attach_own(limits)


def _shut_down() -> None:
    until = time.monotonic() + Buffer.exit_timeout
    storages = _storages()
    for storage in storages:
        _at_end(storage.set_deadline, until)
    for buffer in BUFFERS:
        buffer.detach(until)
    for storage in storages:
        _at_end(storage.close)


def read(buffer: Buffer, names: Collection[str] | None = None) -> Snapshot:
    """Read those metrics or all, with the pending updates of this process. Raises NotConfigured and StorageError."""
    return _without_traceback(in_one_scrape, _read, buffer, names)


def described(storage: Storage) -> str:
    """The storage and the part of it that is used, in words, without secrets."""
    prefix = getattr(storage, "redis_prefix", None)
    return str(storage) if prefix is None else f"{storage} with redis_prefix {prefix!r}"


def is_declared() -> bool:
    """True where this process has a metric in the storage that `setup` chose last."""
    return any(buffer.has_metrics for buffer in (DEFAULT, *_others(DEFAULT)))


def waiting_series() -> int:
    """The count of series of this process with updates that could not be sent, or that a storage refuses."""
    return sum(buffer.waiting for buffer in BUFFERS)


def is_up() -> bool:
    """True where this process could write to all of its storages the last time."""
    return not any(buffer.down for buffer in BUFFERS)


def _without_traceback(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do the work, and raise errors of the storage without a traceback: their messages are enough, and it is pages long."""
    try:
        return work(*args, **kwargs)
    except StorageError as error:
        raise error.with_traceback(None) from None


def _read(buffer: Buffer, names: Collection[str] | None) -> Snapshot:
    _settle_others(buffer, names)
    for other in _others(buffer):
        other.raise_if_refused(names)
    snapshot = buffer.read(names)
    has_lost = [other.restore(snapshot, names) for other in _others(buffer)]
    return buffer.read(names) if any(has_lost) else snapshot


def _settle_others(buffer: Buffer, names: Collection[str] | None = None) -> None:
    """Send the pending updates of the other buffers of this process for the same storage."""
    for other in _others(buffer):
        other.send_pending(names)


def _others(buffer: Buffer) -> list[Buffer]:
    """The other buffers of this process that send to the same storage."""
    return [other for other in BUFFERS if other is not buffer and other.storage is not None and other.storage is buffer.storage]


def _attach_own_kind(storage: Storage, interval: float, folder: Path | bool, limits: Mapping[str, float]) -> None:
    _expect_identity(storage, folder, "a storage with an identity")
    storage.set_deadline(math.inf)  # `shutdown` may have given it one
    _attach((DEFAULT,), storage, interval, folder, FORGET_WRITER_SECONDS / 3, limits)
    _announce(storage, interval, storage.identity is not None and folder)


def _expect_identity(storage: Storage, folder: Path | bool, remedy: str) -> None:
    """Raise ValueError for a folder of journals of a storage that no other process finds."""
    if storage.identity is None and isinstance(folder, Path):
        raise ValueError(f"journal={str(folder)!r} needs a storage that the next process finds: give setup() {remedy}")


def _attach_sqlite(database: Any, interval: float, folder: Path | bool, limits: Mapping[str, float]) -> None:
    from .storage.sqlite import SqliteStorage

    storage = SqliteStorage(database)
    _expect_identity(storage, folder, "a path, no connection")
    thread = storage.bound_to_thread()
    if interval and thread is not None:
        raise ValueError(
            f"flush_interval={interval:g} needs a connection that a background thread may use: "
            "open it with check_same_thread=False, or give setup() a path"
        )
    _attach((SQLITE, DEFAULT), storage, interval, folder, FORGET_WRITER_SECONDS / 3, limits, thread=thread)
    _announce(storage, interval, storage.identity is not None and folder)


def _announce(storage: Storage, interval: float, folder: Path | bool) -> None:
    if not log.logger.isEnabledFor(logging.INFO):  # to know the default folder takes a while
        return
    from .delivery.journal import default_folders

    when = f"every {interval:g} s" if interval else "each update at once"
    folders = default_folders() if folder is True else [folder] if folder else []
    journals = f"journals are in {folders[0]}" if folders else "there is no journal"
    log.write(logging.INFO, "metrics go to %s, %s; %s", described(storage), when, journals)


def redis_storage(client: Any, prefix: str, expire: float | None, option: str = "setup(redis=...)") -> Storage:
    """The storage in Redis. Raises ImportError, with the remedy, where the driver is missing.

    Raises ValueError for a URL that cannot be used; the message names the `option` that has it.
    """
    try:
        from .storage.redis import RedisStorage
    except ImportError as error:
        raise ImportError("setup(redis=...) needs redis-py: pip install 'prometheus-distributed-client[redis]'") from error
    if not isinstance(prefix, str):
        raise TypeError(f"redis_prefix must be a str, got {prefix!r}")
    try:
        return RedisStorage(client, prefix, expire)
    except ValueError as error:
        let_through(error)
        reason = str(error)
    raise ValueError(f"{option}: {reason}")


def _attach(
    buffers: Collection[Buffer],
    storage: Storage,
    interval: float,
    folder: Path | bool,
    renew_seconds: float,
    limits: Mapping[str, float],
    *,
    thread: int | None = None,
) -> None:
    servers.adapt()
    for buffer in BUFFERS:
        if buffer not in buffers and isinstance(buffer.storage, Off):
            buffer.detach()  # else its updates would be lost unnoticed
    before = _storages()
    for buffer in buffers:
        journals = _journals(folder, storage)
        buffer.attach(storage, interval, renew_seconds, thread=thread, journals=journals, limits=limits)
    kept = _storages()
    for storage in before:
        if not any(storage is each for each in kept):
            _at_end(storage.close)


def _journals(folder: Path | bool, storage: Storage) -> Journals | None:
    if folder is False or storage.identity is None:
        return None
    from .delivery.journal import Journals

    return Journals(None if folder is True else folder, storage.identity, storage.places)


def _storages(without: Collection[Storage | None] = ()) -> list[Storage]:
    """The storages in use, each once. Those of applications may be equal, or have no hash."""
    found = {id(buffer.storage): buffer.storage for buffer in BUFFERS if buffer.storage is not None}
    return [storage for storage in found.values() if not any(storage is each for each in without)]


def _at_end(call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a storage that comes to its end. An error is logged: the others must come to theirs."""
    try:
        call_storage(call, *args, **kwargs)
    except StorageError as error:
        log.write(logging.ERROR, "%s", error)


def _at_exit() -> None:
    has_waited = any(thread.is_alive() for thread in _OVERDUE)
    until = time.monotonic() + (0.0 if has_waited else Buffer.exit_timeout)
    for storage in _storages():
        _at_end(storage.set_deadline, until)
    for buffer in BUFFERS:
        buffer.begin_exit()
    for buffer in BUFFERS:
        buffer.at_exit(until)
    overdue = [buffer.storage for buffer in BUFFERS if buffer.is_overdue]
    for storage in _storages(without=overdue):
        _at_end(storage.close)
    log.finish(max(until - time.monotonic(), 0.0))


def _count_message() -> None:
    if DEFAULT.storage is not None:
        DEFAULT.health.count(MESSAGES_LOST)


def _before_snapshot() -> None:
    for buffer in BUFFERS:
        buffer.deregister()
    for storage in _storages():
        _at_end(storage.close)


def _as_worker_starts() -> None:
    for buffer in BUFFERS:
        buffer.report()


def _after_request() -> None:
    for buffer in BUFFERS:
        buffer.catch_up()


def _before_fork() -> None:
    for buffer in BUFFERS:
        buffer.before_fork()


def _after_fork_in_parent() -> None:
    for buffer in BUFFERS:
        buffer.after_fork_in_parent()


def _after_fork_in_child() -> None:
    TURN.begin()
    for buffer in BUFFERS:
        buffer.after_fork_in_child()


log.FAILURES.append(_count_message)
atexit.register(_at_exit)
ENDS.append(_at_exit)
servers.WORKER_STARTS.append(_as_worker_starts)
servers.SNAPSHOTS.append(_before_snapshot)
servers.ABORTS.append(flush_before_end)
servers.REQUEST_ENDS.append(_after_request)
FORKS.register(_before_fork, _after_fork_in_parent, _after_fork_in_child)
