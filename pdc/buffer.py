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
from .cells import FREE_THREADED, Cell, Entry, Journaled, JournaledOperation, MetricCells, Removal, in_one_scrape, zeros
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
        self._metrics: dict[str, list[weakref.ref[MetricCells]]] = {}
        """By their names, those of one name in the order of their declarations."""
        self.health = Health(self)
        self._journals: Journals | None = None
        self._is_exiting = False
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
        self._drained: dict[Entry, None] = {}
        """The entries of the batch in flight, or of the one that is being made."""
        self._first_try = 0.0
        self._replay_due = True
        self._retired: deque[MetricCells] = deque()
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
        self._is_finished = False
        """Whether the background thread has left for good, as the process ends."""
        self.is_overdue = False
        """Whether the process ends without waiting for the storage any longer."""

    # What metrics call

    def register(self, metric: MetricCells) -> None:
        """Know the metric from now on."""
        same = self._metrics.setdefault(metric.family.name, [])
        same.append(weakref.ref(metric, same.remove))

    def last_declared(self, name: str) -> MetricCells | None:
        """The metric of that name that was declared last, of those that live."""
        same = self._living(name)
        return same[-1] if same else None

    def retire(self, metric: MetricCells) -> None:
        """Declare the metric no more, as nobody has it; a finalizer calls this, wherever that runs."""
        metric.retired = True
        self._retired.append(metric)

    def _drop_retired(self) -> None:
        """Let go of the cells of metrics that nobody has, but for those that wait to be sent."""
        if not self._retired:
            return
        busy = {entry.metric for entry in (*self._drained, *self._queue.copy())}
        for _ in range(len(self._retired)):
            with suppress(IndexError):  # another thread was faster
                metric = self._retired.popleft()
                if metric in busy:
                    self._retired.append(metric)
                else:
                    metric.drop(list(metric.cells))

    def journal(self, entry: Entry | JournaledOperation) -> None:
        """Have what can be lost of the entry in the journal of this process, if there is one."""
        if self._journals is not None:
            for journaled in entry.journaled():
                self._journals.adopt(journaled)

    def unjournal(self, journaled: Journaled) -> None:
        """Take these numbers out of the journal."""
        if self._journals is not None:
            self._journals.release(journaled)

    def declare(self, entry: Entry) -> None:
        """Let the storage show the entry, at the latest with the first update of this process.

        Before that nothing is made: this may be the master of a server, and its workers another user's.
        """
        FORKS.notice()
        if self.write_through or self._begun:
            self.send(entry)
        elif self.storage is not None:
            self._queue.append(entry)

    def send(self, entry: Entry) -> None:
        """Send the entry though it gathered nothing; before `setup` there is nothing to send to, and that is fine."""
        FORKS.notice()
        if self.storage is not None:
            self.enqueue(entry)
            if self.write_through:
                self.send_queued()

    def enqueue(self, entry: Entry) -> None:
        """Queue the entry. Raises NotConfigured."""
        self.required()
        self._begun = True
        quiet = not self.write_through and FORKS.unforked()
        self.journal(entry)
        if isinstance(entry, Cell):  # no exception comes between its flags and its place in the queue: see `Cell`
            entry.queued = True
            entry.quiet = quiet
        self._queue.append(entry)
        if self._thread is None:
            self._begin_sending()

    def send_queued(self) -> None:
        """Send what is queued unless the storage was found down a moment ago; raise only what the application raises."""
        FORKS.notice()
        me = threading.get_ident()
        mine = self._sender != me and self._only_thread in (None, me)
        if mine and time.monotonic() >= self._retry_at and not self.is_overdue:
            self._with_lock(self._send_queued)

    def _send_queued(self) -> None:
        if time.monotonic() < self._retry_at:  # another thread found the storage down while this one waited
            return
        if not self._is_exiting:
            self._try_to_send()
        elif threading.current_thread() is not self._thread:  # that one has nothing to send that nobody else would
            self._finish()

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
        waiting = {entry for entry in [*self._drained, *self._queue.copy()] if isinstance(entry, Cell)} if self.down else set()
        for metric in self._all_metrics():
            if metric.family.name in self._refused:
                waiting.update(list(metric.cells))
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
        self._with_lock(self._attach, storage, interval, renew_seconds, thread, journals, limits)
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
        self._deregister(returning=True)
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
        self.write_through = interval == 0 or self._is_exiting
        self.limits = limits
        for metric in self._all_metrics():
            metric.apply_limits()
        self._retry_at = self._next_beat = 0.0
        self._replay_due = self._restart_due = True
        self._queue_everything()
        if self.write_through:
            if self._queue and self._thread is None:
                self._start_thread()
            self._try_to_send()
        elif self._begun:
            self._open_journal()

    def detach(self) -> None:
        """Send what is pending and use no storage any more."""
        FORKS.notice()
        self._with_lock(self._detach)
        self._wake.put(None)

    def _detach(self) -> None:
        self._finish()
        self.storage = self._journals = self._thread = self._in_flight = None
        self._queue.clear()
        self._drained.clear()
        self._begun = False
        self._reset_retries()
        self.health = Health(self)
        self._discard()

    def flush(self) -> None:
        """Send all that is pending. Raises StorageError, also for metrics that the storage refuses."""
        FORKS.notice()
        self._retry_at = self._scrape_at = self._refused_at = 0.0
        self.send_pending()
        self.raise_if_refused()

    def raise_if_refused(self, names: Collection[str] | None = None) -> None:
        """Raise StorageError where the storage refuses one of these metrics, or any: what it shows is not all."""
        if refusals := self._refusals(names):
            raise StorageError(refusals)

    def _refusals(self, names: Collection[str] | None = None) -> str:
        """Why the storage refuses metrics of these names, or any."""
        refused = [(name, why) for name, why in list(self._refused.items()) if names is None or name in names]
        return "; ".join(f"metric {name!r} is refused: {why}" for name, why in refused)

    def send_pending(self, names: Collection[str] | None = None) -> None:
        """Send all that is pending, but for what the storage refuses; call functions of metrics with these names only, or all.

        Raises StorageError; at once where the storage was found down within `SCRAPE_RETRY_SECONDS`, so that scrapes do not
        queue up.
        """
        FORKS.notice()
        self._queue_unprompted(names, beat=False)
        self._with_lock(self._send_unless_down)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Send what is pending, then read those metrics or all. Raises NotConfigured and StorageError."""
        FORKS.notice()
        self.required()
        self._queue_unprompted(names, beat=False)
        return self._with_lock(self._send_and_read, names)

    def _send_and_read(self, names: Collection[str] | None) -> Snapshot:
        self._send_unless_down()
        self.raise_if_refused(names)
        snapshot = self._read(names)
        if self._lost(snapshot, names):
            self._queue_everything()
            self._send()
            snapshot = self._read(names)
        return snapshot

    def clear(self) -> None:
        """Delete all metrics from the storage; what this process has declared starts again. Raises StorageError."""
        FORKS.notice()
        self._with_lock(self._clear)

    def _clear(self) -> None:
        self._send_unless_down()
        self._call_storage(self.required().delete)
        self._start_again()

    def start_again(self) -> None:
        """Start as in a storage that has just been emptied. Raises StorageError."""
        self._with_lock(self._start_again)

    def _start_again(self) -> None:
        self._applied.clear()
        self._discard()
        for metric in self._all_metrics():
            self._queue.append(metric)
            self._queue.extend(() if metric.family.labelnames else list(metric.cells))
        self._send()

    def required(self) -> Storage:
        """The storage. Raises NotConfigured where there is none."""
        if self.storage is None:
            raise NotConfigured(
                "nothing says where metrics are kept: call pdc.setup(sqlite='metrics.db') or "
                "pdc.setup(redis='redis://localhost') before metrics are updated or read"
            )
        return self.storage

    def deregister(self) -> None:
        """Send what is pending, then take this process's marks and live values out of the storage."""
        FORKS.notice()
        self._with_lock(self._deregister)

    def begin_exit(self) -> None:
        """Let the background thread leave for good: none may start any more, and whatever still changes is sent at once."""
        FORKS.notice()
        self._is_exiting = self.write_through = True
        self._wake.put(None)

    def at_exit(self, until: float | None = None) -> None:
        """Leave for good before that time of `time.monotonic`; the journal keeps what was not sent by then.

        The background thread leaves, where there is one: whoever ends the process can stop waiting for it. The master of a
        server has nothing to say: its workers have declared what it did. As root it would make files that they may not write.
        """
        until = time.monotonic() + self.exit_timeout if until is None else until
        self.begin_exit()
        if self._begun or not is_root() or not (FORKS.forked or servers.is_master()):
            if not self.is_overdue and not self._finishes_before(until):
                self._leave_to_journal()
            self._emit_logs()

    def _finishes_before(self, until: float) -> bool:
        """Wait until the background thread has left, or leave here where there is none; return whether it was in time."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(until - time.monotonic(), 0.0) / 2)
            if self._sender is not None:  # or a function of the application holds it up
                thread.join(max(until - time.monotonic(), 0.0))
        if self._is_finished:
            return True
        try:
            is_in_time = self._sending.acquire(timeout=max(until - time.monotonic(), 0.0))
            if is_in_time:
                self._with_lock(self._finish)
            return is_in_time
        finally:
            release_own(self._sending)

    def _leave_to_journal(self) -> None:
        """Leave what is not sent to the journal, as a process does that is killed, and say what becomes of it."""
        self.is_overdue = True
        in_flight = self._in_flight
        if self._drained or self._queue or (in_flight is not None and not in_flight.leaving):
            self._open_journal()
            path = None if self._journals is None else self._journals.path
            self._log_unsent(path, self._down or "the storage did not answer before the process ended")

    def _log_unsent(self, path: Path | None, reason: object) -> None:
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
        for metric in self._all_metrics():
            metric.after_fork()
        self._retired.clear()  # what they had pending is the parent's, in its journal
        self._restart_due = not begun and self.storage is not None

    # The background thread

    def _begin_sending(self) -> None:
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
        if self._only_thread is not None or self._is_exiting or not servers.threads_run():
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
            self.send_queued()

    def _run(self) -> None:
        """Send now and then, whatever the functions, filters and clients raise that this calls; at last, leave."""
        self._wake = queue.SimpleQueue()  # of now: gevent may have replaced it since the process began
        self._thread = threading.current_thread()
        self._last_flush = time.monotonic()
        has_failed = False
        while self._thread is threading.current_thread() and not self._is_finished:
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
        if not self._is_exiting:
            with suppress(queue.Empty):
                self._wake.get(timeout=min(self._interval or BEAT_SECONDS, self._renew_seconds or BEAT_SECONDS, BEAT_SECONDS))
        if self._is_exiting:
            self._with_lock(self._finish)
            self._is_finished = True
        elif self.storage is not None:
            now = time.monotonic()
            if self._beat(now) or self.down or now >= self._last_flush + self._interval:
                self._last_flush = now
                self.send_queued()
            log.emit_in_thread()

    def _beat(self, now: float) -> bool:
        """Queue what must be told again though nothing changed: values with a lease, functions, and expiry.

        Return whether there is anything.
        """
        told = False
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            self._replay_due = self._journals is not None
            told = self._queue_unprompted(beat=True)
            swept = [metric for metric in self._all_metrics() if metric.is_to_be_swept(now)]
            self._queue.extend(swept)
            told = told or bool(swept)
        if self._renew_seconds is not None and now >= self._next_renewal:
            self._next_renewal = now + self._renew_seconds
            self._queue.extend(self._all_metrics())
            told = True
        return told

    def _queue_unprompted(self, names: Collection[str] | None = None, *, beat: bool) -> bool:
        """Queue the cells of those metrics that no update queues, and return whether there are any.

        Calls functions of the application. What the next batch has tells of the batches until then, too.
        """
        self._health_due = True
        self._drop_retired()
        unprompted: list[Entry] = [*in_one_scrape(self._unprompted, names, beat), *self._refused_to_retry()]
        self._queue.extend(unprompted)
        return bool(unprompted)

    def _refused_to_retry(self) -> list[MetricCells]:
        """The metrics that the storage refused, now and then: to renew one shows whether it still does."""
        for name in [name for name in list(self._refused) if not self._living(name)]:
            self._refused.pop(name, None)
        if not self._refused or time.monotonic() < self._refused_at:
            return []
        self._refused_at = time.monotonic() + LAST_RETRY_SECONDS
        return [metric for name in list(self._refused) for metric in self._living(name)[-1:]]

    def _unprompted(self, names: Collection[str] | None, beat: bool) -> list[Cell]:
        return [cell for metric in self._all_metrics(names) for cell in metric.unprompted(beat=beat)]

    # Sending. The caller holds the lock `_sending`, and no other. While it does, nothing may run that could wait for a
    # thread which updates a metric: no function of the application, and no handler of the log.

    def _with_lock(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work with the lock held, then log what there was to say."""
        try:
            return locked(self._sending, work, *args, **kwargs)
        finally:
            self._emit_logs()

    def _call_storage(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
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

    def _emit_logs(self) -> None:
        """Log what there was to say, unless this is amid another turn, which a handler has interrupted."""
        if threading.current_thread() is self._thread:
            if not self._is_exiting:  # whoever waits for this thread does it then
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
        self._check_journal()
        self._begun = self._begun or bool(self._queue)
        if not self.write_through:
            self._open_journal()
        self._replay()
        self._send_due()
        if self.write_through:
            self._send_due()

    def _send_due(self) -> None:
        if self._restart_due:
            self._queue_everything()
        self._due = len(self._queue)
        while self._drained or self._in_flight is not None or (self._due > 0 and self._queue):
            batch = self._next_batch()
            if batch is not None:
                self._send_batch(batch)
            if self._restart_due:
                self._queue_everything()
                self._due = len(self._queue)

    def _send_batch(self, batch: Batch) -> None:
        if self._journals is not None:
            self._journals.begin(batch.sequence)
        self._record_outcome(batch, self._call_storage(self.required().apply, batch))

    def _replay(self) -> None:
        """Send what dead processes of this host left, now and then."""
        if self._journals is not None and self._replay_due:
            self._call_storage(self._journals.replay, self.required())
        self._replay_due = False

    def _next_batch(self) -> Batch | None:
        """The batch in flight, or a new one; None where the entries that were due have nothing to send."""
        if self._in_flight is None:
            updates = self._drain()
            if updates:
                self._in_flight = self._batch(updates)
                self._first_try = time.monotonic()
            else:
                self._drained.clear()
        elif self.down:
            self.health.count(BATCHES_RETRIED)
        return self._in_flight

    def _batch(self, updates: list[Update], *, leaving: bool = False) -> Batch:
        self._sequence += 1
        return Batch(self.writer, self._sequence, updates, leaving)

    def _drain(self) -> list[Update]:
        """What has been queued first, each entry once: in a batch, what is set counts before what is added.

        Entries that were taken already are taken once more: an exception kept them from making a batch. What they gathered
        meanwhile may be for the next one.
        """
        again = bool(self._drained)
        if not again:
            self._dequeue()
        updates: dict[str, Update] = {}
        for entry in list(self._drained):
            family = entry.metric.family
            if family.name in self._refused and entry is not entry.metric:
                del self._drained[entry]  # all of them are queued again one day
                continue
            operations = entry.drain()
            if not operations and entry is not entry.metric:
                continue
            update = updates.get(family.name)
            if update is None:
                last = self.last_declared(family.name) or entry.metric
                is_new = self._declared.get(family.name) != last.meta
                limits = self._limits[family.name] = last.family.limits
                update = updates[family.name] = Update(family.name, last.meta, [], is_new, limits)
            update.operations.extend(operations)
        if again:
            self._queue.extend(self._drained)
        return list(updates.values())

    def _dequeue(self) -> None:
        """Move what has been queued first from the queue to the taken entries; none is ever in neither."""
        size = 0
        while self._queue and len(self._drained) < MOST_ENTRIES and size < MOST_NUMBERS:
            entry = self._queue[0]
            self._drained[entry] = None
            self._queue.popleft()
            self._due -= 1
            size += 1 + len(entry.metric.family.bounds)
        if self._drained and self._interval and self._health_due:
            self._drained[self.health.flushes] = None
            self._health_due = False

    def _record_outcome(self, batch: Batch, outcome: Outcome) -> None:
        """Note what became of the batch. Called again with the outcome of a duplicate, it notes the same."""
        if self._journals is not None and outcome.storage:
            self._journals.belongs_to(outcome.storage)
        if not batch.leaving:
            if not self._applied.isdisjoint(outcome.unknown):  # the storage had forgotten what it held before
                self._restart_due = True
            self._applied.update(update.name for update in batch.updates if update.name not in outcome.refused)
            self._applied.difference_update(outcome.refused)
        self._declared.update((update.name, update.meta) for update in batch.updates if update.declare)
        self._record_refusals(batch, outcome)
        if outcome.note:
            log.defer(logging.WARNING, "%s", outcome.note)
        self._log_replaced(batch, outcome)
        for name, count in outcome.overflowed.items():
            self.overflowed(name, count)
        if self._interval and not batch.leaving:
            self.health.flushes.observe(time.monotonic() - self._first_try)
        self._batch_done()

    def _record_refusals(self, batch: Batch, outcome: Outcome) -> None:
        """Note which metrics the storage refuses; say so, and when it does no more: what they gathered is sent then."""
        for name, reason in outcome.refused.items():
            if name not in self._refused:
                log.defer(logging.ERROR, f"metric {name} is refused, what it counts waits in memory: {reason}")
                self._refused_at = time.monotonic() + LAST_RETRY_SECONDS
            self._refused[name] = reason
        for update in batch.updates if self._refused else ():
            if update.name in self._refused and update.name not in outcome.refused:
                self._regained.add(update.name)
                for metric in self._all_metrics([update.name]):
                    self._queue.extend(metric.cells_to_resend())
                self._due = len(self._queue)
                del self._refused[update.name]
                log.defer(logging.WARNING, f"metric {update.name} is not refused any more; what it counted is sent")

    def _log_replaced(self, batch: Batch, outcome: Outcome) -> None:
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

    def _batch_done(self) -> None:
        """Note that nothing is in flight any more."""
        for entry in list(self._drained):
            if not isinstance(entry, Cell) or entry.metric.family.name not in self._refused:  # or it is handed over once more
                entry.acknowledge()
        # What was taken while a thread updated it may have missed that, and the thread that it was taken; and of a metric that
        # was refused, cells hand over once more what was, before what they gathered since.
        if FREE_THREADED or self._regained:
            self._queue.extend(entry for entry in self._drained if isinstance(entry, Cell) and entry.was_missed)
        self._drained.clear()
        self._in_flight = None
        if self._journals is not None:
            self._journals.end()

    def _read(self, names: Collection[str] | None) -> Snapshot:
        sender, self._sender = self._sender, threading.get_ident()
        try:
            return self._call_storage(self.required().read, names)
        finally:
            self._sender = sender

    def _lost(self, snapshot: Snapshot, names: Collection[str] | None) -> bool:
        """Whether the storage lost a metric that this process has sent, and was asked for."""
        expected = self._applied if names is None else self._applied.intersection(names)
        return any(self._living(name) for name in expected.difference(snapshot.metrics))

    def _deregister(self, *, returning: bool = False) -> None:
        """Send what is pending, then leave; what counts after this process stays its own where it may be `returning`."""
        if self.storage is None:
            return
        self._retry_at = 0.0
        self._health_due = True
        self._queue_unsent()
        if self._queue or self._drained or self._in_flight is not None or self._restart_due:
            self._try_to_send()
        lasting = [metric for metric in self._all_metrics() if metric.family.lasting]
        names = self._applied.difference(metric.family.name for metric in lasting) if returning else self._applied
        if self._in_flight is None and not self._drained and names and self._send_final_batch(sorted(names)) and not returning:
            for metric in lasting:  # the storage has folded their values, which must not be told again
                metric.discard()

    def _send_final_batch(self, names: list[str]) -> bool:
        """Send the leaving batch, which nothing may follow: the rest goes to another storage, or is that of another writer.

        Return whether the storage has it.
        """
        updates = [Update(name, "", [], limits=self._limits.get(name, Limits())) for name in names]  # it declares nothing
        batch = self._in_flight = self._batch(updates, leaving=True)
        with suppress(StorageError, NotConfigured):
            self._sending_with(partial(self._send_batch, batch))
        has_left = self._in_flight is None
        self._batch_done()
        self._applied.clear()
        for metric in self._all_metrics():  # the storage has dropped live values
            metric.cells_to_resend()
        return has_left

    def _queue_unsent(self) -> None:
        """Queue the cells that gathered something and are not queued: an exception may have come in between."""
        for metric in self._all_metrics():
            self._queue.extend([cell for cell in list(metric.cells) if cell.has_unsent])

    def _finish(self) -> None:
        """Leave; what is updated afterwards, as by handlers of atexit, is that of another writer, which leaves at once."""
        self._deregister()
        waits = self._down is not None or self._only_thread not in (None, threading.get_ident())
        unsent = waits and bool(self._queue or self._drained or self._in_flight is not None)
        path = self._close_journal(keep=unsent)
        if path is not None:
            self._treat_as_sent()
        else:
            self.writer, self._sequence = _new_writer(), 0
        if unsent:
            self._log_unsent(path, self._down or "this thread may not use the storage")
        elif self._refused:
            self._log_unsent(None, self._refusals())
            self._refused.clear()

    def _open_journal(self) -> None:
        """Begin the journal of this process, unless it has nothing to count."""
        if self._journals is not None and not self._journals.is_open and self._all_metrics():
            self._journals.open(self.writer, self._sequence, self._in_flight is not None)
            for journaled in self._journaled():
                self._journals.adopt(journaled)

    def _check_journal(self) -> None:
        """Leave a journal that was deleted, that cannot be used any more, or that was taken for a dead process's."""
        if self._journals is not None and not self._journals.is_sound():
            self._overtaken |= self._journals.is_replayed
            self._close_journal(keep=self._overtaken)
        if self._overtaken:
            self._treat_as_sent()
        if self.down:
            self._open_journal()

    def _treat_as_sent(self) -> None:
        """Go on as another writer, without what was pending: that is sent by whoever found it."""
        cells = [cell for metric in self._all_metrics() for cell in list(metric.cells)]
        entries = dict.fromkeys([*self._drained, *self._queue.copy(), *cells])
        for entry in entries:
            entry.drain()
            entry.acknowledge()
        self._queue.clear()
        self._drained.clear()
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
        for journaled in self._journaled():
            if journaled.offset:
                journaled.move(zeros(journaled.size), 0)
        return path

    def _journaled(self) -> list[Journaled]:
        """All that belongs in a journal; removals first, since they are older than the series that there are."""
        waiting = (*self._drained, *self._queue.copy())
        entries: list[Entry] = [entry for entry in waiting if isinstance(entry, Removal) or entry.metric.retired]
        for metric in self._all_metrics():
            entries.extend(list(metric.cells))
        return [journaled for entry in entries for journaled in entry.journaled()]

    def _queue_everything(self) -> None:
        """Queue every series, as for an empty storage."""
        self._restart_due = True
        for metric in self._all_metrics():
            self._queue.append(metric)
            self._queue.extend(metric.cells_to_resend())
        self._restart_due = False

    def _all_metrics(self, names: Collection[str] | None = None) -> list[MetricCells]:
        """The metrics that live, or those of them with these names."""
        return [metric for name in (list(self._metrics) if names is None else names) for metric in self._living(name)]

    def _living(self, name: str) -> list[MetricCells]:
        known = (reference() for reference in tuple(self._metrics.get(name, ())))
        return [metric for metric in known if metric is not None and not metric.retired]

    def _discard(self) -> None:
        """Drop what all metrics have gathered."""
        for metric in self._all_metrics():
            metric.discard()

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
