"""The collectors of a registry on the pages of the extensions: clashes, failures, `name[]`, files of many processes."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.process_collector import ProcessCollector

import pdc
import pdc.redis
from pdc.exposition import OtherCollectors, Response, Scrape

OPENMETRICS = "application/openmetrics-text"


def page_of(*registries: CollectorRegistry, **scrape: str) -> Response:
    """The page of an application with these registries."""
    return Scrape(**scrape).answer(OtherCollectors(*registries))


def names(answer: Response, parse: Callable[[str], Iterable[Metric]] = parse_text) -> set[str]:
    """The samples of the page but for those of pdc itself and times of creation."""
    assert answer.status == 200, answer
    found = {sample.name for family in parse(answer.body.decode()) for sample in family.samples}
    return {name for name in found if not name.startswith("pdc_") and not name.endswith("_created")}


class Each:
    """A collector that calls a function, and counts the calls."""

    def __init__(self, registry: CollectorRegistry, collect: Callable[[], Iterable[Metric]]) -> None:
        self.calls = 0
        self._collect = collect
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families of the function."""
        self.calls += 1
        yield from self._collect()


def fail() -> Iterable[Metric]:
    """Raise an error after a family."""
    yield GaugeMetricFamily("half", "Half of the families.", 1)
    raise OSError("no such device")


def unsound() -> Iterable[Metric]:
    """A family whose value is no number."""
    metric = Metric("unsound", "No number.", "gauge")
    metric.add_sample("unsound", {}, "many")  # type: ignore[arg-type]  # the fault
    return [metric]


