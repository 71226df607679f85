"""Tasks of a small shop in Celery, counted and timed by its signals in every process of the pool.

With a Redis for the broker (``CELERY_BROKER_URL``, ``redis://localhost:6379/1`` by default), run in this folder::

    celery -A tasks worker
    celery -A tasks call tasks.order --args '["tea"]'

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Any ``/metrics`` of the
same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from celery import Celery, Task, signals

import pdc

pdc.setup_from_environ()

finished = pdc.Counter("celery_tasks", "Tasks that ended, or are to be tried again.", ["task", "state"])
duration = pdc.Histogram("celery_task_duration_seconds", "Time per task.", ["task"], buckets=(0.01, 0.1, 1, 10, 60, 600))
in_progress = pdc.Gauge("celery_tasks_in_progress", "Tasks that run now.", ["task"], multiprocess_mode="livesum")

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/1"))
app.conf.broker_connection_retry_on_startup = True

_failed: deque[str] = deque(maxlen=100)
"""The ids of the last tasks that failed: Celery signals twice for a task that it stopped for its time limit."""


@signals.task_prerun.connect
def _start(task: Task[..., Any], **_: Any) -> None:
    in_progress.labels(task.name).inc()
    # Not by id: with --pool=threads the next attempt, which has the same id, may start before this one has ended.
    task.request.update(started=time.perf_counter())


@signals.task_postrun.connect
def _end(task: Task[..., Any], **_: Any) -> None:
    in_progress.labels(task.name).dec()
    duration.labels(task.name).observe(time.perf_counter() - task.request.get("started"))


# Not the state of task_postrun: a task whose process is killed, for its time limit or its memory, sends no such signal.


@signals.task_success.connect
def _count_success(sender: Task[..., Any], **_: Any) -> None:
    finished.labels(sender.name, "success").inc()


@signals.task_failure.connect
def _count_failure(sender: Task[..., Any], task_id: str, **_: Any) -> None:
    if task_id not in _failed:
        _failed.append(task_id)
        finished.labels(sender.name, "failure").inc()


@signals.task_retry.connect
def _count_retry(sender: Task[..., Any], **_: Any) -> None:
    finished.labels(sender.name, "retry").inc()


@signals.task_revoked.connect
def _count_revoked(sender: Task[..., Any], **_: Any) -> None:
    finished.labels(sender.name, "revoked").inc()


@signals.worker_process_shutdown.connect
def _send(**_: Any) -> None:
    """Send pending updates: Celery ends the processes of its pool without Python's exit handlers."""
    pdc.shutdown()


@app.task
def order(item: str) -> str:
    """Order an item."""
    if item == "nothing":
        raise ValueError("nothing cannot be ordered")
    return f"ordered {item}"


@app.task(bind=True, max_retries=2)
def pay(self: Task[..., Any], amount: float) -> str:
    """Pay, which works at the third attempt."""
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return f"paid {amount}"


@app.task
def report(seconds: float) -> str:
    """Sleep that long."""
    time.sleep(seconds)
    return "done"
