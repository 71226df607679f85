"""The command line: the findings of `pdc check`, each with its remedy."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import commands
import pytest
import redis
from commands import Done, Pdc
from conftest import RedisServer
from journals import Journal
from prometheus_client import CollectorRegistry

import pdc
from pdc.cli import findings_redis, findings_sqlite
from pdc.cli.findings import ERROR, OK, WARNING
from pdc.storage.redis.commands import reader_rights, writer_rights

command, shop = commands.command, commands.shop


def faults(done: Done) -> dict[str, list[str]]:
    """The findings that are no OK, by their subjects: level, text, remedy."""
    return {row[1]: [row[0], *row[2:]] for row in done.rows() if row[0] != OK}


def test_a_sound_storage_has_no_fault(shop: dict[str, Any], command: Pdc) -> None:
    """Where all is well the exit code is 0, and each subject is named, with the cost of a scrape."""
    done = command("check")
    assert (faults(done), done.code) == ({}, 0)
    subjects = {row[1]: row[2] for row in done.rows()}
    assert {"version", "rights", "scrape", "writers", "journals"} <= subjects.keys()
    samples, size = len(pdc.generate_latest().decode().splitlines()), len(pdc.generate_latest())
    assert samples > int(subjects["scrape"].split()[0]) > 0
    assert f"{size:,} bytes" in subjects["scrape"]
    assert subjects["writers"].startswith("1 process alive")
    assert ("clock" in subjects) == ("redis" in shop)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_storage_that_cannot_be_reached_is_an_error(command: Pdc) -> None:
    """The one error has the remedy, the exit code is 1, and nothing else is tried."""
    done = command("check", "--redis", "redis://:secret@127.0.0.1:1/0", at=None)
    assert done.code == 1
    assert [*faults(done)] == ["reach"]
    assert "Check that it runs" in faults(done)["reach"][1]
    assert "secret" not in done.output + done.errors


def test_nobody_who_writes_is_a_warning(storage: dict[str, Any], command: Pdc) -> None:
    """A storage without living processes is a warning: its programs may use another one."""
    pdc.setup(**storage)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    pdc.shutdown()
    done = command("check")
    assert (done.code, faults(done)["writers"][0]) == (0, WARNING)
    assert "check that the programs which count use this storage" in faults(done)["writers"][2]


def test_a_metric_that_no_page_can_show_is_an_error(shop: dict[str, Any], command: Pdc) -> None:
    """Foreign data makes scrapes a 503, and its metric and the remedy are named; `show` shows the others."""
    if "sqlite" in shop:
        with sqlite3.connect(shop["sqlite"]) as connection:
            connection.execute("UPDATE pdc_metrics SET value = 'nonsense' WHERE metric_key = 'orders' AND subkey = '#meta'")
        connection.close()
    else:
        with redis.Redis.from_url(shop["redis"]) as client:
            client.hset("prometheus_test_orders", "#meta", "nonsense")
    done = command("check")
    assert (done.code, faults(done)["scrape"][0]) == (1, ERROR)
    assert "metric 'orders' holds something that pdc did not write" in faults(done)["scrape"][1]
    assert len(command("show").rows()) == 5


def test_a_metric_that_is_hidden_is_a_warning(storage: dict[str, Any], registry: CollectorRegistry, command: Pdc) -> None:
    """Of two metrics that share the name of a sample, the one that no page shows is named."""
    pdc.setup(**storage)
    pdc.Counter("orders", "Orders.", registry=registry).inc()
    pdc.Gauge("orders_total", "Orders.", registry=None).set(1)
    done = command("check")
    assert faults(done)["metrics"][0] == WARNING
    assert faults(done)["metrics"][1].startswith("orders_total is on no page")


def test_journals_of_dead_processes_are_named(
    journal: Journal, storage: dict[str, Any], command: Pdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal of a killed process is a warning until a process has sent it; that of a living one is none."""
    monkeypatch.setenv("PDC_JOURNAL", str(journal.folder))
    pdc.setup(**storage, flush_interval=60, journal=journal.folder)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    assert "journals" not in faults(command("check"))
    pdc.shutdown()
    journal.leave("hits.labels('/').inc()")
    found = faults(command("check"))["journals"]
    assert found[0] == WARNING
    assert f"1 journal of dead processes in {journal.folder}" in found[1]


