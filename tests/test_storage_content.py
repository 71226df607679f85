"""The content of the databases: fields, keys, their expiry, and keys that others hold."""

from __future__ import annotations

import logging
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RedisServer, wait_until
from helpers import marks
from prometheus_client import CollectorRegistry

import pdc
from pdc import config
from pdc.exposition import Scrape
from pdc.storage import StorageError


def declared(registry: CollectorRegistry) -> pdc.Counter:
    """Some metrics of the registry; the counter has a series."""
    counter = pdc.Counter("requests", "Requests.", ["method", "endpoint"], registry=registry)
    counter.labels("GET", "/é").inc(42)
    pdc.Gauge("temperature", "Degrees.", registry=registry).set(-1.5)
    histogram = pdc.Histogram("latency", "Seconds.", ["route"], buckets=(0.5, 1), registry=registry)
    for amount in (0.25, 0.25, 0.75, 5):
        histogram.labels("/").observe(amount)
    pdc.Summary("size", "Bytes.", registry=registry).observe(2.5)
    pdc.Info("build", "Version.", registry=registry).info({"version": "1"})
    pdc.Enum("state", "State.", states=["on", "off"], registry=registry).state("off")
    return counter


STORED: dict[str, dict[str, float | str]] = {
    "requests": {r'_total:{"endpoint":"/\u00e9","method":"GET"}': 42.0},
    "temperature": {":{}": -1.5},
    "latency": {
        '_sum:{"route":"/"}': 6.25,
        '_bucket:{"le":"0.5","route":"/"}': 2.0,
        '_bucket:{"le":"1.0","route":"/"}': 1.0,
        '_bucket:{"le":"+Inf","route":"/"}': 1.0,
    },
    "size": {"_sum:{}": 2.5, "_count:{}": 1.0},
    "build": {"_info:{}": '{"version":"1"}'},
    "state": {":{}": "off"},
}


def as_documented(fields: dict[str, Any]) -> dict[str, float | str]:
    """The fields of a metric but for bookkeeping and times of creation, numbers as such."""
    return {
        field: value if field.startswith("_info") or value == "off" else float(value)
        for field, value in fields.items()
        if not field.startswith(("#", "_created"))
    }


