"""Forks while four threads update, flush and scrape. The children count, too.

The argument is the `flush_interval`. It prints the number of updates of the threads.
"""

from __future__ import annotations

import os
import sys
import threading

import pdc
from __main__ import setup

INTERVAL = float(sys.argv[1])

hits = pdc.Counter("hits", "Hits.", ["who"])
latency = pdc.Histogram("latency", "Seconds.")
setup(flush_interval=INTERVAL)
stop = threading.Event()
counted = [0] * 4


def update(index: int) -> None:
    """Update until the end, and flush or scrape now and then."""
    while not stop.is_set():
        hits.labels("parent").inc()
        latency.observe(1)
        counted[index] += 1
        if counted[index] % 50 == 0:
            (pdc.flush if index % 2 else pdc.generate_latest)()


threads = [threading.Thread(target=update, args=(index,)) for index in range(4)]
for thread in threads:
    thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        for _ in range(3):
            hits.labels("child").inc()
            latency.observe(1)
        pdc.generate_latest()
        threading.main_thread()  # the other threads are not in this process
        sys.exit()
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
stop.set()
for thread in threads:
    thread.join()
print(sum(counted))
