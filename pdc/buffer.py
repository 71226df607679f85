"""The buffer: sends what the cells of this process gathered, in batches."""

from __future__ import annotations

import logging
import os
import queue
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, ParamSpec, TypeVar

from . import log, servers
from .cells import FREE_THREADED, Cell, Entry, Kept, Note, Pending, Removal, in_one_scrape, numbers
from .family import LEASE_SECONDS, OVERFLOW, Family
from .files import is_root
from .forks import FORKS
from .health import BATCHES_RETRIED, SERIES_REFUSED, Health
from .interruption import ends_greenlet, interruption, is_own, locked, release_own
from .journal import Journals
from .storage import FORK_SECONDS, Batch, Limits, Outcome, Snapshot, Storage, StorageError, Update

P = ParamSpec("P")
T = TypeVar("T")

BEAT_SECONDS = LEASE_SECONDS / 3
FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 15.0
MOST_ENTRIES = 250
"""Of a batch: a process keeps the memory that its largest one took."""
MOST_NUMBERS = 4000
"""Of a batch, about: a storage does nothing else meanwhile. It is as many as histograms of 15 buckets have in 250 series."""
PAUSE_SECONDS = 0.1
"""How long the background thread waits after an error that nobody foresaw."""
EXIT_SECONDS = 2.0
"""How long the end of a process waits for its storages, all together, unless `setup` says otherwise."""
SCRAPE_RETRY_SECONDS = 1.0
"""How often a scrape tries a storage that is down: whoever asks waits for it, but no application does."""


class NotConfigured(RuntimeError):
    """A metric was updated, or metrics were read, before `setup` said where they live."""


