"""`setup` and the arguments it refuses, connections for the application, `shutdown`."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from conftest import RedisServer, free_port, wait_until
from helpers import Run
from prometheus_client import CollectorRegistry
from recorder import Recorder

import pdc
import pdc.redis
import pdc.sqlite
from pdc import config
from pdc.delivery.journal import default_folders
from pdc.storage import StorageError


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that the application made."""
    connection = sqlite3.connect(tmp_path / "metrics.db")
    yield connection
    connection.close()


def total(name: str = "hits") -> float | None:
    """The counter without labels in a scrape."""
    found = re.search(rf"^{name}_total (\S+)$", pdc.generate_latest().decode(), re.MULTILINE)
    return float(found[1]) if found else None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of redis=, sqlite= and storage=, got none"),
        (
            {"redis": "redis://localhost", "sqlite": "metrics.db"},
            ValueError,
            "exactly one of redis=, sqlite= and storage=, got redis and sqlite",
        ),
        ({"sqlite": ""}, ValueError, "sqlite=''. names no file: give it a path"),
        ({"sqlite": ":memory:"}, ValueError, "sqlite=':memory:'. names no file: .*sqlite3.connect"),
        ({"sqlite": "sqlite:///metrics.db"}, ValueError, "takes a path or a sqlite3.Connection, got a URL"),
        ({"sqlite": "file:metrics.db?mode=ro"}, ValueError, "takes the path of a file.*no URI"),
        ({"sqlite": Path("/")}, ValueError, "sqlite='/'. takes the path of a file, got that of a folder"),
        ({"sqlite": "/dev/null"}, ValueError, "sqlite='/dev/null'. takes the path of a file, got that of a .*device"),
        ({"sqlite": "metrics.db", "redis_prefix": "shop"}, ValueError, "has no redis_prefix, got 'shop': remove it"),
        ({"sqlite": "metrics.db", "redis_expire": None}, ValueError, "has no redis_expire, got None: remove it"),
        ({"sqlite": 5}, TypeError, "sqlite=.* takes a path or a sqlite3.Connection, got 5"),
        ({"redis": 5}, TypeError, "redis=.* takes a redis.Redis, a redis.RedisCluster or a URL, got a builtins.int"),
        ({"redis": redis.asyncio.Redis()}, TypeError, "takes a redis.Redis.*, got a redis.asyncio.client.Redis"),
        ({"redis": "localhost"}, ValueError, "redis=.* 'localhost': did you mean redis://localhost"),
        ({"redis": "localhost:6379"}, ValueError, r"redis=.* 'localhost:6379': did you mean redis://localhost:6379\?"),
        ({"redis": "[::1]:6379"}, ValueError, r"redis=.* '\[::1\]:6379': did you mean redis://\[::1\]:6379\?"),
        ({"redis": "h:6379/1"}, ValueError, r"redis=.* 'h:6379/1': did you mean redis://h:6379/1\?"),
        ({"redis": "http://localhost:6379"}, ValueError, "redis=.* 'http://localhost:6379': expected one like redis://"),
        *(
            (
                {"redis": url},
                ValueError,
                f"expected the number of a database after the port, got {got}: a prefix is redis_prefix",
            )
            for url, got in [
                ("redis://localhost:6379/shop", "'shop'"),
                ("rediss://localhost/1/x", "'1/x'"),
                ("redis://localhost/1/2", "'1/2'"),
                ("redis://localhost/-1", "'-1'"),
                ("redis://localhost/a%20b?db=1", "another text"),
                ("redis+cluster://h:6379,other:6379/shop", "'shop'"),
                ("redis+sentinel://h:26379,other:26379/mymaster/shop", "'shop'"),
            ]
        ),
        ({"redis": "redis://localhost", "redis_prefix": None}, TypeError, "redis_prefix must be a str, got None"),
        ({"redis": "redis://localhost", "redis_prefix": 1}, TypeError, "redis_prefix must be a str, got 1"),
        ({"storage": Recorder(), "redis_prefix": "shop"}, ValueError, r"setup\(storage=...\) has no redis_prefix, got 'shop'"),
        (
            {"storage": Recorder(), "journal": "journals"},
            ValueError,
            "needs a storage that .* a storage with an id",
        ),
        ({"storage": Recorder}, TypeError, "takes an object, got the class Recorder: call it"),
        (
            {"storage": {}},
            TypeError,
            r"a pdc.storage.Storage, got {}, which has no identity, places",
        ),
        ({"redis": "redis://localhost", "redis_expire": 0}, ValueError, "redis_expire must be a number of seconds.*got 0"),
        ({"redis": "redis://localhost", "redis_expire": "1h"}, ValueError, "redis_expire must be a number of .*got '1h'"),
        ({"sqlite": "metrics.db", "flush_interval": -1}, ValueError, "flush_interval must be .* at least 0, got -1"),
        ({"sqlite": "metrics.db", "flush_interval": "1"}, ValueError, "flush_interval must be a number .*got '1'"),
        ({"sqlite": "metrics.db", "flush_interval": True}, ValueError, "flush_interval must be a number .*got True"),
        ({"sqlite": "metrics.db", "flush_interval": float("nan")}, ValueError, "flush_interval must be .*got nan"),
        ({"sqlite": "metrics.db", "flush_interval": float("inf")}, ValueError, "flush_interval must be .*got inf"),
        ({"sqlite": "metrics.db", "flush_interval": None}, ValueError, "flush_interval must be a number .*got None"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, registry: CollectorRegistry
) -> None:
    """The message quotes the argument and names the accepted ones; the previous setup stays."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    counter.inc()
    with pytest.raises(error, match=message):
        pdc.setup(**arguments)
    counter.inc()
    assert total() == 2


@pytest.mark.parametrize(
    "url",
    [
        *("redis://u:s3cret@host:port", "redis://:p@s3cret@h:1x/0", "http://host?password=s3cret", "redis:/:s3cret@h"),
        *(":s3cret@h", "s3cret", "redis//:s3cret@h", "redis://:s3cret", "rediss://u:p/s3cret@h", "redis://[::1:s3cret@h"),
        *("redis://h?PASSWORD=s3cret", "redis://h?pasword=s3cret", "rediss://h?ssl_password=s3cret&Ssl_Password=s3cret"),
        *("redis://:p#x@s3cret", "redis://:p?s3cret=1@h", "redis://:p?db=1@s3cret", "unix:///:s3cret@/socket"),
        *("redis://:1234/s3cret@h", "redis://:1234#s3cret@h", "redis://user:1234?s3cret@h", "unix://:s3cret@/s?x=s3cret"),
    ],
)
def test_a_wrong_url_is_shown_without_its_password(url: str) -> None:
    """Neither the message nor its cause quotes a possible password, however the URL is misspelt."""
    with pytest.raises(ValueError, match=r"setup\(redis=\.\.\.\): cannot use the URL '.*': ") as raised:
        pdc.setup(redis=url)
    assert "s3cret" not in str(raised.value)
    assert "1234" not in str(raised.value)
    assert raised.value.__context__ is None


def test_a_url_in_place_of_a_path_is_refused() -> None:
    """The name of a database file, which errors and the log show, is no URL with a password."""
    with pytest.raises(ValueError, match=r"got a URL: one of Redis is setup\(redis=\.\.\.\)") as raised:
        pdc.setup(sqlite="redis://:s3cret@localhost")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("call", [pdc.get_redis_conn, pdc.get_sqlite_conn, pdc.generate_latest, pdc.clear])
def test_nothing_works_before_setup(call: Callable[[], Any]) -> None:
    """Calls that need a storage raise an error that names `setup`; calls that only send pending updates do nothing."""
    with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup\(sqlite='metrics\.db'\)"):
        call()
    pdc.flush()
    pdc.shutdown()


def test_setup_again_changes_the_storage(tmp_path: Path, redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """Pending updates go to the storage before, the metrics are declared in the next one, and nothing is counted twice."""
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    storages: list[dict[str, Any]] = [
        {"sqlite": tmp_path / "1.db"},
        {"redis": redis_server.url},
        {"sqlite": str(tmp_path / "2.db")},
        {"redis": redis_server.url, "redis_prefix": "other"},
    ]
    for round_ in range(2):
        for number, storage in enumerate(storages, 1):
            pdc.setup(**storage, flush_interval=3600)
            assert total() == round_ * number
            counter.inc(number)
    for number, storage in enumerate(storages, 1):
        pdc.setup(**storage)
        assert total() == 2 * number


def test_one_process_may_use_both(tmp_path: Path, redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """The metrics of `pdc.redis` and `pdc.sqlite` keep to their storage; those of `pdc` use the last one chosen."""
    with pytest.raises(pdc.NotConfigured):
        pdc.redis.Counter("early", "Early.", registry=registry).inc()
    pdc.setup(redis=redis_server.url)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    for number, module in enumerate((pdc, pdc.redis, pdc.sqlite), 1):
        module.Counter(f"of_{module.__name__.replace('.', '_')}", "Hits.", registry=registry).inc(number)
    assert [total(name) for name in ("of_pdc", "of_pdc_redis", "of_pdc_sqlite")] == [1, None, 3]
    pdc.setup(redis=redis_server.url)
    assert [total(name) for name in ("of_pdc", "of_pdc_redis", "of_pdc_sqlite", "early")] == [0, 2, None, 0]


def test_the_client_of_redis_is_for_the_application_too(redis_server: RedisServer) -> None:
    """`get_redis_conn` gives the client of the application, or one for the URL; shutdown leaves a given client open."""
    pdc.setup(redis=redis_server.url)
    assert pdc.get_redis_conn().ping()
    with redis_server.client() as client:
        pdc.setup(redis=client)
        assert pdc.get_redis_conn() is client
        pdc.shutdown()
        assert client.ping()


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("given", ["path", "connection", "shared connection"])
def test_the_connection_of_sqlite_is_for_the_application_too(
    tmp_path: Path, registry: CollectorRegistry, given: str, commit: bool
) -> None:
    """DELETE FROM pdc_metrics works with commit(), and without where it needs none, and counting continues afterwards."""
    path = tmp_path / "metrics.db"
    own = sqlite3.connect(path, check_same_thread=given == "connection", isolation_level=None)
    pdc.setup(sqlite=path if given == "path" else own)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    counter.inc(5)
    connection = pdc.get_sqlite_conn()
    assert (connection is own) == (given != "path")
    connection.execute("DELETE FROM pdc_metrics")
    if commit:
        connection.commit()
    assert connection.execute("SELECT count(*) FROM pdc_metrics").fetchone() == (0,)
    counter.inc()
    assert total() == 1
    own.close()


def test_a_given_connection_is_used_as_it_is(connection: sqlite3.Connection, registry: CollectorRegistry) -> None:
    """Pragmas, factories and open transactions of the application stay; updates wait until it has committed."""
    connection.row_factory = sqlite3.Row
    connection.execute("CREATE TABLE theirs (value)")
    settings = ["journal_mode", "synchronous", "busy_timeout"]
    before = [tuple(connection.execute(f"PRAGMA {name}").fetchone()) for name in settings]
    pdc.setup(sqlite=connection)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    counter.inc()
    connection.execute("INSERT INTO theirs VALUES (1)")
    counter.inc()
    assert connection.in_transaction
    for call in (pdc.flush, pdc.get_sqlite_conn):
        with pytest.raises(StorageError, match=r"SQLite connection: the application has an open transaction.* commit it"):
            call()
    connection.rollback()
    assert connection.execute("SELECT count(*) FROM theirs").fetchone()[0] == 0
    pdc.flush()
    assert total() == 2
    assert [tuple(connection.execute(f"PRAGMA {name}").fetchone()) for name in settings] == before
    assert connection.row_factory is sqlite3.Row
    pdc.shutdown()
    connection.execute("SELECT 1")


def test_a_connection_bound_to_its_thread(connection: sqlite3.Connection, registry: CollectorRegistry) -> None:
    """It works write-through from its own thread. Setup refuses a background thread; updates of other threads wait."""
    with pytest.raises(ValueError, match=r"flush_interval=1 needs a connection .*check_same_thread=False, or give setup"):
        pdc.setup(sqlite=connection, flush_interval=1)
    pdc.setup(sqlite=connection)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    counter.inc()
    errors: list[str] = []

    def other_thread() -> None:
        counter.inc()
        try:
            pdc.flush()
        except StorageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert re.search("SQLite connection: .*thread.* Open it with check_same_thread=False, or give setup.. a path", errors[0])
    pdc.flush()
    assert total() == 2


def test_updates_of_other_threads_wait_for_that_of_a_bound_connection(
    connection: sqlite3.Connection, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """An update of another thread is no outage: the next one of the connection's thread is sent at once, with the other."""
    pdc.setup(sqlite=connection)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    query = "SELECT value FROM pdc_metrics WHERE metric_key = 'hits' AND subkey LIKE '_total:%'"
    for number in range(1, 4):
        thread = threading.Thread(target=counter.inc)
        thread.start()
        thread.join()
        assert not config.DEFAULT.down
        counter.inc()
        assert connection.execute(query).fetchall() == [(2.0 * number,)]
    assert caplog.messages == []


