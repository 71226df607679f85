"""The buffer: the front of the delivery for metrics, for scrapes, and for the end of the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

from ..cells import LOCK_HOLDERS, Cell, Entry, Journaled, JournaledOperation, MetricCells
from ..process import log, servers
from ..process.files import is_root
from ..process.forks import FORKS
from ..process.interruption import is_own, locked, locked_within, release_own
from ..storage import FORK_SECONDS, Snapshot, Storage
from ..storage.off import Off
from .dispatcher import Dispatcher
from .flusher import Flusher
from .health import Health
from .target import Target

if TYPE_CHECKING:
    from .journal import Journals

P = ParamSpec("P")
T = TypeVar("T")

EXIT_SECONDS = 2.0
"""The longest wait of a process that ends for its storages, all together, unless `setup` sets another."""


class Buffer:
    """Sends what the cells of this process gathered to one storage, in batches that a retry cannot double.

    With `interval` 0 every update is sent before its call returns; otherwise a background thread sends what changed every
    `interval` seconds. It also renews leases and expiry, and retries when the storage is down. Updates never raise for that:
    they stay in the cells, bounded by the number of series. One thread at a time has the lock, and works with the `Dispatcher`.
    """

    exit_timeout: ClassVar[float] = EXIT_SECONDS
    """The longest wait of the ending process for the storages of all buffers together."""

    def __init__(self) -> None:
        self.health = Health(self)
        self._work = Dispatcher(self.health)
        self._flusher = Flusher(
            on_beat=self._beat,
            on_renewal=self._renew,
            is_down=lambda: self.down,
            may_start=lambda: self._work.target.accepts_a_thread,
            send=partial(self.send_queued, in_background=True),
            finish=lambda: self._with_lock(self._work.finish),
        )
        self._used = False
        self._start_anew()

    def _start_anew(self) -> None:
        """Start as a new process."""
        self._work.start_anew()
        self._flusher.start_anew()
        self.outbox = self._work.outbox  # for others to look at
        self._lock = threading.RLock()  # held by the thread that sends
        self.is_overdue = False
        """The process ends without waiting for the storage any longer."""

    # For metrics and their cells: a `Sender`

    @property
    def writer(self) -> str:
        return self._work.outbox.writer

    @property
    def write_through(self) -> bool:
        return self._work.write_through

    @property
    def limits(self) -> Mapping[str, float]:
        return self._work.target.limits

    def register(self, metric: MetricCells) -> None:
        self._work.metrics.add(metric)

    def retire(self, metric: MetricCells) -> None:
        self._work.metrics.retire(metric)

    def last_declared(self, name: str) -> MetricCells | None:
        return self._work.metrics.last(name)

    def journal(self, entry: Entry | JournaledOperation) -> None:
        self._work.journal.adopt(entry)

    def unjournal(self, journaled: Journaled) -> None:
        self._work.journal.release(journaled)

    def declare(self, entry: Entry) -> None:
        """Let the storage show the entry, at the latest with the first update of this process.

        Before that nothing is made: this process may be the master of a server, and its workers another user's.
        """
        FORKS.notice()
        if self.write_through or self._work.begun:
            self.send(entry)
        elif self.storage is not None:
            self._work.outbox.queue.append(entry)

    def send(self, entry: Entry) -> None:
        FORKS.notice()
        if self.storage is not None:
            self.enqueue(entry)
            if self.write_through:
                self.send_queued()

    def enqueue(self, entry: Entry) -> None:
        work = self._work
        work.target.required()
        work.begun = True
        quiet = not work.write_through and FORKS.unforked()
        work.journal.adopt(entry)
        if isinstance(entry, Cell):  # no exception can come between its flags and its place in the queue: see `Cell`
            entry.queued = True
            entry.quiet = quiet
        work.outbox.queue.append(entry)
        if self._flusher.thread is None:
            self._begin_sending()

    def send_queued(self, *, in_background: bool = False) -> None:
        """Send what is queued, unless the storage was found down a moment ago. Raise only exceptions of the application."""
        FORKS.notice()
        work, me = self._work, threading.get_ident()
        is_free = work.sending_thread != me and me not in LOCK_HOLDERS and work.target.thread in (None, me)
        if is_free and (work.backoff.error is None or work.backoff.may_try) and not self.is_overdue:
            self._with_lock(self._send_queued, in_background)

    def _send_queued(self, in_background: bool) -> None:
        is_stopped = in_background and not self._flusher.is_current  # while it waited, or called a function of a gauge
        if is_stopped or (self.down and not self._work.backoff.may_try):  # another thread found it down meanwhile
            return
        if not self._flusher.is_exiting:
            self._work.try_to_send()
        elif not self._flusher.is_current:  # the background thread finishes by itself
            self._work.finish()

    def overflowed(self, name: str, count: int = 1) -> None:
        """Count series that are over the limit of their metric, and log that once per process and metric."""
        self._work.overflowed(name, count)

    # For scrapes and the application

    @property
    def storage(self) -> Storage | None:
        """The storage, if `setup` chose one."""
        return self._work.target.storage

    @property
    def down(self) -> bool:
        """True where the storage could not be written the last time."""
        return self._work.backoff.error is not None

    @property
    def has_metrics(self) -> bool:
        """True where this process has a metric here."""
        return bool(self._work.metrics.all())

    @property
    def waiting(self) -> int:
        """The count of series with updates that could not be sent, or that the storage refuses."""
        return self._work.outcomes.waiting_series(self.outbox.waiting() if self.down else (), self._work.metrics.named)

    def required(self) -> Storage:
        """The storage. Raises NotConfigured where there is none."""
        return self._work.target.required()

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
        """Use this storage from now on; see `Target`. Pending updates go to the one before, if that can be reached."""
        FORKS.notice()
        if interval:
            FORKS.unforked()  # its first call imports a module, which an update in a finalizer could not do amid an import
        if not self._used:
            self._used = True
            self._start_anew()  # with new locks: gevent may have replaced the classes since this module was imported
        self._with_lock(self._attach, Target(storage, interval, renew_seconds, thread, journals, limits))
        self._flusher.wake()

    def _attach(self, target: Target) -> None:
        work, flusher = self._work, self._flusher
        work.attach(target, write_through=target.interval == 0 or flusher.is_exiting)
        flusher.schedule(target.interval, target.renew_seconds)
        self.report()
        if work.write_through:
            if work.outbox.queue and flusher.thread is None:
                flusher.start()
            work.try_to_send()
        elif work.begun:
            work.open_journal()

    def detach(self, until: float | None = None) -> None:
        """Send what is pending, and use no storage any more. The journal keeps updates unsent by then (`time.monotonic`)."""
        FORKS.notice()
        until = time.monotonic() + self.exit_timeout if until is None else until
        if not self._with_lock_before(until, self._detach):
            if self.storage is not None:
                self.storage.set_deadline(until)  # another thread waits for it
            self._with_lock(self._detach)
        self._emit_logs()

    def _detach(self) -> None:
        self._work.detach()
        self._flusher.stop()
        self.health.forget()

    def flush(self) -> None:
        """Send all that is pending. Raises StorageError, also for metrics that the storage refuses."""
        FORKS.notice()
        self._work.backoff.try_now()
        self._work.outcomes.retry_refused_now()
        self.send_pending()
        self.raise_if_refused()

    def raise_if_refused(self, names: Collection[str] | None = None) -> None:
        """Raise StorageError where the storage refuses one of these metrics, or any: a scrape would leave it out."""
        self._work.outcomes.raise_if_refused(names)

    def send_pending(self, names: Collection[str] | None = None) -> None:
        """Send what is pending; functions of metrics with these names, or all, are called. Raises at once during an outage."""
        FORKS.notice()
        self._work.queue_unprompted(names)
        self._with_lock(self._send_for_scrape)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Send what is pending, then read those metrics or all. Raises NotConfigured and StorageError."""
        FORKS.notice()
        self.required()
        self._work.queue_unprompted(names)
        return self._with_lock(self._read, names)

    def _read(self, names: Collection[str] | None) -> Snapshot:
        self._send_for_scrape()
        return self._work.read(names)

    def restore(self, snapshot: Snapshot, names: Collection[str] | None = None) -> bool:
        """Send all again where the storage has lost a metric, of those that were read; return whether that is so."""
        return self._with_lock(self._work.restore, snapshot, names)

    def _send_for_scrape(self) -> None:
        self._work.send_unless_down()
        if self._work.begun and self._flusher.thread is None:
            self._flusher.start(beat_at_once=self._work.metrics.are_away)

    def clear(self) -> None:
        """Delete all metrics from the storage; the metrics of this process start again. Raises StorageError."""
        FORKS.notice()
        self._with_lock(self._clear)

    def _clear(self) -> None:
        self._send_for_scrape()
        self._work.clear()

    def start_again(self) -> None:
        """Start as in a storage that has just been emptied. Raises StorageError."""
        self._with_lock(self._work.start_again)

    def _with_lock(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work with the lock held, then log the messages that it deferred."""
        try:
            return locked(self._lock, work, *args, **kwargs)
        finally:
            if log.is_waiting():
                self._emit_logs()

    def _with_lock_before(self, until: float, work: Callable[[], None]) -> bool:
        """Do the work with the lock held, unless other threads hold it until then; return whether it was done."""
        return locked_within(max(until - time.monotonic(), 0.0), self._lock, lambda: self._with_lock(work))

    def _emit_logs(self) -> None:
        """Log deferred messages, unless a handler has interrupted this thread while it has the lock."""
        if self._flusher.is_current:
            if not self._flusher.is_exiting:  # otherwise the thread that waits for this one logs them
                log.emit_in_thread()
        elif not is_own(self._lock):
            log.emit()

    # The background thread

    def _begin_sending(self) -> None:
        """Open the journal, unless another thread is sending and does that, and start the background thread."""
        if not self.write_through and self._work.sending_thread is None:
            locked_within(0.0, self._lock, self._work.open_journal)
        self._flusher.start(beat_at_once=self._work.metrics.are_away)

    def report(self) -> None:
        """Let the background thread send metrics that change without an update, if there are any; in no master of a server."""
        if self._work.metrics.report_idle and self._flusher.thread is None and not servers.is_master():
            self._flusher.start()

    def catch_up(self) -> None:
        """Do the next work of the background thread, in a process where threads do not run."""
        FORKS.notice()
        if self._work.begun:
            self._flusher.beat(time.monotonic())
            self.send_queued()

    def _beat(self, now: float) -> bool:
        """Queue what is due on a beat: values with a lease, functions, metrics whose idle series expire."""
        if self.storage is None or isinstance(self.storage, Off):  # nobody sees what functions return
            return False
        self._work.replay_due = self._work.journal.is_used
        has_due = self._work.queue_unprompted(beat=True)
        to_sweep = [metric for metric in self._work.metrics.all() if metric.is_to_be_swept(now)]
        self._work.outbox.queue.extend(to_sweep)
        return has_due or bool(to_sweep)

    def _renew(self) -> None:
        if self.storage is not None:
            self._work.outbox.queue.extend(self._work.metrics.all())

    # The end of the process, and forks

    def deregister(self) -> None:
        """Send what is pending, then take the marks and live values of this process out of the storage."""
        FORKS.notice()
        self._with_lock(self._work.deregister)

    def pause(self) -> None:
        """Deregister, and leave no journal and no thread behind, where all is sent. The next update or scrape begins anew."""
        self._with_lock(self._pause)

    def _pause(self) -> None:
        if self._work.pause():
            self._flusher.stop()
            if self._work.outbox.has_updates:  # of another thread meanwhile
                self._begin_sending()

    def begin_exit(self) -> None:
        """Let the background thread finish, start no other one, and send further updates at once."""
        FORKS.notice()
        self._flusher.is_exiting = self._work.write_through = True
        self._flusher.wake()

    def at_exit(self, until: float | None = None) -> None:
        """Finish before that time of `time.monotonic`; the journal keeps what was not sent by then.

        The background thread finishes, where there is one: whoever ends the process can stop waiting for it. The master of a
        server sends nothing: its workers have declared its metrics. As root it would make files that they may not write.
        """
        until = time.monotonic() + self.exit_timeout if until is None else until
        self.begin_exit()
        if self._work.begun or not is_root() or not (FORKS.forked or servers.is_master()):
            if not self.is_overdue and not self._finishes_before(until):
                self.is_overdue = True
                self._work.leave_to_journal()
            self._emit_logs()

    def _finishes_before(self, until: float) -> bool:
        """Wait until the background thread has finished, or finish here without one; return whether that was in time."""
        self._flusher.join((until - time.monotonic()) / 2)
        if self._work.sending_thread is not None:  # otherwise a function of the application holds the thread up
            self._flusher.join(until - time.monotonic())
        return self._flusher.is_finished or self._with_lock_before(until, self._work.finish)

    def before_fork(self) -> None:
        """Let no other thread send while the process forks, unless one waits for its storage."""
        self._lock.acquire(timeout=FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let other threads send again."""
        release_own(self._lock)

    def after_fork_in_child(self) -> None:
        """Start as a new process: another writer, nothing pending, no thread. It declares metrics that its parent did not."""
        self._start_anew()
        self._work.after_fork_in_child()
        self.report()
