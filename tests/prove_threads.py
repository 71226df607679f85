"""Counts with many threads at once, amid scrapes, flushes, forks and signals, and compares with the storage.

    python tests/prove_threads.py [--updates 10000000] [--threads 16] [--seconds 480] [--storage sqlite|redis|both]
    python tests/prove_threads.py --control [--forks 1000]

Every thread, and the handler of a signal that comes again and again, updates a metric of each type. Meanwhile one thread
scrapes, one flushes, one declares and removes series, and the process forks children that count too. At the end every update
must be stored, once. It exits with 1 where one is missing, and ends itself, with tracebacks of all threads, if it takes
too long.

The control runs without pdc: as many threads count in plain Python, and read and write a SQLite database with a lock that forks
take, amid the same signals and forks. It reports how many children do not end by themselves, and how many clones that Python's
hooks do not see: those are faults of Python itself.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import itertools
import os
import signal
import sqlite3
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from prometheus_client import CollectorRegistry

import pdc
from pdc.exposition import Scrape

SIGNAL_SECONDS = 0.003
KINDS = 8
"""The updates of one step."""
BUCKETS = (1.0, 2.0, 3.0)
CLONES = 4
THREADS = 40
"""The number of waiting threads in the control of clones, and in the clones."""
MOST_CHILDREN = 4
"""The number of running threads."""
STRAYED = 3
"""The status of a child in which Python ran the handler of a signal that its parent got."""


class Program:
    """The metrics, and the number of updates."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.hits = pdc.Counter("hits", "Hits.", ["who"], registry=registry)
        self.alone = pdc.Counter("alone", "One series.", registry=registry)
        self.latency = pdc.Histogram("latency", "Seconds.", buckets=BUCKETS, registry=registry)
        self.size = pdc.Summary("size", "Bytes.", registry=registry)
        self.shared = pdc.Gauge("shared", "Ups and downs.", registry=registry)
        self.sum = pdc.Gauge("of_processes", "Ups of all processes.", multiprocess_mode="sum", registry=registry)
        self.live = pdc.Gauge("live", "Ups of those alive.", multiprocess_mode="livesum", registry=registry)
        self.last = pdc.Gauge("last", "Set by somebody.", multiprocess_mode="mostrecent", registry=registry)
        self.scrape: Callable[[], object] = pdc.generate_latest
        self.flush: Callable[[], object] = pdc.flush
        self.leave: Callable[[], object] = pdc.shutdown
        self.begin()

    def begin(self) -> None:
        """Begin with no update."""
        self.handled = itertools.count()
        self.process = os.getpid()
        self.strayed = False
        self.stop = threading.Event()
        self.errors: list[str] = []

    def step(self, who: str, number: int) -> None:
        """Update each kind once."""
        self.hits.labels(who).inc()
        self.alone.inc(exemplar={"trace": who} if number % 100 == 0 else None)
        self.latency.observe(number % 4 + 0.5, {"trace": who} if number % 100 == 0 else None)
        self.size.observe(2)
        self.shared.inc(2)
        self.sum.inc()
        self.live.inc()
        self.last.set(number)

    def interrupt(self, *_: object) -> None:
        """Count amid the work of the main thread, then schedule the next signal."""
        if os.getpid() != self.process:  # the signal was the parent's, where the handler runs, too
            self.strayed = True
            return
        self.step("handler", 100 * next(self.handled))
        if not self.stop.is_set():
            signal.setitimer(signal.ITIMER_REAL, SIGNAL_SECONDS)

    def watch(self, work: Callable[[], object]) -> None:
        """Repeat that until the end."""
        while not self.stop.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001 (the report has any exception)
                self.errors.append(repr(error))
            time.sleep(0.02)

    def come_and_go(self) -> None:
        """Declare series and remove them again."""
        for number in range(5):
            self.hits.labels(f"extra {number}").inc()
        for number in range(5):
            self.hits.remove(f"extra {number}")

    def fork(self) -> int:
        """Count in a child that is forked amid all this."""
        if pid := os.fork():
            return pid
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)  # its watchdog is a thread, which the child does not have
        signal.alarm(60)
        for number in range(10):
            self.step("child", number)
        self.leave()
        os._exit(STRAYED if self.strayed else 0)