def test_updates_that_wait_at_exit_for_a_bound_connection_are_logged(run_script: Run) -> None:
    """Counts of threads that may not use the connection are sent at exit by the thread that may, or the log reports them."""
    source = """
import sqlite3, threading

done = threading.Event()

def use():
    pdc.setup(sqlite=sqlite3.connect("metrics.db"))
    done.set()
    threading.Event().wait(60 if threading.current_thread() is not threading.main_thread() else 0)

{connect}
counter = pdc.Counter("hits", "Hits.")
thread = threading.Thread(target=counter.inc)
thread.start()
thread.join()
"""
    assert run_script(source.format(connect="use()")).stderr == ""
    told = run_script(source.format(connect="threading.Thread(target=use, daemon=True).start()\ndone.wait()")).stderr
    assert "metrics that could not be sent are lost: this thread may not use the storage" in told
    assert (
        "hits_total 1.0"
        in run_script("setup(); print(pdc.generate_latest().decode())", storage={"sqlite": "metrics.db"}).stdout
    )


def test_a_background_thread_of_another_storage_finishes_no_bound_connection(run_script: Run) -> None:
    """A thread that sent to the storage before ends: at exit the connection's thread sends the counts of other threads."""
    source = """
import sqlite3, threading

counter = pdc.Counter("hits", "Hits.")
pdc.setup(sqlite="before.db", flush_interval=60)
counter.inc(100)
pdc.setup(sqlite=sqlite3.connect("metrics.db"))
thread = threading.Thread(target=counter.inc)
thread.start()
thread.join()
"""
    assert run_script(source).stderr == ""
    source = "setup(); print(pdc.generate_latest().decode())"
    for path, expected in (("before.db", 100), ("metrics.db", 1)):
        assert f"hits_total {expected}.0" in run_script(source, storage={"sqlite": path}).stdout


