"""Faults of the network, of servers and of files: under any of them, a batch counts once."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import outage
import pytest
import redis
from conftest import ROOT, RedisServer, free_port, wait_until
from fault_proxy import Fault, FaultProxy
from helpers import INTERVALS, shown
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

import pdc
from pdc.delivery.health import NAMES
from pdc.exposition import Scrape
from pdc.family import clean
from pdc.storage import StorageError

WRITES = 750
"""Requests that write a batch: with one of three lost, 500 batches."""
CLUSTER_WRITES = 350
CLUSTER_EVERY = 7
"""A batch is six requests there, and older clients do not retry by themselves."""
OUTAGE_SECONDS = 5.0
EVERY = 3
"""One of so many requests that write a batch fails."""
FAULTS = (*[Fault.LOSE, Fault.CUT, Fault.SLOW] * 15, Fault.FREEZE)
"""The faults, one after the other, over and over; it takes long to find a connection frozen."""


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


@pytest.fixture(scope="module")
def shared_proxy(shared_redis_server: RedisServer) -> Iterator[FaultProxy]:
    """One proxy for the tests of this file."""
    with FaultProxy(shared_redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultProxy, redis_server: RedisServer) -> Iterator[FaultProxy]:
    """A proxy before an empty server, with no fault so far."""
    assert shared_proxy.server_port == redis_server.port
    yield shared_proxy
    shared_proxy.heal()


@pytest.fixture(scope="module")
def cluster_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """A proxy before a Redis Cluster of one node, which names the proxy to its clients as its address."""
    server = RedisServer(tmp_path_factory.mktemp("cluster"), "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with FaultProxy(server.port) as proxy, server.client(decode_responses=True) as client:
        client.config_set("cluster-announce-ip", "127.0.0.1")
        client.config_set("cluster-announce-port", proxy.port)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok")
        yield proxy
    server.stop()


def plain_client(proxy: FaultProxy) -> Any:
    """A URL, from which pdc makes its own client."""
    return proxy.url


def retrying_client(proxy: FaultProxy) -> Any:
    """A client of the application, which retries by itself."""
    return redis.Redis.from_url(
        proxy.url,
        retry=Retry(ExponentialBackoff(cap=0.01, base=0.001), 3),
        retry_on_timeout=True,
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def strain(proxy: FaultProxy, tally: Tally, writes: int, every: int = EVERY) -> None:
    """Update and send, while every third write fails, then check the counts."""
    proxy.injected.clear()
    proxy.every(every, *FAULTS)
    while sum(proxy.injected.values()) * every < writes:
        tally.update()
        send()
    proxy.heal()
    tally.check()
    assert set(proxy.injected) == set(FAULTS)


@INTERVALS
@pytest.mark.parametrize("make_client", [plain_client, retrying_client])
def test_replies_that_do_not_come(proxy: FaultProxy, registry: CollectorRegistry, make_client: Any, interval: float) -> None:
    """Every update counts once, whichever fault hits the reply of every third write, and whichever client retries."""
    pdc.setup(redis=make_client(proxy), flush_interval=interval)
    strain(proxy, Tally(registry), WRITES)


def test_replies_of_a_cluster_that_do_not_come(cluster_proxy: FaultProxy, registry: CollectorRegistry) -> None:
    """A cluster's batch is one request per metric. Where some of them fail, all are sent again, and count once."""
    with redis.RedisCluster(host="127.0.0.1", port=cluster_proxy.port, socket_timeout=0.2) as client:
        pdc.setup(redis=client, flush_interval=3600)
        strain(cluster_proxy, Tally(registry), CLUSTER_WRITES, CLUSTER_EVERY)
        pdc.shutdown()


@INTERVALS
def test_requests_that_arrive_late(proxy: FaultProxy, registry: CollectorRegistry, interval: float) -> None:
    """A write that was given up and sent again counts once, though it arrives after all others, and after a shutdown."""
    pdc.setup(redis=proxy.url, flush_interval=interval)
    tally = Tally(registry)
    proxy.every(EVERY, Fault.LATE)
    for _ in range(20):
        tally.update()
        send()
    proxy.heal()
    assert proxy.late
    late = list(proxy.late)
    proxy.release()
    tally.check()
    pdc.shutdown()
    with redis.Redis(port=proxy.server_port, decode_responses=True) as client:

        def numbers() -> dict[str, dict[str, str]]:
            hashes = {key: client.hgetall(key) for key in client.keys("prometheus_*")}
            return {key: {name: hashes[key][name] for name in hashes[key] if name[0] != "#"} for key in hashes}

        before = numbers()
        assert before["prometheus_hits"]['_total:{"path":"/"}'] == "40"
        proxy.late.extend(late)
        proxy.release()
        assert numbers() == before


