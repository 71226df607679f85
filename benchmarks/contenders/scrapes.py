"""Rendering many samples."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from benchmarks.worker import Operation

from .libraries import BOUNDS, LIBRARIES, Library

METRICS = 4
"""The number of counters, and the number of histograms, unless a contender has others."""
SAMPLES_OF_HISTOGRAM = len(BOUNDS) + 3
"""The samples of a histogram: its buckets with the infinite one, count and sum."""


def make(
    library: str,
    counters: int,
    histograms: int,
    processes: int = 0,
    metrics: int = METRICS,
    registry: bool = False,
    hiredis: bool = True,
) -> Operation:
    """Scrapes of so many series, which this process has updated, or each of so many processes that have ended since.

    A scrape uses the function of the library, or that of prometheus_client for the `registry`. Without `hiredis`, redis-py
    reads replies in Python.
    """
    if not hiredis:
        sys.modules["hiredis"] = None  # type: ignore[assignment]  # its import fails
    chosen = LIBRARIES[library]()
    for _ in range(processes):
        fill_elsewhere(chosen, counters, histograms)
    if not processes:
        fill(chosen, counters, histograms, metrics)
    render = chosen.render_registry if registry else chosen.render

    def scrape(times: int) -> None:
        for _ in range(times):
            check(render(), counters, histograms)

    return scrape


def declare(library: Library, counters: int, histograms: int, metrics: int = METRICS) -> tuple[list[Any], list[Any]]:
    """So many counters and histograms, of each kind that has series."""
    counting = [library.counter(f"events_{number}") for number in range(metrics) if counters]
    timing = [library.histogram(f"seconds_{number}") for number in range(metrics) if histograms]
    return counting, timing


def fill(library: Library, counters: int, histograms: int, metrics: int = METRICS) -> None:
    """Update that many series."""
    counting, timing = declare(library, counters, histograms, metrics)
    for number in range(counters):
        counting[number % metrics].labels(*library.values("GET", f"/items/{number}", "200")).inc(number)
    for number in range(histograms):
        labelled = timing[number % metrics].labels(*library.values("GET", f"/items/{number}", "200"))
        labelled.observe(BOUNDS[number % len(BOUNDS)])
    library.settle()


def fill_elsewhere(library: Library, counters: int, histograms: int) -> None:
    """Update that many series in a process that then ends."""
    process = multiprocessing.get_context("fork").Process(target=fill, args=(library, counters, histograms))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a process that fills metrics in ended with {process.exitcode}")


def check(text: bytes, counters: int, histograms: int) -> None:
    """Raise RuntimeError where the text lacks samples."""
    expected = counters + histograms * SAMPLES_OF_HISTOGRAM
    samples = text.count(b"\n") - text.count(b"\n#") - text.startswith(b"#")
    if samples < expected:
        raise RuntimeError(f"expected {expected} samples, got {samples}")
