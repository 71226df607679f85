"""Declarations: before `setup`, again, with other arguments, and the end of a metric."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from helpers import shown
from kinds import TYPES, UPDATES, make
from prometheus_client import CollectorRegistry

import pdc
from pdc import config
from pdc.cells import FREE_THREADED
from pdc.delivery.health import NAMES
from pdc.metrics import declared_once


def test_metrics_may_be_declared_before_setup(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Metrics and series that were declared before `setup` are shown after it."""
    metrics = {kind: getattr(pdc, kind) for kind in TYPES[:3]}
    for kind, factory in metrics.items():
        factory(kind.lower(), "Help", registry=registry)
    pdc.Counter("labelled", "Help", ["path"], registry=registry).labels("/")
    pdc.setup(**storage)
    assert shown() == {
        "counter_total": 0.0,
        "gauge": 0.0,
        "summary_count": 0.0,
        "summary_sum": 0.0,
        'labelled_total{path="/"}': 0.0,
    }


def test_an_update_before_setup_names_the_remedy(registry: CollectorRegistry, storage: dict[str, Any]) -> None:
    """With nothing set up an update, a read and an empty flush name `setup`; the update is not counted later."""
    counter = make("Counter", registry=registry)
    for call in (
        counter.inc,
        pdc.generate_latest,
        pdc.clear,
        pdc.get_redis_conn,
        pdc.get_sqlite_conn,
        lambda: list(registry.collect()),
    ):
        with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup"):
            call()
    pdc.setup(**storage)
    assert shown() == {"m_total": 0.0}
    pdc.shutdown()
    with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup"):
        counter.inc()


