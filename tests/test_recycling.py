"""Processes that come and go: a storage and a scrape depend on the living, and on the counts of the dead."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer
from helpers import AT_ONCE, Run, hasten, mainly, shown
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

import pdc
from pdc.delivery import health
from pdc.family import Family, bucket_bounds, families
from pdc.storage import (
    FINAL_MARK_SECONDS,
    FORGET_WRITER_SECONDS,
    Batch,
    Kind,
    Mark,
    Operation,
    Snapshot,
    Stamped,
    Storage,
    Update,
)
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

MODES = ("all", "sum", "min", "max", "mostrecent", "liveall", "livesum", "livemin", "livemax", "livemostrecent")
GAUGES = [Family(mode, "gauge", "Of each process.", labelnames=("path",), mode=mode) for mode in MODES]
COUNTER = Family("hits", "counter", "Hits.")
HISTOGRAM = Family("latency", "histogram", "Seconds.", bounds=bucket_bounds((1.0, float("inf"))))
LABELS = [f'{{"path":"/{number}"}}' for number in range(3)]
ALIVE = "1-alive"
WRITERS = 10_000


class Sized:
    """A storage, and its size in bytes."""

    def __init__(self, storage: Storage, size: Callable[[], int]) -> None:
        self.storage = storage
        self.size = size


@pytest.fixture(params=["sqlite", "redis"])
def sized(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sized]:
    """A storage of each kind; the size in SQLite is that of the pages in use, which may be fewer than those of the file."""
    if request.param == "sqlite":
        storage = SqliteStorage(tmp_path / "metrics.db")
        pages = (
            "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        yield Sized(storage, lambda: int(storage.connection().execute(pages).fetchone()[0]))
        storage.close()
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        with server.client() as client:
            in_redis = RedisStorage(client, "test")
            yield Sized(in_redis, lambda: redis_bytes(client))
            in_redis.close()


def redis_bytes(client: redis.Redis) -> int:
    """The memory of all keys. Redis frees the room of a hash that has shrunk bit by bit while the hash is used."""
    keys = list(client.scan_iter(count=1000))
    with client.pipeline(transaction=False) as pipeline:
        for key in (key for key in keys if b"#" not in key):
            for _ in range(1000):
                pipeline.hexists(key, "any")
        pipeline.execute()
    return sum(int(client.memory_usage(key, samples=0) or 0) for key in keys)


def value_of(number: int) -> float:
    """The gauge's value in the process of that number; sums of these values are exact."""
    return float(number * 7919 % 1000 - 500)


