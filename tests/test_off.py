"""A program whose environment says PDC_ENABLED=false: nothing is counted or kept, and nothing raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

import pdc
import pdc.redis
import pdc.sqlite
from pdc.exposition import Scrape


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PDC_ENABLED", "false")


def test_metrics_of_every_kind_go_nowhere(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Updates, removals, jobs and reads work, and leave nothing behind."""
    pdc.setup_from_environ()
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    hits.labels("/").inc()
    hits.remove("/")
    hits.clear()
    pdc.Gauge("level", "Level.", registry=registry).set(2)
    pdc.Histogram("latency", "Latency.", registry=registry, native=True).observe(0.5)
    pdc.Summary("size", "Size.", registry=registry).observe(1)
    pdc.Info("build", "Build.", registry=registry).info({"version": "1"})
    pdc.Enum("state", "State.", states=["up", "down"], registry=registry).state("down")
    pdc.redis.Counter("in_redis", "Of Redis.", registry=registry).inc()
    pdc.sqlite.Counter("in_sqlite", "Of SQLite.", registry=registry).inc()

    @pdc.job("nightly")
    def work() -> int:
        return 5

    assert work() == 5
    pdc.flush()
    pdc.clear()
    assert pdc.generate_latest() == b""
    assert b"# TYPE latency histogram" in prometheus_client.generate_latest(registry)
    assert list(tmp_path.iterdir()) == []


def test_functions_of_gauges_do_not_run(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees their values: the background thread does not call them."""
    monkeypatch.setattr(pdc.delivery.flusher, "BEAT_SECONDS", 0.05)
    called: list[str] = []

    def level() -> float:
        called.append(threading.current_thread().name)
        return 1.0

    pdc.setup_from_environ()
    gauge = pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum")
    gauge.set(1)
    gauge.set_function(level)
    time.sleep(0.3)
    assert "pdc-flush" not in called


def test_a_page_says_why_it_is_empty() -> None:
    """A page that the program itself serves has no metrics, and the reason."""
    pdc.setup_from_environ()
    answer = Scrape().answer()
    assert (answer.status, answer.body.decode()) == (503, "# nothing is counted: PDC_ENABLED is false\n")


def test_plain_metrics_stay_in_memory(registry: CollectorRegistry) -> None:
    """`install` and PDC_INSTALL leave prometheus_client as it is."""
    pdc.setup_from_environ(install=True)
    pdc.install()
    plain = prometheus_client.Counter("plain", "Plain.", registry=registry)
    plain.inc(3)
    assert type(plain) is prometheus_client.Counter
    assert registry.get_sample_value("plain_total") == 3


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_there_is_no_connection(kind: str) -> None:
    """Programs that ask for the connection of a storage get the reason why there is none."""
    pdc.setup_from_environ()
    get: Callable[[], Any] = getattr(pdc, f"get_{kind}_conn")
    with pytest.raises(pdc.StorageError, match="PDC_ENABLED is false"):
        get()


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_program_may_set_a_storage_up_itself(storage: dict[str, Any], registry: CollectorRegistry, order: str) -> None:
    """`setup` goes before PDC_ENABLED, whichever comes first; what was dropped until then stays away."""
    if order == "before":
        pdc.setup(**storage)
    pdc.setup_from_environ()
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    if order == "after":
        hits.inc(5)
        pdc.setup(**storage)
    hits.inc(2)
    assert b"hits_total 2.0" in pdc.generate_latest()


def test_a_setup_leaves_no_other_metrics_off(registry: CollectorRegistry, tmp_path: Path) -> None:
    """Metrics of the storage that `setup` was not given raise again: their updates would be lost unnoticed."""
    pdc.setup_from_environ()
    pdc.setup(sqlite=tmp_path / "metrics.db")
    with pytest.raises(pdc.NotConfigured):
        pdc.redis.Counter("in_redis", "Of Redis.", registry=registry).inc()


def test_threads_that_count_meanwhile_get_no_error(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A `setup` amid updates of other threads lets each go somewhere."""
    pdc.setup_from_environ()
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    errors: list[pdc.NotConfigured] = []
    ended = threading.Event()

    def count() -> None:
        while not ended.is_set():
            try:
                hits.labels("/").inc()
            except pdc.NotConfigured as error:
                errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    pdc.setup(**storage, flush_interval=60)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_application_that_is_off_changes_nothing_of_another_one(tmp_path: Path, registry: CollectorRegistry) -> None:
    """After a `setup`, metrics of the storage that it was not given raise, whether an application is off or not."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.setup_from_environ()
    with pytest.raises(pdc.NotConfigured):
        pdc.redis.Counter("in_redis", "Of Redis.", registry=registry).inc()


def test_a_child_is_off_too(run_script: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """A process that forks, and its child, count nothing and end without a word."""
    script = """
        import os
        pdc.setup_from_environ()
        hits = pdc.Counter("hits", "Hits.")
        hits.inc()
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
        hits.inc()
        print(pdc.generate_latest())
        """
    done = run_script(script, storage={})
    assert (done.stdout, done.stderr) == ("b''\n" * 2, "")
    assert list(tmp_path.iterdir()) == []
