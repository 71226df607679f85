"""The metric classes, over every storage."""

from __future__ import annotations

import copy
import re
import time
from collections import UserString
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import prometheus_client
import pytest
from helpers import shown
from kinds import TYPES, UPDATES, make
from prometheus_client import CollectorRegistry

import pdc
from pdc import config


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


class Lazy(UserString):
    """A text that is no `str`, such as those that Django translates at each read."""


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


@pytest.mark.parametrize("kind", TYPES)
def test_metrics_with_labels_may_be_mocked(registry: CollectorRegistry, kind: str) -> None:
    """Tests of applications give a metric as the specification of a mock, which has the methods of the metric."""
    assert create_autospec(make(kind, ["path"], registry=registry)).labels(path="/") is not None


def test_a_copy_that_fails_leaves_nothing(registry: CollectorRegistry) -> None:
    """Metrics have locks, which nothing can copy: an error says so, and no other one comes later."""
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(pdc.Gauge("level", "Level.", registry=registry))
