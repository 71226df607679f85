"""Metrics of Dramatiq: ``pdc.dramatiq.instrument(broker)``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

try:
    from dramatiq import Broker, Middleware
    from dramatiq.common import q_name
except ModuleNotFoundError as error:
    if error.name != "dramatiq":
        raise
    raise ModuleNotFoundError(
        "pdc.dramatiq needs Dramatiq: pip install 'prometheus-distributed-client[dramatiq]'", name="dramatiq"
    ) from error

from .jobs.tasks import MiddlewareMetrics, TaskMetrics
from .jobs.workers import LiveWorker, guarded

__all__ = ["instrument"]

NAMES: dict[str, Callable[[], TaskMetrics]] = {"pdc": lambda: TaskMetrics("dramatiq"), "dramatiq": MiddlewareMetrics}
"""By the argument `names`."""
DUE = "pdc_due"
"""The option of a message that was delayed, with the Unix time from which on its actor may run."""
ATTEMPT = "_pdc_attempt"
"""The attribute of a message that is processed, with its attempt."""


def instrument(broker: Broker, *, names: str = "pdc", queue_length: bool = False) -> None:
    """Count and time the messages of the broker: in processes that send them, and in workers.

    Call this where the broker is made, so that each of its processes does, after or before `pdc.setup`.

    - ``dramatiq_tasks_sent_total``, ``dramatiq_tasks_received_total`` and ``dramatiq_tasks_total`` have messages by ``task``
      (the actor), ``queue`` and ``state``: success, failure, retry, skipped, rejected. ``dramatiq_task_exceptions_total`` has
      ``exception``.
    - ``dramatiq_task_duration_seconds`` and ``dramatiq_task_queue_time_seconds`` are histograms.
    - ``dramatiq_tasks_in_progress``, ``dramatiq_workers`` and ``dramatiq_queue_workers`` show living processes.
    - `names`: ``pdc``, or ``dramatiq`` for the names of Dramatiq's own middleware ``Prometheus``, so that its dashboards go on.
    - `queue_length`: True for ``dramatiq_queue_messages``. Each worker process asks the broker every 15 s then.

    Raises ValueError for other names. A second call for a broker does nothing.
    """
    if names not in NAMES:
        raise ValueError(f"names must be one of {', '.join(NAMES)}, got {names!r}")
    if not any(isinstance(each, _Metrics) for each in broker.middleware):
        # The first one: it begins before all others, and ends after them, when the fate of the message is known.
        first = type(broker.middleware[0]) if broker.middleware else None
        broker.add_middleware(_Metrics(NAMES[names](), queue_length=queue_length), before=first)


class _Attempt(NamedTuple):
    """A message that is processed now."""

    started: float
    retries: int
    shown: bool = False
    """It is shown in progress: not where pdc was set up only by then."""


class _Metrics(Middleware):
    """The middleware. A worker thread calls the hooks of a message one after another."""

    def __init__(self, metrics: TaskMetrics, *, queue_length: bool) -> None:
        self._metrics = metrics
        self._worker = LiveWorker(metrics, queue_length=queue_length)

    @guarded
    def after_enqueue(self, broker: Broker, message: Any, delay: int | None) -> None:  # noqa: ARG002 - the hook has it
        """Count a message that was sent, or is retried; not one whose delay is over, which the worker sends on."""
        if delay is not None or DUE not in message.options:
            self._metrics.sent(message.actor_name, q_name(message.queue_name))

    @guarded
    def before_delay_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002
        """Note when the message is due: the worker that sends it on removes the time."""
        message.options[DUE] = message.options["eta"] / 1000

    @guarded
    def before_process_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002
        """Begin an attempt."""
        due = message.options.pop(DUE, None)
        if not isinstance(due, (int, float)):  # anybody may write a message
            due = message.message_timestamp / 1000
        # Not by id: the next attempt, which has the same id, may start in another thread before this one has ended.
        attempt = _Attempt(time.perf_counter(), _retries(message))
        setattr(message, ATTEMPT, attempt)
        name, queue = message.actor_name, q_name(message.queue_name)
        self._metrics.received(name, queue)
        self._metrics.started(name, queue, "", time.time() - due)
        setattr(message, ATTEMPT, attempt._replace(shown=True))

    @guarded
    def after_process_message(
        self,
        broker: Broker,  # noqa: ARG002
        message: Any,
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        """End the attempt."""
        if exception is None:
            self._end(message, "rejected" if message.failed else "success")
        else:
            self._end(message, _state(message), type(exception).__name__)

    @guarded
    def after_skip_message(self, broker: Broker, message: Any) -> None:  # noqa: ARG002
        """End the attempt of a message that another middleware left out."""
        self._end(message, "rejected" if message.failed else "skipped")

    @guarded
    def after_nack(self, broker: Broker, message: Any) -> None:  # noqa: ARG002
        """Count a message that no attempt has counted: nobody has declared its actor."""
        if _attempt(message) is None:
            self._metrics.ended(message.actor_name, q_name(message.queue_name), "rejected")

    def _end(self, message: Any, state: str, exception: str = "") -> None:
        attempt = _attempt(message)
        if attempt is not None:
            name, queue = message.actor_name, q_name(message.queue_name)
            if attempt.shown:
                self._metrics.stopped(name, queue, "")
            self._metrics.timed(name, queue, state, time.perf_counter() - attempt.started)
            self._metrics.ended(name, queue, state, exception)

    @guarded
    def after_worker_boot(self, broker: Broker, worker: Any) -> None:
        """Show the worker of this process."""
        self._worker.start(str(id(worker)), _queues(worker), lambda: _lengths(broker, _queues(worker)))

    @guarded
    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:  # noqa: ARG002
        """Show it no more."""
        self._worker.stop(str(id(worker)))


def _attempt(message: Any) -> _Attempt | None:
    attempt: _Attempt | None = vars(message).get(ATTEMPT)
    return attempt


def _retries(message: Any) -> int:
    return int(message.options.get("retries", 0))


def _state(message: Any) -> str:
    """The state of a message whose actor has raised an exception: another middleware has failed it or sent it again."""
    attempt = _attempt(message)
    is_retried = attempt is not None and _retries(message) > attempt.retries
    return "retry" if is_retried and not message.failed else "failure"


def _queues(worker: Any) -> list[str]:
    """The queues that a worker consumes, each of which has another one for delayed messages."""
    return sorted({q_name(queue) for queue in [*worker.consumers]})


def _lengths(broker: Any, queues: list[str]) -> list[tuple[str, int]]:
    """The messages that wait for a worker in each queue, without those that have a delay."""
    if hasattr(broker, "get_queue_message_counts"):  # RabbitMQ
        try:
            return [(queue, broker.get_queue_message_counts(queue)[0]) for queue in queues]
        finally:
            del broker.connection  # the one of this thread, which would miss its heartbeats until the next look
    if hasattr(broker, "client"):  # Redis
        return [(queue, broker.client.llen(f"{broker.namespace}:{queue}")) for queue in queues]
    return [(queue, broker.queues[queue].qsize()) for queue in queues]
