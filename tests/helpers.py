"""Helpers of several test modules."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

import pdc
from pdc.exposition import Scrape
from pdc.storage import Mark, Storage, StorageError, marks_of

SCRIPTS = Path(__file__).parent / "scripts"
"""Long programs of tests."""
Run = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture `run_script`."""
INTERVALS = pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])
"""Values of `flush_interval`. With the second one, only `flush` and the end of the process send."""
SHORT_INTERVALS = pytest.mark.parametrize("interval", [0, 0.01], ids=["write-through", "buffered"])
"""The same. With the second one, the background thread sends again and again."""


def mainly(storage: str) -> pytest.MarkDecorator:
    """Both storages, of which `make test` takes that one alone: it is to take less than 7 minutes."""
    both = [pytest.param(each, marks=[] if each == storage else pytest.mark.long) for each in ("sqlite", "redis")]
    return pytest.mark.parametrize("storage", both, indirect=True)


DOWN = "metrics cannot be sent and are kept in memory until they can: "
"""The first line of the log of an outage, before the reason."""
UP = "metrics can be sent again; those kept in memory were"
"""The last line."""

SMALL_PIECES = {"MOST_FIELDS": 20, "MOST_FOUND": 20, "MOST_FOLDED": 20, "MOST_NAMED": 20}
"""Constants with which pieces have few fields."""
AT_ONCE = {"FORGET_WRITER_SECONDS": 0.0, "FORGET_VALUES_SECONDS": 0.0}
"""A writer without a batch is forgotten with the next batch of another writer."""

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping="
"""The type of an answer in OpenMetrics, before the name of an escaping."""
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""The header `Accept` of Prometheus 2."""


class OwnClient(redis.Redis):
    """A client that may do more than connect: pdc uses it as it is."""


def script(name: str) -> str:
    """Source that runs a file of `tests/scripts` in the same namespace; tracebacks show its lines."""
    path = SCRIPTS / name
    return f"exec(compile({path.read_text()!r}, {str(path)!r}, 'exec'))\n"


def shown(name: str = "") -> dict[str, float]:
    """The samples of the storage whose names have this prefix, without times of creation."""
    lines = (line for line in pdc.generate_latest().decode().splitlines() if line.startswith(name) and not line.startswith("#"))
    samples = (line.rpartition(" ") for line in lines if "_created" not in line)
    return {sample: float(value) for sample, _, value in samples}


def has_live_values(name: str) -> bool:
    """True where the storage has live values of that metric. Unlike a scrape, this brings none back."""
    return any(field.startswith("#live") for field in pdc.config.DEFAULT.required().read([name]).metrics.get(name, ()))


def block(page: str, language: str, *, of: str, number: int = 0) -> str:
    """The code block with that language and number in the section of that title."""
    (section,) = re.findall(rf"^## {re.escape(of)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return blocks[number]


def run_block(source: str, folder: Path) -> list[str]:
    """Run Python source with warnings as errors, and return its lines of output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"expected the block to run, got\n{done.stderr}\nfrom\n{source}"
    return done.stdout.splitlines()


def set_constants(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Let the modules of all storages have other times and sizes."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[:2] == ["pdc", "storage"]]
    for name, value in values.items():
        owners = [module for module in modules if hasattr(module, name)]
        assert owners, f"no storage has a constant {name}"
        for owner in owners:
            monkeypatch.setattr(owner, name, value)


def driver_call(storage: Storage) -> tuple[Any, str]:
    """The object and the name of the method through which all calls of a storage go."""
    found: Any = storage
    return (found.server, "run") if hasattr(found, "server") else (found.database, "use")


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Do that in so many threads at once."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hasten(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let the storages count so many seconds where they normally count more."""
    set_constants(monkeypatch, **seconds)


def marks(fields: Mapping[str, Any]) -> dict[str, Mark]:
    """The marks that a metric keeps of each writer."""
    return {writer: Mark.loads(stored) for writer, stored in marks_of(fields).items()}


class Tally:
    """Metrics of all types that add up, and their expected values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
        self.wait = pdc.Histogram("wait", "Seconds.", buckets=(1, 2), registry=registry)
        self.size = pdc.Summary("size", "Bytes.", registry=registry)
        self.level = pdc.Gauge("level", "Ups and downs.", registry=registry)
        self.busy = pdc.Gauge("busy", "Of this process.", registry=registry, multiprocess_mode="livesum")
        self.rounds = 0

    def update(self) -> None:
        """Update all; no update may raise."""
        self.rounds += 1
        self.hits.labels("/").inc(2)
        self.wait.observe(0.5)
        self.wait.observe(1.5)
        self.size.observe(4)
        self.level.inc(3)
        self.level.dec(1)
        self.busy.inc(5)
        self.busy.dec(4)

    def check(self) -> None:
        """Assert that the storage shows exactly the counted updates."""
        rounds = float(self.rounds)
        assert shown() == {
            'hits_total{path="/"}': 2 * rounds,
            'wait_bucket{le="1.0"}': rounds,
            'wait_bucket{le="2.0"}': 2 * rounds,
            'wait_bucket{le="+Inf"}': 2 * rounds,
            "wait_count": 2 * rounds,
            "wait_sum": 2 * rounds,
            "size_count": rounds,
            "size_sum": 4 * rounds,
            "level": 2 * rounds,
            "busy": rounds,
        }


def send() -> None:
    """Send pending updates, however often that fails."""
    for _ in range(50):
        try:
            pdc.flush()
        except StorageError:
            continue
        return
    pdc.flush()


def refused() -> str:
    """The reason why a scrape is refused."""
    response = Scrape().answer()
    assert response.status == 503
    return response.body.decode()


class Temperature:
    """A collector of the application."""

    def collect(self) -> Iterator[Metric]:
        """One gauge of its own, and one that the storage also has."""
        yield GaugeMetricFamily("temperature", "Help", 21)
        yield GaugeMetricFamily("stock", "Another help", 99)


def listens(port: int) -> bool:
    """Return True if a server takes connections on that port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True
