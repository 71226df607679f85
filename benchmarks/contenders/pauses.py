"""How long other threads stand still while one renders many samples."""

from __future__ import annotations

import threading
import time

from benchmarks.worker import Operation

from .first_scrapes import IN_MEMORY
from .libraries import LIBRARIES
from .scrapes import check, fill, fill_elsewhere

TICK_SECONDS = 0.001


def make(library: str, counters: int, histograms: int) -> Operation:
    """Scrapes; returns the longest pause in seconds of CPU time of this process, which other programs do not prolong."""
    chosen = LIBRARIES[library]()
    (fill if library == IN_MEMORY else fill_elsewhere)(chosen, counters, histograms)

    def scrape(times: int) -> float:
        return sum(longest() for _ in range(times))

    def longest() -> float:
        pauses: list[float] = []
        done = threading.Event()
        ticker = threading.Thread(target=_tick, args=(pauses, done))
        ticker.start()
        text = chosen.render()
        done.set()
        ticker.join()
        check(text, counters, histograms)
        return max(pauses)

    return scrape


def _tick(pauses: list[float], done: threading.Event) -> None:
    last = time.process_time()
    while not done.wait(TICK_SECONDS):
        now = time.process_time()
        pauses.append(now - last)
        last = now
