"""Exceptions of a signal handler at random times amid updates, flushes and scrapes, next to another process that counts.

The arguments are the `flush_interval`, the number of exceptions, and the longest time before one, in seconds. It prints the
number of exceptions that did not arrive, of each work that ended, and the counts in the memory of this process.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable

import pdc
from __main__ import setup

INTERVAL, LIMITS, LONGEST = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

if sys.version_info < (3, 13):
    # There, the lock of `logging` may stay held where an exception comes as Python takes it. redis-py 8 takes it to connect.
    setattr(logging, "_lock", None)  # noqa: B010 - type checkers do not know it

warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)  # redis-py leaves one where it is interrupted
drops = 0


def drop(_: object) -> None:
    """Count what Python drops in finalizers, such as those of sockets."""
    global drops  # noqa: PLW0603 - as below
    drops += 1


sys.unraisablehook = drop


class TimeLimit(Exception):  # noqa: N818 - Celery's name has no Error, too
    """The handler raises it."""


interrupts, armed = 0, False


def interrupt(*_: object) -> None:
    """Raise, once each time it is armed."""
    global armed, interrupts  # noqa: PLW0603 - the handler shares them with the loop, which no call may interrupt
    if armed:
        armed = False
        interrupts += 1
        raise TimeLimit


def other() -> None:
    """Count in another process."""
    mine = pdc.Counter("other", "Of another process.")
    setup(flush_interval=0)
    for _ in range(200):
        mine.inc()


child = os.fork()
if child == 0:
    other()
    sys.exit()
signal.signal(signal.SIGALRM, interrupt)
hits = pdc.Counter("hits", "Hits.", ["path"])
wait = pdc.Histogram("wait", "Wait.", buckets=[1])
level = pdc.Gauge("level", "Level.")
setup(flush_interval=INTERVAL)
pdc.flush()  # imports what connecting needs: locks of Python's imports stay held where an exception comes amid one
pdc.generate_latest()
swallowed = 0
works: list[Callable[[], object]] = [hits.labels("/").inc] * 6
works += [lambda: wait.observe(1), level.inc, pdc.flush, pdc.generate_latest]
counts = dict.fromkeys(works, 0)
while interrupts < LIMITS:
    work, before, drops = random.choice(works), interrupts, 0
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, LONGEST))
    try:
        armed = True
        work()
        armed = False
        counts[work] += 1
        swallowed += interrupts > before and not drops
    except TimeLimit:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
assert os.waitpid(child, 0)[1] == 0
pdc.flush()
cells = [metric._cell for metric in (hits.labels("/"), wait)]
print(swallowed, *counts.values(), *(cell.memory[cell.offset] for cell in cells))
