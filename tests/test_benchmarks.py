"""The benchmarks run, and write their measurements."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RedisServer
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks import report, resolution
from benchmarks.contenders.ceiling import FLUSHES, Driver, by_server, recorded
from benchmarks.contenders.libraries import PDC
from benchmarks.contest import Case, Contender, Suite
from benchmarks.suites import SUITES

REDIS = "pdc, Redis, every second"
EVERY_SECOND = {"pdc, SQLite, every second", REDIS}
MULTIPROCESS = "prometheus_client, multiprocess mode"


def measured(folder: Path, suite: str, case: str, *options: str) -> list[dict[str, Any]]:
    """Run the cases whose name contains that text, for one round, and return their results."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--no-plot", "--output", str(folder), *options]
    subprocess.run([*command, "--suite", suite, "--only", case], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
    document = json.loads((folder / f"{suite}.json").read_text())
    assert set(document) == {"suite", "title", "machine", "results"}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["versions"]["prometheus_client"]
    results: list[dict[str, Any]] = document["results"]
    return results


@pytest.mark.parametrize(
    ("suite", "case", "contenders"),
    [
        ("web", "Flask, 1 route", {"pdc, SQLite", "pdc, Redis", "prometheus_flask_exporter"}),
        pytest.param(
            "web", "Django async, 1 route", {"pdc, SQLite", "pdc, Redis", "django-prometheus"}, marks=pytest.mark.long
        ),
        pytest.param(
            "web",
            "Starlette, 1 route",
            {"pdc, SQLite", "pdc, Redis", "starlette_exporter", "fastapi-instrumentator"},
            marks=pytest.mark.long,
        ),
        pytest.param("server", "Redis commands", {"pdc, Redis", "pdc, Redis, 1,000 requests/s"}, marks=pytest.mark.long),
        ("updates", "observe() of 15 buckets, 4 threads", {*EVERY_SECOND, MULTIPROCESS}),
        pytest.param("updates", "Import", {"pdc", "pdc and redis-py", "pytheus and redis-py"}, marks=pytest.mark.long),
        pytest.param("updates", "Room of a counter in SQLite", {"pdc, SQLite, every second"}, marks=pytest.mark.long),
        pytest.param("updates", "remove()", {*EVERY_SECOND}, marks=pytest.mark.long),
        ("write_through", "counter.inc(), 1 ms away, Redis", {"pdc, Redis, at once", "pytheus, Redis"}),
        pytest.param("scrape", "counters of 4 processes", {*EVERY_SECOND, MULTIPROCESS}, marks=pytest.mark.long),
        pytest.param("registry", "samples of 20 metrics", {*EVERY_SECOND, MULTIPROCESS}, marks=pytest.mark.long),
        pytest.param("writers", "Network of a batch", {f"{REDIS}, {size}" for size in (10, 100, 500)}, marks=pytest.mark.long),
        pytest.param(
            "writers", "have ended", {f"{each}, {size}" for each in EVERY_SECOND for size in (1, 100)}, marks=pytest.mark.long
        ),
        pytest.param(
            "ceiling",
            "Scrape of",
            {
                f"pdc, {each}, at {share}%"
                for each in ("one server", "cluster of 3, each metric on a node")
                for share in (0, 50, 90)
            },
            marks=pytest.mark.long,
        ),
        pytest.param("pauses", "series: pause of the event loop", {*EVERY_SECOND}, marks=pytest.mark.long),
        pytest.param("interpreters", "gauge.set()", {*EVERY_SECOND}, marks=pytest.mark.long),
    ],
)
def test_a_case_measures_all_contenders_that_can_run_here(tmp_path: Path, suite: str, case: str, contenders: set[str]) -> None:
    """Each contender has its cost per round and a ratio to the reference; the ratio of the reference is 1, or 0 at no cost."""
    (result,) = measured(tmp_path, suite, case)
    lines = {line["contender"]: line for line in result["lines"]}
    assert contenders | {result["reference"]} == set(lines)
    assert lines[result["reference"]]["ratio"] in (0, 1)
    assert all(len(line["rounds"]) == 1 and line["median"] == line["rounds"][0] for line in lines.values())


def test_two_commits_are_measured_side_by_side(tmp_path: Path) -> None:
    """With `--before` each contender of this project is compared with the one of another checkout."""
    shutil.copytree(ROOT / "pdc", tmp_path / "pdc")
    with (tmp_path / "pdc" / "__init__.py").open("a") as package:
        package.write("raise ImportError('this is the other one')\n")
    with pytest.raises(subprocess.CalledProcessError):
        measured(tmp_path, "updates", "Import", "--before", str(tmp_path))
    found = measured(tmp_path, "updates", "Import", "--before", str(ROOT))
    names = ["pdc", "pdc and redis-py"]
    assert [[line["contender"] for line in result["lines"]] for result in found] == [[name, "before"] for name in names]
    assert [result["reference"] for result in found] == ["before", "before"]


def test_the_cost_that_contenders_add_is_measured_round_by_round() -> None:
    """A slow round, which meets baseline and contenders alike, changes neither the added cost nor the ratio."""
    case = Case("requests", [], reference="peer", baseline="bare")
    costs = {"bare": [10.0, 10.0, 50.0], "peer": [14.0, 14.0, 54.0], "pdc": [16.0, 16.0, 56.0]}
    found = report.result(case, costs)
    lines = {line.contender: line for line in found.lines}
    assert found.baseline_median == 10
    assert [lines["peer"].median, lines["pdc"].median] == [4, 6]
    assert [lines["pdc"].ratio_low, lines["pdc"].ratio, lines["pdc"].ratio_high] == [1.5, 1.5, 1.5]
    assert "| pdc       | 6.00 | 6.00 to 6.00 | 6.00  | 1.50 (1.50 to 1.50) |" in report.table(found)


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    """Each contender is divided by the cost of the reference in the same round."""
    case = Case("updates", [], reference="peer")
    found = report.result(case, {"peer": [1.0, 10.0, 2.0], "pdc": [3.0, 30.0, 8.0]})
    lines = {line.contender: line for line in found.lines}
    assert lines["pdc"].median == 8
    assert lines["pdc"].ratio == 3


def test_a_ratio_to_no_cost_is_not_shown() -> None:
    """There is no ratio where the addition of the reference lies within the noise of the rounds."""
    case = Case("requests", [], reference="peer", baseline="bare")
    found = report.result(case, {"bare": [10.0] * 4, "peer": [9.0, 11.0, 9.0, 11.1], "pdc": [12.0] * 4})
    assert "lost in the noise" in report.table(found).splitlines()[-2]


def test_each_measure_of_a_case_has_a_table() -> None:
    """The time of the processor and that on the wall come from the same rounds."""
    case = Case("inc", [], reference="peer", measures=("cpu", "wall"))
    names = [report.result(case, {"peer": [1.0]}, measure).case for measure in case.measures]
    assert names == ["inc, CPU time", "inc, wall-clock time"]


def test_growth_is_shown_as_exponents() -> None:
    """The exponent is the slope of the logarithm of the cost over that of the size, for each contender."""
    case = Case("scrape", [Contender("pdc", "scrapes", size=size) for size in (10, 100, 1_000)], reference="pdc, 10")
    found = report.result(case, {"pdc, 10": [2.0], "pdc, 100": [20.0], "pdc, 1,000": [200.0]})
    assert found.growth == {"pdc": pytest.approx(1)}
    assert "\nExponents of growth: pdc 1.00.\n" in report.table(found)


def test_the_page_compares_with_the_cheapest_other_contender(tmp_path: Path) -> None:
    """A row of the summary has the dearest contender of pdc, of the largest size that both have; other rows have growth."""
    case = Case("scrape", [Contender(name, "scrapes", size=size) for name in ("pdc", "peer") for size in (1, 2)], "peer, 1")
    costs = {"peer, 1": [1.0], "peer, 2": [4.0], "pdc, 1": [1.0], "pdc, 2": [2.0], "pdc, 3": [9.0]}
    suite = SUITES["registry"](quick=True)
    report.write_json(suite, [report.result(case, costs)], tmp_path / "registry.json")
    report.write_page(SUITES, tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(report.HEAD)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| scrape ")]
    assert rows[0] == ["scrape", "µs", "pdc, 2", "2.00", "peer, 2", "4.00", "0.500"]
    assert rows[1:] == [["scrape", "pdc", "1.00"], ["scrape", "peer", "2.00"]]
    assert f"## {suite.title}" in page


def test_the_flushes_at_full_load_count_like_those_of_processes(redis_server: RedisServer) -> None:
    """Each flush of the driver is another one of its writer: all count, and the gauge has a value of each writer."""
    routes, writers, in_progress = 130, 150, 3  # so many routes that a flush is two batches
    library = PDC(3600.0, redis=redis_server.url, redis_prefix="crowd")
    (messages,) = by_server(recorded(library, routes))
    before = sums(library)
    with closing(Driver(messages, "0", writers)) as driver:
        driver.flush(2)
        after = sums(library)
        assert driver.processor(1) > 0
        assert all(wait > 0 for wait in driver.flush_at(200.0))
    assert after["http_requests_total"] - before["http_requests_total"] == 2 * FLUSHES * routes
    assert (before["http_requests_in_progress"], after["http_requests_in_progress"]) == (
        in_progress,
        in_progress * (writers + 1),
    )


def sums(library: PDC) -> Counter[str]:
    """The sums of the samples of each name on a scrape."""
    found: Counter[str] = Counter()
    for sample in chain.from_iterable(family.samples for family in parse_text(library.render().decode())):
        found[sample.name] += sample.value  # type: ignore[assignment]  # a float
    return found


def shown(section: str) -> Iterator[str]:
    """The titles of the tables, and their first columns, without versions of Python."""
    for line in section.splitlines():
        if line.startswith("### "):
            yield re.sub(r", Python \S+", "", line)
        elif line.startswith("| "):
            yield line[2:].partition(" |")[0].strip()


def columns(suite: Suite) -> Iterator[str]:
    """The same for the tables that the suite makes."""
    for case in suite.cases:
        for measure in case.measures:
            yield re.sub(r", Python \S+", "", f"### {report.title(case, measure)}")
            yield from ["contender", *(each.title for each in case.contenders if each.name != case.baseline)]


def test_the_page_of_measurements_has_all_tables() -> None:
    """Its titles, cases and contenders are those of the suites, in their order: `make bench DOCUMENT=1` has written it."""
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert page.startswith(report.HEAD)
    _, _, *sections = page.split("\n## ")
    for make, section in zip(SUITES.values(), sections, strict=True):
        suite = make(quick=False)
        expected = list(columns(suite))
        assert section.startswith(f"{suite.title}\n")
        assert list(shown(section))[: len(expected)] == expected


@pytest.mark.long
def test_the_picture_of_native_histograms_is_of_the_counts_of_all_processes() -> None:
    """Each minute adds all of its durations to both histograms; quantiles of native buckets are within one bucket."""
    minutes = [*resolution.measured(2)]
    assert len(minutes) == 2
    for minute in minutes:
        sizes = {name: sum(counts.values()) for name, counts in minute.counts.items()}
        assert sizes == dict.fromkeys(resolution.NAMES, len(minute.durations))
        for wanted in (0.1, 0.5, 0.99):
            found = resolution.quantile(wanted, minute.counts["native_seconds"], is_native=True)
            assert 1 / 1.1 < found / resolution.true_quantile(wanted, minute.durations) < 1.1


def test_quantiles_are_those_of_prometheus() -> None:
    """Within a classic bucket a quantile is linear, within a native one exponential."""
    assert resolution.quantile(0.5, {(1.0, 4.0): 10.0}, is_native=False) == 2.5
    assert resolution.quantile(0.5, {(1.0, 4.0): 10.0}, is_native=True) == 2.0
