"""Upgrades from version 2 and back, with its last release in an environment of its own."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, RedisServer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import pdc
import pdc.config
from pdc.family import Family
from pdc.storage import Storage
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage
from pdc.storage.version2 import taken_over

PYTHON = ROOT / os.environ.get("VERSION2", ".venv-version2") / "bin" / "python"

DECLARE = """
orders = {module}Counter("orders", "Orders.", ["shop", "item"], registry=registry)
jobs = {module}Counter("jobs_total", "Jobs.", registry=registry)
level = {module}Gauge("level", "Level.", registry=registry)
rooms = {module}Gauge("rooms", "Rooms.", ["room"], registry=registry)
size = {module}Summary("size", "Size.", registry=registry)
sizes = {module}Summary("sizes", "Sizes.", ["kind"], registry=registry)
latency = {module}Histogram("latency", "Seconds.", ["route"], buckets=(0.1, 1, 5), registry=registry)
waits = {module}Histogram("waits", "Seconds.", registry=registry)
"""
COUNT = r"""
for number in range(3):
    orders.labels("a\"b\\c\n", "é").inc(0.1)
    jobs.inc()
    level.inc(0.1)
    size.observe(number / 7)
    waits.observe(number * 0.3)
orders.labels("b", "").inc(2**52)
rooms.labels("x").set(-1e-30)
sizes.labels("k").observe(12345.678)
for seconds in (0.05, 0.1, 0.5, 0.7, 3, 9):
    latency.labels("/").observe(seconds)
latency.labels("/é").observe(0.3)
"""


class Version2(NamedTuple):
    """A storage that programs of version 2 and of version 3 use."""

    options: dict[str, Any]
    """The arguments of `pdc.setup`."""
    setup: str
    """The lines of version 2 that set it up."""
    stored: Callable[[], Any]
    """Returns all data of version 2 in it."""

    def start(self, source: str) -> subprocess.Popen[str]:
        """Start a program of version 2, which has `module` and `registry`, and `show` to print a scrape."""
        if not PYTHON.is_file():
            pytest.fail(f"version 2 is missing: run `make {PYTHON.parent.parent.name}/version2.stamp`, or name it by VERSION2")
        source = self.setup + DECLARE.format(module="module.") + textwrap.dedent(source)
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [PYTHON, "-I", "-c", source], env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, source: str) -> str:
        """Run one, and return its output."""
        process = self.start(source)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return output

    def start_next(self, source: str, first: str = "") -> subprocess.Popen[str]:
        """Start a program of version 3 with the same metrics; its first lines run before they are declared."""
        setup = f"pdc.setup(journal=False, **{self.options})\n"
        source = "\n".join([HEAD, first, setup, DECLARE.format(module="pdc."), textwrap.dedent(source)])
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", source], env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def storage(self) -> Storage:
        """A storage like those of other processes."""
        if "sqlite" in self.options:
            return SqliteStorage(self.options["sqlite"])
        return RedisStorage(self.options["redis"], self.options["redis_prefix"])


HEAD = """
import os
import pdc
from prometheus_client import CollectorRegistry, generate_latest
registry = CollectorRegistry()
"""
SETUP = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_distributed_client import setup
registry = CollectorRegistry()
def show(): print(generate_latest(registry).decode(), flush=True)
"""
SETUP_REDIS = """
import redis
import prometheus_distributed_client.redis as module
setup(redis=redis.Redis.from_url({url!r}), {options})
"""
SETUP_SQLITE = """
import prometheus_distributed_client.sqlite as module
setup(sqlite={path!r})
"""


