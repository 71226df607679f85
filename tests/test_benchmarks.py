"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

EVERY_SECOND = {"pdc, SQLite, every second", "pdc, Redis, every second"}
AT_ONCE = {"pdc, SQLite, at once", "pdc, Redis, at once"}
MULTIPROCESS = "prometheus_client, multiprocess mode"


def measured(folder: Path, suite: str, case: str) -> list[dict[str, Any]]:
    """Run the cases whose name contains that, for one round, and return their results."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--no-plot", "--output", str(folder)]
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
        ("web", "Django async, 1 route", {"pdc, SQLite", "pdc, Redis", "django-prometheus"}),
        ("web", "Starlette, 1 route", {"pdc, SQLite", "pdc, Redis", "starlette_exporter", "fastapi-instrumentator"}),
        ("updates", "observe() of 15 buckets, 4 threads", {*EVERY_SECOND, *AT_ONCE, MULTIPROCESS, "pytheus, Redis"}),
        ("updates", "Import", {"pdc", "pdc and redis-py", "pytheus and redis-py"}),
        ("scrape", "of 4 processes", {*EVERY_SECOND, MULTIPROCESS}),
    ],
)
def test_a_case_measures_all_contenders_that_can_run_here(tmp_path: Path, suite: str, case: str, contenders: set[str]) -> None:
    """Each contender has its cost per round and a ratio to the reference; the reference's is 1."""
    (result,) = measured(tmp_path, suite, case)
    lines = {line["contender"]: line for line in result["lines"]}
    assert contenders | {result["reference"]} == set(lines)
    assert lines[result["reference"]]["ratio"] == 1
    assert all(len(line["rounds"]) == 1 and line["median"] == line["rounds"][0] for line in lines.values())