def updates(writer: str, number: int, gauges: list[Family]) -> list[Update]:
    """The updates of a process in its short life: set a series of some gauges, and count or observe."""
    bucket = f'_bucket:{{"le":"{HISTOGRAM.bounds[number % 3 % 2]}"}}'
    counted = (COUNTER, "_total:{}") if number % 2 else (HISTOGRAM, bucket)
    family_operations = [(counted[0], [Operation(Kind.ADD, counted[1], 1.0)])]
    for gauge in gauges:
        field = gauge.process_prefix(writer) + LABELS[number // len(GAUGES) % len(LABELS)]
        stamped = Stamped(value_of(number), time.monotonic() - WRITERS + number)
        family_operations.append((gauge, [Operation(Kind.STAMP, field, stamped)]))
    return [Update(family.name, family.meta, operations) for family, operations in family_operations]


def live_and_die(storage: Storage, number: int, gauges: list[Family]) -> None:
    """Write as a process of that number, and deregister if the number is even; others are never seen again."""
    writer = f"{number}-w"
    changes = updates(writer, number, gauges)
    storage.apply(Batch(writer, 1, changes))
    if number // len(GAUGES) % 2 == 0:
        storage.apply(Batch(writer, 2, [Update(update.name, "", []) for update in changes], final=True))


def after_a_day(storage: Storage, monkeypatch: pytest.MonkeyPatch, sequence: int) -> Snapshot:
    """The stored fields after a process has written a day later, and deregistered."""
    changes = [*updates(ALIVE, WRITERS, GAUGES), Update(COUNTER.name, COUNTER.meta, [])]
    with monkeypatch.context() as patch:
        hasten(patch, **AT_ONCE)
        storage.apply(Batch(ALIVE, sequence, changes))
    snapshot = storage.read()
    storage.apply(Batch(ALIVE, sequence + 1, [Update(update.name, "", []) for update in changes], final=True))
    return snapshot


def merged_by_prometheus_client(mode: str, numbers: Iterator[int]) -> dict[str, float]:
    """The value of each path that the multiprocess mode shows for these processes."""
    metric: Any = Metric(mode, "Help.", "gauge")
    metric._multiprocess_mode = mode
    for number in numbers:
        labels: Any = (("path", f"/{number // len(GAUGES) % len(LABELS)}"), ("pid", str(number)))
        metric.samples.append(Sample(mode, labels, value_of(number), number + 1.0))
    (found,) = MultiProcessCollector._accumulate_metrics({mode: metric}, True)
    return {sample.labels["path"]: sample.value for sample in found.samples}


@pytest.mark.long
def test_ten_thousand_writers_leave_no_trace(sized: Sized, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 10,000 processes, half of them killed, the fields, the size and the scrape are those after a few.

    Counters have the counts of all of them, and gauges the values of prometheus_client's multiprocess mode.
    """
    storage = sized.storage
    few = 6 * len(GAUGES)  # for each mode and path one that deregisters and one that is killed
    for number in range(few):
        live_and_die(storage, number, [GAUGES[number % len(GAUGES)]])
    before, size = after_a_day(storage, monkeypatch, 1).metrics, sized.size()
    with monkeypatch.context() as patch:
        hasten(patch, **{**AT_ONCE, "FINAL_MARK_SECONDS": 0.0})
        for number in range(few, WRITERS):
            live_and_die(storage, number, [GAUGES[number % len(GAUGES)]])
    now, after = after_a_day(storage, monkeypatch, 3)
    assert {name: set(fields) for name, fields in after.items()} == {name: set(fields) for name, fields in before.items()}
    assert sized.size() < 1.5 * size  # Redis shrinks the table of a hash when nine tenths of it are free
    shown = {metric.name: metric for metric in families(after, now)}
    assert shown["hits"].samples[0].value == WRITERS / 2
    assert [sample.value for sample in shown["latency"].samples if sample.name == "latency_count"] == [WRITERS / 2 + 2]
    for index, mode in enumerate(MODES):
        values = {sample.labels["path"]: sample.value for sample in shown[mode].samples}
        everyone = [*range(index, WRITERS, len(GAUGES)), WRITERS, WRITERS]
        lasting = mode in ("sum", "min", "max", "mostrecent")
        assert values == merged_by_prometheus_client(mode, iter(everyone if lasting else [WRITERS]))


PROCESSES = f"""
import os, redis, signal, tempfile
gauges = [pdc.Gauge("g_" + mode, "Help.", ["path"], multiprocess_mode=mode) for mode in {MODES}]
hits = pdc.Counter("hits", "Hits.")
seconds = pdc.Histogram("seconds", "Seconds.", buckets=[1])
for number in range(COUNT):
    child = os.fork()
    if not child:
        setup(flush_interval=3600)
        for gauge in gauges:
            gauge.labels("/").set(number)
        hits.inc()
        seconds.observe(number)
        if number % 5 == 4:
            pdc.flush()
            hits.inc()
            os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit
    os.waitpid(child, 0)
"""


@pytest.mark.long
def test_forty_processes_leave_as_much_as_five(
    storage: dict[str, Any],
    run_script: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real processes that exit leave their counts and one value of all; killed ones do a day later."""
    shown = []
    for count in (5, 35):
        run_script(PROCESSES.replace("COUNT", str(count)), storage=storage)
        pdc.setup(**storage)
        probe = pdc.config.DEFAULT.required()
        with monkeypatch.context() as patch:
            hasten(patch, **AT_ONCE)
            names = probe.read().metrics
            probe.apply(Batch(f"{count}-probe", 1, [Update(name, "", []) for name in names]))
            probe.apply(Batch("another-probe", count, [Update(name, "", []) for name in names]))
        fields = {name: sorted(found) for name, found in probe.read().metrics.items() if name not in health.NAMES}
        text = pdc.generate_latest().decode()
        shown.append((fields, re.sub(r" \S+$", "", text, flags=re.MULTILINE)))
        pdc.shutdown()
    assert shown[0] == shown[1]
    samples = dict(re.findall(r'^g_(\w+){path="/"} (\S+)$', text, re.MULTILINE))
    assert samples == {"sum": str(10.0 + 595.0), "min": "0.0", "max": "34.0", "mostrecent": "34.0"}
    assert "\nhits_total 48.0\n" in text


def test_a_process_that_sets_up_again_counts_once(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Another `setup`, also with the same storage, does not end the process; `shutdown` does, and a new one begins."""
    pdc.setup(**storage)
    level = pdc.Gauge("level", "Of each process.", registry=registry, multiprocess_mode="sum")
    level.set(5)
    pdc.setup(**storage)
    assert shown() == {"level": 5}
    level.set(7)
    assert shown() == {"level": 7}
    pdc.shutdown()
    pdc.setup(**storage)
    assert shown() == {"level": 7}
    level.set(2)
    assert shown() == {"level": 9}


def test_a_process_that_slept_is_back_with_its_numbers(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After others forgot a process for an hour, its next update restores its live values and doubles nothing."""
    pdc.setup(**storage, flush_interval=3600)
    modes: Any = ("all", "sum", "livesum", "livemax")
    gauges = [pdc.Gauge(mode, "Of each process.", registry=registry, multiprocess_mode=mode) for mode in modes]
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    for gauge in gauges:
        gauge.set(5)
    hits.inc(3)
    before = shown()
    store = pdc.config.DEFAULT.required()
    with monkeypatch.context() as patch:
        hasten(patch, **{**AT_ONCE, "FORGET_VALUES_SECONDS": 86400.0})
        store.apply(Batch("2-other", 1, [Update(name, "", []) for name in (*modes, "hits")]))
    stored = {name: fields for name, fields in store.read().metrics.items() if name not in health.NAMES}
    assert [name for name, fields in stored.items() if any(field.count(":") > 1 for field in fields)] == ["all", "sum"]
    hits.inc()
    assert shown() == {**before, "hits_total": 4.0}


def test_an_update_after_the_deregistration_counts_alone(storage: dict[str, Any], run_script: Run) -> None:
    """The update of an atexit handler after pdc's deregistration adds to the folded values."""
    source = """
import atexit
late = []
atexit._clear()
atexit.register(lambda: late[0].inc(2))
atexit.register(pdc.config._at_exit)
setup()
late.append(pdc.Gauge("level", "Of each process.", multiprocess_mode="sum"))
late[0].inc(5)
"""
    run_script(source, storage=storage)
    pdc.setup(**storage)
    assert shown() == {"level": 7.0}


SHORT_LIVED = """
import os, random, sys, time, warnings
hits = pdc.Counter("hits", "Hits.")
live = pdc.Gauge("live", "Live.", multiprocess_mode="livesum")
for number in range(16):
    pid = os.fork()
    if pid == 0:
        setup(flush_interval=random.choice([0, 0.001, 0.002, 3600]))
        hits.inc()
        live.inc()
        time.sleep(random.choice([0, 0, 0.001, 0.003]))
        if number % 2:
            pdc.shutdown()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
"""


@mainly("redis")
def test_short_lived_processes_leave_short_marks_only(storage: dict[str, Any], run_script: Run) -> None:
    """Wherever its thread is when a process ends, no live value stays, and its marks go within half a minute."""
    run_script(SHORT_LIVED, storage=storage)
    pdc.setup(**storage)
    snapshot = pdc.config.read(pdc.config.DEFAULT)
    assert float(snapshot.metrics["hits"]["_total:{}"]) == 16
    for fields in snapshot.metrics.values():
        assert [field for field in fields if field.startswith("#live")] == []
        marks = [Mark.loads(value) for field, value in fields.items() if field.startswith("#mark:")]
        assert all(mark.seen < snapshot.now - FORGET_WRITER_SECONDS + FINAL_MARK_SECONDS + 1 for mark in marks)