def test_a_connection_of_all_threads_may_be_buffered(tmp_path: Path, registry: CollectorRegistry) -> None:
    """The background thread uses a connection that was opened with check_same_thread=False."""
    connection = sqlite3.connect(tmp_path / "metrics.db", check_same_thread=False)
    pdc.setup(sqlite=connection, flush_interval=0.01)
    pdc.Counter("hits", "Hits.", registry=registry).inc(3)
    with sqlite3.connect(tmp_path / "metrics.db") as reader:
        query = "SELECT value FROM pdc_metrics WHERE subkey LIKE '_total:%'"
        wait_until(lambda: reader.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,))
        wait_until(lambda: reader.execute(query).fetchall() == [(3.0,)])
    reader.close()
    pdc.shutdown()
    connection.close()


def test_a_database_in_memory(registry: CollectorRegistry) -> None:
    """A connection to a database in memory serves one process, for tests and notebooks."""
    connection = sqlite3.connect(":memory:")
    pdc.setup(sqlite=connection)
    pdc.Counter("hits", "Hits.", registry=registry).inc(3)
    assert total() == 3
    pdc.shutdown()
    connection.close()


def test_a_given_connection_is_refused_after_a_fork(run_script: Run) -> None:
    """In a child the error names `setup`; the parent continues, and nothing is counted twice."""
    source = """
import os, sqlite3, sys
connection = sqlite3.connect("metrics.db")
pdc.setup(sqlite=connection)
hits = pdc.Counter("hits", "Hits.")
hits.inc()
pid = os.fork()
if not pid:
    hits.inc()
    try:
        pdc.flush()
    except pdc.StorageError as error:
        print(error)
    pdc.setup(sqlite="metrics.db")
    sys.exit()
os.waitpid(pid, 0)
hits.inc()
print(pdc.generate_latest().decode())
"""
    result = run_script(source)
    assert "cannot use SQLite connection after a fork: call setup() in the child process, or give it a path" in result.stdout
    assert "hits_total 3.0" in result.stdout


