"""Random programs render byte for byte as prometheus_client's in memory, in both formats, over every storage."""

from __future__ import annotations

import itertools
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import prometheus_client
import pytest
from conftest import RedisServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

import pdc
from pdc.config import DEFAULT
from pdc.delivery.flusher import Flusher

TYPES = ("Counter", "Gauge", "Summary", "Histogram", "Info", "Enum")
STATES = ("starting", 'up "and" running\\', "\n")
HOSTILE = {
    "": "",
    "a": "a",
    '"quoted" \\n \\': '"quoted" \\n \\',
    "\n\r\t\0": "\n\r\t\0",
    "é☃😀\u2028": "é☃😀\u2028",
    "\ud800": "\ufffd",
    "\ud83d\ude00": "😀",
    '{"json":1}, le="+Inf" # 1 : %s': '{"json":1}, le="+Inf" # 1 : %s',
}
"""Label values, and how they are shown: prometheus_client cannot encode lone surrogates."""

texts = st.sampled_from(sorted(HOSTILE)) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
specials = st.sampled_from([0, -0.0, 0.0, math.inf, -math.inf, math.nan, True])
any_number = specials | st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([5e-324, 1e22, 1e-7, 123456789.5, 1e16])
exact_number = specials | st.integers(-1000, 1000) | st.integers(-1000, 1000).map(lambda number: number / 64)
"""Numbers whose sums are exact, so that they are the same in any grouping."""
valid_number = st.floats(0, 1e9) | st.integers(0, 2**60) | st.sampled_from([5e-324, 1e22])
"""Numbers that keep counters and sums as OpenMetrics wants them."""


@dataclass(frozen=True)
class Declaration:
    """A metric of a program."""

    type: str
    name: str
    labelnames: tuple[str, ...]
    options: Mapping[str, Any]
    mode: str | None = None

    def make(self, module: ModuleType, registry: CollectorRegistry) -> Any:
        """The metric in `pdc` or in prometheus_client."""
        options = dict(self.options)
        if self.mode is not None and (module is pdc or self.mode != "shared"):
            options["multiprocess_mode"] = self.mode
        return getattr(module, self.type)(self.name, 'A "test"\n \\ ☃', self.labelnames, registry=registry, **options)


@dataclass(frozen=True)
class Step:
    """An update or removal of one of a program's metrics."""

    metric: int
    action: str
    values: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    held: bool = False
    """True if the child is the first one that the program got, which may have been removed since."""


