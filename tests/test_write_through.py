"""Batches of one update, as write-through sends them: their commands and statements, and the short script of Redis."""

from __future__ import annotations

import math
import sqlite3
import threading
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
from pdc.storage.redis.commands import CHANGE, Command
from pdc.storage.redis.server import Server

TOTAL, CREATED, OTHER = "_total:{}", "_created:{}", '_total:{"a":"b"}'
UNLIMITED = Limits()
KEY, INDEX, WRITER = "prometheus_test_m", "prometheus#test", "1-a"


RENEWAL = {"exists", "time", "pexpire", "hget"}
"""The commands of a renewal: they look for the index, and for the time of the next search."""


class Clock:
    """The monotonic clock, which stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process."""
    return Clock(monkeypatch)


@pytest.mark.parametrize(("seconds", "renewal"), [(0.9, 0), (1.1, 3)])
def test_an_update_in_redis_is_one_command(
    redis_server: RedisServer, registry: CollectorRegistry, clock: Clock, seconds: float, renewal: int
) -> None:
    """An update that is written through is one call of a script, whose first one in a second renews the metric."""
    pdc.setup(redis=redis_server.url, redis_prefix="test")
    counter = pdc.Counter("hits", "Hits.", ["route"], registry=registry).labels("/")
    gauge = pdc.Gauge("level", "Level.", registry=registry)
    histogram = pdc.Histogram("wait", "Seconds.", registry=registry)
    works: list[Callable[[], object]] = [counter.inc, lambda: gauge.set(3), lambda: histogram.observe(0.3)]
    for work in works * 2:
        work()
    with redis_server.client() as client:
        before = {command: calls(client, command) for command in ("evalsha", "hmget", "hset", *RENEWAL)}
        clock.now += seconds
        for work in works:
            work()
        made = {command: calls(client, command) - number for command, number in before.items()}
    assert made == {**dict.fromkeys(before, 3), **dict.fromkeys(RENEWAL, renewal)}
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

    def __init__(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.clock = clock
        self.client = server.client(decode_responses=True)
        self.short = RedisStorage(f"{server.url[:-1]}0", "test")
        self.long = RedisStorage(f"{server.url[:-1]}1", "test")
        self.applied: list[bool] = []
        monkeypatch.setattr(changing.Changes, "apply", self._apply(changing.Changes.apply))

    def _apply(self, apply: Callable[[Any, Batch, float], bool]) -> Callable[[Any, Batch, float], bool]:
        def watched(changes: Any, batch: Batch, now: float) -> bool:
            if changes._server is self.long.server:
                return False
            self.applied.append(apply(changes, batch, now))
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
def pair(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Pair]:
    """Two storages with a series."""
    pair = Pair(redis_server, monkeypatch, clock)
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


DAMAGES: list[tuple[float, tuple[Any, ...]]] = [
    (0.0, ("HDEL", KEY, TOTAL)),
    (0.0, ("HDEL", KEY, f"#mark:{WRITER}")),
    (0.0, ("HSET", KEY, f"#mark:{WRITER}", "foreign")),
    (0.0, ("HSET", KEY, "#prefix", "other")),
    (0.0, ("DEL", KEY)),
    (0.0, ("FLUSHDB",)),
    (0.0, ("SCRIPT", "FLUSH")),
    (0.0, ("SET", KEY, "no hash")),
    (1.0, ("HDEL", KEY, "#search")),
    (1.0, ("HSET", KEY, "#search", "1")),
    (1.0, ("HSET", KEY, "#search", "99999999999")),
    (1.0, ("DEL", INDEX)),
    (1.0, ("PERSIST", KEY)),
]
"""Damages of the metric, each after the seconds that pass before the short script notices it."""


@pytest.mark.parametrize(
    ("seconds", "damage"), DAMAGES, ids=lambda damage: " ".join(damage[::2]) if isinstance(damage, tuple) else None
)
def test_a_damaged_metric_takes_the_long_script(pair: Pair, seconds: float, damage: tuple[Any, ...]) -> None:
    """Where something of the metric is gone, changed or foreign, the answer and the content are those of the long script."""
    assert pair.send(3, Operation(Kind.ADD, TOTAL, 1.0))
    pair.damage(*damage)
    pair.clock.now += seconds
    applied = pair.send(4, Operation(Kind.ADD, TOTAL, 1.0))
    assert applied == (damage[0] in ("SCRIPT", "PERSIST"))
    if damage[0] != "SET" and damage[-1] != "other":
        assert [pair.send(sequence, Operation(Kind.ADD, TOTAL, 1.0)) for sequence in (5, 6, 7)][-1]


@pytest.mark.parametrize(("expire", "seconds"), [(3600, 1.0), (30, 0.3), (None, 1.0)])
def test_the_short_script_renews_now_and_then(
    redis_server: RedisServer, clock: Clock, expire: float | None, seconds: float
) -> None:
    """An update renews expiry and mark after a second, or a hundredth of a short expiry; earlier ones leave both alone."""
    storage = RedisStorage(redis_server.url, "test", expire)

    def send(sequence: int) -> tuple[Mark, int]:
        storage.apply(Batch(WRITER, sequence, [Update("m", "{}", [Operation(Kind.ADD, TOTAL, 1.0)])]))
        with redis_server.client(decode_responses=True) as client:
            mark, lasts = Mark.loads(client.hget(KEY, f"#mark:{WRITER}") or ""), client.pttl(KEY)
            client.pexpire(KEY, 10_000)
        return mark, lasts

    for sequence in (1, 2, 3):
        before, lasted = send(sequence)
    clock.now += 0.9 * seconds
    mark, lasts = send(4)
    assert (mark, lasts <= 10_000) == (before._replace(sequence=4), True)
    clock.now += 0.2 * seconds
    mark, lasts = send(5)
    assert mark.sequence == 5
    assert mark.seen > before.seen
    assert lasts == lasted == -1 if expire is None else 10_000 < lasts <= 1000 * expire
    storage.close()


def test_each_writer_renews_its_own_mark(redis_server: RedisServer, clock: Clock) -> None:
    """A writer that shares its storage with a busier one, or that goes on after it deregistered, counts as seen."""
    storage = RedisStorage(redis_server.url, "test")

    def send(writer: str, sequence: int, *, final: bool = False) -> float:
        operations = [] if final else [Operation(Kind.ADD, TOTAL, 1.0)]
        storage.apply(Batch(writer, sequence, [Update("m", "{}", operations)], final))
        with redis_server.client(decode_responses=True) as client:
            seen = Mark.loads(client.hget(KEY, f"#mark:{writer}") or "").seen
            client.hset(KEY, f"#mark:{writer}", f"{sequence} 1.0 ")
        return seen

    for sequence in (1, 2):
        for writer in ("1-a", "2-b"):
            send(writer, sequence)
    clock.now += 1.1
    assert send("1-a", 3) > 1.0
    assert send("2-b", 3) > 1.0
    assert send("1-a", 4) == 1.0
    send("1-a", 5, final=True)
    assert send("1-a", 6) > 1.0
    storage.close()


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


def test_fields_of_many_series_at_once_are_not_remembered(pair: Pair) -> None:
    """A process that buffers takes no memory for fields that only the short script needs."""
    before = set(pair.short.writer._changes._known)
    pair.send(3, *(Operation(Kind.ADD, f'_total:{{"a":"{number}"}}', 1.0) for number in range(changing.MOST_CHANGES + 1)))
    assert pair.short.writer._changes._known == before


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


@pytest.mark.parametrize("is_short", [True, False])
def test_no_thread_reads_the_reply_of_a_call_that_was_broken_off(redis_server: RedisServer, is_short: bool) -> None:
    """Where a handler raises between a command and its reply, a thread that waits meanwhile reads the reply of its own."""
    server = RedisStorage(redis_server.url, "test").server
    calls: dict[bool, Callable[[], object]] = {
        True: lambda: server.call(CHANGE, [KEY], ["test", "1", "#mark:1-a"]),
        False: lambda: server.run([Command("EXISTS", (INDEX,))]),
    }
    for _ in range(2):
        calls[is_short]()
    connection = server._connection
    send = connection.send_packed_command
    replies: list[Any] = []
    other = threading.Thread(target=lambda: replies.extend(server.run([Command("ECHO", ("own",))])))

    def send_and_raise(command: Any) -> None:
        connection.send_packed_command = send
        send(command)
        other.start()
        raise KeyboardInterrupt

    connection.send_packed_command = send_and_raise
    with pytest.raises(KeyboardInterrupt):
        calls[is_short]()
    other.join()
    assert replies == [b"own"]
    server.close()
