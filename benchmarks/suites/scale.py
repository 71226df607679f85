"""The cost of a very large metric for others."""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Case, Contender, Suite

from .updates import REFERENCE, library

MILLISECONDS: dict[str, Any] = {"unit": "ms", "scale": 1e3, "costly": True, "measure": "result"}
EVERY_SECOND = ["pdc, SQLite, every second", "pdc, Redis, every second"]


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has a tenth of the series."""
    series = 10_000 if quick else 100_000
    return Suite(
        "scale",
        "Cost of a metric of many series for others",
        [
            Case(
                f"remove() of a metric of {series:,} series",
                [library(name, "removals", {"series": series}) for name in (REFERENCE, *EVERY_SECOND)],
                REFERENCE,
                measure="cpu",
                fresh=series // 10,
            ),
            *(
                Case(
                    f"Scrape of {series:,} counters, longest pause of {others}",
                    [
                        library(name, "pauses", {"counters": series, "histograms": 0, "others": kind})
                        for name in (REFERENCE, *EVERY_SECOND)
                    ],
                    REFERENCE,
                    **MILLISECONDS,
                )
                for kind, others in (("threads", "other threads"), ("event loop", "the event loop"))
            ),
            Case(
                f"First scrape of {series:,} histograms, longest pause of other threads",
                [
                    library(name, "pauses", {"counters": 0, "histograms": series, "others": "threads"})
                    for name in (REFERENCE, *EVERY_SECOND)
                ],
                REFERENCE,
                **{**MILLISECONDS, "costly": False},
                fresh=1,
                most_rounds=5,
            ),
            Case(
                f"Scrape of {series:,} histograms while another process observes",
                [library(name, "busy_scrapes", {"series": series}) for name in EVERY_SECOND],
                EVERY_SECOND[0],
                **{**MILLISECONDS, "measure": "wall"},
            ),
            *(_waits(storage, series, histograms=histograms) for storage in STORAGES for histograms in (False, True)),
        ],
    )


STORAGES = {"Redis": "a ping of another client of Redis", "SQLite": "another writer of the SQLite file"}


def _waits(storage: str, series: int, *, histograms: bool) -> Case:
    kind = "histograms" if histograms else "counters"
    keywords = {"storage": storage.lower(), "series": series, "histograms": histograms}
    works = {
        "nothing else happens": "nothing",
        f"scrape of {series:,} {kind}": "scrape",
        f"{series // 10:,} removals by all labels": "remove",
        "removal of all by one label": "remove_by_labels",
    }
    contenders = [Contender(name, "neighbours", {**keywords, "work": work}) for name, work in works.items()]
    return Case(f"Longest wait of {STORAGES[storage]}, {kind}", contenders, next(iter(works)), most_rounds=5, **MILLISECONDS)
