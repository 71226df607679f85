"""The buffer, over a storage under the control of each test."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from conftest import wait_until
from prometheus_client import CollectorRegistry
from recorder import Recorder, fail, in_another_thread

import pdc
from pdc.delivery import Buffer, dispatcher, flusher
from pdc.delivery.health import NAMES
from pdc.storage import MOST_ENTRIES, Kind, Outcome, Stamped, StorageError


@pytest.fixture
def switch_interval() -> Iterator[Callable[[float], None]]:
    """Sets how long Python lets a thread run where others wait, until the end of the test."""
    before = sys.getswitchinterval()
    yield sys.setswitchinterval
    sys.setswitchinterval(before)


def test_write_through_sends_before_the_update_returns(recorder: Recorder, counter: pdc.Counter) -> None:
    """Without an interval every update is one batch, in order, of one writer."""
    for number in range(3):
        counter.inc(number)
    assert recorder.sent("_total")[1:] == [("add", 0.0), ("add", 1.0), ("add", 2.0)]
    assert [batch.sequence for batch in recorder.batches] == [1, 2, 3, 4]
    assert len({batch.writer for batch in recorder.batches}) == 1


def test_a_handler_that_interrupts_every_batch_delays_no_update(
    recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """Written through, an update returns though a handler updates during each of its batches; the next one sends the rest."""
    interruptions: list[int] = []

    def interrupt() -> None:
        if len(interruptions) < 100:
            interruptions.append(1)
            gauge.inc()

    recorder.during = interrupt
    counter.inc(5)
    assert len(interruptions) == 2
    recorder.during = lambda: None
    counter.inc(6)
    assert (recorder.total(), sum(value for _, value in recorder.sent(""))) == (11, 2)


def test_buffered_updates_are_sent_together(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """With an interval, updates make one batch with one operation per field."""
    buffer.attach(recorder, 3600.0, None)
    buffer.flush()
    recorder.batches.clear()
    for _ in range(1000):
        counter.inc(2)
    assert recorder.batches == []
    buffer.flush()
    assert recorder.sent("_total") == [("add", 2000.0)]


@pytest.mark.parametrize("kind", [pdc.Counter, pdc.Summary, pdc.Histogram])
def test_times_of_creation_are_sent_once(kind: Any, buffer: Buffer, recorder: Recorder, registry: CollectorRegistry) -> None:
    """A series sends its time of creation once, and again where the storage has lost the metric."""
    buffer.attach(recorder, 3600.0, None)
    metric = type(kind.__name__, (kind,), {"buffer": buffer})("m", "M.", ["path"], registry=registry)
    update = getattr(metric.labels("/"), "inc", None) or metric.labels("/").observe
    for _ in range(3):
        update(1)
        buffer.flush()
    assert len(recorder.sent("_created")) == 1
    assert {update.created for batch in recorder.batches for update in batch.updates if update.name == "m"} == {True}
    recorder.outcomes.append(Outcome({"m"}, {}, {}, {}))
    update(1)
    buffer.flush()
    assert len(recorder.sent("_created")) == 2
    buffer.flush()
    assert len(recorder.sent("_created")) == 2


def test_many_series_go_in_several_batches(buffer: Buffer, recorder: Recorder, registry: CollectorRegistry) -> None:
    """A flush sends all updates in batches of bounded size. An outage amid them repeats none, a refusal stops none."""
    buffer.attach(recorder, 3600.0, None)
    counter: type[pdc.Counter] = type("Counter", (pdc.Counter,), {"buffer": buffer})
    refused = counter("refused", "Refused.", ["n"], registry=registry)
    hits = counter("hits", "Hits.", ["n"], registry=registry)
    for number in range(2 * MOST_ENTRIES):
        refused.labels(number).inc()
    for number in range(3 * MOST_ENTRIES):
        hits.labels(number).inc()
    refusal = Outcome(set(), {}, {"refused": "somebody else's"}, {})
    recorder.during = lambda: fail() if len(recorder.batches) == 3 else recorder.outcomes.append(refusal)
    with pytest.raises(StorageError, match="the storage is down"):
        buffer.flush()
    with pytest.raises(StorageError, match="somebody else's"):
        buffer.flush()
    by_sequence = {batch.sequence: batch for batch in recorder.batches}
    assert len(recorder.batches) == len(by_sequence) + 1
    sent = [operation for batch in by_sequence.values() for update in batch.updates for operation in update.operations]
    added = [operation.field for operation in sent if operation.kind is Kind.ADD and operation.field.startswith("_total")]
    assert {f'_total:{{"n":"{number}"}}' for number in range(3 * MOST_ENTRIES)} <= set(added)
    assert len(added) < 4 * MOST_ENTRIES + 10  # at most one batch of the refused metrics
    assert max(sum(len(update.operations) for update in batch.updates) for batch in by_sequence.values()) < 3 * MOST_ENTRIES


def test_other_threads_have_their_turn_between_two_batches(
    buffer: Buffer,
    recorder: Recorder,
    registry: CollectorRegistry,
    switch_interval: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flush of several batches lets other threads run after each, however long Python lets a thread run."""
    monkeypatch.setattr(dispatcher, "TURN_SECONDS", 0.3)
    buffer.attach(recorder, 3600.0, None)
    hits = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", ["n"], registry=registry)
    buffer.flush()
    recorder.batches.clear()
    for number in range(3 * MOST_ENTRIES):
        hits.labels(number).inc()
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.00005):
            seen.add(len(recorder.batches))

    looking = threading.Thread(target=look)
    looking.start()
    switch_interval(60.0)
    buffer.flush()
    done.set()
    looking.join()
    assert {1, 2} <= seen


