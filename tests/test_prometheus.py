"""A real Prometheus server scrapes the example application under Gunicorn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, free_port, wait_until


@pytest.fixture
def demo() -> Iterator[int]:
    """The demo, after its 400 requests, and the port where it goes on serving."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "example_apps" / "demo.py"), "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any("Serving on" in line for line in process.stdout)
        yield port
        process.send_signal(signal.SIGINT)


@pytest.fixture
def prometheus(demo: int, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus server that scrapes the demo every second."""
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: demo, static_configs: [{{targets: ['127.0.0.1:{demo}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    options = [
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with subprocess.Popen(["prometheus", *options], cwd=tmp_path) as process:
        yield f"http://{address}"
        process.terminate()


def query(address: str, expression: str) -> float | None:
    """The value of an expression, None as long as there is none."""
    try:
        found: list[Any] = requests.get(f"{address}/api/v1/query", {"query": expression}, timeout=10).json()["data"]["result"]
    except (requests.ConnectionError, requests.JSONDecodeError):  # while it starts it answers nothing, or in plain text
        return None
    return float(found[0]["value"][1]) if found else None


def test_prometheus_sees_every_request_whatever_worker_it_asks(prometheus: str) -> None:
    """Prometheus counts what was sent, sees no target fail and no counter reset, and estimates a quantile."""
    wait_until(lambda: (query(prometheus, "count_over_time(up[1m])") or 0) > 5, 30)
    assert query(prometheus, "sum(http_requests_total)") == 400
    assert query(prometheus, "min_over_time(up[1m])") == 1
    assert query(prometheus, "sum(resets(http_requests_total[1m]))") == 0
    quantile = query(prometheus, "histogram_quantile(0.9, sum by (le) (http_request_duration_seconds_bucket))")
    assert quantile is not None
    assert 0 < quantile < 1
