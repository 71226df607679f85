"""Metrics of the tasks of a queue, under our own names, those of celery-exporter, and those of Dramatiq's own middleware."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any, NamedTuple

from ..metrics import Counter, Gauge, Histogram, declared_once
from .native import native_histograms

BUCKETS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0)
"""A hundredth of a second to an hour."""
MOST_SERIES = 10_000
"""Of each family: programs may make up names of tasks."""
STATES = ("success", "failure", "retry")
"""The states that a task shows from its start on: an increase needs a value before it."""


class _Families(NamedTuple):
    sent: Counter
    received: Counter
    ended: Counter
    exceptions: Counter
    duration: Histogram
    in_progress: Gauge
    workers: Gauge
    queue_workers: Gauge
    queue_messages: Gauge


@declared_once
def _families(library: str) -> _Families:
    task = ["task", "queue"]
    common: dict[str, Any] = {"namespace": library, "registry": None, "max_series": MOST_SERIES}
    native = native_histograms()
    live: dict[str, Any] = {**common, "multiprocess_mode": "livesum"}
    recent: dict[str, Any] = {**common, "multiprocess_mode": "livemostrecent"}
    return _Families(
        Counter("tasks_sent", "Tasks that were sent to a queue.", task, **common),
        Counter("tasks_received", "Tasks that a worker received.", task, **common),
        Counter("tasks", "Attempts of tasks that ended.", [*task, "state"], **common),
        Counter("task_exceptions", "Exceptions with which attempts ended.", [*task, "exception"], **common),
        Histogram("task_duration_seconds", "Time per attempt.", [*task, "state"], **common, buckets=BUCKETS, native=native),
        Gauge("tasks_in_progress", "Tasks that run now.", task, **live),
        Gauge("workers", "Workers that live.", **live),
        Gauge("queue_workers", "Workers that live, by the queues that they consume.", ["queue"], **live),
        Gauge("queue_messages", "Messages that wait in the queue.", ["queue"], **recent),
    )


@declared_once
def _queue_time(library: str) -> Histogram:
    """Declare the time in the queue, which other names have not."""
    return Histogram(
        "task_queue_time_seconds",
        "Time from when a task was due until it started.",
        ["task", "queue"],
        library,
        registry=None,
        buckets=BUCKETS,
        native=native_histograms(),
        max_series=MOST_SERIES,
    )


class TaskMetrics:
    """Counts and times tasks. `worker` is the name of a worker, which only some names have as a label.

    `started` shows the task last: where it raises an exception, there is nothing that `stopped` could undo.
    """

    def __init__(self, library: str) -> None:
        self._library = library

    @property
    def _own(self) -> _Families:
        return _families(self._library)

    def sent(self, task: str, queue: str) -> None:
        """Count a task that was sent."""
        self._own.sent.labels(task, queue).inc()

    def received(self, task: str, queue: str) -> None:
        """Count a task that a worker received."""
        self._own.received.labels(task, queue).inc()

    def started(self, task: str, queue: str, worker: str, waited: float | None) -> None:  # noqa: ARG002 - others have it
        """Show a task in progress, and the seconds that it waited since it was due, if they are known."""
        for state in STATES:
            self._own.ended.labels(task, queue, state)
        self._observe_wait(task, queue, waited)
        self._own.in_progress.labels(task, queue).inc()

    def stopped(self, task: str, queue: str, worker: str) -> None:  # noqa: ARG002
        """Show a task in progress no more."""
        self._own.in_progress.labels(task, queue).dec()

    def timed(self, task: str, queue: str, state: str, seconds: float) -> None:
        """Observe the time of an attempt with that end."""
        self._own.duration.labels(task, queue, state).observe(seconds)

    def ended(self, task: str, queue: str, state: str, exception: str = "") -> None:
        """Count the end of an attempt."""
        self._own.ended.labels(task, queue, state).inc()
        if exception:
            self._own.exceptions.labels(task, queue, exception).inc()

    def show_worker(self, worker: str, queues: Iterable[str], *, lives: bool) -> None:  # noqa: ARG002
        """Show that a worker of this process lives, or ends."""
        change = 1 if lives else -1
        self._own.workers.inc(change)
        for queue in queues:
            self._own.queue_workers.labels(queue).inc(change)

    def show_length(self, queue: str, length: int) -> None:
        """Show the length of a queue."""
        self._own.queue_messages.labels(queue).set(length)

    def _observe_wait(self, task: str, queue: str, waited: float | None) -> None:
        if waited is not None and isfinite(waited):  # the time is from a message, and a sum never loses a NaN
            _queue_time(self._library).labels(task, queue).observe(max(waited, 0.0))  # clocks of hosts differ


class _ExporterFamilies(NamedTuple):
    sent: Counter
    received: Counter
    started: Counter
    succeeded: Counter
    failed: Counter
    rejected: Counter
    revoked: Counter
    retried: Counter
    runtime: Histogram
    worker_up: Gauge
    tasks_active: Gauge
    queue_length: Gauge
    active_workers: Gauge


_EVENTS = {"success": "succeeded", "failure": "failed", "retry": "retried", "revoked": "revoked", "rejected": "rejected"}
"""By our names of states."""


@declared_once
def _exporter_families() -> _ExporterFamilies:
    task = ["name", "queue_name"]
    common: dict[str, Any] = {"namespace": "celery", "registry": None, "max_series": MOST_SERIES}
    live: dict[str, Any] = {**common, "multiprocess_mode": "livesum"}
    return _ExporterFamilies(
        Counter("task_sent", "Tasks that were sent to a queue.", task, **common),
        Counter("task_received", "Tasks that a worker received.", task, **common),
        Counter("task_started", "Tasks that started.", task, **common),
        Counter("task_succeeded", "Tasks that succeeded.", task, **common),
        Counter("task_failed", "Tasks that failed.", [*task, "exception"], **common),
        Counter("task_rejected", "Tasks that were rejected.", task, **common),
        Counter("task_revoked", "Tasks that were revoked.", task, **common),
        Counter("task_retried", "Tasks that failed, and are to be tried again.", task, **common),
        Histogram("task_runtime", "Seconds that tasks ran which succeeded.", task, **common, native=native_histograms()),
        Gauge("worker_up", "1 for each host with a worker.", ["hostname"], **{**common, "multiprocess_mode": "livemax"}),
        Gauge("worker_tasks_active", "Tasks that run now.", ["hostname"], **live),
        Gauge(
            "queue_length", "Messages that wait in the queue.", task[1:], **{**common, "multiprocess_mode": "livemostrecent"}
        ),
        Gauge("active_worker_count", "Workers that consume the queue.", task[1:], **live),
    )


class ExporterMetrics(TaskMetrics):
    """The names and labels of danihodovic/celery-exporter, except for a host of each task.

    A measurement that the exporter does not have keeps our name.
    """

    def __init__(self) -> None:
        super().__init__("celery")

    @property
    def _theirs(self) -> _ExporterFamilies:
        return _exporter_families()

    def sent(self, task: str, queue: str) -> None:
        """Count a task that was sent."""
        self._theirs.sent.labels(task, queue).inc()

    def received(self, task: str, queue: str) -> None:
        """Count a task that a worker received, and show all other events of it, too."""
        theirs = self._theirs
        for event in (theirs.sent, theirs.started, theirs.succeeded, theirs.rejected, theirs.revoked, theirs.retried):
            event.labels(task, queue)
        theirs.failed.labels(task, queue, "")
        theirs.received.labels(task, queue).inc()

    def started(self, task: str, queue: str, worker: str, waited: float | None) -> None:
        """Count and show a task that starts."""
        self._theirs.started.labels(task, queue).inc()
        self._observe_wait(task, queue, waited)
        self._theirs.tasks_active.labels(_host(worker)).inc()

    def stopped(self, task: str, queue: str, worker: str) -> None:  # noqa: ARG002 - others have it
        """Show a task in progress no more."""
        self._theirs.tasks_active.labels(_host(worker)).dec()

    def timed(self, task: str, queue: str, state: str, seconds: float) -> None:
        """Observe the time of a task that succeeded."""
        if state == "success":
            self._theirs.runtime.labels(task, queue).observe(seconds)

    def ended(self, task: str, queue: str, state: str, exception: str = "") -> None:
        """Count the end of an attempt, if the exporter has that state."""
        if state in _EVENTS:
            event: Counter = getattr(self._theirs, _EVENTS[state])
            event.labels(task, queue, *([exception] if state == "failure" else [])).inc()

    def show_worker(self, worker: str, queues: Iterable[str], *, lives: bool) -> None:
        """Show that the worker of this process lives, or ends."""
        self._theirs.worker_up.labels(_host(worker)).set(lives)
        for queue in queues:
            self._theirs.active_workers.labels(queue).inc(1 if lives else -1)

    def show_length(self, queue: str, length: int) -> None:
        """Show the length of a queue."""
        self._theirs.queue_length.labels(queue).set(length)


def _host(worker: str) -> str:
    """The part of a worker's name that the exporter calls its host."""
    return worker.rpartition("@")[2]