@pytest.fixture(params=["sqlite", "redis", "redis-prefix"])
def version2(request: pytest.FixtureRequest, tmp_path: Path) -> Version2:
    """A storage of each kind that both versions can use."""
    if request.param == "sqlite":
        path = str(tmp_path / "metrics.db")

        def rows() -> list[Any]:
            connection = sqlite3.connect(path)
            found = connection.execute("SELECT * FROM metrics ORDER BY 1, 2").fetchall()
            connection.close()
            return found

        return Version2({"sqlite": path}, SETUP + SETUP_SQLITE.format(path=path), rows)
    server: RedisServer = request.getfixturevalue("redis_server")
    prefix = "myapp" if request.param == "redis-prefix" else ""

    def hashes() -> dict[bytes, Any]:
        with server.client() as client:
            keys = client.keys(f"{prefix or 'prometheus'}_[^#]*")
            return {key: client.hgetall(key) for key in keys}

    options = f"redis_prefix={prefix!r}" if prefix else ""
    setup = SETUP + SETUP_REDIS.format(url=server.url, options=options)
    return Version2({"redis": server.url, "redis_prefix": prefix}, setup, hashes)


def samples(text: str) -> dict[tuple[str, str], float]:
    """The values of a scrape, which must be valid."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value for sample in found}
    assert len(values) == len(found)
    return values


def declared(registry: CollectorRegistry) -> dict[str, Any]:
    """The metrics of this process."""
    names: dict[str, Any] = {"pdc": pdc, "registry": registry}
    exec(DECLARE.format(module="pdc."), names)
    return names


def test_every_type_is_taken_over_exactly_and_version_2_keeps_its_own(version2: Version2, registry: CollectorRegistry) -> None:
    """A scrape shows the exact numbers of version 2, and counts on; version 2 finds its own, and counts on, too."""
    before = samples(version2.run(COUNT + "show()"))
    assert len(before) > 40
    stored = version2.stored()
    pdc.setup(**version2.options)
    metrics = declared(registry)
    assert samples(generate_latest(registry).decode()) == before
    assert before.items() <= samples(pdc.generate_latest().decode()).items()
    exec(COUNT, metrics)
    after = samples(generate_latest(registry).decode())
    assert after["latency_count", '{"route": "/"}'] == 12
    assert after["latency_bucket", '{"le": "1.0", "route": "/"}'] == 8
    assert after["jobs_total", "{}"] == 6
    assert after["level", "{}"] == before["level", "{}"] + 0.1 + 0.1 + 0.1
    assert version2.stored() == stored
    assert samples(version2.run("show()")) == before
    again = samples(version2.run(COUNT + "show()"))
    assert (again["jobs_total", "{}"], again["latency_count", '{"route": "/"}']) == (6, 12)
    assert samples(generate_latest(registry).decode()) == after


def test_a_large_metric_is_taken_over_in_pieces(
    redis_server: RedisServer, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call has more fields than other clients of the server should wait for; no temporary data stays."""
    monkeypatch.setattr("pdc.storage.redis.writing.MOST_TEXTS", 4)
    with redis_server.client() as client:
        client.hset("myapp_orders", mapping={f'_total:{{"user":"{user}"}}': str(user) for user in range(30)})
        pdc.setup(redis=redis_server.url, redis_prefix="myapp")
        orders = pdc.Counter("orders", "Orders.", ["user"], registry=registry)
        shown = samples(generate_latest(registry).decode())
        assert [shown["orders_total", json.dumps({"user": str(user)})] for user in range(30)] == list(range(30))
        orders.remove("7")
        assert len(samples(generate_latest(registry).decode())) == 29
        assert client.ttl("prometheus_myapp_orders") > 3000
        assert set(client.keys()) == {b"myapp_orders", b"prometheus_myapp_orders", b"prometheus#myapp"}


def test_all_of_a_batch_is_taken_over(version2: Version2, registry: CollectorRegistry) -> None:
    """A process that flushes rarely takes over many metrics in one batch; its removals apply to them."""
    before = samples(version2.run(COUNT + "show()"))
    pdc.setup(**version2.options, flush_interval=60)
    metrics = declared(registry)
    metrics["jobs"].inc()
    metrics["rooms"].remove("x")
    shown = samples(generate_latest(registry).decode())
    expected = {key: value for key, value in before.items() if key[0] != "rooms"}
    assert shown == {**expected, ("jobs_total", "{}"): 4}


