"""Processes that count until they are killed, at a random moment; then another one sends their journals.

The arguments are the number of processes and the `flush_interval`. It prints, as JSON, the number of rounds of updates whose
calls returned, and the samples in the storage.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time

import pdc
import pdc.exposition
from __main__ import setup

ROUNDS, INTERVAL = int(sys.argv[1]), float(sys.argv[2])
setup(flush_interval=INTERVAL, journal="journals")
counter = pdc.Counter("hits", "Hits.", ["by"])
wait = pdc.Histogram("wait", "Wait.", buckets=[1, 2])
size = pdc.Summary("size", "Size.")
level = pdc.Gauge("level", "Level.")
latest = pdc.Gauge("latest", "Latest.")
each = pdc.Gauge("each", "Of each.", multiprocess_mode="sum")
acknowledged = memoryview(mmap.mmap(-1, 8)).cast("Q")


def work() -> None:
    """Update each metric again and again."""
    child = counter.labels("me")
    while True:
        child.inc()
        wait.observe(1.5)
        size.observe(3)
        level.inc()
        each.inc()
        latest.set(acknowledged[0] + 1)
        acknowledged[0] += 1


for number in range(ROUNDS):
    before = acknowledged[0]
    pid = os.fork()
    if pid == 0:
        work()
    while number % 5 == 0 and acknowledged[0] == before:  # on a busy machine, many are killed before they count
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.08))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
setup(journal="journals")
pdc.flush()
found = {}
for metric in pdc.exposition.collect():
    for sample in metric.samples:
        found[sample.name + sample.labels.get("le", "")] = sample.value
print(json.dumps([acknowledged[0], found]))
