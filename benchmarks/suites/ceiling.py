"""The flushes that Redis carries: one server, and the busiest node of a cluster."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.ceiling import FLUSHES
from benchmarks.contenders.writers import ROUTES
from benchmarks.contest import Case, Contender, Suite

NODES = 3
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "pdc, one server": {"nodes": 1},
    f"pdc, cluster of {NODES}, each metric on a node": {"nodes": NODES, "prefix": "shop"},
    f"pdc, cluster of {NODES}, counter and histogram on one node": {"nodes": NODES},
}
"""The keywords of each contender; the slots of the keys follow from the prefix."""
SHARES = (0.5, 0.9, 1.1)
"""Parts of the full load."""
MILLISECONDS: dict[str, Any] = {"unit": "ms", "scale": 1e3, "measures": ("result",), "costly": True}


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has fewer writers."""
    writers = 100 if quick else 1_000

    def full(title: str, measured: str, measure: str) -> Case:
        contenders = [
            Contender(name, "ceiling", {**how, "routes": routes, "writers": writers, "measured": measured}, size=routes)
            for name, how in TOPOLOGIES.items()
            for routes in (1, ROUTES, 10 * ROUTES)
        ]
        name = f"{title}, by the number of routes that changed"
        return Case(name, contenders, contenders[0].title, scale=1e6 / FLUSHES, measures=(measure,), most_rounds=15)

    def at_shares(title: str, measured: str, shares: tuple[float, ...], writers: int) -> Case:
        contenders = [
            Contender(
                f"{name}, at {share:.0%}",
                "ceiling",
                {**how, "routes": ROUTES, "writers": writers, "measured": measured, "share": share},
            )
            for name, how in list(TOPOLOGIES.items())[:2]
            for share in shares
        ]
        return Case(f"{title}, {ROUTES} routes, at parts of the full load", contenders, contenders[0].title, **MILLISECONDS)

    return Suite(
        "ceiling",
        "Flushes that Redis carries",
        [
            full("Flush at full load", "full load", "wall"),
            full("CPU time of the busiest Redis for a flush at full load", "processor", "result"),
            at_shares("Median wait of a flush", "median", SHARES, writers),
            at_shares("Wait of 99 of 100 flushes", "worst", SHARES, writers),
            at_shares(f"Scrape of {5 * writers:,} writers", "scrape", (0.0, *SHARES[:2]), 5 * writers),
        ],
    )
