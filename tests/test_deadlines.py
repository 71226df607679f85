"""Servers that do not answer, and programs that hold a database: neither a fork nor the end of a process waits for them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, Timer
from traceback import extract_stack
from typing import Any

import pytest
from conftest import RedisServer, wait_until
from helpers import SHORT_INTERVALS, OwnClient, Run

import pdc
from pdc.exposition import collect
from pdc.storage import Snapshot, StorageError
from pdc.storage.redis import RedisStorage
from pdc.storage.redis.commands import CHANGE

MOST_SECONDS = 1.0
"""The limit, on a busy machine, of calls that must not wait."""

METRICS = """
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # these tests fork processes with threads
hits, own = pdc.Counter("hits", "Hits."), KIND.Counter("own", "Hits.")
hits.inc(), own.inc()
pdc.flush()
stop()
"""
STOP_REDIS = """
import os, signal, sys, threading, time, warnings

def stop():
    os.kill(server, signal.SIGSTOP)

setup(flush_interval={interval})
server = int(pdc.get_redis_conn().info()["process_id"])
"""
STOP_SQLITE = """
import os, signal, subprocess, sys, threading, time, warnings

HOLD = "import sqlite3, time; other = sqlite3.connect({path!r}, isolation_level=None); other.execute('BEGIN IMMEDIATE')"

