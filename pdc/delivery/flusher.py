"""The background thread, and its beats."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable

from ..family import LEASE_SECONDS
from ..process import log, servers
from ..process.interruption import ends_greenlet, let_through, tolerate

BEAT_SECONDS = LEASE_SECONDS / 3
"""The time between two beats, each of which renews the leases of live values and calls the functions of gauges."""
PAUSE_SECONDS = 0.1
"""The pause of the thread after an error that nobody foresaw."""


class Flusher:
    """Sends every `interval` seconds, renews leases on each beat, and finishes when the process ends.

    The thread outlives the exceptions of what it calls: functions of gauges, filters of the log, clients of a storage.
    """

    def __init__(
        self,
        *,
        on_beat: Callable[[float], bool],
        on_renewal: Callable[[], None],
        is_down: Callable[[], bool],
        may_start: Callable[[], bool],
        send: Callable[[], None],
        finish: Callable[[], None],
    ) -> None:
        self._on_beat = on_beat
        """Queues what is due on a beat, at that time of `time.monotonic`, and returns whether there is anything."""
        self._on_renewal = on_renewal
        """Queues all metrics, whose expiry is renewed then."""
        self._is_down = is_down
        self._may_start = may_start
        """Returns whether there is a storage, and the thread may use it."""
        self._send = send
        self._finish = finish
        self.interval = 0.0
        self._renew_seconds: float | None = None
        self.is_exiting = False
        """The process ends. Children that are forked then inherit that."""
        self.start_anew()

    def start_anew(self) -> None:
        """Start as a new process, without a thread."""
        self.thread: threading.Thread | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        """An event has a lock, which stays held where the exception of a handler comes at the wrong moment; this has none."""
        self._stops = 0
        """How often a thread was stopped: one that begins late must not go on."""
        self._last_flush = self._next_beat = self._next_renewal = 0.0
        self.is_finished = False
        """The thread has finished, as the process ends."""

    def schedule(self, interval: float, renew_seconds: float | None) -> None:
        """Send in this interval, beat soon, and renew expiry after those seconds; end a thread that may not send."""
        self.interval, self._renew_seconds = interval, renew_seconds
        self._next_renewal = time.monotonic() + (renew_seconds or 0.0)
        self._next_beat = 0.0
        if not self._may_start():
            self.thread = None  # at exit the thread that may use the storage finishes

    @property
    def is_current(self) -> bool:
        """True in the thread itself."""
        return threading.current_thread() is self.thread

    def start(self, *, beat_at_once: bool = False) -> None:
        """Start the thread, where threads run and the process does not end. The first of two threads ends.

        Where none can be started, the next update tries again.
        """
        if self.is_exiting or not self._may_start() or not servers.threads_run():
            return
        stops = self._stops
        thread = threading.Thread(target=self._run, args=[stops, beat_at_once], name="pdc-flush", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            let_through(error)
            log.defer(
                logging.DEBUG, "no thread can be started to send metrics, they wait for the end of the process: %s", error
            )
            return
        if thread.is_alive() and self.thread is None and stops == self._stops:  # it notes itself, unless another one was faster
            self.thread = thread
        _end_with_a_multiprocessing_child()

    def wake(self) -> None:
        """Let the thread look at once what there is to do."""
        self._wake.put(None)

    def stop(self) -> None:
        """Let the thread end; the next update or scrape starts another one."""
        self._stops += 1
        self.thread = None
        self.wake()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, for so long at most."""
        if self.thread is not None and not self.is_current:
            self.thread.join(max(seconds, 0.0))

    def _run(self, stops: int, beat_at_once: bool) -> None:
        wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # gevent may have replaced the class since the process began
        if stops != self._stops:
            return
        self._wake, self.thread = wake, threading.current_thread()
        if stops != self._stops:  # a moment ago
            self.thread = None
            return
        self._last_flush = time.monotonic()
        if beat_at_once:
            self._next_beat = 0.0
            self.wake()
        has_failed = False
        while self.is_current and not self.is_finished:
            try:
                self._take_turn()
                has_failed = False
            except BaseException as error:
                if ends_greenlet(error):
                    self.thread = None  # the next update or scrape starts another one
                    return
                if not has_failed:
                    log.defer(logging.ERROR, "the thread that sends metrics goes on after an error", error=error)
                    has_failed = True
                    log.emit_in_thread()
                time.sleep(PAUSE_SECONDS)

    def _take_turn(self) -> None:
        if not self.is_exiting:
            with tolerate(queue.Empty):
                self._wake.get(timeout=min(self.interval or BEAT_SECONDS, self._renew_seconds or BEAT_SECONDS, BEAT_SECONDS))
        if not self.is_current:  # another thread took its place meanwhile
            return
        if self.is_exiting:
            self._finish()
            self.is_finished = True
            return
        now = time.monotonic()
        if self.beat(now) or self._is_down() or now >= self._last_flush + self.interval:
            self._last_flush = now
            self._send()
        log.emit_in_thread()

    def beat(self, now: float) -> bool:
        """Queue what is due without an update: values with a lease, functions, expiry. Return whether there is anything."""
        has_due = False
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            has_due = self._on_beat(now)
        if self._renew_seconds is not None and now >= self._next_renewal:
            self._next_renewal = now + self._renew_seconds
            self._on_renewal()
            has_due = True
        return has_due


ENDS: list[Callable[[], None]] = []
"""The functions to call when the process ends."""


def _end_with_a_multiprocessing_child() -> None:
    """Call them in a child of multiprocessing, which ends without running atexit handlers."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        for end in ENDS:
            util.Finalize(None, end, exitpriority=0)