@pytest.mark.usefixtures("ready")
def test_an_ordinary_registry_holds_the_metrics(registry: CollectorRegistry) -> None:
    """prometheus_client's registry collects, restricts, looks up and unregisters the metrics as its own."""
    counter = make("Counter", ["path"], registry=registry)
    counter.labels("/").inc(2)
    gauge = pdc.Gauge("g", "Help", registry=registry)
    assert registry.get_sample_value("m_total", {"path": "/"}) == 2.0
    assert registry.get_sample_value("m_total", {"path": "?"}) is None
    assert b"g 0.0" in prometheus_client.generate_latest(registry.restricted_registry(["g"]))
    registry.unregister(gauge)
    assert [family.name for family in registry.collect()] == ["m"]
    assert isinstance(counter, prometheus_client.Counter)
    assert [family.name for family in counter.describe()] == ["m"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.usefixtures("ready")
def test_a_duplicate_is_refused_and_leaves_the_storage_alone(registry: CollectorRegistry, kind: str) -> None:
    """A second metric of the same name in a registry is an error; the first one continues unchanged."""
    metric = make("Counter", ["path"], registry=registry)
    metric.labels("/").inc(2)
    before = pdc.generate_latest()
    with pytest.raises(ValueError, match="Duplicated"):
        make(kind, registry=registry)
    assert pdc.generate_latest() == before
    metric.labels("/").inc()
    assert shown() == {'m_total{path="/"}': 3.0}


@pytest.mark.parametrize("before", TYPES)
@pytest.mark.parametrize("after", TYPES)
def test_a_metric_may_change_its_type(before: str, after: str, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A program whose new version gives a name to another type counts on, whatever the old version stored."""
    pdc.setup(**storage)
    UPDATES[before](make(before, registry=None))
    pdc.shutdown()
    gc.collect()
    pdc.setup(**storage)
    metric = make(after, registry=registry)
    assert metric._type in {family.type for family in registry.collect()}
    assert pdc.generate_latest() == prometheus_client.generate_latest(registry)
    update: Callable[[Any], object] = (lambda gauge: gauge.inc()) if after == "Gauge" else UPDATES[after]
    update(metric)
    pdc.flush()
    assert pdc.generate_latest() == prometheus_client.generate_latest(registry)


class NoText:
    """An object that looks like a text but cannot be made one."""

    def encode(self) -> bytes:
        """Look like a text."""
        return b""

    def __str__(self) -> str:
        raise LookupError("no translations yet")


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *((kind, {"documentation": wrong}, TypeError, "documentation") for kind in TYPES for wrong in (None, b"Help", 3, str)),
    ("Gauge", {"documentation": NoText()}, LookupError, "no translations"),
    ("Counter", {"labelnames": ["a", 1]}, TypeError, "label name"),
    ("Counter", {"labelnames": ["a", ""]}, ValueError, "label name"),
    ("Counter", {"namespace": 1}, TypeError, "namespace"),
    ("Counter", {"subsystem": b"sub"}, TypeError, "subsystem"),
    ("Counter", {"unit": 1}, TypeError, "unit"),
    ("Enum", {"states": [1, 2]}, TypeError, "state"),
    ("Enum", {"states": ["on", None]}, TypeError, "state"),
    ("Enum", {"labelnames": ["ns_m"], "namespace": "ns"}, ValueError, "Overlapping"),
    ("Histogram", {"buckets": [1, float("nan")]}, ValueError, "bucket"),
    ("Histogram", {"buckets": [None]}, TypeError, "float"),
    ("Gauge", {"multiprocess_mode": 1}, TypeError, "str"),
]


def test_arguments_that_are_no_text_are_refused_and_change_nothing(registry: CollectorRegistry, tmp_path: Path) -> None:
    """A constructor that raises leaves the registry, the buffer and the storage unchanged; other metrics count on."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    good = pdc.Counter("good", "Help", registry=registry)
    good.inc(20)
    for kind, options, error, message in WRONG:
        states = {"states": ["on"]} if kind == "Enum" else {}
        with pytest.raises(error, match=message):
            getattr(pdc, kind)("m", **{"documentation": "Help", "registry": registry, **states, **options})
    good.inc()
    assert list(registry._collector_to_names) == [good]
    assert prometheus_client.generate_latest(registry) == pdc.generate_latest()
    assert shown() == {"good_total": 21.0}
    pdc.setup(sqlite=tmp_path / "other.db")
    assert config.DEFAULT.required().read().metrics.keys() - NAMES == {"good"}


def test_a_declaration_that_is_interrupted_can_be_made_again(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the declaration of a metric, the registry does not have it, and its name is free."""
    pdc.setup(**storage)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(config.DEFAULT, "declare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make("Counter", registry=registry)
    make("Counter", registry=registry).inc()
    assert shown() == {"m_total": 1.0}


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Disable the garbage collector, so that only references keep objects alive."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("ready", "without_collector")
def test_a_dropped_metric_does_not_come_back(registry: CollectorRegistry, tmp_path: Path) -> None:
    """The counts of a dropped metric are sent; `clear` and `setup` do not declare it again, without garbage collection."""
    known = []
    for kind, labelnames in product(TYPES, ((), ("path",))):
        metric = make(kind, labelnames, registry=registry)
        series = metric.labels("/") if labelnames else metric
        UPDATES[kind](series)
        before = shown()
        known.append(weakref.ref(series._metric_cells))
        registry.unregister(metric)
        del metric, series
        assert shown() == before != {}
        pdc.clear()
        assert shown() == {}
    other = pdc.Counter("other", "Help", registry=registry)
    if FREE_THREADED:
        gc.collect()  # there a `threading.local` is in a cycle, and so is its cell
    assert [reference for reference in known if reference() is not None] == []
    pdc.clear()
    assert shown() == {"other_total": 0.0}
    pdc.setup(sqlite=tmp_path / "other.db")
    assert shown() == {"other_total": 0.0}
    other.inc()
    assert shown() == {"other_total": 1.0}


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("interval", [0, 3600])
def test_updates_of_a_dropped_metric_are_sent(interval: float, storage: dict[str, Any]) -> None:
    """An update is sent though the program dropped its metric, or holds only a child, also an update of a text."""
    pdc.setup(**storage, flush_interval=interval)
    for _ in range(3):
        pdc.Counter("m", "Help", registry=None).inc(2)
        child = pdc.Counter("c", "Help", ["path"], registry=None).labels("/")
        pdc.Info("i", "Help", registry=None).info({"version": "1"})
        child.inc()
    pdc.Counter("d", "Help", registry=None).inc(2)
    assert shown() == {"m_total": 6.0, 'c_total{path="/"}': 3.0, 'i_info{version="1"}': 1.0, "d_total": 2.0}
    pdc.clear()
    child.inc()
    assert shown() == {'c_total{path="/"}': 1.0}


@pytest.mark.usefixtures("ready")
def test_the_last_declaration_counts(registry: CollectorRegistry) -> None:
    """Of two metrics of one name both count; help and functions come from the last one declared that still lives."""
    first = pdc.Gauge("m", "First.", registry=None)
    calls: list[int] = []
    first.set_function(lambda: calls.append(1) or 1.0)  # type: ignore[func-returns-value]  # None or 1.0
    counters = [pdc.Counter("c", "First.", registry=None)]
    counters[0].inc()
    second = pdc.Gauge("m", "Second.", registry=registry)
    counters.append(pdc.Counter("c", "Second.", registry=registry))
    second.set(7)
    for counter in counters:
        counter.inc(2)
        called = len(calls)
        assert shown("m") == {"m": 7.0}
        assert len(calls) == called
        text = pdc.generate_latest()
        assert (text.count(b"Second."), text.count(b"First.")) == (3, 0)
    assert shown("c") == {"c_total": 5.0}
    registry.unregister(second)
    del second
    assert shown("m") == {"m": 1.0}


def test_two_metrics_of_one_name_set_a_series_in_order(storage: dict[str, Any]) -> None:
    """Where two metrics of one name set the same series before it is sent, it has the value of the later one."""
    pdc.setup(**storage, flush_interval=3600)
    first, second = (pdc.Gauge("m", "Level.", ["tank"], registry=None) for _ in range(2))
    pdc.flush()  # the declarations
    for gauge, tank, value in ((second, "b", 0), (first, "a", 1), (second, "a", 2)):
        gauge.labels(tank).set(value)
    assert shown("m") == {'m{tank="a"}': 2.0, 'm{tank="b"}': 0.0}


@declared_once
def _shared() -> tuple[pdc.Counter, tuple[pdc.Gauge, pdc.Gauge]]:
    """Metrics of all applications of the process, as those of requests."""
    busy = pdc.Gauge("busy", "Help", ["path"], registry=None, multiprocess_mode="livesum")
    return pdc.Counter("c", "Help", ["path"], registry=None, max_series=2), (busy, pdc.Gauge("g", "Help", registry=None))


@pytest.mark.parametrize("interval", [0, 3600])
def test_shared_metrics_start_empty_in_another_storage(interval: float, storage: dict[str, Any], tmp_path: Path) -> None:
    """Metrics that applications share show what goes on and what is updated there, also after that storage lost its data."""
    pdc.setup(**storage, flush_interval=interval)
    counter, (busy, gauge) = _shared()
    for path in ("/a", "/b"):
        counter.labels(path).inc()
        busy.labels(path).inc()
    gauge.set(7)
    busy.labels("/b").dec()
    before = {'c_total{path="/a"}': 1.0, 'c_total{path="/b"}': 1.0, "g": 7.0}
    assert shown() == {**before, 'busy{path="/a"}': 1.0, 'busy{path="/b"}': 0.0}
    pdc.setup(sqlite=tmp_path / "other.db", flush_interval=interval)
    config.DEFAULT._beat(1e9)
    assert shown() == {'busy{path="/a"}': 1.0}
    counter.labels("/b").inc(2)
    counter.labels("/c").inc(3)
    others = {'busy{path="/a"}': 1.0, 'c_total{path="/b"}': 2.0, 'c_total{path="/c"}': 3.0}
    assert shown() == others
    config.DEFAULT._work.restart_due = True  # as where the storage has lost its data
    assert shown() == others
    assert _shared()[0] is counter
    busy.labels("/a").dec()
    pdc.shutdown()
    pdc.setup(**storage, flush_interval=interval)
    assert shown() == before
    gauge.inc()
    assert shown() == {**before, "g": 8.0}
