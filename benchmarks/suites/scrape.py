"""The cost of a scrape."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.scrapes import SAMPLES_OF_HISTOGRAM
from benchmarks.contest import Case, Contender, Suite

from .updates import REFERENCE, library

MULTIPROCESS = "prometheus_client, multiprocess mode"
PDC = ["pdc, SQLite, every second", "pdc, Redis, every second"]
MILLISECONDS: dict[str, Any] = {"unit": "ms", "scale": 1e3, "costly": True}


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has a tenth of the samples."""
    samples = 10_000 if quick else 100_000
    counters = samples // 5
    size = {"counters": counters, "histograms": (samples - counters) // SAMPLES_OF_HISTOGRAM}
    first = [REFERENCE, MULTIPROCESS, *PDC]
    return Suite(
        "scrape",
        "Cost of a scrape",
        [
            Case(
                f"{samples:,} samples",
                [
                    *(library(name, "scrapes", size) for name in [*first, "version 2, Redis", "pytheus, Redis"]),
                    *(Contender(f"read and join: {name}", "raw_reads", {"storage": name.lower(), **size}) for name in STORAGES),
                ],
                REFERENCE,
                **MILLISECONDS,
            ),
            Case(
                f"{samples:,} samples, first scrape of a process",
                [library(name, "first_scrapes", {"what": "seconds", **size}) for name in first],
                REFERENCE,
                measure="result",
                **MILLISECONDS,
            ),
            Case(
                f"{samples:,} samples, peak of memory",
                [library(name, "first_scrapes", {"what": "bytes", **size}) for name in first],
                REFERENCE,
                unit="MB",
                scale=1e-6,
                measure="result",
                costly=True,
            ),
            *(
                Case(
                    f"{samples:,} samples, longest pause of {others}",
                    [library(name, "pauses", {**size, "others": kind}) for name in [REFERENCE, *PDC]],
                    REFERENCE,
                    measure="result",
                    **MILLISECONDS,
                )
                for kind, others in (("threads", "other threads"), ("event loop", "the event loop"))
            ),
            *(
                _many_processes(processes, **what)
                for what in ({"counters": samples // 10}, {"histograms": samples // 10 // SAMPLES_OF_HISTOGRAM})
                for processes in ((4,) if quick else (16, 64))
            ),
            *(_recycled_workers(name, 1_000 if quick else 10_000) for name in STORAGES),
        ],
    )


STORAGES = ("SQLite", "Redis")


def _many_processes(processes: int, counters: int = 0, histograms: int = 0) -> Case:
    keywords = {"counters": counters, "histograms": histograms, "processes": processes}
    contenders = [library(name, "scrapes", keywords) for name in [MULTIPROCESS, *PDC]]
    what = f"{counters:,} counters" if counters else f"{histograms:,} histograms"
    return Case(f"{what} of {processes} processes", contenders, MULTIPROCESS, **MILLISECONDS)


def _recycled_workers(storage: str, workers: int) -> Case:
    counts = {f"{storage}, after {count:,}": count for count in (1, workers)}
    contenders = [
        Contender(name, "recycled", {"library": f"pdc_{storage.lower()}", "workers": count, "counters": 1_000})
        for name, count in counts.items()
    ]
    return Case(
        f"1,000 counters after {workers:,} recycled workers, {storage}", contenders, next(iter(counts)), unit="ms", scale=1e3
    )
