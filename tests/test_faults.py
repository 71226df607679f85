"""Faults of the network and of servers: under any of them, a batch counts once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import outage
import pytest
import redis
from conftest import RedisServer, free_port, wait_until
from fault_proxy import Fault, FaultProxy
from helpers import INTERVALS, Tally, refused, send, shown
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse_text
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

import pdc
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
        assert before["prometheus_#_hits"]['_total:{"path":"/"}'] == "40"
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
        assert client.hget("prometheus_#_hits", '_total:{"path":"/"}') == b"4"
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
        pdc.get_sqlite_conn().execute("INSERT INTO pdc_metrics VALUES ('hits', '_total:{broken', 1)")
    hits.labels("/a").inc(2)
    hits.remove("/")
    other.inc()
    pdc.flush()
    assert "metric 'hits' holds something that pdc did not write" in refused()
    if "redis" in storage:
        pdc.get_redis_conn().hdel("prometheus_test_hits", "_total:{broken")
    else:
        pdc.get_sqlite_conn().execute("DELETE FROM pdc_metrics WHERE subkey = '_total:{broken'")
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
