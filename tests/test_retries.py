"""Batches that fail: retries, outages, and metrics that a storage refuses."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
from conftest import wait_until
from prometheus_client import CollectorRegistry
from recorder import Recorder, fail

import pdc
from pdc.delivery import Buffer, flusher, outcomes
from pdc.delivery.health import NAMES
from pdc.storage import Outcome, StorageError


def test_a_batch_without_a_reply_is_sent_again_unchanged(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """After an error the same batch goes first, with its writer and sequence; later updates follow in another batch."""
    recorder.batches.clear()
    recorder.during = fail
    gauge.set(1)
    for _ in range(5):
        counter.inc()
        gauge.inc()
        gauge.set(7)
        gauge.dec(2)
    with pytest.raises(StorageError, match="the storage is down"):
        buffer.flush()
    recorder.during = lambda: None
    buffer.flush()
    *failed, again, rest = recorder.batches
    assert all(batch is again for batch in failed)
    assert rest.sequence == again.sequence + 1
    recorder.batches = [again, rest]
    assert recorder.sent("_total") == [("add", 5.0)]
    assert recorder.sent("") == [("set", 1.0), ("set", 5.0)]


def test_an_interrupted_batch_is_sent_again(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """Ctrl-C in an update is raised, and the batch in flight is sent again unchanged."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    recorder.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        counter.inc()
    recorder.during = lambda: None
    counter.inc()
    assert recorder.batches[-3] is recorder.batches[-2]
    assert recorder.sent("_total")[-1:] == [("add", 1.0)]
    buffer.flush()


def test_tries_become_rare_and_differ_between_processes(monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry) -> None:
    """The pauses between tries double up to 15 s. Each is cut at random by up to a half, so that no two processes agree."""
    now = 1000.0
    tries: list[list[float]] = []

    def fail_now() -> None:
        tries[-1].append(now)
        fail()

    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name in ("first", "second"):
        recorder, buffer = Recorder(), Buffer()
        buffer.attach(recorder, 0.0, None, thread=threading.get_ident())
        counter = type("Counter", (pdc.Counter,), {"buffer": buffer})(name, "Help.", registry=registry)
        tries.append([])
        recorder.during = fail_now
        for _ in range(6000):
            now += 0.02
            counter.inc()
        recorder.during = lambda: None
        buffer.detach()
    first, second = ([after - before for before, after in pairwise(times)] for times in tries)
    for pauses in (first, second):
        assert len(pauses) > 10
        for number, pause in enumerate(pauses):
            most = min(0.25 * 2**number, 15.0)
            assert most / 2 <= pause <= most + 0.03
    assert first[4:9] != pytest.approx(second[4:9], abs=0.02)


def test_an_outage_is_bounded_by_series_and_logged_once(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """While the storage is down, updates neither raise nor accumulate; the log has one line for each change of state."""
    with caplog.at_level(logging.DEBUG, "pdc"):
        for _ in range(2):
            recorder.during = fail
            for _ in range(1000):
                counter.inc()
            assert len(buffer._work.outbox.queue) <= 2
            recorder.during = lambda: None
            buffer.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "metrics cannot be sent and are kept in memory until they can: the storage is down",
        "metrics can be sent again; those kept in memory were",
    ] * 2
    assert recorder.total() == 2000


def test_only_one_thread_waits_for_a_storage_that_hangs(recorder: Recorder, counter: pdc.Counter) -> None:
    """Threads that queued behind an update that found the storage down do not try it again one by one."""
    entered, release = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(10)
        fail()

    recorder.batches.clear()
    recorder.during = hang
    with ThreadPoolExecutor(5) as pool:
        pool.submit(counter.inc)
        assert entered.wait(10)
        waiting = [pool.submit(counter.inc) for _ in range(4)]
        wait_until(lambda: all(update.running() for update in waiting))
        release.set()
    assert len(recorder.batches) == 1