def test_a_loss_of_all_data_between_a_lost_reply_and_the_next_try(proxy: FaultProxy, registry: CollectorRegistry) -> None:
    """A batch that was applied, flushed away with its mark, and sent again is the start of all further counts."""
    pdc.setup(redis=proxy.url, flush_interval=3600)
    tally = Tally(registry)
    tally.update()
    pdc.flush()
    tally.update()
    proxy.every(1, Fault.LOSE)
    with pytest.raises(StorageError):
        pdc.flush()
    proxy.heal()
    with redis.Redis(port=proxy.server_port) as client:
        assert client.hget("prometheus_hits", '_total:{"path":"/"}') == b"4"
        client.flushall()
    send()
    assert shown()['hits_total{path="/"}'] == 2.0
    assert shown()["wait_count"] == 2.0
    tally.update()
    assert shown()['hits_total{path="/"}'] == 4.0


def test_a_failover(own_redis_server: RedisServer, tmp_path: Path, registry: CollectorRegistry) -> None:
    """A write without a reply counts once on the replica that takes over, replicated or not."""
    with own_redis_server.client() as primary:
        primary.config_set("repl-diskless-sync-delay", "0")
    replicas = [RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(own_redis_server.port)) for _ in range(2)]
    servers = [own_redis_server, *replicas]
    with FaultProxy(own_redis_server.port) as proxy:
        pdc.setup(redis=proxy.url, flush_interval=3600)
        tally = Tally(registry)
        for primary, replica, replicated in ((servers[0], servers[1], True), (servers[1], servers[2], False)):
            _follow(replica, primary)
            tally.update()
            pdc.flush()
            _wait_for_replica(primary)
            if not replicated:
                replica.freeze()
            tally.update()
            proxy.every(1, Fault.LOSE)
            with pytest.raises(StorageError):
                pdc.flush()
            if replicated:
                _wait_for_replica(primary)
            primary.stop()
            replica.thaw()
            with replica.client() as client:
                client.replicaof("NO", "ONE")
            proxy.heal()
            proxy.server_port = replica.port
            tally.update()
            send()
            tally.check()
        pdc.shutdown()
    for server in servers:
        server.stop()


def _follow(replica: RedisServer, primary: RedisServer) -> None:
    """Copy all data of the primary to the replica."""
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")


def _wait_for_replica(primary: RedisServer) -> None:
    """Wait until a replica has what the primary has written."""
    with primary.client() as client:
        sent = client.info("replication")["master_repl_offset"]
        wait_until(lambda: max(r["offset"] for r in _replicas(client)) >= sent)


def _replicas(client: redis.Redis) -> list[dict[str, Any]]:
    replication = client.info("replication")
    return [replication[f"slave{number}"] for number in range(replication["connected_slaves"])]


@INTERVALS
def test_a_network_that_comes_and_goes(proxy: FaultProxy, registry: CollectorRegistry, interval: float) -> None:
    """While connections are refused and cut, threads update and scrape; afterwards every update counts once."""
    pdc.setup(redis=proxy.url, flush_interval=interval and 0.01)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    wait = pdc.Histogram("wait", "Seconds.", buckets=(1,), registry=registry)
    stop = threading.Event()

    def update(_: int) -> int:
        for number in itertools.count(1):
            hits.inc()
            wait.observe(0.5)
            if stop.wait(0.001):
                return number
        raise AssertionError

    def scrape() -> set[int]:
        answers = {Scrape().answer().status for _ in iter(lambda: stop.wait(0.005), True)}
        return {int(status) for status in answers}

    proxy.every(EVERY, Fault.LOSE, Fault.CUT)
    with ThreadPoolExecutor() as pool:
        counts, statuses = [pool.submit(update, number) for number in range(4)], pool.submit(scrape)
        for _ in range(5):
            time.sleep(0.1)
            proxy.refuse()
            time.sleep(0.1)
            proxy.accept()
        stop.set()
        total = float(sum(count.result() for count in counts))
        assert statuses.result() <= {200, 503}
    proxy.heal()
    send()
    assert shown() == {
        "hits_total": total,
        'wait_bucket{le="1.0"}': total,
        'wait_bucket{le="+Inf"}': total,
        "wait_count": total,
        "wait_sum": total / 2,
    }


# Storages that lose their data while processes count


