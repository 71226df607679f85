"""Batches of one update, as write-through sends them: their commands and statements, and the short script of Redis."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer
from prometheus_client import CollectorRegistry
from test_storage_content import calls

import pdc
from pdc.delivery.outbox import Outbox
from pdc.storage import Batch, Kind, Limits, Mark, Operation, Update
from pdc.storage.redis import RedisStorage, changing
from pdc.storage.redis.commands import Command
from pdc.storage.redis.server import Server

TOTAL, CREATED, OTHER = "_total:{}", "_created:{}", '_total:{"a":"b"}'
UNLIMITED = Limits()
KEY, INDEX, WRITER = "prometheus_test_m", "prometheus#test", "1-a"


def test_an_update_in_redis_is_one_command(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """An update that is written through is one call of a script, which asks for the index, too."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    counter = pdc.Counter("hits", "Hits.", ["route"], registry=registry).labels("/")
    gauge = pdc.Gauge("level", "Level.", registry=registry)
    histogram = pdc.Histogram("wait", "Seconds.", registry=registry)
    works: list[Callable[[], object]] = [counter.inc, lambda: gauge.set(3), lambda: histogram.observe(0.3)]
    for work in works * 2:
        work()
    with redis_server.client() as client:
        before = {
            command: calls(client, command) for command in ("evalsha", "exists", "time", "hmget", "hset", "pexpire", "hget")
        }
        for work in works:
            work()
        made = {command: calls(client, command) - number for command, number in before.items()}
    assert made == {**dict.fromkeys(before, 3), "hget": 0}
    assert [
        line for line in pdc.generate_latest().decode().splitlines() if line.startswith(("hits_total", "level", "wait_sum"))
    ] == [
        'hits_total{route="/"} 3.0',
        "level 3.0",
        "wait_sum 0.8999999999999999",
    ]


