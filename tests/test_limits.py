"""Limits of the series of a metric, which the storage enforces: their number, and the time that idle ones stay."""

from __future__ import annotations

import gc
import math
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from conftest import wait_until
from helpers import INTERVALS, SMALL_PIECES, driver_call, set_constants
from prometheus_client import CollectorRegistry

import pdc
import pdc.storage.redis
import pdc.storage.sqlite
from pdc import config
from pdc.exposition import Scrape
from pdc.family import OVERFLOW
from pdc.http import HTTPMetrics
from pdc.options import Options
from pdc.process import once
from pdc.storage import Batch, Kind, Limits, Operation, Stamped, Storage, Update, updated
from pdc.storage.labels import series_of
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage


def shown(pattern: str = r"hits_total") -> dict[str, float]:
    """The samples of that name: the labels as they are written, and the value."""
    lines = re.findall(rf"^{pattern}(\{{.*?\}})? (\S+)$", pdc.generate_latest().decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in lines}


def series_in_storage() -> tuple[set[str | None], float]:
    """The series of the metric in the storage, and the number that it keeps."""
    fields = config.read(config.DEFAULT).metrics["hits"]
    return {series_of(field) for field in fields if not field.startswith("#")}, float(fields["#series"])


@INTERVALS
@pytest.mark.parametrize("own", [True, False], ids=["metric", "setup"])
def test_the_limit_holds_over_processes(storage: dict[str, Any], interval: float, own: bool) -> None:
    """Ten processes, one after the other, make the allowed series and one for all others; each update counts."""
    for process in range(10):
        pdc.shutdown()
        pdc.setup(**storage, flush_interval=interval, max_series=None if own else 5)
        hits = pdc.Counter("hits", "Hits.", ["page"], registry=CollectorRegistry(), max_series=5 if own else None)
        hits.labels("known").inc()
        for page in range(3):
            hits.labels(f"{process}-{page}").inc()
    found = shown()
    assert len(found) == 6
    assert found['{page="known"}'] == 10
    assert found[f'{{page="{OVERFLOW}"}}'] == 10 * 3 - 4
    assert sum(found.values()) == 40


def test_series_of_every_kind_share_one_over_the_limit(storage: dict[str, Any]) -> None:
    """The series of the others adds, sets and observes their updates, with its buckets and exemplars."""
    for pages in (["a"], ["b", "le", "c"]):
        registry = CollectorRegistry()
        pdc.shutdown()
        pdc.setup(**storage, flush_interval=3600, max_series=1)
        hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry)
        level = pdc.Gauge("level", "Level.", ["page"], registry=registry)
        size = pdc.Summary("size", "Bytes.", ["page"], registry=registry)
        seconds = pdc.Histogram("seconds", "Time.", ["page", "zone"], buckets=(1, 2), registry=registry)
        version = pdc.Info("version", "Version.", ["page"], registry=registry)
        for page in pages:
            hits.labels(page).inc(2, {"trace": page})
            level.labels(page).set(5)
            level.labels(page).inc(1)
            size.labels(page).observe(3)
            seconds.labels(page, "z").observe(1.5, {"trace": page})
            seconds.labels(page, "z").observe(4)
            version.labels(page).info({"v": page})
            pdc.flush()
    page = pdc.generate_latest().decode()
    lines = [line for line in page.splitlines() if not line.startswith("#") and "_created" not in line]
    over = OVERFLOW
    assert lines == [
        *('hits_total{page="' + f'{label}"}} {value}' for label, value in ((over, 6.0), ("a", 2.0))),
        *('level{page="' + f'{label}"}} {value}' for label, value in ((over, 6.0), ("a", 6.0))),
        *(
            f'seconds_{suffix}{{{f"""le="{le}",""" if le else ""}page="{page}",zone="{zone}"}} {value}'
            for page, zone, times in ((over, over, 3), ("a", "z", 1))
            for suffix, le, value in (
                *(("bucket", "1.0", 0.0), ("bucket", "2.0", 1.0 * times), ("bucket", "+Inf", 2.0 * times)),
                *(("count", "", 2.0 * times), ("sum", "", 5.5 * times)),
            )
        ),
        *(f'size_{suffix}{{page="{over}"}} {value}' for suffix, value in (("count", 3.0), ("sum", 9.0))),
        *(f'size_{suffix}{{page="a"}} {value}' for suffix, value in (("count", 1.0), ("sum", 3.0))),
        f'version_info{{page="{over}",v="c"}} 1.0',
        'version_info{page="a",v="a"} 1.0',
    ]


