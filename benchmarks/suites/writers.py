"""The cost of many processes that write: for Redis, for a scrape, and after they have ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from benchmarks.contenders.writers import ROUTES
from benchmarks.contest import Case, Suite

from .updates import MULTIPROCESS, PDC, library

REDIS = [PDC[1]]
MILLISECONDS: dict[str, Any] = {"unit": "ms", "scale": 1e3, "costly": True}


def _case(title: str, names: list[str], module: str, sizes: Iterable[int], of: str, most: int = 0, **how: Any) -> Case:
    """A case of contenders of these sizes; the multiprocess mode of prometheus_client only up to `most`."""
    keywords = how.pop("keywords", {})
    contenders = [
        replace(library(name, module, {**keywords, of: size}), size=size)
        for name in names
        for size in sizes
        if name != MULTIPROCESS or size <= most
    ]
    return Case(title, contenders, contenders[0].title, **how)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has fewer writers."""
    writers = (10, 100, 500) if quick else (10, 100, 1_000, 5_000)
    ended = (1, 100) if quick else (1, 100, 1_000, 10_000)
    routes = (1, ROUTES, 100)

    def by_writers(title: str, names: list[str], measured: str, **how: Any) -> Case:
        name = f"{title}, {ROUTES} routes, by the number of living writers"
        return _case(name, names, "writers", writers, "writers", keywords={"measured": measured}, **how)

    def by_routes(title: str, names: list[str], module: str, **how: Any) -> Case:
        return _case(f"{title}, by the number of routes that changed", names, module, routes, "routes", **how)

    of_redis = {"measured": "processor", "writers": 100}
    return Suite(
        "writers",
        "Cost of many processes",
        [
            by_writers("CPU time of Redis for a batch", REDIS, "processor", measures=("result",)),
            by_routes("CPU time of Redis for a batch", REDIS, "writers", keywords=of_redis, measures=("result",)),
            by_routes("CPU time of a process for a batch", PDC, "flushes", measures=("cpu",)),
            by_writers("Network of a batch", REDIS, "network", measures=("result",), unit="bytes", scale=1),
            by_writers("Scrape", [MULTIPROCESS, *PDC], "scrapes", most=100 if quick else 1_000, **MILLISECONDS),
            by_writers("Room", PDC, "room", measures=("result",), unit="kB", scale=1e-3, fresh=1, most_rounds=1),
            _case(
                "Scrape of 1,000 counters, by the number of workers that have ended",
                PDC,
                "recycled",
                ended,
                "workers",
                keywords={"counters": 1_000},
                **MILLISECONDS,
            ),
        ],
    )
