"""The metric classes, over every storage."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import UserString
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from conftest import ROOT, RedisServer, wait_until
from helpers import shown
from prometheus_client import CollectorRegistry

import pdc
import pdc.family
import pdc.redis
import pdc.sqlite
from pdc import config
from pdc.cells import FREE_THREADED

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]
TYPES = ("Counter", "Gauge", "Summary", "Histogram", "Info", "Enum")
UPDATES: dict[str, Callable[[Any], object]] = {
    "Counter": lambda metric: metric.inc(),
    "Gauge": lambda metric: metric.set(1),
    "Summary": lambda metric: metric.observe(1),
    "Histogram": lambda metric: metric.observe(1),
    "Info": lambda metric: metric.info({"version": "1"}),
    "Enum": lambda metric: metric.state("off"),
}
"""One update of a metric of each type."""


def make(kind: str, *arguments: Any, module: Any = pdc, **options: Any) -> Any:
    """A metric of that type with the name `m`."""
    if kind == "Enum":
        options.setdefault("states", ["on", "off"])
    return getattr(module, kind)("m", "Help", *arguments, **options)


@pytest.fixture(params=[0, 3600], ids=["write-through", "buffered"])
def ready(request: pytest.FixtureRequest, storage: dict[str, Any]) -> None:
    """A storage that is set up, with and without a buffer."""
    pdc.setup(**storage, flush_interval=request.param)


@pytest.fixture
def without_created() -> Iterator[None]:
    """Disable `_created` series."""
    prometheus_client.disable_created_metrics()
    yield
    prometheus_client.enable_created_metrics()


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script that lives until it gets a line, or is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, storage: dict[str, Any]) -> subprocess.Popen[str]:
        code = f"import pdc\npdc.setup(**{storage!r})\n{textwrap.dedent(source)}\nprint('ready', flush=True)\ninput()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Gauge", {"multiprocess_mode": "median"}, "multiprocess mode"),
        ("Counter", {"labelnames": ["__reserved"]}, "Reserved"),
        ("Summary", {"labelnames": ["quantile"]}, "Reserved"),
        ("Histogram", {"labelnames": ["le"]}, "Reserved"),
        ("Histogram", {"buckets": [2, 1]}, "sorted"),
        ("Histogram", {"buckets": []}, "two buckets"),
        ("Info", {"unit": "bytes"}, "unit"),
        ("Enum", {"unit": "bytes"}, "unit"),
        ("Enum", {"states": []}, "states"),
        ("Enum", {"labelnames": ["m"]}, "Overlapping"),
    ],
)
@pytest.mark.usefixtures("ready")
def test_wrong_arguments_are_refused(registry: CollectorRegistry, kind: str, options: dict[str, Any], message: str) -> None:
    """Arguments that prometheus_client refuses are refused, and change neither the registry nor the storage."""
    with pytest.raises(ValueError, match=message):
        make(kind, registry=registry, **options)
    assert pdc.generate_latest(registry) == b""


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("labelnames", [(), ("path",)])
@pytest.mark.usefixtures("ready", "without_created")
def test_series_show_before_their_first_update(registry: CollectorRegistry, kind: str, labelnames: tuple[str, ...]) -> None:
    """Metrics without labels, and series of `labels()`, are shown at once; a parent shows help and type."""
    reference = CollectorRegistry()
    parent = make(kind, labelnames, "ns", "sub", registry=registry)
    in_memory = make(kind, labelnames, "ns", "sub", registry=reference, module=prometheus_client)
    assert pdc.generate_latest() == prometheus_client.generate_latest(reference)
    if labelnames:
        assert parent.labels("/") is parent.labels(path="/")
        in_memory.labels("/")
        assert pdc.generate_latest() == prometheus_client.generate_latest(reference)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.usefixtures("ready")
def test_a_parent_refuses_updates(registry: CollectorRegistry, kind: str) -> None:
    """An update of a metric with labels, but without their values, is a ValueError that names the missing labels."""
    parent = make(kind, ["path"], registry=registry)
    with pytest.raises(ValueError, match="missing label values"):
        UPDATES[kind](parent)
    if kind == "Counter":
        with pytest.raises(ValueError, match="missing label values"):
            parent.inc(exemplar={"trace_id": "1"})
    assert shown() == {}


class Colour(str, Enum):
    """An enumeration whose members are strings, but are not shown as such."""

    RED = "red"


@pytest.mark.usefixtures("ready")
def test_values_of_labels_are_their_text(registry: CollectorRegistry) -> None:
    """Equal values of labels are other series where `str()` makes another text of them, as in prometheus_client."""
    counters = [
        prometheus_client.Counter("m", "Help", ["path"], registry=CollectorRegistry()),
        pdc.Counter("m", "Help", ["path"], registry=registry),
    ]
    for value in ("red", Colour.RED, 1, True, 1.0, None):
        for counter in counters:
            counter.labels(value).inc()
            counter.labels(path=value).inc()
    expected = {str(child[0]): 2.0 for child in counters[0]._metrics}
    assert len(expected) == 6
    assert shown() == {f'm_total{{path="{value}"}}': count for value, count in expected.items()}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda parent: parent.labels(), ValueError, "label count"),
        (lambda parent: parent.labels("a"), ValueError, "label count"),
        (lambda parent: parent.labels("a", "b", "c"), ValueError, "label count"),
        (lambda parent: parent.labels("a", b="b"), ValueError, "both"),
        (lambda parent: parent.labels(a="a"), ValueError, "label names"),
        (lambda parent: parent.labels(a="a", c="c"), ValueError, "label names"),
        (lambda parent: parent.labels("a", "b").labels("a", "b"), ValueError, "already has labels"),
        (lambda parent: parent.remove("a"), ValueError, "label count"),
        (lambda parent: parent.remove_by_labels({"c": "c"}), ValueError, "Unknown label names"),
        (lambda parent: parent.remove_by_labels(["a"]), TypeError, "dict"),
    ],
)
def test_wrong_labels_are_refused(
    registry: CollectorRegistry, tmp_path: Path, kind: str, call: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    """Labels other than the metric's are refused, and nothing is removed."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    parent = make(kind, ["a", "b"], registry=registry)
    parent.labels("a", "b")
    before = pdc.generate_latest()
    with pytest.raises(error, match=message):
        call(parent)
    assert pdc.generate_latest() == before


