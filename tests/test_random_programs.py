"""Random programs render byte for byte as prometheus_client's in memory, in both formats, over every storage."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

import pdc
from pdc.buffer import Buffer
from pdc.config import DEFAULT

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
    """Something that a program does to one of its metrics."""

    metric: int
    action: str
    values: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    held: bool = False
    """Whether the child is the one that the program got first, which may have been removed since."""


@dataclass
class Program:
    """Metrics, and what is done to them; the clock advances by one second a step."""

    declarations: list[Declaration]
    steps: list[Step]
    flushes: set[int] = field(default_factory=set)

    def run(self, module: ModuleType, clock: list[float], shown: Callable[[str], str]) -> CollectorRegistry:
        """Run the program on `pdc` or on prometheus_client, which gets texts as they are to be shown."""
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
        """The families, with their series sorted by label values, as pdc does."""
        labelnames = {id(declaration): sorted(declaration.labelnames) for declaration in self.declarations}
        for declaration, family in zip(self.declarations, families, strict=True):
            names = labelnames[id(declaration)]
            family.samples.sort(key=lambda sample, names=names: [sample.labels[name] for name in names])  # type: ignore[misc]
            yield family


class Families:
    """Families for an encoder."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _shown(argument: Any, shown: Callable[[str], str]) -> Any:
    if isinstance(argument, str):
        return shown(argument)
    return {key: shown(value) for key, value in argument.items()} if isinstance(argument, dict) else argument


def _exemplars(draw: st.DrawFn) -> tuple[dict[str, str], ...]:
    return ({"trace_id": draw(texts)},) if draw(st.booleans()) else ()


def _update(draw: st.DrawFn, declaration: Declaration, numbers: st.SearchStrategy[float]) -> tuple[str, tuple[Any, ...]]:
    """A method that updates a metric of that type, and its arguments."""
    kind = declaration.type
    if kind == "Counter":
        if draw(st.integers(0, 4)) == 0:
            return "reset", ()
        amount = draw(numbers)
        return "inc", (-amount if amount < 0 else amount, *_exemplars(draw))
    if kind == "Gauge":
        recent = declaration.mode in ("mostrecent", "livemostrecent")
        return ("set" if recent else draw(st.sampled_from(["set", "inc", "dec"]))), (draw(numbers),)
    if kind in ("Summary", "Histogram"):
        return "observe", (draw(numbers), *(_exemplars(draw) if kind == "Histogram" else ()))
    if kind == "Info":
        return "info", (draw(st.dictionaries(st.sampled_from(["version", "host", "zone"]), texts, max_size=3)),)
    return "state", (draw(st.sampled_from(STATES)),)


MODES = ("shared", "shared", "shared", "sum", "min", "max", "mostrecent", "livesum", "livemin", "livemax", "livemostrecent")
buckets = st.lists(st.sampled_from([-2.5, 0.0, 1e-9, 0.25, 1, 10, 1e7, 1e22]), min_size=1, unique=True).map(sorted)


@st.composite
def programs(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> Program:
    """A program over up to four metrics."""
    declarations = [_declaration(draw, number) for number in range(draw(st.integers(1, 4)))]
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
            action, arguments = _update(draw, declaration, numbers)
        elif action == "remove_by_labels":
            arguments = (draw(st.sets(st.integers(0, len(values) - 1))),)
        steps.append(Step(metric, action, values, arguments, draw(st.booleans())))
    return Program(declarations, steps, draw(st.sets(st.integers(0, 11))))


def _declaration(draw: st.DrawFn, number: int) -> Declaration:
    kind = draw(st.sampled_from(TYPES))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["namespace"] = draw(st.sampled_from(["shop", "a"]))
        options["subsystem"] = draw(st.sampled_from(["", "sub"]))
    if kind not in ("Info", "Enum"):
        options["unit"] = draw(st.sampled_from(["", "seconds"]))
    if kind == "Histogram":
        options["buckets"] = draw(buckets)
    if kind == "Enum":
        options["states"] = STATES
    names = st.lists(st.sampled_from(["b", "a", "path", "résumé"]), max_size=2, unique=True)
    mode = draw(st.sampled_from(MODES)) if kind == "Gauge" else None
    return Declaration(kind, draw(st.sampled_from(["m", "the_total", "dotted.name"])) + str(number), tuple(draw(names)), options, mode)


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
        DEFAULT._metrics.clear()  # those of the program before, which garbage collection has yet to find
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
        client = shared_redis_server.client()
        request.addfinalizer(client.close)
        storages = ({"redis": client, "redis_prefix": f"{tmp_path.name}{number}"} for number in itertools.count())
    clock = [0.0]
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: clock[0])
        patched.setattr(Buffer, "_start_thread", lambda _: None)  # programs are flushed when they say so
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


@quietly(120)
@given(program=programs(any_number))
def test_write_through_renders_as_in_memory(bench: Bench, program: Program) -> None:
    """With flush_interval=0 a program shows what it shows in memory, whatever floats it counts."""
    check(*bench.run(program))


@quietly(120)
@given(program=programs(exact_number))
def test_buffered_renders_as_in_memory(bench: Bench, program: Program) -> None:
    """With a buffer that is flushed at any time a program shows what it shows in memory."""
    check(*bench.run(program, flush_interval=3600))
