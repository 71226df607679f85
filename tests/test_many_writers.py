"""Metrics that thousands of processes write: scrapes read their series, and not a mark for each process."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from conftest import RedisServer
from helpers import set_constants

from pdc.family import Family
from pdc.storage import (
    FORGET_VALUES_SECONDS,
    MARK,
    Batch,
    Kind,
    Limits,
    Operation,
    Snapshot,
    Stamped,
    Storage,
    Update,
    updated,
    writers,
)
from pdc.storage.redis import RedisStorage, reading
from pdc.storage.sqlite import SqliteStorage

WRITERS = [f"{number}-{number:016x}" for number in range(40)]
META = '{"version":1}'
MODES = ("live", "sum", "all")


@pytest.fixture
def storages(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RedisStorage, RedisStorage]]:
    """Two storages of the same metric, which many processes write: one reads it, the other one changes it."""
    set_constants(monkeypatch, FEW_FIELDS=10)
    both = RedisStorage(redis_server.url, "test"), RedisStorage(redis_server.url, "test")
    begin(both[0])
    yield both
    for storage in both:
        storage.close()


def begin(storage: Storage) -> None:
    """Let all processes update the metric, each for the first time."""
    for number, writer in enumerate(WRITERS):
        send(storage, 1, Operation(Kind.ADD, total(number % 3), 1.0), writer=writer)


def total(number: int) -> str:
    """The count of a series."""
    return f'_total:{{"path":"{number}"}}'


def send(storage: Storage, sequence: int, *operations: Operation, writer: str = "1-a", **more: Any) -> None:
    """Apply a batch for one metric."""
    final = more.pop("final", False)
    storage.apply(Batch(writer, sequence, [Update("m", META, list(operations), **more)], final))


def unmarked(snapshot: Snapshot) -> dict[str, Any]:
    """The fields of the metric but for marks and the times of searches."""
    fields = snapshot.metrics.get("m", {})
    return {field: value for field, value in fields.items() if not field.startswith(MARK)}


def calls(server: RedisServer, command: str) -> int:
    """How many times Redis got a command."""
    return int(server.client().info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def whole_reads(server: RedisServer) -> int:
    """How many times all fields of a metric were read."""
    return calls(server, "hgetall")


def test_a_scrape_reads_no_marks(redis_server: RedisServer, storages: tuple[RedisStorage, RedisStorage]) -> None:
    """Once a process has read a metric, it reads only the fields of series, until the metric has new ones."""
    storage, other = storages
    storage.read()
    before = whole_reads(redis_server)
    for number in range(3):
        send(other, number + 1, Operation(Kind.ADD, total(number), 1.0), writer=f"9-{number}")
        fields = storage.read().metrics["m"]
        assert [field for field in fields if field.startswith(MARK)] == []
        assert unmarked(storage.read()) == unmarked(Snapshot(0.0, {"m": fields}))
    assert whole_reads(redis_server) == before
    send(other, 2, Operation(Kind.ADD, total(3), 1.0), writer="9-0")
    assert [storage.read().metrics["m"][total(3)] for _ in range(3)] == ["1"] * 3
    assert whole_reads(redis_server) == before + 1


def test_sqlite_reads_no_marks(tmp_path: Path) -> None:
    """On SQLite, a new process changes no field that a scrape reads; its mark comes on demand, while there is a file."""
    with closing(SqliteStorage(tmp_path / "metrics.db")) as storage:
        begin(storage)
        before = storage.read()
        send(storage, 1, Operation(Kind.ADD, total(0), 1.0), writer="9-z")
        assert [*storage.read().metrics["m"]] == [*before.metrics["m"]]
        assert set(writers(before.metrics.values())) == {*WRITERS, "9-z"}
        for path in tmp_path.glob("metrics.db*"):
            path.unlink()
        assert writers(before.metrics.values()) == {}


def test_fields_outlive_their_snapshot(tmp_path: Path) -> None:
    """Whoever iterates over the fields or values of a metric gets all of them, also where nothing else holds them."""
    with closing(SqliteStorage(tmp_path / "metrics.db")) as storage:
        begin(storage)
        fields = storage.read().metrics["m"]
        assert [*storage.read().metrics["m"]] == [*fields] != []
        assert [*storage.read().metrics["m"].values()] == [*fields.values()]


def test_a_small_metric_is_read_at_once(redis_server: RedisServer, storages: tuple[RedisStorage, RedisStorage]) -> None:
    """A metric that was small at the last scrape comes without a call for its size; where it grew or went, it is read anew."""
    storage, other = storages
    with redis_server.client() as client:
        for name, fields in (("small", 3), ("grown", 30), ("gone", 3)):
            for version in ("", "x" * 70):  # texts of that length have Redis keep the hash in a table
                operations = [Operation(Kind.SET, f'_total:{{"path":"{number}{version}"}}', 1.0) for number in range(fields)]
                other.apply(Batch("1-a", len(version), [Update(name, META, operations)]))
            storage.read()
        client.hset("prometheus_test_grown", mapping={f"_total:{number}": 1 for number in range(5000)})
        other.delete(["gone"])
        before = [calls(redis_server, name) for name in ("hlen", "hgetall", "hscan")]
        read = storage.read(["small", "grown", "gone"])
        after = [calls(redis_server, name) for name in ("hlen", "hgetall", "hscan")]
    with closing(RedisStorage(other.client, "test")) as new:
        assert read.metrics == new.read(["small", "grown", "gone"]).metrics
    assert {name: len(fields) for name, fields in read.metrics.items()} == {"small": 9, "grown": 5063}
    assert [later - sooner for sooner, later in zip(before, after, strict=True)] == [1, 1, 3]


def test_two_threads_that_read_at_once(storages: tuple[RedisStorage, RedisStorage], monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape goes on where another one forgets the fields of a metric at any moment."""

    class Forgotten(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            return super().__contains__(name) and self.pop(str(name)) is not None

    storage, _ = storages
    before = unmarked(storage.read())
    monkeypatch.setattr(storage.reader, "_known", Forgotten(storage.reader._known))
    assert unmarked(storage.read()) == before


def test_a_small_metric_that_comes_in_pieces(
    storages: tuple[RedisStorage, RedisStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric of few fields in a hash that once had many is read, also while other threads find again that it is small."""

    class Small(set[str]):
        def discard(self, _: object) -> None:
            """Leave it to another thread, which adds the metric at the same time."""

    storage, _ = storages
    set_constants(monkeypatch, FEW_FIELDS=1000)
    monkeypatch.setattr(reading, "_AT_ONCE", ("0", "COUNT", "1"))
    with storage.client as client:
        client.hset("prometheus_test_m", "_total:" + "x" * 70, 1)  # a text of that length has Redis keep the hash in a table
    storage.reader._small = Small()
    assert unmarked(storage.read()) == unmarked(storage.read()) != {}


def test_the_writers_of_a_metric_that_was_read_before(storages: tuple[RedisStorage, RedisStorage]) -> None:
    """All writers are known on demand, also those that came since the metric was read whole."""
    storage, other = storages
    storage.read()
    send(other, 1, Operation(Kind.ADD, total(0), 1.0), writer="9-z")
    assert set(writers(storage.read().metrics.values())) == {*WRITERS, "9-z"}


def test_live_values_are_read_without_marks(redis_server: RedisServer, storages: tuple[RedisStorage, RedisStorage]) -> None:
    """While values of living processes are new, a scrape reads these and no marks; the marks of others come on demand."""
    storage, other = storages
    family = Family("m", "gauge", "", mode="livesum")
    old = Stamped(1.0, time.monotonic() - 60.0)
    for writer, value in zip(WRITERS, cycle([Stamped.when_applied(1.0), Stamped(1.0, None), old]), strict=False):
        send(other, 2, Operation(Kind.STAMP, f"#live:{writer}:{{}}", value), writer=writer)
    storage.read()
    before = calls(redis_server, "hgetall"), calls(redis_server, "hscan")
    now, metrics = storage.read()
    fields = metrics["m"]
    assert [field for field in fields if field.startswith(MARK)] == []
    counted = calls(redis_server, "hmget")
    assert family.metric(fields, now).samples[0].value == len(WRITERS)
    assert (calls(redis_server, "hgetall"), calls(redis_server, "hscan")) == before
    assert calls(redis_server, "hmget") == counted + 1
    assert family.metric(fields, now + 30.0).samples == []


def test_a_lost_mark_of_a_process_with_live_values(
    redis_server: RedisServer, storages: tuple[RedisStorage, RedisStorage]
) -> None:
    """A process whose mark was lost counts again with its next batch, which brings no new field but the mark."""
    storage, other = storages
    family = Family("m", "gauge", "", mode="livesum")
    send(other, 2, Operation(Kind.STAMP, "#live:1-a:{}", Stamped(1.0, None)))
    with redis_server.client() as client:
        client.hdel("prometheus_test_m", f"{MARK}1-a")
    for sequence, expected in ((2, []), (3, [2.0])):
        now, metrics = storage.read()
        assert [sample.value for sample in family.metric(metrics["m"], now).samples] == expected
        send(other, sequence + 1, Operation(Kind.STAMP, "#live:1-a:{}", Stamped(2.0, None)))


def test_values_of_the_dead(storages: tuple[RedisStorage, RedisStorage]) -> None:
    """A value into which those of a process that ends are folded is shown at once, although no batch wrote it."""
    storage, other = storages
    send(other, 2, Operation(Kind.STAMP, "#sum:1-a:{}", Stamped(5.0, None)))
    storage.read()
    send(other, 3, final=True)
    found = unmarked(storage.read())
    assert (found.get("#sum::{}"), "#sum:1-a:{}" in found) == ("5 0", False)


def test_a_metric_read_before_is_the_one_that_is_stored(storages: tuple[RedisStorage, RedisStorage]) -> None:
    """Whatever batches do, a process that knows the metric reads the same series as one that reads it for the first time."""
    storage, other = storages
    chance = random.Random(1)
    for sequence in range(2, 150):
        writer, limits = chance.choice(WRITERS), Limits(*chance.choice([(0, "", 0.0, 2), (4, '{"path":"over"}', 50.0, 0)]))
        send(other, sequence, *chance.sample(_changes(chance, writer, sequence), 2), writer=writer, limits=limits)
        if chance.random() < 0.1:
            send(other, sequence + 1000, writer=writer, final=True, limits=limits)
        if chance.random() < 0.03:
            other.delete()
            begin(other)
        if chance.random() < 0.6:
            with closing(RedisStorage(other.client, "test")) as new:
                assert unmarked(storage.read()) == unmarked(new.read())


def _changes(chance: random.Random, writer: str, sequence: int) -> list[Operation]:
    """Operations of every kind on a few series, and one by which all old writers are forgotten."""
    field, labels = total(chance.randrange(6)), f'{{"path":"{chance.randrange(6)}"}}'
    old = f"{sequence} {time.time() - FORGET_VALUES_SECONDS - 60}"
    return [
        Operation(Kind.ADD, field, 1.0),
        Operation(Kind.ADD, f'_native:{{"le":"{chance.randrange(4)}p{chance.randrange(20)}"}}', 1.0),
        Operation(Kind.SET, field, 2.0),
        Operation(Kind.INIT, f"_created:{labels}", 3.0),
        Operation(Kind.STAMP, f"#{chance.choice(MODES)}:{writer}:{labels}", Stamped(1.0, None)),
        Operation(Kind.REMOVE, labels),
        updated(labels),
        Operation(Kind.SET, chance.choice(["#search", "#sweep"]), 0.0),
        Operation(Kind.SET, f"{MARK}{chance.choice(WRITERS)}", f"{old} sum"),
    ]
