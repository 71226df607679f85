"""Registries of prometheus_client with our metrics: one read for each scrape, no older than the scrape."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from operator import methodcaller
from typing import Any

import prometheus_client
import pytest
from conftest import RedisServer
from helpers import in_threads
from kinds import TYPES, UPDATES
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import RestrictedRegistry

import pdc
import pdc.redis
import pdc.sqlite
from pdc.delivery import dispatcher, target
from pdc.storage import Snapshot, Storage

Reads = list[list[str]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The names of the metrics that each read of a storage asks for."""
    asked: Reads = []
    read = target.found

    def found(storage: Storage, names: Collection[str] | None) -> Snapshot:
        asked.append(sorted(names or ()))
        return read(storage, names)

    monkeypatch.setattr(dispatcher, "found", found)
    return asked


class Other:
    """A collector of the application, without metrics."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self._act = act

    def collect(self) -> Iterator[Metric]:
        """Act."""
        self._act()
        yield from ()


def declare(registry: CollectorRegistry, count: int) -> list[Any]:
    """Metrics of all types, each updated once."""
    metrics = []
    for number in range(count):
        kind = TYPES[number % len(TYPES)]
        options = {"states": ["on", "off"]} if kind == "Enum" else {}
        metrics.append(getattr(pdc, kind)(f"m{number}", "Help", registry=registry, **options))
        UPDATES[kind](metrics[-1])
    return metrics


def value(registry: Any, name: str) -> float:
    """The value of that sample in a whole scrape of the registry."""
    (found,) = [sample.value for metric in registry.collect() for sample in metric.samples if sample.name == name]
    return float(found)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    "scrape",
    [
        generate_latest,
        openmetrics.generate_latest,
        lambda registry: make_wsgi_app(registry)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None),
        lambda registry: generate_latest(registry.restricted_registry([f"m{number}_created" for number in range(25)])),
        lambda registry: generate_latest(RestrictedRegistry(["m0_total", "m1", "m12_total"], registry)),
        methodcaller("get_sample_value", "m24_total"),
        lambda registry: registry.get_sample_value("m0_total"),
    ],
    ids=["text", "openmetrics", "wsgi", "restricted", "of names", "last sample", "first sample"],
)
def test_a_scrape_reads_once(scrape: Callable[[CollectorRegistry], object], registry: CollectorRegistry, reads: Reads) -> None:
    """One read serves all metrics of a scrape, whatever collectors come between them, and each scrape has its own."""
    for number in range(2):
        registry.register(Other())
        prometheus_client.Counter(f"plain{number}", "Help", registry=registry)
        if number == 0:
            declare(registry, 25)
    prometheus_client.Gauge("plain", "Help", registry=registry)
    pdc.Gauge("last", "Help", registry=registry)
    scrape(registry)
    reads.clear()
    scrape(registry)
    assert len(reads) == 1
    scrape(registry)
    assert len(reads) == 2


def test_round_trips_do_not_grow_with_the_metrics(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """A scrape of a hundred metrics takes as many round trips to Redis as one of a few."""
    pdc.setup(redis=redis_server.url, redis_prefix="test", flush_interval=3600)
    counts = []
    with redis_server.client() as client:
        for several in (CollectorRegistry(), registry):
            for number in range(100 if several is registry else 2):
                pdc.Counter(f"c{number}", "Help", registry=several).inc()
            generate_latest(several)
            before = client.info("stats")["total_reads_processed"]
            generate_latest(several)
            counts.append(client.info("stats")["total_reads_processed"] - before)
    assert counts[0] == counts[1] <= 5


@pytest.mark.usefixtures("ready")
def test_a_metric_that_is_collected_alone_is_read_each_time(registry: CollectorRegistry, reads: Reads) -> None:
    """Outside of a scrape each `collect` reads its metric, also amid a scrape and in a collector of the application."""
    counter, gauge = pdc.Counter("c", "Help", registry=registry), pdc.Gauge("g", "Help", registry=registry)
    gauge.set(1)
    seen: list[float] = []

    def collect_twice() -> None:
        for _ in range(2):
            gauge.inc()
            (metric,) = gauge.collect()
            seen.append(metric.samples[0].value)

    registry.register(Other(collect_twice))
    collect_twice()
    scrape = registry.collect()
    next(iter(scrape))
    collect_twice()
    list(scrape)
    assert seen == [2, 3, 4, 5, 6, 7]
    assert reads == [["g"], ["g"], ["c", "g"], ["g"], ["g"], ["g"], ["g"]]
    counter.inc()
    assert registry.get_sample_value("c_total") == 1


@pytest.mark.usefixtures("ready")
def test_no_value_is_older_than_its_scrape(registry: CollectorRegistry) -> None:
    """Scrapes that take turns in one thread each show what was counted before they began."""
    counters = [pdc.Counter(f"c{number}", "Help", registry=registry) for number in range(5)]
    begun: list[tuple[Any, float]] = []
    for number in range(5):
        for counter in counters:
            counter.inc()
        begun.append((iter(registry.collect()), number + 1.0))
        for scrape, least in begun:
            assert next(scrape).samples[0].value >= least
    for scrape, least in begun:
        assert [metric.samples[0].value >= least for metric in scrape].count(False) == 0


@pytest.mark.usefixtures("ready")
def test_a_collector_may_update_the_metrics_after_it(registry: CollectorRegistry, reads: Reads) -> None:
    """The same scrape shows the update, as in prometheus_client; a collector that updates nothing costs no read."""

    def update() -> None:
        for metric in (before, after, last):
            metric.inc()

    before = pdc.Counter("before", "Help", registry=registry)
    registry.register(Other(update))
    after = pdc.Counter("after", "Help", registry=registry)
    registry.register(Other())
    last = pdc.Counter("last", "Help", registry=registry)
    for number in range(3):
        reads.clear()
        shown = {metric.name: metric.samples[0].value for metric in registry.collect()}
        assert shown == {"before": number, "after": number + 1, "last": number + 1}
        assert reads == [["after", "before", "last"], ["after", "last"]]


@pytest.mark.usefixtures("ready")
def test_the_function_of_a_plain_gauge_may_update_the_metrics_after_it(registry: CollectorRegistry, reads: Reads) -> None:
    """The same scrape shows an update by the function of a gauge of prometheus_client; a gauge without one costs no read."""
    pdc.Counter("before", "Help", registry=registry)
    plain = prometheus_client.Gauge("plain", "Help", registry=registry)
    after = pdc.Counter("after", "Help", registry=registry)
    assert (value(registry, "after_total"), len(reads)) == (0, 1)

    def count() -> float:
        after.inc()
        return 1.0

    plain.set_function(count)
    assert [value(registry, "after_total") for _ in range(3)] == [1, 2, 3]


@pytest.mark.usefixtures("ready")
def test_a_function_is_called_once_and_after_the_collectors_before_it(registry: CollectorRegistry, reads: Reads) -> None:
    """Functions of gauges find all that a collector before them prepares, and each is called once per scrape."""
    calls: list[str] = []

    def count(name: str) -> float:
        calls.append(name)
        return calls.count("collector")

    def gauge(name: str) -> None:
        pdc.Gauge(name, "Help", registry=registry).set_function(lambda: count(name))

    gauge("a")
    registry.register(Other(lambda: calls.append("collector")))
    pdc.Counter("c", "Help", registry=registry)
    gauge("b")
    gauge("d")
    calls.clear()
    reads.clear()
    assert {metric.name: metric.samples[0].value for metric in registry.collect()} == {"a": 0, "c": 0, "b": 1, "d": 1}
    assert calls == ["a", "collector", "b", "d"]
    assert reads == [["a", "c"], ["b", "d"]]


def test_each_storage_is_read_once(redis_server: RedisServer, registry: CollectorRegistry, reads: Reads, tmp_path: Any) -> None:
    """In a registry with metrics of several storages each is read once, whatever the order of the metrics."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    pdc.setup(sqlite=tmp_path / "metrics.db")
    for number in range(3):
        for module in (pdc, pdc.sqlite, pdc.redis):
            module.Counter(f"{module.__name__.replace('.', '_')}{number}", "Help", registry=registry).inc(number)
    reads.clear()
    assert [value(registry, f"{name}2_total") for name in ("pdc", "pdc_sqlite", "pdc_redis")] == [2.0, 2.0, 2.0]
    assert [len(names) for names in reads] == [6, 3] * 3