def test_beside_version_2_any_value_can_be_stored(version2: Version2, registry: CollectorRegistry) -> None:
    """Texts, and numbers that version 2 cannot store, are stored beside its own data."""
    version2.run("jobs.inc()")
    pdc.setup(**version2.options)
    pdc.Gauge("nothing", "Not a number.", registry=registry).set(math.nan)
    pdc.Enum("mood", "Mood.", states=["1", "2"], registry=registry).state("2")
    pdc.Info("build", "Build.", registry=registry).info({"version": "1"})
    shown = pdc.generate_latest().decode()
    assert {"nothing NaN", 'mood{mood="2"} 1.0', 'build_info{version="1"} 1.0'} <= set(shown.splitlines())


def test_cleared_metrics_are_not_taken_over_again(version2: Version2, registry: CollectorRegistry) -> None:
    """After `clear` metrics begin at 0, also in the next process."""
    version2.run(COUNT)
    pdc.setup(**version2.options)
    metrics = declared(registry)
    for _ in range(2):
        pdc.clear()
        assert samples(pdc.generate_latest().decode())["jobs_total", "{}"] == 0
        assert ("orders_total", '{"item": "", "shop": "b"}') not in samples(pdc.generate_latest().decode())
    pdc.setup(**version2.options)
    metrics["jobs"].inc()
    assert samples(pdc.generate_latest().decode())["jobs_total", "{}"] == 1


def test_both_versions_run_side_by_side(version2: Version2, registry: CollectorRegistry) -> None:
    """While both count and are scraped, each sees valid data of its own, also of metrics that the other began."""
    load = """
    fresh = module.Counter("fresh", "New in version 3.", registry=registry)
    for number in range(100):
        jobs.inc()
        latency.labels("/").observe(0.2)
        fresh.inc()
        if number % 25 == 0: show()
    show()
    """
    version2.run("jobs.inc(1000)")
    pdc.setup(**version2.options)
    metrics = declared(registry)
    pdc.Counter("fresh", "New in version 3.", registry=registry).inc()
    process = version2.start(load)
    count = 0
    while process.poll() is None:
        count += 1
        metrics["jobs"].inc()
        metrics["latency"].labels("/").observe(0.2)
        if count % 20 == 0:
            assert samples(pdc.generate_latest().decode())["jobs_total", "{}"] == 1000 + count
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    scrapes = [samples(text) for text in output.strip().split("\n\n")]
    assert [scrape["jobs_total", "{}"] for scrape in scrapes] == [1001, 1026, 1051, 1076, 1100]
    assert (scrapes[-1]["fresh_total", "{}"], scrapes[-1]["latency_count", '{"route": "/"}']) == (100, 100)
    shown = samples(pdc.generate_latest().decode())
    assert (shown["fresh_total", "{}"], shown["latency_count", '{"route": "/"}']) == (1, count)


EIGHT = """
read, write = os.pipe()
children = []
for _ in range(8):
    children.append(os.fork())
    if not children[-1]:
        os.close(write)
        os.read(read, 1)
        break
else:
    os.close(write)
    raise SystemExit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.parametrize("version2", ["sqlite", "redis"], indirect=True)
def test_processes_that_start_at_once_take_over_once(version2: Version2) -> None:
    """Of 8 processes that begin at the same moment one takes over; all their counts add up with those of version 2."""
    before = samples(version2.run(COUNT + "show()"))
    source = """
    for _ in range(10):
        jobs.inc()
        latency.labels("/").observe(0.5)
    """
    process = version2.start_next(source, EIGHT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    pdc.setup(**version2.options)
    shown = samples(pdc.generate_latest().decode())
    assert shown["jobs_total", "{}"] == before["jobs_total", "{}"] + 80
    assert (
        shown["latency_bucket", '{"le": "1.0", "route": "/"}'] == before["latency_bucket", '{"le": "1.0", "route": "/"}'] + 80
    )
    assert shown["latency_sum", '{"route": "/"}'] == pytest.approx(before["latency_sum", '{"route": "/"}'] + 40)


KILL = """
import signal
from pdc.storage.redis.writing import Writer
import pdc.storage.sqlite.storage