def test_a_background_thread_sends(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """With an interval no caller has to flush; the thread ends with the buffer."""
    senders: list[threading.Thread] = []
    buffer.attach(recorder, 0.01, None)
    recorder.during = lambda: senders.append(threading.current_thread())
    counter.inc(5)
    wait_until(lambda: ("add", 5.0) in recorder.sent("_total"))
    thread = senders[0]
    assert thread is not threading.current_thread()
    buffer.detach()
    wait_until(lambda: not thread.is_alive())


def test_a_batch_has_a_bounded_number_of_numbers(buffer: Buffer, recorder: Recorder, registry: CollectorRegistry) -> None:
    """Histograms with very many buckets go in several batches, so that the storage serves others in between."""
    wait = type("Histogram", (pdc.Histogram,), {"buffer": buffer})(
        "wait", "Wait.", ["a"], buckets=range(999), registry=registry
    )
    buffer.attach(recorder, 3600.0, None)
    for label in range(10):
        for amount in range(999):
            wait.labels(label).observe(amount)
    buffer.flush()
    assert len(list(recorder.operations())) > 9_990
    assert max(len(update.operations) for batch in recorder.batches for update in batch.updates) < 5_000


def test_live_values_are_renewed_in_any_interval(
    buffer: Buffer, recorder: Recorder, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process renews its live values more often than its lease ends, also with a longer flush interval."""
    monkeypatch.setattr(flusher, "BEAT_SECONDS", 0.02)
    buffer.attach(recorder, 3600.0, None)
    live = type("Gauge", (pdc.Gauge,), {"buffer": buffer})("live", "Live.", registry=registry, multiprocess_mode="livesum")
    live.set(3)
    wait_until(lambda: len(recorder.batches) > 5)
    assert all(kind is Kind.STAMP for kind, _, _ in recorder.operations())


def test_a_live_value_that_came_back_is_sent_with_the_next_beat(
    buffer: Buffer, recorder: Recorder, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that came and went between two batches cost the storage nothing, until the lease is to be renewed."""
    monkeypatch.setattr(flusher, "BEAT_SECONDS", 3600.0)
    buffer.attach(recorder, 3600.0, None)
    kind: type[pdc.Gauge] = type("Gauge", (pdc.Gauge,), {"buffer": buffer})
    live = kind("live", "Live.", registry=registry, multiprocess_mode="livesum")
    lasting = kind("lasting", "Lasting.", registry=registry, multiprocess_mode="sum")

    def told() -> dict[str, float]:
        recorder.batches.clear()
        buffer.flush()
        return {
            update.name: operation.value.number
            for batch in recorder.batches
            for update in batch.updates
            for operation in update.operations
            if isinstance(operation.value, Stamped) and update.name not in NAMES
        }

    for gauge in (live, lasting):
        gauge.inc()
    assert told() == {"live": 1.0, "lasting": 1.0}
    for gauge in (live, lasting):
        gauge.inc()
        gauge.dec()
    assert told() == {"lasting": 1.0}
    live.inc()
    assert told() == {"live": 2.0}
    buffer._work.queue_unprompted(beat=True)
    assert told() == {"live": 2.0}
    buffer.deregister()
    live.inc()
    live.dec()
    assert told() == {"live": 2.0}


@pytest.mark.parametrize("end", [Buffer.at_exit, Buffer.detach])
def test_no_batch_follows_the_final_one(
    buffer: Buffer, recorder: Recorder, gauge: pdc.Gauge, registry: CollectorRegistry, end: Callable[[Buffer], None]
) -> None:
    """A beat while a process ends is sent before its final batch or not at all; a later update is another writer's."""
    live: pdc.Gauge = type(gauge)("live", "Live.", registry=registry, multiprocess_mode="livesum")
    buffer.attach(recorder, 3600.0, None)
    recorder.batches.clear()
    live.inc()
    recorder.during = partial(buffer._work.queue_unprompted, beat=True)
    end(buffer)
    first = recorder.batches[-1]
    assert first.final
    if end is Buffer.at_exit:
        live.inc()
        last = recorder.batches[-1]
        assert last.final
        assert last.writer != first.writer
        assert [batch.writer for batch in recorder.batches if batch.final] == [first.writer, last.writer]


def test_metrics_are_renewed_without_updates(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """Every `renew_seconds` each metric is declared again, without operations."""
    buffer.attach(recorder, 3600.0, 0.02)
    counter.inc()
    buffer.flush()
    wait_until(lambda: sum(batch.updates[0].operations == [] for batch in recorder.batches) > 5)
    assert recorder.total() == 1


def too_many_threads() -> None:
    """Raise what Python raises then, or as the interpreter ends."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("refuse", [too_many_threads, partial(bytearray, 2**62)], ids=["too many", "no memory"])
def test_where_no_thread_can_start_updates_wait(
    refuse: Callable[[], Any], buffer: Buffer, recorder: Recorder, counter: pdc.Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update never raises because there are too many threads, no memory for one, or because the interpreter ends."""
    buffer.detach()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", staticmethod(refuse))
        buffer.attach(recorder, 0.01, None)
        counter.inc(5)
        buffer.deregister()
    assert recorder.sent("_total")[-1] == ("add", 5.0)
    counter.inc(6)
    wait_until(lambda: recorder.sent("_total")[-1] == ("add", 6.0))


def test_pending_updates_go_to_the_storage_before(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """Another storage starts at zero, or with the updates that could not be sent to the one before."""
    buffer.attach(recorder, 3600.0, None)
    counter.inc(5)
    second, third = Recorder(), Recorder()
    buffer.attach(second, 3600.0, None)
    assert recorder.total() == 5
    second.during = fail
    counter.inc(6)
    buffer.attach(third, 0.0, None)
    assert third.total() == 6


def test_a_thread_that_a_shutdown_finds_at_work_sends_no_more(
    buffer: Buffer,
    recorder: Recorder,
    gauge: pdc.Gauge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch that the background thread was about to send at a shutdown is no error, and absent after the next `setup`."""
    monkeypatch.setattr(flusher, "BEAT_SECONDS", 0.02)
    senders: list[threading.Thread] = []
    detached = threading.Event()

    def level() -> float:
        if threading.current_thread().name == "pdc-flush":
            senders.append(threading.current_thread())
            assert detached.wait(10)
        return 1.0

    buffer.attach(recorder, 3600.0, None)
    gauge.set_function(level)
    wait_until(lambda: senders)
    buffer.detach()
    recorder.batches.clear()
    detached.set()
    senders[0].join(10)
    assert caplog.messages == []
    with pytest.raises(pdc.NotConfigured):
        buffer.read()
    assert recorder.batches == []


def flusher_of(finished: list[threading.Thread], interval: float) -> flusher.Flusher:
    """One that sends nothing; its threads are listed as they finish."""
    made = flusher.Flusher(
        on_beat=lambda _: False,
        on_renewal=lambda: None,
        is_down=lambda: False,
        may_start=lambda: True,
        send=lambda: None,
        finish=lambda: finished.append(threading.current_thread()),
    )
    made.schedule(interval, None)
    return made


def test_of_two_background_threads_one_finishes() -> None:
    """Where two threads each started a background thread, the first one is over, and sends nothing as the process ends."""
    finished: list[threading.Thread] = []
    several = flusher_of(finished, 0.5)
    threads: list[threading.Thread] = []
    for _ in range(2):
        several.start()
        wait_until(lambda: several._last_flush)
        assert several.thread is not None
        threads.append(several.thread)
        several._last_flush = 0.0
    several.is_exiting = True
    several.wake()
    for thread in threads:
        thread.join(10)
    assert finished == threads[1:]


def test_a_thread_that_is_slow_to_start_the_background_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thread has started a later background thread by then, that one goes on."""
    held, released = threading.Event(), threading.Event()

    class Slow(threading.Thread):
        """A thread of which the first start does not return for long."""

        def start(self) -> None:
            super().start()
            if self.name == "pdc-flush" and not held.is_set():
                held.set()
                released.wait(10)

    finished: list[threading.Thread] = []
    several = flusher_of(finished, 0.01)
    starting = threading.Thread(target=several.start)
    monkeypatch.setattr(threading, "Thread", Slow)
    starting.start()
    assert held.wait(10)
    wait_until(lambda: several.thread)
    first = several.thread
    several.start()
    wait_until(lambda: several.thread is not first)
    last = several.thread
    assert first is not None
    assert last is not None
    first.join(10)
    released.set()
    starting.join(10)
    several.is_exiting = True
    assert several.thread is last
    last.join(10)
    assert finished == [last]


def test_a_flush_ends_however_fast_others_update(recorder: Recorder, buffer: Buffer, counter: pdc.Counter) -> None:
    """A flush sends the updates queued when it began; updates of threads meanwhile go with the next, and none is lost."""
    buffer.attach(recorder, 3600.0, None)
    buffer.flush()
    recorder.batches.clear()
    recorder.during = lambda: in_another_thread(counter.inc)
    counter.inc()
    in_another_thread(buffer.flush)
    assert len(recorder.batches) == 1
    recorder.during = lambda: None
    buffer.flush()
    assert recorder.total() == 2.0


@pytest.mark.parametrize("change", [lambda parent: parent.remove("/a"), lambda parent: parent.labels("/a").reset()])
def test_others_send_while_a_series_is_removed_or_reset(
    buffer: Buffer, registry: CollectorRegistry, change: Callable[[pdc.Counter], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal or reset holds no lock that a send needs: an update by a signal handler would wait for both for ever."""
    parent: pdc.Counter = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", ["path"], registry=registry)
    for path in ("/a", "/b"):
        parent.labels(path).inc()
    ended = []
    keep, changing = buffer.journal, threading.current_thread()

    def keep_and_let_send(entry: Any) -> None:
        keep(entry)
        if threading.current_thread() is changing:
            thread = threading.Thread(target=parent.labels("/b").inc, daemon=True)
            thread.start()
            thread.join(5)
            ended.append(not thread.is_alive())

    monkeypatch.setattr(buffer, "journal", keep_and_let_send)
    change(parent)
    assert ended
    assert all(ended)
