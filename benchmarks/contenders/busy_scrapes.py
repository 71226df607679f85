"""Scrapes of a large metric while another process observes."""

from __future__ import annotations

import multiprocessing
import random
import time

from benchmarks.worker import Operation

from .libraries import BOUNDS, LIBRARIES, Library
from .scrapes import check, fill_elsewhere

MOST_OBSERVED = 1000
PAUSE_SECONDS = 0.05


def make(library: str, series: int) -> Operation:
    """Scrapes of that many histograms, some of which another process updates all the time."""
    chosen = LIBRARIES[library]()
    fill_elsewhere(chosen, 0, series)
    multiprocessing.get_context("fork").Process(target=_observe, args=(chosen, series), daemon=True).start()

    def scrape(times: int) -> None:
        for _ in range(times):
            check(chosen.render(), 0, series)

    return scrape


def _observe(library: Library, series: int) -> None:
    """Repeat for ever the observations of `fill_elsewhere` in its first histogram, so that no bucket is new."""
    histogram = library.histogram("seconds_0")
    while True:
        for number in random.sample(range(0, series, 4), min(series // 4, MOST_OBSERVED)):
            histogram.labels(*library.values("GET", f"/items/{number}", "200")).observe(BOUNDS[number % len(BOUNDS)])
        library.settle()
        time.sleep(PAUSE_SECONDS)