@pytest.mark.parametrize("kind", TYPES)
def test_a_metric_without_labels_has_none_to_name_or_remove(registry: CollectorRegistry, tmp_path: Path, kind: str) -> None:
    """`labels`, `remove` and `remove_by_labels` are refused without label names; `clear` does nothing."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    metric = make(kind, registry=registry)
    UPDATES[kind](metric)
    before = pdc.generate_latest()
    calls: list[Callable[[], object]] = [
        lambda: metric.labels("a"),
        lambda: metric.labels(a="a"),
        lambda: metric.remove("a"),
        lambda: metric.remove_by_labels({}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="No label names"):
            call()
    metric.clear()
    assert pdc.generate_latest() == before


@pytest.mark.parametrize(
    ("kind", "options", "call", "error"),
    [
        ("Counter", {}, lambda metric: metric.inc(-1), ValueError),
        ("Counter", {}, lambda metric: metric.inc("1"), TypeError),
        ("Counter", {}, lambda metric: metric.inc(10**400), OverflowError),
        ("Counter", {}, lambda metric: metric.inc(1, {"a": "x" * 128}), ValueError),
        ("Counter", {}, lambda metric: metric.inc(1, {"__a": "x"}), ValueError),
        ("Counter", {}, lambda metric: metric.inc(-1, {"a": "x"}), ValueError),
        ("Gauge", {}, lambda metric: metric.set("one"), ValueError),
        ("Gauge", {}, lambda metric: metric.inc(None), TypeError),
        ("Gauge", {}, lambda metric: metric.dec("1"), TypeError),
        ("Gauge", {"multiprocess_mode": "mostrecent"}, lambda metric: metric.inc(), RuntimeError),
        ("Gauge", {"multiprocess_mode": "livemostrecent"}, lambda metric: metric.dec(), RuntimeError),
        ("Gauge", {"multiprocess_mode": "sum"}, lambda metric: metric.inc("1"), TypeError),
        ("Summary", {}, lambda metric: metric.observe("1"), TypeError),
        ("Histogram", {}, lambda metric: metric.observe("1"), TypeError),
        ("Histogram", {}, lambda metric: metric.observe(10**400), OverflowError),
        ("Histogram", {}, lambda metric: metric.observe(1, {"a": "x" * 128}), ValueError),
        ("Info", {}, lambda metric: metric.info({"version": None}), ValueError),
        ("Enum", {}, lambda metric: metric.state("unknown"), ValueError),
    ],
)
@pytest.mark.usefixtures("ready")
def test_a_wrong_update_counts_nothing(
    registry: CollectorRegistry, kind: str, options: dict[str, Any], call: Callable[[Any], object], error: type[Exception]
) -> None:
    """An update that raises leaves the metric as it was, and the next one is counted."""
    metric = make(kind, registry=registry, **options)
    before = pdc.generate_latest()
    with pytest.raises(error):
        call(metric)
    assert pdc.generate_latest() == before
    UPDATES[kind](metric)
    assert pdc.generate_latest() != before


@pytest.mark.usefixtures("ready")
def test_an_info_refuses_keys_that_are_its_labels(registry: CollectorRegistry) -> None:
    """A key of an info metric that is one of its labels is refused."""
    info = pdc.Info("m", "Help", ["host"], registry=registry).labels("a")
    with pytest.raises(ValueError, match=r"Overlapping labels.*host"):
        info.info({"host": "b"})
    assert shown() == {'m_info{host="a"}': 1.0}


@pytest.mark.usefixtures("ready")
def test_texts_that_no_format_carries_are_replaced(registry: CollectorRegistry) -> None:
    """Lone surrogates in help, labels, keys and states do not break a scrape in UTF-8."""
    pdc.Info("m", "\ud800", ["path"], registry=registry).labels("\ud800").info({"\ud800": "\ud800"})
    pdc.Enum("e", "\ud800", states=["\ud800", "on"], registry=registry).state("\ud800")
    text = prometheus_client.generate_latest(registry, escaping="allow-utf-8").decode()
    assert 'm_info{path="\ufffd","\ufffd"="\ufffd"} 1.0\n' in text
    assert 'e{e="\ufffd"} 1.0\n' in text


@pytest.mark.usefixtures("ready")
def test_a_nan_is_in_the_sum_and_in_no_bucket(registry: CollectorRegistry) -> None:
    """An observed NaN makes the sum NaN, and counts in a summary, but not in a histogram."""
    make("Histogram", registry=registry, buckets=[1]).observe(float("nan"))
    pdc.Summary("s", "Help", registry=registry).observe(float("nan"))
    assert re.sub("(?m)^#.*\n|.*_created.*\n", "", pdc.generate_latest().decode()) == (
        'm_bucket{le="1.0"} 0.0\nm_bucket{le="+Inf"} 0.0\nm_count 0.0\nm_sum NaN\ns_count 1.0\ns_sum NaN\n'
    )


@pytest.mark.usefixtures("ready")
def test_zero_keeps_its_sign_as_in_ieee_754(registry: CollectorRegistry) -> None:
    """-0.0 plus -0.0 is -0.0, and plus 0.0 it is 0.0."""
    gauge = make("Gauge", registry=registry)
    for amount, expected in ((-0.0, b"m -0.0\n"), (0.0, b"m 0.0\n")):
        gauge.set(-0.0)
        assert pdc.generate_latest().endswith(b"m -0.0\n")
        gauge.inc(amount)
        assert pdc.generate_latest().endswith(expected)


@pytest.mark.usefixtures("ready")
def test_children_have_what_a_subclass_sets(registry: CollectorRegistry) -> None:
    """Attributes that a subclass sets before or after it calls the constructor are those of its children, too."""

    class Owned(pdc.Counter):
        def __init__(self, name: str) -> None:
            self.team = "shop"
            super().__init__(name, "Help.", ["path"], registry=registry)
            self.owner = "anna"

    metric = Owned("m")
    for each in (metric, metric.labels("/")):
        assert (each.team, each.owner) == ("shop", "anna")


@pytest.mark.usefixtures("ready")
def test_a_child_collects_its_own_samples(registry: CollectorRegistry) -> None:
    """`collect` of a child gives the samples of its series alone, without its labels."""
    parent = make("Histogram", ["a", "b"], registry=registry, buckets=[1])
    child = parent.labels("1", "2")
    child.observe(0.5)
    parent.labels("1", "3").observe(7)
    (family,) = child.collect()
    samples = [(sample.name, sample.labels, sample.value) for sample in family.samples if sample.name != "m_created"]
    assert samples == [
        ("m_bucket", {"le": "1.0"}, 1.0),
        ("m_bucket", {"le": "+Inf"}, 1.0),
        ("m_count", {}, 1.0),
        ("m_sum", {}, 0.5),
    ]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("removal", "left"),
    [
        ("remove('1', '2')", {("1", "3"), ("2", "3")}),
        ("remove_by_labels({'a': '1'})", {("2", "3")}),
        ("remove_by_labels({'a': 1, 'b': 3})", {("1", "2"), ("2", "3")}),
        ("remove_by_labels({})", {("1", "2"), ("1", "3"), ("2", "3")}),
        ("clear()", set()),
    ],
)
def test_a_removal_reaches_other_processes(
    kind: str,
    removal: str,
    left: set[tuple[str, str]],
    storage: dict[str, Any],
    registry: CollectorRegistry,
    run_script: RunScript,
) -> None:
    """A series removed by one process is gone for all, and starts again with the next update."""
    pdc.setup(**storage)
    parent = make(kind, ["a", "b"], registry=registry)
    children = {values: parent.labels(*values) for values in (("1", "2"), ("1", "3"), ("2", "3"))}
    for child in children.values():
        UPDATES[kind](child)
    before = pdc.generate_latest()
    options = ", states=['on', 'off']" if kind == "Enum" else ""
    run_script(f"setup()\npdc.{kind}('m', 'Help', ['a', 'b']{options}).{removal}", storage=storage)
    text = pdc.generate_latest().decode()
    assert set(re.findall('a="(.)",b="(.)"', text)) == left
    for values in children.keys() - left:
        UPDATES[kind](children[values])
    again = pdc.generate_latest()
    strip = re.compile(rb"(?m)^m_created.*\n")
    assert strip.sub(b"", again) == strip.sub(b"", before)


@pytest.mark.usefixtures("ready")
def test_a_child_that_was_removed_is_inert(registry: CollectorRegistry) -> None:
    """Updates of a removed child count nothing; `labels` gives a new one."""
    parent = make("Counter", ["path"], registry=registry)
    held = parent.labels("/")
    held.inc(3)
    parent.remove("/")
    held.inc(3)
    assert shown() == {}
    parent.labels("/").inc()
    held.inc(3)
    held.reset()
    assert shown() == {'m_total{path="/"}': 1.0}


def test_a_reset_reaches_other_processes(storage: dict[str, Any], registry: CollectorRegistry, run_script: RunScript) -> None:
    """A counter that one process resets is zero for all, and created anew."""
    pdc.setup(**storage)
    counter = make("Counter", registry=registry)
    counter.inc(3)
    before = registry.get_sample_value("m_created")
    run_script("setup()\npdc.Counter('m', 'Help').reset()", storage=storage)
    assert shown() == {"m_total": 0.0}
    assert before is not None
    assert before < (registry.get_sample_value("m_created") or 0)
    counter.inc(2)
    assert shown() == {"m_total": 2.0}


def test_processes_share_every_type(storage: dict[str, Any], registry: CollectorRegistry, run_script: RunScript) -> None:
    """Counters, summaries and histograms of processes add up; of gauges, infos and enums the last one wins."""
    pdc.setup(**storage)
    metrics = {kind: getattr(pdc, kind)(kind.lower(), "Help", registry=registry) for kind in TYPES[:3]}
    metrics["Histogram"] = pdc.Histogram("histogram", "Help", buckets=[1, 3], registry=registry)
    metrics["Info"] = pdc.Info("info", "Help", registry=registry)
    metrics["Enum"] = pdc.Enum("enum", "Help", states=["on", "off"], registry=registry)
    for kind, metric in metrics.items():
        UPDATES[kind](metric)
    source = """
        setup()
        pdc.Counter("counter", "Help").inc(2)
        pdc.Gauge("gauge", "Help").inc(2)
        pdc.Summary("summary", "Help").observe(2)
        pdc.Histogram("histogram", "Help", buckets=[2, 3]).observe(2)
        pdc.Info("info", "Help").info({"host": "b"})
        pdc.Enum("enum", "Help", states=["on", "off"]).state("on")
        """
    run_script(source, storage=storage)
    assert shown() == {
        "counter_total": 3.0,
        "gauge": 3.0,
        "summary_count": 2.0,
        "summary_sum": 3.0,
        'histogram_bucket{le="1.0"}': 1.0,
        'histogram_bucket{le="2.0"}': 2.0,
        'histogram_bucket{le="3.0"}': 2.0,
        'histogram_bucket{le="+Inf"}': 2.0,
        "histogram_count": 2.0,
        "histogram_sum": 3.0,
        'info_info{host="b"}': 1.0,
        'enum{enum="on"}': 1.0,
        'enum{enum="off"}': 0.0,
    }


@pytest.mark.parametrize("kind", ["Counter", "Summary", "Histogram"])
def test_created_is_the_time_of_the_first_process(
    kind: str, storage: dict[str, Any], registry: CollectorRegistry, run_script: RunScript
) -> None:
    """Later processes keep the time of creation; it is hidden where it is disabled."""
    earliest = time.time()
    pdc.setup(**storage, flush_interval=3600)
    metric = make(kind, registry=registry)
    declared = time.time()
    UPDATES[kind](metric)
    pdc.flush()
    created = registry.get_sample_value("m_created")
    assert created is not None
    assert earliest <= created <= declared
    run_script(
        f"setup()\nmetric = pdc.{kind}('m', 'Help')\n(getattr(metric, 'inc', None) or metric.observe)(1)", storage=storage
    )
    assert registry.get_sample_value("m_created") == created
    prometheus_client.disable_created_metrics()
    try:
        assert b"_created" not in pdc.generate_latest()
    finally:
        prometheus_client.enable_created_metrics()
    assert b"_created" in pdc.generate_latest()


@pytest.mark.usefixtures("without_created")
@pytest.mark.parametrize("kind", ["Counter", "Summary", "Histogram"])
def test_no_creation_is_stored_while_none_is_shown(storage: dict[str, Any], registry: CollectorRegistry, kind: str) -> None:
    """Without created series, storages keep no creation time; the first update after they are enabled sets it."""
    pdc.setup(**storage)
    metric = make(kind, registry=registry)
    UPDATES[kind](metric)
    fields = config.DEFAULT.required().read().metrics["m"]
    assert [field for field in fields if field.startswith("_created")] == []
    prometheus_client.enable_created_metrics()
    assert registry.get_sample_value("m_created") is None
    enabled = time.time()
    UPDATES[kind](metric)
    assert (registry.get_sample_value("m_created") or 0) >= enabled


def test_series_that_start_again_are_created_anew(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """After `pdc.clear()`, or in the storage of another `setup`, counting starts at zero, with a new creation time."""
    pdc.setup(**storage)
    counter = make("Counter", registry=registry)
    counter.inc()
    other: dict[str, Any] = {"redis_prefix": "other"} if "redis" in storage else {"sqlite": storage["sqlite"] + "2"}
    for start_again in (pdc.clear, lambda: pdc.setup(**{**storage, **other})):
        before = time.time()
        start_again()
        counter.inc()
        assert registry.get_sample_value("m_total") == 1.0
        assert before <= (registry.get_sample_value("m_created") or 0) <= time.time()


MODES = ("all", "min", "max", "sum", "mostrecent", "liveall", "livemin", "livemax", "livesum", "livemostrecent", "shared")
SET_ALL = f"""
gauges = [pdc.Gauge("g_" + mode, "Help", ["path"], multiprocess_mode=mode) for mode in {MODES}]
for gauge in gauges:
    gauge.labels("/").set(VALUE)