@pytest.mark.parametrize("scrape", [generate_latest, lambda _: pdc.generate_latest()], ids=["registry", "page"])
def test_a_scrape_restores_lost_metrics_of_all_modules(
    redis_server: RedisServer, registry: CollectorRegistry, scrape: Callable[[CollectorRegistry], bytes]
) -> None:
    """Where the storage has lost metrics of `pdc` and `pdc.redis`, the next scrape shows both, although one read serves it."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    for module in (pdc, pdc.redis):
        module.Counter(f"{module.__name__.replace('.', '_')}_hits", "Hits.", registry=registry).inc()
    pdc.get_redis_conn().flushdb()
    shown = [line for line in scrape(registry).decode().splitlines() if "_hits_total" in line and line[0] != "#"]
    assert shown == ["pdc_hits_total 0.0", "pdc_redis_hits_total 0.0"]


@pytest.mark.usefixtures("ready")
def test_threads_scrape_at_once(registry: CollectorRegistry) -> None:
    """Threads that count and scrape at the same time see all that they counted themselves."""
    counter = pdc.Counter("c", "Help", ["user"], registry=registry)
    pdc.Counter("d", "Help", registry=registry).inc()
    users = iter("abcd")
    wrong: list[Any] = []

    def work() -> None:
        user = next(users)
        for number in range(10):
            counter.labels(user).inc()
            shown = {sample.labels.get("user"): sample.value for metric in registry.collect() for sample in metric.samples[::2]}
            if shown[user] != number + 1:
                wrong.append((user, number, shown))

    in_threads(4, work)
    assert wrong == []


@pytest.mark.usefixtures("ready")
def test_a_read_ends_with_its_scrape(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps what a scrape has read once it is over, also where nobody asks for the rest, or a collector raises."""
    kept: list[weakref.ref[Any]] = []
    read = target.found

    class Found(dict[str, Any]):
        """A dict that can be watched."""

    def found(storage: Storage, names: Collection[str] | None) -> Snapshot:
        now, metrics = read(storage, names)
        watched = Found(metrics)
        kept.append(weakref.ref(watched))
        return Snapshot(now, watched)

    monkeypatch.setattr(dispatcher, "found", found)
    declare(registry, 3)
    assert registry.get_sample_value("m0_total") == 1
    scrape = iter(registry.collect())
    next(scrape)
    assert kept[-1]() is not None
    del scrape
    registry.register(Other(lambda: 1 / 0))
    pdc.Counter("last", "Help", registry=registry)
    with pytest.raises(ZeroDivisionError):
        generate_latest(registry)
    assert [each() for each in kept] == [None, None, None]


@pytest.mark.usefixtures("ready")
def test_samples_belong_to_their_scrape(registry: CollectorRegistry) -> None:
    """A user may change the samples and labels of a scrape: the next one shows them as they are."""
    counter = pdc.Counter("c", "Help", ["path"], registry=registry)
    histogram = pdc.Histogram("h", "Help", ["path"], buckets=[1], registry=registry)
    counter.labels("/").inc()
    histogram.labels("/").observe(1)
    before = generate_latest(registry)
    for metric in registry.collect():
        for sample in metric.samples:
            sample.labels["added"] = sample.labels.pop("path")
        metric.samples.clear()
    assert generate_latest(registry) == before