@dataclass
class Program:
    """Metrics and the steps on them; the clock advances by one second a step."""

    declarations: list[Declaration]
    steps: list[Step]
    flushes: set[int] = field(default_factory=set)

    def run(self, module: ModuleType, clock: list[float], shown: Callable[[str], str]) -> CollectorRegistry:
        """Run the program on `pdc` or on prometheus_client, which gets texts in the form in which they are shown."""
        clock[0] = 1_700_000_000.5
        registry = CollectorRegistry()
        metrics = [declaration.make(module, registry) for declaration in self.declarations]
        held: dict[tuple[int, tuple[str, ...]], Any] = {}
        for number, step in enumerate(self.steps):
            clock[0] += 1
            self._do(step, metrics[step.metric], held, shown)
            if module is pdc and number in self.flushes:
                pdc.flush()
        return registry

    def _do(self, step: Step, metric: Any, held: dict[tuple[int, tuple[str, ...]], Any], shown: Callable[[str], str]) -> None:
        values = tuple(map(shown, step.values))
        arguments = [_shown(argument, shown) for argument in step.arguments]
        if step.action == "clear":
            metric.clear()
        elif step.action == "remove":
            metric.remove(*values)
        elif step.action == "remove_by_labels":
            (chosen,) = arguments
            metric.remove_by_labels({name: values[index] for index, name in enumerate(metric._labelnames) if index in chosen})
        else:
            child = metric.labels(*values) if values else metric
            first = held.setdefault((step.metric, values), child)
            if step.action != "touch":
                getattr(first if step.held else child, step.action)(*arguments)

    def sorted_by(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """The families, with their series sorted by label values, as in pdc."""
        for declaration, family in zip(self.declarations, families, strict=True):
            family.samples.sort(key=partial(label_values, sorted(declaration.labelnames)))
            yield family


def label_values(names: Iterable[str], sample: Sample) -> list[str]:
    """The values of these labels, in this order."""
    return [sample.labels[name] for name in names]


class Families:
    """Families for an encoder."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


def _shown(argument: Any, shown: Callable[[str], str]) -> Any:
    if isinstance(argument, str):
        return shown(argument)
    return {key: shown(value) for key, value in argument.items()} if isinstance(argument, dict) else argument


def _update(
    draw: st.DrawFn, declaration: Declaration, numbers: st.SearchStrategy[float], traces: st.SearchStrategy[str]
) -> tuple[str, tuple[Any, ...]]:
    """A method that updates a metric of that type, and its arguments."""
    kind = declaration.type
    exemplars = st.just(()) | traces.map(lambda trace: ({"trace_id": trace},))
    if kind == "Counter":
        if draw(st.integers(0, 4)) == 0:
            return "reset", ()
        amount = draw(numbers)
        return "inc", (-amount if amount < 0 else amount, *draw(exemplars))
    if kind == "Gauge":
        recent = declaration.mode in ("mostrecent", "livemostrecent")
        return ("set" if recent else draw(st.sampled_from(["set", "inc", "dec"]))), (draw(numbers),)
    if kind in ("Summary", "Histogram"):
        return "observe", (draw(numbers), *(draw(exemplars) if kind == "Histogram" else ()))
    if kind == "Info":
        return "info", (draw(st.dictionaries(st.sampled_from(["version", "host", "zone"]), texts, max_size=3)),)
    return "state", (draw(st.sampled_from(STATES)),)


MODES = ("shared", "shared", "shared", "sum", "min", "max", "mostrecent", "livesum", "livemin", "livemax", "livemostrecent")
BOUNDS = (0.0, 1e-9, 0.25, 1, 10, 1e7, 1e22)


@st.composite
def programs(
    draw: st.DrawFn,
    numbers: st.SearchStrategy[float],
    traces: st.SearchStrategy[str] = texts,
    bounds: Sequence[float] = (-2.5, *BOUNDS),
) -> Program:
    """A program over up to four metrics, with such numbers, exemplars and buckets."""
    declarations = [_declaration(draw, number, bounds) for number in range(draw(st.integers(1, 4)))]
    few = draw(st.lists(texts, min_size=2, max_size=3))
    steps = []
    for _ in range(draw(st.integers(0, 12))):
        metric = draw(st.integers(0, len(declarations) - 1))
        declaration = declarations[metric]
        values = tuple(draw(st.sampled_from(few)) for _ in declaration.labelnames)
        others = ["touch", "clear", "remove", "remove_by_labels"] if values else []
        action = draw(st.sampled_from([*others, *["update"] * 8]))
        arguments: tuple[Any, ...] = ()
        if action == "update":
            action, arguments = _update(draw, declaration, numbers, traces)
        elif action == "remove_by_labels":
            arguments = (draw(st.sets(st.integers(0, len(values) - 1))),)
        steps.append(Step(metric, action, values, arguments, draw(st.booleans())))
    return Program(declarations, steps, draw(st.sets(st.integers(0, 11))))


def _declaration(draw: st.DrawFn, number: int, bounds: Sequence[float]) -> Declaration:
    kind = draw(st.sampled_from(TYPES))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["namespace"] = draw(st.sampled_from(["shop", "a"]))
        options["subsystem"] = draw(st.sampled_from(["", "sub"]))
    if kind not in ("Info", "Enum"):
        options["unit"] = draw(st.sampled_from(["", "seconds"]))
    if kind == "Histogram":
        options["buckets"] = sorted(draw(st.sets(st.sampled_from(bounds), min_size=1)))
    if kind == "Enum":
        options["states"] = STATES
    names = st.lists(st.sampled_from(["b", "a", "path", "résumé"]), max_size=2, unique=True)
    mode = draw(st.sampled_from(MODES)) if kind == "Gauge" else None
    return Declaration(
        kind, draw(st.sampled_from(["m", "the_total", "dotted.name"])) + str(number), tuple(draw(names)), options, mode
    )


@dataclass
class Bench:
    """Runs a program on pdc with a new storage, and on prometheus_client in memory."""

    storages: Iterator[dict[str, Any]]
    clock: list[float]

    def run(self, program: Program, **options: Any) -> tuple[CollectorRegistry, list[Metric]]:
        """The registry of pdc's metrics, and the families that it must show."""
        reference = program.run(prometheus_client, self.clock, lambda text: HOSTILE.get(text, text))
        expected = list(program.sorted_by(reference.collect()))
        pdc.shutdown()
        DEFAULT._work.metrics._by_name.clear()  # those of the program before, which garbage collection has yet to find
        pdc.setup(**next(self.storages), **options)
        return program.run(pdc, self.clock, str), expected


@pytest.fixture(params=["sqlite", "redis"])
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, shared_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A bench over each storage; the clock is the program's own, and there is no background thread."""
    if request.param == "sqlite":
        storages: Iterator[dict[str, Any]] = ({"sqlite": tmp_path / f"{number}.db"} for number in itertools.count())
    else:
        prefixes = (f"{tmp_path.name}{number}" for number in itertools.count())
        storages = ({"redis": shared_redis_server.url, "redis_prefix": prefix} for prefix in prefixes)
    clock = [0.0]
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: clock[0])
        patched.setattr(Flusher, "start", lambda *_, **__: None)  # programs flush by their own steps
        yield Bench(storages, clock)


