"""The commands that move data: from one storage to another one, and from version 2."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Pdc
from conftest import RedisServer
from helpers import Tally
from natives import coarsen
from prometheus_client import CollectorRegistry

import pdc
from pdc.family import Fields
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

command, shop = commands.command, commands.shop


@pytest.fixture
def other(storage: dict[str, Any], redis_server: RedisServer, tmp_path: Path) -> dict[str, Any]:
    """A storage of the other kind."""
    if "sqlite" in storage:
        return {"redis": redis_server.url, "redis_prefix": "other"}
    return {"sqlite": str(tmp_path / "other.db")}


def ends(source: dict[str, Any], target: dict[str, Any]) -> list[str]:
    """The arguments of a copy between these storages."""
    arguments = [each.get("sqlite") or each["redis"] for each in (source, target)]
    return [*arguments, "--from-prefix", source.get("redis_prefix", ""), "--to-prefix", target.get("redis_prefix", "")]


def copied(command: Pdc, source: dict[str, Any], target: dict[str, Any]) -> str:
    """Copy, and return the report."""
    done = command("copy", *ends(source, target), at=None)
    assert (done.code, done.output) == (0, "")
    return done.errors


def stored(storage: dict[str, Any]) -> dict[str, Fields]:
    """The fields of the storage with these arguments of `pdc.setup`."""
    is_sqlite = "sqlite" in storage
    opened = SqliteStorage(storage["sqlite"]) if is_sqlite else RedisStorage(storage["redis"], storage["redis_prefix"])
    with closing(opened):
        return opened.read().metrics


def page(command: Pdc, at: dict[str, Any]) -> list[str]:
    """The text of a storage without the gauge of living processes, which no copy has."""
    return [line for line in command("dump", at=at).output.splitlines() if "busy" not in line]


def test_a_copy_has_the_same_page(shop: dict[str, Any], other: dict[str, Any], command: Pdc) -> None:
    """Both storages show the same text, also after a second copy; gauges of living processes are left out, by name."""
    report = copied(command, shop, other)
    assert "4 metrics copied, 5 series had changed" in report
    assert "left out, as they are values of living processes: busy" in report
    assert page(command, other) == page(command, shop)
    assert "4 metrics copied, 0 series had changed" in copied(command, shop, other)
    assert page(command, other) == page(command, shop)


def test_each_copy_adds_the_rest_while_both_storages_count(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """Programs that move one after the other lose no update and double none, whenever the copies run."""
    first, second = Tally(registry), Tally(CollectorRegistry())
    for _ in range(3):
        pdc.setup(**storage)
        first.update()
        copied(command, storage, other)
        pdc.setup(**other)
        second.update()
        copied(command, storage, other)
    pdc.setup(**storage)
    first.update()
    copied(command, storage, other)
    text = command("dump", at=other).output
    assert 'hits_total{path="/"} 14.0' in text
    assert 'wait_bucket{le="1.0"} 7.0' in text
    assert "wait_count 14.0" in text
    assert "wait_sum 14.0" in text
    assert "size_count 7.0" in text


def test_a_copy_after_native_buckets_became_coarser(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """Counts that are copied, and then added to coarser buckets, are not copied again; later ones are."""
    pdc.setup(**storage)
    wait = pdc.Histogram("wait", "Wait.", ["till"], buckets=(), native=True, registry=registry)
    source = pdc.config.DEFAULT.required()
    for sequence, most in enumerate((3, 3, 2), 1):
        for number in (0.0, 1.1, 1.2, 1.5, 2.1, -1.5):
            wait.labels("1").observe(number)
        copied(command, storage, other)
        assert coarsen(source, "wait", most, sequence) == 3
        wait.labels("1").observe(1.2)
        for changed in (1, 0):
            assert f"{changed} series had changed" in copied(command, storage, other)
            assert page(command, other) == page(command, storage)
    wait.clear()
    wait.labels("1").observe(1.2)
    copied(command, storage, other)
    assert 'wait_count{till="1"} 22.0' in command("dump", at=other).output


def test_a_copy_that_was_broken_off_goes_on(
    shop: dict[str, Any], other: dict[str, Any], command: Pdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure in the middle, also one after the storage has the batch, the next copy brings exactly the rest."""
    kind = SqliteStorage if "sqlite" in other else RedisStorage
    apply, calls = kind.apply, iter(range(100))

    def fail(self: Any, batch: Any) -> Any:
        outcome = apply(self, batch)
        if next(calls) == 2:
            raise pdc.StorageError("the storage is gone")
        return outcome

    monkeypatch.setattr(kind, "apply", fail)
    arguments = [each.get("sqlite") or each["redis"] for each in (shop, other)]
    prefixes = ("--from-prefix", shop.get("redis_prefix", ""), "--to-prefix", other.get("redis_prefix", ""))
    assert command("copy", *arguments, *prefixes, at=None).code == 1
    copied(command, shop, other)
    assert page(command, other) == page(command, shop)


