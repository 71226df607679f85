"""Metrics of every living process: `pdc.ProcessMetrics` and the option PDC_PROCESS_METRICS."""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from conftest import ROOT, free_port, wait_until
from helpers import SCRIPTS, Run, block
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

import pdc
import pdc.family
from pdc.testing import value_of

MEMORY = "process_resident_memory_bytes"
CPU = "process_cpu_seconds_total"


def series(page: str, name: str) -> dict[int, float]:
    """The values of that sample by the number of the process. Each series has a host and a process of its own."""
    found = re.findall(rf'^{name}{{host="[^"]+",pid="(\d+)-[0-9a-f]{{16}}"}} (\S+)$', page, re.MULTILINE)
    assert len(found) == len(dict(found))
    return {int(pid): float(value) for pid, value in found}


def shown(name: str = MEMORY) -> dict[int, float]:
    """The values of that sample in the storage."""
    return series(pdc.generate_latest().decode(), name)


@pytest.mark.parametrize("interval", [0, 3600])
def test_the_families_are_those_of_prometheus_client(storage: dict[str, Any], interval: float) -> None:
    """Names, types, help and labels are those of prometheus_client's collectors, with host and pid; so are the values."""
    pdc.ProcessMetrics()
    pdc.setup(**storage, flush_interval=interval)
    pdc.ProcessMetrics()
    gc.collect()
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    theirs = {metric.name: metric for metric in registry.collect()}
    ours = {metric.name: metric for metric in text_string_to_metric_families(pdc.generate_latest().decode())}
    assert len(theirs) == 10
    for name, metric in theirs.items():
        assert (ours[name].type, ours[name].documentation) == (metric.type, metric.documentation)
        for sample, own in zip(metric.samples, ours[name].samples, strict=True):
            assert own.labels.pop("pid").startswith(f"{os.getpid()}-")
            assert own.labels.pop("host")
            assert (own.name, own.labels) == (sample.name, sample.labels)
            assert own.value == pytest.approx(sample.value, rel=0.5, abs=0.5)


def test_a_counter_goes_on_and_is_not_doubled(storage: dict[str, Any]) -> None:
    """The time of the processor grows by what the process used, however often the value is sent."""
    pdc.setup(**storage)
    pdc.ProcessMetrics()
    before, used = shown(CPU), time.process_time()
    while time.process_time() < used + 0.1:
        pdc.flush()
    after, spent = shown(CPU), time.process_time() - used
    assert after[os.getpid()] - before[os.getpid()] == pytest.approx(spent, abs=0.05)


FORKS = """
import os, signal, time
import pdc.delivery.flusher
pdc.delivery.flusher.BEAT_SECONDS = 0.05
pdc.ProcessMetrics()
children = []
for number in range(2):
    children.append(os.fork())
    if not children[-1]:
        signal.signal(signal.SIGTERM, lambda *_: exit())
        parent = os.getppid()
        ballast = b"1" * 50_000_000
        while os.getppid() == parent:
            time.sleep(0.01)
        exit()
print("ready\\n", os.getpid(), *children, flush=True)
"""