def quietly(examples: int) -> settings:
    """Settings of a test whose fixture makes a new storage for each example; always the same examples."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check(registry: Collector, expected: list[Metric]) -> None:
    """Compare what pdc shows with the families of prometheus_client, in both formats."""
    by_name = Families(sorted(expected, key=lambda family: family.name))
    assert pdc.generate_latest() == prometheus_client.generate_latest(by_name)
    assert prometheus_client.generate_latest(registry) == prometheus_client.generate_latest(Families(expected))
    assert openmetrics(registry) == openmetrics(Families(expected))


@quietly(60)
@given(program=programs(any_number))
def test_write_through_renders_as_in_memory(bench: Bench, program: Program) -> None:
    """With flush_interval=0 a program renders as in memory, for any floats."""
    check(*bench.run(program))


@quietly(60)
@given(program=programs(exact_number))
def test_buffered_renders_as_in_memory(bench: Bench, program: Program) -> None:
    """With a buffer, flushed at any time, a program renders as in memory."""
    check(*bench.run(program, flush_interval=3600))


def samples(families: Iterable[Metric], *, exemplars: bool) -> list[tuple[Any, ...]]:
    """Every sample, to be compared."""
    return [
        (sample.name, sorted(sample.labels.items()), sample.value, *(_exemplar(sample.exemplar) if exemplars else ()))
        for family in families
        for sample in family.samples
    ]


def _exemplar(exemplar: Exemplar | None) -> tuple[Any, ...]:
    return () if exemplar is None else (exemplar.labels, exemplar.value, float(exemplar.timestamp or 0))


@quietly(50)
@given(program=programs(valid_number, st.sampled_from(["", "a b", "é☃😀", "{},= # 1"]), BOUNDS))
def test_the_parsers_of_prometheus_client_read_back_what_was_counted(bench: Bench, program: Program) -> None:
    """Both formats are parsed into exactly the samples that prometheus_client holds.

    Its parser of OpenMetrics takes neither quotes in an exemplar nor a histogram with negative bounds.
    """
    registry, expected = bench.run(program, flush_interval=3600)
    from_openmetrics = parse_openmetrics(openmetrics(registry, escaping=ALLOWUTF8).decode())
    assert samples(from_openmetrics, exemplars=True) == samples(expected, exemplars=True)
    from_text = parse_text(prometheus_client.generate_latest(registry, escaping=ALLOWUTF8).decode())
    assert sorted(samples(from_text, exemplars=False)) == sorted(samples(expected, exemplars=False))


def test_promtool_accepts_every_type(bench: Bench) -> None:
    """`promtool check metrics` finds no fault in metrics of all types with hostile labels."""
    names = ("shop_sales_total", "shop_stock", "shop_basket_bytes", "shop_wait_seconds", "shop_build", "shop_state")
    updates = (("inc", 2), ("set", -1.5), ("observe", 3), ("observe", 0.25), ("info", {"host": '"'}), ("state", STATES[2]))
    options: list[dict[str, Any]] = [{}, {}, {}, {}, {}, {"states": STATES}]
    declarations = [Declaration(kind, name, ("path",), more) for kind, name, more in zip(TYPES, names, options, strict=True)]
    steps = [
        Step(number, method, (path,), (argument,)) for number, (method, argument) in enumerate(updates) for path in HOSTILE
    ]
    bench.run(Program(declarations, steps))
    checked = subprocess.run(["promtool", "check", "metrics"], input=pdc.generate_latest(), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_exemplars_show_in_another_process(
    storage: dict[str, Any], registry: CollectorRegistry, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A process without metrics serves the exemplars of others as OpenMetrics, the last one of each bucket."""
    pdc.setup(**storage)
    counter = pdc.Counter("sales", "Help", ["path"], registry=registry)
    counter.labels("/").inc(2, {"trace_id": "a\ud800"})
    counter.labels("/").inc(3)
    histogram = pdc.Histogram("wait", "Help", buckets=[1, 2], registry=registry)
    for value, trace in ((0.25, "b"), (0.5, "c"), (7, "d")):
        histogram.observe(value, {"trace_id": trace})
    script = """
        from pdc.exposition import Scrape
        setup()
        print(Scrape(accept="application/openmetrics-text").answer().body.decode())
        """
    shown = run_script(script, storage=storage).stdout
    shown = shown[shown.index("# HELP sales") :]  # pdc's own metrics come first
    assert shown.encode().strip() == openmetrics(registry).strip()
    exemplars = [
        (sample.name, sample.labels.get("le"), sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(shown.rstrip("\n") + "\n")
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == [
        ("sales_total", None, {"trace_id": "a\ufffd"}, 2.0),
        ("wait_bucket", "1.0", {"trace_id": "c"}, 0.5),
        ("wait_bucket", "+Inf", {"trace_id": "d"}, 7.0),
    ]
