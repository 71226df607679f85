"""Metrics of RQ: ``pdc.rq.instrument()``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

try:
    from rq import Queue
    from rq.exceptions import AbandonedJobError, DeserializationError
    from rq.job import JobStatus
    from rq.utils import now
    from rq.worker import BaseWorker
except ModuleNotFoundError as error:
    if error.name != "rq":
        raise
    raise ModuleNotFoundError("pdc.rq needs RQ: pip install 'prometheus-distributed-client[rq]'", name="rq") from error

from .jobs.tasks import TaskMetrics
from .jobs.workers import LiveWorker, end_process, guarded

__all__ = ["instrument"]

Method = Callable[..., Any]

KILLED = "<killed>"
"""The exception of a job whose work-horse is gone."""
UNREADABLE = "<unreadable>"
"""The name of a job whose data cannot be read."""
SHOWN = "_pdc_shown"
"""The attribute of a job that is shown in progress."""
SENT = "_pdc_sent"
"""The attribute of a pipeline with the ids of the jobs that it sends."""
STATES = {JobStatus.FAILED: "failure", JobStatus.STOPPED: "stopped"}
"""By the status of a job that did not succeed. Every other one waits for its next attempt."""
_METRICS = TaskMetrics("rq")
_WORKER = LiveWorker(_METRICS)
_WRAPPED: list[str] = []
"""The methods of RQ that count."""


def instrument(*, queue_length: bool = False) -> None:
    """Count and time the jobs of this process: where they are sent, in workers of every class, and in their work-horses.

    Call this in the module of settings of ``rq worker -c`` and ``rq worker-pool -c``, or before ``Worker(...)`` in a program of
    your own, and in each process that sends jobs. It may come after or before `pdc.setup`.

    - ``rq_tasks_sent_total``, ``rq_tasks_received_total`` and ``rq_tasks_total`` have jobs by ``task``, ``queue`` and
      ``state``: success, failure, retry, stopped. ``rq_task_exceptions_total`` has ``exception``.
    - ``rq_task_duration_seconds`` and ``rq_task_queue_time_seconds`` are histograms.
    - ``rq_tasks_in_progress``, ``rq_workers`` and ``rq_queue_workers`` show living processes.
    - `queue_length`: True for ``rq_queue_messages``. Each worker asks Redis every 15 s then.

    A second call adds no more than `queue_length`.
    """
    _WORKER.queue_length = _WORKER.queue_length or queue_length
    if not _WRAPPED:
        for owner, name, wrapper in _METHODS:
            if hasattr(owner, name):  # jobs with a limit of their rate came with version 3
                setattr(owner, name, wrapper(getattr(owner, name)))
                _WRAPPED.append(name)


def _then(receiver: Method) -> Callable[[Method], Method]:
    """A wrapper that calls the receiver after a method, with the same arguments."""

    def wrapper(method: Method) -> Method:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            receiver(*args, **kwargs)
            return result

        return call

    return wrapper


def _sending(method: Method) -> Method:
    """A wrapper of methods that put a job into its queue."""

    @wraps(method)
    def send(queue: Queue, job: Any, *args: Any, **kwargs: Any) -> Any:
        was_scheduled = job.get_status(refresh=False) == JobStatus.SCHEDULED
        sent = method(queue, job, *args, **kwargs)
        if not was_scheduled:  # otherwise the scheduler moves it
            _count_sent(queue, job, pipeline=kwargs.get("pipeline"))
        return sent

    return send


def _performing(method: Method) -> Method:
    """A wrapper of the method that performs a job: in a work-horse, or in a worker that has none."""

    @wraps(method)
    def perform(worker: BaseWorker, job: Any, *args: Any, **kwargs: Any) -> Any:
        _start(worker, job)
        try:
            return method(worker, job, *args, **kwargs)
        finally:
            _stop(worker, job)

    return perform


@guarded
def _count_sent(queue: Queue, job: Any, *_: Any, pipeline: Any = None, **__: Any) -> None:
    if pipeline is not None:
        sent = vars(pipeline).setdefault(SENT, set())
        if job.id in sent:  # RQ repeats a transaction that met another one
            return
        sent.add(job.id)
    _METRICS.sent(_name(job), queue.name)


@guarded
def _start(worker: BaseWorker, job: Any) -> None:
    name = _name(job)
    waited = (now() - job.enqueued_at).total_seconds() if job.enqueued_at else None
    _METRICS.received(name, job.origin)
    _METRICS.started(name, job.origin, worker.name, waited)
    setattr(job, SHOWN, True)


@guarded
def _stop(worker: BaseWorker, job: Any) -> None:
    if vars(job).pop(SHOWN, False):  # not where pdc was set up only by then
        _METRICS.stopped(_name(job), job.origin, worker.name)
    if worker.is_horse:
        end_process()


@guarded
def _count_success(worker: BaseWorker, job: Any, *_: Any, **__: Any) -> None:  # noqa: ARG001 - RQ gives it
    _ended(job, "success")


@guarded
def _count_retry(worker: BaseWorker, job: Any, *_: Any, **__: Any) -> None:  # noqa: ARG001
    """Count a job that returned `rq.Retry`, which may have been its last attempt."""
    _ended(job, _state(job))


@guarded
def _count_failure(worker: BaseWorker, job: Any, *_: Any, **__: Any) -> None:  # noqa: ARG001
    """Count a job that raised an exception; in the worker, one whose work-horse is gone."""
    state, raised = _state(job), sys.exc_info()[0]
    if raised is not None:
        _ended(job, state, raised.__name__)
    else:
        _METRICS.ended(_name(job), job.origin, state, "" if state == "stopped" else KILLED)


@guarded
def _count_abandoned(job: Any, kind: type[BaseException], *_: Any) -> None:
    """Count a job that another worker left behind. RQ calls this handler before it retries the job, if it does."""
    if issubclass(kind, AbandonedJobError):
        _METRICS.ended(_name(job), job.origin, "retry" if job.retries_left else "failure", kind.__name__)


@guarded
def _show_worker(worker: BaseWorker) -> None:
    if _count_abandoned not in worker._exc_handlers:  # noqa: SLF001 - a worker in burst mode may work again
        worker.push_exc_handler(_count_abandoned)
    _WORKER.start(worker.name, worker.queue_names(), lambda: [(queue.name, queue.count) for queue in worker.queues])


@guarded
def _hide_worker(worker: BaseWorker) -> None:
    _WORKER.stop(worker.name)


def _ended(job: Any, state: str, exception: str = "") -> None:
    name, queue = _name(job), job.origin
    if job.started_at is not None:  # otherwise the connection to Redis broke before
        _METRICS.timed(name, queue, state, max((now() - job.started_at).total_seconds(), 0.0))  # a clock may be set
    _METRICS.ended(name, queue, state, exception)


def _state(job: Any) -> str:
    return STATES.get(job.get_status(refresh=False), "retry")


def _name(job: Any) -> str:
    """The function of the job. Its arguments may be of classes that this process cannot import."""
    try:
        return str(job.func_name)
    except DeserializationError:
        return UNREADABLE


_METHODS: list[tuple[type, str, Callable[[Method], Method]]] = [
    (Queue, "_enqueue_job", _sending),
    (Queue, "_enqueue_rate_limited_job", _sending),
    (Queue, "schedule_job", _then(_count_sent)),
    (BaseWorker, "register_birth", _then(_show_worker)),
    (BaseWorker, "register_death", _then(_hide_worker)),
    (BaseWorker, "perform_job", _performing),
    (BaseWorker, "handle_job_success", _then(_count_success)),
    (BaseWorker, "handle_job_retry", _then(_count_retry)),
    (BaseWorker, "handle_job_failure", _then(_count_failure)),
]
"""The methods of RQ that count, with their wrappers. Its own subclasses call these, too."""
