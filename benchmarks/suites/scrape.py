"""The cost of a scrape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.contenders.scrapes import SAMPLES_OF_HISTOGRAM
from benchmarks.contest import Case, Contender, Suite

from .updates import MULTIPROCESS, PDC, REFERENCE, library

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
                f"{samples:,} samples, replies of Redis read in Python",
                [library(name, "scrapes", {"hiredis": False, **size}) for name in (REFERENCE, PDC[1], "pytheus, Redis")],
                REFERENCE,
                **MILLISECONDS,
            ),
            Case(
                f"{samples:,} samples, first scrape of a process",
                [library(name, "first_scrapes", {"what": "seconds", **size}) for name in [*first, "pytheus, Redis"]],
                REFERENCE,
                measures=("result",),
                **MILLISECONDS,
            ),
            Case(
                f"{samples:,} samples, peak of memory",
                [library(name, "first_scrapes", {"what": "bytes", **size}) for name in first],
                REFERENCE,
                unit="MB",
                scale=1e-6,
                measures=("result",),
                costly=True,
                most_rounds=3,
            ),
            Case(
                f"{samples:,} samples while another process observes",
                [library(name, "busy_scrapes", {"series": samples // SAMPLES_OF_HISTOGRAM}) for name in PDC],
                PDC[0],
                **MILLISECONDS,
            ),
            _by_series(samples // 5),
            *(
                _many_processes(processes, **what)
                for what in ({"counters": samples // 50}, {"histograms": samples // 10 // SAMPLES_OF_HISTOGRAM})
                for processes in ((4,) if quick else (16, 64))
            ),
        ],
    )


STORAGES = ("SQLite", "Redis")


def _by_series(most: int) -> Case:
    names = [REFERENCE, *PDC]
    sizes = (most // 100, most // 10, most)
    contenders = [
        replace(library(name, "scrapes", {"counters": size, "histograms": 0}), size=size) for name in names for size in sizes
    ]
    return Case("Counters, by their number", contenders, contenders[0].title, **MILLISECONDS)


def _many_processes(processes: int, counters: int = 0, histograms: int = 0) -> Case:
    keywords = {"counters": counters, "histograms": histograms, "processes": processes}
    contenders = [library(name, "scrapes", keywords) for name in [MULTIPROCESS, *PDC]]
    what = f"{counters:,} counters" if counters else f"{histograms:,} histograms"
    return Case(f"{what} of {processes} processes", contenders, MULTIPROCESS, **MILLISECONDS)