def unset() -> Iterable[Metric]:
    """A family whose value is not there."""
    metric = GaugeMetricFamily("unset", "No value.", labels=["a"])
    metric.add_metric(["b"], None)  # type: ignore[arg-type]  # the fault
    return [metric]


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize(
    "query", ["", "name[]=half&name[]=unsound&name[]=unset&name[]=fine&name[]=sales_total&name[]=pdc_collectors_failed"]
)
def test_families_that_cannot_be_collected_or_rendered_are_left_out(
    accept: str, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The page has all other metrics in any format, and counts the collectors that failed; each error is logged once."""
    registry = CollectorRegistry()
    Each(registry, fail)
    Each(registry, unsound)
    Each(registry, unset)
    Each(registry, lambda: [GaugeMetricFamily("fine", "Fine.", 5)])
    others = OtherCollectors(registry)
    for _ in range(2):
        answer = Scrape(accept=accept, query=query).answer(others)
        found = names(answer, parse_openmetrics if accept else parse_text)
        assert found == {"sales_total", "fine"} | (set() if query else {"stock"})
        assert b"\npdc_collectors_failed 3.0\n" in answer.body
    told = [record.exc_info[1] for record in caplog.records if record.exc_info and "Each failed" in record.getMessage()]
    assert [type(error) for error in told] == [OSError, ValueError]


@pytest.mark.usefixtures("counted")
def test_an_exception_of_a_signal_handler_is_raised() -> None:
    """An exception that a handler of a signal raises amid a collector is no failure of that collector."""

    def interrupted() -> Iterable[Metric]:
        signal.raise_signal(signal.SIGUSR1)
        return []

    def handle(*_: object) -> None:
        raise TimeoutError

    registry = CollectorRegistry()
    Each(registry, interrupted)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(TimeoutError):
            page_of(registry)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("counted")
def test_names_that_the_storage_has_are_shown_once(caplog: pytest.LogCaptureFixture) -> None:
    """A family of the registry that shares a name with the storage, or with another registry, is left out and logged."""
    first, second = CollectorRegistry(), CollectorRegistry()
    Each(first, lambda: [GaugeMetricFamily("stock", "Not ours.", 99), CounterMetricFamily("own", "Own.", 1)])
    Each(second, lambda: [CounterMetricFamily("own", "Own.", 99)])
    answer = page_of(first, second)
    assert names(answer) == {"sales_total", "stock", "own_total"}
    assert b" 99.0\n" not in answer.body
    assert b"\npdc_collectors_failed 0.0\n" in answer.body
    assert len([each for each in caplog.messages if "is not shown" in each]) == 2


@pytest.mark.usefixtures("counted")
def test_names_choose_collectors() -> None:
    """With `name[]`, collectors that declare other names only are not asked, as in prometheus_client; target info is a name."""
    registry = CollectorRegistry(auto_describe=True, target_info={"env": "test"})
    asked = Each(registry, lambda: [GaugeMetricFamily("asked", "Asked.", 1), GaugeMetricFamily("too", "Too.", 2)])
    slow = Each(registry, lambda: [GaugeMetricFamily("slow", "Slow.", 3)])
    before = (asked.calls, slow.calls)
    query = "name[]=asked&name[]=target_info"
    assert names(page_of(registry, query=query)) == {"asked", "target_info"}
    assert (asked.calls - before[0], slow.calls - before[1]) == (1, 0)
    assert names(page_of(registry, query="name[]=nothing")) == set()


@pytest.mark.usefixtures("counted")
def test_collectors_of_the_process_that_prometheus_client_makes_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The page leaves out the collectors of the default registry itself, and shows one that the program makes."""
    registry = CollectorRegistry()
    for collector in (
        prometheus_client.PROCESS_COLLECTOR,
        prometheus_client.PLATFORM_COLLECTOR,
        prometheus_client.GC_COLLECTOR,
    ):
        registry.register(collector)
    assert names(page_of(registry)) == {"sales_total", "stock"}
    ProcessCollector(namespace="shop", registry=registry)
    assert "shop_process_open_fds" in names(page_of(registry))
    assert caplog.messages == []


@pytest.mark.usefixtures("counted")
def test_the_line_about_metrics_of_one_process_names_them_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, once there are such metrics, names twenty of them; collectors and metrics of pdc are none."""
    registry = CollectorRegistry()
    pdc.Counter("shared", "Shared.", registry=registry)
    Each(registry, lambda: [GaugeMetricFamily("fine", "Fine.", 5)])
    page_of(registry)
    assert caplog.messages == []
    for number in range(23):
        prometheus_client.Counter(f"local_{number:02}", "Of this process.", registry=registry)
    for _ in range(2):
        page_of(registry)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    listed = ", ".join(f"local_{number:02}" for number in range(20))
    assert f"which each process has for itself: {listed} and 3 more. Make them with pdc.Counter, pdc.Gauge" in told.message


@pytest.mark.usefixtures("counted")
def test_a_metric_without_its_storage_is_a_collector_that_fails(registry: CollectorRegistry) -> None:
    """A metric for a second storage that nobody has set up takes no other metric off the page."""
    pdc.redis.Counter("elsewhere", "Of a storage that nobody chose.", registry=registry)
    answer = page_of(registry)
    assert names(answer) == {"sales_total", "stock"}
    assert b"\npdc_collectors_failed 1.0\n" in answer.body


def test_a_second_storage_that_is_down_is_a_503(registry: CollectorRegistry, tmp_path: Path) -> None:
    """The page is complete or a 503, as far as pdc's own metrics go."""
    pdc.setup(redis="redis://127.0.0.1:1", journal=False)
    pdc.redis.Counter("elsewhere", "Of a storage that is down.", registry=registry)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Counter("here", "Here.", registry=registry).inc()
    assert page_of(registry).status == 503
    pdc.shutdown()
    gc.collect()


IN_FILES = """
import os, sys, prometheus_client
from pdc.exposition import OtherCollectors, Scrape
jobs = prometheus_client.Counter("jobs", "Jobs.", ["queue"])
busy = prometheus_client.Gauge("busy", "Busy.", multiprocess_mode="sum")
class Fixed:
    def collect(self):
        yield prometheus_client.metrics_core.GaugeMetricFamily("fixed", "Fixed.", 7)
prometheus_client.REGISTRY.register(Fixed())
setup()
pdc.Counter("shared", "Shared.").inc()
for number in range(2):
    if os.fork() == 0:
        jobs.labels("a").inc(10)
        busy.inc()
        os._exit(0)
    os.wait()
jobs.labels("a").inc()
others = OtherCollectors(prometheus_client.REGISTRY)
print(Scrape().answer(others).body.decode())
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "gone"
print(Scrape().answer(others).body.decode())
"""


def test_metrics_in_files_are_those_of_all_processes(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PROMETHEUS_MULTIPROC_DIR, the default registry's metrics are those of all processes, and nothing is logged."""
    (tmp_path / "files").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "files"))
    done = run_script(IN_FILES, storage={"sqlite": str(tmp_path / "metrics.db")})
    found, without = done.stdout.split("pdc_collectors_failed 0.0")
    for line in ('jobs_total{queue="a"} 21.0', "busy 2.0", "fixed 7.0", "shared_total 1.0"):
        assert found.count(f"\n{line}\n") == 1
    for line in ("fixed 7.0", "shared_total 1.0", "pdc_collectors_failed 1.0"):
        assert f"\n{line}\n" in without
    assert "which each process has for itself" not in done.stderr
    assert "PROMETHEUS_MULTIPROC_DIR is not set or not a directory" in done.stderr
