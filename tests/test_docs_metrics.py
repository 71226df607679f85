"""docs/metrics.md: its tables have every metric that the code declares and that applications export, and no other."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from conftest import ROOT
from helpers import script
from prometheus_client.parser import text_string_to_metric_families

from pdc_django.conf import DjangoOptions

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
OF_PEERS = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("http", "jobs"))
"""The pages with the names of other exporters."""
SOURCES = {path: path.read_text(encoding="utf-8") for folder in ROOT.glob("pdc*/") for path in sorted(folder.rglob("*.py"))}
QUEUES = {name for source in SOURCES.values() for name in re.findall(r"TaskMetrics\(\"(\w+)\"", source)}
"""The libraries whose tasks are counted, with which the names of their metrics begin."""
KINDS = ("Counter", "Gauge", "Histogram", "Summary", "Info", "Enum", "Family", "GaugeMetricFamily", "CounterMetricFamily")
UNITS = {"_timestamp_seconds": "Unix seconds", "_start_time_seconds": "Unix seconds", "_seconds": "seconds", "_bytes": "bytes"}


class Row(NamedTuple):
    """A metric of the page."""

    name: str
    type: str
    labels: str
    unit: str
    meaning: str
    present: str

    def is_there(self, *, everything: bool) -> bool:
        """True if an application has it by default, or else where everything is switched on."""
        options = [name.removeprefix("PDC_").lower() for name in re.findall(r"PDC_\w+", self.present)]
        return everything or all(getattr(DjangoOptions(), name) for name in options)

    def family(self, *, everything: bool) -> tuple[str, str, frozenset[str], str]:
        """The name, the type, the labels and the help that a scrape has."""
        labels = self.labels if everything else self.labels.partition("with `")[0]
        return self.name, self.type, frozenset(re.findall(r"`([a-z_]+)`", labels)), self.meaning.replace("`", "")


ROWS = [Row(*cells) for cells in re.findall(r"^\| `(\w+)` \| " + r" \| ".join([r"(.*?)"] * 5) + r" \|$", PAGE, re.MULTILINE)]


def scraped(page: str) -> Iterator[tuple[str, str, frozenset[str], str]]:
    """The families of a scrape, without the times of creation. Each of them has a series."""
    for family in text_string_to_metric_families(page):
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if family.name.endswith("_created"):
            continue
        labels = {name for sample in samples for name in sample.labels} - ({"le"} if family.type == "histogram" else set())
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, family.type, frozenset(labels), family.documentation


@pytest.mark.parametrize("chosen", ["everything", pytest.param("default", marks=pytest.mark.long)])
def test_the_page_has_the_metrics_of_a_scrape(chosen: str, run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Applications export each metric of the page, under its name, type, labels and help, and no other one."""
    everything = chosen == "everything"
    expected = {row.family(everything=everything) for row in ROWS if row.is_there(everything=everything)}
    found = {*scraped(run_script(script("every_metric.py"), chosen, *sorted(QUEUES - {"celery"})).stdout)}
    assert sorted(found - expected) == [], "docs/metrics.md lacks these metrics, or has them otherwise"
    assert sorted(expected - found) == [], (
        "no application of tests/scripts/every_metric.py exports these metrics of docs/metrics.md"
    )


def declared() -> Iterator[tuple[str, str]]:
    """The names of the metrics that the code declares, or a part of each computed one, with the place of the declaration."""
    for path, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in KINDS and node.args:
                parts = [each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant)]
                for part in parts[:1] if isinstance(node.args[0], (ast.Constant, ast.JoinedStr)) else []:
                    yield str(part), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_the_page_has_the_metrics_that_the_code_declares() -> None:
    """Each metric of the code has a row, or is one of another exporter's names: also those of new modules."""
    names = [row.name for row in ROWS] + re.findall(r"`(\w+)`", OF_PEERS)
    text = "".join(f"_{name} _{name.removesuffix('_total')} " for name in names)
    places = dict(declared())
    assert len(places) > 40
    missing = {
        name: place for name, place in places.items() if (name if "_" in (name[0], name[-1]) else f"_{name} ") not in text
    }
    assert missing == {}, "docs/metrics.md lacks these metrics"


def test_the_page_has_the_metrics_of_each_queue() -> None:
    """Each library whose tasks are counted has a table of the page."""
    assert "celery" in QUEUES
    prefixes = {row.name.partition("_")[0] for row in ROWS}
    assert QUEUES - prefixes == set(), "docs/metrics.md lacks the metrics that begin with these names"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_metric_has_the_unit_of_its_name(row: Row) -> None:
    """The end of the name gives the unit of a metric of seconds or bytes; others count things."""
    base = row.name.removesuffix("_total")
    (unit, *_) = [unit for end, unit in UNITS.items() if base.endswith(end)] or [row.unit]
    assert row.unit == unit
    assert row.unit
