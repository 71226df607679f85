"""`pdc.rq`: jobs of every end, in workers of every class, and in their work-horses."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer, wait_until
from helpers import shown
from queues import counts, environment, started_worker
from rq import Queue, Repeat, Retry, SimpleWorker
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.scheduler import RQScheduler
from scripts.rq_shop import order

import pdc
import pdc.rq
from pdc.jobs import workers

TASK = order.__module__ + ".order"


@pytest.fixture(autouse=True)
def methods() -> Iterator[None]:
    """Give RQ its own methods back, and the process its handlers of signals."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in pdc.rq._METHODS if hasattr(owner, name)]
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for owner, name, method in before:
        setattr(owner, name, method)
    for number, handler in handlers:
        signal.signal(number, handler)
    pdc.rq._WRAPPED.clear()
    pdc.rq._WORKER.queue_length = False


@pytest.fixture
def connection(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """The Redis of the jobs."""
    with redis.Redis.from_url(redis_server.url.removesuffix("/0") + "/2") as client:
        yield client


@pytest.fixture
def queue(connection: redis.Redis, tmp_path: Path) -> Queue:
    """A queue of this process, which is instrumented and has a storage. Real workers use both kinds of storages."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    pdc.rq.instrument()
    return Queue("default", connection=connection)


class Worker(SimpleWorker):
    """A worker that needs no second at its end, as it hears no commands."""

    def subscribe(self) -> None:
        """Subscribe to nothing."""

    def unsubscribe(self) -> None:
        """Unsubscribe from nothing."""


def work(queue: Queue) -> SimpleWorker:
    """Perform the jobs of the queue in this process."""
    worker = Worker([queue], connection=queue.connection)
    worker.work(burst=True, logging_level="CRITICAL")
    return worker


def test_jobs_of_every_end_are_counted(queue: Queue) -> None:
    """Each attempt counts by its state; a retry is sent, received and ended again; the last one is a failure."""
    queue.enqueue(order, "success")
    queue.enqueue(order, "failure")
    queue.enqueue(order, "failure", retry=Retry(max=1))
    queue.enqueue(order, "retry")
    work(queue)
    states = {"success": 1.0, "failure": 3.0, "retry": 2.0}
    assert counts("rq_tasks_total", "state") == states
    assert counts("rq_task_duration_seconds_count", "state") == states
    assert counts("rq_tasks_sent_total") == {f"default {TASK}": 6.0}
    assert counts("rq_tasks_received_total") == {f"default {TASK}": 6.0}
    assert counts("rq_task_exceptions_total") == {f"LookupError default {TASK}": 3.0}
    assert counts("rq_task_queue_time_seconds_count") == {f"default {TASK}": 6.0}


def test_a_job_is_in_progress_while_it_runs(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauges show one job and one worker, and then none."""
    seen: list[Any] = []
    monkeypatch.setattr(
        Job, "perform", lambda _: seen.append((counts("rq_tasks_in_progress"), shown("rq_workers"), counts("rq_queue_workers")))
    )
    queue.enqueue(order)
    work(queue)
    assert seen == [({f"default {TASK}": 1.0}, {"rq_workers": 1.0}, {"default": 1.0})]
    assert (counts("rq_tasks_in_progress"), shown("rq_workers")) == ({}, {"rq_workers": 0.0})


def test_the_time_in_the_queue_begins_where_a_job_can_be_performed(queue: Queue) -> None:
    """A job that waits for a busy worker waits; one that depends on another does not until that one has ended."""
    first = queue.enqueue(order, "success", 0.3)
    queue.enqueue(order)
    queue.enqueue(order, depends_on=first)
    work(queue)
    assert counts("rq_tasks_sent_total") == {f"default {TASK}": 3.0}
    (total,) = counts("rq_task_queue_time_seconds_sum").values()
    assert 0.25 < total < 0.6


def test_a_scheduled_job_is_sent_once(queue: Queue) -> None:
    """The scheduler that moves it into its queue sends nothing."""
    queue.enqueue_in(timedelta(seconds=-1), order)
    scheduler = RQScheduler([queue], connection=queue.connection)
    scheduler.acquire_locks()
    assert counts("rq_tasks_sent_total") == {f"default {TASK}": 1.0}
    scheduler.enqueue_scheduled_jobs()
    work(queue)
    assert counts("rq_tasks_total", "state") == {"success": 1.0}
    assert counts("rq_tasks_sent_total") == {f"default {TASK}": 1.0}


def test_a_job_that_its_worker_has_left_behind_is_a_failure(queue: Queue) -> None:
    """A worker that finds it counts it, by the state that RQ gives it."""
    worker = work(queue)
    for retry in (None, Retry(max=1)):
        job = queue.enqueue(order, retry=retry)
        worker.prepare_execution(job)
        job.set_status(JobStatus.STARTED)
    StartedJobRegistry(queue=queue).cleanup(math.inf, exception_handlers=worker._exc_handlers)
    assert counts("rq_tasks_total", "state") == {"failure": 1.0, "retry": 1.0}
    assert counts("rq_task_exceptions_total", "exception") == {"AbandonedJobError": 2.0}


def test_a_transaction_that_rq_repeats_sends_its_jobs_once(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does where a dependent comes in between; a job that repeats at once is sent once for each time that it is received."""
    succeed: Any = Job._handle_success
    left = [1]

    def handle(job: Job, *args: Any, **kwargs: Any) -> None:
        if left:
            queue.connection.sadd(job.dependents_key, left.pop())
        succeed(job, *args, **kwargs)

    monkeypatch.setattr(Job, "_handle_success", handle)
    queue.enqueue(order, repeat=Repeat(times=2, interval=0))
    work(queue)
    assert left == []
    assert counts("rq_tasks_sent_total") == counts("rq_tasks_received_total") != {}  # RQ before 3 counts a repetition off


def test_a_worker_that_works_again_counts_once(queue: Queue) -> None:
    """A worker in burst mode may; its handler of exceptions is there once."""
    worker = work(queue)
    worker.work(burst=True, logging_level="CRITICAL")
    job = queue.enqueue(order)
    worker.prepare_execution(job)
    job.set_status(JobStatus.STARTED)
    StartedJobRegistry(queue=queue).cleanup(math.inf, exception_handlers=worker._exc_handlers)
    assert counts("rq_tasks_total", "state") == {"failure": 1.0}


def test_workers_of_one_process_are_shown_apart(queue: Queue) -> None:
    """Each counts until its own end; a child of the process that runs into the end of one changes nothing."""
    first: SimpleWorker = Worker([queue], connection=queue.connection)
    second: SimpleWorker = Worker([queue], connection=queue.connection)
    first.register_birth()
    second.register_birth()
    assert (shown("rq_workers"), counts("rq_queue_workers")) == ({"rq_workers": 2.0}, {"default": 2.0})
    second.register_death()
    assert (shown("rq_workers"), counts("rq_queue_workers")) == ({"rq_workers": 1.0}, {"default": 1.0})
    live = pdc.rq._WORKER._shown
    live[first.name] = live[first.name]._replace(pid=os.getppid())
    first.register_death()
    assert shown("rq_workers") == {"rq_workers": 1.0}


def set_up(path: str) -> None:
    """Set pdc up, as a module that only the work-horse imports."""
    pdc.setup(sqlite=path, flush_interval=3600)


def test_a_job_that_sets_pdc_up_is_never_less_than_none_in_progress(connection: redis.Redis, tmp_path: Path) -> None:
    """Its start could not be shown, so its end takes nothing off; it counts."""
    pdc.rq.instrument()
    queue = Queue("default", connection=connection)
    queue.enqueue(set_up, str(tmp_path / "metrics.db"))
    work(queue)
    assert counts("rq_tasks_total", "state") == {"success": 1.0}
    assert counts("rq_tasks_in_progress") == {}


def test_a_job_that_cannot_be_read_is_a_failure(queue: Queue) -> None:
    """Its name is unknown, and its worker goes on."""
    job = queue.enqueue(order)
    queue.connection.hset(job.key, "data", b"nothing")
    queue.enqueue(order)
    work(queue)
    assert counts("rq_tasks_total") == {"default failure <unreadable>": 1.0, f"default success {TASK}": 1.0}


def test_a_job_that_cannot_be_prepared_is_a_failure(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no time at which it started, as where Redis is lost, and no duration."""
    monkeypatch.setattr(Job, "prepare_for_execution", prepare)
    queue.enqueue(order)
    work(queue)
    assert counts("rq_tasks_total", "state") == {"failure": 1.0}
    assert counts("rq_task_exceptions_total", "exception") == {"TimeoutError": 1.0}
    assert counts("rq_task_duration_seconds_count") == {}


def prepare(*_: object, **__: object) -> None:
    """Lose the connection."""
    raise TimeoutError


def test_the_worker_shows_the_length_of_its_queues(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that wait count, an empty queue has none, and the worker asks no more after its end."""
    monkeypatch.setattr(workers, "LENGTH_SECONDS", 0.02)
    pdc.rq.instrument(queue_length=True)
    for _ in range(3):
        queue.enqueue(order)
    worker: SimpleWorker = Worker([queue], connection=queue.connection)
    worker.register_birth()
    wait_until(lambda: counts("rq_queue_messages") == {"default": 3.0})
    queue.empty()
    wait_until(lambda: list(shown("rq_queue_messages{").values()) == [0.0])
    worker.register_death()
    wait_until(lambda: "pdc-queues" not in [thread.name for thread in threading.enumerate()])


def test_a_second_call_counts_nothing_twice(queue: Queue) -> None:
    """The module of the jobs may call `instrument`, and that of the worker, too."""
    pdc.rq.instrument()
    queue.enqueue(order)
    work(queue)
    assert counts("rq_tasks_total", "state") == {"success": 1.0}


def test_a_job_runs_where_it_cannot_be_counted(
    connection: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a storage the jobs run as ever, and the log has one line for each hook."""
    monkeypatch.setattr(workers, "_LOGGED", set())
    pdc.rq.instrument()
    queue = Queue("default", connection=connection)
    jobs = [queue.enqueue(order) for _ in range(2)]
    work(queue)
    assert [job.get_status() for job in jobs] == [JobStatus.FINISHED] * 2
    messages = [record.getMessage() for record in caplog.records if record.name == "pdc"]
    assert len(messages) == len(set(messages)) > 2
    assert all("a task could not be counted (pdc.rq." in message for message in messages)


def sending(connection: redis.Redis, storage: dict[str, Any]) -> Callable[..., Job]:
    """Instrument this process, and return a function that sends a job to a worker of its own process."""
    pdc.setup(**storage)
    pdc.rq.instrument()
    queue = Queue("default", connection=connection)
    return lambda *args, **options: queue.enqueue("rq_shop.order", *args, **options)


def test_work_horses_send_what_they_count(tmp_path: Path, redis_server: RedisServer, connection: redis.Redis) -> None:
    """Every end counts once, also those of killed work-horses and stopped jobs, without an interval and a journal."""
    storage: dict[str, Any] = {"redis": redis_server.url, "redis_prefix": "test"}
    send = sending(connection, storage)
    for end in ("success", "failure", "kill"):
        send(end)
    send("failure", retry=Retry(max=1))
    job = send("success", 60)
    variables = {**environment(storage, redis_server), "PDC_FLUSH_INTERVAL": "600", "PDC_JOURNAL": "false"}
    with started_worker(["rq.cli", "worker", "-c", "rq_shop", "--max-jobs", "6"], variables, tmp_path) as process:
        wait_until(lambda: job.get_status() == JobStatus.STARTED, 30)
        send_stop_job_command(connection, job.id)
        assert process.wait(30) == 0
    assert counts("rq_tasks_total", "state") == {"success": 1.0, "failure": 3.0, "retry": 1.0, "stopped": 1.0}
    assert counts("rq_task_exceptions_total", "exception") == {"LookupError": 3.0, "<killed>": 1.0}
    assert counts("rq_task_duration_seconds_count", "state") == {"success": 1.0, "failure": 2.0, "retry": 1.0}
    assert counts("rq_task_queue_time_seconds_count") == {"default rq_shop.order": 4.0}
    assert "could not" not in (tmp_path / "worker.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "knows_starts"),
    [
        (["worker-pool", "-c", "rq_shop", "--num-workers", "2"], True),
        (["worker", "-c", "rq_shop", "--worker-class", "rq.worker.SpawnWorker"], False),
        (["worker", "-c", "rq_shop", "--worker-class", "rq.worker.SimpleWorker"], True),
        (["worker", "-c", "rq_shop", "--with-scheduler"], True),
        (["worker"], False),
    ],
    ids=["pool", "spawn", "simple", "scheduler", "not instrumented"],
)
def test_workers_of_every_kind_count(
    arguments: list[str],
    knows_starts: bool,
    storage: dict[str, Any],
    tmp_path: Path,
    redis_server: RedisServer,
    connection: redis.Redis,
) -> None:
    """Every end counts once. A work-horse that first hears of pdc from the module of its job knows no start."""
    send = sending(connection, storage)
    for end in ("success", "failure", "success"):
        send(end)
    send("failure", retry=Retry(max=1))
    variables = environment(storage, redis_server)
    with started_worker(
        ["rq.cli", *arguments, "--burst", *(() if "-c" in arguments else ("--url", variables["BROKER"]))], variables, tmp_path
    ) as process:
        assert process.wait(60) == 0
    wait_until(lambda: counts("rq_tasks_total", "state") == {"success": 2.0, "failure": 2.0, "retry": 1.0}, 30)
    assert counts("rq_task_duration_seconds_count", "state") == {"success": 2.0, "failure": 2.0, "retry": 1.0}
    assert counts("rq_tasks_sent_total") == {"default rq_shop.order": 5.0}
    assert counts("rq_tasks_received_total") == ({"default rq_shop.order": 5.0} if knows_starts else {})
    assert "could not" not in (tmp_path / "worker.log").read_text()


@pytest.mark.long
def test_a_killed_worker_is_gone_after_its_lease(
    storage: dict[str, Any], tmp_path: Path, redis_server: RedisServer, connection: redis.Redis
) -> None:
    """A worker that is killed with its work-horse is no more in progress 15 s later; what ended before counts."""
    send = sending(connection, storage)
    with started_worker(["rq.cli", "worker", "-c", "rq_shop"], environment(storage, redis_server), tmp_path) as process:
        send("success")
        job = send("success", 60)
        wait_until(lambda: counts("rq_tasks_in_progress") and counts("rq_tasks_total"), 30)
        (horse,) = (int(line) for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        os.kill(process.pid, signal.SIGKILL)  # first: it would count the end of its work-horse
        os.kill(horse, signal.SIGKILL)
        begun = time.monotonic()
        wait_until(lambda: not counts("rq_tasks_in_progress") and shown("rq_workers")["rq_workers"] == 0.0, 30)
        assert time.monotonic() - begun < 20
    assert counts("rq_tasks_total", "state") == {"success": 1.0}
    assert job.get_status() == JobStatus.STARTED