def test_a_program_that_joins_a_redis_without_prefix_logs_that_once(redis_server: RedisServer, run_script: Run) -> None:
    """A program whose new metrics join others' logs once that those without redis_prefix add up; its next processes do not."""

    def says(name: str, **options: Any) -> str:
        source = f"""
            setup(flush_interval=3600)
            pdc.Counter({name!r}, "Help.").inc()
            pdc.flush()
            pdc.Counter("another", "Help.").inc()
            """
        return run_script(source, storage={"redis": redis_server.url, **options}).stderr

    note = (
        f"Redis 127.0.0.1:{redis_server.port} has metrics without redis_prefix: where other programs use it without one, too, "
        "metrics of the same name add up; give each program a redis_prefix of its own\n"
    )
    assert [says(name) for name in ("hits", "hits", "sales", "hits")] == ["", "", note, ""]
    assert says("hits", redis_prefix="shop") == ""


def test_a_program_is_not_told_of_its_own_metrics_in_a_redis_without_prefix(redis_server: RedisServer, run_script: Run) -> None:
    """A metric that another thread of the program sends at the same time is no other program's: nothing is logged."""
    source = """
        from pdc.storage.redis.keys import Keys
        setup(flush_interval=3600)
        hits, own = pdc.Counter("hits", "Hits."), pdc.redis.Counter("own", "Hits.")
        names = Keys.names
        def own_is_sent(keys):
            Keys.names = names
            own.inc()
            pdc.config.REDIS.flush()
            return names(keys)
        Keys.names = own_is_sent
        hits.inc()
        pdc.config.DEFAULT.flush()
        assert Keys.names is names
        """
    assert run_script(source, storage={"redis": redis_server.url}).stderr == ""