class Control(Program):
    """The same without pdc: numbers in memory, and rows of a database."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.forks = 0
        self.inherited: list[sqlite3.Connection] = []
        self.connect()
        self.connection.execute("CREATE TABLE numbers (name PRIMARY KEY, number)")
        os.register_at_fork(before=self.before, after_in_parent=self.after_in_parent, after_in_child=self.connect)
        self.scrape = lambda: self.execute("SELECT name, number FROM numbers")
        self.flush = self.leave = self.write
        self.begin()

    def connect(self) -> None:
        """Begin in this process with its own lock, connection and numbers."""
        self.inherited.extend(connection for connection in [getattr(self, "connection", None)] if connection is not None)
        self.lock = threading.RLock()
        self.numbers: dict[str, list[float]] = {}
        self.connection = sqlite3.connect(self.path, timeout=20, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = wal")

    def fork(self) -> int:
        """Count the forks."""
        self.forks += 1
        return super().fork()

    def before(self) -> None:
        """Keep all threads out of the database during a fork."""
        self.lock.acquire()

    def after_in_parent(self) -> None:
        """Let the threads use the database again."""
        self.lock.release()

    def execute(self, statement: str, *arguments: object) -> list[Any]:
        """Execute that statement under the lock."""
        with self.lock:
            return self.connection.execute(statement, arguments).fetchall()

    def write(self) -> None:
        """Write all numbers."""
        for name, numbers in list(self.numbers.items()):
            self.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", name, sum(numbers))

    def step(self, who: str, number: int) -> None:
        """Add to as many numbers as a step has updates."""
        numbers = self.numbers.setdefault(f"{who} {threading.get_ident()}", [0.0] * KINDS)
        for kind in range(KINDS):
            numbers[kind] += number

    def come_and_go(self) -> None:
        """Create numbers and drop them again."""
        for number in range(5):
            self.numbers[f"extra {number}"] = [1.0] * KINDS
        for number in range(5):
            self.numbers.pop(f"extra {number}", None)


@contextmanager
def background(program: Program, *work: Callable[[], object]) -> Iterator[None]:
    """Do all that in background threads."""
    threads = [threading.Thread(target=program.watch, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    yield
    program.stop.set()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()


def run(program: Program, threads: int, numbers: Callable[[], Iterable[int]], forks: int) -> int:
    """Count with all threads, and fork; return the number of children that counted."""

    def work(who: str) -> None:
        for number in numbers():
            program.step(who, number)

    workers = [threading.Thread(target=work, args=(f"thread {number % 4}",)) for number in range(threads)]
    signal.signal(signal.SIGALRM, program.interrupt)
    running: list[int] = []
    statuses: list[int] = []
    with background(program, program.scrape, program.flush, program.come_and_go):
        signal.setitimer(signal.ITIMER_REAL, SIGNAL_SECONDS)
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.01)
            if len(running) + len(statuses) < forks:
                running.append(program.fork())
            if len(running) > MOST_CHILDREN:
                statuses.append(os.waitpid(running.pop(0), 0)[1])
    statuses.extend(os.waitpid(pid, 0)[1] for pid in running)
    ended = [os.waitstatus_to_exitcode(status) for status in statuses]
    if STRAYED in ended:
        print(f"  {ended.count(STRAYED)} children ran the handler of a signal of their parent: a fault of Python")
    program.errors.extend(f"a child ended with {status}" for status in ended if status not in {0, STRAYED})
    return len(statuses)


def prove(threads: int, updates: int, forks: int, storage: dict[str, Any]) -> list[str]:
    """Count in that storage; return the deviations."""
    pdc.setup(**storage, flush_interval=0.05)
    program = Program()
    steps = updates // KINDS // threads
    children = run(program, threads, lambda: range(steps), forks)
    pdc.setup(**storage, flush_interval=0.05)  # it also sends the updates of a child that found the database too busy
    pdc.flush()
    handled = next(program.handled)
    total = steps * threads + handled + 10 * children
    print(f"  {total * KINDS} updates: {threads} threads, {handled} handlers, {children} children")
    expected = {
        "alone_total": total,
        'hits_total{who="handler"}': handled,
        'hits_total{who="child"}': 10 * children,
        "latency_count": total,
        'latency_bucket{le="+Inf"}': total,
        "size_count": total,
        "size_sum": 2 * total,
        "shared": 2 * total,
        "of_processes": total,
        "live": total - 10 * children,
        **{f'hits_total{{who="thread {who}"}}': steps * len(range(who, threads, 4)) for who in range(4)},
    }
    wrong = differences({name: value for name, value in expected.items() if value})
    pdc.shutdown()
    return wrong + program.errors


def control(threads: int, forks: int) -> None:
    """Fork without pdc, and report the result."""
    with tempfile.TemporaryDirectory() as folder:
        program = Control(f"{folder}/numbers.db")
        run(program, threads, lambda: itertools.takewhile(lambda _: program.forks < forks, itertools.count()), forks)
        print(f"  {forks} children without pdc: {len(program.errors)} did not end as they should", *program.errors, sep="\n  ")
        program.connection.close()
    waiting, running = threading.Event(), threading.Event()
    hung = {"run": clones(lambda: sum(range(50)), gc.collect, running, 1)}
    hung["wait"] = clones(waiting.wait, wait_in_threads, waiting, THREADS)
    for what, count in hung.items():
        print(f"  {CLONES} clones by ctypes while other threads {what}: {count} did not end as they should")


def clones(work: Callable[[], object], in_clone: Callable[[], object], end: threading.Event, count: int) -> int:
    """Clone this process while so many threads work until that `end`; return the number of clones that hung or crashed."""

    def again() -> None:
        while not end.is_set():
            work()

    threads = [threading.Thread(target=again) for _ in range(count)]
    for thread in threads:
        thread.start()
    statuses = []
    for _ in range(CLONES):
        time.sleep(0.2)
        pid: int = ctypes.PyDLL(None).fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            in_clone()
            os._exit(0)
        statuses.append(os.waitpid(pid, 0)[1])
    end.set()
    for thread in threads:
        thread.join()
    return sum(status != 0 for status in statuses)


def wait_in_threads() -> None:
    """Start as many threads, each waiting for a lock, as the cloned process has."""
    locks = [threading.Lock() for _ in range(THREADS)]
    threads = [threading.Thread(target=lock.acquire) for lock in locks]
    for lock in locks:
        lock.acquire()
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    for lock in locks:
        lock.release()
    for thread in threads:
        thread.join()


def differences(expected: dict[str, int]) -> list[str]:
    """The differences between the storage and these numbers."""
    lines = pdc.generate_latest().decode().splitlines()
    found = {name: value for name, _, value in (line.rpartition(" ") for line in lines)}
    wrong = [
        f"expected {name} {value}, got {found.get(name)}"
        for name, value in expected.items()
        if float(found.get(name, "nan")) != value
    ]
    exemplars = Scrape(accept="application/openmetrics-text").answer().body.decode().count("# {trace=")
    return wrong if exemplars >= 2 else [*wrong, f"expected exemplars of the counter and the histogram, got {exemplars}"]


@contextmanager
def storages(kind: str) -> Iterator[dict[str, dict[str, Any]]]:
    """The arguments of `setup` for new storages."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, Any]] = {}
        server = None
        if kind != "redis":
            found["SQLite"] = {"sqlite": f"{folder}/metrics.db", "journal": f"{folder}/journals"}
        if kind != "sqlite":
            from conftest import RedisServer

            server = RedisServer(Path(folder))
            found["Redis"] = {"redis": server.url, "journal": f"{folder}/journals"}
        yield found
        if server is not None:
            server.stop()


def main() -> int:
    """Parse the arguments, and run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--forks", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=480, help="end after that time, whatever is missing")
    parser.add_argument("--storage", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--control", action="store_true", help="fork as many children without pdc")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    faulthandler.dump_traceback_later(options.seconds, exit=True)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    free = sysconfig.get_config_var("Py_GIL_DISABLED")
    print(f"{sys.version.split()[0]}{' free-threaded' if free else ''}, {'with' if gil else 'without'} the GIL")
    if options.control:
        control(options.threads, options.forks)
        return 0
    wrong = 0
    with storages(options.storage) as found:
        for name, storage in found.items():
            began = time.monotonic()
            print(name, flush=True)
            for message in (messages := prove(options.threads, options.updates // len(found), options.forks, storage)):
                print(f"  {message}")
            wrong += len(messages)
            print(
                f"  {'nothing lost, nothing twice' if not messages else 'WRONG'}, {time.monotonic() - began:.0f} s", flush=True
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