def stop():
    command = [sys.executable, "-c", HOLD + "; print(flush=True); time.sleep(4)"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    holder.stdout.readline()
    threading.Thread(target=holder.communicate, daemon=True).start()

setup(flush_interval={interval})
"""


@pytest.fixture
def stopped(storage: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """A storage that the program of the test stops, and that resumes afterwards."""
    if "sqlite" in storage:
        return storage
    return {"redis": request.getfixturevalue("own_redis_server").url}


@pytest.fixture
def go_on(stopped: dict[str, Any], request: pytest.FixtureRequest) -> Callable[[], None]:
    """Resume the storage; one that a program holds resumes by itself."""
    server: RedisServer | None = request.getfixturevalue("own_redis_server") if "redis" in stopped else None
    return (lambda: None) if server is None else server.thaw


def program(storage: dict[str, Any], interval: float, work: str) -> str:
    """Source that counts in two metrics, stops the storage, and works."""
    stop = STOP_REDIS if "redis" in storage else STOP_SQLITE
    kind = "pdc.redis" if "redis" in storage else "pdc.sqlite"
    return stop.format(interval=interval, path=storage.get("sqlite")) + METRICS.replace("KIND", kind) + work


def stored(storage: dict[str, Any]) -> dict[str, float]:
    """The counters of the storage and of the journals."""
    pdc.setup(**storage)
    pdc.flush()
    samples = (sample for metric in collect() for sample in metric.samples)
    return {sample.name: sample.value for sample in samples if sample.name.endswith("_total")}


@SHORT_INTERVALS
def test_a_fork_waits_for_no_server(stopped: dict[str, Any], run_script: Run, interval: float) -> None:
    """While threads wait for the storage, a process forks at once; parent and child count exactly."""
    work = """
threads = [threading.Thread(target=counter.inc) for counter in (hits, own)]
for thread in threads:
    thread.start()
time.sleep(0.3)
began = time.monotonic()
child = os.fork()
if child:
    print(time.monotonic() - began)
if "server" in vars():
    os.kill(server, signal.SIGCONT)
hits.inc(10)
if not child:
    pdc.flush()
    os._exit(0)
for thread in threads:
    thread.join()
assert os.waitpid(child, 0)[1] == 0
"""
    result = run_script(program(stopped, interval, work), storage=stopped, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert float(result.stdout) < MOST_SECONDS
    assert stored(stopped) == {"hits_total": 22.0, "own_total": 2.0}


THREADS = {
    "no thread": "pdc.process.servers.threads_run = lambda: False",
    "a function that hangs": """
stuck = pdc.Gauge("stuck", "Stuck.")
stuck.set_function(lambda: time.sleep(60) if threading.current_thread().name == "pdc-flush" else 1.0)
""",
}


@pytest.mark.parametrize("thread", THREADS)
def test_the_end_of_a_process_that_leaves_by_itself(
    stopped: dict[str, Any], go_on: Callable[[], None], run_script: Run, thread: str
) -> None:
    """The same without a background thread, and with one in a function of the application."""
    work = """
hits.inc(100)
pdc.config.DEFAULT._flusher._next_beat = 0.0
pdc.config.DEFAULT._flusher._wake.put(None)
time.sleep(0.3)
print(time.time(), flush=True)
"""
    source = program(stopped, 3600, work).replace("setup(", f"{THREADS[thread]}\nsetup(", 1)
    options = {**stopped, "exit_timeout": 0.5}
    result = run_script(source, storage=options)
    assert time.time() - float(result.stdout) < 0.5 + MOST_SECONDS
    assert " wait in " in result.stderr
    go_on()
    assert stored(stopped)["hits_total"] == 101.0


@pytest.mark.parametrize(
    ("interval", "journal"), [(0, True), (0.01, True), (0.01, False)], ids=["write-through", "buffered", "no journal"]
)
def test_the_end_of_a_process_has_one_deadline(
    stopped: dict[str, Any], go_on: Callable[[], None], run_script: Run, interval: float, journal: bool
) -> None:
    """While the storage does not answer, a process with two buffers ends in time; the journal has the unsent updates."""
    work = """
threading.Thread(target=hits.inc, args=[100], daemon=True).start()
threading.Thread(target=own.inc, args=[100], daemon=True).start()
time.sleep(0.3)
print(time.time(), flush=True)
"""
    options = {**stopped, "journal": journal, "exit_timeout": 0.5}
    result = run_script(program(options, interval, work), storage=options)
    assert time.time() - float(result.stdout) < 0.5 + MOST_SECONDS
    assert (" wait in " if journal else " are lost") in result.stderr
    go_on()
    if journal:
        assert stored(stopped) == {"hits_total": 101.0, "own_total": 101.0}


def test_the_end_waits_once(own_redis_server: RedisServer, run_script: Run) -> None:
    """A process that waited before its end, as that of an ASGI application does, does not wait again at exit."""
    work = """
hits.inc(100)
print(time.time(), flush=True)
pdc.config.flush_before_end()
"""
    options = {"redis": own_redis_server.url, "exit_timeout": 1.5}
    result = run_script(program(options, 3600, work), storage=options)
    assert time.time() - float(result.stdout) < 1.5 + MOST_SECONDS
    assert " wait in " in result.stderr
    own_redis_server.thaw()
    assert stored(options)["hits_total"] == 101.0


def test_a_deadline_that_ended_leaves_no_short_timeout(own_redis_server: RedisServer) -> None:
    """Once `math.inf` ends a deadline that had passed, a call waits again for a server that answers late."""
    storage = RedisStorage(own_redis_server.url, "test")
    storage.set_deadline(time.monotonic() - 1)
    with suppress(StorageError):
        storage.read()
    storage.set_deadline(math.inf)
    own_redis_server.freeze()
    Timer(0.3, own_redis_server.thaw).start()
    assert storage.read().metrics == {}
    storage.close()


def is_reading(thread: Thread) -> bool:
    """True where the thread waits for a reply, or is about to: the timeouts of its connection are set."""
    return "read_response" in {frame.name for frame in extract_stack(sys._current_frames()[thread.ident or 0])}


CALLS: dict[str, Callable[[RedisStorage], object]] = {
    "call": lambda storage: storage.server.call(CHANGE, [storage.keys.of("m")], ["test", "1", "#mark:1-a"]),
    "run": lambda storage: storage.id(),
    "close": lambda storage: storage.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_of_another_thread_has_the_deadline_of_the_next_one(own_redis_server: RedisServer, name: str) -> None:
    """A call that began before there was a deadline is broken off where another thread's has to end by a deadline."""
    storage = RedisStorage(f"{own_redis_server.url}?socket_timeout=3", "test")
    storage.id()
    own_redis_server.freeze()
    errors: list[str] = []

    def read() -> None:
        with pytest.raises(StorageError) as raised:
            storage.read()
        errors.append(str(raised.value))

    reader = Thread(target=read)
    reader.start()
    wait_until(lambda: is_reading(reader))
    storage.set_deadline(time.monotonic() + 0.2)
    with suppress(StorageError):
        CALLS[name](storage)
    reader.join()
    assert "ConnectionError" in errors[0]
    storage.close()


def test_a_close_waits_for_no_call_that_cannot_be_broken_off(own_redis_server: RedisServer) -> None:
    """Where another thread uses a client that pdc takes as it is, a close ends by its deadline, and that call goes on."""
    found: list[Snapshot] = []
    with OwnClient.from_url(f"{own_redis_server.url}?socket_timeout=30") as client:
        storage = RedisStorage(client, "test")
        storage.id()
        own_redis_server.freeze()
        reader = Thread(target=lambda: found.append(storage.read()))
        reader.start()
        wait_until(lambda: is_reading(reader))
        storage.set_deadline(time.monotonic() + 0.2)
        storage.close()
        assert reader.is_alive()
        own_redis_server.thaw()
        reader.join()
    assert [snapshot.metrics for snapshot in found] == [{}]


@SHORT_INTERVALS
def test_shutdown_has_the_deadline_of_the_end(
    stopped: dict[str, Any], go_on: Callable[[], None], run_script: Run, interval: float
) -> None:
    """It waits no longer for a storage that does not answer, also amid a call; the journal has the unsent updates."""
    work = """
threading.Thread(target=hits.inc, args=[100], daemon=True).start()
threading.Thread(target=own.inc, args=[100], daemon=True).start()
time.sleep(0.3)
began = time.monotonic()
pdc.shutdown()
print(time.monotonic() - began)
"""
    options = {**stopped, "exit_timeout": 0.5}
    result = run_script(program(options, interval, work), storage=options)
    assert float(result.stdout) < 0.5 + MOST_SECONDS
    assert " wait in " in result.stderr
    go_on()
    assert stored(stopped) == {"hits_total": 101.0, "own_total": 101.0}


def test_a_flush_waits_for_a_storage_once(stopped: dict[str, Any], run_script: Run) -> None:
    """It gives up a storage that does not answer, even if several buffers send to it, and raises."""
    work = """
hits.inc(), own.inc()
began = time.monotonic()
try:
    pdc.flush()
except pdc.StorageError:
    print(time.monotonic() - began)
"""
    module, limit = ("redis.client", "SOCKET_SECONDS") if "redis" in stopped else ("sqlite.database", "BUSY_SECONDS")
    patch = f"import pdc.storage.{module} as module\nmodule.{limit} = 1.0\n"
    result = run_script(patch + program(stopped, 3600, work), storage={**stopped, "exit_timeout": 0.0})
    assert 0.5 < float(result.stdout) < 1.9
