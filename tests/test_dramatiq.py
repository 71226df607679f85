"""`pdc.dramatiq`: messages of every end, in threads, processes, greenlets and event loops."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from conftest import RedisServer, wait_until
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.middleware.prometheus import Prometheus
from helpers import shown
from queues import counts, environment, started_worker
from scripts.dramatiq_shop import shop

import pdc
import pdc.dramatiq
from pdc.jobs import workers
from pdc.jobs.tasks import _middleware_families


@pytest.fixture(autouse=True)
def ready(tmp_path: Path) -> None:
    """A storage. Real workers use both kinds."""
    pdc.setup(sqlite=tmp_path / "own.db", flush_interval=3600)


class Leave(Middleware):
    """Another middleware, which leaves out some messages, and fails others before their actor runs."""

    def before_process_message(self, _: dramatiq.Broker, message: Any) -> None:
        """Do as the first argument of the message says."""
        end = (*message.args, "")[0]
        if end in ("fail", "skip and fail"):
            message.fail()
        if end in ("skip", "skip and fail"):
            raise SkipMessage


@contextmanager
def worker(**options: Any) -> Iterator[StubBroker]:
    """A broker with a worker of two threads in this process."""
    broker = StubBroker()
    broker.add_middleware(Leave())
    shop(broker, **options)
    broker.emit_after("process_boot")
    running = dramatiq.Worker(broker, worker_timeout=10, worker_threads=2)
    running.start()
    try:
        yield broker
    finally:
        running.stop()
        broker.close()


def send(broker: dramatiq.Broker, end: str, seconds: float = 0.0, delay: int | None = None) -> None:
    """Send a message that ends like that, after a delay in milliseconds."""
    broker.actors["order"].send_with_options(args=(end, seconds), delay=delay)


def ended() -> dict[str, float]:
    """The messages by their ends."""
    return counts("dramatiq_tasks_total", "state")


def test_messages_of_every_end_are_counted() -> None:
    """Each attempt counts by its state; a retry is sent, received and ended again; dead letters are failed or rejected."""
    with worker() as broker:
        for end in ("success", "failure", "thrown", "skip", "fail", "skip and fail"):
            send(broker, end)
        broker.enqueue(dramatiq.Message(queue_name="default", actor_name="nobody", args=(), kwargs={}, options={}))
        states = {"success": 1.0, "retry": 1.0, "failure": 2.0, "skipped": 1.0, "rejected": 2.0}
        ends = {f"order {state}": count for state, count in states.items()}
        wait_until(lambda: counts("dramatiq_tasks_total", "task", "state") == {**ends, "nobody rejected": 1.0})
    assert counts("dramatiq_tasks_sent_total") == {"default order": 7.0, "default nobody": 1.0}
    assert counts("dramatiq_tasks_received_total") == {"default order": 7.0}
    assert counts("dramatiq_task_exceptions_total") == {"LookupError default order": 2.0, "KeyError default order": 1.0}
    assert counts("dramatiq_task_duration_seconds_count", "state") == states
    assert counts("dramatiq_task_queue_time_seconds_count") == {"default order": 7.0}
    assert counts("dramatiq_tasks_in_progress") == {}


def test_the_names_of_the_middleware_of_dramatiq() -> None:
    """The same messages under its names; a message that was processed shows all counts, those without at 0."""
    with worker(names="dramatiq") as broker:
        send(broker, "success")
        wait_until(lambda: counts("dramatiq_messages_total"))
        zeros = {sample for sample, value in shown("dramatiq_message_").items() if not value and "_total" in sample}
        assert {sample.partition("{")[0] for sample in zeros} == {
            f"dramatiq_message_{count}_total" for count in ("errors", "retries", "rejects")
        }
        for end in ("failure", "thrown", "skip", "fail"):
            send(broker, end)
        wait_until(lambda: counts("dramatiq_message_rejects_total") == {"order default": 3.0})
        assert shown("dramatiq_workers") == {"dramatiq_workers": 1.0}
    assert counts("dramatiq_messages_total") == {"order default": 6.0}
    assert counts("dramatiq_message_duration_milliseconds_count") == {"order default": 6.0}
    assert counts("dramatiq_message_errors_total") == {"order default": 3.0}
    assert counts("dramatiq_message_retries_total") == {"order default": 1.0}
    assert counts("dramatiq_messages_inprogress") == {}


def described(family: Any) -> tuple[str, object]:
    """The type and the labels of a family, and its buckets, if it has some."""
    return type(family).__name__, (family._labelnames, getattr(family, "_upper_bounds", None))


def test_the_middleware_of_dramatiq_has_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our families has the type, the labels and the buckets of its own. One of its own, of delays, is not there."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        monkeypatch.setenv(name, "")  # its own middleware sets them
    own = Prometheus()
    own.after_process_boot(StubBroker())
    expected = {family._name: described(family) for family in vars(own).values() if hasattr(family, "_labelnames")}
    del expected["dramatiq_delayed_messages_inprogress"]
    assert {family._name: described(family) for family in _middleware_families()} == expected


def test_unknown_names_are_refused() -> None:
    """The error has the allowed names."""
    with pytest.raises(ValueError, match="names must be one of pdc, dramatiq, got 'prometheus'"):
        pdc.dramatiq.instrument(StubBroker(), names="prometheus")


def test_the_time_in_the_queue_begins_when_a_message_is_due() -> None:
    """A message that waits for busy workers waits; one with a delay is sent once, and does not wait until then."""
    with worker() as broker:
        send(broker, "success", delay=500)
        wait_until(lambda: ended() == {"success": 1.0})
        assert counts("dramatiq_tasks_sent_total") == {"default order": 1.0}
        (before,) = counts("dramatiq_task_queue_time_seconds_sum").values()
        assert before < 0.4
        for _ in range(3):
            send(broker, "success", 0.3)
        wait_until(lambda: ended() == {"success": 4.0})
    (after,) = counts("dramatiq_task_queue_time_seconds_sum").values()
    assert 0.2 < after - before < 0.8


def test_a_message_is_in_progress_while_it_is_processed() -> None:
    """The gauges show one message and one worker, and then none; an actor in an event loop counts like others."""
    with worker() as broker:
        broker.actors["cook"].send(0.3)
        wait_until(lambda: counts("dramatiq_tasks_in_progress") == {"async cook": 1.0})
        assert shown("dramatiq_workers") == {"dramatiq_workers": 1.0}
        assert counts("dramatiq_queue_workers") == {"default": 1.0, "async": 1.0}
        wait_until(lambda: ended() == {"success": 1.0})
    assert (counts("dramatiq_tasks_in_progress"), shown("dramatiq_workers")) == ({}, {"dramatiq_workers": 0.0})


def test_a_message_that_exceeds_its_time_limit_is_a_failure() -> None:
    """The exception of the limit counts, as it would in any middleware."""
    with worker() as broker:
        broker.actors["order"].send_with_options(args=("success", 20), time_limit=10)
        wait_until(lambda: ended() == {"retry": 1.0, "failure": 1.0})
    assert counts("dramatiq_task_exceptions_total", "exception") == {"TimeLimitExceeded": 2.0}


@pytest.mark.parametrize("names", ["pdc", "dramatiq"])
def test_a_message_that_sets_pdc_up_is_never_less_than_none_in_progress(names: str, tmp_path: Path) -> None:
    """Its start could not be shown, so its end takes nothing off; it counts."""
    pdc.shutdown()
    with worker(names=names) as broker:

        @dramatiq.actor(broker=broker)
        def late() -> None:
            pdc.setup(sqlite=tmp_path / "late.db", flush_interval=3600)

        late.send()
        broker.join("default", timeout=10_000)
        wait_until(lambda: counts("dramatiq_task_duration_seconds_count") or counts("dramatiq_messages_total"))
    assert (counts("dramatiq_tasks_in_progress"), counts("dramatiq_messages_inprogress")) == ({}, {})


@pytest.mark.parametrize(("due", "waits"), [("soon", 1), (math.nan, 0), (-math.inf, 0)])
def test_an_unreadable_time_in_a_message_is_no_time(due: object, waits: int) -> None:
    """Such a message counts as any other. It waits since it was sent, or has no time in the queue."""
    with worker() as broker:
        broker.actors["order"].send_with_options(args=("success",), pdc_due=due)
        wait_until(lambda: ended() == {"success": 1.0})
    assert counts("dramatiq_tasks_received_total") == {"default order": 1.0}
    assert sum(counts("dramatiq_task_queue_time_seconds_count").values()) == waits
    assert sum(counts("dramatiq_task_queue_time_seconds_sum").values()) < 10
    assert counts("dramatiq_tasks_in_progress") == {}


class RabbitLike(StubBroker):
    """A broker with the public methods of the one for RabbitMQ, which has a connection for each thread."""

    connections = 0

    @property
    def connection(self) -> int:
        """The connection of the thread."""
        type(self).connections = 1
        return self.connections

    @connection.deleter
    def connection(self) -> None:
        type(self).connections = 0

    def get_queue_message_counts(self, queue_name: str) -> tuple[int, int, int]:
        """The messages that wait, that have a delay, and that are dead."""
        assert self.connection
        return self.queues[queue_name].qsize(), 0, 0


def test_the_worker_shows_the_length_of_its_queues(monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> None:
    """Messages that wait count, those with a delay do not, and the worker asks no more after its end."""
    monkeypatch.setattr(workers, "LENGTH_SECONDS", 0.02)
    for broker in (StubBroker(), RabbitLike(), RedisBroker(url=redis_server.url)):
        shop(broker, queue_length=True)
        for delay in (None, None, None, 60_000):
            send(broker, "success", delay=delay)
        running = dramatiq.Worker(broker)
        running.consumers = {"default": None, "default.DQ": None}  # type: ignore[dict-item]  # as if it had started
        broker.emit_after("worker_boot", running)
        wait_until(lambda: counts("dramatiq_queue_messages") == {"default": 3.0})
        broker.flush_all()
        wait_until(lambda: list(shown("dramatiq_queue_messages{").values()) == [0.0])
        broker.emit_after("worker_shutdown", running)
        wait_until(lambda: "pdc-queues" not in [thread.name for thread in threading.enumerate()])
        broker.close()
    assert RabbitLike.connections == 0


@pytest.mark.parametrize("others", [[], None])
def test_a_second_call_for_a_broker_does_nothing(others: list[Middleware] | None) -> None:
    """A broker has one middleware of pdc, before all others, which change the fate of a message."""
    broker = StubBroker(middleware=others)
    before = [*broker.middleware]
    for _ in range(2):
        pdc.dramatiq.instrument(broker)
    first, *rest = broker.middleware
    assert (type(first).__module__, rest) == ("pdc.dramatiq", before)


def test_a_message_is_processed_where_it_cannot_be_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a storage the actors run as ever, and the log has one line for each hook."""
    pdc.shutdown()
    monkeypatch.setattr(workers, "_LOGGED", set())
    with worker() as broker:
        for _ in range(2):
            send(broker, "success")
        broker.join("default", timeout=10_000)
    messages = [record.getMessage() for record in caplog.records if record.name == "pdc"]
    assert len(messages) == len(set(messages)) > 2
    assert all("a task could not be counted (pdc.dramatiq." in message for message in messages)
    assert [record for record in caplog.records if "Unexpected failure" in record.getMessage()] == []


