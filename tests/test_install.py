"""Metrics of plain prometheus_client classes in the storage: `pdc.install` and `pdc.uninstall`."""

from __future__ import annotations

import gc
import inspect
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import prometheus_client
import pytest
from helpers import Run, shown
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

import pdc
import pdc_flask
from pdc import config
from pdc.options import OptionError


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    """Leave no metric in the default registry, and no class of ours in prometheus_client."""
    before = set(REGISTRY._collector_to_names)
    yield
    pdc.uninstall()
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.fixture
def installed(storage: dict[str, Any]) -> None:
    """A storage that is set up, and installed."""
    pdc.setup(**storage)
    pdc.install()


def page(registry: Any = REGISTRY, name: str = "") -> dict[str, float]:
    """The samples that prometheus_client shows of the registry whose names begin so, without times of creation."""
    lines = (line for line in generate_latest(registry).decode().splitlines() if line.startswith(name) and line[0] != "#")
    return {sample: float(value) for sample, _, value in (line.rpartition(" ") for line in lines) if "_created" not in sample}


def update(metrics: list[Any]) -> None:
    """Update a metric of each kind, the counter with an exemplar."""
    hits, busy, size, wait, build, state = metrics
    hits.labels("a").inc(2, {"trace_id": "x"})
    busy.inc(3)
    size.observe(4)
    wait.observe(0.5)
    build.info({"version": "3"})
    state.state("on")


def declared(registry: CollectorRegistry | None) -> list[Any]:
    """A metric of each kind."""
    return [
        Counter("hits", "Hits.", ["page"], registry=registry),
        Gauge("busy", "Busy.", registry=registry),
        Summary("size", "Size.", registry=registry),
        Histogram("wait", "Wait.", buckets=(1, 2), registry=registry),
        Info("build", "Build.", registry=registry),
        Enum("state", "State.", states=["off", "on"], registry=registry),
    ]


UPDATED = {
    'hits_total{page="a"}': 2.0,
    "busy": 3.0,
    "size_count": 1.0,
    "size_sum": 4.0,
    'wait_bucket{le="1.0"}': 1.0,
    'wait_bucket{le="2.0"}': 1.0,
    'wait_bucket{le="+Inf"}': 1.0,
    "wait_count": 1.0,
    "wait_sum": 0.5,
    'build_info{version="3"}': 1.0,
    'state{state="off"}': 0.0,
    'state{state="on"}': 1.0,
}


@pytest.mark.usefixtures("installed")
def test_metrics_of_plain_classes_live_in_the_storage(registry: CollectorRegistry) -> None:
    """A metric of each kind, of a class that was imported before, has its values, exemplar included, in the storage."""
    update(declared(registry))
    assert shown() == page(registry) == UPDATED
    assert b'# {trace_id="x"} 2.0' in prometheus_client.openmetrics.exposition.generate_latest(registry)


