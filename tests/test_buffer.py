"""The buffer, over a storage under the control of each test."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from conftest import wait_until
from prometheus_client import CollectorRegistry

import pdc
from pdc.cells import JournaledOperation, Removal
from pdc.delivery import Buffer, flusher, outcomes
from pdc.delivery.health import NAMES
from pdc.process import log
from pdc.storage import MOST_ENTRIES, Batch, Kind, Operation, Outcome, Snapshot, Stamped, StorageError


class Recorder:
    """A storage that keeps the batches it received, after the test's action in `during`."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.during: Callable[[], object] = lambda: None
        self.outcomes: list[Outcome] = []

    identity = None

    def places(self) -> list[str]:
        """The same place for all."""
        return [""]

    def id(self) -> str:
        """No id."""
        return ""

    def apply(self, batch: Batch) -> Outcome:
        """Keep the batch."""
        self.batches.append(batch)
        self.during()
        return self.outcomes.pop(0) if self.outcomes else Outcome(set(), {}, {}, {})

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Return all metrics that were sent."""
        known = {update.name for batch in self.batches for update in batch.updates}
        return Snapshot(time.time(), {name: {} for name in known if names is None or name in names})

    def delete(self) -> None:
        """Run the test's action."""
        self.during()

    def set_deadline(self, deadline: float) -> None:
        """Always fast."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def sent(self, suffix: str) -> list[tuple[str, Any]]:
        """Kind and value of every operation that was sent for the fields of a suffix."""
        return [(kind.value, value) for kind, field, value in self.operations() if field.startswith(f"{suffix}:")]

    def total(self) -> float:
        """The sum of all additions to counters."""
        total: float = sum(value for _, value in self.sent("_total"))
        return total

    def operations(self) -> Iterator[Operation]:
        """Every operation, once even if it was sent again, in the order in which it counts, without pdc's own metrics."""
        for batch in {batch.sequence: batch for batch in self.batches}.values():
            for update in [update for update in batch.updates if update.name not in NAMES]:
                for _, operations in update.by_kind():
                    yield from operations


def fail() -> None:
    """Raise the error of a storage that is down."""
    raise StorageError("the storage is down")


@pytest.fixture
def recorder() -> Recorder:
    """A storage that is up."""
    return Recorder()


@pytest.fixture
def buffer(recorder: Recorder) -> Iterator[Buffer]:
    """A buffer that writes through to the recorder."""
    buffer = Buffer()
    buffer.attach(recorder, 0.0, None)
    yield buffer
    recorder.during = lambda: None
    buffer.detach()


@pytest.fixture
def counter(buffer: Buffer, registry: CollectorRegistry) -> pdc.Counter:
    """A counter of the buffer."""
    metric: type[pdc.Counter] = type("Counter", (pdc.Counter,), {"buffer": buffer})
    return metric("hits", "Hits.", registry=registry)


@pytest.fixture
def gauge(buffer: Buffer, registry: CollectorRegistry) -> pdc.Gauge:
    """A gauge of the buffer."""
    metric: type[pdc.Gauge] = type("Gauge", (pdc.Gauge,), {"buffer": buffer})
    return metric("level", "Level.", registry=registry)


def in_another_thread(function: Callable[[], Any]) -> None:
    """Call the function in another thread, and wait for its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the thread is stuck"


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


def test_a_background_thread_sends(buffer: Buffer, recorder: Recorder, counter: pdc.Counter) -> None:
    """With an interval no caller has to flush; the thread ends with the buffer."""
    buffer.attach(recorder, 0.01, None)
    counter.inc(5)
    wait_until(lambda: ("add", 5.0) in recorder.sent("_total"))
    thread = buffer._flusher.thread
    assert thread is not None
    buffer.detach()
    wait_until(lambda: not thread.is_alive())


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


def test_a_set_never_overtakes_an_earlier_addition(buffer: Buffer, recorder: Recorder, gauge: pdc.Gauge) -> None:
    """An update while a batch is made goes into the next batch, even where its series is queued twice."""

    class Meanwhile(Removal):
        def drain(self) -> list[Operation]:
            gauge.set(3)
            return []

    entry = Meanwhile(gauge._metric_cells, JournaledOperation(gauge._metric_cells.family, Operation(Kind.DELETE, "{}")))
    buffer.attach(recorder, 3600.0, None)
    buffer.flush()
    recorder.batches.clear()
    gauge.inc(2)
    for queued in (entry, gauge._cell):
        buffer.enqueue(queued)
    buffer.flush()
    buffer.flush()
    assert recorder.sent("") == [("add", 2.0), ("set", 3.0)]


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


def test_handlers_of_the_log_may_wait_for_threads_that_update(
    recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """A handler of the log that counts lines, and any lock it takes, never blocks the buffer that logs."""

    def count() -> None:
        in_another_thread(counter.inc)
        counter.inc()

    with reacting(count):
        recorder.during = fail
        gauge.inc()
        recorder.during = lambda: None
        counter.buffer.flush()
    counter.buffer.flush()
    assert recorder.total() == 4


class Reacting(logging.Handler):
    """A handler of pdc's log that calls a function for each message, and passes on its exceptions."""

    def __init__(self, react: Callable[[], object]) -> None:
        super().__init__()
        self._react = react

    def emit(self, _: logging.LogRecord) -> None:
        """Call the function."""
        self._react()