def test_children_report_themselves_and_go(
    storage: dict[str, Any], start_script: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that updates nothing shows its own values. Its series go when it exits, and after the lease when it is killed."""
    parent = start_script(FORKS, {**storage, "flush_interval": 0.05 if "redis" in storage else 0})
    pdc.setup(**storage)
    assert parent.stdout is not None
    own, leaving, killed = map(int, parent.stdout.readline().split())
    wait_until(lambda: shown().keys() == {own, leaving, killed})
    wait_until(lambda: min((found := shown())[leaving], found[killed]) > found[own] + 40_000_000)
    os.kill(leaving, signal.SIGTERM)
    wait_until(lambda: set(shown()) == {own, killed})
    os.kill(killed, signal.SIGKILL)
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.5)
    wait_until(lambda: set(shown()) == {own})
    parent.communicate("\n")
    assert shown() == {}


def test_a_process_with_the_id_of_a_dead_one_has_its_own_series(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the series of a killed process are still there, its successor of the same id has others: no value mixes."""
    pdc.setup(**storage, flush_interval=3600)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    pdc.ProcessMetrics()
    pdc.flush()
    pdc.config.DEFAULT._work.outbox.start_as_new_writer()
    monkeypatch.setattr(ProcessCollector, "collect", lambda _: ())
    pdc.flush()
    page = pdc.generate_latest().decode()
    assert len(set(re.findall(rf'^python_info{{.*pid="{os.getpid()}-(\w+)"', page, re.MULTILINE))) == 2


def test_a_master_is_left_out(tmp_path: Path, run_script: Run) -> None:
    """A process that loads the application for its forks shows and starts nothing; a worker does once it is ready."""
    source = """
import os, sys, threading
import pdc.delivery.flusher
from pdc.exposition import Port
from pdc.process import servers
pdc.delivery.flusher.BEAT_SECONDS = 0.01
servers.is_master = lambda: True
Port.of(("127.0.0.1", int(sys.argv[1])), None).open()
pdc.ProcessMetrics()
setup(flush_interval=0.01)
pdc.ProcessMetrics()
assert threading.active_count() == 1
master = os.getpid()
assert "pid=" not in pdc.generate_latest().decode()
worker = os.fork()
if not worker:
    assert threading.active_count() == 1  # it is not ready: it may get another user, or gevent
    servers.is_master = lambda: False
    for hook in servers.WORKER_STARTS:
        hook()
    assert {thread.name for thread in threading.enumerate()} == {"MainThread", "pdc-flush", "pdc-port"}
    while f'pid="{os.getpid()}-' not in (page := pdc.generate_latest().decode()):
        pass
    assert f'pid="{master}-' not in page
    raise SystemExit
assert os.waitpid(worker, 0)[1] == 0
"""
    run_script(source, free_port(), storage={"sqlite": str(tmp_path / "metrics.db")})


def test_values_that_cannot_be_read_break_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that fails is in the log once, its last values stay, and the others go on."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.ProcessMetrics()
    before = shown()
    values = iter(range(1000))

    def fail(_: object) -> None:
        raise ValueError(f"no limits: {next(values)}")

    monkeypatch.setattr(ProcessCollector, "collect", fail)
    monkeypatch.setattr("pdc.metrics.processes.TOGETHER_SECONDS", 0.0)
    collections = value_of("python_gc_collections_total")
    gc.collect()
    assert shown() == before
    assert value_of("python_gc_collections_total") > collections
    assert caplog.messages == ["ProcessCollector of prometheus_client cannot read this process: ValueError('no limits: 0')"]


def test_a_page_of_the_default_registry_has_each_family_once(storage: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """The families of all processes replace those that prometheus_client has of the one that answers."""
    pdc.setup(**storage)
    assert pdc.generate_latest(prometheus_client.REGISTRY).count(b"# TYPE process_open_fds gauge") == 1
    pdc.ProcessMetrics()
    page = pdc.generate_latest(prometheus_client.REGISTRY).decode()
    assert re.findall(r"^process_open_fds.*pid=", page, re.MULTILINE)
    assert page.count("# TYPE process_open_fds gauge") == page.count("# TYPE python_info gauge") == 1
    assert caplog.messages == []


def test_one_environment_serves_all_programs(storage: dict[str, Any]) -> None:
    """A job with PDC_PROCESS_METRICS shows itself without any framework."""
    options = {"sqlite_path": storage["sqlite"]} if "sqlite" in storage else {"redis_url": storage["redis"]}
    pdc.setup_from_environ(**options, process_metrics="yes")
    assert set(shown()) == {os.getpid()}


LIVING = """
rule_files: []
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'process_cpu_seconds_total{host="a",pid="1-a"}', values: '5+6x120'}
      - {series: 'process_cpu_seconds_total{host="a",pid="2-b"}', values: '5+6x60'}
      - {series: 'process_cpu_seconds_total{host="a",pid="2-c"}', values: '_x114 0+12x6'}
      - {series: 'process_resident_memory_bytes{host="a",pid="1-a"}', values: '1e6+120000x120'}
      - {series: 'process_resident_memory_bytes{host="a",pid="2-c"}', values: '_x114 2e6x6'}
      - {series: 'process_start_time_seconds{host="a",pid="1-a"}', values: '0x120'}
      - {series: 'process_start_time_seconds{host="a",pid="2-b"}', values: '0x60 stale'}
      - {series: 'process_start_time_seconds{host="a",pid="2-c"}', values: '_x114 6840x6'}
      - {series: 'process_open_fds{host="a",pid="1-a"}', values: '10x120'}
      - {series: 'process_max_fds{host="a",pid="1-a"}', values: '40x120'}
      - {series: 'python_gc_collections_total{generation="2",host="a",pid="1-a"}', values: '0+60x120'}
      - {series: 'python_info{host="a",pid="1-a",version="3.11"}', values: '1x120'}
    promql_expr_test:
"""
"""Two processes of a host after two hours; the second one took the place of another after an hour less a minute."""
ANSWERS: list[dict[str, float]] = [
    {'{host="a"}': 0.1 + 0.2},
    {'{host="a"}': 15.4e6 + 2e6},
    {
        'process_resident_memory_bytes{host="a",pid="1-a"}': 15.4e6,
        'process_resident_memory_bytes{host="a",pid="2-c"}': 2e6,
    },
    {'{host="a",pid="1-a"}': 2000.0},
    {'{host="a"}': 2},
    {'{host="a"}': 1},
    {'{host="a"}': 1},
    {'{host="a"}': 0.25},
    {"{}": 1},
    {'{version="3.11"}': 1},
]


def test_the_queries_of_the_docs_answer(tmp_path: Path) -> None:
    """Prometheus answers each query of the page as its comment says."""
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    queries = [line.partition(" #")[0].strip() for line in block(page, "promql", of="Metrics of processes").splitlines()]
    rules = LIVING
    for query, answer in zip(queries, ANSWERS, strict=True):
        samples = [{"labels": labels, "value": value} for labels, value in answer.items()]
        rules += f"      - {json.dumps({'expr': query, 'eval_time': '2h', 'exp_samples': samples})}\n"
    (tmp_path / "rules.yml").write_text(rules)
    done = subprocess.run(["promtool", "test", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


SERVED = {
    "flask": ("sqlite", "0.05", "--worker-class=gevent", "--preload"),
    "django": ("redis", "0.05", "--worker-class=gthread"),
    "fastapi": ("sqlite", "0", "--worker-class=uvicorn_worker.UvicornWorker", "--preload"),
}
"""By framework: the storage, the interval of flushes, and options of Gunicorn."""


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Start the application in a Gunicorn of three workers, and return a function that scrapes it."""
    kind, interval, *options = SERVED[request.param]
    place = {"PDC_SQLITE_PATH": str(tmp_path / "metrics.db")}
    if kind == "redis":
        place = {"PDC_REDIS_URL": request.getfixturevalue("redis_server").url}
    shutil.copy(SCRIPTS / "monitored.py", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", "--workers=3", "--log-level=critical", *options]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK": request.param, "INTERVAL": interval, **place}
    server = subprocess.Popen([*command, "monitored:app"], cwd=tmp_path, env=environ)

    def get() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        except (ConnectionError, http.client.BadStatusLine):
            return ""
        finally:
            connection.close()

    yield get
    server.terminate()
    server.wait(30)
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.5)
    pdc.setup(redis=place.get("PDC_REDIS_URL"), sqlite=place.get("PDC_SQLITE_PATH"))
    assert shown() == {}


@pytest.mark.parametrize("page", SERVED, indirect=True)
def test_a_page_shows_every_worker_of_gunicorn(page: Callable[[], str]) -> None:
    """Three workers are three series; those of a killed one go within its lease, and its successor has others."""
    workers = wait_until(lambda: len(found := series(page(), MEMORY)) == 3 and found, 20)
    assert all(5e6 < size < 1e9 for size in workers.values())
    assert all(0 <= seconds < 60 for seconds in series(page(), CPU).values())
    assert all(abs(time.time() - begun) < 60 for begun in series(page(), "process_start_time_seconds").values())
    killed, *_ = workers
    os.kill(killed, signal.SIGKILL)
    left = wait_until(lambda: len(found := series(page(), MEMORY)) == 3 and killed not in found and found, 20)
    assert len(workers.keys() & left.keys()) == 2
