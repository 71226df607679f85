"""Threads of one process, with the GIL and without: no update is lost, and no series is duplicated."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from check_pythons import run_tests
from conftest import ROOT
from helpers import in_threads, shown
from prometheus_client import CollectorRegistry

import pdc
from pdc.cells import LOCK_HOLDERS
from pdc.cells.metric import with_lock_held
from pdc.exposition import Scrape

OPENMETRICS = Scrape(accept="application/openmetrics-text")


@pytest.mark.usefixtures("_switching")
def test_updates_of_threads_are_counted_once(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Counters, summaries and histograms count the updates of all threads, while another one flushes."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Help", registry=registry)
    size = pdc.Summary("size", "Help", ["way"], registry=registry)
    latency = pdc.Histogram("latency", "Help", ["way"], buckets=(1, 2), registry=registry)

    def update() -> None:
        for number in range(2_000):
            hits.inc(2)
            size.labels("in").observe(3)
            latency.labels("in").observe(number % 3)
            if number % 500 == 0:
                pdc.flush()

    in_threads(4, update)
    pdc.flush()
    assert shown()["hits_total"] == 16_000
    assert shown()['size_count{way="in"}'] == 8_000
    assert shown()['size_sum{way="in"}'] == 24_000
    assert shown()['latency_count{way="in"}'] == 8_000
    assert shown()['latency_bucket{le="1.0",way="in"}'] == 4 * (667 + 667)
    assert shown()['latency_sum{way="in"}'] == 4 * (667 + 2 * 666)


def test_a_removal_takes_what_every_thread_added(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A removed series begins at 0 again, and updates of its old child count nothing, in any thread."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Help", ["way"], registry=registry)
    old = hits.labels("in")
    in_threads(3, old.inc)
    hits.remove("in")
    in_threads(3, old.inc)
    old.inc()
    assert b"hits_total{" not in pdc.generate_latest()
    in_threads(3, hits.labels("in").inc)
    assert shown()['hits_total{way="in"}'] == 3


def test_a_reset_takes_what_every_thread_added(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A counter that is reset begins at 0, whichever threads counted before, and continues in all of them."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Help", registry=registry)
    in_threads(3, hits.inc)
    hits.reset()
    in_threads(2, hits.inc)
    hits.inc()
    assert shown()["hits_total"] == 3


def test_exemplars_of_threads_are_kept(tmp_path: Path, registry: CollectorRegistry) -> None:
    """An exemplar of any thread is shown, with and without exemplars of others."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    hits = pdc.Counter("hits", "Help", registry=registry)
    latency = pdc.Histogram("latency", "Help", registry=registry)
    in_threads(1, lambda: hits.inc(exemplar={"trace": "a"}))
    in_threads(1, lambda: latency.observe(1, {"trace": "b"}))
    hits.inc()
    latency.observe(1)
    text = OPENMETRICS.answer().body.decode()
    assert 'hits_total 2.0 # {trace="a"} 1.0' in text
    assert '2.0 # {trace="b"} 1.0' in text


def test_a_parent_refuses_updates_of_any_thread(tmp_path: Path, registry: CollectorRegistry) -> None:
    """The error of a metric with labels names the missing ones also in a thread that did not declare it."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    hits = pdc.Counter("hits", "Help", ["way"], registry=registry)
    errors: list[str] = []

    def update() -> None:
        try:
            hits.inc()
        except ValueError as error:
            errors.append(str(error))

    in_threads(2, update)
    assert [("missing label values" in error) for error in errors] == [True, True]


def test_scrapes_at_once_show_the_same(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Threads that scrape at once, in two formats, get the same as one alone."""
    pdc.setup(**storage, flush_interval=3600)
    latency = pdc.Histogram("latency", "Help", ["way"], registry=registry)
    for number in range(20):
        latency.labels(str(number)).observe(number, {"trace": str(number)})
    pdc.flush()
    scrapes = {scrape: body(scrape) for scrape in (Scrape(), OPENMETRICS)}
    wrong: list[bytes] = []

    def look() -> None:
        for _ in range(5):
            wrong.extend(found for scrape, expected in scrapes.items() if (found := body(scrape)) != expected)

    in_threads(4, look)
    assert wrong == []


