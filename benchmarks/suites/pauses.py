"""The pauses of others while many series are sent, scraped or removed."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.scrapes import SAMPLES_OF_HISTOGRAM
from benchmarks.contest import Case, Contender, Suite

from .updates import PDC, REFERENCE, library

LONGEST: dict[str, Any] = {"unit": "ms", "scale": 1e3, "costly": True, "measures": ("result",)}
OTHERS = {"threads": "other threads", "event loop": "the event loop"}
MANY = 1_000_000
"""Samples that take so long that three rounds must do, without prometheus_client: it takes ten times as long as for a tenth."""
STORAGES = {"Redis": "a ping of another client of Redis", "SQLite": "another writer of the SQLite file"}


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has a tenth of the samples, and omits the largest sizes and the removals."""
    changed, *sizes = (2_000, 10_000) if quick else (20_000, 100_000, 1_000_000)
    cases = [
        *(
            Case(
                f"Flush of {changed:,} changed series: pause of {OTHERS[others]}",
                [_pauses(name, others, counters=changed, flush=True) for name in PDC],
                PDC[0],
                **LONGEST,
            )
            for others in OTHERS
        ),
        *(_scrape(size, others) for size in sizes for others in OTHERS),
        *(_waits(storage, changed, removals=not quick) for storage in STORAGES),
    ]
    if not quick:
        cases.append(_first_scrape(changed))
        cases += [_waits("Redis", size, flush=False) for size in sizes]  # nobody waits for a reader of SQLite
        cases.append(_waits("Redis", changed, removals=True, histograms=True))
    return Suite("pauses", "Longest pause of others", cases)


def _pauses(name: str, others: str, counters: int = 0, histograms: int = 0, *, flush: bool = False) -> Contender:
    return library(name, "pauses", {"counters": counters, "histograms": histograms, "others": others, "flush": flush})


def _scrape(samples: int, others: str) -> Case:
    counters = samples // 5
    histograms = (samples - counters) // SAMPLES_OF_HISTOGRAM
    names, rounds = ([REFERENCE, *PDC], 5) if samples < MANY else (PDC, 3)
    contenders = [_pauses(name, others, counters, histograms) for name in names]
    name = f"Scrape of {samples:,} samples: pause of {OTHERS[others]}"
    return Case(name, contenders, names[0], most_rounds=rounds, **LONGEST)


def _first_scrape(series: int) -> Case:
    contenders = [_pauses(name, "threads", histograms=series) for name in (REFERENCE, *PDC)]
    how = {**LONGEST, "costly": False}
    return Case(
        f"First scrape of {series:,} histograms: pause of other threads", contenders, REFERENCE, fresh=1, most_rounds=5, **how
    )


def _waits(storage: str, series: int, *, flush: bool = True, removals: bool = False, histograms: bool = False) -> Case:
    kind = "histograms" if histograms else "counters"
    works = {"nothing else happens": "nothing", f"scrape of {series:,} {kind}": "scrape"}
    if flush:
        works[f"flush of {series:,} changed series"] = "flush"
    if removals:
        works[f"{series // 10:,} removals by all labels"] = "remove"
        works["removal of all by one label"] = "remove_by_labels"
    keywords = {"storage": storage.lower(), "histograms": histograms}
    contenders = [
        Contender(f"pdc, {name}", "neighbours", {**keywords, "series": 1 if work == "nothing" else series, "work": work})
        for name, work in works.items()
    ]
    name = f"{series:,} {kind}: wait of {STORAGES[storage]}"
    return Case(name, contenders, contenders[0].title, most_rounds=3, **LONGEST)
