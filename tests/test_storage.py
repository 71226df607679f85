"""The contract of a storage, over each of them."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer, free_port, wait_until
from helpers import AT_ONCE, hasten, marks
from redis._parsers import _RESP2Parser, _RESP3Parser

from pdc.family import LEASE_SECONDS
from pdc.storage import FOLDED, Batch, Kind, Operation, Snapshot, Stamped, Storage, Update
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


def stamps(number: float, *modes: str, writer: str = "1-a", age: float = 10.0) -> list[Operation]:
    """Set the values of a process that have these modes."""
    stamped = Stamped(number, time.monotonic() - age)
    return [Operation(Kind.STAMP, f"#{mode}:{writer}:{{}}", stamped) for mode in modes]


def own(fields: Mapping[str, Any]) -> dict[str, float]:
    """The values of processes among the fields of a metric."""
    found = {field: value for field, value in fields.items() if field.startswith("#") and field.count(":") > 1}
    return {field: float(value.split(" ")[0]) for field, value in found.items()}


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


def test_some_metrics_are_deleted_alone(store: Storage) -> None:
    """`delete` with names leaves all others, and the id of the storage; a deleted metric begins again with its next batch."""
    store.apply(Batch("1-a", 1, [update(Operation(Kind.ADD, A, 1.0), name=name) for name in ("one", "two", "three_")]))
    before = store.id()
    store.delete(["one", "three_", "four"])
    assert set(store.read().metrics) == {"two"}
    assert store.id() == before
    outcome = store.apply(Batch("1-a", 2, [update(Operation(Kind.ADD, A, 2.0), name=name) for name in ("one", "two")]))
    assert outcome.unknown == {"one"}
    assert {name: numbers(store.read(), name) for name in ("one", "two")} == {"one": {A: "2.0"}, "two": {A: "3.0"}}


def test_series_are_removed_without_a_mark(store: Storage) -> None:
    """`remove` takes series as a batch does, and leaves no sign of its writer."""
    store.apply(batch(1, Operation(Kind.SET, A, 1.0), Operation(Kind.SET, B, 1.0)))
    before = dict(store.read().metrics["m"])
    store.remove(Batch("2-b", 1, [update(Operation(Kind.DELETE, '{"path":"/b"}'))]))
    del before[B]
    assert dict(store.read().metrics["m"]) == before


@pytest.mark.parametrize("client", REDIS_CLIENTS)
def test_the_expiries_of_metrics_are_known(client: str, redis_server: RedisServer) -> None:
    """Each metric has the time by which it has expired, or infinity, whatever the protocol of the client."""
    for name, expire in (("one", 3600.0), ("two", None)):
        storage = RedisStorage(redis_server.client(**REDIS_CLIENTS[client]), "p", expire)
        storage.apply(Batch("1-a", 1, [update(Operation(Kind.ADD, A, 1.0), name=name)]))
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
            writer.apply(batch(1, Operation(Kind.ADD, A, 1.0), writer=f"{index}-w"))
        assert [numbers(reader.read()) for reader in group] == [{A: repr(float(len(group)))}] * len(group)
        for storage in group:
            storage.close()
    for client in clients:
        client.close()
