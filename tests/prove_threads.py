"""Counts with many threads at once, amid scrapes, flushes, forks and signals, and compares with what is stored.

    python tests/prove_threads.py [--updates 10000000] [--threads 16] [--seconds 480] [--storage sqlite|redis|both]

Every thread, and the handler of a signal that comes again and again, updates a metric of each type. Meanwhile one thread
scrapes, one flushes, one declares and removes series, and the process forks children that count too. At the end every update
must be in the storage, once. It exits with 1 where one is not, and ends itself, with a traceback of all threads, where it takes
too long.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import signal
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from prometheus_client import CollectorRegistry

import pdc
from pdc.exposition import Scrape

SIGNAL_SECONDS = 0.003
KINDS = 8
"""Updates of one step."""
BUCKETS = (1.0, 2.0, 3.0)


class Program:
    """The metrics, and what has been counted."""

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
        self.handled = itertools.count()
        self.stop = threading.Event()
        self.errors: list[str] = []

    def step(self, who: str, number: int) -> None:
        """One update of each kind."""
        self.hits.labels(who).inc()
        self.alone.inc(exemplar={"trace": who} if number % 100 == 0 else None)
        self.latency.observe(number % 4 + 0.5, {"trace": who} if number % 100 == 0 else None)
        self.size.observe(2)
        self.shared.inc(2)
        self.sum.inc()
        self.live.inc()
        self.last.set(number)

    def interrupt(self, *_: object) -> None:
        """Count amid whatever the main thread does, then be called again."""
        self.step("handler", 100 * next(self.handled))
        if not self.stop.is_set():
            signal.setitimer(signal.ITIMER_REAL, SIGNAL_SECONDS)

    def watch(self, work: Callable[[], object]) -> None:
        """Do that again and again."""
        while not self.stop.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001 (whatever it is, the report has it)
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
        signal.alarm(30)
        for number in range(10):
            self.step("child", number)
        pdc.shutdown()
        os._exit(0)


@contextmanager
def background(program: Program, *work: Callable[[], object]) -> Iterator[None]:
    """Do all that in threads of its own."""
    threads = [threading.Thread(target=program.watch, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    yield
    program.stop.set()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()


def run(program: Program, threads: int, steps: int, forks: int) -> int:
    """Count with all threads, and fork; return how many children counted."""

    def work(who: str) -> None:
        for number in range(steps):
            program.step(who, number)

    workers = [threading.Thread(target=work, args=(f"thread {number % 4}",)) for number in range(threads)]
    signal.signal(signal.SIGALRM, program.interrupt)
    children: list[int] = []
    with background(program, pdc.generate_latest, pdc.flush, program.come_and_go):
        signal.setitimer(signal.ITIMER_REAL, SIGNAL_SECONDS)
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.01)
            if len(children) < forks:
                children.append(program.fork())
    program.errors.extend(f"a child ended with {status}" for pid in children if (status := os.waitpid(pid, 0)[1]))
    return len(children)


def prove(threads: int, updates: int, forks: int, storage: dict[str, Any]) -> list[str]:
    """Count in that storage; return what is not as it must be."""
    pdc.setup(**storage, flush_interval=0.05)
    program = Program()
    steps = updates // KINDS // threads
    children = run(program, threads, steps, forks)
    pdc.setup(**storage, flush_interval=0.05)  # it also sends what is left of a child that found the database too busy
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


def differences(expected: dict[str, int]) -> list[str]:
    """In what the storage differs from that."""
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
    """Run it as the arguments say; return the code to exit with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--forks", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=480, help="end after that time, whatever is missing")
    parser.add_argument("--storage", choices=("sqlite", "redis", "both"), default="both")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    faulthandler.dump_traceback_later(options.seconds, exit=True)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    free = sysconfig.get_config_var("Py_GIL_DISABLED")
    print(f"{sys.version.split()[0]}{' free-threaded' if free else ''}, {'with' if gil else 'without'} the GIL")
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