class _MiddlewareFamilies(NamedTuple):
    messages: Counter
    errors: Counter
    retries: Counter
    rejects: Counter
    in_progress: Gauge
    duration: Histogram


MILLISECONDS = (*(5, 10, 25, 50, 75, 100, 250, 500, 750), *(1000, 2500, 5000, 7500, 10_000, 30_000, 60_000, 600_000, 900_000))
"""The buckets of Dramatiq's own middleware."""


@declared_once
def _middleware_families() -> _MiddlewareFamilies:
    task = ["queue_name", "actor_name"]
    common: dict[str, Any] = {"namespace": "dramatiq", "registry": None, "max_series": MOST_SERIES}
    return _MiddlewareFamilies(
        Counter("messages", "Attempts of messages that ended.", task, **common),
        Counter("message_errors", "Attempts that ended with an exception.", task, **common),
        Counter("message_retries", "Messages that failed, and are to be tried again.", task, **common),
        Counter("message_rejects", "Messages that are dead letters.", task, **common),
        Gauge("messages_inprogress", "Messages that are processed now.", task, **common, multiprocess_mode="livesum"),
        Histogram(
            "message_duration_milliseconds",
            "Time per attempt.",
            task,
            **common,
            buckets=MILLISECONDS,
            native=native_histograms(),
        ),
    )