class Peer:
    """Another process that counts, and runs the statements it gets."""

    def __init__(self, storage: dict[str, Any], folder: Path, **options: Any) -> None:
        source = f"""
import pdc
pdc.setup(**{{**{storage!r}, **{options!r}}})

def send():
    try:
        pdc.flush()
    except pdc.StorageError:
        return False
    return True

while command := input():
    exec(command)
    print("done", flush=True)
"""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def tell(self, *commands: str) -> None:
        """Let it run these statements, and wait for its answer."""
        for command in commands:
            self.begin(command)
            self.end()

    def begin(self, command: str) -> None:
        """Let it run a statement."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for its answer."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n", self.stop()

    def freeze(self) -> None:
        """Stop the process."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it after `freeze`."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> str:
        """Let it end, and return its log."""
        return self._process.communicate("\n", timeout=20)[1]

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Start another process that counts."""
    peers: list[Peer] = []

    def start(storage: dict[str, Any], **options: Any) -> Peer:
        peers.append(Peer(storage, tmp_path, **options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.kill()


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
        pdc.get_sqlite_conn().execute("DELETE FROM metrics")
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


# Processes whose clock differs


def test_a_process_that_sleeps_for_long_is_alive_again(
    storage: dict[str, Any],
    registry: CollectorRegistry,
    start_peer: Callable[..., Peer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that was stopped until its lease ended and its marks were forgotten returns with its live value and counts."""
    monkeypatch.setattr("pdc.family.LEASE_SECONDS", 1.0)
    for module in ("pdc.storage", "pdc.storage.redis.writing", "pdc.storage.redis.forgetting"):
        monkeypatch.setattr(f"{module}.FORGET_WRITER_SECONDS", 1.0)
    pdc.setup(**storage, flush_interval=3600)
    tally = Tally(registry)
    peer = start_peer(storage, flush_interval=0.05)
    peer.tell("pdc.delivery.flusher.BEAT_SECONDS = 0.1")
    peer.tell(
        "busy = pdc.Gauge('busy', 'Of this process.', multiprocess_mode='livesum'); "
        "hits = pdc.Counter('hits', 'Hits.', ['path'])"
    )
    peer.tell("busy.inc(100); hits.labels('/').inc(10); pdc.flush(); hits.labels('/').inc(5)")
    peer.freeze()
    wait_until(lambda: "busy" not in shown())
    tally.update()
    assert shown()["busy"] == 1.0
    peer.thaw()
    wait_until(lambda: shown()["busy"] == 101.0)
    wait_until(lambda: shown()['hits_total{path="/"}'] == 17.0)
    assert peer.stop() == ""


def test_clocks_that_differ_by_hours(redis_server: RedisServer, start_peer: Callable[..., Peer]) -> None:
    """Redis's clock decides which processes are alive and which value is the latest, whatever the clocks of hosts show."""
    declare = (
        "busy = pdc.Gauge('busy', 'Of this process.', multiprocess_mode='livesum'); "
        "last = pdc.Gauge('last', 'Latest.', multiprocess_mode='livemostrecent')"
    )
    pdc.setup(redis=redis_server.url)
    for number, hours in enumerate((5, -5, 0), 1):
        peer = start_peer({"redis": redis_server.url}, flush_interval=3600)
        for clock in ("time", "monotonic"):
            peer.tell(f"import time; time.{clock} = lambda real=time.{clock}: real() + {hours} * 3600")
        peer.tell(declare, f"busy.inc(); last.set({number}); pdc.flush()")
        assert shown() == {"busy": number, "last": number}


# Files that are busy, too large or broken


def refused() -> str:
    """The reason why a scrape is refused."""
    response = Scrape().answer()
    assert response.status == 503
    return response.body.decode()


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
    pdc.get_sqlite_conn().execute("DELETE FROM metrics WHERE subkey LIKE '%\"/_\"%'")  # in the new file, too
    tally.check()


# Two versions of a program that count at the same time


VERSIONS = {
    "help": ("Counter('help', 'Old.')", "Counter('help', 'New.')", "documentation 'Old.' is now 'New.'"),
    "labels": (
        "Counter('labels', 'Help.', ['a']).labels('x')",
        "Counter('labels', 'Help.', ['a', 'b']).labels('x', 'y')",
        "labelnames ('a',) is now ('a', 'b')",
    ),
    "buckets": (
        "Histogram('buckets', 'Help.', buckets=(1, 3))",
        "Histogram('buckets', 'Help.', buckets=(2, 4))",
        "bounds ('1.0', '3.0', '+Inf') is now ('2.0', '4.0', '+Inf')",
    ),
    "type": (
        "Counter('type', 'Help.')",
        "Histogram('type', 'Help.', buckets=(2,))",
        "type 'counter' is now 'histogram', bounds () is now ('2.0', '+Inf')",
    ),
    "mode": ("Gauge('mode', 'Help.')", "Gauge('mode', 'Help.', multiprocess_mode='max')", "mode 'shared' is now 'max'"),
    "same": ("Counter('same', 'Help.')", "Counter('same', 'Help.')", ""),
}
"""The declarations of the old and the new version, and the warning about them."""
UPDATES = {"Counter": "inc()", "Histogram": "observe(2.5)", "Gauge": "inc()"}