class Buffer:
    """Sends what the cells of this process gathered to one storage, in batches that a retry cannot double.

    With `interval` 0 every update is sent before its call returns; otherwise a background thread sends what changed
    every `interval` seconds. The thread also renews leases and expiry, and retries when the storage is down. Updates
    never raise because of a storage: what could not be sent stays in the cells, bounded by the number of series.

    Handlers of signals may raise an exception between any two bytecodes of this class. It reaches the application, and the
    next turn goes on from what it finds: an entry is in the queue or among the taken ones until its batch is booked. While
    there are taken entries and no batch, taking them again gives the batch.
    """

    exit_timeout: ClassVar[float] = EXIT_SECONDS
    """How long the end of the process waits for storages, those of all buffers together."""

    def __init__(self) -> None:
        self.storage: Storage | None = None
        self.write_through = True
        self._interval = 0.0
        self._only_thread: int | None = None
        """The one that may use the storage, where not all may."""
        self._renew_seconds: float | None = None
        self.limits: Mapping[str, float] = {}
        """Of the series of metrics that ask for none of their own, by the names that `Family` has for them."""
        self._metrics: dict[str, list[weakref.ref[Pending]]] = {}
        """By their names, those of one name in the order of their declarations."""
        self.health = Health(self)
        self._journals: Journals | None = None
        self._leaving = False
        self._used = False
        self._start()

    def _start(self) -> None:
        """Begin as a new process."""
        self.writer = _new_writer()
        self._sequence = 0
        self._queue: deque[Entry] = deque()
        self._due = 0
        """How many of them are to be sent now."""
        self._in_flight: Batch | None = None
        self._taken: dict[Entry, None] = {}
        """The entries of the batch in flight, or of the one that is being made."""
        self._first_try = 0.0
        self._replay_due = True
        self._retired: deque[Pending] = deque()
        """Metrics that nobody has any more, and whose cells may wait to be sent."""
        self._restart_due = False
        """Whether every series must be sent, as to an empty storage."""
        self._overtaken = False
        """Whether somebody else sends what is pending."""
        self._applied: set[str] = set()
        self._declared: dict[str, str] = {}
        self._limits: dict[str, Limits] = {}
        """Of metrics that were sent, which may be gone when this process leaves."""
        self._refused: dict[str, str] = {}
        """Metrics that the storage refuses, and why; what they gather waits."""
        self._refused_at = 0.0
        """When to ask next whether it still does."""
        self._regained: set[str] = set()
        """Metrics that it refused once, and does no more."""
        self._replaced: set[str] = set()
        self._overflowed: set[str] = set()
        self._sending = threading.RLock()
        self._sender: int | None = None
        self._thread: threading.Thread | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Unlike an event, it has no lock that stays held where an exception of a handler comes at the wrong moment."""
        self._down: Exception | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._retry_at = self._scrape_at = 0.0
        self._next_beat = 0.0
        self._next_renewal = 0.0
        self._health_due = True
        self._begun = False
        """Whether this process has updated a metric, or sent anything."""
        self._has_left = False
        """Whether the background thread has left for good, as the process ends."""
        self.is_overdue = False
        """Whether the process ends without waiting for the storage any longer."""

    # What metrics call

    def adopt(self, pending: Pending) -> None:
        """Know the metric from now on."""
        same = self._metrics.setdefault(pending.family.name, [])
        same.append(weakref.ref(pending, same.remove))

    def last_declared(self, name: str) -> Pending | None:
        """The metric of that name that was declared last, of those that live."""
        same = self._living(name)
        return same[-1] if same else None

    def retire(self, pending: Pending) -> None:
        """Declare the metric no more, as nobody has it; a finalizer calls this, wherever that runs."""
        pending.retired = True
        self._retired.append(pending)

    def _let_go_of_retired(self) -> None:
        """Let go of the cells of metrics that nobody has, but for those that wait to be sent."""
        if not self._retired:
            return
        busy = {entry.pending for entry in (*self._taken, *self._queue.copy())}
        for _ in range(len(self._retired)):
            with suppress(IndexError):  # another thread was faster
                pending = self._retired.popleft()
                if pending in busy:
                    self._retired.append(pending)
                else:
                    pending.drop(list(pending.cells))

    def keep(self, entry: Entry | Note) -> None:
        """Have what can be lost of the entry in the journal of this process, if there is one."""
        if self._journals is not None:
            for kept in entry.kept():
                self._journals.keep(kept)

    def forget(self, kept: Kept) -> None:
        """Take these numbers out of the journal."""
        if self._journals is not None:
            self._journals.forget(kept)

    def declare(self, entry: Entry) -> None:
        """Let the storage show the entry, at the latest with the first update of this process.

        Before that nothing is made: this may be the master of a server, and its workers another user's.
        """
        FORKS.notice()
        if self.write_through or self._begun:
            self.tell(entry)
        elif self.storage is not None:
            self._queue.append(entry)

    def tell(self, entry: Entry) -> None:
        """Send the entry though it gathered nothing; before `setup` there is nothing to send to, and that is fine."""
        FORKS.notice()
        if self.storage is not None:
            self.mark(entry)
            if self.write_through:
                self.write()

    def mark(self, entry: Entry) -> None:
        """Queue the entry. Raises NotConfigured."""
        self.required()
        self._begun = True
        quiet = not self.write_through and FORKS.unforked()
        self.keep(entry)
        if isinstance(entry, Cell):  # no exception comes between its flags and its place in the queue: see `Cell`
            entry.queued = True
            entry.quiet = quiet
        self._queue.append(entry)
        if self._thread is None:
            self._begin()

    def write(self) -> None:
        """Send what is queued unless the storage was found down a moment ago; raise only what the application raises."""
        FORKS.notice()
        me = threading.get_ident()
        mine = self._sender != me and self._only_thread in (None, me)
        if mine and time.monotonic() >= self._retry_at and not self.is_overdue:
            self._in_turn(self._write)

    def _write(self) -> None:
        if time.monotonic() < self._retry_at:  # another thread found the storage down while this one waited
            return
        if not self._leaving:
            self._try_to_send()
        elif threading.current_thread() is not self._thread:  # that one has nothing to send that nobody else would
            self._leave_for_good()

    @property
    def down(self) -> bool:
        """Whether the storage could not be written the last time."""
        return self._down is not None

    @property
    def declares(self) -> bool:
        """Whether this process has a metric here."""
        return bool(self._all_metrics())

    @property
    def waiting(self) -> int:
        """How many series have updates that could not be written, or that the storage refuses."""
        waiting = {entry for entry in [*self._taken, *self._queue.copy()] if isinstance(entry, Cell)} if self.down else set()
        for pending in self._all_metrics():
            if pending.family.name in self._refused:
                waiting.update(list(pending.cells))
        return len(waiting)

    # What the application and scrapes call

    def attach(
        self,
        storage: Storage,
        interval: float,
        renew_seconds: float | None,
        *,
        thread: int | None = None,
        journals: Journals | None = None,
        limits: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Use this storage from now on; what was pending goes to the one before, if that can be reached.

        Metrics are renewed every `renew_seconds`. Where only one `thread` may use the storage, what others count waits for it.
        """
        FORKS.notice()
        if interval:
            FORKS.unforked()  # which imports a module the first time: an update in a finalizer could not, amid another import
        if not self._used:
            self._used = True
            self._start()  # with locks of now: gevent may have replaced them since this module was imported
        self._in_turn(self._attach, storage, interval, renew_seconds, thread, journals, limits)
        self._wake.put(None)

    def _attach(
        self,
        storage: Storage,
        interval: float,
        renew_seconds: float | None,
        thread: int | None,
        journals: Journals | None,
        limits: Mapping[str, float],
    ) -> None:
        self._leave(returning=True)
        self._close_journal(keep=False)
        if self.storage is None:
            self._discard()
        self._applied.clear()
        self._declared.clear()
        self._refused.clear()
        self._overflowed.clear()
        next_renewal = time.monotonic() + (renew_seconds or 0.0)
        self.storage, self._journals, self._only_thread = storage, journals, thread
        self._interval, self._renew_seconds, self._next_renewal = interval, renew_seconds, next_renewal
        self.write_through = interval == 0 or self._leaving
        self.limits = limits
        for pending in self._all_metrics():
            pending.limit()
        self._retry_at = self._next_beat = 0.0
        self._replay_due = self._restart_due = True
        self._restart()
        if self.write_through:
            if self._queue and self._thread is None:
                self._start_thread()
            self._try_to_send()
        elif self._begun:
            self._open_journal()

    def detach(self) -> None:
        """Send what is pending and use no storage any more."""
        FORKS.notice()
        self._in_turn(self._detach)
        self._wake.put(None)

    def _detach(self) -> None:
        self._leave_for_good()
        self.storage = self._journals = self._thread = self._in_flight = None
        self._queue.clear()
        self._taken.clear()
        self._begun = False
        self._reset_retries()
        self.health = Health(self)
        self._discard()

    def flush(self) -> None:
        """Send all that is pending. Raises StorageError, also for metrics that the storage refuses."""
        FORKS.notice()
        self._retry_at = self._scrape_at = self._refused_at = 0.0
        self.settle()
        self.expect_none_refused()

    def expect_none_refused(self, names: Collection[str] | None = None) -> None:
        """Raise StorageError where the storage refuses one of these metrics, or any: what it shows is not all."""
        if refusals := self._refusals(names):
            raise StorageError(refusals)

    def _refusals(self, names: Collection[str] | None = None) -> str:
        """Why the storage refuses metrics of these names, or any."""
        refused = [(name, why) for name, why in list(self._refused.items()) if names is None or name in names]
        return "; ".join(f"metric {name!r} is refused: {why}" for name, why in refused)

    def settle(self, names: Collection[str] | None = None) -> None:
        """Send all that is pending, but for what the storage refuses; call functions of metrics with these names only, or all.

        Raises StorageError; at once where the storage was found down within `SCRAPE_RETRY_SECONDS`, so that scrapes do not
        queue up.
        """
        FORKS.notice()
        self._rouse(names, beat=False)
        self._in_turn(self._send_unless_down)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Send what is pending, then read those metrics or all. Raises NotConfigured and StorageError."""
        FORKS.notice()
        self.required()
        self._rouse(names, beat=False)
        return self._in_turn(self._send_and_read, names)

    def _send_and_read(self, names: Collection[str] | None) -> Snapshot:
        self._send_unless_down()
        self.expect_none_refused(names)
        snapshot = self._read(names)
        if self._lost(snapshot, names):
            self._restart()
            self._send()
            snapshot = self._read(names)
        return snapshot

    def clear(self) -> None:
        """Delete all metrics from the storage; what this process has declared starts again. Raises StorageError."""
        FORKS.notice()
        self._in_turn(self._clear)

    def _clear(self) -> None:
        self._send_unless_down()
        self._ask(self.required().delete)
        self._start_again()

    def start_again(self) -> None:
        """Start as in a storage that has just been emptied. Raises StorageError."""
        self._in_turn(self._start_again)

    def _start_again(self) -> None:
        self._applied.clear()
        self._discard()
        for pending in self._all_metrics():
            self._queue.append(pending)
            self._queue.extend(() if pending.family.labelnames else list(pending.cells))
        self._send()

    def required(self) -> Storage:
        """The storage. Raises NotConfigured where there is none."""
        if self.storage is None:
            raise NotConfigured(
                "nothing says where metrics are kept: call pdc.setup(sqlite='metrics.db') or "
                "pdc.setup(redis='redis://localhost') before metrics are updated or read"
            )
        return self.storage

    def leave(self) -> None:
        """Send what is pending, then take this process's marks and live values out of the storage."""
        FORKS.notice()
        self._in_turn(self._leave)

    def begin_to_leave(self) -> None:
        """Let the background thread leave for good: none may start any more, and whatever still changes is sent at once."""
        FORKS.notice()
        self._leaving = self.write_through = True
        self._wake.put(None)

    def at_exit(self, until: float | None = None) -> None:
        """Leave for good before that time of `time.monotonic`; the journal keeps what was not sent by then.

        The background thread leaves, where there is one: whoever ends the process can stop waiting for it. The master of a
        server has nothing to say: its workers have declared what it did. As root it would make files that they may not write.
        """
        until = time.monotonic() + self.exit_timeout if until is None else until
        self.begin_to_leave()
        if self._begun or not is_root() or not (FORKS.forked or servers.is_master()):
            if not self.is_overdue and not self._leaves_before(until):
                self._leave_behind()
            self._emit()

    def _leaves_before(self, until: float) -> bool:
        """Wait until the background thread has left, or leave here where there is none; return whether it was in time."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(until - time.monotonic(), 0.0) / 2)
            if self._sender is not None:  # or a function of the application holds it up
                thread.join(max(until - time.monotonic(), 0.0))
        if self._has_left:
            return True
        try:
            is_in_time = self._sending.acquire(timeout=max(until - time.monotonic(), 0.0))
            if is_in_time:
                self._in_turn(self._leave_for_good)
            return is_in_time
        finally:
            release_own(self._sending)

    def _leave_behind(self) -> None:
        """Leave what is not sent to the journal, as a process does that is killed, and say what becomes of it."""
        self.is_overdue = True
        in_flight = self._in_flight
        if self._taken or self._queue or (in_flight is not None and not in_flight.leaving):
            self._open_journal()
            path = None if self._journals is None else self._journals.path
            self._say_what_waits(path, self._down or "the storage did not answer before the process ended")

    def _say_what_waits(self, path: Path | None, reason: object) -> None:
        """Say what becomes of what was not sent."""
        if path is None:
            log.defer(logging.ERROR, f"metrics that could not be sent are lost: {reason}")
        else:
            log.defer(logging.WARNING, f"metrics that could not be sent wait in {path} for the next process: {reason}")

    def before_fork(self) -> None:
        """Let no other thread send while the process forks, unless one waits for its storage."""
        self._sending.acquire(timeout=FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let other threads send again."""
        release_own(self._sending)

    def after_fork_in_child(self) -> None:
        """Begin as a new process: nothing pending, another writer, no thread; it declares what its parent has not."""
        begun = self._begun
        self._start()
        if self._journals is not None:
            self._journals.after_fork_in_child()
        for pending in self._all_metrics():
            pending.after_fork()
        self._retired.clear()  # what they had pending is the parent's, in its journal
        self._restart_due = not begun and self.storage is not None

    # The background thread

    def _begin(self) -> None:
        """Have a journal, unless another thread is sending and makes one, and the thread."""
        if not self.write_through and self._sender is None:
            try:
                if self._sending.acquire(blocking=False):
                    self._open_journal()
            finally:
                release_own(self._sending)
        self._start_thread()

    def _start_thread(self) -> None:
        """Start the thread; where none can be started, the next update tries again, and of two the first goes."""
        if self._only_thread is not None or self._leaving or not servers.threads_run():
            return
        thread = threading.Thread(target=self._run, name="pdc-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.defer(
                logging.DEBUG, "no thread can be started to send metrics, they wait for the end of the process: %s", error
            )
            return
        self._thread = thread
        _end_with_a_multiprocessing_child()

    def catch_up(self) -> None:
        """Do what the thread would do next, in a process where threads do not run."""
        FORKS.notice()
        if self._begun:
            self._beat(time.monotonic())
            self.write()

    def _run(self) -> None:
        """Send now and then, whatever the functions, filters and clients raise that this calls; at last, leave."""
        self._wake = queue.SimpleQueue()  # of now: gevent may have replaced it since the process began
        self._thread = threading.current_thread()
        self._last_flush = time.monotonic()
        has_failed = False
        while self._thread is threading.current_thread() and not self._has_left:
            try:
                self._take_turn()
                has_failed = False
            except BaseException as error:
                if ends_greenlet(error):
                    self._thread = None  # the next update or scrape starts another one
                    return
                if not has_failed:
                    log.defer(logging.ERROR, "the thread that sends metrics goes on after an error", error=error)
                    has_failed = True
                    log.emit_in_thread()
                time.sleep(PAUSE_SECONDS)

    def _take_turn(self) -> None:
        """Do what the thread has to do next."""
        if not self._leaving:
            with suppress(queue.Empty):
                self._wake.get(timeout=min(self._interval or BEAT_SECONDS, self._renew_seconds or BEAT_SECONDS, BEAT_SECONDS))
        if self._leaving:
            self._in_turn(self._leave_for_good)
            self._has_left = True
        elif self.storage is not None:
            now = time.monotonic()
            if self._beat(now) or self.down or now >= self._last_flush + self._interval:
                self._last_flush = now
                self.write()
            log.emit_in_thread()

    def _beat(self, now: float) -> bool:
        """Queue what must be told again though nothing changed: values with a lease, functions, and expiry.

        Return whether there is anything.
        """
        told = False
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            self._replay_due = self._journals is not None
            told = self._rouse(beat=True)
            swept = [pending for pending in self._all_metrics() if pending.is_to_be_swept(now)]
            self._queue.extend(swept)
            told = told or bool(swept)
        if self._renew_seconds is not None and now >= self._next_renewal:
            self._next_renewal = now + self._renew_seconds
            self._queue.extend(self._all_metrics())
            told = True
        return told

    def _rouse(self, names: Collection[str] | None = None, *, beat: bool) -> bool:
        """Queue the cells of those metrics that no update queues, and return whether there are any.

        Calls functions of the application. What the next batch has tells of the batches until then, too.
        """
        self._health_due = True
        self._let_go_of_retired()
        restless: list[Entry] = [*in_one_scrape(self._restless, names, beat), *self._to_be_asked_for()]
        self._queue.extend(restless)
        return bool(restless)

    def _to_be_asked_for(self) -> list[Pending]:
        """The metrics that the storage refused, now and then: to renew one shows whether it still does."""
        for name in [name for name in list(self._refused) if not self._living(name)]:
            self._refused.pop(name, None)
        if not self._refused or time.monotonic() < self._refused_at:
            return []
        self._refused_at = time.monotonic() + LAST_RETRY_SECONDS
        return [pending for name in list(self._refused) for pending in self._living(name)[-1:]]

    def _restless(self, names: Collection[str] | None, beat: bool) -> list[Cell]:
        return [cell for pending in self._all_metrics(names) for cell in pending.restless(beat=beat)]

    # Sending. The caller holds the lock `_sending`, and no other. While it does, nothing may run that could wait for a
    # thread which updates a metric: no function of the application, and no handler of the log.

    def _in_turn(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work with the lock held, then log what there was to say."""
        try:
            return locked(self._sending, work, *args, **kwargs)
        finally:
            self._emit()

    def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the storage. Raises StorageError where it fails, and what the application raised to break the call off."""
        handled = sys.exc_info()[1]
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if (raised := interruption(error, handled)) is not None:
                raise raised  # noqa: B904 - the driver may have turned it into another one
            if isinstance(error, StorageError):
                raise
            log.defer(logging.ERROR, "the storage raised an error that nobody foresaw", error=error)
            raise StorageError(f"the storage failed: {type(error).__name__}: {error}") from error

    def _emit(self) -> None:
        """Log what there was to say, unless this is amid another turn, which a handler has interrupted."""
        if threading.current_thread() is self._thread:
            if not self._leaving:  # whoever waits for this thread does it then
                log.emit_in_thread()
        elif not is_own(self._sending):
            log.emit()

    def _try_to_send(self) -> None:
        """Send, unless another thread has detached the storage a moment ago, and keep what cannot be sent."""
        with suppress(StorageError, NotConfigured):
            self._send()

    def _send_unless_down(self) -> None:
        if self._down is not None and time.monotonic() < self._scrape_at:
            raise StorageError(str(self._down)) from self._down
        self._send()
        if self._begun and self._thread is None:
            self._start_thread()

    def _send(self) -> None:
        """Send the batch in flight, if there is one, then what is queued by now; keep one that fails.

        Raises NotConfigured and StorageError. What threads queue meanwhile waits for the next time, or they could hold this
        one here for ever. Written through, one more turn is for what interrupted this thread, which has nobody else to send
        it; what interrupts that one waits for the next update, or for the background thread.
        """
        self._sending_with(self._send_all)

    def _sending_with(self, send: Callable[[], None]) -> None:
        """Send, as the thread that does so; nothing where this one does so already, which a handler has interrupted."""
        if self._sender is not None:
            return
        self.required()
        self._expect_thread()
        self._sender = threading.get_ident()
        try:
            send()
            self._recovered()
        except StorageError as error:
            self._failed(error)
            raise
        finally:
            self._sender = None

    def _expect_thread(self) -> None:
        """Raise StorageError in a thread that may not use the storage; that is no outage."""
        if self._only_thread not in (None, threading.get_ident()):
            raise StorageError(
                f"cannot use {self.storage}: only the thread that made it may, and what others count waits for that one. "
                "Open it with check_same_thread=False, or give setup() a path"
            )

    def _send_all(self) -> None:
        self._mind_journal()
        self._begun = self._begun or bool(self._queue)
        if not self.write_through:
            self._open_journal()
        self._replay()
        self._send_due()
        if self.write_through:
            self._send_due()

    def _send_due(self) -> None:
        if self._restart_due:
            self._restart()
        self._due = len(self._queue)
        while self._taken or self._in_flight is not None or (self._due > 0 and self._queue):
            batch = self._next_batch()
            if batch is not None:
                self._send_batch(batch)
            if self._restart_due:
                self._restart()
                self._due = len(self._queue)

    def _send_batch(self, batch: Batch) -> None:
        if self._journals is not None:
            self._journals.begin(batch.sequence)
        self._book(batch, self._ask(self.required().apply, batch))

    def _replay(self) -> None:
        """Send what dead processes of this host left, now and then."""
        if self._journals is not None and self._replay_due:
            self._ask(self._journals.replay, self.required())
        self._replay_due = False

    def _next_batch(self) -> Batch | None:
        """The batch in flight, or a new one; None where the entries that were due have nothing to send."""
        if self._in_flight is None:
            updates = self._take()
            if updates:
                self._in_flight = self._batch(updates)
                self._first_try = time.monotonic()
            else:
                self._taken.clear()
        elif self.down:
            self.health.count(BATCHES_RETRIED)
        return self._in_flight

    def _batch(self, updates: list[Update], *, leaving: bool = False) -> Batch:
        self._sequence += 1
        return Batch(self.writer, self._sequence, updates, leaving)

    def _take(self) -> list[Update]:
        """What has been queued first, each entry once: in a batch, what is set counts before what is added.

        Entries that were taken already are taken once more: an exception kept them from making a batch. What they gathered
        meanwhile may be for the next one.
        """
        again = bool(self._taken)
        if not again:
            self._dequeue()
        updates: dict[str, Update] = {}
        for entry in list(self._taken):
            family = entry.pending.family
            if family.name in self._refused and entry is not entry.pending:
                del self._taken[entry]  # all of them are queued again one day
                continue
            operations = entry.take()
            if not operations and entry is not entry.pending:
                continue
            update = updates.get(family.name)
            if update is None:
                last = self.last_declared(family.name) or entry.pending
                is_new = self._declared.get(family.name) != last.meta
                limits = self._limits[family.name] = last.family.limits
                update = updates[family.name] = Update(family.name, last.meta, [], is_new, limits)
            update.operations.extend(operations)
        if again:
            self._queue.extend(self._taken)
        return list(updates.values())

    def _dequeue(self) -> None:
        """Move what has been queued first from the queue to the taken entries; none is ever in neither."""
        size = 0
        while self._queue and len(self._taken) < MOST_ENTRIES and size < MOST_NUMBERS:
            entry = self._queue[0]
            self._taken[entry] = None
            self._queue.popleft()
            self._due -= 1
            size += 1 + len(entry.pending.family.bounds)
        if self._taken and self._interval and self._health_due:
            self._taken[self.health.flushes] = None
            self._health_due = False

    def _book(self, batch: Batch, outcome: Outcome) -> None:
        """Note what became of the batch. Called again with the outcome of a duplicate, it notes the same."""
        if self._journals is not None and outcome.storage:
            self._journals.belongs_to(outcome.storage)
        if not batch.leaving:
            if not self._applied.isdisjoint(outcome.unknown):  # the storage had forgotten what it held before
                self._restart_due = True
            self._applied.update(update.name for update in batch.updates if update.name not in outcome.refused)
            self._applied.difference_update(outcome.refused)
        self._declared.update((update.name, update.meta) for update in batch.updates if update.declare)
        self._book_refusals(batch, outcome)
        if outcome.note:
            log.defer(logging.WARNING, "%s", outcome.note)
        self._tell_of_replaced(batch, outcome)
        for name, count in outcome.overflowed.items():
            self.overflowed(name, count)
        if self._interval and not batch.leaving:
            self.health.flushes.observe(time.monotonic() - self._first_try)
        self._landed()

    def _book_refusals(self, batch: Batch, outcome: Outcome) -> None:
        """Note which metrics the storage refuses; say so, and when it does no more: what they gathered is sent then."""
        for name, reason in outcome.refused.items():
            if name not in self._refused:
                log.defer(logging.ERROR, f"metric {name} is refused, what it counts waits in memory: {reason}")
                self._refused_at = time.monotonic() + LAST_RETRY_SECONDS
            self._refused[name] = reason
        for update in batch.updates if self._refused else ():
            if update.name in self._refused and update.name not in outcome.refused:
                self._regained.add(update.name)
                for pending in self._all_metrics([update.name]):
                    self._queue.extend(pending.all_again())
                self._due = len(self._queue)
                del self._refused[update.name]
                log.defer(logging.WARNING, f"metric {update.name} is not refused any more; what it counted is sent")

    def _tell_of_replaced(self, batch: Batch, outcome: Outcome) -> None:
        """Say once per process and metric that it was declared otherwise before, as by another version of the program."""
        for update in batch.updates:
            if update.name in outcome.replaced and update.name not in self._replaced:
                self._replaced.add(update.name)
                changes = Family.from_meta(update.meta).changed_since(outcome.replaced[update.name])
                log.defer(logging.WARNING, f"metric {update.name} was declared otherwise before; its counts go on: {changes}")

    def overflowed(self, name: str, count: int = 1) -> None:
        """Count series that were over the limit of their metric, and say so once per process and metric."""
        if self.storage is not None:
            self.health.count(SERIES_REFUSED, count)
        if name not in self._overflowed:
            self._overflowed.add(name)
            reason = "has as many series as it may have (max_series, PDC_MAX_SERIES)"
            log.defer(logging.WARNING, f"metric {name} {reason}: new ones count as {OVERFLOW!r}")

    def _landed(self) -> None:
        """Note that nothing is in flight any more."""
        for entry in list(self._taken):
            if not isinstance(entry, Cell) or entry.pending.family.name not in self._refused:  # or it is handed over once more
                entry.settle()
        # What was taken while a thread updated it may have missed that, and the thread that it was taken; and of a metric that
        # was refused, cells hand over once more what was, before what they gathered since.
        if FREE_THREADED or self._regained:
            self._queue.extend(entry for entry in self._taken if isinstance(entry, Cell) and entry.was_missed)
        self._taken.clear()
        self._in_flight = None
        if self._journals is not None:
            self._journals.end()

    def _read(self, names: Collection[str] | None) -> Snapshot:
        sender, self._sender = self._sender, threading.get_ident()
        try:
            return self._ask(self.required().read, names)
        finally:
            self._sender = sender

    def _lost(self, snapshot: Snapshot, names: Collection[str] | None) -> bool:
        """Whether the storage lost a metric that this process has sent, and was asked for."""
        expected = self._applied if names is None else self._applied.intersection(names)
        return any(self._living(name) for name in expected.difference(snapshot.metrics))

    def _leave(self, *, returning: bool = False) -> None:
        """Send what is pending, then leave; what counts after this process stays its own where it may be `returning`."""
        if self.storage is None:
            return
        self._retry_at = 0.0
        self._health_due = True
        self._queue_unsent()
        if self._queue or self._taken or self._in_flight is not None or self._restart_due:
            self._try_to_send()
        lasting = [pending for pending in self._all_metrics() if pending.family.lasting]
        names = self._applied.difference(pending.family.name for pending in lasting) if returning else self._applied
        if self._in_flight is None and not self._taken and names and self._take_leave(sorted(names)) and not returning:
            for pending in lasting:  # the storage has folded their values, which must not be told again
                pending.discard()

    def _take_leave(self, names: list[str]) -> bool:
        """Send the leaving batch, which nothing may follow: the rest goes to another storage, or is that of another writer.

        Return whether the storage has it.
        """
        updates = [Update(name, "", [], limits=self._limits.get(name, Limits())) for name in names]  # it declares nothing
        batch = self._in_flight = self._batch(updates, leaving=True)
        with suppress(StorageError, NotConfigured):
            self._sending_with(partial(self._send_batch, batch))
        has_left = self._in_flight is None
        self._landed()
        self._applied.clear()
        for pending in self._all_metrics():  # the storage has dropped live values
            pending.all_again()
        return has_left

    def _queue_unsent(self) -> None:
        """Queue the cells that gathered something and are not queued: an exception may have come in between."""
        for pending in self._all_metrics():
            self._queue.extend([cell for cell in list(pending.cells) if cell.has_unsent])

    def _leave_for_good(self) -> None:
        """Leave; what is updated afterwards, as by handlers of atexit, is that of another writer, which leaves at once."""
        self._leave()
        waits = self._down is not None or self._only_thread not in (None, threading.get_ident())
        unsent = waits and bool(self._queue or self._taken or self._in_flight is not None)
        path = self._close_journal(keep=unsent)
        if path is not None:
            self._take_for_sent()
        else:
            self.writer, self._sequence = _new_writer(), 0
        if unsent:
            self._say_what_waits(path, self._down or "this thread may not use the storage")
        elif self._refused:
            self._say_what_waits(None, self._refusals())
            self._refused.clear()

    def _open_journal(self) -> None:
        """Begin the journal of this process, unless it has nothing to count."""
        if self._journals is not None and not self._journals.is_open and self._all_metrics():
            self._journals.open(self.writer, self._sequence, self._in_flight is not None)
            for kept in self._kept():
                self._journals.keep(kept)

    def _mind_journal(self) -> None:
        """Leave a journal that was deleted, that cannot be used any more, or that was taken for a dead process's."""
        if self._journals is not None and not self._journals.is_sound():
            self._overtaken |= self._journals.is_replayed
            self._close_journal(keep=self._overtaken)
        if self._overtaken:
            self._take_for_sent()
        if self.down:
            self._open_journal()

    def _take_for_sent(self) -> None:
        """Go on as another writer, without what was pending: that is sent by whoever found it."""
        cells = [cell for pending in self._all_metrics() for cell in list(pending.cells)]
        entries = dict.fromkeys([*self._taken, *self._queue.copy(), *cells])
        for entry in entries:
            entry.take()
            entry.settle()
        self._queue.clear()
        self._taken.clear()
        self._in_flight = None
        self.writer, self._sequence = _new_writer(), 0
        self._applied.clear()
        self._overtaken = False
        self._restart_due = True

    def _close_journal(self, *, keep: bool) -> Path | None:
        """End the journal of this process; what it had goes on in memory. Return its path where it is kept."""
        if self._journals is None:
            return None
        path = self._journals.close(keep=keep)
        for kept in self._kept():
            if kept.at:
                kept.move(numbers(kept.size), 0)
        return path

    def _kept(self) -> list[Kept]:
        """All that belongs in a journal; removals first, since they are older than the series that there are."""
        waiting = (*self._taken, *self._queue.copy())
        entries: list[Entry] = [entry for entry in waiting if isinstance(entry, Removal) or entry.pending.retired]
        for pending in self._all_metrics():
            entries.extend(list(pending.cells))
        return [kept for entry in entries for kept in entry.kept()]

    def _restart(self) -> None:
        """Queue every series, as for an empty storage."""
        self._restart_due = True
        for pending in self._all_metrics():
            self._queue.append(pending)
            self._queue.extend(pending.all_again())
        self._restart_due = False

    def _all_metrics(self, names: Collection[str] | None = None) -> list[Pending]:
        """The metrics that live, or those of them with these names."""
        return [pending for name in (list(self._metrics) if names is None else names) for pending in self._living(name)]

    def _living(self, name: str) -> list[Pending]:
        known = (reference() for reference in tuple(self._metrics.get(name, ())))
        return [pending for pending in known if pending is not None and not pending.retired]

    def _discard(self) -> None:
        """Drop what all metrics have gathered."""
        for pending in self._all_metrics():
            pending.discard()

    def _failed(self, error: Exception) -> None:
        if self.write_through:  # nothing was pending till now
            self._open_journal()
        if self._journals is not None:
            self._journals.failed()
        if self._down is None:
            log.defer(logging.WARNING, f"metrics cannot be sent and are kept in memory until they can: {error}")
        self._down = error
        now = time.monotonic()
        self._retry_at = now + self._retry_seconds * random.uniform(0.5, 1.0)
        self._scrape_at = min(self._retry_at, now + SCRAPE_RETRY_SECONDS)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)

    def _recovered(self) -> None:
        if self._down is not None:
            log.defer(logging.WARNING, "metrics can be sent again; those kept in memory were")
        self._reset_retries()

    def _reset_retries(self) -> None:
        self._down = None
        self._retry_seconds, self._retry_at = FIRST_RETRY_SECONDS, 0.0


def _new_writer() -> str:
    return f"{os.getpid()}-{os.urandom(8).hex()}"


ENDS: list[Callable[[], None]] = []
"""What to call when the process ends."""


def _end_with_a_multiprocessing_child() -> None:
    """Children of multiprocessing end without running atexit handlers, only these."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        for end in ENDS:
            util.Finalize(None, end, exitpriority=0)