def kill_at(owner, method, name_of):
    original = getattr(owner, method)
    def take_over(*args):
        if {before} and name_of(*args) == "latency":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args)
        if name_of(*args) == "latency":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, method, take_over)

kill_at(Writer, "take_over", lambda writer, update: update.name)
kill_at(pdc.storage.sqlite.storage, "take_over", lambda rows, meta: rows.name)
"""


@pytest.mark.parametrize("version2", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_is_killed_while_it_takes_over_leaves_all_or_nothing(version2: Version2, when: str) -> None:
    """The next process shows each number once, wherever the first one was killed."""
    version2.run("latency.labels('/').observe(0.5); jobs.inc(7)")
    process = version2.start_next("", KILL.format(before=when == "before"))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    pdc.setup(**version2.options)
    registry = CollectorRegistry()
    metrics = declared(registry)
    metrics["jobs"].inc()
    shown = samples(generate_latest(registry).decode())
    assert (shown["jobs_total", "{}"], shown["latency_count", '{"route": "/"}']) == (8, 1)


def test_a_metric_of_another_type_is_refused_with_one_line(
    version2: Version2, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric of another type starts anew, and the log gives the reason once; version 2 keeps its own data."""
    version2.run("""
    module.Gauge("other", "Other.", registry=registry).set(3)
    module.Histogram("third", "Third.", registry=registry).observe(3)
    """)
    stored = version2.stored()
    pdc.setup(**version2.options)
    metrics = [pdc.Counter(name, "Other.", registry=registry) for name in ("other", "third")]
    for _ in range(2):
        for metric in metrics:
            metric.inc(2)
        pdc.setup(**version2.options)
    shown = samples(generate_latest(registry).decode())
    assert (shown["other_total", "{}"], shown["third_total", "{}"]) == (4, 4)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for line, name, kind in zip(lines, ["other", "third"], ["gauge", "histogram"], strict=True):
        assert line.startswith(f"metric {name} starts anew, since what version 2 stored in ")
        assert line.endswith(f"cannot be taken over: it was a {kind} there and is declared as counter now")
    assert version2.stored() == stored


def test_version_2_that_comes_later_has_data_of_its_own(version2: Version2, registry: CollectorRegistry) -> None:
    """Metrics that version 3 was the first to store are not those of version 2, which counts and shows its own."""
    pdc.setup(**version2.options)
    jobs = pdc.Counter("jobs", "Jobs.", registry=registry)
    jobs.inc(5)
    assert samples(version2.run("jobs.inc(2)\nshow()"))["jobs_total", "{}"] == 2
    jobs.inc()
    assert samples(generate_latest(registry).decode())["jobs_total", "{}"] == 6
    assert samples(version2.run("show()"))["jobs_total", "{}"] == 2