@INTERVALS
def test_a_rolling_deploy(storage: dict[str, Any], start_peer: Callable[..., Peer], interval: float) -> None:
    """While an old and a new version count, nothing is lost, the output is valid, and the first new process warns once."""
    programs = [[version[which] for version in VERSIONS.values()] for which in (0, 1, 1)]
    peers = [start_peer(storage, flush_interval=interval) for _ in programs]
    for peer, declarations, times in zip(peers, programs, (5, 1, 1), strict=True):
        metrics = ", ".join(f"pdc.{declaration}" for declaration in declarations)
        updates = "; ".join(f"m[{i}].{UPDATES[text.partition('(')[0]]}" for i, text in enumerate(declarations))
        peer.tell(f"m = [{metrics}]", *[updates] * times, "pdc.flush()")
    peers[0].tell("m[0].inc(0); m[1].inc(0); m[2].observe(2.5); m[3].inc(0); pdc.flush()")
    pdc.setup(**storage)
    assert shown() == {
        "help_total": 7.0,
        'labels_total{a="x"}': 5.0,
        'labels_total{a="x",b="y"}': 2.0,
        'buckets_bucket{le="2.0"}': 0.0,
        'buckets_bucket{le="3.0"}': 6.0,
        'buckets_bucket{le="4.0"}': 8.0,
        'buckets_bucket{le="+Inf"}': 8.0,
        "buckets_count": 8.0,
        "buckets_sum": 20.0,
        'type_bucket{le="2.0"}': 0.0,
        'type_bucket{le="+Inf"}': 2.0,
        "type_count": 2.0,
        "type_sum": 5.0,
        "mode": 1.0,
        "same_total": 7.0,
    }
    text = pdc.generate_latest()
    assert {family.name for family in parse_text(text.decode())} >= set(VERSIONS)
    openmetrics = Scrape(accept="application/openmetrics-text").answer().body.decode()
    assert [family.name for family in parse_openmetrics(openmetrics) if family.name not in NAMES] == sorted(VERSIONS)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    told = sorted(
        f"metric {name} was declared otherwise before; its counts go on: {difference}"
        for name, (_, _, difference) in VERSIONS.items()
        if difference
    )
    assert [sorted(peer.stop().splitlines()) for peer in peers] == [[], told, []]


# Foreign text in labels and storages


def test_a_megabyte_of_anything_is_a_label(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Labels with quotes, newlines, NUL, lone surrogates and a million characters are counted, shown and removed."""
    pdc.setup(**storage)
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    values = ['"{}\\', "\n\r\t", "\0", "\ud800", "\udfff\ud83d", "é☃😀\u2028", '","le":"1', "x" * 1_000_000]
    for number, value in enumerate(values, 1):
        hits.labels(value).inc(number)
    assert f'hits_total{{path="{values[-1]}"}} 8.0\n' in pdc.generate_latest().decode()
    hits.remove(values[-1])
    (family, *_) = parse_text(pdc.generate_latest().decode())
    samples = {sample.labels["path"]: sample.value for sample in family.samples}
    assert samples == {clean(value): float(number) for number, value in enumerate(values[:-1], 1)}
    for value in values[:-1]:
        hits.remove(value)
    assert shown() == {}


def test_foreign_fields_delay_no_process(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A metric with a foreign field is counted and removed as before; a scrape names the metric until the field is gone."""
    pdc.setup(**storage)
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    other = pdc.Counter("other", "Other.", registry=registry)
    hits.labels("/").inc()
    if "redis" in storage:
        pdc.get_redis_conn().hset("prometheus_test_hits", "_total:{broken", "1")
    else:
        pdc.get_sqlite_conn().execute("INSERT INTO metrics VALUES ('hits', '_total:{broken', 1)")
    hits.labels("/a").inc(2)
    hits.remove("/")
    other.inc()
    pdc.flush()
    assert "metric 'hits' holds something that pdc did not write" in refused()
    if "redis" in storage:
        pdc.get_redis_conn().hdel("prometheus_test_hits", "_total:{broken")
    else:
        pdc.get_sqlite_conn().execute("DELETE FROM metrics WHERE subkey = '_total:{broken'")
    assert shown() == {'hits_total{path="/a"}': 2.0, "other_total": 1.0}


# Outages under load


@pytest.mark.parametrize("fault", outage.FAULTS)
def test_an_outage_under_load(tmp_path: Path, fault: str) -> None:
    """While Redis is frozen, or dead until it restarts with its data, no request fails, and all are counted once."""
    result = outage.run(tmp_path, fault, OUTAGE_SECONDS)
    assert {(method, route): status for method, route, status in result.answers} == {
        ("GET", "/"): 200,
        ("POST", "/items/<name>/order"): 201,
        ("GET", "/items/<name>"): 404,
    }
    assert len(result.answers) == 3
    assert result.answers == result.counted == result.observed
    assert result.orders == sum(number for (method, *_), number in result.answers.items() if method == "POST")
    assert result.scrape == 503
