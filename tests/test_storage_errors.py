"""Storages that are down, full, broken or forbidden: the application goes on, the log reports it, no update is lost."""

from __future__ import annotations

import math
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest
import redis
from conftest import RedisServer, wait_until
from helpers import DOWN, INTERVALS, UP, OwnClient, Run
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import pdc
from pdc.exposition import Scrape
from pdc.storage import Batch, Kind, Operation, StorageError, Update
from pdc.storage.redis import RedisStorage


class Application:
    """Some metrics with updates in any state of the storage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
        self.latency = pdc.Histogram("latency", "Seconds.", buckets=(1, 2), registry=registry)
        self.level = pdc.Gauge("level", "Level.", registry=registry)
        self.rounds = 0

    def update(self, times: int = 10) -> None:
        """Update all; no update may raise."""
        for _ in range(times):
            self.rounds += 1
            self.hits.labels("/").inc(2)
            self.latency.observe(1.5)
            self.level.inc(100)
            self.level.set(self.rounds)
            self.level.inc(0.5)

    def check(self) -> None:
        """Assert that the storage has all updates."""
        pdc.flush()
        lines = pdc.generate_latest().decode().splitlines()
        expected = {
            f'hits_total{{path="/"}} {2.0 * self.rounds}',
            *(
                f'latency_bucket{{le="{le}"}} {count:.1f}'
                for le, count in (("1.0", 0), ("2.0", self.rounds), ("+Inf", self.rounds))
            ),
            f"latency_count {self.rounds:.1f}",
            f"latency_sum {1.5 * self.rounds}",
            f"level {self.rounds + 0.5}",
        }
        assert expected <= set(lines)


@contextmanager
def told(caplog: pytest.LogCaptureFixture, *starts: str) -> Iterator[None]:
    """Assert that the log gets exactly the lines with these beginnings meanwhile."""
    caplog.clear()
    yield
    wait_until(lambda: len(caplog.messages) >= len(starts))  # the background thread may be the one that logs
    lines = caplog.messages
    assert len(lines) == len(starts), lines
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


def refuse(*words: str) -> str:
    """Assert that flush and scrape fail with these words, and return the flush's message."""
    with pytest.raises(StorageError) as flushed:
        pdc.flush()
    with pytest.raises(StorageError) as scraped:
        pdc.generate_latest()
    response = Scrape().answer()
    assert response.status == 503
    for message in (str(flushed.value), str(scraped.value), response.body.decode()):
        for word in words:
            assert word in message, message
    return str(flushed.value)


