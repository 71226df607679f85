"""Metrics of Celery: ``pdc.celery.instrument(app)``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

try:
    from celery import Celery, signals
    from celery.exceptions import Reject, TimeLimitExceeded
    from celery.states import IGNORED, REJECTED
    from celery.utils.nodenames import worker_direct
except ModuleNotFoundError as error:
    if error.name != "celery":
        raise
    raise ModuleNotFoundError(
        "pdc.celery needs Celery: pip install 'prometheus-distributed-client[celery]'", name="celery"
    ) from error

from .jobs.tasks import ExporterMetrics, TaskMetrics
from .jobs.workers import LiveWorker, end_process, guarded
from .process.interruption import let_through

__all__ = ["instrument"]

NAMES: dict[str, Callable[[], TaskMetrics]] = {"pdc": lambda: TaskMetrics("celery"), "celery-exporter": ExporterMetrics}
"""By the argument `names`."""
DUE = "pdc_due"
"""The header of a message with the Unix time from which on its task may run."""
STARTED = "pdc_started"
"""The attribute of a request that runs, with the time of `time.perf_counter` at which it started."""
SHOWN = "pdc_shown"
"""The attribute of a request that is shown in progress: not where pdc was set up only by then."""
DIRECT = "<direct>"
"""The queue of tasks for one worker (``worker_direct``), whose queue has the name of its host."""
DIRECT_END = worker_direct("").name
"""The end of the name of such a queue."""
OTHER = "<other>"
"""The queue of a task whose routing key belongs to no queue that the application has declared."""
SIGNALS_SECONDS = 10.0
"""The time between the two signals of a hard time limit, at most."""
_INSTRUMENTED: list[Celery] = []


def instrument(app: Celery, *, names: str = "pdc", queue_length: bool = False) -> None:
    """Count and time the tasks of the application: in processes that send them, in workers, and in pools of every kind.

    Call this where the application is made, so that each of its processes does, after or before `pdc.setup`.

    - ``celery_tasks_sent_total``, ``celery_tasks_received_total`` and ``celery_tasks_total`` have tasks by ``task``, ``queue``
      and ``state``: success, failure, retry, revoked, rejected, ignored. ``celery_task_exceptions_total`` has ``exception``.
    - ``celery_task_duration_seconds`` and ``celery_task_queue_time_seconds`` are histograms.
    - ``celery_tasks_in_progress``, ``celery_workers`` and ``celery_queue_workers`` show living processes.
    - `names`: ``pdc``, or ``celery-exporter`` for the names of that exporter, so that its dashboards go on.
    - `queue_length`: True for ``celery_queue_messages``. Each worker asks the broker every 15 s then, on its own connection.

    Raises ValueError for other names. A second call for an application does nothing.
    """
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
    if app not in _INSTRUMENTED:
        _INSTRUMENTED.append(app)
        _Receivers(app, NAMES[names](), queue_length=queue_length).connect(names)


class _Receivers:
    """The receivers of Celery's signals for one application."""

    def __init__(self, app: Celery, metrics: TaskMetrics, *, queue_length: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._worker = LiveWorker(metrics, queue_length=queue_length)
        self._timed_out = "", 0.0
        """The last task that failed for its hard time limit, and when: newer versions of Celery send that twice."""

    def connect(self, names: str) -> None:
        """Connect them. The signals of sending do not name the application: one receiver counts those of the process."""
        for signal, receiver in self._receivers():
            signal.connect(receiver, weak=False, dispatch_uid=f"pdc {id(self._app)} {receiver.__name__}")
        signals.before_task_publish.connect(self._stamp, weak=False, dispatch_uid="pdc")
        signals.after_task_publish.connect(self._count_sent, weak=False, dispatch_uid=f"pdc {names}")
        signals.worker_process_shutdown.connect(_end, weak=False, dispatch_uid="pdc")

    def _receivers(self) -> Iterator[tuple[Any, Callable[..., None]]]:
        yield signals.task_received, self._count_received
        yield signals.task_prerun, self._start
        yield signals.task_postrun, self._stop
        yield signals.task_success, self._count_success
        yield signals.task_failure, self._count_failure
        yield signals.task_retry, self._count_retry
        yield signals.task_revoked, self._count_revoked
        yield signals.worker_ready, self._show_worker
        yield signals.worker_shutdown, self._hide_worker

    @guarded
    def _stamp(self, headers: dict[str, Any], **_: Any) -> None:
        headers[DUE] = max(time.time(), _timestamp(headers.get("eta"), self._app.timezone))

    @guarded
    def _count_sent(self, sender: str, exchange: Any, routing_key: str | None, **_: Any) -> None:
        self._metrics.sent(sender, _queue(_INSTRUMENTED, getattr(exchange, "name", exchange), routing_key))

    @guarded
    def _count_received(self, request: Any, **_: Any) -> None:
        if request.task.app == self._app:
            self._metrics.received(request.task.name, self._queue_of(request))

    @guarded
    def _start(self, task: Any, **_: Any) -> None:
        if task.app != self._app:
            return
        request = task.request
        due = request.get(DUE)
        # Not by id: with --pool=threads the next attempt, which has the same id, may start before this one has ended.
        request.update({STARTED: time.perf_counter()})
        waited = time.time() - due if isinstance(due, float) else None
        self._metrics.started(task.name, self._queue_of(request), request.hostname or "", waited)
        request.update({SHOWN: True})

    @guarded
    def _stop(self, task: Any, state: str | None, **_: Any) -> None:
        request = task.request
        started = request.get(STARTED)
        if task.app != self._app or started is None:
            return
        name, queue = task.name, self._queue_of(request)
        if request.get(SHOWN):
            self._metrics.stopped(name, queue, request.hostname or "")
        if state is None:  # the process is being stopped
            return
        self._metrics.timed(name, queue, state.lower(), time.perf_counter() - started)
        # Not the others: a task whose process is killed, for its time limit or its memory, sends no such signal.
        if state in (REJECTED, IGNORED):
            self._metrics.ended(name, queue, state.lower())

    def _ended(self, task: Any, request: Any, state: str, exception: BaseException | None = None) -> None:
        if task.app == self._app:
            name = "" if exception is None else type(exception).__name__
            self._metrics.ended(task.name, self._queue_of(request), state, name)

    @guarded
    def _count_success(self, sender: Any, **_: Any) -> None:
        self._ended(sender, sender.request, "success")

    @guarded
    def _count_failure(self, sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
        if isinstance(exception, Reject):  # counted as rejected, in the process that ran it
            return
        if isinstance(exception, TimeLimitExceeded):
            before, now = self._timed_out, time.monotonic()
            self._timed_out = task_id, now
            if before[0] == task_id and now < before[1] + SIGNALS_SECONDS:
                return
        self._ended(sender, sender.request, "failure", exception)

    @guarded
    def _count_retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        self._ended(sender, request, "retry", getattr(reason, "exc", None))

    @guarded
    def _count_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        self._ended(sender, request, "revoked")

    @guarded
    def _show_worker(self, sender: Any, **_: Any) -> None:
        if sender.app == self._app:
            self._worker.start(sender.hostname, [*map(_name, self._consumed())], self._lengths)

    @guarded
    def _hide_worker(self, sender: Any, **_: Any) -> None:
        if sender.app == self._app:
            self._worker.stop(sender.hostname)

    def _consumed(self) -> list[Any]:
        return [*self._app.amqp.queues.consume_from.values()]

    def _lengths(self) -> Iterator[tuple[str, int]]:
        with self._app.connection_for_read() as connection:
            for queue in self._consumed():
                yield _name(queue), _length(connection, queue.name)

    def _queue_of(self, request: Any) -> str:
        info = request.delivery_info or {}
        return _queue([self._app], info.get("exchange"), info.get("routing_key"))


def _length(connection: Any, queue: str) -> int:
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
    except connection.channel_errors:  # there is none: Redis has no empty ones
        return 0


def _queue(apps: Iterable[Celery], exchange: str | None, routing_key: str | None) -> str:
    """The queue of a message: with the default exchange its routing key, otherwise the one that is bound to both."""
    if not exchange:
        return _bounded(routing_key or "")
    for app in apps:
        bound = [queue for queue in app.amqp.queues.values() if queue.exchange.name == exchange]
        exact = [queue for queue in bound if queue.routing_key == routing_key]
        if exact or len(bound) == 1:
            return _name((exact or bound)[0])
    return OTHER


def _name(queue: Any) -> str:
    """The name of a queue of `kombu`, without the part that differs from worker to worker."""
    return _bounded(queue.alias or queue.name)


def _bounded(queue: str) -> str:
    """The name of a queue, unless it belongs to a single worker."""
    return DIRECT if queue.endswith(DIRECT_END) else queue


def _timestamp(eta: Any, timezone: Any) -> float:
    """The Unix time of a time in a header; 0 where there is none, or it cannot be read."""
    try:
        due = datetime.fromisoformat(eta)
    except (TypeError, ValueError) as error:
        let_through(error)
        return 0.0
    return (due if due.tzinfo else due.replace(tzinfo=timezone)).timestamp()


def _end(pid: int | None = None, **_: Any) -> None:
    if pid == os.getpid():
        end_process()