def test_a_connection_of_the_application_is_beside_version_2_too(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A given connection has our table beside that of version 2, with any row factory."""
    path = tmp_path / "metrics.db"
    version2 = Version2({}, SETUP + SETUP_SQLITE.format(path=str(path)), list)
    before = samples(version2.run(COUNT + "show()"))
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    pdc.setup(sqlite=connection)
    declared(registry)
    assert samples(generate_latest(registry).decode()) == before
    assert samples(version2.run("show()")) == before
    connection.close()


def test_a_key_with_data_of_others_is_refused(
    redis_server: RedisServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of ours with data of others is never added to, and nothing is removed from it."""
    pdc.setup(redis=redis_server.url, redis_prefix="shop")
    with redis_server.client() as client:
        client.hset("prometheus_shop_second", "_total:{}", "5")
        second = pdc.Counter("second", "Second.", ["a"], registry=registry)
        second.labels("1").inc()
        second.remove("1")
        second.remove_by_labels({"a": "2"})
        assert client.hgetall("prometheus_shop_second") == {b"_total:{}": b"5"}
    assert "the key 'prometheus_shop_second' holds data of version 2 of this library, or of another program" in caplog.text


def test_a_reader_finds_what_was_taken_over_since_it_began(version2: Version2, registry: CollectorRegistry) -> None:
    """A process that only scrapes shows the metrics in the place that the first counting process has chosen."""
    version2.run("jobs.inc(7)")
    reader = version2.storage()
    assert reader.read().metrics == {}
    pdc.setup(**version2.options)
    pdc.Counter("jobs", "Jobs.", registry=registry).inc()
    assert reader.read(["jobs"]).metrics["jobs"]["_total:{}"] in (8.0, "8")
    assert reader.id() == pdc.config.DEFAULT.required().id() != ""
    reader.close()


META = {kind: Family("m", kind, "").meta for kind in ("counter", "gauge", "summary", "histogram", "info", "stateset")}


def test_buckets_never_go_down() -> None:
    """A bucket that a process has not stored yet, or that is no longer used, has at least the counts below it."""
    stored = {'_bucket:{"le":"0.1"}': "3", '_bucket:{"le":"1.0"}': "2", '_bucket:{"le":"+Inf"}': "5", "_count:{}": "6"}
    expected = {'_bucket:{"le":"0.1"}': 3.0, '_bucket:{"le":"+Inf"}': 3.0}
    assert taken_over(stored, META["histogram"]) == expected
    assert taken_over({"_count:{}": "2", "_sum:{}": "nan"}, META["histogram"]).keys() == {'_bucket:{"le":"+Inf"}', "_sum:{}"}


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ({"_total:{}": "1"}, "gauge"),
        ({":{}": "1"}, "stateset"),
        ({"_count:{}": "1"}, "info"),
        ({"_count:{}": "1", "_bucket:{}": "1"}, "histogram"),
        ({"_total:{}": "1", ":{}": "1"}, "counter"),
        ({"_total:{}": "one"}, "counter"),
        ({"_total:{": "1"}, "counter"),
        ({'_total:{"b":"1","a":"1"}': "1"}, "counter"),
        ({"total": "1"}, "counter"),
        ({"#meta": "{}"}, "counter"),
    ],
)
def test_fields_that_version_2_did_not_write_are_refused(stored: dict[str, str], kind: str) -> None:
    """Fields of another type, and fields that version 2 does not write, are never mixed with ours."""
    with pytest.raises(ValueError, match=r"it was a|expected fields|could not convert"):
        taken_over(stored, META[kind])


def test_the_value_of_all_processes_is_no_value_of_one() -> None:
    """A gauge that now has a value per process cannot continue the single value of version 2."""
    with pytest.raises(ValueError, match="it was one value for all processes there and has multiprocess_mode='livesum' now"):
        taken_over({":{}": "1"}, Family("m", "gauge", "", mode="livesum").meta)


NAMES = """
import importlib, pkgutil, prometheus_distributed_client as package
for name in ["", *(f".{each.name}" for each in pkgutil.iter_modules(package.__path__))]:
    for found, value in vars(importlib.import_module(package.__name__ + name)).items():
        if getattr(value, "__module__", None) == package.__name__ + name:
            print(f"{name}.{found}".lstrip("."))
"""


def test_the_page_has_each_name_of_version_2() -> None:
    """The table of docs/upgrading.md has a row for each function and class of version 2, and no other names."""
    page = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    table = page.partition("| Name in version 2 | Name in version 3 |\n|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`([\w.]+)(?:\(\w+\))?`", row.split("|")[1])]
    found = subprocess.check_output([PYTHON, "-c", NAMES], text=True, timeout=60).split()
    assert sorted(named) == sorted(name.removeprefix("config.") if "setup" in name else name for name in found)