@INTERVALS
def test_a_redis_that_stops_and_starts_again(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """Metrics are made and updated before Redis is up, and again while it is down; later all are stored, with one line each."""
    own_redis_server.stop()
    for _ in range(2):
        with told(caplog, DOWN):
            pdc.setup(redis=own_redis_server.url, redis_prefix="shop", flush_interval=interval)
            application = Application(CollectorRegistry())
            application.update()
            refuse(f"Redis 127.0.0.1:{own_redis_server.port} failed", "Check that it runs and can be reached")
            application.update()
            refuse("Connection refused")
        with told(caplog, UP):
            own_redis_server.start()
            application.check()
            application.update()
            application.check()
        own_redis_server.stop()
        del application
    pdc.shutdown()


@INTERVALS
def test_an_outage_is_one_line_for_all_metrics_of_a_storage(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """The metrics of `pdc` and of `pdc.redis` share a storage: its outage is in the log once, and so is the end of it."""
    own_redis_server.stop()
    pdc.setup(redis=own_redis_server.url, flush_interval=interval)
    for _ in range(2):
        with told(caplog, DOWN):
            for module in (pdc, pdc.redis):
                module.Counter(module.__name__.replace(".", "_"), "Hits.", registry=CollectorRegistry()).inc()
            refuse("Connection refused")
        with told(caplog, UP):
            own_redis_server.start()
            pdc.flush()
        own_redis_server.stop()
    pdc.shutdown()


def test_a_redis_that_starts_again_is_found_without_a_flush(own_redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """The background thread tries again by itself."""
    own_redis_server.stop()
    pdc.setup(redis=own_redis_server.url, flush_interval=0.05)
    application = Application(registry)
    application.update()
    own_redis_server.start()
    with own_redis_server.client(decode_responses=True) as client:
        wait_until(lambda: client.hget("prometheus_#_hits", '_total:{"path":"/"}') == "20")
    application.check()


def test_a_server_that_never_answers(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Timeouts of the URL are kept; while the storage is known to hang, updates and scrapes do not wait for it again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        pdc.setup(redis=f"redis://{address}/0?socket_timeout=0.1&socket_connect_timeout=0.1")
        with told(caplog, DOWN):
            application = Application(registry)
            application.update(1000)
            refuse(f"Redis {address} failed", "TimeoutError", "It did not answer in time")
    pdc.shutdown()


@pytest.mark.parametrize("user", ["", "somebody"])
def test_a_wrong_password_is_not_shown(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    """Neither the error nor the log shows the password; with the right one all updates are stored."""
    server = RedisServer(tmp_path)
    with server.client() as client:
        client.config_set("requirepass", "right-s3cret")
    try:
        pdc.setup(redis=f"redis://{user}:wrong-s3cret@127.0.0.1:{server.port}/0")
        application = Application(registry)
        application.update()
        refuse(f"Redis 127.0.0.1:{server.port} failed", "Check the user, the password and what they may do")
        with pytest.raises(StorageError) as raised:
            pdc.flush()
        assert "s3cret" not in caplog.text + str(raised.value)
        pdc.setup(redis=f"redis://:right-s3cret@127.0.0.1:{server.port}/0")
        application.check()
    finally:
        server.stop()


def test_a_redis_out_of_memory(own_redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """While Redis has no memory, updates wait; a process with nothing to send can read the stored data."""
    pdc.setup(redis=own_redis_server.url)
    application = Application(registry)
    application.update()
    with own_redis_server.client() as client:
        client.config_set("maxmemory", "1")
        application.update()
        refuse("Redis", "OutOfMemoryError", "Raise maxmemory")
        client.config_set("maxmemory", "0")
    application.check()


def test_a_replica_can_be_scraped_but_not_written(
    own_redis_server: RedisServer, tmp_path: Path, registry: CollectorRegistry, run_script: Run
) -> None:
    """A process without metrics scrapes a read-only replica; one with metrics gets an error that names the primary."""
    pdc.setup(redis=own_redis_server.url)
    application = Application(registry)
    application.update()
    expected = pdc.generate_latest().decode()
    with own_redis_server.client() as primary:
        primary.config_set("repl-diskless-sync-delay", "0")
    replica = RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(own_redis_server.port))
    try:
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        read = run_script("setup(); print(pdc.generate_latest().decode(), end='')", storage={"redis": replica.url})
        assert read.stdout == expected
        pdc.setup(redis=replica.url)
        application.update()
        refuse("ReadOnlyError", "This is a replica: give setup() the primary")
    finally:
        pdc.setup(redis=own_redis_server.url)
        replica.stop()
    application.check()


@INTERVALS
def test_a_folder_that_is_missing(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """The error names the file and the folder to check; once the folder exists, all updates are stored."""
    path = tmp_path / "missing" / "metrics.db"
    with told(caplog, DOWN, UP):
        pdc.setup(sqlite=path, flush_interval=interval)
        application = Application(registry)
        application.update()
        refuse(f"SQLite {path}: unable to open database file. Check that the folder exists and may be written")
        with pytest.raises(StorageError, match=r"cannot open SQLite .*metrics\.db"):
            pdc.get_sqlite_conn()
        path.parent.mkdir()
        application.check()


@INTERVALS
@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"not a database" * 100, "Check the path: another kind of file is there, and stays as it is."),
        (b"SQLite format 3\x00" + b"garbage" * 2000, "Move the file away; a new one is made by itself"),
    ],
    ids=["text", "garbage"],
)
def test_a_file_that_is_no_database(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, interval: float, content: bytes, remedy: str
) -> None:
    """The file is never overwritten, and the remedy is to move a damaged database away; a new file then has all updates."""
    path = tmp_path / "metrics.db"
    path.write_bytes(content)
    with told(caplog, DOWN, UP):
        pdc.setup(sqlite=path, flush_interval=interval)
        application = Application(registry)
        application.update()
        assert ("Move" in refuse(f"SQLite {path}: ", remedy)) == ("Move" in remedy)
        assert path.read_bytes() == content
        path.rename(tmp_path / "broken.db")
        application.check()


@pytest.mark.parametrize(
    "columns", ["id INTEGER, name TEXT", "id INTEGER, value TEXT NOT NULL", "metric_key TEXT, subkey TEXT"]
)
def test_a_table_of_another_program(tmp_path: Path, registry: CollectorRegistry, columns: str) -> None:
    """A table `pdc_metrics` with other columns stays unchanged, and the error names the path."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute(f"CREATE TABLE pdc_metrics ({columns})")
        connection.execute("INSERT INTO pdc_metrics VALUES (1, 'theirs')")
    pdc.setup(sqlite=tmp_path / "shop.db")
    Application(registry).update()
    refuse("The table pdc_metrics of that file is another program's, and stays as it is: choose another path.")
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        (schema,) = connection.execute("SELECT sql FROM sqlite_master").fetchall()
        rows = connection.execute("SELECT * FROM pdc_metrics").fetchall()
    assert schema == (f"CREATE TABLE pdc_metrics ({columns})",)
    assert [str(name) for _, name in rows] == ["theirs"]


def test_a_table_metrics_of_the_application(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A database of the application may have a table `metrics` of its own, which stays as it is."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute("CREATE TABLE metrics (id INTEGER, name TEXT)")
        connection.execute("INSERT INTO metrics VALUES (1, 'theirs')")
    pdc.setup(sqlite=tmp_path / "shop.db")
    application = Application(registry)
    application.update()
    application.check()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT * FROM metrics").fetchall() == [(1, "theirs")]


def test_a_file_that_is_corrupted_later(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Where the file of a running process is damaged, flush and scrape report it; once moved, a new one has later counts."""
    path = tmp_path / "metrics.db"
    pdc.setup(sqlite=path)
    application = Application(registry)
    for number in range(200):
        application.hits.labels(f"/{number}").inc()
    pdc.shutdown()
    damaged = bytearray(path.read_bytes())
    damaged[100:] = b"\xff" * (len(damaged) - 100)
    path.write_bytes(damaged)
    pdc.setup(sqlite=path)
    application.update()
    refuse(f"SQLite {path}: ", "malformed", "Move the file away")
    for suffix in ("", "-wal", "-shm"):
        if (file := Path(f"{path}{suffix}")).exists():
            file.rename(tmp_path / f"broken.db{suffix}")
    application.check()


@INTERVALS
def test_a_disk_that_is_full(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """While the disk is full, updates wait in memory; with space again all are stored, in the order of set and add."""
    connection = sqlite3.connect(tmp_path / "metrics.db", check_same_thread=False)
    pdc.setup(sqlite=connection, flush_interval=interval)
    application = Application(registry)
    application.update()
    pdc.flush()
    with told(caplog, DOWN, UP):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite uses the present size of the file
        for number in range(500):
            application.hits.labels(f"/{number}").inc()
        application.update()
        message = refuse("SQLite connection: ", "is full", "Free some space; what is pending is kept in memory until then")
        assert "cannot write" in message
        connection.execute("PRAGMA max_page_count = 100000")
        application.check()
    text = pdc.generate_latest().decode()
    assert all(f'hits_total{{path="/{number}"}} 1.0\n' in text for number in range(500))
    pdc.shutdown()
    connection.close()


def test_a_database_that_another_program_holds(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program holds the write lock for long, updates wait in memory and a flush reports it."""
    monkeypatch.setattr("pdc.storage.sqlite.database.BUSY_SECONDS", 0.05)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    application = Application(registry)
    application.update()
    other = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with told(caplog, DOWN, UP):
        application.update()
        refuse("database is locked", "Another program held it for more than 0.05 s")
        other.execute("ROLLBACK")
        application.check()
    other.close()


@INTERVALS
@pytest.mark.parametrize(
    ("forbidden", "remedy"),
    [
        ("file", "Check the permissions of the file and its folder."),
        ("folder", "Check that the folder exists and may be written."),
    ],
)
def test_a_database_that_may_not_be_written(run_script: Run, forbidden: str, remedy: str, interval: float) -> None:
    """A user without write permission gets an error that names the permissions; updates never raise, and are stored later."""
    with TemporaryDirectory() as folder:
        database = Path(folder) / "metrics.db"
        if forbidden == "file":
            database.touch(0o444)
        Path(folder).chmod(0o777 if forbidden == "file" else 0o555)
        source = f"""
import os, sqlite3, sys
import pdc.exposition, pdc.storage.sqlite
from pathlib import Path

folder, superuser = Path({folder!r}), os.getuid() == 0
if superuser:  # no permission stops root
    os.seteuid(65534)
setup(flush_interval={interval})
hits = pdc.Counter("hits", "Hits.")
hits.inc(3)
for _ in range(2):
    try:
        pdc.flush()
    except pdc.StorageError as error:
        print(error)
if superuser:
    os.seteuid(0)
folder.chmod(0o777)
for file in folder.iterdir():
    file.chmod(0o666)
if superuser:
    os.seteuid(65534)
hits.inc()
pdc.flush()
print(pdc.generate_latest().decode())
"""
        result = run_script(source, storage={"sqlite": str(database)}, check=False)
    errors, _, text = result.stdout.partition("# HELP")
    assert errors.count(f"SQLite {database}: ") == errors.count(remedy) == 2, result
    assert "hits_total 4.0" in text
    assert [line.partition(":")[0] + ": " for line in result.stderr.splitlines()] == [DOWN, UP + ": "]


def test_a_scrape_makes_no_file(tmp_path: Path) -> None:
    """Before the first write a scrape is empty, and leaves the folder unchanged; without a folder it is refused."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert pdc.generate_latest() == b""
    assert list(tmp_path.iterdir()) == []
    pdc.setup(sqlite=tmp_path / "missing" / "metrics.db")
    with pytest.raises(StorageError, match="Check that the folder exists"):
        pdc.generate_latest()


def test_a_user_who_may_only_read_can_scrape(run_script: Run, registry: CollectorRegistry) -> None:
    """While a writer has the file open, a user with read permission can scrape; afterwards the error gives the reason."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a & b%20?.db"
        Path(folder).chmod(0o755)
        pdc.setup(sqlite=path)
        pdc.Counter("hits", "Hits.", registry=registry).inc(3)
        path.chmod(0o444)
        source = """
import os, pdc.exposition, pdc.storage.sqlite
if os.getuid() == 0:  # no permission stops root
    os.seteuid(65534)
setup(journal=False)
try:
    print(pdc.generate_latest().decode())
except pdc.StorageError as error:
    print(error)
"""
        assert "hits_total 3.0" in run_script(source, storage={"sqlite": str(path)}).stdout
        pdc.shutdown()
        Path(folder).chmod(0o555)
        assert "Check" in run_script(source, storage={"sqlite": str(path)}).stdout
        Path(folder).chmod(0o755)


@INTERVALS
@pytest.mark.parametrize(
    "target", [{"sqlite": "missing/metrics.db"}, {"redis": "redis://127.0.0.1:1/0"}], ids=["sqlite", "redis"]
)
def test_a_script_that_ends_in_an_outage(run_script: Run, interval: float, target: dict[str, str]) -> None:
    """It ends as without metrics, and the log names the place of its updates; without a journal, their loss."""
    for journal, expected in (
        (True, "metrics that could not be sent wait in"),
        (False, "metrics that could not be sent are lost"),
    ):
        source = f"setup(flush_interval={interval}, journal={journal})\npdc.Counter('hits', 'Hits.').inc()\nprint('done')"
        result = run_script(source, storage=target)
        assert result.stdout == "done\n"
        down, end = result.stderr.splitlines()
        assert down.startswith(DOWN)
        assert end.startswith(expected)


# The write-ahead log of SQLite


def test_a_reader_that_stays(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log reports once that a reader keeps the file `-wal` long; after the reader ends, the file is short again."""
    monkeypatch.setattr("pdc.storage.sqlite.wal.MOST_WAL_BYTES", 100_000)
    monkeypatch.setattr("pdc.storage.sqlite.wal.SHORTEN_SECONDS", 0.0)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    wal = tmp_path / "metrics.db-wal"
    for _ in range(2):
        hits.inc()
        reader = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM pdc_metrics").fetchall()
        while wal.stat().st_size < 200_000:
            hits.inc()
        reader.close()
        hits.inc()
        assert wal.stat().st_size < 100_000
    kept = [message for message in caplog.messages if "-wal has 0 MB and grows" in message]
    assert len(kept) == 2


def test_a_long_log_is_cut(tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a check by pdc, SQLite cuts the file `-wal` once it is all in the database."""
    monkeypatch.setattr("pdc.storage.sqlite.database.WAL_BYTES", 100_000)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    pdc.get_sqlite_conn().execute("PRAGMA journal_size_limit = 100000")
    pdc.get_sqlite_conn().execute("CREATE TABLE other AS SELECT randomblob(8000000)")
    for _ in range(2):
        hits.inc()
    assert (tmp_path / "metrics.db-wal").stat().st_size <= 100_000


@INTERVALS
def test_a_log_that_is_deleted(
    tmp_path: Path, registry: CollectorRegistry, run_script: Run, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """Where a cleaner deletes the file `-wal`, no update is lost, and other processes see later updates."""
    storage = {"sqlite": str(tmp_path / "metrics.db")}
    pdc.setup(sqlite=storage["sqlite"], flush_interval=interval)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    for number in range(3):
        hits.inc(5)
        pdc.flush()
        (tmp_path / "metrics.db-wal").unlink()
        hits.inc(7)
        pdc.flush()
        shown = run_script("setup(); print(pdc.generate_latest().decode())", storage=storage).stdout
        assert f"hits_total {12.0 * (number + 1)}" in shown
    assert sum("-wal was deleted while it was in use" in message for message in caplog.messages) == 3


# Foreign data

NO_TEXTS: dict[str, tuple[str, ...]] = {
    "a field": ("hits", r"\xff", "1"),
    "a value": ("hits", "_total:{}", r"\xff"),
    "the metadata": ("hits", "#meta", r"\xff"),
    "a mark": ("hits", r"#mark:\xff", "1"),
    "a name": (r"\xff", "_total:{}", "1"),
}


def _bytes(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize("client", ["bytes", "text", "another class"])
@pytest.mark.parametrize("case", NO_TEXTS)
def test_invalid_text_in_redis(redis_server: RedisServer, registry: CollectorRegistry, case: str, client: str) -> None:
    """Bytes that are no text are valid text or a 503 that names the metric, for any client; updates continue."""
    kind: Any = type("Redis", (redis.Redis,), {}) if client == "another class" else redis.Redis
    name, *field = map(_bytes, NO_TEXTS[case])
    with redis_server.client() as other, kind.from_url(redis_server.url, decode_responses=client != "bytes") as ours:
        pdc.setup(redis=ours)
        hits, others = (pdc.Counter(each, "Help.", registry=registry) for each in ("hits", "others"))
        hits.inc()
        other.hset(b"prometheus_#_" + name, *field)
        other.zadd("prometheus#", {name: "inf"})
        pdc.config.DEFAULT._work.outcomes.declared.clear()
        for counter in (hits, others):
            counter.inc()
        pdc.flush()
        assert_valid_or_named("hits")
        assert other.hget("prometheus_#_others", "_total:{}") == b"1"
        pdc.shutdown()


def assert_valid_or_named(name: str) -> None:
    """Every format is valid text, or a 503 that names the metric."""
    for accept in ("text/plain", "application/openmetrics-text"):
        for query in ("", f"name[]={name}_total&name[]=others_total"):
            answer = Scrape(accept=accept, query=query).answer()
            if answer.status == 503:
                assert f"metric '{name}' holds something that pdc did not write" in answer.body.decode()
            else:
                assert answer.status == 200
                parse = parse_openmetrics if "openmetrics" in accept else parse_text
                samples = [sample.name for family in parse(answer.body.decode()) for sample in family.samples]
                assert "others_total" in samples
                assert "evil" not in samples


BLOBS: dict[str, tuple[str, str, str]] = {
    "a field": ("'hits'", "x'5f746f74616c3a7b7d'", "1"),
    "a value": ("'hits'", '\'_total:{"a":"b"}\'', "CAST('1\nevil 1' AS BLOB)"),
    "the metadata": ("'hits'", "'#meta'", "x'7b7d'"),
    "a mark": ("'hits'", "CAST(x'236d61726b3aff' AS TEXT)", "1"),
    "a text": ("'hits'", "'_info:{}'", "CAST(x'ff' AS TEXT)"),
    "a name": ("x'68697473'", "'_total:{}'", "1"),
    "a unit": (
        *("'hits'", "'#meta'"),
        '\'{"name":"hits","type":"counter","documentation":"","unit":"x\\nevil 1\\n","labelnames":[],"bounds":[]}\'',
    ),
    "an exemplar": ("'hits'", "'#exemplar_total:{}'", '\'[{"a\\nevil 1\\n":"b"},1,2]\''),
}


@pytest.mark.parametrize("case", BLOBS)
def test_invalid_text_in_sqlite(tmp_path: Path, registry: CollectorRegistry, case: str) -> None:
    """A BLOB, or invalid text, is valid text or a 503 that names the metric; updates continue."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    hits, others = (pdc.Counter(each, "Help.", registry=registry) for each in ("hits", "others"))
    hits.inc()
    other = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
    other.execute(f"INSERT OR REPLACE INTO pdc_metrics VALUES ({', '.join(BLOBS[case])})")
    pdc.config.DEFAULT._work.outcomes.declared.clear()
    for counter in (hits, others):
        counter.inc()
    pdc.flush()
    other.execute(f"INSERT OR REPLACE INTO pdc_metrics VALUES ({', '.join(BLOBS[case])})")
    assert_valid_or_named("hits")
    query = "SELECT value FROM pdc_metrics WHERE metric_key = 'others' AND subkey = '_total:{}'"
    assert other.execute(query).fetchone() == (1.0,)
    other.close()


UPDATE = [Operation(Kind.ADD, "_total:{}", 1.0)]


@pytest.fixture
def connected(redis_server: RedisServer) -> Iterator[RedisStorage]:
    """A storage that has applied three batches of a writer; the next one takes the short way."""
    with closing(RedisStorage(redis_server.url, "test")) as storage:
        for sequence in (1, 2, 3):
            storage.apply(Batch("1-a", sequence, [Update("hits", "{}", UPDATE)]))
        yield storage


@pytest.mark.parametrize("limit", [TimeoutError, redis.ConnectionError, redis.ResponseError])
@pytest.mark.parametrize("is_read", [True, False])
def test_a_limit_between_a_command_and_its_reply_ends_the_connection(
    connected: RedisStorage, monkeypatch: pytest.MonkeyPatch, is_read: bool, limit: type[Exception]
) -> None:
    """No later call reads the reply that was on its way, whatever the driver makes of the class of the exception."""

    def expire(_number: int, _frame: FrameType) -> None:
        raise limit("late")

    def read_response() -> None:
        monkeypatch.undo()
        expire(0, sys._getframe())

    batch = Batch("1-a", 4, [Update("hits", "{}", UPDATE)])
    monkeypatch.setattr(connected.server._connection, "read_response", read_response)
    with pytest.raises(StorageError, match="late"):
        _ = connected.read() if is_read else connected.apply(batch)
    assert connected.apply(batch).refused == {}
    assert connected.read().metrics["hits"]["_total:{}"] == "4"


@pytest.mark.parametrize("is_read", [True, False])
def test_a_second_limit_while_the_first_one_is_handled(
    connected: RedisStorage, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """No later call reads the reply that was on its way, even if the connection could not be closed either."""
    connection = connected.server._connection

    def expire(**_options: Any) -> None:
        raise KeyboardInterrupt

    batch = Batch("1-a", 4, [Update("hits", "{}", UPDATE)])
    with monkeypatch.context() as limits:
        for name in ("read_response", "disconnect"):
            limits.setattr(connection, name, expire)
        with pytest.raises(KeyboardInterrupt):
            _ = connected.read() if is_read else connected.apply(batch)
    assert connected.apply(batch).refused == {}
    assert connected.read().metrics["hits"]["_total:{}"] == "4"


@pytest.mark.parametrize("deadline", [math.inf, 60.0])
def test_a_limit_while_a_sentinel_is_asked(connected: RedisStorage, monkeypatch: pytest.MonkeyPatch, deadline: float) -> None:
    """The connections to the sentinels are closed, too: one of them may have the unread reply."""
    sentinel = redis.Redis(port=connected.server.client.connection_pool.connection_kwargs["port"])
    sentinel.ping()
    (asking,) = sentinel.connection_pool._available_connections
    own = connected.server._client
    monkeypatch.setattr("pdc.storage.redis.client.sentinels_of", lambda user: [sentinel] if user is own else [])

    def expire() -> None:
        raise KeyboardInterrupt

    connected.set_deadline(time.monotonic() + deadline)
    connected.read()
    connected.server._connection.disconnect()
    with monkeypatch.context() as limits:
        limits.setattr(connected.server._connection, "connect", expire)
        with pytest.raises(KeyboardInterrupt):
            connected.read()
    sockets = [asking._sock]
    connected.set_deadline(math.inf)
    connected.read()
    sockets.append(asking._sock)
    assert [each is None for each in sockets] == [False, True]
    sentinel.close()


@pytest.mark.parametrize("pool", [redis.ConnectionPool, redis.BlockingConnectionPool])
@pytest.mark.parametrize("limit", [KeyboardInterrupt, redis.ResponseError])
def test_a_limit_amid_a_call_of_the_clients_own_pool_ends_its_connection(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, pool: Any, limit: type[BaseException]
) -> None:
    """The connection that may have replies is closed; a connection that the application uses meanwhile stays open."""
    broken_off: list[Any] = []

    def expire(_number: int, _frame: FrameType) -> None:
        raise limit("late")

    def read_response(connection: Any, **_options: Any) -> None:
        monkeypatch.undo()
        broken_off.append(connection)
        expire(0, sys._getframe())

    with OwnClient(connection_pool=pool.from_url(redis_server.url)) as client, client.client() as other:
        storage = RedisStorage(client, "test")
        storage.id()
        monkeypatch.setattr(redis.Connection, "read_response", read_response)
        with pytest.raises((StorageError, KeyboardInterrupt), match="late"):
            storage.read()
        assert [each._sock for each in broken_off] == [None]
        assert other.connection._sock is not None


@pytest.mark.parametrize("is_read", [True, False])
def test_a_handler_uses_the_storage_amid_a_call(
    connected: RedisStorage, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """Each gets its own replies: what a handler sends meanwhile takes another connection."""
    connection = connected.server._connection
    read_response = connection.read_response

    def total() -> Any:
        return connected.read().metrics["hits"]["_total:{}"]

    def interrupted() -> Any:
        monkeypatch.undo()
        connected.apply(Batch("2-b", 1, [Update("hits", "{}", UPDATE)]))
        assert float(total()) >= 4
        return read_response()

    monkeypatch.setattr(connection, "read_response", interrupted)
    if is_read:
        assert total() == "4"
    else:
        assert connected.apply(Batch("1-a", 4, [Update("hits", "{}", UPDATE)])).refused == {}
        assert total() == "5"
    assert connected.server._connection is connection