"""


def test_gauge_modes_over_processes(
    storage: dict[str, Any],
    run_script: RunScript,
    start_script: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each mode merges the values of processes as prometheus_client does; the live modes count living ones.

    A process that exits goes at once, a killed one when its lease is over.
    """
    pdc.setup(**storage)

    def modes() -> dict[str, float | list[float]]:
        found: dict[str, Any] = {}
        for sample, value in shown("g_").items():
            mode = sample.removeprefix("g_").partition("{")[0]
            if mode.endswith("all"):
                assert re.search(r'path="/",pid="\d+-[0-9a-f]+"', sample)
                found[mode] = sorted([*found.get(mode, []), value])
            else:
                assert sample.endswith('{path="/"}')
                found[mode] = value
        return found

    def of(values: list[float], last: float) -> list[Any]:
        return [sorted(values), min(values), max(values), sum(values), last]

    run_script("setup()\n" + SET_ALL.replace("VALUE", "9"), storage=storage)
    leaving = start_script(SET_ALL.replace("VALUE", "7"), storage)
    killed = start_script(SET_ALL.replace("VALUE", "5"), storage)
    run_script("setup()\n" + SET_ALL.replace("VALUE", "1"), storage=storage)
    everyone = of([9, 7, 5, 1], 1)
    assert modes() == dict(zip(MODES, [*everyone, *of([7, 5], 5), 1], strict=True))
    leaving.communicate("\n")
    assert leaving.returncode == 0
    assert modes() == dict(zip(MODES, [*everyone, *of([5], 5), 1], strict=True))
    killed.kill()
    killed.wait()
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.0)
    assert modes() == dict(zip((*MODES[:5], "shared"), [*everyone, 1], strict=True))