def test_metrics_made_before_move_with_their_counts(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Metrics and children that exist go on in the storage from the values that they have."""
    metrics = declared(registry)
    update(metrics)
    child = metrics[0].labels("a")
    pdc.setup(**storage)
    pdc.install()
    assert shown() == page(registry) == UPDATED
    child.inc()
    metrics[0].labels("b").inc()
    assert metrics[0].labels("a") is child
    assert page(registry, "hits") == {'hits_total{page="a"}': 3.0, 'hits_total{page="b"}': 1.0}


def test_metrics_that_nobody_touched_leave_the_values_of_others(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A metric that moves with the value it began with sets nothing: other processes may have set it."""
    pdc.setup(**storage)
    set_elsewhere = pdc.Gauge("busy", "Busy.", registry=None), pdc.Enum("state", "State.", states=["off", "on"], registry=None)
    set_elsewhere[0].set(7)
    set_elsewhere[1].state("on")
    _ = declared(registry)
    pdc.install()
    assert page(registry, "busy") == {"busy": 7.0}
    assert page(registry, "state") == {'state{state="off"}': 0.0, 'state{state="on"}': 1.0}


def test_methods_that_somebody_kept_count(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Bound methods of a metric that moved update the storage."""
    hits, busy, size, wait, *_ = declared(registry)
    kept = [hits.labels("a").inc, busy.inc, busy.set, size.observe, wait.observe, busy.set_function]
    pdc.setup(**storage)
    pdc.install()
    inc, gauge_inc, gauge_set, observe_size, observe_wait, _ = kept
    inc(2, {"trace_id": "x"})
    gauge_set(1)
    gauge_inc(2)
    observe_size(4)
    observe_wait(0.5)
    assert {sample: value for sample, value in page(registry).items() if sample in UPDATED and value} == {
        sample: value for sample, value in UPDATED.items() if value and not sample.startswith(("build", "state"))
    } | {'state{state="off"}': 1.0}


def test_functions_of_gauges_move(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A gauge with a function shows its value after the move, too."""
    Gauge("queue", "Queue.", registry=registry).set_function(lambda: 42)
    pdc.setup(**storage)
    pdc.install()
    assert page(registry) == {"queue": 42.0}


def test_install_amid_updates_disturbs_none(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Threads that update metrics while these move go on without an error."""
    hits = Counter("hits", "Hits.", ["page"], registry=registry)
    waits = [Histogram(f"wait_{number}", "Wait.", registry=registry) for number in range(50)]
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                hits.labels("a").inc()
                for wait in waits:
                    wait.observe(1)
        except BaseException as error:  # noqa: BLE001 - the test reports any
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    pdc.setup(**storage, flush_interval=3600)
    pdc.install()
    done.set()
    thread.join()
    assert errors == []
    assert page(registry, "hits_total")


@pytest.mark.usefixtures("installed")
def test_a_metric_is_of_the_class_that_was_called(registry: CollectorRegistry) -> None:
    """It is an instance of prometheus_client's class and of ours, has its name, and updates as fast as ours: by our methods."""
    hits, busy, size, wait, *_ = declared(registry)
    assert isinstance(hits, Counter)
    assert isinstance(hits, pdc.Counter)
    assert repr(hits) == "prometheus_client.metrics.Counter(hits)"
    assert type(hits).inc is pdc.Counter.inc
    assert type(hits).labels is pdc.Counter.labels
    assert (type(busy).set, type(busy).inc) == (pdc.Gauge.set, pdc.Gauge.inc)
    assert type(size).observe is pdc.Summary.observe
    assert type(wait).observe is pdc.Histogram.observe


def test_signatures_stay_those_of_the_constructors(tmp_path: Path) -> None:
    """`inspect` shows the same arguments of each class as before, also of subclasses, and after `uninstall`."""
    classes = (Counter, Gauge, Histogram, Enum, CollectorRegistry, MultiProcessCollector, Tokens)
    before = [*map(inspect.signature, classes)]
    pdc.setup(sqlite=tmp_path / "metrics.db")
    for change in (pdc.install, pdc.uninstall):
        change()
        assert [*map(inspect.signature, classes)] == before


class Tokens(Counter):
    """A subclass with a constructor and a method of its own."""

    def __init__(self, name: str, model: str = "small") -> None:
        super().__init__(name, "Tokens.", ["kind"])
        self.model = model
        self.seen: list[int] = []

    def add(self, kind: str, count: int) -> None:
        """Count tokens."""
        child = self.labels(kind)
        child.seen.append(count)
        child.inc(count)


class Doubled(Counter):
    """A subclass that calls prometheus_client's class by its name, as programs of Python 2 did."""

    def __init__(self, name: str) -> None:
        Counter.__init__(self, name, "Doubled.", ["kind"])

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Count twice as much."""
        Counter.inc(self, 2 * amount, exemplar)


class Named:
    """A base that comes before the metric's class."""

    def title(self) -> str:
        """The name of the class, in small letters."""
        return type(self).__name__.lower()


class Mixed(Named, Counter):
    """A subclass whose first base is no metric."""


@pytest.mark.parametrize("moved", [False, True], ids=["made", "moved"])
def test_subclasses_keep_their_constructors_and_methods(storage: dict[str, Any], moved: bool) -> None:
    """An object of a subclass is one, and so are its children, if they are made before `install` or after."""
    pdc.setup(**storage)
    if not moved:
        pdc.install()
    tokens, doubled = Tokens("install_tokens", model="large"), Doubled("install_doubled")
    mixed = Mixed("install_mixed", "Mixed.")
    if moved:
        pdc.install()
    mixed.inc()
    assert (mixed.title(), isinstance(mixed, pdc.Counter)) == ("mixed", True)
    tokens.add("prompt", 3)
    doubled.labels("a").inc()
    assert (type(tokens).__name__, tokens.model, isinstance(tokens, Tokens)) == ("Tokens", "large", True)
    assert isinstance(tokens.labels("prompt"), Tokens)
    assert page(name="install_") == {
        'install_tokens_total{kind="prompt"}': 3.0,
        'install_doubled_total{kind="a"}': 2.0,
        "install_mixed_total": 1.0,
    }
    pdc.uninstall()
    assert [type(each) for each in (tokens, doubled, mixed)] == [Tokens, Doubled, Mixed]


@pytest.mark.usefixtures("installed")
def test_subclasses_are_not_noticed_twice(registry: CollectorRegistry) -> None:
    """The class that `install` makes runs no `__init_subclass__`, which may list classes or want arguments."""
    noticed = []

    class Listed(Gauge):
        def __init_subclass__(cls, *, title: str) -> None:
            noticed.append(title)

    class Own(Listed, title="own"):
        def _metric_init(self) -> None:
            super()._metric_init()
            self.ready = True

    own = Own("own", "Own.", ["kind"], registry=registry)
    own.labels("a").set(3)
    assert own.labels("a").ready
    assert noticed == ["own"]
    assert page(registry) == {'own{kind="a"}': 3.0}


@pytest.mark.usefixtures("installed")
def test_metrics_with_samples_of_their_own_stay(registry: CollectorRegistry) -> None:
    """Metrics that compute samples, and those of other types, show them as before."""

    class Computed(Gauge):
        def _child_samples(self) -> Any:
            return [prometheus_client.samples.Sample("", {}, 5.0)]

    class Other(MetricWrapperBase):
        _type = "gauge"

        def _metric_init(self) -> None:
            self.value = 6.0

        def _child_samples(self) -> Any:
            return [prometheus_client.samples.Sample("", {}, self.value)]

    class Collected(Gauge):
        def collect(self) -> Any:
            self.set(7)
            return super().collect()

    made = Computed("computed", "C.", registry=registry), Other("other", "O.", registry=registry)
    collected = Collected("collected", "C.", registry=registry)
    assert not any(isinstance(each, pdc.Gauge) for each in made)
    assert isinstance(collected, pdc.Gauge)
    assert page(registry) == {"computed": 5.0, "other": 6.0, "collected": 7.0}


def test_gauges_without_a_mode_are_shared_unless_install_names_another(
    storage: dict[str, Any], registry: CollectorRegistry
) -> None:
    """`gauge_mode` is the mode of gauges that name none, made before or after; the others keep theirs."""
    before = Gauge("before", "B.", registry=registry), Gauge("named", "N.", registry=registry, multiprocess_mode="max")
    pdc.setup(**storage)
    pdc.install(gauge_mode="livesum")
    after = Gauge("after", "A.", registry=registry)
    positional = Gauge("positional", "P.", (), "", "", "", registry, None, "min")
    assert [each._multiprocess_mode for each in (*before, after, positional)] == ["livesum", "max", "livesum", "min"]
    pdc.install()
    later: Any = Gauge("later", "L.", registry=registry)
    assert later._multiprocess_mode == "shared"


@pytest.mark.usefixtures("installed")
def test_series_are_removed_for_every_process(registry: CollectorRegistry) -> None:
    """`remove` and `clear` delete series from the storage, and warn of nothing."""
    hits = Counter("hits", "Hits.", ["page"], registry=registry)
    for label in "abc":
        hits.labels(label).inc()
    hits.remove("a")
    assert page(registry) == {'hits_total{page="b"}': 1.0, 'hits_total{page="c"}': 1.0}
    hits.clear()
    assert page(registry) == {}


@pytest.mark.usefixtures("installed")
def test_a_name_that_the_registry_has_is_refused(registry: CollectorRegistry) -> None:
    """The error is prometheus_client's, and the metric leaves nothing behind."""
    hits = Counter("hits", "Hits.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Gauge("hits_total", "Not a counter.", registry=registry)
    hits.inc()
    assert page(registry) == shown() == {"hits_total": 1.0}


@pytest.mark.usefixtures("installed")
def test_the_default_registry_shows_metrics_of_other_processes() -> None:
    """It has the storage's metrics that only others declare, but not those that this process keeps in another registry."""
    pdc.Counter("install_elsewhere", "E.", registry=None).inc(2)
    gc.collect()  # nobody here declares that one any more
    kept = Counter("install_kept", "K.", registry=None)
    kept.inc()
    Counter("install_here", "H.").inc()
    assert page(name="install_") == {"install_elsewhere_total": 2.0, "install_here_total": 1.0}
    chosen = REGISTRY.restricted_registry(["install_elsewhere_total", "python_info"])
    assert {sample.partition("{")[0] for sample in page(chosen)} == {"install_elsewhere_total", "python_info"}
    assert REGISTRY.get_sample_value("install_elsewhere_total") == 2.0


@pytest.mark.usefixtures("installed")
def test_a_registry_shows_its_own_metrics_and_collectors() -> None:
    """Another registry shows what is registered there: metrics of the storage, collectors, and its target."""

    class Custom:
        def collect(self) -> Iterator[Metric]:
            yield CounterMetricFamily("custom", "C.", value=3)

    registry = CollectorRegistry(target_info={"env": "test"})
    registry.register(Custom())
    hits = Counter("hits", "Hits.", registry=registry)
    Counter("private", "P.", registry=None).inc()
    hits.inc()
    assert page(registry) == {'target_info{env="test"}': 1.0, "hits_total": 1.0, "custom_total": 3.0}
    assert isinstance(registry.collect(), Iterator)  # as prometheus_client's
    registry.unregister(hits)
    assert page(registry) == {'target_info{env="test"}': 1.0, "custom_total": 3.0}


@pytest.mark.usefixtures("installed")
def test_a_restricted_registry_calls_no_other_collector(registry: CollectorRegistry) -> None:
    """Only collectors of the wanted samples are called."""

    class Custom:
        def describe(self) -> list[Metric]:
            return [CounterMetricFamily("custom", "C.")]

        def collect(self) -> Iterator[Metric]:
            raise AssertionError("this collector was not asked for")

    registry.register(Custom())
    Counter("hits", "Hits.", registry=registry).inc()
    Counter("other", "O.", registry=registry).inc()
    assert page(registry.restricted_registry(["hits_total"])) == {"hits_total": 1.0}


@pytest.mark.usefixtures("installed")
def test_a_scrape_reads_the_storage_once(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many metrics a registry has, its page costs one read; `get_sample_value` does, too."""
    for number in range(20):
        Counter(f"hits_{number}", "Hits.", registry=registry).inc()
    reads = []
    storage: Any = config.DEFAULT.required()
    read = storage.read

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(storage, "read", counted)
    assert len(page(registry)) == 20
    assert len(reads) == 1
    assert registry.get_sample_value("hits_7_total") == 1.0
    assert len(reads) == 2
    generate_latest(REGISTRY)
    assert len(reads) == 3


def test_the_multiprocess_collector_needs_no_folder(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A `MultiProcessCollector`, made before or after, shows the storage, in a registry of its own and beside metrics."""
    pdc.setup(**storage)
    pdc.install()
    MultiProcessCollector(registry)
    hits = Counter("hits", "Hits.", registry=registry)
    hits.inc()
    Counter("other", "O.", registry=None).inc(2)
    assert page(registry) == {"hits_total": 1.0, "other_total": 2.0}
    alone = CollectorRegistry()
    MultiProcessCollector(alone, path="/nowhere")
    assert page(alone) == {"hits_total": 1.0, "other_total": 2.0}


@pytest.mark.usefixtures("installed")
def test_values_of_the_private_attributes_are_those_of_the_storage(registry: CollectorRegistry) -> None:
    """Tests of many programs read `_value.get()`, `_samples()` and their like: these give the numbers of all processes."""
    hits, busy, size, wait, *_ = declared(registry)
    pdc.Counter("hits", "Hits.", ["page"], registry=None).labels("a").inc(5)
    hits.labels("a").inc()
    hits.labels("b").inc(7)
    busy.set(4)
    size.observe(3)
    wait.observe(0.5)
    wait.observe(1.5)
    assert (hits.labels("a")._value.get(), busy._value.get()) == (6.0, 4.0)
    assert (size._sum.get(), size._count.get()) == (3.0, 1.0)
    assert (wait._sum.get(), [bucket.get() for bucket in wait._buckets]) == (2.0, [1.0, 1.0, 0.0])
    assert [(each.name, each.labels, each.value) for each in hits._samples() if each.name == "_total"] == [
        ("_total", {"page": "a"}, 6.0),
        ("_total", {"page": "b"}, 7.0),
    ]
    assert [each.value for each in wait._child_samples() if each.name == "_count"] == [2.0]
    hits.labels("a")._value.set(10)
    assert page(registry, "hits") == {'hits_total{page="a"}': 10.0, 'hits_total{page="b"}': 7.0}


def test_uninstall_makes_all_plain_again(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Metrics, children and registries are prometheus_client's again and begin anew; the storage keeps its values."""
    before = declared(registry)
    pdc.setup(**storage)
    pdc.install()
    tokens = Tokens("install_tokens")
    child = tokens.labels("a")
    ours = pdc.Counter("ours", "O.", registry=None)
    update(before)
    child.inc()
    pdc.uninstall()
    pdc.shutdown()
    assert (type(before[0]), type(tokens), type(child), type(registry)) == (Counter, Tokens, Tokens, CollectorRegistry)
    assert type(REGISTRY) is CollectorRegistry
    assert type(ours) is pdc.Counter
    update(before)
    child.inc(3)
    Gauge("later", "L.", registry=registry).set(1)
    assert page(registry) == {**UPDATED, "later": 1.0}
    assert page(name="install_") == {'install_tokens_total{kind="a"}': 3.0}
    before[0].labels("b").inc()
    assert before[1]._multiprocess_mode == "all"
    pdc.setup(**storage)
    assert shown("hits") == {'hits_total{page="a"}': 2.0}


def test_install_needs_a_storage() -> None:
    """Without one it raises NotConfigured, which names the remedy, and changes nothing."""
    with pytest.raises(pdc.NotConfigured, match=r"pdc.install\(\) needs a storage: call pdc.setup\(...\)"):
        pdc.install()
    assert type(REGISTRY) is CollectorRegistry


def test_install_refuses_other_modes(storage: dict[str, Any]) -> None:
    """The error lists the modes and quotes the wrong one."""
    pdc.setup(**storage)
    wrong: Any = "newest"
    with pytest.raises(ValueError, match=r"gauge_mode must be one of shared, all, .*, got 'newest'"):
        pdc.install(gauge_mode=wrong)


def test_a_metric_that_cannot_move_stays_and_is_logged(
    storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the metric, the reason and the remedy; it goes on in memory, and the others move."""
    odd = Histogram("odd", "Odd.", buckets=(1, 2), registry=registry)
    odd._upper_bounds = [1.0, float("nan")]
    hits = Counter("hits", "Hits.", registry=registry)
    pdc.setup(**storage)
    with caplog.at_level(logging.WARNING, "pdc"):
        pdc.install()
    (message,) = (record.message for record in caplog.records if "odd" in record.message)
    assert message == (
        "the metric histogram:odd stays in the memory of this process: each bucket must be a number, got [1.0, nan]; "
        "make it after pdc.install(), or change it"
    )
    odd.observe(0.5)
    hits.inc()
    assert shown() == {"hits_total": 1.0}
    registry.unregister(odd)


def test_a_metric_that_cannot_move_back_stays_and_is_logged(
    storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose class has another layout than ours keeps neither `install` nor `uninstall` from the others."""

    class Listed:
        def __init_subclass__(cls) -> None:
            """Note the class somewhere."""

    class Own(Listed, Counter):
        pass

    before, hits = Own("own", "Own.", registry=registry), Counter("hits", "Hits.", registry=registry)
    pdc.setup(**storage)
    pdc.install()
    after = Own("after", "Own.", registry=registry)
    for each in (before, hits, after):
        each.inc()
    assert shown() == {"hits_total": 1.0, "after_total": 1.0}
    assert page(registry) == {"own_total": 1.0, "hits_total": 1.0, "after_total": 1.0}
    pdc.uninstall()
    hits.inc()
    assert type(hits) is Counter
    text = r"the metric counter:own stays in the memory .*the metric counter:after stays in the storage: __class__ assignment"
    assert re.search(text, caplog.text, re.DOTALL)
    registry.unregister(after)


def test_a_metric_that_a_registry_refused_does_not_move(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """An error may keep the refused object alive; its declaration does not replace that of the metric with the name."""
    hits = Counter("hits", "Hits.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries") as refused:
        Gauge("hits", "Not a counter.", registry=registry)
    pdc.setup(**storage)
    pdc.install()
    hits.inc()
    assert shown() == {"hits_total": 1.0}
    assert refused.tb is not None


def test_metrics_that_the_garbage_collector_forgot_move(storage: dict[str, Any]) -> None:
    """After `gc.freeze`, as servers call it before they fork, metrics of the default registry move nevertheless."""
    hits = Counter("install_frozen", "F.")
    gc.freeze()
    try:
        pdc.setup(**storage)
        pdc.install()
    finally:
        gc.unfreeze()
    hits.inc()
    assert shown("install_frozen") == {"install_frozen_total": 1.0}


FORKED = """
import os
from prometheus_client import REGISTRY, Counter, Gauge, generate_latest
early = Counter("early", "E.", ["worker"])
setup(flush_interval=0.05)
pdc.install()
busy = Gauge("busy", "B.")
for worker in range(4):
    if os.fork() == 0:
        for _ in range(100):
            early.labels("all").inc()
            busy.inc()
        Counter("lazy", "L.").inc(worker)
        pdc.shutdown()
        os._exit(0)
for _ in range(4):
    assert os.wait()[1] == 0
page = generate_latest(REGISTRY).decode().splitlines()
print([line for line in page if line.startswith(("early_total", "busy", "lazy_total"))])
"""


def test_workers_of_a_server_count_together(run_script: Run, storage: dict[str, Any]) -> None:
    """Processes that are forked after `install` count into the same metrics, also into ones that they alone declare."""
    assert (
        run_script(FORKED, storage=storage).stdout == "['busy 400.0', 'early_total{worker=\"all\"} 400.0', 'lazy_total 6.0']\n"
    )


@pytest.mark.parametrize(
    ("text", "mode"), [("1", "shared"), ("true", "shared"), ("liveall", "liveall"), ("0", None), ("", None)]
)
def test_the_environment_installs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registry: CollectorRegistry, text: str, mode: str | None
) -> None:
    """`PDC_INSTALL` is true, false or the mode of gauges that name none; `setup_from_environ` reads it."""
    monkeypatch.setenv("PDC_SQLITE_PATH", str(tmp_path / "metrics.db"))
    monkeypatch.setenv("PDC_INSTALL", text)
    pdc.setup_from_environ()
    busy = Gauge("busy", "B.", registry=registry)
    assert (busy._multiprocess_mode if isinstance(busy, pdc.Gauge) else None) == mode


def test_another_value_of_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the allowed values."""
    monkeypatch.setenv("PDC_INSTALL", "newest")
    with pytest.raises(
        OptionError, match="PDC_INSTALL must be true, false or the mode of gauges that name none, such as liveall"
    ):
        pdc.setup_from_environ()


def test_an_extension_installs(tmp_path: Path) -> None:
    """The option of an extension keeps metrics of other packages in its storage; its page shows them."""
    app = flask.Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_INSTALL=True)
    orders = Counter("install_orders", "O.")
    orders.inc()
    pdc_flask.PrometheusMetrics(app)
    orders.inc()
    assert "\ninstall_orders_total 2.0\n" in app.test_client().get("/metrics").text


def test_an_extension_reads_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a program that still sets PROMETHEUS_MULTIPROC_DIR the page of an extension has each metric once, and logs nothing."""
    app = flask.Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_INSTALL=True)
    with monkeypatch.context() as patch:
        patch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MultiProcessValue())
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        pdc_flask.PrometheusMetrics(app)
        Counter("install_orders", "O.").inc()
        MultiProcessCollector(REGISTRY)
        assert app.test_client().get("/metrics").text.count("\ninstall_orders_total 1.0\n") == 1
    assert list(tmp_path.glob("counter_*.db")) == []
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("installed")
def test_a_registry_of_a_subclass_stays_one() -> None:
    """Registries of subclasses, with constructors and pages of their own, read the storage, too."""

    class Named(CollectorRegistry):
        def __init__(self, title: str) -> None:
            super().__init__()
            self.title = title

        def collect(self) -> Any:
            yield from super().collect()
            yield CounterMetricFamily("extra", "E.", value=1)

    registry = Named("shop")
    Counter("hits", "Hits.", registry=registry).inc()
    assert registry.title == "shop"
    assert page(registry) == {"hits_total": 1.0, "extra_total": 1.0}