@pytest.mark.parametrize("mode", ["sum", "min", "max", "mostrecent", "livesum"])
def test_the_limit_holds_for_the_dead(storage: dict[str, Any], mode: Any) -> None:
    """Of gauges with a value per process, the allowed number of ended processes stay, and one for all others."""

    def work(process: int) -> None:
        registry = CollectorRegistry()
        level = pdc.Gauge("level", "Level.", ["page"], registry=registry, multiprocess_mode=mode, max_series=4)
        for page in ("known", f"{process}-a", f"{process}-b"):
            level.labels(page).set(process + 1)
        if process == 3:
            level.remove("0-a")
        pdc.flush()

    for process in range(6):
        pdc.setup(**storage, flush_interval=3600)
        work(process)
        pdc.shutdown()
    pdc.setup(**storage)
    found = shown("level")
    if mode == "livesum":
        assert found == {}
        return
    kept = {f'{{page="{page}"}}' for page in ("known", "0-b", OVERFLOW)}
    assert kept <= set(found)
    assert len(found) == 5  # the order in which values are folded decides which ones of process 1 and 3 stay
    values = {"sum": (21, 2 * 18 + 2 - 4), "min": (1, 2), "max": (6, 6), "mostrecent": (6, 6)}
    assert (found['{page="known"}'], found[f'{{page="{OVERFLOW}"}}']) == values[mode]


