"""`pdc.celery`: tasks of every end, in workers of every pool, with the names of pdc and of celery-exporter."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.utils.dispatch import Signal
from celery.utils.nodenames import worker_direct
from conftest import RedisServer, wait_until
from helpers import shown
from kombu import Exchange, Queue
from kombu.common import Broadcast
from queues import counts, environment, started_worker
from scripts.celery_shop import shop

import pdc
import pdc.celery
from pdc.jobs import workers

NUMBERS = count()


@pytest.fixture
def ready(tmp_path: Path) -> None:
    """A storage. Real workers use both kinds, here and in `test_jobs.py`."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)


@pytest.fixture(autouse=True)
def receivers() -> Iterator[None]:
    """Leave no receiver of Celery's signals behind."""
    sources = [signal for signal in vars(signals).values() if isinstance(signal, Signal)]
    before = [[*source.receivers] for source in sources]
    instrumented = [*pdc.celery._INSTRUMENTED]
    yield
    for source, those in zip(sources, before, strict=True):
        source.receivers[:] = those
    pdc.celery._INSTRUMENTED[:] = instrumented


@contextmanager
def worker(pool: str = "solo", **options: Any) -> Iterator[Celery]:
    """An application with a worker in a thread of this process."""
    app = shop(f"memory://{next(NUMBERS)}", **options)
    with start_worker(app, pool=pool, loglevel="warning", perform_ping_check=False, shutdown_timeout=20) as running:
        consumer = running.consumer  # type: ignore[attr-defined]  # it is there once it has started
        signals.worker_ready.send(sender=consumer)  # this kind of worker says neither that it is ready, nor that it ends
        yield app
        signals.worker_shutdown.send(sender=consumer)
        threading.Timer(0.1, app.control.ping, kwargs={"timeout": 0}).start()  # it looks for its end after a message


def send(app: Celery, end: str, **options: Any) -> None:
    """Send a task that ends like that."""
    app.tasks["order"].apply_async((end,), **options)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_tasks_of_every_end_are_counted(pool: str) -> None:
    """Each attempt counts by its state; a retry is sent, received and ended again; an expired task is revoked."""
    with worker(pool) as app:
        for end in ("success", "failure", "retry", "reject", "ignore"):
            send(app, end)
        send(app, "success", expires=datetime.now(timezone.utc) - timedelta(1))
        states = {"success": 2.0, "failure": 1.0, "retry": 1.0, "rejected": 1.0, "ignored": 1.0, "revoked": 1.0}
        wait_until(lambda: counts("celery_tasks_total", "state") == states)
    assert counts("celery_tasks_sent_total") == {"celery order": 7.0}
    assert counts("celery_tasks_received_total") == {"celery order": 6.0}
    assert counts("celery_task_exceptions_total") == {"LookupError celery order": 1.0, "TimeoutError celery order": 1.0}
    del states["revoked"]
    assert counts("celery_task_duration_seconds_count", "state") == states


@pytest.mark.usefixtures("ready")
def test_the_names_of_celery_exporter() -> None:
    """The same tasks under the names of the exporter; a task that was received shows all events, those without at 0."""
    with worker(names="celery-exporter") as app:
        send(app, "success")
        wait_until(lambda: counts("celery_task_succeeded_total"))
        zeros = {sample for sample, value in shown("celery_task_").items() if not value and "_total" in sample}
        events = {"rejected", "revoked", "retried"}
        labels = '{name="order",queue_name="celery"}'
        assert zeros == {
            *(f"celery_task_{event}_total{labels}" for event in events),
            'celery_task_failed_total{exception="",name="order",queue_name="celery"}',
        }
        for end in ("failure", "retry", "reject"):
            send(app, end)
        send(app, "success", expires=datetime.now(timezone.utc) - timedelta(1))
        wait_until(lambda: counts("celery_task_revoked_total") and counts("celery_task_succeeded_total", "name")["order"] == 2)
        assert list(counts("celery_worker_up").values()) == [1.0]
        assert counts("celery_active_worker_count") == {"celery": 1.0}
    found = {event: counts(f"celery_task_{event}_total") for event in ("sent", "received", "started", "failed", *events)}
    assert found == {
        "sent": {"order celery": 6.0},
        "received": {"order celery": 5.0},
        "started": {"order celery": 5.0},
        "failed": {"LookupError order celery": 1.0},
        "rejected": {"order celery": 1.0},
        "revoked": {"order celery": 1.0},
        "retried": {"order celery": 1.0},
    }
    assert counts("celery_task_runtime_count") == {"order celery": 2.0}
    assert sum(counts("celery_worker_tasks_active").values()) == 0.0
    assert not [sample for sample in shown("celery_task_") if "hostname" in sample]


