"""The contract of a storage, over each of them, and the own behaviour of the storages of Redis and SQLite."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer, free_port, wait_until
from helpers import set_constants
from prometheus_client import CollectorRegistry
from redis._parsers import _RESP2Parser, _RESP3Parser

import pdc
import pdc.storage
import pdc.storage.redis
import pdc.storage.sqlite
from pdc import config
from pdc.delivery.health import NAMES
from pdc.exposition import Scrape
from pdc.family import LEASE_SECONDS
from pdc.storage import FOLDED, MARK, Batch, Kind, Mark, Operation, Snapshot, Stamped, Storage, StorageError, Update
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

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
        connection = sqlite3.connect(tmp_path / "metrics.db")
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


def update(*operations: Operation, name: str = "m", meta: str = '{"version":1}', declare: bool = False) -> Update:
    """An update of a metric."""
    return Update(name, meta, list(operations), declare)


def batch(sequence: int, *operations: Operation, writer: str = "1-a", final: bool = False) -> Batch:
    """A batch that updates the metric `m`."""
    return Batch(writer, sequence, [update(*operations)], final)


def numbers(snapshot: Snapshot, name: str = "m") -> dict[str, str]:
    """The fields of a metric but for bookkeeping, with the shortest text of their numbers."""
    fields = {field: value for field, value in snapshot.metrics.get(name, {}).items() if not field.startswith("#")}
    return {field: repr(float(value)) for field, value in fields.items()}


def series(suffix: str, **labels: str) -> str:
    """A subkey, as documented."""
    return f"{suffix}:{json.dumps(labels, sort_keys=True, separators=(',', ':'))}"


A, B = series("_total", path="/", method="GET"), series("_total", path="/b", method="GET")
SERIES = [series(suffix, path="/") for suffix in ("", "_created", "_count", "_info", "#exemplar_total")] + [
    series(suffix, le=le, path="/") for suffix in ("_bucket", "#exemplar_bucket") for le in ("0.1", "2.5", "+Inf")
]
"""Fields of one series, of all types and bounds that the metric has had."""
EVERY_KIND: dict[str, tuple[list[list[Operation]], dict[str, str]]] = {
    "init creates": ([[Operation(Kind.INIT, A, 1.5)]], {A: "1.5"}),
    "init keeps": ([[Operation(Kind.ADD, A, 2.0)], [Operation(Kind.INIT, A, 0.0)]], {A: "2.0"}),
    "set creates and replaces": (
        [[Operation(Kind.SET, A, 2.0)], [Operation(Kind.SET, A, -3.0), Operation(Kind.SET, B, 1.0)]],
        {A: "-3.0", B: "1.0"},
    ),
    "the last set wins": ([[Operation(Kind.SET, A, 2.0), Operation(Kind.SET, A, 1.0)]], {A: "1.0"}),
    "add creates and adds": ([[Operation(Kind.ADD, A, 2.0)], [Operation(Kind.ADD, A, 0.5)]], {A: "2.5"}),
    "add twice in a batch": ([[Operation(Kind.ADD, A, 2.0), Operation(Kind.ADD, A, 0.5)]], {A: "2.5"}),
    "add counts a text as 0": ([[Operation(Kind.SET, A, "text")], [Operation(Kind.ADD, A, 2.0)]], {A: "2.0"}),
    "deletes, then inits, sets, adds": (
        [
            [Operation(Kind.SET, A, 9.0), Operation(Kind.SET, B, 9.0)],
            [
                Operation(Kind.ADD, A, 1.0),
                Operation(Kind.SET, A, 5.0),
                Operation(Kind.INIT, A, 7.0),
                Operation(Kind.DELETE, "{}"),
            ],
        ],
        {A: "6.0"},
    ),
    "delete takes the series with these labels": (
        [[Operation(Kind.SET, A, 1.0), Operation(Kind.SET, B, 1.0)], [Operation(Kind.DELETE, '{"path":"/b"}')]],
        {A: "1.0"},
    ),
    "delete takes the series with all of these labels": (
        [[Operation(Kind.SET, A, 1.0), Operation(Kind.SET, B, 1.0)], [Operation(Kind.DELETE, '{"method":"GET","path":"/c"}')]],
        {A: "1.0", B: "1.0"},
    ),
    "remove takes the series with exactly these labels": (
        [
            [
                Operation(Kind.SET, field, 1.0)
                for field in (A, B, *SERIES, series("_sum", path="/"), series("_sum", method="GET"))
            ],
            [Operation(Kind.REMOVE, '{"path":"/"}'), Operation(Kind.REMOVE, '{"method":"GET","path":"/b"}')],
        ],
        {A: "1.0", series("_sum", method="GET"): "1.0"},
    ),
    "delete takes whole series": (
        [
            [Operation(Kind.SET, field, 1.0) for field in (A, *SERIES, series("_bucket", a="{", le="1.0", path="/"))],
            [Operation(Kind.DELETE, '{"path":"/"}'), Operation(Kind.DELETE, '{"a":"}"}'), Operation(Kind.ADD, B, 1.0)],
        ],
        {B: "1.0"},
    ),
    "remove, then inits, sets, adds": (
        [
            [Operation(Kind.SET, A, 9.0)],
            [Operation(Kind.ADD, A, 1.0), Operation(Kind.REMOVE, '{"method":"GET","path":"/"}'), Operation(Kind.INIT, A, 7.0)],
        ],
        {A: "8.0"},
    ),
}


@pytest.mark.parametrize("case", EVERY_KIND)
def test_operations(store: Storage, case: str) -> None:
    """Every kind of operation does what its documentation states, in the documented order, and once however often applied."""
    batches, expected = EVERY_KIND[case]
    for sequence, operations in enumerate(batches, 1):
        outcomes = [store.apply(batch(sequence, *operations)) for _ in range(2)]
        assert [outcome.unknown for outcome in outcomes] == [{"m"} if sequence == 1 else set(), set()]
        assert not any(outcome.refused for outcome in outcomes)
    assert numbers(store.read()) == numbers(store.read(["m", "missing"])) == expected


def test_a_late_duplicate_changes_nothing(store: Storage) -> None:
    """A batch that comes again after later ones, of its writer and of others, is not applied again."""
    first = batch(1, Operation(Kind.ADD, A, 1.0), Operation(Kind.DELETE, "{}"))
    for one in (first, batch(2, Operation(Kind.ADD, A, 10.0)), batch(1, Operation(Kind.ADD, A, 100.0), writer="2-b"), first):
        store.apply(one)
    assert numbers(store.read()) == {A: "111.0"}


SPECIAL = [
    *([0.1, 0.2], [1e-20], [1.0, 1e-20, -1.0], [1e308, 1e308], [math.inf, 1.0], [math.inf, -math.inf], [math.nan, 1.0]),
    *([-0.0], [0.0, -0.0], [5e-324, 5e-324], [2.0**53, 1.0, 1.0], [1e15, 0.3], [123456789012345678.0]),
    [random.Random(1).uniform(-1, 1) * 10.0 ** random.Random(2).randint(-20, 20) for _ in range(50)],
]


@pytest.mark.parametrize("values", SPECIAL, ids=lambda values: f"{len(values)}:{values[0]!r}")
def test_sums_are_those_of_ieee_doubles(store: Storage, values: list[float]) -> None:
    """Additions give bit for bit the result of Python, and a set value comes back unchanged."""
    for sequence, value in enumerate(values, 1):
        store.apply(batch(sequence, Operation(Kind.ADD, A, value), Operation(Kind.SET, B, value)))
    assert numbers(store.read()) == {A: repr(reduce(add, values, 0.0)), B: repr(values[-1])}


def test_texts_come_back_as_they_were(store: Storage) -> None:
    """A field may hold any text, and may have any labels."""
    text, field = 'a "quoted" \\ \n é 🎉 \x00 12', series("_info", é='a{"b":1}')
    store.apply(batch(1, Operation(Kind.SET, field, text)))
    assert store.read().metrics["m"][field] == text
    store.apply(batch(2, Operation(Kind.DELETE, json.dumps({"é": 'a{"b":1}'}))))
    assert field not in store.read().metrics["m"]


def test_stamps_have_the_time_of_the_set(store: Storage) -> None:
    """A stamp keeps the number, and the time of its set by the storage's clock; 0 for never."""
    set_at = time.monotonic() - 100
    stamps = {"#sum:1-a:{}": Stamped(-1.5, set_at), "#sum:2-b:{}": Stamped(math.inf, None)}
    store.apply(batch(1, *(Operation(Kind.STAMP, field, stamp) for field, stamp in stamps.items())))
    snapshot = store.read()
    number, _, stamp = snapshot.metrics["m"]["#sum:1-a:{}"].partition(" ")
    age = time.monotonic() - set_at
    assert float(number) == -1.5
    assert 100 <= snapshot.now - float(stamp) <= age + 1
    assert abs(snapshot.now - time.time()) < 10
    assert [float(part) for part in snapshot.metrics["m"]["#sum:2-b:{}"].split(" ")] == [math.inf, 0.0]