def sending(storage: dict[str, Any], variables: dict[str, str]) -> RedisBroker:
    """An instrumented broker of this process, for workers with these variables."""
    pdc.setup(**storage)
    broker = RedisBroker(url=variables["BROKER"])
    shop(broker)
    return broker


COMMAND = ["dramatiq_shop", "--processes", "2", "--threads", "4"]


@pytest.mark.long
@pytest.mark.parametrize(
    "program",
    [["dramatiq"], pytest.param(["gevent.monkey", "--module", "dramatiq"], marks=pytest.mark.package("gevent"))],
    ids=["threads", "gevent"],
)
def test_worker_processes_send_what_they_count(program: list[str], tmp_path: Path, redis_server: RedisServer) -> None:
    """Messages at once count once at the end of their process, though no interval passes."""
    storage: dict[str, Any] = {"sqlite": str(tmp_path / "metrics.db")}
    variables = {**environment(storage, redis_server), "PDC_FLUSH_INTERVAL": "600", "PDC_JOURNAL": "false"}
    broker = sending(storage, variables)
    for _ in range(8):
        send(broker, "success", 0.3)
    send(broker, "failure")
    broker.actors["cook"].send(0.1)
    with started_worker([*program, *COMMAND], variables, tmp_path) as process:
        broker.join("default", timeout=30_000)
        broker.join("async", timeout=30_000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert counts("dramatiq_tasks_total", "task", "state") == {
        "order success": 8.0,
        "order retry": 1.0,
        "order failure": 1.0,
        "cook success": 1.0,
    }
    assert counts("dramatiq_tasks_sent_total") == {"default order": 10.0, "async cook": 1.0}
    assert counts("dramatiq_tasks_received_total") == {"default order": 10.0, "async cook": 1.0}
    assert counts("dramatiq_tasks_in_progress") == {}
    log = (tmp_path / "worker.log").read_text()
    assert ("could not" in log, "Unexpected failure" in log) == (False, False)


@pytest.mark.long
def test_a_killed_worker_is_gone_after_its_lease(storage: dict[str, Any], tmp_path: Path, redis_server: RedisServer) -> None:
    """Messages of killed processes are no more in progress 15 s later; what ended before counts."""
    variables = environment(storage, redis_server)
    broker = sending(storage, variables)
    with started_worker(["dramatiq", *COMMAND], variables, tmp_path) as process:
        send(broker, "success")
        send(broker, "success", 60)
        wait_until(lambda: counts("dramatiq_tasks_in_progress") and ended(), 30)
        wait_until(lambda: shown("dramatiq_workers") == {"dramatiq_workers": 2.0}, 30)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        begun = time.monotonic()
        wait_until(
            lambda: not counts("dramatiq_tasks_in_progress") and shown("dramatiq_workers")["dramatiq_workers"] == 0.0, 30
        )
        assert time.monotonic() - begun < 20
    assert ended() == {"success": 1.0}