@pytest.mark.parametrize("mode", ["shared", "all", "livesum", "max"])
def test_a_function_is_the_value_of_a_gauge(
    mode: Any, storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The function is called for every scrape and flush; other updates do nothing; on an error the value stays."""
    pdc.setup(**storage, flush_interval=3600)
    gauge = pdc.Gauge("m", "Help", ["path"], registry=registry, multiprocess_mode=mode)
    values: list[Any] = [2, 3]
    gauge.labels("/").set(9)
    gauge.labels("/").set_function(lambda: values[0])
    gauge.labels("/").inc(5)
    gauge.labels("/").set(5)
    assert list(shown().values()) == [2.0]
    values.pop(0)
    pdc.flush()
    assert list(shown().values()) == [3.0]
    values.clear()
    assert list(shown().values()) == [3.0]
    assert "the function of the gauge m failed" in caplog.text
    gauge.remove("/")
    values.append(4)
    assert shown() == {}


def test_functions_of_processes_are_merged(
    storage: dict[str, Any], registry: CollectorRegistry, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    """In a mode with a value for each process the functions of all living processes count."""
    pdc.setup(**storage)
    pdc.Gauge("m", "Help", registry=registry, multiprocess_mode="livesum").set_function(lambda: 2)
    other = start_script("pdc.Gauge('m', 'Help', multiprocess_mode='livesum').set_function(lambda: 40)", storage)
    assert shown() == {"m": 42.0}
    other.communicate("\n")
    assert shown() == {"m": 2.0}


def test_sets_and_incs_of_a_gauge_keep_their_order(
    storage: dict[str, Any], registry: CollectorRegistry, run_script: RunScript
) -> None:
    """`inc` adds to the last `set` of any process, and `set` forgets earlier additions."""
    pdc.setup(**storage, flush_interval=3600)
    gauge = make("Gauge", registry=registry)
    for expected in (12.0, 1.5):
        gauge.inc(100)
        gauge.set(10)
        gauge.inc(3)
        gauge.dec()
        assert shown() == {"m": 12.0}
        run_script("setup()\ngauge = pdc.Gauge('m', 'Help')\ngauge.set(2)\ngauge.dec(0.5)", storage=storage)
        assert shown() == {"m": 1.5}
        gauge.inc(-1.5 + expected)
        assert shown() == {"m": expected}


@pytest.mark.parametrize("mode", ["shared", "sum", "all"])
def test_clear_starts_again(mode: Any, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """`pdc.clear()` deletes everything: metrics without labels show zero, series with labels return with their next update."""
    pdc.setup(**storage)
    by_hand = pdc.redis if "redis" in storage else pdc.sqlite
    counter, tied = make("Counter", registry=registry), by_hand.Counter("tied", "Help", registry=registry)
    gauge = pdc.Gauge("g", "Help", registry=registry, multiprocess_mode=mode)
    labelled = pdc.Gauge("labelled", "Help", ["path"], registry=registry, multiprocess_mode=mode)
    for update in (counter.inc, tied.inc, gauge.inc, labelled.labels("/").inc):
        update(3)
    pdc.clear()
    assert sorted(shown().values()) == [0.0, 0.0, 0.0]
    for update in (counter.inc, tied.inc, gauge.inc, labelled.labels("/").inc):
        update(2)
    assert sorted(shown().values()) == [2.0, 2.0, 2.0, 2.0]


def test_one_process_uses_both_storages(
    registry: CollectorRegistry, tmp_path: Path, redis_server: RedisServer, run_script: RunScript
) -> None:
    """`pdc.redis.*` and `pdc.sqlite.*` keep to their storage, whichever `setup` chose last; `clear` is for the last."""
    redis, sqlite = {"redis": redis_server.url}, {"sqlite": str(tmp_path / "metrics.db")}
    metrics = [
        module.Counter(f"m{number}", "Help", registry=registry) for number, module in enumerate((pdc.redis, pdc.sqlite, pdc))
    ]
    pdc.setup(redis=redis["redis"])
    pdc.setup(sqlite=sqlite["sqlite"])
    for metric in metrics:
        metric.inc(2)
    show = "setup()\nprint([line for line in pdc.generate_latest().decode().splitlines() if '_total 2.0' in line])"
    assert run_script(show, storage=redis).stdout == "['m0_total 2.0']\n"
    assert run_script(show, storage=sqlite).stdout == "['m1_total 2.0', 'm2_total 2.0']\n"
    assert pdc.get_redis_conn().connection_pool.connection_kwargs["port"] == redis_server.port
    pdc.clear()
    assert [registry.get_sample_value(f"m{number}_total") for number in range(3)] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("interval", [0, 3600])
def test_setup_again_moves_to_another_storage(
    interval: float, storage: dict[str, Any], registry: CollectorRegistry, tmp_path: Path
) -> None:
    """Pending updates go to the storage before; metrics are declared in the new one, and count there from zero."""
    pdc.setup(**storage, flush_interval=interval)
    counter, labelled = make("Counter", registry=registry), pdc.Gauge("g", "Help", ["path"], registry=registry)
    counter.inc(3)
    labelled.labels("/").inc(3)
    pdc.setup(sqlite=tmp_path / "other.db", flush_interval=interval)
    assert shown() == {"m_total": 0.0, 'g{path="/"}': 0.0}
    counter.inc(2)
    assert shown("m") == {"m_total": 2.0}
    pdc.setup(**storage, flush_interval=interval)
    assert shown() == {"m_total": 3.0, 'g{path="/"}': 3.0}
    counter.inc()
    assert shown("m") == {"m_total": 4.0}


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
def test_context_managers_and_decorators(registry: CollectorRegistry) -> None:
    """Around blocks and functions, exceptions are counted, calls in progress tracked, and durations observed."""
    exceptions, progress = pdc.Counter("failures", "Help", registry=registry), pdc.Gauge("progress", "Help", registry=registry)
    last = pdc.Gauge("last", "Help", registry=registry)
    summary = pdc.Summary("s", "Help", registry=registry)
    histogram = pdc.Histogram("h", "Help", ["path"], registry=registry).labels("/")

    def work(error: type[Exception] | None = None) -> None:
        assert shown("progress") == {"progress": 1.0}
        if error is not None:
            raise error

    for decorate in (
        last.time(),
        histogram.time(),
        summary.time(),
        progress.track_inprogress(),
        exceptions.count_exceptions(KeyError),
    ):
        work = decorate(work)
    work()
    for error in (KeyError, OSError):
        with pytest.raises(error):
            work(error)
    with pytest.raises(OSError, match="seen"), exceptions.count_exceptions(), summary.time():
        raise OSError("seen")
    with progress.track_inprogress():
        assert shown("progress") == {"progress": 1.0}
    samples = shown()
    assert (samples["failures_total"], samples["progress"]) == (2.0, 0.0)
    assert (samples["s_count"], samples['h_count{path="/"}']) == (4.0, 3.0)
    assert samples["s_sum"] >= 0
    assert samples["last"] >= 0
    for parent in (
        pdc.Counter("c", "Help", ["a"], registry=registry).count_exceptions,
        pdc.Gauge("g", "Help", ["a"], registry=registry).track_inprogress,
    ):
        with pytest.raises(ValueError, match="missing label values"):
            parent()


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


def test_a_gauge_may_change_its_mode(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A gauge with a value for each process shows nothing from the time when all shared one."""
    pdc.setup(**storage)
    make("Gauge", ["path"], registry=None).labels("/").set(5)
    pdc.shutdown()
    gc.collect()
    pdc.setup(**storage)
    make("Gauge", ["path"], registry=registry, multiprocess_mode="sum").labels("?").set(2)
    assert shown() == {'m{path="?"}': 2.0}


@pytest.mark.parametrize("mode", ["sum", "shared"])
def test_threads_that_change_a_gauge_lose_nothing(registry: CollectorRegistry, tmp_path: Path, mode: Any) -> None:
    """A gauge adds the changes of all threads of a process, also while another one flushes."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    gauge = pdc.Gauge("level", "Help", registry=registry, multiprocess_mode=mode)
    gauge.set(7)

    def change() -> None:
        for _ in range(5_000):
            gauge.inc(2)
            gauge.dec()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=change) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            pdc.flush()
    finally:
        sys.setswitchinterval(before)
    assert b"\nlevel 20007.0\n" in pdc.generate_latest()


class Lazy(UserString):
    """A text that is no `str`, such as those that Django translates at each read."""


class NoText:
    """An object that looks like a text but cannot be made one."""

    def encode(self) -> bytes:
        """Look like a text."""
        return b""

    def __str__(self) -> str:
        raise LookupError("no translations yet")


@pytest.mark.usefixtures("ready")
def test_texts_that_are_no_str_are_taken(registry: CollectorRegistry) -> None:
    """Help that is translated at each read, and other texts that are no `str`, show as in prometheus_client."""
    for documentation in (Lazy("Help"), Colour.RED):
        reference = CollectorRegistry()
        prometheus_client.Gauge("ns_m_bytes", documentation, registry=reference)  # type: ignore[arg-type]  # the tested call
        options: dict[str, Any] = {"namespace": Lazy("ns"), "unit": Lazy("bytes"), "subsystem": None}
        gauge = pdc.Gauge(Lazy("m"), documentation, registry=registry, **options)  # type: ignore[arg-type]  # the same
        assert pdc.generate_latest() == prometheus_client.generate_latest(reference)
        registry.unregister(gauge)
    states: Any = (Lazy(each) for each in ("on", "off"))
    names: Any = [Lazy("a")]
    labelled = pdc.Enum("e", "Help", names, states=states, registry=registry)
    labelled.labels("1").state("off")
    assert shown("e{") == {'e{a="1",e="on"}': 0.0, 'e{a="1",e="off"}': 1.0}


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
    assert [pending.family.name for pending in config.DEFAULT._work.metrics.all()] == ["good"]
    assert prometheus_client.generate_latest(registry) == pdc.generate_latest()
    assert shown() == {"good_total": 21.0}


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


@pytest.mark.usefixtures("ready")
def test_children_own_what_the_constructor_of_a_subclass_makes(registry: CollectorRegistry) -> None:
    """Each child has attributes of its own, made by the constructor with its arguments, and counts as any other."""

    class Logged(pdc.Counter):
        def __init__(self, name: str, *, owner: str) -> None:
            self.before: list[str] = []
            super().__init__(name, "Help.", ["path"], registry=registry)
            self.after = {owner: 0}

        def inc(self, amount: float = 1.0, exemplar: dict[str, str] | None = None) -> None:
            super().inc(amount, exemplar)
            self.before.append("inc")

    parent = Logged("m", owner="anna")
    one, two = parent.labels("/1"), parent.labels("/2")
    one.inc(3)
    assert (one.before, two.before, parent.before) == (["inc"], [], [])
    assert one.after == two.after == {"anna": 0}
    assert one.after is not two.after
    assert parent.labels("/1") is one
    one.reset()
    one.inc(2)
    parent.remove("/2")
    assert shown() == {'m_total{path="/1"}': 2.0}
    assert list(registry._collector_to_names) == [parent]


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


@pytest.mark.usefixtures("ready")
def test_a_gauge_that_was_unregistered_leaves_its_value_to_its_successor(registry: CollectorRegistry) -> None:
    """The function of a replaced gauge that is still held does not overwrite a value of its successor of the same name."""
    held = make("Gauge", registry=registry)
    held.set_function(lambda: 1)
    assert shown() == {"m": 1.0}
    registry.unregister(held)
    successor = make("Gauge", registry=registry)
    successor.set(5)
    for _ in range(2):
        pdc.flush()
        assert shown() == {"m": 5.0}


@pytest.mark.usefixtures("ready")
def test_each_function_is_called_once_per_scrape(registry: CollectorRegistry) -> None:
    """A scrape calls each function once, however it is made and however many metrics a registry has."""
    calls: list[str] = []

    def call(name: str) -> float:
        calls.append(name)
        return 1.0

    for name in ("a", "b"):
        gauge = pdc.Gauge(name, "Help", registry=registry)
        gauge.set_function(partial(call, name))
    for number in range(20):
        pdc.Counter(f"c{number}", "Help", registry=registry)
    scrapes: list[Callable[[], object]] = [
        pdc.generate_latest,
        pdc.flush,
        lambda: pdc.generate_latest(registry),
        lambda: prometheus_client.generate_latest(registry),
        lambda: pdc.generate_latest(registry.restricted_registry(["a", "b"])),
    ]
    for scrape in scrapes:
        calls.clear()
        scrape()
        assert sorted(calls) == ["a", "b"]


@pytest.mark.usefixtures("ready")
def test_functions_read_and_update_any_metric(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Functions may read each other, themselves and all metrics, and update any metric; the scrape ends."""
    counter = pdc.Counter("reads", "Help", registry=registry)
    calls: list[str] = []

    def add(name: str, others: tuple[str, ...]) -> None:
        def function() -> float:
            calls.append(name)
            counter.inc()
            pdc.generate_latest()
            pdc.generate_latest(registry)
            list(registry.collect())
            pdc.flush()
            return 1 + sum(registry.get_sample_value(other) or 0.0 for other in others)

        pdc.Gauge(name, "Help", registry=registry).set_function(function)

    for name, others in (("a", ("a", "b")), ("b", ("c",)), ("c", ("missing",))):
        add(name, others)
    calls.clear()
    pdc.generate_latest(registry)
    assert sorted(calls) == ["a", "b", "c"]
    assert (shown("b"), shown("c")) == ({"b": 2.0}, {"c": 1.0})
    assert shown("a")["a"] >= 3.0
    assert shown("reads")["reads_total"] >= len(calls)
    assert caplog.text == ""


@pytest.mark.usefixtures("ready")
def test_the_error_of_a_function_is_no_outage(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A function that fails, also with an error of a storage, is in the log by itself; the storage counts as up."""

    def fail() -> float:
        raise pdc.StorageError("that of the function")

    def recurse() -> float:
        return recurse()

    for name, function in (("f", fail), ("r", recurse)):
        pdc.Gauge(name, "Help", registry=registry).set_function(function)
    caplog.clear()
    assert set(shown().values()) <= {0.0}
    assert {record.getMessage() for record in caplog.records} == {
        f"the function of the gauge {name} failed; its value stays as it was" for name in ("f", "r")
    }
    assert not config.DEFAULT.down


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_functions_end_the_application_but_not_the_background_thread(
    error: type[BaseException], storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BaseException reaches the caller of a scrape; in the background thread it is logged, and the thread sends on."""
    monkeypatch.setattr("pdc.delivery.flusher.BEAT_SECONDS", 0.05)
    pdc.setup(**storage, flush_interval=0.05)
    background: list[str] = []

    def leave() -> float:
        if threading.current_thread() is not threading.main_thread():
            background.append(threading.current_thread().name)
        raise error

    counter = pdc.Counter("c", "Help", registry=registry)
    counter.inc()  # the thread begins with the first update
    gauge = make("Gauge", registry=registry)
    with pytest.raises(error):
        gauge.set_function(leave)
    wait_until(lambda: len(background) >= 2)
    with pytest.raises(error):
        pdc.generate_latest()
    counter.inc()
    stored = config.DEFAULT.required()
    wait_until(lambda: float(stored.read(["c"]).metrics.get("c", {}).get("_total:{}", 0)) == 2.0)
    assert set(background) == {"pdc-flush"}
