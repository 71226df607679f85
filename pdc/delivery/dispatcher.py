"""Makes batches of what cells gathered, sends them to the storage, and records the outcome."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from ..cells import Entry, Removal, in_one_scrape
from ..process import log
from ..process.interruption import tolerate
from ..storage import USUAL, Batch, Limits, Outcome, Snapshot, StorageError, Update
from .backoff import Backoff
from .declared import DeclaredMetrics
from .health import BATCHES_RETRIED, SERIES_REFUSED, Health
from .outbox import Outbox
from .outcomes import Outcomes
from .own_journal import OwnJournal
from .target import NotConfigured, Target, applied, call_storage, found

TURN_SECONDS = 0.0002
"""The pause between two batches. Each lets other threads in many times, but so shortly that one may wait for 5 ms
(`sys.getswitchinterval`); and other writers of a SQLite file only look now and then whether it is free."""


class Dispatcher:
    """Sends for one buffer. Its caller holds the lock of the buffer, and no other lock.

    Meanwhile nothing may run that could wait for a thread which updates a metric: no function of the application, and no
    handler of the log.

    Handlers of signals may raise an exception between any two bytecodes. It reaches the application, and the next turn goes on
    from what it finds; see `Outbox`.
    """

    def __init__(self, health: Health) -> None:
        self.health = health
        self.target = Target()
        self.write_through = True
        self.metrics = DeclaredMetrics()
        self.journal = OwnJournal(lambda: _unsent(self.outbox, self.metrics))
        self.begun = False
        self.start_anew()

    def start_anew(self) -> None:
        """Start as a new process."""
        self.outcomes = Outcomes()
        self.outbox = Outbox(self.outcomes, self.metrics.last, lambda: self.health.passenger(self.target.interval))
        self.backoff = Backoff()
        self.sending_thread: int | None = None
        self.replay_due = True
        self.restart_due = not self.begun and self.target.storage is not None
        """Every series must be sent, as to an empty storage, or as of a parent that declared nothing."""
        self._is_overtaken = False
        """Another process sends the pending updates."""
        self.health.is_due = True
        self.begun = False
        """This process has updated a metric, or sent anything."""

    def after_fork_in_child(self) -> None:
        """Leave everything pending to the parent."""
        self.journal.after_fork_in_child()
        self.metrics.after_fork()

    def attach(self, target: Target, *, write_through: bool) -> None:
        """Send what is pending to the storage so far, then use this one."""
        self.deregister(returning=True)
        self.journal.close(keep=False)
        if self.target.storage is None:
            self.metrics.discard()
        self.outcomes.forget_storage()
        self.target = target
        self.journal.use(target.journals)
        self.write_through = write_through
        for metric in self.metrics.all():
            metric.apply_limits()
            metric.rest()
        self.backoff.try_now()
        self.replay_due = self.restart_due = True
        self._queue_everything()

    def detach(self) -> None:
        """Finish, and use no storage any more."""
        self.finish()
        self.target = Target()
        self.journal.use(None)
        self.outbox.clear()
        self.begun = False
        self.backoff.reset()
        self.metrics.discard()

    # Reading and deleting

    def read(self, names: Collection[str] | None) -> Snapshot:
        """Read those metrics or all, once everything pending is sent. Raises NotConfigured and StorageError."""
        self.outcomes.raise_if_refused(names)
        snapshot = self._read(names)
        return self._read(names) if self.restore(snapshot, names) else snapshot

    def restore(self, snapshot: Snapshot, names: Collection[str] | None) -> bool:
        """Send again what the storage has lost of the metrics that were read; return whether that is so. Raises as `read`."""
        if any(self.metrics.named(name) for name in self.outcomes.missing(snapshot.metrics, names)):
            self._queue_everything()
        elif others := self.outcomes.of_other_kinds(snapshot.metrics, self.metrics.last):
            self.outbox.queue.extend(others)
        else:
            return False
        self.send()
        return True

    def _read(self, names: Collection[str] | None) -> Snapshot:
        before, self.sending_thread = self.sending_thread, threading.get_ident()
        try:
            return call_storage(found, self.target.required(), names)
        finally:
            self.sending_thread = before

    def clear(self) -> None:
        """Delete all metrics from the storage, and start again. Raises StorageError."""
        call_storage(self.target.required().delete)
        self.start_again()

    def start_again(self) -> None:
        """Start as in a storage that has just been emptied. Raises StorageError."""
        self.outcomes.applied.clear()
        self.metrics.discard()
        for metric in self.metrics.all():
            self.outbox.queue.extend([metric, *(() if metric.family.labelnames else list(metric.cells))])
        self.send()

    # Sending

    def try_to_send(self) -> None:
        """Send; keep what cannot be sent. Another thread may have detached the storage a moment ago."""
        with tolerate(StorageError, NotConfigured):
            self._as_sender(self._send_all)

    def send_unless_down(self) -> None:
        """Send, but raise StorageError where a scrape has to wait for the next try."""
        self.backoff.expect_scrape()
        self.send()

    def send(self) -> None:
        """Send the batch in flight, if there is one, then the entries that are queued by now; keep a batch that fails.

        Raises NotConfigured and StorageError. Entries that threads queue meanwhile wait for the next time, or they could hold
        this thread here for ever. Written through, one more turn is for the updates of handlers that interrupted this thread;
        updates that interrupt that turn wait for the next update, or for the background thread.
        """
        self._as_sender(self._send_all)

    def _as_sender(self, send: Callable[[], None]) -> None:
        """Send; do nothing where this thread is sending and a handler has interrupted it."""
        if self.sending_thread is not None:
            return
        self.target.required()
        me = threading.get_ident()
        if self.target.thread not in (None, me):
            self.target.expect_thread()
        self.sending_thread = me
        try:
            send()
            self.backoff.recovered()
        except StorageError as error:
            self._failed(error)
            raise
        finally:
            self.sending_thread = None

    def _failed(self, error: Exception) -> None:
        self.open_journal()  # written through, nothing was pending so far; and there may be room by now
        self.journal.failed()
        self.backoff.failed(error, self.target.storage)

    def _send_all(self) -> None:
        self.begun = self.begun or bool(self.outbox.queue)
        if self._sends_single():
            return
        self._check_journal()
        if self.begun and not self.journal.is_complete and (not self.write_through or self.backoff.error is not None):
            self.open_journal()
        if self.replay_due:  # dead processes of this host may have left some
            call_storage(self.journal.replay, self.target.required())
            self.replay_due = False
        self._send_due()
        if self.write_through and self.outbox.queue:
            self._send_due()

    def _sends_single(self) -> bool:
        """Write one entry through in fewer steps than many; return False where there is anything else to do."""
        outbox, outcomes, is_due = self.outbox, self.outcomes, self.replay_due or self.restart_due or self._is_overtaken
        if is_due or not outbox.has_single or self.target.interval or self.backoff.error is not None or self.journal.is_open:
            return False
        if (batch := outbox.next_single()) is not None:
            outcome = applied(self.target.required(), batch)
            (update,) = batch.updates
            if outcome == USUAL and not update.declare and update.name in outcomes.applied:
                outbox.acknowledge()
            else:
                self._record_outcome(batch, outcome)
        if outbox.queue or self.restart_due:
            self._send_due()
        return True

    def _send_due(self) -> None:
        outbox = self.outbox
        if self.restart_due:
            self._queue_everything()
        outbox.due = len(outbox.queue)
        while outbox.has_due:
            if outbox.in_flight is not None and self.backoff.error is not None:
                self.health.count(BATCHES_RETRIED)
            batch = outbox.next_batch()
            if batch is not None:
                self._send_batch(batch)
            if outbox.has_due:
                time.sleep(TURN_SECONDS)
            if self.restart_due:
                self._queue_everything()
                outbox.due = len(outbox.queue)

    def _send_batch(self, batch: Batch) -> None:
        self.journal.begin(batch.sequence)
        self._record_outcome(batch, applied(self.target.required(), batch))

    def _record_outcome(self, batch: Batch, outcome: Outcome) -> None:
        """Record what became of the batch."""
        self.journal.belongs_to(outcome.storage)
        if not batch.final and not self.outcomes.applied.isdisjoint(outcome.unknown):  # the storage has lost metrics
            self.restart_due = True
        self.outcomes.record(batch, outcome, self._resend)
        for name, count in outcome.overflowed.items():
            self.overflowed(name, count)
        if self.target.interval and not batch.final:
            self.health.flushes.observe(time.monotonic() - self.outbox.first_try)
        self.outbox.acknowledge()
        self.journal.end()

    def _resend(self, name: str) -> None:
        self.outbox.queue.extend([cell for metric in self.metrics.all([name]) for cell in metric.cells_to_resend()])
        self.outbox.due = len(self.outbox.queue)

    def overflowed(self, name: str, count: int = 1) -> None:
        """Count series that were over the limit of their metric, and log that once per process and metric."""
        if self.target.storage is not None:
            self.health.count(SERIES_REFUSED, count)
        self.outcomes.log_overflow(name)

    def queue_unprompted(self, names: Collection[str] | None = None, *, beat: bool = False) -> bool:
        """Queue the cells of those metrics that no update queues, and return whether there are any.

        This calls functions of the application, so it is the one part of the work that needs no lock. The next batch also
        carries the flush durations observed so far.
        """
        self.health.is_due = True
        self.metrics.drop_retired(lambda: {entry.metric for entry in self.outbox.waiting()})
        is_back = self.metrics.return_to(self.outbox.queue, names)
        unprompted: list[Entry] = [*in_one_scrape(self.metrics.unprompted, names, beat)]
        unprompted.extend(self.outcomes.refused_to_retry(self.metrics.named))
        self.outbox.queue.extend(unprompted)
        return is_back or bool(unprompted)

    def _queue_everything(self) -> None:
        """Queue every series, as for an empty storage."""
        self.restart_due = True
        for metric in self.metrics.all():
            self.outbox.queue.extend([metric, *metric.cells_to_resend()])
        self.restart_due = False

    # The end

    def deregister(self, *, returning: bool = False) -> None:
        """Send what is pending, then take the marks and live values of this process out of the storage.

        Where the process may be `returning`, its values that outlive it stay its own, and go on with its next update.
        """
        if self.target.storage is None:
            return
        self.backoff.try_now()
        self.health.is_due = True
        # An exception may have kept a cell out of the queue.
        self.outbox.queue.extend([cell for cell in self.metrics.cells() if cell.has_unsent])
        if self.outbox.is_busy or self.restart_due:
            self.try_to_send()
        lasting = [metric for metric in self.metrics.all() if metric.family.lasting]
        applied = self.outcomes.applied
        names = applied.difference(metric.family.name for metric in lasting) if returning else applied
        is_all_sent = self.outbox.in_flight is None and not self.outbox.drained
        is_applied = is_all_sent and bool(names) and self._send_final_batch(sorted(names))
        if is_all_sent and not returning:  # otherwise the storage still has the metrics, and may lose them
            applied.clear()
            for metric in lasting if is_applied else ():  # the storage has folded their values, which must not be sent again
                metric.discard()

    def _send_final_batch(self, names: list[str]) -> bool:
        """Send the last batch of this writer; later updates go to another storage, or belong to another writer.

        Return whether the storage has it.
        """
        limits = self.outcomes.limits
        updates = [Update(name, "", [], limits=limits.get(name, Limits())) for name in names]  # it declares nothing
        batch = self.outbox.in_flight = self.outbox.batch(updates, final=True)
        with tolerate(StorageError, NotConfigured):
            self._as_sender(partial(self._send_batch, batch))
        is_applied = self.outbox.in_flight is None
        self.outbox.acknowledge()
        self.journal.end()
        for metric in self.metrics.all():  # the storage has dropped live values
            metric.cells_to_resend()
        return is_applied

    def pause(self) -> bool:
        """Deregister until the next update or scrape, if all updates are sent; return whether that is so."""
        if self.begun:
            self.deregister(returning=True)
            if self.outbox.has_updates:
                return False
            if not self.outcomes.refused:  # the journal has that
                self.journal.close(keep=False)
            self.begun = False
            self.metrics.pauses += 1
        return True

    def finish(self) -> None:
        """Deregister for good. Later updates, as of atexit handlers, belong to another writer, which deregisters at once."""
        self.deregister()
        waits = self.backoff.error is not None or not self.target.is_for_this_thread
        unsent = waits and self.outbox.is_busy
        if unsent:
            self.open_journal(at_once=True)
        left_out = self.journal.without_room(self.outbox.unsent()) if unsent else []
        path = self.journal.close(keep=unsent)
        if path is not None:
            self._treat_as_sent()
        else:
            self.outbox.start_as_new_writer()
        if unsent:
            _log_unsent(path, self.backoff.error or "this thread may not use the storage", left_out)
        elif self.outcomes.refused:
            _log_unsent(None, self.outcomes.refusals())
            self.outcomes.refused.clear()

    # The journal

    def leave_to_journal(self) -> None:
        """Leave unsent updates to the journal, as a killed process does, and log what becomes of them."""
        in_flight = self.outbox.in_flight
        if self.outbox.waiting() or (in_flight is not None and not in_flight.final):
            self.open_journal(at_once=True)
            reason = self.backoff.error or "the storage did not answer before the process ended"
            _log_unsent(self.journal.path, reason, self.journal.without_room(self.outbox.unsent()))

    def open_journal(self, *, at_once: bool = False) -> None:
        """Begin or complete the journal of this process, unless it has nothing to count."""
        if self.metrics.all():
            self.journal.open(self.outbox.writer, self.outbox.sequence, self.outbox.in_flight is not None, at_once=at_once)

    def _check_journal(self) -> None:
        """Close a journal that was deleted, that cannot be used any more, or that was taken for a dead process's."""
        is_sound = self.journal.is_sound()
        if self.journal.is_replayed:
            self._is_overtaken = True
            _log_left_out(self.journal.without_room(self.outbox.unsent()))
        if self._is_overtaken or not is_sound:
            self.journal.close(keep=self._is_overtaken)  # again, where an exception came amid it
        if self._is_overtaken:
            self._treat_as_sent()

    def _treat_as_sent(self) -> None:
        """Continue as another writer, without what was pending: the process that finds the journal sends that."""
        self.outbox.hand_over(self.metrics.cells())
        self.outcomes.applied.clear()
        self._is_overtaken = False
        self.restart_due = True


def _log_unsent(path: Path | None, reason: object, left_out: Sequence[Entry] = ()) -> None:
    """Log what becomes of updates that were not sent: they wait in the journal at that path, or are lost."""
    if path is None:
        log.defer(logging.ERROR, f"metrics that could not be sent are lost: {reason}")
    else:
        log.defer(logging.WARNING, f"metrics that could not be sent wait in {path} for the next process: {reason}")
        _log_left_out(left_out)


def _log_left_out(entries: Sequence[Entry]) -> None:
    """Log that these had no room in the journal that another process sends."""
    if entries:
        log.defer(logging.ERROR, f"{len(entries)} series or removals had no room in the journal and are lost")


def _unsent(outbox: Outbox, metrics: DeclaredMetrics) -> list[Entry]:
    """Everything that belongs in a journal; removals first, since they are older than the series that exist."""
    entries = [entry for entry in outbox.waiting() if isinstance(entry, Removal) or entry.metric.retired]
    return [*entries, *metrics.cells()]