class MiddlewareMetrics(TaskMetrics):
    """The names and labels of Dramatiq's own middleware. A measurement that it does not have keeps our name."""

    def __init__(self) -> None:
        super().__init__("dramatiq")

    @property
    def _theirs(self) -> _MiddlewareFamilies:
        return _middleware_families()

    def started(self, task: str, queue: str, worker: str, waited: float | None) -> None:  # noqa: ARG002 - others have it
        """Show a message that is processed, and its counts, also those that are 0."""
        theirs = self._theirs
        for count in (theirs.messages, theirs.errors, theirs.retries, theirs.rejects):
            count.labels(queue, task)
        self._observe_wait(task, queue, waited)
        theirs.in_progress.labels(queue, task).inc()

    def stopped(self, task: str, queue: str, worker: str) -> None:  # noqa: ARG002
        """Show a message that is processed no more."""
        self._theirs.in_progress.labels(queue, task).dec()

    def timed(self, task: str, queue: str, state: str, seconds: float) -> None:  # noqa: ARG002
        """Count an attempt, and observe its time."""
        self._theirs.messages.labels(queue, task).inc()
        self._theirs.duration.labels(queue, task).observe(1000 * seconds)

    def ended(self, task: str, queue: str, state: str, exception: str = "") -> None:
        """Count an exception, a retry or a dead letter."""
        if exception:
            self._theirs.errors.labels(queue, task).inc()
        if state == "retry":
            self._theirs.retries.labels(queue, task).inc()
        elif state in ("failure", "rejected"):
            self._theirs.rejects.labels(queue, task).inc()
