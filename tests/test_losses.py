"""Storages that lose their data, and files that are busy, full or broken."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import Peer, RedisServer
from helpers import INTERVALS, Tally, refused, send, shown
from prometheus_client import CollectorRegistry

import pdc
import pdc.storage
import pdc.storage.sqlite
from pdc import config
from pdc.delivery.health import NAMES


def _redis(*command: str) -> Callable[[dict[str, Any]], None]:
    def damage(storage: dict[str, Any]) -> None:
        with redis.Redis.from_url(storage["redis"]) as client:
            client.execute_command(*command)

    return damage


def _sqlite(statement: str) -> Callable[[dict[str, Any]], None]:
    def damage(_: dict[str, Any]) -> None:
        pdc.get_sqlite_conn().execute(statement)

    return damage


def _unlink(storage: dict[str, Any]) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(storage["sqlite"] + suffix).unlink()


DAMAGES = [
    ("redis", "all", _redis("FLUSHALL")),
    ("redis", "nothing", _redis("DEL", "prometheus#test")),
    ("redis", "requests", _redis("DEL", "prometheus_test_requests")),
    ("redis", "latency", _redis("DEL", "prometheus_test_latency")),
    ("redis", "nothing", _redis("SCRIPT", "FLUSH")),
    ("sqlite", "all", _sqlite("DELETE FROM pdc_metrics")),
    ("sqlite", "requests", _sqlite("DELETE FROM pdc_metrics WHERE metric_key = 'requests'")),
    ("sqlite", "all", _unlink),
]


@pytest.mark.parametrize("by", ["update", "scrape"])
@pytest.mark.parametrize(("storage", "lost", "damage"), DAMAGES, indirect=["storage"])
def test_metrics_that_a_storage_loses_come_back(
    storage: dict[str, Any], lost: str, damage: Callable[[dict[str, Any]], None], by: str, registry: CollectorRegistry
) -> None:
    """The next flush of lost metrics, or the next scrape, restores all metadata, and metrics without labels are at 0."""
    pdc.setup(**storage, flush_interval=60)
    counter = pdc.Counter("requests", "Requests.", registry=registry)
    labelled = pdc.Counter("hits", "Hits.", ["route"], registry=registry)
    histogram = pdc.Histogram("latency", "Seconds.", buckets=[1], registry=registry)
    pdc.Gauge("idle", "Nobody sets this one.", registry=registry)
    counter.inc(7)
    labelled.labels("/").inc(3)
    histogram.observe(0.5)
    pdc.flush()
    before = pdc.generate_latest().decode().splitlines()
    damage(storage)
    if by == "update":
        histogram.observe(0.5)
        counter.inc(0)
        pdc.flush()
        assert set(config.DEFAULT.required().read().metrics) - NAMES == {"requests", "hits", "latency", "idle"}
    after = pdc.generate_latest().decode().splitlines()
    assert [line for line in after if line.startswith("#")] == [line for line in before if line.startswith("#")]
    observed = (0 if lost in ("all", "latency") else 1) + (by == "update")
    assert f"requests_total {0.0 if lost in ('all', 'requests') else 7.0}" in after
    assert f'hits_total{{route="/"}} {0.0 if lost == "all" else 3.0}' in after
    assert f'latency_bucket{{le="+Inf"}} {observed:.1f}' in after
    assert f"latency_count {observed:.1f}" in after
    assert "idle 0.0" in after


def test_a_redis_that_starts_again_empty(own_redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """After a restart that lost all data and all scripts, updates count from there on, and all metrics exist."""
    pdc.setup(redis=own_redis_server.url)
    counter = pdc.Counter("requests", "Requests.", registry=registry)
    pdc.Gauge("idle", "Nobody sets this one.", registry=registry)
    counter.inc(7)
    own_redis_server.stop()
    own_redis_server.start()
    counter.inc(2)
    pdc.flush()
    text = pdc.generate_latest().decode()
    assert "requests_total 2.0" in text
    assert "idle 0.0" in text


RETRY = "[None for _ in iter(send, True)]"


DECLARE = "hits = pdc.Counter('hits', 'Hits.', ['path']); peak = pdc.Gauge('peak', 'Peak.', multiprocess_mode='max')"


@INTERVALS
def test_keys_that_go_while_they_are_updated(
    redis_server: RedisServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """After the eviction of any key under load, nothing is logged or raised, all families return, and counts are exact."""
    pdc.setup(redis=redis_server.url, redis_prefix="test", flush_interval=interval and 0.01)
    tally = Tally(registry)
    stop = threading.Event()

    def update() -> None:
        while not stop.wait(0.001):
            tally.update()
            pdc.generate_latest()

    tally.update()
    pdc.flush()
    described = [line for line in pdc.generate_latest().decode().splitlines() if line.startswith("#")]
    with redis_server.client(decode_responses=True) as client, ThreadPoolExecutor() as pool:
        keys = sorted(client.keys("prometheus*"))
        assert len(keys) == 6 + (interval > 0)  # the buffers' own metrics have the durations of batches
        updating = pool.submit(update)
        for command in [*(f"DEL {key}" for key in keys * 5), "SCRIPT FLUSH", "FLUSHALL"] * 2:
            client.execute_command(*command.split())
            time.sleep(0.005)
        stop.set()
        updating.result()
        for key in keys:
            client.delete(key)
            assert [line for line in pdc.generate_latest().decode().splitlines() if line.startswith("#")] == described
        client.flushall()
    tally.rounds = 0
    tally.update()
    tally.busy.set(1)  # the value of a process outlives the loss of the storage
    tally.check()
    assert not caplog.messages


def test_every_process_sends_lost_data_again(
    storage: dict[str, Any], registry: CollectorRegistry, start_peer: Callable[..., Peer]
) -> None:
    """After a loss each process sends its series and values again, also of metrics that another one sent first."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    pdc.Gauge("peak", "Peak.", registry=registry, multiprocess_mode="max").set(3)
    hits.labels("/a").inc(5)
    peer = start_peer(storage, flush_interval=3600)
    peer.tell(DECLARE, "hits.labels('/b').inc(6); peak.set(7); pdc.flush()")
    assert shown() == {'hits_total{path="/a"}': 5.0, 'hits_total{path="/b"}': 6.0, "peak": 7.0}
    if "redis" in storage:
        pdc.get_redis_conn().flushall()
    else:
        pdc.get_sqlite_conn().execute("DELETE FROM pdc_metrics")
    assert shown() == {'hits_total{path="/a"}': 0.0, "peak": 3.0}
    peer.tell("hits.labels('/c').inc(); pdc.flush()")
    assert shown() == {**{f'hits_total{{path="/{path}"}}': float(path == "c") for path in "abc"}, "peak": 7.0}
    assert peer.stop() == ""


