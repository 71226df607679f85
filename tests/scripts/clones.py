"""Clones by a `fork` of the C library, and metrics of each type: the beginning of the programs of `test_forks.py`.

The argument is the class of `ctypes` that calls `fork`: PyDLL keeps the GIL, CDLL lets go of it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pdc

fork: Callable[[], int] = getattr(ctypes, sys.argv[1])(None).fork


def others() -> list[list[str]]:
    """The states of the other threads, and the numbers of their switches."""
    found = []
    for task in {path.name for path in Path("/proc/self/task").iterdir()} - {str(threading.get_native_id())}:
        with contextlib.suppress(OSError), Path(f"/proc/self/task/{task}/status").open() as file:
            found.append([line for line in file if line.startswith(("State", "voluntary"))])
    return found


def cloned(work: Callable[[], object], end: Callable[[int], object] = os._exit) -> int:
    """Work in a clone, and return its process id."""
    # CPython itself hangs in a clone of a process in which another thread has the GIL or waits for it. Without the GIL so
    # does any thread that runs: the clone waits for it at its next garbage collection.
    before = None
    while before != (now := others()) or any("S (sleeping)" not in lines[0] for lines in now):
        before = now
        time.sleep(0.05)
    pid = fork()
    if pid == 0:
        # From 3.14 on CPython also keeps a list of threads that wait, by address, of which some are on stacks that a thread
        # of the clone gets: by chance it hangs or crashes on them. `prove_threads.py --control` shows both without pdc.
        getattr(ctypes.pythonapi, "_PyParkingLot_AfterFork", int)()
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the clone ends here, whatever happens
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            end(status)
    return pid


def wait(pids: Iterable[int]) -> None:
    """Wait until the clones have ended without an error."""
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0


def end_as_usual(status: int) -> None:
    """End as a process does whose program has ended."""
    atexit._run_exitfuncs()
    os._exit(status)


hits = pdc.Counter("hits", "Hits.")
kinds = pdc.Counter("kinds", "Hits.", ["kind"])
last = pdc.Gauge("last", "Shared.")
own = pdc.Gauge("own", "Per process.", multiprocess_mode="sum")
sizes = pdc.Histogram("sizes", "Sizes.", buckets=(1, 2))
lasted = pdc.Summary("times", "Times.")
mode = pdc.Enum("mode", "Mode.", states=["a", "b"])


def count(times: int = 10, kind: str = "parent") -> None:
    """Update each metric but the mode."""
    for _ in range(times):
        hits.inc()
        kinds.labels(kind).inc(2)
        last.inc()
        own.inc()
        sizes.observe(1.5)
        lasted.observe(0.5)