@pytest.mark.parametrize("interval", [0, 0.5])
def test_one_line_logs_the_place_of_the_metrics(
    storage: dict[str, Any], interval: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO setup logs the storage with its prefix, the interval and the folder of the journal."""
    caplog.set_level(logging.INFO, "pdc")
    pdc.setup(**storage, flush_interval=interval, journal=tmp_path / "journals")
    pdc.setup(**storage, flush_interval=interval)
    pdc.setup(**storage, flush_interval=interval, journal=False)
    where = f"SQLite {storage['sqlite']}" if "sqlite" in storage else f"Redis {storage['redis'][8:-2]} with redis_prefix 'test'"
    start = f"metrics go to {where}, {'every 0.5 s' if interval else 'each update at once'}; "
    journals = [f"journals are in {tmp_path / 'journals'}", f"journals are in {default_folders()[0]}", "there is no journal"]
    assert caplog.messages == [start + journal for journal in journals]


def test_an_error_of_the_storage_is_short(tmp_path: Path, run_script: Run) -> None:
    """A program that ends with an error of the storage shows that one, not the driver's exceptions behind it."""
    source = """
from prometheus_client import REGISTRY, generate_latest
setup()
pdc.Counter("hits", "Hits.").inc()
generate_latest(REGISTRY)
"""
    for storage in ({"redis": f"redis://127.0.0.1:{free_port()}"}, {"sqlite": str(tmp_path / "missing" / "metrics.db")}):
        told = run_script(source, storage=storage, check=False).stderr
        assert told.count("Traceback") == 1
        assert len(told.splitlines()) <= 30
        assert "pdc.storage.StorageError: " in told


def test_a_connection_has_no_folder_of_journals(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """No other process could find the database of a connection, so a folder of journals for it is refused."""
    with pytest.raises(ValueError, match=r"journal='/.*' needs a storage that the next process finds"):
        pdc.setup(sqlite=connection, journal=tmp_path)


def test_a_closed_connection(connection: sqlite3.Connection, registry: CollectorRegistry) -> None:
    """Updates never raise after the application has closed its connection; a flush and a scrape name the remedy."""
    pdc.setup(sqlite=connection)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    connection.close()
    counter.inc()
    for call in (pdc.flush, pdc.generate_latest, pdc.get_sqlite_conn):
        with pytest.raises(StorageError, match=r"closed database.* Call setup\(\) again with an open one, or with a path"):
            call()


WITHOUT_POSIX = """
import http.client, logging, mmap, os, prometheus_client, redis, signal, sqlite3, sys, tempfile, wsgiref.simple_server

for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "posix_fallocate", "pread", "pwrite", "register_at_fork",
             "fork", "geteuid", "getuid", "getegid", "uname"):
    delattr(os, name)
for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_SHARED", "PROT_READ", "PROT_WRITE"):
    delattr(mmap, name)
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "pthread_sigmask"):
    delattr(signal, name)
del sys.abiflags
import pdc
"""


@pytest.mark.parametrize("interval", [0, 0.05])
def test_a_system_without_locks_of_posix_has_no_journal(
    storage: dict[str, Any], interval: float, run_script: Run, tmp_path: Path
) -> None:
    """Without fcntl and other modules that Windows lacks, everything works but journals, which the log reports once."""
    source = f"""
setup(flush_interval={interval})
setup(flush_interval={interval})
pdc.Counter("hits", "Hits.").inc(2)
pdc.Gauge("level", "Level.", multiprocess_mode="livesum").set(3)
server, thread = pdc.start_http_server(0, "127.0.0.1")
connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
connection.request("GET", "/metrics")
print(connection.getresponse().read().decode())
connection.close()
server.shutdown()
server.server_close()
"""
    script = tmp_path / "program.py"
    script.write_text(f"{WITHOUT_POSIX}\ndef setup(**options): pdc.setup(**{storage!r}, **options)\n{source}")
    done = run_script("import os, sys; os.execv(sys.executable, [sys.executable, '-W', 'error', 'program.py'])")
    assert {"hits_total 2.0", "level 3.0", "pdc_storage_up 1.0"} <= {*done.stdout.splitlines()}
    assert done.stderr.startswith("there is no journal, as this system has no locks of POSIX (fcntl): ")
    assert len(done.stderr.splitlines()) == 1


def test_redis_may_not_be_installed(run_script: Run) -> None:
    """Without redis-py, SQLite works, and setup(redis=...) names the extra to install."""
    source = """
import sys
sys.modules["redis"] = None  # `import redis` raises ImportError
setup()
pdc.Counter("hits", "Hits.").inc()
try:
    pdc.setup(redis="redis://localhost")
except ImportError as error:
    print(error)
print(pdc.generate_latest().decode())
"""
    result = run_script(source, storage={"sqlite": "metrics.db"})
    assert "pip install 'prometheus-distributed-client[redis]'" in result.stdout
    assert "hits_total 1.0" in result.stdout


def test_shutdown_and_setup_again(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """After shutdown an update logs that `setup` is missing and counts nothing; after another setup counting continues."""
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    for number in range(1, 4):
        pdc.setup(**storage, flush_interval=3600)
        counter.inc()
        pdc.shutdown()
        with pytest.raises(pdc.NotConfigured):
            counter.inc()
        pdc.setup(**storage)
        assert total() == number
        pdc.shutdown()


def test_clear_empties_the_storage_and_starts_again(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Metrics of others are gone, metrics without labels are at 0, series with labels come back with an update."""
    pdc.setup(**storage)
    counter = pdc.Counter("hits", "Hits.", registry=registry)
    labelled = pdc.Counter("paths", "Paths.", ["path"], registry=registry)
    counter.inc(3)
    labelled.labels("/").inc(3)
    pdc.clear()
    lines = [line for line in pdc.generate_latest().decode().splitlines() if "_created" not in line]
    assert [line for line in lines if not line.startswith("#")] == ["hits_total 0.0"]
    assert "# TYPE paths_total counter" in lines
    labelled.labels("/").inc()
    assert 'paths_total{path="/"} 1.0' in pdc.generate_latest().decode()