def test_values_of_the_dead_are_one_value(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """Gauges whose values outlive processes have the merged value, which a second copy replaces."""
    pdc.setup(**storage)
    gauges = {
        mode: pdc.Gauge(f"level_{mode}", "Level.", multiprocess_mode=mode, registry=registry)
        for mode in ("sum", "min", "max", "mostrecent")
    }
    for value in (4, 6):
        for gauge in gauges.values():
            gauge.set(value)
        copied(command, storage, other)
        text = command("dump", at=other).output
        assert [f"level_{mode} {value}.0" in text for mode in gauges] == [True] * 4


def test_a_shared_gauge_stays_as_the_target_set_it(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """A gauge follows the source until a process sets it in the target."""
    gauge = pdc.Gauge("stock", "Stock.", registry=registry)

    def set_there(at: dict[str, Any], value: float) -> None:
        pdc.setup(**at)
        gauge.set(value)

    def value_there() -> str:
        return command("dump", at=other).output.splitlines()[-1]

    for value in (5, 7):
        set_there(storage, value)
        copied(command, storage, other)
        assert value_there() == f"stock {value}.0"
    set_there(other, 100)
    set_there(storage, 8)
    copied(command, storage, other)
    assert value_there() == "stock 100.0"


def test_a_state_that_looks_like_a_number_stays_a_text(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """An Enum has the same state in both storages, whatever its states are called, and follows the source."""
    pdc.setup(**storage)
    level = pdc.Enum("level", "Level.", states=["1", "2"], registry=registry)
    for state in ("1", "2"):
        level.state(state)
        copied(command, storage, other)
        assert f'level{{level="{state}"}} 1.0' in command("dump", at=other).output


def test_a_series_that_began_again_adds_up(
    storage: dict[str, Any], other: dict[str, Any], registry: CollectorRegistry, command: Pdc
) -> None:
    """The counts of a series that was deleted and came back come on top, as `increase` of Prometheus counts them."""
    pdc.setup(**storage)
    orders = pdc.Counter("orders", "Orders.", ["till"], registry=registry)
    for amount in (5, 7):
        orders.labels("1").inc(amount)
        copied(command, storage, other)
        orders.remove("1")
    assert 'orders_total{till="1"} 12.0' in command("dump", at=other).output


def test_a_copy_leaves_the_source_as_it_is(shop: dict[str, Any], other: dict[str, Any], command: Pdc) -> None:
    """No field of the source changes; a deleted series of the target leaves nothing behind."""
    before = stored(shop)
    copied(command, shop, other)
    assert stored(shop) == before
    assert command("delete", 'orders{till="1"}', "--yes", at=other).code == 0
    assert not [field for field in stored(other)["orders"] if '"1"' in field]


def test_a_copy_refuses_another_type_and_itself(shop: dict[str, Any], other: dict[str, Any], command: Pdc) -> None:
    """Metrics of one name and two types stay apart, and a storage is not copied to itself."""
    pdc.setup(**other)
    pdc.Gauge("orders", "Orders.", ["till"], registry=None).labels("1").set(5)
    done = command("copy", *ends(shop, other), at=None)
    assert (done.code, "'orders' is counter (shared) in FROM and gauge (shared) in TO" in done.errors) == (1, True)
    assert command("copy", *ends(shop, shop), at=None).code == 2


def test_a_copy_of_nothing_is_a_mistake(storage: dict[str, Any], other: dict[str, Any], command: Pdc) -> None:
    """A prefix or a file without metrics is an error that names the remedy: the program counts elsewhere."""
    pdc.setup(**storage)
    pdc.Counter("hits", "Hits.", registry=None).inc()
    pdc.clear()
    done = command("copy", *ends(storage, other), at=None)
    assert (done.code, ", has no metrics" in done.errors) == (1, True)
    assert ("`pdc check` lists the prefixes" in done.errors) == ("redis" in storage)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_copy_to_an_address_makes_no_file(shop: dict[str, Any], command: Pdc) -> None:
    """A URL of Redis without its scheme is refused; a file of that name is named with its folder."""
    done = command("copy", shop["sqlite"], "localhost:6379", at=None)
    assert (done.code, "did you mean redis://localhost:6379?" in done.errors) == (2, True)
    assert not Path("localhost:6379").exists()
    assert command("copy", shop["sqlite"], "./localhost:6379", at=None).code == 0
    assert Path("localhost:6379").exists()


VERSION2 = {
    "orders": {'_total:{"shop":"a"}': 3.0, '_total:{"shop":"b"}': 4.0, '_created:{"shop":"a"}': 1.5},
    "level": {":{}": 2.5},
    "size": {"_count:{}": 2.0, "_sum:{}": 7.0},
    "wait": {'_bucket:{"le":"0.1"}': 1.0, '_bucket:{"le":"+Inf"}': 3.0, "_count:{}": 3.0, "_sum:{}": 9.0},
}


def write_version2(storage: dict[str, Any], metrics: dict[str, dict[str, float]]) -> None:
    """Write fields as version 2 does."""
    if "sqlite" in storage:
        connection = sqlite3.connect(storage["sqlite"])
        columns = "metric_key TEXT NOT NULL, subkey TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (metric_key, subkey)"
        connection.execute(f"CREATE TABLE IF NOT EXISTS metrics ({columns})")
        rows = [(name, field, value) for name, fields in metrics.items() for field, value in fields.items()]
        connection.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
        connection.commit()
        connection.close()
        return
    with RedisStorage(storage["redis"]).client as client:
        for name, fields in metrics.items():
            client.hset(f"{storage['redis_prefix']}_{name}", mapping={field: repr(value) for field, value in fields.items()})


def test_migrate_takes_over_at_once(storage: dict[str, Any], command: Pdc) -> None:
    """All metrics of version 2 are there without a program that declares them, once; their types come from their fields."""
    write_version2(storage, VERSION2)
    dry = command("migrate", "--dry-run")
    assert [row[0] for row in dry.rows()] == ["level", "orders", "size", "wait"]
    assert command("dump").output == ""
    done = command("migrate")
    assert [row[1:] for row in done.rows()] == [
        ["gauge", "1", "taken over"],
        ["counter", "3", "taken over"],
        ["summary", "2", "taken over"],
        ["histogram", "4", "taken over"],
    ]
    assert done.code == 0
    text = command("dump").output
    for line in ("level 2.5", 'orders_total{shop="b"} 4.0', "size_sum 7.0", 'wait_bucket{le="0.1"} 1.0', "wait_count 3.0"):
        assert f"{line}\n" in text
    assert [row[-1] for row in command("migrate").rows()] == ["is there already"] * 4
    assert command("dump").output == text


def test_a_program_goes_on_from_migrated_data(storage: dict[str, Any], registry: CollectorRegistry, command: Pdc) -> None:
    """The first program that declares a metric brings its help, and counts on."""
    write_version2(storage, VERSION2)
    command("migrate")
    pdc.setup(**storage)
    pdc.Counter("orders", "Orders of shops.", ["shop"], registry=registry).labels("a").inc()
    text = pdc.generate_latest().decode()
    assert "# HELP orders_total Orders of shops.\n" in text
    assert 'orders_total{shop="a"} 4.0\n' in text


def test_migrate_names_what_it_cannot_take_over(storage: dict[str, Any], command: Pdc) -> None:
    """A metric with fields that no type has is named with the reason, the others follow, and the exit code is 1."""
    write_version2(storage, {"good": {"_total:{}": 1.0}, "bad": {"_total:{}": 1.0, ":{}": 2.0}})
    done = command("migrate")
    assert done.code == 1
    assert done.rows() == [
        ["bad", "?", "2", "its fields begin with , _total, as those of no type do"],
        ["good", "counter", "1", "taken over"],
    ]
    assert "good_total 1.0" in command("dump").output
    assert json.loads(command("dump", "--format", "json").output)[0]["name"] == "good"