def body(scrape: Scrape) -> bytes:
    """The content of a scrape without its changing times."""
    lines = scrape.answer().body.splitlines()
    return b"\n".join(line for line in lines if b"pdc_" not in line)


@pytest.mark.parametrize(("build", "hiredis"), [([], 1), (["--free-threaded"], 0)], ids=["GIL", "no GIL"])
def test_a_python_without_environments_is_told_what_it_needs(build: list[str], hiredis: int) -> None:
    """`check_pythons.py --requirements` has the packages of tests and extras, each once, and hiredis only with the GIL."""
    command = [sys.executable, "tests/check_pythons.py", "--requirements", *build]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(set(lines))
    assert {"pytest-xdist", "prometheus_client>=0.23.1", "redis>=5", "flask>=2.3"} <= set(lines)
    assert sum(line.startswith("hiredis") for line in lines) == hiredis


def test_a_python_that_is_named_and_missing_fails_the_check() -> None:
    """`check_pythons.py` names the missing Python, and fails."""
    command = [sys.executable, "tests/check_pythons.py", "--pythons", "python9.99", "--", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "python9.99: missing" in done.stdout) == (1, True)


def test_the_failures_of_each_python_are_repeated(tmp_path: Path) -> None:
    """`check_pythons.py` keeps the lines that name failed tests, since the output of the next Python hides them."""
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text("def test_right():\n    pass\n\n\ndef test_wrong():\n    assert 1 == 2\n")
    exit_code, failures = run_tests(Path(sys.executable), ["-q", "-p", "no:cacheprovider", str(wrong)])
    assert [exit_code, len(failures), "test_wrong.py::test_wrong" in failures[0]] == [1, 1, True]


@pytest.mark.parametrize("mode", ["sum", "shared"])
def test_threads_that_change_a_gauge_lose_nothing(registry: CollectorRegistry, tmp_path: Path, mode: Any) -> None:
    """A gauge adds the changes of all threads of a process, also while another one flushes."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    gauge = pdc.Gauge("level", "Help", registry=registry, multiprocess_mode=mode)
    gauge.set(7)

    def change() -> None:
        for _ in range(5_000):
            gauge.inc(2)
            gauge.dec()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=change) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            pdc.flush()
    finally:
        sys.setswitchinterval(before)
    assert b"\nlevel 20007.0\n" in pdc.generate_latest()


def test_an_update_amid_the_lock_of_a_metric_waits_for_no_thread(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A handler may update a metric whose lock its thread holds, while the thread that sends wants that lock."""
    pdc.setup(**storage)
    hits = pdc.Counter("hits", "Help", ["way"], registry=registry)
    ours, theirs = hits.labels("in"), hits.labels("out")
    theirs.inc()  # opens the connection
    sender = threading.Thread(target=theirs.inc)

    class Interrupted:
        metric = ours._metric_cells

        @with_lock_held  # type: ignore[type-var]  # all that it needs of an object is `metric.lock`
        def update(self) -> None:
            sender.start()
            time.sleep(0.1)  # until that thread holds the lock of its buffer, and waits for the one of the metric
            ours.inc()

    updating = threading.Thread(target=Interrupted().update, daemon=True)
    updating.start()
    updating.join(5)
    assert not updating.is_alive()
    sender.join()
    assert (shown()['hits_total{way="in"}'], shown()['hits_total{way="out"}']) == (1, 2)
    assert not LOCK_HOLDERS


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_thread_holds_no_lock_of_a_metric_after_a_call(error: type[Exception] | None) -> None:
    """The lock is free, and its thread may send, after a call that held it, also after one that raised."""

    class Calls:
        metric = SimpleNamespace(lock=threading.RLock())

        @with_lock_held  # type: ignore[type-var]  # all that it needs of an object is `metric.lock`
        def outer(self) -> None:
            self.inner()
            assert threading.get_ident() in LOCK_HOLDERS
            if error is not None:
                raise error

        @with_lock_held  # type: ignore[type-var]  # all that it needs of an object is `metric.lock`
        def inner(self) -> None:
            assert threading.get_ident() in LOCK_HOLDERS

    with pytest.raises(error) if error is not None else nullcontext():
        Calls().outer()
    in_threads(1, lambda: Calls.metric.lock.acquire(timeout=1) or pytest.fail("the lock is not free"))
    assert not LOCK_HOLDERS
