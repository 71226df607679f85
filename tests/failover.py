"""A Redis Cluster, and a Redis with a Sentinel, whose primary is killed or handed over while processes count.

Run ``python tests/failover.py --rounds 10`` to see the losses.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import redis
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import SCRIPTS
from prometheus_client.parser import text_string_to_metric_families as parse_text
from redis.sentinel import Sentinel

import pdc
from pdc.exposition import Scrape

DOWN_MILLISECONDS = 1000
"""A server that does not answer for so long is replaced."""
PATIENCE = 60.0
"""The seconds of a slow machine for two seconds of a fast one."""
INTERVALS = (0.0, 0.05)
"""The `flush_interval` of each process that counts."""
THREADS = 2
LAG_SECONDS = 0.3
METRICS = 6
"""As many metrics, so that every primary of a cluster has some."""
SERVICE = "metrics"

T = TypeVar("T", bound="Topology")


class Topology(Protocol):
    """Redis servers of which one takes over from another."""

    def __init__(self, folder: Path) -> None: ...

    expression: str
    """Python source of a client."""
    url: str
    """The same as a URL."""

    def client(self) -> Any:
        """A client of the application."""

    def hand_over(self) -> None:
        """Let a replica that has received everything take over, as before maintenance."""

    def kill(self, lag: float = 0.0) -> None:
        """Kill a primary whose replica has received nothing for so many seconds, and wait for the replica to take over."""

    def heal(self) -> None:
        """Restart the killed server, and wait until every primary has a replica."""

    def stop(self) -> None:
        """Stop all servers."""


class Cluster:
    """A Redis Cluster of three primaries and three replicas. The primary that lists the metrics fails."""

    def __init__(self, folder: Path) -> None:
        self.servers = [self._start(folder / str(number)) for number in range(6)]
        self.expression = f"redis.RedisCluster(host='127.0.0.1', port={self.servers[0].port})"
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        self.url = f"redis+cluster://{','.join(addresses[:2])}"
        create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=PATIENCE)
        self.heal()

    @staticmethod
    def _start(folder: Path) -> RedisServer:
        folder.mkdir()
        options = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": str(DOWN_MILLISECONDS),
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        return RedisServer(folder, *(word for name, value in options.items() for word in (f"--{name}", value)))

    def client(self) -> redis.RedisCluster:
        """A client of the cluster."""
        return redis.RedisCluster(host="127.0.0.1", port=self.servers[0].port)

    def primary(self, key: str = "prometheus#") -> RedisServer:
        """The primary of a key."""
        with self.client() as client:
            port = client.get_node_from_key(key).port
        return next(server for server in self.servers if server.port == port)

    def hand_over(self) -> None:
        """Wait until the replica has all data, then let it take over."""
        primary = self.primary()
        replica = replica_of(primary, self.servers)

        def taken_over() -> bool:
            return role(replica) == "master" and role(primary) == "slave"

        with replica.client() as client:
            while not taken_over():  # the others do not vote twice within two timeouts
                client.execute_command("CLUSTER", "FAILOVER")
                with suppress(AssertionError):
                    wait_until(taken_over, 5 * DOWN_MILLISECONDS / 1000)

    def kill(self, lag: float = 0.0) -> None:
        """Kill it, and wait until the others have elected its replica."""
        primary = self.primary()
        kill(primary, replica_of(primary, self.servers), lag)

    def heal(self) -> None:
        """Wait until every server knows that the cluster is healthy again."""
        start_again(self.servers)
        wait_until(lambda: all(map(self._knows, self.servers)), PATIENCE)

    @staticmethod
    def _knows(server: RedisServer) -> bool:
        with server.client(decode_responses=True) as client:
            if client.cluster("info")["cluster_state"] != "ok":
                return False
            flags = [node["flags"].removeprefix("myself,") for node in client.cluster("nodes").values()]
            return sorted(flags) == ["master"] * 3 + ["slave"] * 3 and has_replica(server)

    def stop(self) -> None:
        """Stop all servers."""
        for server in self.servers:
            server.stop()


class Watched:
    """A primary and a replica, watched by a Sentinel that decides alone."""

    def __init__(self, folder: Path) -> None:
        self.servers = [RedisServer(folder, "--repl-diskless-sync-delay", "0") for _ in range(2)]
        primary, replica = self.servers
        with replica.client() as client:
            client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: all(map(has_replica, self.servers)), PATIENCE)
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}\n"
            f"sentinel failover-timeout {SERVICE} {DOWN_MILLISECONDS}\n"
        )
        self._sentinel = RedisServer(folder, "--sentinel", settings=settings)
        with self._sentinel.client() as client:
            client.execute_command("SENTINEL", "DEBUG", "info-period", 200, "publish-period", 200)
        self.url = f"redis+sentinel://127.0.0.1:{self._sentinel.port}/{SERVICE}"
        self.expression = f"Sentinel([('127.0.0.1', {self._sentinel.port})]).master_for({SERVICE!r})"
        self.heal()

    def client(self) -> redis.Redis:
        """A client that asks the Sentinel for the primary."""
        client: redis.Redis = Sentinel([("127.0.0.1", self._sentinel.port)]).master_for(SERVICE)
        return client

    def hand_over(self) -> None:
        """Refuse writes until the replica has all data and takes over."""
        primary, replica = self._pair()
        _refuse_writes(primary, "2")
        wait_for_replica(primary)
        with self._sentinel.client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        wait_until(lambda: role(replica) == "master" and role(primary) == "slave", PATIENCE)
        _refuse_writes(primary, "0")

    def kill(self, lag: float = 0.0) -> None:
        """Kill the primary, and wait until the Sentinel has promoted its replica."""
        kill(*self._pair(), lag)

    def heal(self) -> None:
        """Wait until the Sentinel knows that both servers are up."""
        start_again(self.servers)
        wait_until(lambda: all(map(has_replica, self.servers)) and self._knows(), PATIENCE)

    def _pair(self) -> tuple[RedisServer, RedisServer]:
        primary = next(server for server in self.servers if role(server) == "master")
        return primary, replica_of(primary, self.servers)

    def _knows(self) -> bool:
        with self._sentinel.client(decode_responses=True) as client:
            primary = client.sentinel_masters()[SERVICE]
            states = [(replica["flags"], replica["master-link-status"]) for replica in client.sentinel_slaves(SERVICE)]
            return primary["flags"] == "master" and states == [("slave", "ok")]

    def stop(self) -> None:
        """Stop all servers."""
        for server in (self._sentinel, *self.servers):
            server.stop()


def role(server: RedisServer) -> str:
    """The role of the server, master or slave; empty where it does not answer."""
    with server.client() as client, suppress(redis.ConnectionError):
        return str(client.info("replication")["role"])
    return ""


def replica_of(primary: RedisServer, servers: list[RedisServer]) -> RedisServer:
    """The server that follows this one."""
    with primary.client() as client:
        port = client.info("replication")["slave0"]["port"]
    return next(server for server in servers if server.port == port)


def has_replica(server: RedisServer) -> bool:
    """True if it has a connected replica, or is one itself."""
    with server.client() as client, suppress(redis.ConnectionError):  # made a replica by a Sentinel, it closes all connections
        state = client.info("replication")
        return bool(state["connected_slaves"] if state["role"] == "master" else state["master_link_status"] == "up")
    return False


def start_again(servers: list[RedisServer]) -> None:
    """Start the servers that do not answer."""
    for server in servers:
        if not role(server):
            server.start()


def kill(primary: RedisServer, replica: RedisServer, lag: float) -> None:
    """Kill a primary whose replica has received nothing for so many seconds, and wait for the replica to take over."""
    if lag:
        wait_for_replica(primary)
        replica.freeze()
        with primary.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # or the system buffers the data for it
        time.sleep(lag)
    primary.stop()
    replica.thaw()
    wait_until(lambda: role(replica) == "master", PATIENCE)


def _refuse_writes(server: RedisServer, replicas: str) -> None:
    """Make it accept writes only while so many replicas follow it."""
    with server.client() as client:
        client.config_set("min-replicas-to-write", replicas)


def wait_for_replica(primary: RedisServer) -> None:
    """Wait until its replica has confirmed all writes so far: a new replica may receive nothing for a second."""
    with primary.client() as client:
        written = client.info("replication")["master_repl_offset"]
        wait_until(lambda: client.info("replication")["slave0"]["offset"] >= written, PATIENCE)


class Run(NamedTuple):
    """The updates that processes made while a primary was replaced."""

    acknowledged: int
    """Updates whose call returned."""
    stored: float
    answers: Counter[int]
    """Scrapes by status."""
    stderr: str
    """The output of the scripts."""

    @property
    def lost(self) -> float:
        """Updates that are not counted; below 0 if any were counted twice."""
        return self.acknowledged - self.stored


@contextmanager
def started(kind: type[T], folder: Path) -> Iterator[T]:
    """Servers of that kind, which are stopped at the end."""
    topology = kind(folder)
    try:
        yield topology
    finally:
        topology.stop()


def run(topology: Topology, replace: Callable[[], object]) -> Run:
    """Count in several processes and threads while a primary is replaced, and scrape; then heal the servers."""
    stop = threading.Event()
    before = sum(shown().values())
    processes = [_start(topology.expression, interval) for interval in INTERVALS]
    try:
        with ThreadPoolExecutor() as pool:
            answers = pool.submit(_scrape, stop)
            try:
                _wait_for_progress()
                replace()
                _wait_for_progress()
            finally:
                stop.set()
            outputs = [process.communicate("stop\n", timeout=PATIENCE) for process in processes]
            acknowledged = METRICS * sum(int(stdout) for stdout, _ in outputs)
            topology.heal()
            stored = sum(wait_until(shown, PATIENCE).values()) - before
            return Run(acknowledged, stored, answers.result(), "".join(stderr for _, stderr in outputs))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(client: str, interval: float) -> subprocess.Popen[str]:
    arguments = [client, *map(str, (interval, METRICS, THREADS))]
    return subprocess.Popen(
        [sys.executable, "-W", "error", SCRIPTS / "load.py", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _scrape(stop: threading.Event) -> Counter[int]:
    """The statuses of scrapes. Fails where one shows only some of the metrics."""
    statuses: Counter[int] = Counter()
    started = False
    while not stop.wait(0.02):
        answer = Scrape().answer()
        statuses[answer.status] += 1
        if answer.status == HTTPStatus.OK:
            names = set(_samples(answer.body))
            started = started or len(names) == METRICS
            assert len(names) == METRICS or not started, names
    return statuses


def shown() -> dict[str, float]:
    """The counted metrics of a scrape; empty where it fails."""
    answer = Scrape().answer()
    return _samples(answer.body) if answer.status == HTTPStatus.OK else {}


def _samples(body: bytes) -> dict[str, float]:
    samples = (sample for family in parse_text(body.decode()) for sample in family.samples)
    return {
        sample.name: sample.value for sample in samples if sample.name.startswith("load_") and sample.name.endswith("_total")
    }


def _wait_for_progress() -> None:
    """Wait until all counts have grown a good deal."""
    before = Counter(wait_until(shown, PATIENCE))
    wait_until(lambda: len(now := shown()) == METRICS and all(now[name] > before[name] + 20 for name in now), PATIENCE)


def main() -> None:
    """Replace primaries under load, and report the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each kind (default: %(default)s)")
    rounds = parser.parse_args().rounds
    for kind in (Cluster, Watched):
        print(kind.__doc__)
        with tempfile.TemporaryDirectory() as folder, started(kind, Path(folder)) as topology, topology.client() as client:
            pdc.setup(redis=client)
            report("handed over", [run(topology, topology.hand_over) for _ in range(rounds)])
            report("killed", [run(topology, topology.kill) for _ in range(rounds)])
            lag = f"killed, its replica cut off {LAG_SECONDS:g} s before"
            report(lag, [run(topology, lambda: topology.kill(LAG_SECONDS)) for _ in range(rounds)])
            pdc.shutdown()


def report(way: str, results: list[Run]) -> None:
    """Print the losses of each round."""
    lost = ", ".join(f"{result.lost:g}" for result in results)
    answers = sum((result.answers for result in results), Counter[int]())
    print(f"  A primary {way}: lost {lost} of {sum(result.acknowledged for result in results)} updates.")
    print(f"    Scrapes: {', '.join(f'{count} x {int(status)}' for status, count in answers.items())}.")


if __name__ == "__main__":
    main()
