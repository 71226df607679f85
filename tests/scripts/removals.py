"""Processes that are killed amid the removal of most series of a metric, each followed by one that sends its journal.

The argument is the number of these processes. It prints how many of them had sent a part of the removal.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable

import pdc
import pdc.exposition
from __main__ import setup

SERIES, ROUNDS = 2000, int(sys.argv[1])
setup(flush_interval=600, journal="journals")
wait = pdc.Histogram("wait", "Wait.", ["user", "group"], buckets=[1, 2])
ready, go = os.pipe()


def child(number: int) -> tuple[str, str]:
    """The labels of a series."""
    return str(number), str(number % 4)


def in_a_process(work: Callable[[], object], seconds: float | None = None) -> float:
    """Work in a process, kill it after so many seconds of its flush, and return the seconds until its end."""
    pid = os.fork()
    if pid == 0:
        work()
        os.write(go, b"1")
        pdc.flush()
        os._exit(0)
    os.read(ready, 1)
    began = time.monotonic()
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return time.monotonic() - began


def observe(numbers: Iterable[int], amount: float) -> None:
    """Observe once in each of these series."""
    for number in numbers:
        wait.labels(*child(number)).observe(amount)


def remove_and_go_on() -> None:
    """Remove series one by one and by a label, then observe in some of them again."""
    for number in removed:
        if number % 4:
            wait.remove(*child(number))
    wait.remove_by_labels({"group": "0"})
    observe(again, 0.5)


def stored() -> dict[int, tuple[float, ...]]:
    """The sum, the count and the buckets of each series in the storage."""
    found: dict[int, dict[str, float]] = collections.defaultdict(dict)
    for metric in pdc.exposition.collect():
        for sample in metric.samples:
            if metric.name == "wait" and not sample.name.endswith("_created"):
                found[int(sample.labels["user"])][sample.name + sample.labels.get("le", "")] = sample.value
    return {n: (f["wait_sum"], f["wait_count"], f["wait_bucket1.0"], f["wait_bucket2.0"]) for n, f in found.items()}


expected: dict[int, tuple[float, ...]] = dict.fromkeys(range(SERIES), (1.5, 1.0, 0.0, 1.0))
in_a_process(lambda: observe(range(SERIES), 1.5))
taken, cut = 0.0, 0
for turn in range(ROUNDS):
    removed = {n for n in range(SERIES) if n % 4 == 0 or random.random() < 0.8}
    again = random.sample(range(SERIES), 1700)
    seconds = in_a_process(remove_and_go_on, random.uniform(0, taken) if turn else None)
    taken = taken or seconds
    left = stored()
    cut += 0 < len([n for n in removed if left.get(n) == expected.get(n)]) < len([n for n in removed if n in expected])
    setup(flush_interval=600, journal="journals")
    pdc.flush()
    for number in removed:
        expected.pop(number, None)
    for number in again:
        total, count, low, high = expected.get(number, (0.0, 0.0, 0.0, 0.0))
        expected[number] = total + 0.5, count + 1, low + 1, high + 1
    found = stored()
    wrong = [(n, found.get(n), expected.get(n)) for n in range(SERIES) if found.get(n) != expected.get(n)]
    assert not wrong, (turn, len(wrong), wrong[:5])
print(cut)