def test_series_that_are_removed_make_room(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """The storage counts its series exactly, after creation, removal by all or some labels, refusal and new creation."""
    pdc.setup(**storage, max_series=6, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["page", "zone"], registry=registry)
    chance = random.Random(13)
    for round_ in range(60):
        for _ in range(3):
            hits.labels(chance.choice("abcdef"), chance.choice("xyz")).inc()
        if round_ % 3 == 0:
            hits.remove(chance.choice("abcdef"), chance.choice("xyz"))
        if round_ % 7 == 0:
            hits.remove_by_labels({"zone": chance.choice(["x", "y", "z", OVERFLOW])})
        found, counted = series_in_storage()
        assert len(found) == counted
        assert len(found) <= 6 + (f'{{"page":"{OVERFLOW}","zone":"{OVERFLOW}"}}' in found)
    hits.clear()
    hits.labels("a", "x").inc()
    assert series_in_storage() == ({'{"page":"a","zone":"x"}'}, 1)


def test_a_limit_counts_what_was_there_before(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A metric without a limit gets one with the next flush; its series stay."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry)
    for page in range(20):
        hits.labels(str(page)).inc()
    pdc.shutdown()
    pdc.setup(**storage, flush_interval=3600, max_series=10)
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=CollectorRegistry())
    for page in range(15, 25):
        hits.labels(str(page)).inc()
        pdc.flush()
    assert len(shown()) == 21
    assert shown()[f'{{page="{OVERFLOW}"}}'] == 5
    assert series_in_storage()[1] == 21


def test_a_batch_that_comes_again_is_refused_once(storage: dict[str, Any]) -> None:
    """A series over the limit counts once, however often its batch arrives, and the storage reports how many were refused."""
    pdc.setup(**storage)
    store, labels = config.DEFAULT.required(), [f'{{"page":"{page}"}}' for page in "abcd"]
    limits = Limits(2, '{"page":"o"}')
    batch = Batch("w", 1, [Update("hits", "{}", [Operation(Kind.ADD, f"_total:{each}", 1.0) for each in labels], True, limits)])
    assert [store.apply(batch).overflowed for _ in range(3)] == [{"hits": 2}, {}, {}]
    fields = store.read().metrics["hits"]
    assert {field: float(value) for field, value in fields.items() if field.startswith("_")} == {
        f"_total:{each}": value for each, value in ((labels[0], 1), (labels[1], 1), ('{"page":"o"}', 2))
    }
    assert float(fields["#series"]) == 3


def test_the_journal_of_a_killed_process_keeps_to_the_limit(
    storage: dict[str, Any], run_script: Callable[..., subprocess.CompletedProcess[str]], registry: CollectorRegistry
) -> None:
    """The journal of a killed process is sent under the limit of that process."""
    script = """
    import os, signal
    setup(flush_interval=3600, max_series=2)
    hits = pdc.Counter("hits", "Hits.", ["page"])
    for page in "PAGES":
        hits.labels(page).inc()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for pages in ("ab", "bc", "de"):
        killed = run_script(script.replace("PAGES", pages), storage=storage, check=False)
        assert killed.returncode == -signal.SIGKILL
        pdc.setup(**storage)
        pdc.Counter("others", "Others.", registry=registry and CollectorRegistry()).inc()
        pdc.shutdown()
    pdc.setup(**storage)
    assert shown() == {'{page="a"}': 1, '{page="b"}': 2, f'{{page="{OVERFLOW}"}}': 3}


def test_http_metrics_keep_to_their_option(storage: dict[str, Any]) -> None:
    """PDC_MAX_SERIES holds in the storage, for any number of workers; PDC_EXPIRE_SERIES is a limit of all metrics."""
    place: dict[str, Any] = {"redis_url": storage.get("redis"), "sqlite_path": storage.get("sqlite")}
    for worker in range(4):
        once.forget()  # the metrics of the process before
        gc.collect()
        metrics = HTTPMetrics(Options(**place, flush_interval=3600, max_series=3, expire_series=60))
        for path in ("/known", f"/{worker}"):
            requests, durations, _, _ = metrics.series.find("GET", path, 200, ())
            requests.inc()
            durations.observe(1)
        del metrics, requests, durations
        pdc.shutdown()
    pdc.setup(**{**storage, "redis_prefix": ""} if "redis" in storage else storage)
    for name in ("http_requests_total", "http_request_duration_seconds_count"):
        assert sorted(shown(name).values()) == [1, 1, 2, 4]
    assert any(field.startswith("#updated") for field in config.read(config.DEFAULT).metrics["http_requests"])


def test_a_child_knows_if_it_is_a_series_of_its_own(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """`bounded` gives the child of `labels`, and False if series share it: over the limit, or with several spellings."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry, max_series=2)
    for page, is_own in (("a", True), ("\ud800", False), ("b", False), ("a", True), ("\ufffd", True)):
        child, found = hits.bounded(page)
        assert (child, found) == (hits.labels(page), is_own)
        child.inc()
    assert shown() == {'{page="a"}': 2, '{page="\ufffd"}': 2, f'{{page="{OVERFLOW}"}}': 1}


@INTERVALS
@pytest.mark.parametrize("mode", ["shared", "livesum", "all"])
def test_an_adder_adds_to_its_gauge(storage: dict[str, Any], interval: float, mode: Any, registry: CollectorRegistry) -> None:
    """The function of `adder` changes the gauge as `inc` and `dec` do."""
    pdc.setup(**storage, flush_interval=interval)
    level = pdc.Gauge("level", "Level.", registry=registry, multiprocess_mode=mode)
    add = level.adder()
    level.inc()
    for amount in (2.5, -1.0):
        add(amount)
    assert [*shown("level").values()] == [2.5]


@INTERVALS
@pytest.mark.parametrize("mode", ["shared", "livesum"])
@pytest.mark.parametrize("native", [False, True])
def test_a_finisher_updates_three_metrics(
    storage: dict[str, Any], interval: float, mode: Any, registry: CollectorRegistry, native: bool
) -> None:
    """The function of `finisher` subtracts from the gauge, counts and observes, also after a reset and after a batch."""
    pdc.setup(**storage, flush_interval=interval)
    level = pdc.Gauge("level", "Level.", registry=registry, multiprocess_mode=mode)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    wait = pdc.Histogram("wait", "Wait.", registry=registry, buckets=(1.0, 2.0), native=native)
    finish, add = wait.finisher(hits), level.adder()
    finish(9.0, add)
    hits.reset()
    for seconds in (0.5, 1.0, 1.5):
        finish(seconds, add)
        pdc.flush()
        finish(seconds, add)
    assert (shown("level"), shown(), shown("wait_sum")) == ({"": -7.0}, {"": 6.0}, {"": 15.0})
    assert shown("wait_bucket") == {'{le="1.0"}': 4.0, '{le="2.0"}': 6.0, '{le="+Inf"}': 7.0}


def test_updates_over_the_limit_are_reported(
    storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """`pdc_series_refused_total` counts them, and the log names their metric once."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry, max_series=1)
    for page in "abcab":
        hits.labels(page).inc()
    pdc.flush()
    assert "\npdc_series_refused_total 3.0\n" in Scrape().answer().body.decode()
    reason = "has as many series as it may have (max_series, PDC_MAX_SERIES)"
    assert caplog.messages == [f"metric hits {reason}: new ones count as '<overflow>'"]
    assert hits.labels("b") is hits.labels("c")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        *(
            ({"max_series": limit}, "max_series must be a whole number, at least 1")
            for limit in (0, -1, 1.5, True, "5", math.nan)
        ),
        *(({"expire_series": limit}, "expire_series must be a number of seconds") for limit in (0, -1, True, "5", math.nan)),
    ],
)
def test_a_wrong_limit_is_refused(
    limits: dict[str, Any], message: str, storage: dict[str, Any], registry: CollectorRegistry
) -> None:
    """The message names the accepted values, wherever the limit is given, and the metric does not exist."""
    for call in (
        lambda: pdc.setup(**storage, **limits),
        lambda: pdc.Counter("hits", "Hits.", ["page"], registry=registry, **limits),
        lambda: pdc.Gauge("hits", "Hits.", ["page"], registry=registry, **limits),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert list(registry.collect()) == []


# Idle series

EXPIRE = 0.6


def wait_for_sweep(condition: Callable[[], Any]) -> None:
    """Flush until the condition holds: every flush removes idle series."""

    def flushed() -> Any:
        pdc.flush()
        return condition()

    wait_until(flushed)


@INTERVALS
@pytest.mark.parametrize("own", [True, False], ids=["metric", "setup"])
def test_idle_series_go_and_start_anew(
    storage: dict[str, Any], registry: CollectorRegistry, interval: float, own: bool
) -> None:
    """An updated series stays. An idle one goes, and returns with its next update, from 0 and with that creation time."""
    pdc.setup(**storage, flush_interval=interval, expire_series=None if own else EXPIRE)
    own_limit = EXPIRE if own else None
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry, expire_series=own_limit)
    seconds = pdc.Histogram("seconds", "Time.", ["page"], registry=registry, expire_series=own_limit)
    idle, busy = hits.labels("idle"), hits.labels("busy")
    idle.inc(7)
    seconds.labels("idle").observe(3)
    created = shown("hits_created")['{page="idle"}']

    def is_gone() -> bool:
        busy.inc()
        seconds.labels("busy").observe(1)
        return set(shown()) == {'{page="busy"}'} and set(shown("seconds_count")) == {'{page="busy"}'}

    wait_for_sweep(is_gone)
    assert is_gone()
    fields = {field for metric in ("hits", "seconds") for field in config.read(config.DEFAULT).metrics[metric]}
    assert not [field for field in fields if "idle" in field]
    back_at = time.time()
    idle.inc(2)
    seconds.labels("idle").observe(5)
    assert shown()['{page="idle"}'] == 2
    assert created < back_at <= shown("hits_created")['{page="idle"}']
    assert shown("seconds_sum")['{page="idle"}'] == 5
    assert shown()['{page="busy"}'] > 2


@pytest.fixture
def another(storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Storage]]:
    """Makes a storage like those of other processes, all with the same metrics; small pieces have few fields."""
    set_constants(monkeypatch, **SMALL_PIECES)
    opened: list[Storage] = []

    def make() -> Storage:
        is_sqlite = "sqlite" in storage
        opened.append(SqliteStorage(storage["sqlite"]) if is_sqlite else RedisStorage(storage["redis"], "test"))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


LIMITS = Limits(expire_series=1000.0)


def labels_of(page: object) -> str:
    """The labels of a series as fields spell them."""
    return f'{{"page":"{page}"}}'


def observation(page: object, created: float = 1.0) -> list[Operation]:
    """An update of a histogram that adds 1 to its sum and to one bucket."""
    bucket = f'_bucket:{{"le":"2.5","page":"{page}"}}'
    sums = [Operation(Kind.ADD, f"_sum:{labels_of(page)}", 1.0), Operation(Kind.ADD, bucket, 1.0)]
    return [*sums, Operation(Kind.INIT, f"_created:{labels_of(page)}", created), updated(labels_of(page))]


def send(store: Storage, sequence: int, *operations: Operation, writer: str = "1-a", limits: Limits = LIMITS) -> None:
    """Apply a batch for the metric."""
    store.apply(Batch(writer, sequence, [Update("hits", "{}", list(operations), limits=limits)]))


def grow_old(store: Storage, sequence: int, *pages: object, writer: str = "9-z") -> None:
    """Make series look idle for long, and let the next batch search for idle ones."""
    old = [Operation(Kind.SET, f"#updated{labels_of(page)}", "0 1.0") for page in pages]
    send(store, sequence, *old, Operation(Kind.SET, "#sweep", 1.0), writer=writer, limits=Limits())


def stored(store: Storage) -> dict[str, dict[str, float]]:
    """The numbers of each series, by the prefix of their fields."""
    found: dict[str, dict[str, float]] = {}
    for field, value in store.read().metrics["hits"].items():
        if field.startswith("_") and (labels := series_of(field)) is not None:
            found.setdefault(labels, {})[field.partition(":")[0]] = float(value)
    return found


def test_only_idle_series_go(another: Callable[[], Storage]) -> None:
    """One batch removes all idle series, whatever their number, with their bookkeeping, and nothing else."""
    store = another()
    send(store, 1, *(each for page in range(60) for each in observation(page)))
    grow_old(store, 1, *range(0, 60, 2))
    assert len(stored(store)) == 60
    send(store, 2)
    assert set(stored(store)) == {labels_of(page) for page in range(1, 60, 2)}
    fields = store.read().metrics["hits"]
    assert {series_of(field) for field in fields if "{" in field} == set(stored(store))
    assert float(fields["#sweep"]) > 1.0
    send(store, 3, *observation(0, created=2.0))
    assert stored(store)[labels_of(0)] == {"_sum": 1.0, "_bucket": 1.0, "_created": 2.0}


def test_series_that_are_updated_while_others_go_are_whole(
    another: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of a sweep others update idle series: each is complete with the update, or new with it."""
    store, other, chance = another(), another(), random.Random(5)
    send(store, 1, *(each for page in range(30) for each in observation(page)))
    sequence, updates = 1, dict.fromkeys(range(30), 0)

    def busy(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal sequence
        sequence += 1
        page = chance.randrange(30)
        updates[page] += 1
        send(other, sequence, *observation(page, float(sequence)), writer="2-b", limits=Limits())
        return original(*args, **kwargs)

    grow_old(other, 1, *range(30))
    driver, name = driver_call(store)
    with monkeypatch.context() as patch:
        patch.setattr(driver, name, partial(busy, getattr(driver, name)))
        send(store, 2)
    found = stored(other)
    assert set(found) == {labels_of(page) for page, count in updates.items() if count}
    for page, count in updates.items():
        if count:
            numbers = found[labels_of(page)]
            assert numbers["_sum"] == numbers["_bucket"]
            assert (numbers["_created"] == 1.0) == (numbers["_sum"] == 1.0 + count)


def test_a_batch_that_comes_again_brings_no_idle_series_back(another: Callable[[], Storage]) -> None:
    """A duplicate of an applied batch adds nothing to a series that went meanwhile."""
    store = another()
    send(store, 1, *observation("a"))
    grow_old(store, 1, "a")
    send(store, 1, *observation("a"))
    send(store, 2)
    send(store, 2)
    send(store, 1, *observation("a"))
    assert stored(store) == {}


def test_series_from_before_have_the_whole_time(another: Callable[[], Storage]) -> None:
    """A series last updated before its metric had such a limit counts as updated when the limit is first seen."""
    store = another()
    send(store, 1, *observation("a")[:-1], limits=Limits())
    send(store, 2)
    assert set(stored(store)) == {labels_of("a")}
    grow_old(store, 1, "a")
    send(store, 3)
    assert stored(store) == {}


def test_idle_series_make_room(another: Callable[[], Storage]) -> None:
    """Where the number of series is limited, too, new series replace idle ones."""
    store, limits = another(), Limits(2, labels_of(OVERFLOW), 1000.0)
    send(store, 1, *observation("a"), *observation("b"), *observation("c"), limits=limits)
    assert set(stored(store)) == set(map(labels_of, ("a", "b", OVERFLOW)))
    grow_old(store, 1, "a", OVERFLOW)
    send(store, 2, limits=limits)
    send(store, 3, *observation("c"), *observation("d"), limits=limits)
    assert set(stored(store)) == set(map(labels_of, ("b", "c", OVERFLOW)))
    assert float(store.read().metrics["hits"]["#series"]) == 3


@INTERVALS
def test_gauges_that_are_idle_stay_away(
    storage: dict[str, Any], registry: CollectorRegistry, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle gauge goes though its process lives and renews its value; with its next update it is back."""
    monkeypatch.setattr("pdc.delivery.flusher.BEAT_SECONDS", 0.05)
    pdc.setup(**storage, flush_interval=interval, expire_series=EXPIRE)
    modes: Any = ("livesum", "sum", "mostrecent", "all", "shared")
    gauges = [pdc.Gauge(f"g_{mode}", "G.", ["page"], registry=registry, multiprocess_mode=mode) for mode in modes]
    computed = pdc.Gauge("computed", "C.", ["page"], registry=registry)
    computed.labels("a").set_function(lambda: 5)
    for gauge in gauges:
        gauge.labels("idle").set(7)
    assert len(shown(r"g_\w+")) > 0
    wait_until(lambda: not shown(r"g_\w+"))  # no thread updates or flushes
    time.sleep(0.3)
    assert shown(r"g_\w+") == {}
    assert shown("computed") == {'{page="a"}': 5}
    for gauge in gauges:
        gauge.labels("idle").set(7)
    assert [value for gauge in gauges for (metric,) in [gauge.collect()] for _, _, value, *_ in metric.samples] == [7] * 5


def test_metrics_without_labels_stay(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Only series with labels go; a metric without labels is always shown, as in prometheus_client."""
    pdc.setup(**storage, expire_series=0.1)
    pdc.Counter("hits", "Hits.", registry=registry).inc(3)
    labelled = pdc.Info("version", "Version.", ["page"], registry=registry)
    labelled.labels("a").info({"v": "1"})

    def is_gone() -> bool:
        labelled.labels("b").info({})
        return not [page for page in shown("version_info") if '"a"' in page]

    wait_until(is_gone)
    assert shown() == {"": 3}


def test_unsent_data_of_a_killed_process_is_an_update(
    storage: dict[str, Any], run_script: Callable[..., subprocess.CompletedProcess[str]], registry: CollectorRegistry
) -> None:
    """An update from a journal counts as new when it is sent, however long the series was idle."""
    script = """
    import os, signal
    setup(flush_interval=3600, expire_series=1000)
    hits = pdc.Counter("hits", "Hits.", ["page"])
    hits.labels("a").inc()
    pdc.flush()
    hits.labels("a").inc()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_script(script, storage=storage, check=False).returncode == -signal.SIGKILL
    pdc.setup(**storage, journal=False, expire_series=1000)
    hits = pdc.Counter("hits", "Hits.", ["page"], registry=registry)
    grow_old(config.DEFAULT.required(), 1, "a")
    pdc.setup(**storage, expire_series=1000)
    hits.labels("b").inc()
    pdc.flush()
    hits.labels("b").inc()
    assert shown() == {'{page="a"}': 2, '{page="b"}': 2}


def test_idle_gauges_of_hundreds_of_processes_go(another: Callable[[], Storage], storage: dict[str, Any]) -> None:
    """Fields of a series that cannot be named, since their prefix is unknown, are found by a search."""
    store = another()
    for number in range(120):
        values = [Operation(Kind.STAMP, f"#sum:{number}-a:{labels_of(page)}", Stamped(1.0, 1.0)) for page in "abc"]
        send(store, 1, *values, *map(updated, map(labels_of, "abc")), writer=f"{number}-a")
    if "redis" in storage:
        with redis.Redis.from_url(storage["redis"]) as client:
            client.hdel("prometheus_test_hits", "#stems")
    grow_old(store, 1, "a", "c")
    send(store, 1, writer="8-y")
    fields = [field for field in store.read().metrics["hits"] if "{" in field]
    assert {series_of(field) for field in fields} == {labels_of("b")}
    assert len(fields) == 121
