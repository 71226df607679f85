"""The figures of docs/storages.md, docs/native.md and of the sizing in docs/redis.md, and the code of docs/storages.md."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import block, run_block

import pdc
from pdc.cli import main

STORAGES, REDIS, NATIVE, MEASUREMENTS = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("storages", "redis", "native", "measurements")
)
TITLES = {
    "a counter, every second": "counter.inc()",
    "µs of a counter, at once": "counter.inc(), {}, CPU time",
    "a histogram, every second": "histogram.observe() of 15 buckets",
    "µs of a histogram, at once": "histogram.observe() of 15 buckets, {}, CPU time",
    "a scrape of 100,000 samples": "100,000 samples",
    "bytes of a counter's series in the storage": "Room of a counter in {}",
    "bytes of a histogram's series in the storage": "Room of a histogram in {}",
}
"""The table of docs/measurements.md for each row of the costs."""


def rows(page: str, of: str) -> Iterator[list[str]]:
    """The rows of the tables of a section, with the text of each cell."""
    (section,) = re.findall(rf"^##+ {re.escape(of)}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    for line in section.splitlines():
        if line.startswith("|") and not line.startswith("|-"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_block_of_the_page_chooses_a_storage(tmp_path: Path) -> None:
    """Both ways to set a storage up write the same file."""
    once, _, buffered = block(STORAGES, "python", of="In short").rpartition("pdc.setup(")
    counts = "hits = pdc.Counter('hits', 'Hits.')\nhits.inc()\n"
    source = f"{once}{counts}pdc.setup({buffered}hits.inc()\nprint(pdc.generate_latest().decode())"
    assert "hits_total 2.0" in run_block(source, tmp_path)


@pytest.mark.parametrize("cost", TITLES)
def test_the_costs_are_those_of_the_measurements(cost: str) -> None:
    """Each figure is the one of its table: a ratio to prometheus_client, microseconds or bytes."""
    (found,) = [row for row in rows(STORAGES, "Costs") if row[0] == cost]
    for storage, figure in zip(("SQLite", "Redis"), found[1:], strict=True):
        how = "at once" if "at once" in cost else "every second"
        table = {row[0]: row for row in rows(MEASUREMENTS, TITLES[cost].format(storage))}
        measured = table[f"pdc, {storage}, {how}"]
        assert figure == (measured[1] if cost.startswith(("bytes", "µs")) else measured[4].split()[0])


def test_the_command_of_the_page_has_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The command that changes the storage is one of `pdc`, and its options are there."""
    (command,) = re.findall(r"`pdc (copy [^`]*)`", STORAGES)
    words = shlex.split(command)
    assert main([words[0], "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))


@pytest.mark.parametrize("url", ["valkey://localhost:6379/0", object()], ids=["url", "client"])
def test_only_urls_and_clients_of_redis_py_are_taken(url: object) -> None:
    """A URL of valkey-py is an error of `setup`, and so is a client of another package."""
    with pytest.raises((TypeError, ValueError), match="setup\\(redis="):
        pdc.setup(redis=url)


def counted(*arguments: str) -> list[list[str]]:
    """The rows that `benchmarks.sizing` prints."""
    output = subprocess.check_output([sys.executable, "-m", "benchmarks.sizing", *arguments], cwd=ROOT, text=True, timeout=200)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")]


@pytest.mark.long
def test_the_native_buckets_are_those_of_a_search() -> None:
    """The fields before, after and beyond a search for writers to forget are those that the command of the page counts."""
    (arguments,) = re.findall(r"`python -m benchmarks.sizing (--native[^`]*)`", NATIVE)
    shown = [row for row in rows(NATIVE, "Processes with different resolutions") if row[1].isdigit()]
    assert [[row[0], *(cell.replace(",", "") for cell in row[1:])] for row in shown] == counted(*shlex.split(arguments))[1:]


@pytest.mark.long
def test_the_sizes_are_those_of_redis() -> None:
    """The fields, the calls and the traffic are those that `benchmarks.sizing` counts; bytes of a table with room differ."""
    found = counted("--series", "500", "--batches", "5")
    series, batches = ([row for row in found if len(row) == columns and row[1][0].isdigit()] for columns in (5, 6))
    pages = [row for row in rows(REDIS, "Sizing") if row[1].split()[0].isdigit()]
    for shown, (_, fields, room, _, text) in zip(pages[:6], series[:6], strict=True):
        assert shown[1] == fields
        most = int(shown[2].split()[-1].replace(",", ""))
        assert 0.6 * most <= int(room) <= 1.3 * most
        assert int(shown[4].replace(",", "")) == pytest.approx(int(text), abs=5)
    for shown, counter, histogram in zip(pages[6:], batches[:4], batches[4:], strict=True):
        calls = shown[1].split(" to ")
        assert (counter[1], histogram[1]) == (shown[0].replace(",", ""),) * 2
        assert (counter[2], histogram[2]) == (calls[0], calls[-1])
        assert [float(cell) for cell in shown[2:4]] == [pytest.approx(float(each[3]), rel=0.1) for each in (counter, histogram)]