def test_the_format_in_redis(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """A metric is one hash with the documented key and fields; all keys expire; the index is no metric key."""
    pdc.setup(redis=redis_server.url, redis_prefix="myapp")
    declared(registry)
    with redis_server.client(decode_responses=True) as client:
        keys = set(client.keys())
        assert keys == {f"prometheus_myapp_{name}" for name in STORED} | {"prometheus#myapp"}
        assert {name: as_documented(client.hgetall(f"prometheus_myapp_{name}")) for name in STORED} == STORED
        assert client.hget("prometheus_myapp_requests", r'_total:{"endpoint":"/\u00e9","method":"GET"}') == "42"
        created = float(client.hget("prometheus_myapp_requests", r'_created:{"endpoint":"/\u00e9","method":"GET"}') or 0)
        assert abs(created - time.time()) < 60
        assert all(3500 < client.ttl(key) <= (3960 if "#" in key else 3600) for key in keys)
        pdc.setup(redis=client)
        pdc.Counter("plain", "No prefix.", registry=registry)
        assert client.type("prometheus_#_plain") == "hash"


def test_the_format_in_sqlite(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A metric is the rows of its name, with the documented subkeys and values."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    declared(registry)
    with sqlite3.connect(tmp_path / "metrics.db") as connection:
        stored: dict[str, dict[str, Any]] = {}
        for name, field, value in connection.execute("SELECT metric_key, subkey, value FROM pdc_metrics"):
            stored.setdefault(name, {})[field] = value
    connection.close()
    (storage_id,) = stored.keys() - STORED.keys()
    assert re.fullmatch("#id:[0-9a-f]{28}", storage_id)
    assert stored.pop(storage_id) == {"": 0}
    assert {name: as_documented(fields) for name, fields in stored.items()} == STORED


def calls(client: Any, command: str) -> int:
    """The number of calls of a command by clients and scripts."""
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    return stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]


@pytest.mark.parametrize("metrics", [1, 3])
def test_a_batch_is_one_script(redis_server: RedisServer, registry: CollectorRegistry, metrics: int) -> None:
    """A batch is one script, for any number of updates and series; a read takes one call per metric, and writes nothing."""
    pdc.setup(redis=redis_server.url, flush_interval=60)
    histograms = [pdc.Histogram(f"h{number}", "Seconds.", ["route"], registry=registry) for number in range(metrics)]
    for _ in range(2):  # then the index also has the metrics of batches
        for histogram in histograms:
            histogram.labels("/").observe(1)
        pdc.flush()
    with redis_server.client() as client:
        before = {command: calls(client, command) for command in ("evalsha", "exists", "hgetall")}
        for histogram in histograms:
            for number in range(100):
                histogram.labels(f"/{number % 10}").observe(number)
        pdc.flush()
        assert calls(client, "evalsha") - before["evalsha"] == calls(client, "exists") - before["exists"] == 1
        written = [calls(client, command) for command in ("evalsha", "hset", "pexpire", "zadd")]
        pdc.generate_latest()
        assert calls(client, "hgetall") - before["hgetall"] == metrics + 1
        assert [calls(client, command) for command in ("evalsha", "hset", "pexpire", "zadd")] == written


def test_writes_renew_expiry_and_reads_do_not(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """A write of a metric renews its expiry in the same call, without `redis_expire` it has none, a read changes nothing."""
    counter = pdc.Counter("requests", "Requests.", registry=registry)
    key, index = "prometheus_test_requests", "prometheus#test"
    with redis_server.client() as client:
        pdc.setup(redis=redis_server.url, redis_prefix="test", redis_expire=5000)
        assert 4000 < client.ttl(key) <= 5000
        assert 5000 < client.ttl(index) <= 5500
        client.expire(key, 100)
        pdc.generate_latest()
        assert client.ttl(key) <= 100
        counter.inc()
        assert client.ttl(key) > 4000
        pdc.setup(redis=redis_server.url, redis_prefix="test", redis_expire=None)
        counter.inc()
        assert client.ttl(key) == client.ttl(index) == -1


def test_idle_metrics_live_as_long_as_their_process(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """The background thread renews the expiry of metrics without updates, however short it is."""
    pdc.setup(redis=redis_server.url, redis_prefix="test", redis_expire=1)
    pdc.Counter("requests", "Requests.", registry=registry).inc()
    with redis_server.client() as client:
        before = calls(client, "pexpire")
        wait_until(lambda: calls(client, "pexpire") >= before + 8)  # two keys each time: at least three expiries later
        assert client.exists("prometheus_test_requests")
        pdc.shutdown()
        wait_until(lambda: not client.keys())


def test_a_metric_is_listed_for_its_own_expiry(
    redis_server: RedisServer, registry: CollectorRegistry, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A program with a short expiry hides no metric of another one with a longer expiry."""
    for name, expire in (("kept", None), ("short", 0.3)):
        run_script(f"setup(redis_expire={expire}); pdc.Gauge({name!r}, 'Help.').set(5)", storage={"redis": redis_server.url})
    pdc.setup(redis=redis_server.url, redis_expire=1)
    updates = pdc.Counter("updates", "Updates.", registry=registry)
    with redis_server.client() as client:

        def short_is_gone() -> bool:
            updates.inc()
            return b"short" not in client.zrange("prometheus#", 0, -1)

        wait_until(short_is_gone)
        assert "\nkept 5.0\n" in pdc.generate_latest().decode()
        assert client.ttl("prometheus#") == -1


def test_marks_of_idle_metrics_are_renewed(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric keeps the mark of a living process, also without updates and without an expiry."""
    monkeypatch.setattr(config, "FORGET_WRITER_SECONDS", 0.3)
    for_ever: dict[str, Any] = {"redis_expire": None} if "redis" in storage else {}
    pdc.setup(**storage, **for_ever)
    pdc.Counter("requests", "Requests.", registry=registry).inc()

    def seen() -> float:
        (mark,) = marks(config.DEFAULT.required().read().metrics["requests"]).values()
        return mark.seen

    first = seen()
    wait_until(lambda: seen() > first)


def test_prefixes_that_spell_the_same_key_do_not_mix(
    redis_server: RedisServer,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The second of two programs with one key is refused: logged once, raised by every flush, and nothing is mixed."""
    first = {"redis": redis_server.url, "redis_prefix": "app"}
    run_script("setup(); pdc.Counter('a_b', 'Of the first.').inc(5)", storage=first)
    refused = pdc.Counter("b", "Of the second.", registry=registry)
    fine = pdc.Counter("c", "Of the second.", registry=registry)
    pdc.setup(redis=redis_server.url, redis_prefix="app_a")
    with caplog.at_level(logging.ERROR, "pdc"):
        for _ in range(3):
            refused.inc()
            fine.inc()
            with pytest.raises(StorageError, match=r"metric 'b' is refused: .*'prometheus_app_a_b'.*'app'.*not 'app_a'"):
                pdc.flush()
    assert len([record for record in caplog.records if "metric b is refused" in record.getMessage()]) == 1
    with pytest.raises(StorageError, match="metric 'b' is refused"):
        pdc.generate_latest()
    assert [sample.value for sample in next(iter(fine.collect())).samples if sample.name == "c_total"] == [3.0]
    pdc.clear()
    read = run_script("setup(); print(pdc.generate_latest().decode())", storage=first)
    assert "a_b_total 5.0" in read.stdout
    assert "c_total" not in read.stdout


@pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])
def test_a_key_of_another_type_is_refused(redis_server: RedisServer, registry: CollectorRegistry, interval: float) -> None:
    """A metric whose key has another type waits, the others continue; scrapes are a 503 until the key is free, then exact."""
    with redis_server.client() as client:
        client.set("prometheus_test_b", "precious")
        pdc.setup(redis=redis_server.url, redis_prefix="test", flush_interval=interval)
        letters = [pdc.Counter(name, "Letters.", registry=registry) for name in ("a", "b", "c")]
        for letter in letters:
            letter.inc()
        with pytest.raises(
            StorageError, match="metric 'b' is refused: the key 'prometheus_test_b' holds something that is not"
        ):
            pdc.flush()
        letters[1].inc(2)
        assert (client.hget("prometheus_test_a", "_total:{}"), client.hget("prometheus_test_c", "_total:{}")) == (b"1", b"1")
        answer = Scrape().answer()
        assert answer.status == 503
        assert b"metric 'b' is refused: the key 'prometheus_test_b' holds something" in answer.body
        assert client.get("prometheus_test_b") == b"precious"
        client.delete("prometheus_test_b")
        pdc.flush()
        text = pdc.generate_latest().decode()
        assert "a_total 1.0" in text
        assert "b_total 3.0" in text


def test_a_scrape_refuses_a_key_of_another_type(redis_server: RedisServer) -> None:
    """A scrape that would omit a metric, since its key got another type, is a 503 that names it."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    pdc.Counter("b", "Letters.", registry=None).inc()
    pdc.shutdown()
    with redis_server.client() as client:
        client.set("prometheus_test_b", "precious")
        pdc.setup(redis=redis_server.url, redis_prefix="test", flush_interval=3600)
        answer = Scrape().answer()
    assert answer.status == 503
    assert b"metric 'b' cannot be read: the key 'prometheus_test_b' holds something that is not a metric" in answer.body


@pytest.mark.parametrize("command", ["SET prometheus#test text", "LPUSH prometheus#test text"])
def test_an_index_of_another_type_is_an_error(redis_server: RedisServer, command: str, registry: CollectorRegistry) -> None:
    """Where the key of the index has another type, a flush and a read report it, and no update is lost once it is gone."""
    counter = pdc.Counter("requests", "Requests.", registry=registry)
    with redis_server.client() as client:
        client.execute_command(*command.split())
        pdc.setup(redis=redis_server.url, redis_prefix="test")
        counter.inc()
        for call in (pdc.flush, pdc.generate_latest):
            with pytest.raises(StorageError, match="WRONGTYPE"):
                call()
        client.delete("prometheus#test")
    pdc.flush()
    assert "requests_total 1.0" in pdc.generate_latest().decode()