@contextmanager
def reacting(react: Callable[[], object]) -> Iterator[None]:
    """Call the function for each message of pdc."""
    handler = Reacting(react)
    logging.getLogger("pdc").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("pdc").removeHandler(handler)


@pytest.fixture
def failures() -> Iterator[list[object]]:
    """An item for each message that could not be logged."""
    found: list[object] = []

    def note() -> None:
        found.append(1)

    log.FAILURES.append(note)
    yield found
    log.FAILURES.remove(note)


def leave() -> None:
    """An exception that no function of an application should raise."""
    raise SystemExit


def fail_to_log() -> None:
    """Raise as a filter that needs a request where there is none."""
    raise RuntimeError("working outside of request context")


@pytest.mark.parametrize("fault", [leave, fail_to_log])
def test_the_thread_goes_on_whatever_the_log_raises(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, failures: list[object], fault: Callable[[], None]
) -> None:
    """The background thread sends after an outage though a handler of the log raised at it."""
    buffer.attach(recorder, 0.01, None)
    with reacting(fault):
        recorder.during = fail
        counter.inc(5)
        wait_until(lambda: failures)
        recorder.during = lambda: None
        wait_until(lambda: recorder.total() == 5)


def test_the_thread_goes_on_whatever_the_storage_raises(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a client that is no error, such as an exit at a password prompt, ends no background thread."""
    buffer.attach(recorder, 0.01, None)
    recorder.during = leave
    counter.inc(5)
    wait_until(lambda: "the thread that sends metrics goes on after an error" in caplog.text)
    recorder.during = lambda: None
    wait_until(lambda: recorder.total() == 5)
    assert caplog.text.count("goes on after an error") == 1


def test_a_handler_that_does_not_return_holds_nothing_up(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, failures: list[object]
) -> None:
    """The background thread sends after an outage though a handler of the log blocks at it; lost messages are counted."""
    entered, release = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        release.wait(10)

    buffer.attach(recorder, 0.01, None)
    try:
        with reacting(block):
            recorder.during = fail
            counter.inc(5)
            assert entered.wait(10)
            recorder.during = lambda: None
            wait_until(lambda: recorder.total() == 5)
            for _ in range(log.MOST_DEFERRED + 5):
                log.defer(logging.ERROR, "too much")
            assert 4 <= len(failures) <= 5
    finally:
        release.set()


def test_an_update_never_raises_what_the_log_raises(recorder: Recorder, counter: pdc.Counter, failures: list[object]) -> None:
    """Written through, an update that finds the storage down returns though a filter raises; lost messages are counted."""
    with reacting(fail_to_log):
        recorder.during = fail
        counter.inc(5)
        recorder.during = lambda: None
        counter.buffer.flush()
    assert recorder.total() == 5
    assert len(failures) == 2


def test_a_time_limit_amid_the_log_reaches_the_application(recorder: Recorder, counter: pdc.Counter) -> None:
    """An exception of a signal handler in a handler of the log reaches the application, and no update is lost."""

    class Limit(Exception): ...  # noqa: N818 - named as time limits are

    def expire(_: int, __: Any) -> None:
        raise Limit

    with reacting(lambda: expire(14, sys._getframe())):
        recorder.during = fail
        with pytest.raises(Limit):
            counter.inc(5)
    recorder.during = lambda: None
    counter.buffer.flush()
    assert recorder.total() == 5


def test_functions_of_gauges_may_wait_for_threads_that_update(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """A function that takes any lock, or updates metrics itself, never blocks the buffer that calls it."""

    def function() -> float:
        in_another_thread(counter.inc)
        counter.inc()
        return 42

    gauge.set_function(function)
    for call in (buffer.flush, buffer.send_pending, buffer.read, buffer.clear):
        call()
    assert set(recorder.sent("")[1:]) == {("set", 42.0)}
    assert recorder.total() == 8


def test_a_function_that_fails_leaves_the_value(
    buffer: Buffer, recorder: Recorder, gauge: pdc.Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a function is logged with the name of the gauge, and the last value stays."""
    values = [1.0]
    gauge.set_function(values.pop)
    buffer.flush()
    assert set(recorder.sent("")[1:]) == {("set", 1.0)}
    assert "the function of the gauge level failed" in caplog.text


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


def test_where_no_thread_can_start_updates_wait(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update never raises because there are too many threads, or because the interpreter ends."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    buffer.detach()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
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