def test_an_update_takes_the_short_way(
    redis_server: RedisServer, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that is written through needs neither the steps of many entries, nor those of many requests."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    for _ in range(2):
        counter.inc()
    long_ways: list[str] = []
    for owner, name in ((Outbox, "next_batch"), (Server, "run")):
        monkeypatch.setattr(owner, name, lambda *_, name=name: long_ways.append(name))
    for _ in range(3):
        counter.inc()
    monkeypatch.undo()
    assert not long_ways
    assert "hits_total 5.0" in pdc.generate_latest().decode()


@pytest.mark.parametrize("damage", ["SCRIPT FLUSH", "CLIENT KILL TYPE normal SKIPME yes"])
def test_an_update_outlives_its_script_and_its_connection(
    redis_server: RedisServer, registry: CollectorRegistry, damage: str
) -> None:
    """Where the server lost the script, or the connection died while it was idle, an update counts once, without an outage."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    for _ in range(3):
        counter.inc()
    with redis_server.client() as client:
        client.execute_command(*damage.split())
        counter.inc()
        assert client.hget("prometheus_test_hits", TOTAL) == b"4"
        before = calls(client, "evalsha")
        counter.inc()
        assert calls(client, "evalsha") == before + 1
        assert client.hget("prometheus_test_hits", TOTAL) == b"5"


def test_an_update_in_sqlite_is_five_statements(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A transaction has one query, and a statement each for additions and the mark of the writer."""
    with sqlite3.connect(tmp_path / "metrics.db", isolation_level=None) as connection:
        pdc.setup(sqlite=connection)
        counter = pdc.Counter("hits", "Hits.", registry=registry)
        counter.inc()
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        counter.inc()
        connection.set_trace_callback(None)
        begun = statements.index("BEGIN IMMEDIATE")
        assert [statement.split()[0] for statement in statements[begun:]] == [
            *("BEGIN", "SELECT", "UPDATE", "INSERT", "COMMIT")
        ]
    pdc.shutdown()
    connection.close()


class Pair:
    """Two storages: one uses the short script, one does not. Both get the same batches."""

    def __init__(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = server.client(decode_responses=True)
        self.short = RedisStorage(f"{server.url[:-1]}0", "test")
        self.long = RedisStorage(f"{server.url[:-1]}1", "test")
        self.applied: list[bool] = []
        monkeypatch.setattr(changing.Changes, "apply", self._apply(changing.Changes.apply))

    def _apply(self, apply: Callable[[Any, Batch], bool]) -> Callable[[Any, Batch], bool]:
        def watched(changes: Any, batch: Batch) -> bool:
            if changes._server is self.long.server:
                return False
            self.applied.append(apply(changes, batch))
            return self.applied[-1]

        return watched

    def send(self, sequence: int, *operations: Operation, limits: Limits = UNLIMITED, final: bool = False) -> bool:
        """Send a batch to both, and compare their answers; return whether the short script applied it."""
        batch = Batch(WRITER, sequence, [Update("m", "{}", list(operations), limits=limits)], final)
        self.applied.clear()
        short, long = self.short.apply(batch), self.long.apply(batch)
        assert short._replace(storage="") == long._replace(storage="")
        assert self.content(0) == self.content(1)
        return self.applied == [True]

    def content(self, database: int) -> dict[str, Any]:
        """The hash in that database, without times."""
        self.client.execute_command("SELECT", database)
        stored: Any = self.client.hgetall(KEY) if self.client.type(KEY) == "hash" else {}
        fields: dict[str, Any] = dict(stored)
        assert not fields or self.client.pttl(KEY) > 3_500_000
        marks = {field: Mark.loads(value) for field, value in fields.items() if field.startswith("#mark")}
        assert all(mark.seen > time.time() - 3600 for mark in marks.values())
        times = {
            field: value > "1"
            for field, value in fields.items()
            if field.startswith(("#search", "#sweep", "#updated", "#fields"))
        }
        return {**fields, **{field: mark._replace(seen=0) for field, mark in marks.items()}, **times}

    def damage(self, *command: Any) -> None:
        """Run a command in both databases."""
        for database in (0, 1):
            self.client.execute_command("SELECT", database)
            self.client.execute_command(*command)


@pytest.fixture
def pair(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two storages with a series."""
    pair = Pair(redis_server, monkeypatch)
    for sequence in (1, 2):  # then the index has the metric, too
        pair.send(
            sequence, Operation(Kind.ADD, TOTAL, 1.0), Operation(Kind.INIT, CREATED, 5.0), Operation(Kind.ADD, OTHER, 1.0)
        )
    yield pair
    pair.short.close()
    pair.long.close()
    pair.client.close()


def test_the_short_script_does_what_the_long_one_does(pair: Pair) -> None:
    """Both leave the same numbers, texts and marks, whatever the amounts."""
    for sequence, amount in enumerate((1, 0.1, 0.2, 1e16, -1e16, 1e300, -0.0, math.inf, math.nan), 3):
        assert pair.send(sequence, Operation(Kind.ADD, TOTAL, float(amount)), Operation(Kind.INIT, CREATED, 7.0))
    assert pair.send(20, Operation(Kind.SET, TOTAL, "text"), Operation(Kind.SET, OTHER, 2.5))
    assert pair.send(21)
    fields = pair.content(0)
    assert (fields[TOTAL], fields[CREATED], fields[OTHER]) == ("text", "5", "2.5")
    assert fields[f"#mark:{WRITER}"] == Mark(21, 0)


def test_the_short_script_leaves_batches_to_the_long_one(pair: Pair) -> None:
    """Batches that were seen, new fields, fields that are named twice, values of processes and removals take the long one."""
    add = Operation(Kind.ADD, TOTAL, 1.0)
    assert pair.send(3, add)
    assert not pair.send(3, add)  # its reply was lost
    assert not pair.send(1, add)
    assert pair.content(0)[TOTAL] == "3"
    assert not pair.send(4, Operation(Kind.ADD, '_total:{"a":"new"}', 1.0))
    assert pair.send(5, Operation(Kind.ADD, '_total:{"a":"new"}', 1.0))
    assert not pair.send(6, add, Operation(Kind.SET, TOTAL, 10.0))
    assert pair.content(0)[TOTAL] == "11"
    assert not pair.send(7, Operation(Kind.REMOVE, '{"a":"new"}'))
    assert not pair.send(8, add, limits=Limits(expire_series=60.0))
    assert not pair.send(9, final=True)


DAMAGES: list[tuple[Any, ...]] = [
    ("HDEL", KEY, TOTAL),
    ("HDEL", KEY, f"#mark:{WRITER}"),
    ("HDEL", KEY, "#search"),
    ("HSET", KEY, "#search", "1"),
    ("HSET", KEY, "#search", "99999999999"),
    ("HSET", KEY, "#prefix", "other"),
    ("DEL", KEY),
    ("DEL", INDEX),
    ("FLUSHDB",),
    ("SCRIPT", "FLUSH"),
    ("SET", KEY, "no hash"),
    ("PERSIST", KEY),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: " ".join(damage[::2]))
def test_a_damaged_metric_takes_the_long_script(pair: Pair, damage: tuple[Any, ...]) -> None:
    """Where something of the metric is gone, changed or foreign, the answer and the content are those of the long script."""
    pair.damage(*damage)
    applied = pair.send(3, Operation(Kind.ADD, TOTAL, 1.0))
    assert applied == (damage[0] in ("SCRIPT", "PERSIST"))
    if damage[0] != "SET" and damage[-1] != "other":
        assert [pair.send(sequence, Operation(Kind.ADD, TOTAL, 1.0)) for sequence in (4, 5, 6)][-1]


def test_the_short_script_keeps_to_limits(pair: Pair) -> None:
    """A metric with a limit has its series counted first, and series over the limit stay with the long script."""
    limits = Limits(2, '{"a":"<overflow>"}')
    assert not pair.send(3, Operation(Kind.ADD, OTHER, 1.0), limits=limits)
    assert pair.send(4, Operation(Kind.ADD, OTHER, 1.0), limits=limits)
    over = Operation(Kind.ADD, '_total:{"a":"c"}', 1.0)
    assert [pair.send(sequence, over, limits=limits) for sequence in (5, 6)] == [False, False]
    assert pair.content(0)['_total:{"a":"<overflow>"}'] == "2"


def test_as_many_fields_are_remembered_as_may_be(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with more series starts to remember anew."""
    monkeypatch.setattr(changing, "MOST_KNOWN", 3)
    fields = [f'_total:{{"a":"{number}"}}' for number in range(10)]
    for sequence, field in enumerate(fields, 3):
        pair.send(sequence, Operation(Kind.ADD, field, 1.0))
    assert len(pair.short.writer._changes._known) <= 4
    assert pair.send(20, Operation(Kind.ADD, fields[-1], 1.0))


def test_our_connections_ask_for_no_notices_of_maintenance(redis_server: RedisServer) -> None:
    """A connection costs no round trip for a command that no Redis has, unless the application wants it."""
    sent: list[tuple[Any, ...]] = []

    class Recorded(redis.Connection):
        def send_command(self, *args: Any, **options: Any) -> None:
            sent.append(args)
            super().send_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py does not annotate it

    pool = redis.ConnectionPool(connection_class=Recorded, host="127.0.0.1", port=redis_server.port)
    with redis.Redis(connection_pool=pool) as client:
        server = Server(client)
        assert server.run([Command("EXISTS", ("a",))]) == [0]
        server.close()
    assert [words for words in sent if "MAINT_NOTIFICATIONS" in words] == []
    pool.disconnect()
