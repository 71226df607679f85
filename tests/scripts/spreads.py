"""Processes of four resolutions that observe until they are killed, at a random moment; the next ones send their journals.

Meanwhile another process adds native buckets to coarser ones again and again.

The arguments are the count of processes, how many live at a time, and the `flush_interval`. It prints, as JSON, the numbers
whose observation returned, and for each process the number that it was observing when it was killed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from contextlib import suppress
from itertools import count

import pdc
from __main__ import setup
from pdc.storage import Batch, Kind, Limits, Operation, StorageError, Update

PROCESSES, AT_ONCE, INTERVAL = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
RESOLUTIONS = (
    pdc.Native(),
    pdc.Native(factor=1.01, zero_threshold=0),
    pdc.Native(factor=3, zero_threshold=0.01),
    pdc.Native(max_buckets=40),
)
PAUSE = 0.0005
"""Seconds between two observations, so that a process does not end with one batch."""
acknowledged = memoryview(mmap.mmap(-1, 8 * PROCESSES)).cast("Q")


def numbers_of(process: int) -> list[float]:
    """The numbers that a process observes."""
    dice = random.Random(process)
    special = [0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.0, -2.0]
    return [
        dice.choice(special) if dice.random() < 0.05 else dice.choice((1, 1, -1)) * dice.lognormvariate(0, 1 + process % 4)
        for _ in range(5000)
    ]


def work(process: int) -> None:
    """Observe one number after the other; a process that lives so long leaves the last one."""
    setup(flush_interval=INTERVAL, journal="journals")
    spread = pdc.Histogram("spread", "Numbers.", ["of"], buckets=() if process % 2 else (1,), native=RESOLUTIONS[process % 4])
    child = spread.labels("all")
    for number in numbers_of(process)[:-1]:
        child.observe(number)
        acknowledged[process] += 1
        time.sleep(PAUSE)
    signal.pause()


def coarsen() -> None:
    """Search for writers to forget without a pause: the series keeps few native buckets."""
    setup(flush_interval=3600)
    storage = pdc.config.DEFAULT.required()
    for sequence in count(1):
        with suppress(StorageError):
            for fields in storage.read(["spread"]).metrics.values():
                search = Operation(Kind.SET, "#search", 0.0)
                update = Update("spread", fields["#meta"], [search], limits=Limits(max_buckets=2 * RESOLUTIONS[3].max_buckets))
                storage.apply(Batch("0-search", sequence, [update]))
        time.sleep(PAUSE)


def spawn(process: int) -> int:
    """Start a process; the one of number -1 observes nothing."""
    pid = os.fork()
    if pid == 0:
        work(process) if process >= 0 else coarsen()
        os._exit(0)
    return pid


living: list[int] = []
other = spawn(-1)
for process in range(PROCESSES):
    living.append(spawn(process))
    if len(living) == AT_ONCE or process == PROCESSES - 1:
        for number, pid in enumerate(living, process + 1 - len(living)):
            least = random.randrange(300)
            while acknowledged[number] < least:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        living.clear()
os.kill(other, signal.SIGKILL)
os.waitpid(other, 0)
setup(journal="journals", flush_interval=0)
pdc.Histogram("spread", "Numbers.", ["of"], buckets=(), native=RESOLUTIONS[2])
for _ in range(20):  # a reply that is late fails it, too
    with suppress(StorageError):
        pdc.flush()
        break
pdc.shutdown()
counted = [number for process in range(PROCESSES) for number in numbers_of(process)[: acknowledged[process]]]
last = [numbers_of(process)[acknowledged[process]] for process in range(PROCESSES)]
print(json.dumps([counted, last]))
