"""Updates by a signal handler, finalizers and a callback of the garbage collector, amid updates, flushes and scrapes.

The argument is the `flush_interval`. It prints the number of updates by each of them, and by the two threads.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import time

import pdc
from __main__ import setup

INTERVAL = float(sys.argv[1])
CYCLES = 600

hits = pdc.Counter("hits", "Hits.", ["who"])
latency = pdc.Histogram("latency", "Seconds.", buckets=(1,))
level = pdc.Gauge("level", "Ups.", multiprocess_mode="sum")
setup(flush_interval=INTERVAL)
counts: dict[str, list[None]] = {who: [] for who in ("handler", "finalizer", "collector", "main", "thread")}
collections = itertools.count()


def collected(_phase: str, _: object) -> None:
    """Update at some collections of garbage."""
    if next(collections) % 101 == 0:  # an update makes garbage itself
        update("collector")


def update(who: str) -> None:
    """Update each metric."""
    hits.labels(who).inc()
    latency.observe(0.5)
    level.inc()
    counts[who].append(None)  # in one step: finalizers run in all threads


class Cycle:
    """Garbage that updates when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        update("finalizer")


def work() -> None:
    """Update in a thread."""
    for _ in range(300):
        update("thread")


def interrupt(*_: object) -> None:
    """Update in the handler of a signal, and schedule the next one."""
    update("handler")
    if not done:
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # not sooner, or a slow machine would do nothing else


done: list[bool] = []
signal.signal(signal.SIGALRM, interrupt)
thread = threading.Thread(target=work)
thread.start()
gc.set_threshold(50)
gc.callbacks.append(collected)
signal.setitimer(signal.ITIMER_REAL, 0.001)
for number in range(CYCLES):
    Cycle()
    update("main")
    if number % 20 == 0:
        pdc.generate_latest()
        hits.labels(f"extra {number}")
        pdc.flush()
        hits.remove(f"extra {number}")
thread.join()
done.append(True)
signal.setitimer(signal.ITIMER_REAL, 0)
while len(counts["finalizer"]) < CYCLES:  # another thread may be at a collection: then this one has none, and returns at once
    gc.collect()
    time.sleep(0.001)
gc.callbacks.remove(collected)
pdc.flush()
counted = [len(each) for each in counts.values()]
assert all(counted), counted
print(*counted)
