"""The contract of a storage, over each of them."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer, free_port, wait_until
from helpers import AT_ONCE, hasten, marks
from redis._parsers import _RESP2Parser, _RESP3Parser

from pdc.storage import Batch, Storage
from pdc.storage.examples import A, adds, batch, numbers, own, stamps, update
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage
from pdc.testing import StorageContract

REDIS_CLIENTS: dict[str, dict[str, Any]] = {
    "redis": {},
    "redis-text": {"decode_responses": True},
    "redis-python-parser": {"parser_class": _RESP2Parser},
    "redis-resp2": {"protocol": 2},
    "redis-resp3": {"protocol": 3},
    "redis-resp3-python-parser-text": {"protocol": 3, "parser_class": _RESP3Parser, "decode_responses": True},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.RedisCluster]:
    """A client of a Redis Cluster that is one node with all slots."""
    server = RedisServer(tmp_path_factory.mktemp("cluster"), "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with server.client(decode_responses=True) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok")
    with redis.RedisCluster(host="127.0.0.1", port=server.port) as client:
        yield client
    server.stop()


@pytest.fixture(params=["sqlite", "sqlite-connection", *REDIS_CLIENTS, "redis-cluster"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A storage of each kind, empty."""
    storage: Storage
    if request.param == "sqlite":
        storage = SqliteStorage(tmp_path / "metrics.db")
        yield storage
        storage.close()
    elif request.param == "sqlite-connection":
        connection = sqlite3.connect(tmp_path / "metrics.db", check_same_thread=False)
        connection.row_factory = lambda _, row: {"row": row}  # the application may choose any form of its rows
        yield SqliteStorage(connection)
        connection.close()
    elif request.param == "redis-cluster":
        client = request.getfixturevalue("cluster")
        client.flushall()
        yield RedisStorage(client, "test")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        with server.client(**REDIS_CLIENTS[request.param]) as client:
            storage = RedisStorage(client, "test")
            yield storage
            storage.close()


class TestStorages(StorageContract):
    """Each storage passes the tests that all storages pass."""

    @pytest.fixture(autouse=True)
    def _choose(self, store: Storage) -> None:
        self._store = store

    def make(self) -> Storage:
        """A storage of each kind, empty."""
        return self._store


def test_searches_for_writers_to_forget_are_rare(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches between two searches for writers to forget do not search, even if there are such writers."""
    for one in (batch(1), batch(2, final=True)):
        store.apply(one)
    hasten(monkeypatch, FORGET_WRITER_SECONDS=3500.0)  # less than an hour, of which the mark has half a minute left
    store.apply(batch(1, writer="2-b"))
    assert set(marks(store.read().metrics["m"])) == {"1-a", "2-b"}
    hasten(monkeypatch, FORGET_WRITER_SECONDS=50.0)  # less than the time until the next search
    store.apply(batch(2, writer="2-b"))
    assert set(marks(store.read().metrics["m"])) == {"2-b"}


def test_a_writer_that_comes_back_after_long_is_known_again(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A returning writer that was not seen for long counts once, and its present live value counts."""
    for one in (1, 2, 2):
        store.apply(batch(one, *stamps(1.0, "live"), *adds(A)))
        hasten(monkeypatch, **AT_ONCE)
    fields = store.read().metrics["m"]
    assert float(fields[A]) == 2.0
    assert own(fields) == {"#live:1-a:{}": 1.0}


def test_a_mark_stays_until_duplicates_have_arrived(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a deregistered writer that comes again is not counted; then its mark goes, too."""
    hasten(monkeypatch, FINAL_MARK_SECONDS=0.2)
    first = batch(1, *adds(A))
    for one in (first, batch(2, final=True), first, batch(1, writer="2-b")):
        store.apply(one)
    assert numbers(store.read()) == {A: "1.0"}
    assert set(marks(store.read().metrics["m"])) == {"1-a", "2-b"}
    time.sleep(0.5)
    store.apply(batch(2, writer="2-b"))
    assert set(marks(store.read().metrics["m"])) == {"2-b"}


@pytest.mark.parametrize("client", REDIS_CLIENTS)
def test_the_expiries_of_metrics_are_known(client: str, redis_server: RedisServer) -> None:
    """Each metric has the time by which it has expired, or infinity, whatever the protocol of the client."""
    for name, expire in (("one", 3600.0), ("two", None)):
        storage = RedisStorage(redis_server.client(**REDIS_CLIENTS[client]), "p", expire)
        storage.apply(Batch("1-a", 1, [update(*adds(A), name=name)]))
    found = storage.keys.expiries()
    assert found == {"one": pytest.approx(time.time() + 1.1 * 3600, abs=60), "two": math.inf}
    storage.close()


def test_several_storages_see_the_same(tmp_path: Path, redis_server: RedisServer) -> None:
    """Any client of a database reads the batches of another one, whatever its protocol, parser and encoding."""
    clients = [redis_server.client(**options) for options in REDIS_CLIENTS.values()]
    groups: list[list[Storage]] = [
        [RedisStorage(client, "test") for client in clients],
        [SqliteStorage(tmp_path / "metrics.db"), SqliteStorage(str(tmp_path / "metrics.db"))],
    ]
    for group in groups:
        for index, writer in enumerate(group):
            writer.apply(batch(1, *adds(A), writer=f"{index}-w"))
        assert [numbers(reader.read()) for reader in group] == [{A: repr(float(len(group)))}] * len(group)
        for storage in group:
            storage.close()
    for client in clients:
        client.close()
