"""Prometheus scrapes protobuf: native histograms of an application under Gunicorn, and every other type beside them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, free_port, wait_until
from natives import coarsen

from pdc.storage.sqlite import SqliteStorage

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("prometheus")]

RANDOM = random.Random(7)
BEFORE, AFTER = ([RANDOM.lognormvariate(-2, 1.5) for _ in range(count)] for count in (400, 1600))
"""The numbers that are observed until Prometheus has seen some, and later."""
NUMBERS = sorted(BEFORE + AFTER)
SCRAPE_SECONDS = 1.0
FEATURES = "native-histograms,created-timestamp-zero-ingestion,exemplar-storage"


def version() -> tuple[int, int]:
    """The version of Prometheus."""
    done = subprocess.run(["prometheus", "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    assert found
    return int(found[1]), int(found[2])


VERSION = version()
READS_CREATED = VERSION >= (2, 50)
"""Prometheus 2.42 ignores creation times, the exemplars of native histograms, and summaries in protobuf (its issue 12028)."""


class Stage:
    """The application, with four workers, and Prometheus."""

    began = ended = 0.0
    """The times at which the later numbers were sent, and had been scraped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.db"
        self.app = f"http://127.0.0.1:{free_port()}"
        self.prometheus = f"http://127.0.0.1:{free_port()}/api/v1"
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(folder),
            "PDC_SQLITE_PATH": str(self.path),
        }
        gunicorn = [
            sys.executable,
            "-m",
            "gunicorn",
            "--workers=4",
            f"--bind={self.app.removeprefix('http://')}",
            "native_app:app",
        ]
        always = "always_scrape_classic_histograms: true, " if READS_CREATED else ""
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {SCRAPE_SECONDS:g}s}}\n"
            f"scrape_configs: [{{job_name: shop, {always}static_configs: [{{targets: ['{self.app.removeprefix('http://')}']}}]}}]\n"
        )
        address = self.prometheus.removeprefix("http://").removesuffix("/api/v1")
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
        self.processes = [
            subprocess.Popen(gunicorn, cwd=ROOT / "tests" / "scripts", env=env),
            subprocess.Popen(["prometheus", *options, f"--enable-feature={FEATURES}", "--log.level=error"], cwd=folder),
        ]

    def send(self, numbers: list[float]) -> None:
        """Observe the numbers, a few in each request, with as many workers as answer."""
        for first in range(0, len(numbers), 20):
            assert requests.post(f"{self.app}/observe", json.dumps(numbers[first : first + 20]), timeout=30).ok

    def ask(self, what: str, **parameters: str) -> Any:
        """The answer of the API; nothing while Prometheus starts."""
        try:
            answer = requests.get(f"{self.prometheus}/{what}", parameters, timeout=10).json()
        except (requests.ConnectionError, requests.JSONDecodeError):
            return {}
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> float:
        """The only value of an expression; NaN where it has none."""
        result = self.ask("query", query=expression).get("result", [])
        assert len(result) < 2, result
        return float(result[0]["value"][1]) if result else math.nan

    def wait_for(self, expression: str, expected: float) -> None:
        """Wait until the expression has that value."""
        wait_until(lambda: self.value(expression) == pytest.approx(expected, rel=1e-9), 30)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The application after all numbers, which Prometheus has scraped."""
    stage = Stage(tmp_path_factory.mktemp("native"))
    try:
        wait_until(lambda: stage.value("up") == 1, 30)
        stage.send(BEFORE)
        assert requests.post(f"{stage.app}/order/tea/3", timeout=30).ok
        stage.wait_for("histogram_count(wait_native)", len(BEFORE))
        stage.began = time.time()
        stage.send(AFTER)
        stage.wait_for("histogram_count(wait_native)", len(NUMBERS))
        stage.ended = time.time()
        yield stage
    finally:
        for process in stage.processes:
            process.terminate()
        for process in stage.processes:
            process.wait(30)


@pytest.mark.parametrize(("name", "growth"), [("wait_native", 2 ** (1 / 8)), ("wait_both", 2**0.5)])
def test_native_histograms_agree_with_what_was_sent(stage: Stage, name: str, growth: float) -> None:
    """Count and sum are exact, and quantiles are within one bucket."""
    assert stage.value(f"histogram_count({name})") == len(NUMBERS)
    assert stage.value(f"histogram_sum({name})") == pytest.approx(math.fsum(NUMBERS))
    for quantile in (0.1, 0.5, 0.9, 0.99):
        found, true = stage.value(f"histogram_quantile({quantile}, {name})"), NUMBERS[int(quantile * len(NUMBERS))]
        assert true / growth / 1.02 < found < true * growth * 1.02


def test_rates_of_native_histograms(stage: Stage) -> None:
    """`rate` has at least what came after the first scrape, and at most all, extrapolated for a scrape at either end."""
    seconds = stage.ended - stage.began + 3 * SCRAPE_SECONDS  # so long ago, there was a scrape
    at = f"[{round(seconds * 1000)}ms] @ {stage.ended:.3f}"
    found = stage.value(f"histogram_count(rate(wait_native{at}))") * seconds
    most = 1 + 2 * 1.1 * SCRAPE_SECONDS / (seconds - 2 * SCRAPE_SECONDS)
    assert len(AFTER) <= found <= most * len(NUMBERS)


def test_every_other_type(stage: Stage) -> None:
    """Values of other types are those of text; a summary is there in versions that read it."""
    expected = {
        "orders_total": 3.0,
        "stock": -7.5,
        'build_info{version="1"}': 1.0,
        'light{light="off"}': 1.0,
        'light{light="on"}': 0.0,
        "wait_classic_count": float(len(NUMBERS)),
        'wait_classic_bucket{le="0.1"}': float(sum(number <= 0.1 for number in NUMBERS)),
        'wait_classic_bucket{le="+Inf"}': float(len(NUMBERS)),
        "pdc_storage_up": 1.0,
    }
    if READS_CREATED:
        expected |= {
            "took_count": float(len(NUMBERS)),
            'wait_both_bucket{le="1.0"}': float(sum(number <= 1 for number in NUMBERS)),
        }
    assert {query: stage.value(query) for query in expected} == expected
    assert stage.value("wait_classic_sum") == pytest.approx(math.fsum(NUMBERS))


def test_counters_begin_at_their_creation(stage: Stage) -> None:
    """A counter that Prometheus first sees at 3 has a zero at its creation, in versions that read such times."""
    assert stage.value("min_over_time(orders_total[10m])") == (0 if READS_CREATED else 3)


def test_exemplars(stage: Stage) -> None:
    """Exemplars of counters, classic and native buckets are there."""
    now = time.time()
    found = stage.ask("query_exemplars", query='{__name__=~"orders_total|wait_.*"}', start=str(now - 600), end=str(now + 60))
    names = {each["seriesLabels"]["__name__"] for each in found if each["exemplars"][0]["labels"] == {"trace_id": "abc"}}
    assert {"orders_total", "wait_both"} <= names
    assert ("wait_native" in names) is READS_CREATED


def test_coarser_buckets_are_no_reset(stage: Stage) -> None:
    """Where the storage adds buckets to coarser ones, and workers go on with the finer ones, Prometheus sees growth alone."""
    resets = stage.value("resets(wait_native[10m])")  # 1 where it has a zero at its creation
    with closing(SqliteStorage(stage.path)) as storage:
        assert coarsen(storage, "wait_native", 12) <= 12
    stage.send(AFTER[:20])
    stage.wait_for("histogram_count(wait_native)", len(NUMBERS) + 20)
    assert stage.value("resets(wait_native[10m])") == resets <= 1
    assert stage.value("histogram_sum(wait_native)") == pytest.approx(math.fsum([*NUMBERS, *AFTER[:20]]))