@pytest.mark.usefixtures("ready")
def test_the_time_in_the_queue_begins_when_a_task_is_due() -> None:
    """A task that waits for a busy worker waits, one that is sent for later does not until then."""
    with worker() as app:
        app.tasks["order"].delay("success", 0.3)
        app.tasks["order"].apply_async(("success",), countdown=1)
        wait_until(lambda: counts("celery_tasks_total", "state") == {"success": 2.0})
        app.tasks["order"].delay("success", 0.3)
        send(app, "success")
        wait_until(lambda: counts("celery_tasks_total", "state") == {"success": 4.0})
    (total,) = counts("celery_task_queue_time_seconds_sum").values()
    assert 0.2 < total < 1.0


@pytest.mark.usefixtures("ready")
def test_a_task_is_in_progress_while_it_runs() -> None:
    """The gauges show one task and one worker, and then none."""
    with worker() as app:
        app.tasks["order"].delay("success", 0.5)
        wait_until(lambda: counts("celery_tasks_in_progress") == {"celery order": 1.0})
        assert (shown("celery_workers"), counts("celery_queue_workers")) == ({"celery_workers": 1.0}, {"celery": 1.0})
    assert counts("celery_tasks_in_progress") == {}


class Consumer(NamedTuple):
    """A worker that only says that it is ready, and that it ends."""

    app: Celery
    hostname: str


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(("names", "name"), [("pdc", "celery_queue_messages"), ("celery-exporter", "celery_queue_length")])
def test_the_worker_shows_the_length_of_its_queues(monkeypatch: pytest.MonkeyPatch, names: str, name: str) -> None:
    """Messages that wait count, an empty queue has none, and the worker asks no more after its end."""
    monkeypatch.setattr(workers, "LENGTH_SECONDS", 0.02)
    app = shop(f"memory://{next(NUMBERS)}", names=names, queue_length=True)
    consumer = Consumer(app, "w1@host")
    for _ in range(3):
        send(app, "success")
    signals.worker_ready.send(sender=consumer)
    wait_until(lambda: counts(name) == {"celery": 3.0})
    app.control.purge()
    wait_until(lambda: list(shown(f"{name}{{").values()) == [0.0])
    signals.worker_shutdown.send(sender=consumer)
    wait_until(lambda: "pdc-queues" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.usefixtures("ready")
def test_queues_have_few_names() -> None:
    """A message has the declared queue of its exchange and key; queues of one worker have one name together."""
    app = shop("memory://")
    app.conf.task_queues = [
        Queue("orders", Exchange("shop"), routing_key="order"),
        Queue("bills", Exchange("shop"), routing_key="bill"),
        Queue("feed", Exchange("feeds", type="topic"), routing_key="feed.#"),
        Broadcast("all"),
        worker_direct("w1@host"),
    ]
    sent: list[tuple[dict[str, Any], str]] = [
        ({"queue": "orders"}, "orders"),
        ({"queue": "bills"}, "bills"),
        ({"exchange": "shop", "routing_key": "order"}, "orders"),
        ({"exchange": "shop", "routing_key": "unknown"}, "<other>"),
        ({"exchange": "unknown", "routing_key": "order"}, "<other>"),
        ({"exchange": "feeds", "routing_key": "feed.user.4711"}, "feed"),
        ({"queue": "all"}, "all"),
        ({"queue": worker_direct("w1@host")}, "<direct>"),
    ]
    for options, _ in sent:
        send(app, "success", **options)
    expected = [queue for _, queue in sent]
    assert counts("celery_tasks_sent_total", "queue") == {queue: float(expected.count(queue)) for queue in expected}


@pytest.mark.usefixtures("ready")
def test_only_instrumented_applications_count() -> None:
    """Tasks of another application in the same process change nothing, and a second call for one application neither."""
    app, other = shop("memory://"), Celery("other", set_as_current=False)
    pdc.celery.instrument(app, names="celery-exporter")

    @other.task(name="other", shared=False)
    def run() -> None:
        """Do nothing."""

    run.apply()
    app.tasks["order"].apply(("success",))
    assert counts("celery_tasks_total", "task") == {"order": 1.0}
    assert shown("celery_task_succeeded") == {}


def test_unknown_names_are_refused() -> None:
    """The error has the allowed names."""
    with pytest.raises(ValueError, match="names must be one of pdc, celery-exporter, got 'flower'"):
        pdc.celery.instrument(Celery("shop", set_as_current=False), names="flower")


def test_a_task_runs_where_it_cannot_be_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a storage the tasks run as ever, and the log has one line for each signal."""
    monkeypatch.setattr(workers, "_LOGGED", set())
    with worker() as app:
        results = [app.tasks["order"].delay("success") for _ in range(2)]
        assert [result.get(timeout=10) for result in results] == ["success", "success"]
    messages = [record.getMessage() for record in caplog.records if record.name == "pdc"]
    assert len(messages) == len(set(messages)) > 2
    assert all("a task could not be counted (pdc.celery._Receivers." in message for message in messages)


@pytest.mark.parametrize("names", ["pdc", "celery-exporter"])
def test_a_task_that_sets_pdc_up_is_never_less_than_none_in_progress(names: str, tmp_path: Path) -> None:
    """Its start could not be shown, so its end takes nothing off; it counts, also in eager mode."""
    app = shop("memory://", names=names)

    @app.task(shared=False)
    def late() -> None:
        pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)

    assert late.apply().successful()
    assert (counts("celery_tasks_in_progress"), counts("celery_worker_tasks_active")) == ({}, {})
    assert [*counts("celery_tasks_total").values(), *counts("celery_task_succeeded_total").values()] == [1.0]


def started(pool: str, variables: dict[str, str], folder: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker in a process of its own."""
    command = ["celery", "-A", "celery_shop", "worker", "--pool", pool, "--concurrency", "2"]
    return started_worker([*command, "--without-mingle", "--without-gossip"], variables, folder)


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.package("gevent"))])
def test_tasks_at_once_count_in_processes_and_greenlets(pool: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """Each is in progress, and counts once; the queue has its length, and the worker goes at its end."""
    storage: dict[str, Any] = {"sqlite": str(tmp_path / "metrics.db")}
    variables = environment(storage, redis_server)
    pdc.setup(**storage)
    app = shop(variables["BROKER"])
    for _ in range(3):
        app.tasks["order"].delay("success", 0.7)
    send(app, "failure")
    with started(pool, variables, tmp_path) as process:
        wait_until(lambda: counts("celery_tasks_in_progress") == {"celery order": 2.0}, 30)
        assert shown("celery_workers") == {"celery_workers": 1.0}
        wait_until(lambda: "celery_queue_messages{" in str(shown("celery_queue")), 30)
        wait_until(lambda: counts("celery_tasks_total", "state") == {"success": 3.0, "failure": 1.0}, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert (shown("celery_workers").get("celery_workers"), counts("celery_tasks_in_progress")) in [(0.0, {}), (None, {})]
    assert counts("celery_task_duration_seconds_count", "state") == {"success": 3.0, "failure": 1.0}
    assert "could not" not in (tmp_path / "worker.log").read_text()


@pytest.mark.long
def test_a_killed_worker_is_gone_after_its_lease(storage: dict[str, Any], tmp_path: Path, redis_server: RedisServer) -> None:
    """A worker that is killed with its pool, amid tasks, is no more in progress 15 s later; what ended before counts."""
    variables = environment(storage, redis_server)
    pdc.setup(**storage)
    app = shop(variables["BROKER"])
    with started("prefork", variables, tmp_path) as process:
        send(app, "success")
        app.tasks["order"].delay("success", 60)
        wait_until(lambda: counts("celery_tasks_in_progress") and counts("celery_tasks_total"), 30)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        begun = time.monotonic()
        wait_until(lambda: not counts("celery_tasks_in_progress") and shown("celery_workers")["celery_workers"] == 0.0, 30)
        assert time.monotonic() - begun < 20
    assert counts("celery_tasks_total", "state") == {"success": 1.0}
