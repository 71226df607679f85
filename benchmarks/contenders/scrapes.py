"""Rendering many samples."""

from __future__ import annotations

import multiprocessing

from benchmarks.worker import Operation

from .libraries import BOUNDS, LIBRARIES, Library

METRICS = 4
"""The number of counters, and the number of histograms."""
SAMPLES_OF_HISTOGRAM = len(BOUNDS) + 3
"""The samples of a histogram: its buckets with the infinite one, count and sum."""


def make(library: str, counters: int, histograms: int, processes: int = 0) -> Operation:
    """Scrapes of so many series, which this process has updated, or each of so many processes that have ended since."""
    chosen = LIBRARIES[library]()
    for _ in range(processes):
        fill_elsewhere(chosen, counters, histograms)
    if not processes:
        fill(chosen, counters, histograms)

    def scrape(times: int) -> None:
        for _ in range(times):
            check(chosen.render(), counters, histograms)

    return scrape


def fill(library: Library, counters: int, histograms: int) -> None:
    """Update that many series."""
    metrics = [(library.counter(f"events_{number}"), library.histogram(f"seconds_{number}")) for number in range(METRICS)]
    for number in range(counters):
        counter, _ = metrics[number % METRICS]
        counter.labels(*library.values("GET", f"/items/{number}", "200")).inc(number)
    for number in range(histograms):
        _, histogram = metrics[number % METRICS]
        histogram.labels(*library.values("GET", f"/items/{number}", "200")).observe(BOUNDS[number % len(BOUNDS)])
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
