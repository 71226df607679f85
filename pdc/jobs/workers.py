"""The parts that workers of all queues share: errors that stay here, the lengths of queues, the end of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import NamedTuple, ParamSpec

from ..delivery import ENDS
from ..process import log
from .tasks import TaskMetrics

P = ParamSpec("P")

Lengths = Callable[[], Iterable[tuple[str, int]]]
"""Asks the broker for the queues with their lengths."""
LENGTH_SECONDS = 15.0
"""The time between two looks at the lengths of the queues."""
_LOGGED: set[str] = set()


def guarded(receiver: Callable[P, None]) -> Callable[P, None]:
    """Log the first error of ours, and let the task go on."""

    @wraps(receiver)
    def receive(*args: P.args, **kwargs: P.kwargs) -> None:
        error: Exception | None = None
        try:
            receiver(*args, **kwargs)
        except Exception as raised:
            error = raised
        if error is not None:
            where = f"{receiver.__module__}.{receiver.__qualname__}"
            log.log_once_or_raise(_LOGGED, error, f"a task could not be counted ({where})")

    return receive


def end_process() -> None:
    """Send what is pending, in a process that ends without Python's exit handlers."""
    for end in ENDS:
        end()


class _Shown(NamedTuple):
    """A worker that is shown."""

    pid: int
    queues: tuple[str, ...]
    lengths: _QueueLengths | None


class LiveWorker:
    """Shows the workers of this process while they live, and the lengths of their queues where that is wanted."""

    def __init__(self, metrics: TaskMetrics, *, queue_length: bool = False) -> None:
        self._metrics = metrics
        self.queue_length = queue_length
        self._shown: dict[str, _Shown] = {}

    def start(self, worker: str, queues: Iterable[str], lengths: Lengths) -> None:
        """Show that the worker lives, and ask for lengths from time to time."""
        self.stop(worker)
        thread = _QueueLengths(lengths, self._metrics) if self.queue_length else None
        shown = _Shown(os.getpid(), tuple(queues), thread)
        if thread is not None:
            thread.start()
        self._metrics.show_worker(worker, shown.queues, lives=True)
        self._shown[worker] = shown

    def stop(self, worker: str) -> None:
        """Show that the worker ends, if this process shows it: the one that forked this process may."""
        shown = self._shown.pop(worker, None)
        if shown is None or shown.pid != os.getpid():
            return
        if shown.lengths is not None:
            shown.lengths.stop()
        self._metrics.show_worker(worker, shown.queues, lives=False)


class _QueueLengths(threading.Thread):
    """Asks the broker in a thread of its own: a broker that hangs holds up nothing else."""

    def __init__(self, lengths: Lengths, metrics: TaskMetrics) -> None:
        super().__init__(name="pdc-queues", daemon=True)
        self._lengths = lengths
        self._metrics = metrics
        self._stopped = threading.Event()

    def run(self) -> None:
        """Ask until the worker ends."""
        while not self._stopped.is_set():
            self._ask()
            self._stopped.wait(LENGTH_SECONDS)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    @guarded
    def _ask(self) -> None:
        for queue, length in self._lengths():
            self._metrics.show_length(queue, length)