def hasten(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let the storages count so many seconds where they normally count more."""
    set_constants(monkeypatch, **seconds)


AT_ONCE = {"FORGET_WRITER_SECONDS": 0.0, "FORGET_VALUES_SECONDS": 0.0}
"""A writer without a batch is forgotten with the next batch of another writer."""


def stamps(number: float, *modes: str, writer: str = "1-a", age: float = 10.0) -> list[Operation]:
    """Set the values of a process that have these modes."""
    stamped = Stamped(number, time.monotonic() - age)
    return [Operation(Kind.STAMP, f"#{mode}:{writer}:{{}}", stamped) for mode in modes]


def own(fields: Mapping[str, Any]) -> dict[str, float]:
    """The values of processes among the fields of a metric."""
    found = {field: value for field, value in fields.items() if field.startswith("#") and field.count(":") > 1}
    return {field: float(value.split(" ")[0]) for field, value in found.items()}


def marks(fields: Mapping[str, Any]) -> dict[str, Mark]:
    """The marks that a metric keeps of each writer."""
    return {field.removeprefix(MARK): Mark.loads(value) for field, value in fields.items() if field.startswith(MARK)}


def test_the_values_of_a_writer_that_deregisters_follow_their_mode(store: Storage) -> None:
    """Live values of a writer that deregisters go, others are folded into those of the dead; other values and totals stay."""
    modes = ("live", *FOLDED)
    for writer, number, age in (("1-a", 3.0, 10.0), ("2-b", 5.0, 30.0), ("3-c", 4.0, 20.0)):
        store.apply(batch(1, *stamps(number, *modes, writer=writer, age=age), Operation(Kind.ADD, A, 1.0), writer=writer))
    store.apply(batch(2, Operation(Kind.ADD, A, 1.0), writer="1-a", final=True))
    store.apply(batch(2, writer="2-b", final=True))
    now, metrics = store.read()
    dead = {"#sum::{}": 8.0, "#min::{}": 3.0, "#max::{}": 5.0, "#mostrecent::{}": 3.0}
    assert own(metrics["m"]) == dead | {f"#{mode}:3-c:{{}}": 4.0 for mode in modes}
    assert [writer for writer, mark in marks(metrics["m"]).items() if mark.seen > now - LEASE_SECONDS] == ["3-c"]
    assert float(metrics["m"][A]) == 4.0


def test_a_value_is_folded_once(store: Storage) -> None:
    """A duplicate batch of a deregistered writer neither folds a value again nor restores it."""
    first, second = batch(1, *stamps(3.0, "sum", "live")), batch(2, *stamps(4.0, "sum", "live"))
    last = batch(3, *stamps(5.0, "sum", "live"), final=True)
    for one in (first, second, first, last, last, second, first, last):
        store.apply(one)
    assert own(store.read().metrics["m"]) == {"#sum::{}": 5.0}


def test_a_late_deregistration_of_a_writer_that_is_back_changes_nothing(store: Storage) -> None:
    """The deregistration of a writer that has since written again is a duplicate like others."""
    goodbye = batch(2, final=True)
    for one in (batch(1, *stamps(3.0, "live")), goodbye, batch(3, *stamps(4.0, "live")), goodbye):
        store.apply(one)
    assert own(store.read().metrics["m"]) == {"#live:1-a:{}": 4.0}


def test_values_of_several_series_are_folded_apart(store: Storage) -> None:
    """Each series has its own value of the dead, which its removal also removes."""
    for writer in ("1-a", "2-b"):
        for sequence, labels in enumerate(('{"path":"/"}', '{"path":"a:b"}'), 1):
            store.apply(batch(sequence, Operation(Kind.STAMP, f"#sum:{writer}:{labels}", Stamped(0.5, 1.0)), writer=writer))
        store.apply(batch(3, writer=writer, final=True))
    assert own(store.read().metrics["m"]) == {'#sum::{"path":"/"}': 1.0, '#sum::{"path":"a:b"}': 1.0}
    store.apply(batch(4, Operation(Kind.DELETE, '{"path":"/"}')))
    assert own(store.read().metrics["m"]) == {'#sum::{"path":"a:b"}': 1.0}


def test_the_dead_are_merged_as_the_living(store: Storage) -> None:
    """Folded numbers are bit for bit those that prometheus_client merges of the same processes."""
    pairs = list(product([math.nan, -math.inf, 0.1, -0.0], [math.nan, math.inf, 0.2, 1e-20]))
    for case, pair in enumerate(pairs):
        for sequence, (value, writer) in enumerate(zip(pair, ("1-a", "2-b"), strict=True)):
            values = stamps(value, *FOLDED, writer=writer, age=10.0 - sequence)
            store.apply(Batch(writer, 2 * case + 1, [update(*values, name=f"m{case}")]))
            store.apply(Batch(writer, 2 * case + 2, [update(name=f"m{case}")], final=True))
    found = store.read().metrics
    for case, (dead, last) in enumerate(pairs):
        smallest, largest = last if last < dead else dead, last if last > dead else dead
        expected = {"#sum::{}": dead + last, "#min::{}": smallest, "#max::{}": largest, "#mostrecent::{}": last}
        assert repr(sorted(own(found[f"m{case}"]).items())) == repr(sorted(expected.items()))


def test_all_values_stay_when_their_writer_deregisters(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the mode ``all`` stays until its writer, deregistered or killed, is forgotten."""
    for writer in ("1-a", "2-b"):
        store.apply(batch(1, *stamps(3.0, "all", writer=writer), writer=writer))
    for _ in range(2):
        store.apply(batch(2, final=True))
    hasten(monkeypatch, **{**AT_ONCE, "FORGET_VALUES_SECONDS": 60.0})
    store.apply(batch(1, writer="3-c"))
    assert own(store.read().metrics["m"]) == {"#all:1-a:{}": 3.0, "#all:2-b:{}": 3.0}
    hasten(monkeypatch, **AT_ONCE)
    store.apply(batch(2, writer="3-c"))
    assert own(store.read().metrics["m"]) == {}
    assert set(marks(store.read().metrics["m"])) == {"3-c"}


def test_a_writer_not_seen_for_long_is_forgotten(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch of any writer removes the marks and live values of writers not seen for long."""
    store.apply(batch(1, *stamps(1.0, "live"), Operation(Kind.ADD, A, 1.0)))
    store.apply(batch(1, *stamps(1.0, "live", "sum", writer="2-b"), writer="2-b"))
    hasten(monkeypatch, **{**AT_ONCE, "FORGET_VALUES_SECONDS": 60.0})
    store.apply(batch(1, writer="3-c"))
    fields = store.read().metrics["m"]
    assert own(fields) == {"#live:2-b:{}": 1.0, "#sum:2-b:{}": 1.0}
    assert set(marks(fields)) == {"2-b", "3-c"}
    assert float(fields[A]) == 1.0
    hasten(monkeypatch, **AT_ONCE)
    store.apply(batch(2, writer="3-c"))
    assert own(store.read().metrics["m"]) == {"#sum::{}": 1.0}


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
        store.apply(batch(one, *stamps(1.0, "live"), Operation(Kind.ADD, A, 1.0)))
        hasten(monkeypatch, **AT_ONCE)
    fields = store.read().metrics["m"]
    assert float(fields[A]) == 2.0
    assert own(fields) == {"#live:1-a:{}": 1.0}


def test_damaged_bookkeeping_counts_as_absent(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign data in the fields of pdc's own neither stops batches nor harms the marks of others."""
    damaged = [("1-a", "#mark:1-a"), ("1-a", "#search"), ("2-b", "#mark:2-b"), ("3-c", "#sum:3-c:{}"), ("4-d", "#sum::{}")]
    hasten(monkeypatch, **AT_ONCE)
    for sequence, (writer, field) in enumerate(damaged):
        count = Operation(Kind.ADD, A, 1.0)
        store.apply(batch(2 * sequence + 1, *stamps(3.0, "sum", writer=writer), count, writer=writer))
        store.apply(batch(2 * sequence + 2, Operation(Kind.SET, field, "any"), writer=writer))
    for sequence in (99, 100):
        store.apply(batch(sequence, Operation(Kind.ADD, A, 1.0), writer="5-e"))
    fields = store.read().metrics["m"]
    assert float(fields[A]) == len(damaged) + 2
    assert own(fields) == {"#sum::{}": 3.0}
    assert set(marks(fields)) == {"5-e"}


def test_a_mark_stays_until_duplicates_have_arrived(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a deregistered writer that comes again is not counted; then its mark goes, too."""
    hasten(monkeypatch, FINAL_MARK_SECONDS=0.2)
    first = batch(1, Operation(Kind.ADD, A, 1.0))
    for one in (first, batch(2, final=True), first, batch(1, writer="2-b")):
        store.apply(one)
    assert numbers(store.read()) == {A: "1.0"}
    assert set(marks(store.read().metrics["m"])) == {"1-a", "2-b"}
    time.sleep(0.5)
    store.apply(batch(2, writer="2-b"))
    assert set(marks(store.read().metrics["m"])) == {"2-b"}


def test_metadata_is_that_of_the_last_declaration(store: Storage) -> None:
    """The metadata is stored where it is missing, and replaced by each declaration."""
    for number, declare, expected in ((1, False, "1"), (2, False, "1"), (3, True, "3")):
        store.apply(Batch("1-a", number, [update(meta=str(number), declare=declare)]))
        assert store.read().metrics["m"]["#meta"] == expected


def test_a_batch_may_be_huge(store: Storage) -> None:
    """A batch of 20,000 fields is applied at once, twice, and deleted at once."""
    operations = [Operation(Kind.ADD, series("_total", path=str(number)), float(number)) for number in range(20_000)]
    for sequence in (1, 2):
        store.apply(batch(sequence, *operations))
    assert numbers(store.read()) == {operation.field: repr(2.0 * index) for index, operation in enumerate(operations)}
    store.apply(batch(3, Operation(Kind.DELETE, "{}")))
    assert numbers(store.read()) == {}


def test_metrics_are_read_by_name_and_deleted_together(store: Storage) -> None:
    """A read gives the requested metrics that exist; after `delete` and `close` the storage begins again."""
    assert store.read().metrics == {}
    store.apply(Batch("1-a", 1, [update(Operation(Kind.ADD, A, 1.0), name=name) for name in ("one", "two", "three_")]))
    assert set(store.read().metrics) == {"one", "two", "three_"}
    assert set(store.read(["one", "four"]).metrics) == {"one"}
    assert store.read([]).metrics == {}
    store.delete()
    assert store.read().metrics == store.read(["one"]).metrics == {}
    store.close()
    assert store.apply(batch(1, Operation(Kind.ADD, A, 1.0))).unknown == {"m"}
    assert numbers(store.read()) == {A: "1.0"}


def test_several_storages_see_the_same(tmp_path: Path, redis_server: RedisServer) -> None:
    """Any client of a database reads the batches of another one, whatever its protocol, parser and encoding."""
    clients = [redis_server.client(**options) for options in REDIS_CLIENTS.values()]
    groups: list[list[Storage]] = [
        [RedisStorage(client, "test") for client in clients],
        [SqliteStorage(tmp_path / "metrics.db"), SqliteStorage(str(tmp_path / "metrics.db"))],
    ]
    for group in groups:
        for index, writer in enumerate(group):
            writer.apply(batch(1, Operation(Kind.ADD, A, 1.0), writer=f"{index}-w"))
        assert [numbers(reader.read()) for reader in group] == [{A: repr(float(len(group)))}] * len(group)
        for storage in group:
            storage.close()
    for client in clients:
        client.close()


# The content of the databases


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
        assert client.type("prometheus_plain") == "hash"


def test_the_format_in_sqlite(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A metric is the rows of its name, with the documented subkeys and values."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    declared(registry)
    with sqlite3.connect(tmp_path / "metrics.db") as connection:
        stored: dict[str, dict[str, Any]] = {}
        for name, field, value in connection.execute("SELECT metric_key, subkey, value FROM metrics"):
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


# Storages that lose their data


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
    ("sqlite", "all", _sqlite("DELETE FROM metrics")),
    ("sqlite", "requests", _sqlite("DELETE FROM metrics WHERE metric_key = 'requests'")),
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
