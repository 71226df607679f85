"""Metrics of any size: work goes in pieces, so that others have their turns, and still looks whole."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import RedisServer
from helpers import SMALL_PIECES, Run, driver_call, script, set_constants
from prometheus_client import CollectorRegistry

import pdc
from pdc.storage import Batch, Kind, Limits, Operation, Outcome, Stamped, Storage, StorageError, Update
from pdc.storage.labels import around_bound, series_of, without_bound
from pdc.storage.redis import RedisStorage
from pdc.storage.redis.commands import SCRIPTS
from pdc.storage.sqlite import SqliteStorage

Open = Callable[[], Storage]
BOUNDS = ("0.1", "2.5", "+Inf")
META = f'{{"documentation":"{"long " * 20}"}}'
"""Redis keeps a hash with such a value in a table, as it does with large ones."""


class OtherClient(redis.Redis):
    """A client that does not derive from redis-py's, which is used as it is: it parses replies."""


@pytest.fixture(params=["sqlite", "redis", "redis-client"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Makes a storage like those of other processes, all with the same metrics; small pieces have few fields."""
    opened: list[Storage] = []
    theirs: list[sqlite3.Connection | redis.Redis] = []

    def make() -> Storage:
        if request.param == "sqlite":
            connection = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
            theirs.append(connection)
            opened.append(SqliteStorage(connection))
        else:
            server: RedisServer = request.getfixturevalue("redis_server")
            client = OtherClient.from_url(server.url, decode_responses=True)
            theirs.append(client)
            opened.append(RedisStorage(server.url if request.param == "redis" else client, "test"))
        return opened[-1]

    yield make
    for storage in opened:
        storage.close()
    for each in theirs:
        each.close()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    set_constants(monkeypatch, **SMALL_PIECES, MOST_ADDED=2, MOST_READ=20, MOST_LOOKED_AT=20)


def spell(labels: dict[str, str]) -> str:
    """The labels as fields spell them."""
    return json.dumps(labels, sort_keys=True, separators=(",", ":"))


def labels(number: int) -> str:
    """The labels of a series as fields spell them."""
    return spell({"a": str(number % 3), "user": str(number)})


def observation(number: int, bound: str, amount: float = 1.0) -> list[Operation]:
    """An observation of that amount in a bucket of a series."""
    bucket = spell({"a": str(number % 3), "le": bound, "user": str(number)})
    return [Operation(Kind.ADD, f"_sum:{labels(number)}", amount), Operation(Kind.ADD, f"_bucket:{bucket}", amount)]


def histograms(count: int) -> list[Operation]:
    """Observations in every bucket of that many series, with the fields that belong to them."""
    operations = [each for number in range(count) for bound in BOUNDS for each in observation(number, bound)]
    return operations + [Operation(Kind.INIT, f"_created:{labels(number)}", 1.0) for number in range(count)]


def send(storage: Storage, sequence: int, *operations: Operation, writer: str = "1-a", final: bool = False) -> None:
    """Apply a batch for one metric."""
    storage.apply(Batch(writer, sequence, [Update("m", META, list(operations))], final))


def stored(storage: Storage) -> dict[str, dict[str, float]]:
    """The numbers of each user's series, by kind."""
    found: dict[str, dict[str, float]] = {}
    for field, value in storage.read().metrics.get("m", {}).items():
        start, brace, rest = field.partition("{")
        if brace and not field.startswith("#"):
            pairs = json.loads(brace + rest)
            found.setdefault(pairs["user"], {})[start + pairs.get("le", "")] = float(value)
    return found


def removals(*numbers: int) -> list[Operation]:
    """Remove these series by all of their labels."""
    return [Operation(Kind.REMOVE, labels(number)) for number in numbers]


def test_removals_take_their_series_and_no_other(another: Open) -> None:
    """Removals by all labels or by some leave the other series unchanged, whatever their number."""
    storage, random_numbers = another(), random.Random(1)
    send(storage, 1, *histograms(60))
    before = stored(storage)
    gone = random_numbers.sample(range(60), 20)
    send(storage, 2, *removals(*gone), Operation(Kind.DELETE, '{"a":"1"}'), Operation(Kind.DELETE, '{"user":"3"}'))
    left = {user for user in range(60) if user not in gone and user % 3 != 1 and user != 3}
    assert stored(storage) == {user: before[user] for user in map(str, left)}
    send(storage, 3, Operation(Kind.DELETE, "{}"))
    assert stored(storage) == {}


def test_a_removal_has_the_values_of_all_processes(another: Open) -> None:
    """The series is removed with the values of every process, also dead ones, whichever process removes it."""
    storage = another()
    for number, writer in enumerate(("1-a", "2-b", "3-c", "4-d")):
        values = [Operation(Kind.STAMP, f"#sum:{writer}:{labels(user)}", Stamped(1.0, 1.0)) for user in range(3)]
        send(storage, 1, *values, writer=writer)
        send(storage, 2, writer=writer, final=number < 2)
    send(storage, 3, *removals(0), writer="5-e")
    send(storage, 4, Operation(Kind.DELETE, '{"user":"1"}'), writer="5-e")
    fields = [field for field in storage.read().metrics["m"] if field.startswith("#sum")]
    assert sorted(fields) == sorted(f"#sum:{writer}:{labels(2)}" for writer in ("", "3-c", "4-d"))


def test_a_removal_in_pieces_is_done_once(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that was cut short is repeated with its batch; a duplicate of an applied batch removes nothing."""
    storage, other = another(), another()
    send(storage, 1, *histograms(30))
    pieces = 0

    def fail_at_the_third(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            raise StorageError("cut")
        return original(*args, **kwargs)

    driver, name = driver_call(storage)
    with monkeypatch.context() as patch:
        patch.setattr(driver, name, partial(fail_at_the_third, getattr(driver, name)))
        with pytest.raises(StorageError):
            send(storage, 2, *removals(*range(20)), *observation(0, "0.1"))
    assert 10 < len(stored(other)) < 30
    assert all(len(numbers) == 5 for numbers in stored(other).values())  # each is whole or gone
    send(other, 1, *observation(29, "0.1"), *observation(0, "2.5"), writer="2-b")
    send(storage, 2, *removals(*range(20)), *observation(0, "0.1"))
    assert stored(other)["0"] == {"_sum:": 1.0, "_bucket:0.1": 1.0}
    send(other, 2, *observation(0, "2.5"), *observation(1, "+Inf"), writer="2-b")
    send(storage, 2, *removals(*range(20)), *observation(0, "0.1"))
    assert stored(other)["0"] == {"_sum:": 2.0, "_bucket:0.1": 1.0, "_bucket:2.5": 1.0}
    assert set(stored(other)) == {str(user) for user in (0, 1, *range(20, 30))}


@pytest.mark.long
def test_a_process_that_is_killed_amid_a_removal(storage: dict[str, Any], run_script: Run) -> None:
    """The next process finishes it, and series that were counted again have exactly the later counts."""
    run_script(script("removals.py"), 3, storage=storage)


@pytest.mark.parametrize("most_stems", [100, 2], ids=["named", "searched"])
@pytest.mark.parametrize("operations", [removals(*range(100)), [Operation(Kind.DELETE, '{"a":"1"}')]], ids=["all", "some"])
def test_no_transaction_removes_many_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: list[Operation], most_stems: int
) -> None:
    """SQLite's write lock is held for a bounded number of statements, whatever is removed, for any number of processes."""
    set_constants(monkeypatch, MOST_STEMS=most_stems)
    connection = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
    storage = SqliteStorage(connection)
    send(storage, 1, *histograms(100))
    transactions: list[int] = []
    connection.set_trace_callback(
        lambda statement: (
            transactions.append(0) if statement.startswith("BEGIN") else transactions.__setitem__(-1, transactions[-1] + 1)
        )
    )
    send(storage, 2, *operations)
    connection.set_trace_callback(None)
    assert max(transactions) < 100
    assert len(transactions) > 8
    assert stored(storage).keys() == {str(user) for user in range(100) if len(operations) == 1 and user % 3 != 1}
    connection.close()


@pytest.mark.parametrize(
    ("operations", "searches"), [(removals(*range(100)), 0), ([Operation(Kind.DELETE, '{"a":"1"}')], 10)], ids=["all", "some"]
)
def test_no_call_of_redis_removes_many_fields(redis_server: RedisServer, operations: list[Operation], searches: int) -> None:
    """A call removes a bounded number of fields, and reads a bounded number; by all labels, no field is searched."""
    storage = RedisStorage(redis_server.url, "test")
    send(storage, 1, *histograms(100))
    calls: list[int] = []
    with redis_server.client() as client, client.monitor() as monitor:
        send(storage, 2, *operations)
        client.echo("done")
        for command in monitor.listen():
            word, *arguments = command["command"].split(" ")
            if word == "ECHO":
                break
            if word == "EVALSHA":
                calls.append(0)
            elif word == "HDEL":
                calls[-1] += len(arguments) - 1
            searches -= word == "HSCAN"
    storage.close()
    assert 20 <= max(calls) <= 20 + 8
    assert searches <= 0


INDEXES = {
    "none": None,
    "unfinished": "\n?\n_bucket:{0.1\n",
    "of thousands of processes": f"\n_bucket:{{0.1\n{''.join(f'#sum:{number}:{{' for number in range(9000))}\n",
}


@pytest.mark.parametrize("index", INDEXES)
def test_without_an_index_of_use_a_metric_is_searched(redis_server: RedisServer, index: str) -> None:
    """Where the fields of a series are unknown, or too many are possible, a removal by all labels finds them."""
    storage = RedisStorage(redis_server.url, "test")
    send(storage, 1, *histograms(30))
    with redis_server.client() as client:
        client.hdel("prometheus_test_m", "#stems")
        if (stored_index := INDEXES[index]) is not None:
            client.hset("prometheus_test_m", "#stems", stored_index)
    send(storage, 2, *removals(*range(10)), Operation(Kind.DELETE, '{"a":"1"}'))
    assert set(stored(storage)) == {str(user) for user in range(10, 30) if user % 3 != 1}
    storage.close()


def test_a_metric_without_an_index_is_given_one(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for writers to forget indexes the existing fields, and writers index their own; then fields are named."""
    storage, other = RedisStorage(redis_server.url, "test"), RedisStorage(redis_server.url, "test")
    with redis_server.client() as client:
        client.hset("prometheus_test_m", mapping={"#prefix": "test", "#meta": META})
        for operation in histograms(30):
            client.hset("prometheus_test_m", operation.field, "1")
    indexes: list[str | None] = []

    def add_bounds(original: Callable[..., Any], script: str, *args: Any) -> Any:
        with redis_server.client() as client:
            send(other, len(indexes) + 1, *observation(0, str(len(indexes))), writer="2-b")
            reply = original(script, *args)
            indexes.append(client.hget("prometheus_test_m", "#stems"))
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(storage.keys, "call", partial(add_bounds, storage.keys.call))
        send(storage, 1, *observation(0, "0.1"))
    assert len(indexes) > 3
    assert ["?" in str(index) for index in indexes] == [*[True] * (len(indexes) - 1), False]
    monkeypatch.setitem(SCRIPTS, "find", "return redis.error_reply('it searches')")
    send(storage, 2, *removals(*range(10)))
    assert set(stored(storage)) == {str(user) for user in range(10, 30)}
    for opened in (storage, other):
        opened.close()


def test_fields_of_others_are_entered_where_they_are_found(redis_server: RedisServer) -> None:
    """A removal by some labels also takes fields that others without an index have added meanwhile."""
    storage = RedisStorage(redis_server.url, "test")
    send(storage, 1, *observation(0, "0.1"), *observation(1, "0.1"))
    with redis_server.client() as client:
        for operation in histograms(30):
            client.hset("prometheus_test_m", operation.field, "1")
    send(storage, 2, Operation(Kind.DELETE, '{"a":"0"}'))
    assert {user: len(numbers) for user, numbers in stored(storage).items()} == {str(user): 5 for user in range(30) if user % 3}
    send(storage, 3, *removals(1))
    assert "1" not in stored(storage)
    storage.close()


def test_a_large_metric_is_read_with_each_series_as_it_was_at_one_moment(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid observations, creations and removals between pieces, each series is shown whole, and no count decreases."""
    storage, other, random_numbers = another(), another(), random.Random(2)
    send(storage, 1, *(each for user in range(40) for each in observation(user, BOUNDS[0])))
    sequence = 0

    def busy(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal sequence
        for _ in range(3):
            sequence += 1
            user = random_numbers.randrange(50)
            operations = observation(user, random_numbers.choice(BOUNDS))
            operations.append(Operation(Kind.INIT, f"_created:{labels(user)}", float(sequence)))
            if sequence % 20 == 0:
                operations += removals(sequence // 20 % 20)
            if sequence % 50 == 0:
                operations += observation(user, str(sequence))  # no series had that bucket before
            send(other, sequence, *operations, writer="2-b")
        return original(*args, **kwargs)

    before: dict[str, dict[str, float]] = {}
    driver, name = driver_call(storage)
    monkeypatch.setattr(driver, name, partial(busy, getattr(driver, name)))
    for _ in range(10):
        found = stored(storage)
        for user, numbers in found.items():
            buckets = sum(value for key, value in numbers.items() if key.startswith("_bucket"))
            assert numbers["_sum:"] == buckets, user
            if int(user) >= 20:
                assert all(numbers[key] >= value for key, value in before.get(user, {}).items())
        assert {str(user) for user in range(20, 40)} <= found.keys()
        before = found


def test_native_buckets_become_coarser_while_a_large_metric_is_read(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that goes to a coarser bucket between two pieces is shown once, also where no series had that bucket before."""
    storage, other, dice, sequence = another(), another(), random.Random(3), 0
    limits, fields = Limits(max_buckets=4), {0}

    def observe(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal sequence
        sequence += 1
        user, text = dice.randrange(8), f"{dice.randrange(-4, 5)}{dice.choice('pn')}{dice.randrange(20)}"
        bucket = spell({"a": str(user % 3), "le": text, "user": str(user)})
        added = [Operation(Kind.ADD, f"_sum:{labels(user)}", 1.0), Operation(Kind.ADD, f"_native:{bucket}", 1.0)]
        update = Update("m", META, [*added, Operation(Kind.SET, "#search", 0.0)], limits=limits)
        other.apply(Batch("2-b", sequence, [update]))
        return original(*args, **kwargs)

    driver, name = driver_call(storage)
    monkeypatch.setattr(driver, name, partial(observe, getattr(driver, name)))
    before: dict[str, float] = {}
    for _ in range(6):
        for user, numbers in stored(storage).items():
            assert numbers["_sum:"] == sum(numbers.values()) / 2 >= before.get(user, 0.0)
            before[user] = numbers["_sum:"]
            fields.add(len(numbers))
    assert max(fields) in range(3, 20)


def test_a_search_that_is_cut_short_moves_no_part_of_a_count(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process stops, each native bucket is where it was or in a coarser one; the next search does the rest."""
    storage, other, limits = another(), another(), Limits(max_buckets=4)
    buckets = [Operation(Kind.ADD, f'_native:{{"le":"3p{index}","user":"1"}}', float(index)) for index in range(1, 9)]
    storage.apply(
        Batch("1-a", 1, [Update("m", META, [*buckets, Operation(Kind.ADD, '_sum:{"user":"1"}', 0.0)], limits=limits)])
    )
    seen = []
    for calls in count():
        left = calls

        def fail(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise StorageError("cut")
            return original(*args, **kwargs)

        send(other, 2 * calls, writer="2-b")  # searches where it is time
        send(other, 2 * calls + 1, Operation(Kind.SET, "#search", 0.0), writer="2-b")
        driver, name = driver_call(storage)
        with monkeypatch.context() as patch, suppress(StorageError):
            patch.setattr(driver, name, partial(fail, getattr(driver, name)))
            storage.apply(Batch("1-a", calls + 2, [Update("m", META, [], limits=limits)]))
            break
        found = stored(other)["1"]
        assert sum(found.values()) == 36.0
        seen.append(len(found))
    assert len({*seen}) > 1
    assert stored(other)["1"] == {"_sum:": 0.0, **{f"_native:2p{index}": 4.0 * index - 1 for index in range(1, 5)}}


def test_processes_that_come_and_go_while_a_large_metric_is_read(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is folded into the value of the dead between two pieces counts once, also one of a new process."""
    storage, other = another(), another()
    writers = [f"{number}-a" for number in range(12)]
    come = 0

    def count(writer: str) -> None:
        nonlocal come
        values = [Operation(Kind.STAMP, f"#sum:{writer}:{labels(user)}", Stamped(1.0, 1.0)) for user in range(2)]
        send(other, 1, *values, writer=writer)
        come += 1

    def come_and_go(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        count(f"{come}-b")
        send(other, 2, writer=f"{come - 1}-b", final=True)
        if writers:
            send(other, 2, writer=writers.pop(), final=True)
        return original(*args, **kwargs)

    for writer in writers:
        count(writer)
    driver, name = driver_call(storage)
    monkeypatch.setattr(driver, name, partial(come_and_go, getattr(driver, name)))
    while writers:
        least = come
        fields = storage.read().metrics["m"].items()
        for user in range(2):
            own = [value for field, value in fields if field.startswith("#sum:") and field.endswith(labels(user))]
            assert least <= sum(float(value.split(" ")[0]) for value in own) <= come


def test_a_removal_looks_at_no_other_series(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A removal by all labels finds a child without a look at the other series, whatever their number."""

    class Children(dict[Any, Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("it looked at all children")

    pdc.setup(sqlite=tmp_path / "metrics.db")
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    for path in "abc":
        hits.labels(path).inc()
    hits._metrics = Children(hits._metrics)
    hits.remove("b")
    assert set(dict.keys(hits._metrics)) == {("a",), ("c",)}


def test_removals_of_a_metric_are_sent_together(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of removals are one pass over the metric, and later updates start the series again."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["path", "by"], registry=registry)
    for number in range(600):
        hits.labels(f"/{number}", str(number % 2)).inc()
    pdc.flush()
    batches: list[Batch] = []
    store = pdc.config.DEFAULT.required()
    apply = store.apply

    def record(batch: Batch) -> Outcome:
        batches.append(batch)
        return apply(batch)

    monkeypatch.setattr(store, "apply", record)
    for number in range(0, 600, 2):
        hits.remove(f"/{number}", "0")
        hits.remove_by_labels({"path": f"/{number + 1}"})
    hits.labels("/0", "0").inc(2)
    hits.labels("/1", "1").inc(3)
    pdc.flush()
    assert len(batches) == 1
    (metric,) = hits.collect()
    totals = [sample for sample in metric.samples if sample.name == "hits_total"]
    assert [(sample.labels["path"], sample.value) for sample in totals] == [("/0", 2.0), ("/1", 3.0)]


def test_labels_are_spelled_as_json(another: Open) -> None:
    """A series with any label names is found among the fields of its buckets, and the other way round."""
    random_numbers = random.Random(3)
    names = ["a", "kz", "l", "lD", "ld", "lea", "lf", "le_", "z", "A", "", 'l"', '"', "\\", "é", "lé", "a.b"]
    values = ["", ",", '"', "\\", '{"le":"1"', ',"le":"1",', "é", "le", "x" * 9]
    for _ in range(300):
        chosen = {name: random_numbers.choice(values) for name in random_numbers.sample(names, random_numbers.randrange(5))}
        series, bucket = spell(chosen), spell({**chosen, "le": "+Inf"})
        assert "+Inf".join(around_bound(series)) == bucket
        assert without_bound(bucket) == (series, "+Inf")
        assert series_of(f"_bucket:{bucket}") == series_of(f"_sum:{series}") == series
    storage = another()
    every = dict.fromkeys(names, '"')
    send(
        storage,
        1,
        Operation(Kind.ADD, f"_bucket:{spell({**every, 'le': '1'})}", 1.0),
        Operation(Kind.ADD, f"_sum:{spell(every)}", 1.0),
    )
    for name in names:
        send(storage, 2 + names.index(name), Operation(Kind.DELETE, spell({name: "\\"})))
    assert len([field for field in storage.read().metrics["m"] if "{" in field]) == 2
    send(storage, 100, Operation(Kind.DELETE, spell(dict.fromkeys(('"', "é", "lea"), '"'))))
    assert not [field for field in storage.read().metrics["m"] if "{" in field]