@pytest.mark.parametrize("suffixes", [[""], ["", "-wal", "-shm"]], ids=["file", "all"])
@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.rename(f"{path}.old")], ids=["deleted", "moved"])
def test_a_file_that_goes_while_processes_use_it(
    tmp_path: Path, start_peer: Callable[..., Peer], suffixes: list[str], remove: Callable[[Path], object]
) -> None:
    """Two processes whose file is removed, with or without SQLite's other files, continue in a new one."""
    path = tmp_path / "metrics.db"
    peers = [start_peer({"sqlite": str(path)}, flush_interval=3600) for _ in range(2)]
    for peer in peers:
        peer.tell(DECLARE, "hits.labels('/').inc(1000); pdc.flush()")
    for suffix in suffixes:
        remove(Path(f"{path}{suffix}"))
    for command in ("for _ in range(100): hits.labels('/').inc()", RETRY, RETRY):
        for peer in peers:
            peer.begin(command)
        for peer in peers:
            peer.end()
    pdc.setup(sqlite=path)
    assert shown()['hits_total{path="/"}'] == 200.0
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@INTERVALS
def test_a_process_that_holds_the_write_lock_for_long(
    tmp_path: Path,
    registry: CollectorRegistry,
    start_peer: Callable[..., Peer],
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
) -> None:
    """While another process writes for longer than the storage waits, updates work, a scrape gives the reason, all counts."""
    path = tmp_path / "metrics.db"
    monkeypatch.setattr("pdc.storage.sqlite.database.BUSY_SECONDS", 0.2)
    pdc.setup(sqlite=path, flush_interval=interval and 0.01)
    tally = Tally(registry)
    tally.update()
    pdc.flush()
    holder = start_peer({"sqlite": str(path)})
    holder.tell("held = pdc.get_sqlite_conn(); held.execute('BEGIN IMMEDIATE')")
    holder.begin("import time; time.sleep(1.5); held.execute('COMMIT')")
    for _ in range(200):
        tally.update()
    assert "Another program held it for more than" in refused()
    holder.end()
    send()
    tally.check()


@INTERVALS
def test_a_quota_that_is_reached(tmp_path: Path, run_script: Callable[..., Any], interval: float) -> None:
    """While the file may not grow, updates work, flushes and scrapes give the reason; later every update counts once."""
    source = f"""
import resource
from pdc.exposition import Scrape
setup(flush_interval={interval})
hits = pdc.Counter("hits", "Hits.", ["path"])
for number in range(10):
    hits.labels(str(number)).inc()
pdc.flush()
unlimited = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, unlimited))
for number in range(3000):
    hits.labels(str(number)).inc()
for _ in range(3):
    try:
        pdc.flush()
    except pdc.StorageError as error:
        print(error)
    hits.labels("0").inc()
assert Scrape().answer().status == 503
resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
pdc.flush()
"""
    result = run_script(source, storage={"sqlite": str(tmp_path / "metrics.db")})
    assert result.stdout.count("Check the disk and quotas") == 3
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert shown() == {f'hits_total{{path="{number}"}}': 1.0 + (number < 10) + 3 * (number == 0) for number in range(3000)}


@INTERVALS
def test_a_file_that_is_overwritten_while_it_is_used(tmp_path: Path, registry: CollectorRegistry, interval: float) -> None:
    """After a program writes garbage into the file, flushes and scrapes report it; pending updates go to the new file."""
    path = tmp_path / "metrics.db"
    pdc.setup(sqlite=path, flush_interval=interval)
    tally = Tally(registry)
    for letter in "abcdefg":
        tally.hits.labels(f"/{letter}").inc()
    pdc.flush()
    pdc.get_sqlite_conn().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    for _ in range(3):
        tally.update()
    assert "malformed. Move the file away" in refused()
    tally.update()
    for suffix in ("", "-wal", "-shm"):
        if Path(f"{path}{suffix}").exists():
            Path(f"{path}{suffix}").rename(f"{path}{suffix}.broken")
    send()
    pdc.get_sqlite_conn().execute("DELETE FROM pdc_metrics WHERE subkey LIKE '%\"/_\"%'")  # in the new file, too
    tally.check()