def test_a_refused_metric_does_not_hold_up_the_others(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage refuses a metric: it is sent again at the next setup, or once asked for. Flushes and scrapes report it."""
    recorder.outcomes = [Outcome(set(), {}, {"hits": "because"}, {})]
    counter.inc()
    recorder.batches.clear()
    for _ in range(10):
        counter.inc()
        gauge.inc()
    assert {update.name for batch in recorder.batches for update in batch.updates} == {"level"}
    recorder.during = lambda: recorder.outcomes.append(Outcome(set(), {}, {"hits": "because"}, {}))
    for call in (buffer.flush, buffer.read, partial(buffer.read, ["hits"])):
        with pytest.raises(StorageError, match="metric 'hits' is refused: because"):
            call()
    assert buffer.read(["level"]).metrics
    assert [record.getMessage() for record in caplog.records] == [
        "metric hits is refused, what it counts waits in memory: because"
    ]
    recorder.batches.clear()
    recorder.outcomes.clear()
    recorder.during = lambda: None
    buffer.attach(recorder, 0.0, None)
    assert recorder.total() == 11
    buffer.flush()


def test_a_refused_metric_that_goes_is_missing_no_more(buffer: Buffer, recorder: Recorder) -> None:
    """Scrapes and flushes do not fail because of a refused metric that no longer exists."""
    metric: type[pdc.Counter] = type("Counter", (pdc.Counter,), {"buffer": buffer})
    recorder.outcomes = [Outcome(set(), {}, {"gone": "because"}, {})]
    counter = metric("gone", "Gone.", registry=None)
    with pytest.raises(StorageError, match="metric 'gone' is refused"):
        buffer.read()
    del counter
    gc.collect()
    buffer.read()
    buffer.flush()


@pytest.mark.parametrize("end", [Buffer.at_exit, Buffer.detach])
def test_a_metric_refused_until_the_end_is_lost(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture, end: Callable[[Buffer], None]
) -> None:
    """The log reports a process that ends while the storage refuses one of its metrics."""
    recorder.during = lambda: recorder.outcomes.append(Outcome(set(), {}, {"hits": "because"}, {}))
    recorder.outcomes = [Outcome(set(), {}, {"hits": "because"}, {})]
    counter.inc(5)
    end(buffer)
    assert caplog.messages[-1] == "metrics that could not be sent are lost: metric 'hits' is refused: because"


def test_a_refused_metric_is_asked_for_now_and_then(
    buffer: Buffer,
    recorder: Recorder,
    counter: pdc.Counter,
    gauge: pdc.Gauge,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once the storage accepts it again, the background thread sends all its counts, and the log reports it."""
    info = type("Info", (pdc.Info,), {"buffer": buffer})("info", "Info.", registry=registry)
    buffer.flush()
    refused = dict.fromkeys(("hits", "level", "info"), "because")
    recorder.during = lambda: recorder.outcomes.append(Outcome(set(), {}, refused, {}))
    recorder.outcomes = [Outcome(set(), {}, {name: "because"}, {}) for name in refused]
    counter.inc(5)
    gauge.set(7)
    info.info({"a": "1"})
    recorder.batches.clear()
    counter.inc(6)
    gauge.inc(2)
    info.info({"a": "2"})
    assert recorder.batches == []
    assert buffer.waiting == 3
    monkeypatch.setattr(flusher, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(outcomes, "LAST_RETRY_SECONDS", 0.05)
    buffer._work.outcomes._retry_refused_at = 0.0
    buffer._flusher._wake.put(None)
    wait_until(lambda: len(recorder.batches) >= 3)
    assert not any(update.operations for batch in recorder.batches for update in batch.updates)
    recorder.batches.clear()
    recorder.during = lambda: None
    recorder.outcomes.clear()
    wait_until(lambda: buffer.waiting == 0 and recorder.sent("_info")[-1:] == [("set", '{"a":"2"}')])
    assert recorder.total() == 11
    assert recorder.sent("") == [("set", 7.0), ("add", 2.0)]
    assert sum("is refused" in message for message in caplog.messages) == 3
    wait_until(lambda: sum("not refused any more" in message for message in caplog.messages) == 3)


def test_after_a_forgotten_metric_all_are_declared_again(recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge) -> None:
    """Where the storage forgot a metric, the buffer declares all metrics again, without the operations sent before."""
    counter.inc(5)
    recorder.batches.clear()
    recorder.outcomes = [Outcome({"level"}, {}, {}, {})]
    gauge.inc()
    assert {update.name for update in recorder.batches[1].updates} == {"hits", "level"}
    assert recorder.sent("_total") == [("add", 0.0)]
    assert recorder.sent("") == [("add", 1.0), ("add", 0.0)]


def test_a_metric_that_went_in_an_outage_is_sent_to_the_next_storage(buffer: Buffer, recorder: Recorder) -> None:
    """A batch in flight goes to the next storage, though its metric is gone; the process deregisters there, too."""
    metric: type[pdc.Counter] = type("Counter", (pdc.Counter,), {"buffer": buffer})
    counter = metric("gone", "Gone.", registry=None)
    buffer.attach(recorder, 3600.0, None)
    recorder.during = fail
    counter.inc(5)
    with pytest.raises(StorageError):
        buffer.flush()
    del counter
    gc.collect()
    second = Recorder()
    buffer.attach(second, 0.0, None)
    assert second.total() == 5
    buffer.attach(recorder, 0.0, None)
    assert [update.name for update in second.batches[-1].updates if update.name not in NAMES] == ["gone"]
    assert second.batches[-1].final


def test_updates_that_cannot_be_sent_before_a_shutdown_are_dropped(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown in an outage logs the loss. Updates then log that no storage is set up; the next storage starts at zero."""
    buffer.attach(recorder, 3600.0, None)
    recorder.during = fail
    counter.inc(5)
    buffer.detach()
    with pytest.raises(pdc.NotConfigured):
        counter.inc(6)
    assert caplog.messages[-1] == "metrics that could not be sent are lost: the storage is down"
    second = Recorder()
    buffer.attach(second, 0.0, None)
    counter.inc(7)
    assert second.total() == 7


def test_an_error_that_no_storage_should_raise_is_logged(
    recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """An unforeseen exception of a storage does not reach the application; the log has its traceback, and no update is lost."""

    def break_down() -> None:
        raise ZeroDivisionError("a bug")

    recorder.during = break_down
    counter.inc(2)
    assert "ZeroDivisionError: a bug" in caplog.text
    recorder.during = lambda: None
    counter.buffer.flush()
    assert recorder.total() == 2