@pytest.fixture
def limited(own_redis_server: RedisServer) -> RedisServer:
    """A server of a test, with a metric that expires."""
    pdc.setup(redis=own_redis_server.url, redis_prefix="shop")
    pdc.Counter("orders", "Orders.", registry=None).inc()
    return own_redis_server


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_findings_about_a_redis(limited: RedisServer, command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction, keys of others, other prefixes, no prefix and clocks have their findings."""
    at = {"redis": limited.url, "redis_prefix": "shop"}
    with limited.client() as client:
        client.set("prometheus_shop_stray", "text")
        client.zadd("prometheus#other", {"#id:0": 0})
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        monkeypatch.setattr(findings_redis, "MOST_CLOCK_SECONDS", -1.0)
        done = command("check", at=at)
        found = faults(done)
        assert done.code == 1
        assert found["memory"][0] == ERROR
        assert "maxmemory-policy allkeys-lru may evict metrics" in found["memory"][1]
        assert "synchronise both clocks" in found["clock"][2]
        assert found["keys"][1] == "keys that begin as ours do hold something else: prometheus_shop_stray"
        assert "other prefixes of this database: 'other'" in done.output
        client.config_set("maxmemory-policy", "volatile-lru")
        assert faults(command("check", at=at))["memory"][0] == ERROR
        client.config_set("maxmemory-policy", "noeviction")
        assert "memory" not in faults(command("check", at=at))
        used = int(client.info("memory")["used_memory"])
        for most, level in ((used * 1.05, "warning"), (used / 2, ERROR)):
            client.config_set("maxmemory", int(most))
            assert faults(command("check", at=at))["memory"][::2] == [level, "raise maxmemory"]
        client.config_set("maxmemory", "100mb")
        assert "prefix" not in faults(command("check", at=at))
        assert "no prefix" in faults(command("check", at={**at, "redis_prefix": ""}))["prefix"][1]


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("prefix", "other"), [("shop", "shop_admin"), ("shop_admin", "shop")])
def test_prefixes_that_share_keys_are_named(limited: RedisServer, command: Pdc, prefix: str, other: str) -> None:
    """One prefix is another one and an underscore and more: a metric of each may have the same key."""
    with limited.client() as client:
        client.zadd(f"prometheus#{other}", {"#id:0": 0})
    done = command("check", at={"redis": limited.url, "redis_prefix": prefix})
    text = f"with the prefix {other!r} some metrics share a key: 'admin_hits' of 'shop' and 'hits' of 'shop_admin'"
    assert faults(done)["prefix"] == ["warning", text, "the later one is refused: choose a prefix such as 'shop-admin'"]
    assert done.code == 0


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("free_threaded", [False, True])
def test_a_driver_without_hiredis_is_named(
    limited: RedisServer, command: Pdc, monkeypatch: pytest.MonkeyPatch, free_threaded: bool
) -> None:
    """Replies that Python parses are no fault, and the remedy is the extra, but not where it would turn the GIL on."""
    monkeypatch.setattr(findings_redis, "HIREDIS_AVAILABLE", False)
    monkeypatch.setattr(findings_redis, "FREE_THREADED", free_threaded)
    done = command("check", "--redis", limited.url, "--prefix", "shop", at=None)
    (driver,) = [row for row in done.rows() if row[1] == "driver"]
    assert driver[:3] == [OK, "driver", f"redis-py {redis.__version__} without hiredis: a large scrape takes longer"]
    assert ("prometheus-distributed-client[redis]" in driver[3]) != free_threaded
    assert done.code == 0


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_findings_about_the_rights_of_a_user(limited: RedisServer, command: Pdc) -> None:
    """A user who may only read is a warning that names the missing rights; what it may not ask is unknown, not an error."""
    with limited.client() as client:
        for name, rights in (("reader", reader_rights()), ("writer", writer_rights())):
            client.execute_command("ACL", "SETUSER", name, "on", ">pw", "-@all", *rights.split())
    at = {"redis": limited.url.replace("redis://", "redis://reader:pw@"), "redis_prefix": "shop"}
    done = command("check", at=at)
    assert done.code == 0
    assert faults(done)["rights"][1:] == ["this user may read, but not count", f"a user that counts needs {writer_rights()}"]
    assert "this user may not call INFO" in done.output
    for arguments in (["show"], ["get", "orders"], ["dump"]):
        assert command(*arguments, at=at).code == 0
    at = {"redis": limited.url.replace("redis://", "redis://writer:pw@"), "redis_prefix": "shop"}
    assert "rights" not in faults(command("check", at=at))


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_replica_is_named(limited: RedisServer, tmp_path: Path, command: Pdc) -> None:
    """A replica is good for scrapes, and nobody can count there."""
    (tmp_path / "replica").mkdir()
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(limited.port))
    try:
        found = faults(command("check", at={"redis": replica.url, "redis_prefix": "shop"}))
        assert found["role"] == [WARNING, "this is a replica", "programs that count need the primary; this one is for scrapes"]
    finally:
        replica.stop()


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_findings_about_a_file(shop: dict[str, Any], command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights, a network file system, a full disk, a long log and another mode of the journal have their findings."""
    path = Path(shop["sqlite"])
    monkeypatch.setattr(os, "access", lambda _, mode, **_options: mode != os.W_OK)
    monkeypatch.setattr(findings_sqlite, "_file_system", lambda _: "nfs4")
    monkeypatch.setattr(findings_sqlite, "LEAST_FREE", 2.0)
    monkeypatch.setattr(findings_sqlite, "WAL_BYTES", 0)
    done = command("check")
    assert done.code == 1
    by_text = {row[2]: row[0] for row in done.rows() if row[0] != OK}
    assert by_text == {
        f"this user may not write {path} and {path.parent}": WARNING,
        "the file is on a network (nfs4), where WAL does not work": ERROR,
        **{text: WARNING for text in by_text if "B are free" in text or text.startswith(f"{path}-wal has")},
    }
    assert len(by_text) == 4


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("free", "level", "text"),
    [
        (0, ERROR, "0 bytes of 1.0 MiB are free"),
        (4095, ERROR, "4.0 KiB of 1.0 MiB are free"),
        (4096, WARNING, "4.0 KiB of 1.0 MiB are free"),
        (2**19, OK, "512.0 KiB of 1.0 MiB are free"),
    ],
)
def test_the_free_space_of_the_disk(free: int, level: str, text: str, command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space has a unit that fits. It is an error where SQLite cannot write one page more."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20 - free, free))
    rows = [row for row in command("check").rows() if row[1] == "disk"]
    assert [row[:3] for row in rows] == [[level, "disk", text]]


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_file_that_is_no_database_is_an_error(storage: dict[str, Any], command: Pdc) -> None:
    """The finding names the file; it stays as it is."""
    Path(storage["sqlite"]).write_text("some text that is no database at all")
    done = command("check")
    assert done.code == 1
    assert "file is not a database" in faults(done)["file"][1]
    assert Path(storage["sqlite"]).read_text().startswith("some text")


def test_the_type_of_a_file_system_is_that_of_the_closest_mount() -> None:
    """The list of mounts of this host names one for each path."""
    assert findings_sqlite._file_system(Path("/proc/self/status")) == "proc"
