"""Threads that count in a Redis whose primary is replaced, until a line of input. It prints the number of rounds of updates.

The arguments are Python source of the client, the `flush_interval`, and the numbers of metrics and of threads.
"""

from __future__ import annotations

import sys
import threading
import time

import redis
from redis.sentinel import Sentinel

import pdc

CLIENT = eval(sys.argv[1], {"redis": redis, "Sentinel": Sentinel})
INTERVAL, METRICS, THREADS = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

pdc.setup(redis=CLIENT, flush_interval=INTERVAL, journal=False)
counters = [pdc.Counter(f"load_{number}", "Load.") for number in range(METRICS)]
stop = threading.Event()
counts: list[int] = []


def count() -> None:
    """Count until the end."""
    done = 0
    while not stop.wait(0.002):
        for counter in counters:
            counter.inc()
        done += 1
    counts.append(done)


def send() -> bool:
    """Flush; False where that fails."""
    try:
        pdc.flush()
    except pdc.StorageError:
        time.sleep(0.1)
        return False
    return True


threads = [threading.Thread(target=count) for _ in range(THREADS)]
for thread in threads:
    thread.start()
sys.stdin.readline()
stop.set()
for thread in threads:
    thread.join()
assert len(counts) == THREADS
while not send():
    pass
print(sum(counts))
