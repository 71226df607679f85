"""The cost of updates that are in the storage when the call returns, beside one bare call of the driver."""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Case, Contender, Suite

from .updates import AT_ONCE, KINDS, library

FLOORS = {"Redis": "one EVALSHA of redis-py", "SQLite": "one INSERT of sqlite3"}
"""The reference of each storage."""
NAMES = {
    "Redis": [AT_ONCE[1], "version 2, Redis", "pytheus, Redis"],
    "SQLite": [AT_ONCE[0], "version 2, SQLite"],
}
ROUND_TRIP_SECONDS = 0.001


def _case(title: str, kind: str, storage: str, **how: Any) -> Case:
    keywords = {"kind": kind, **({"delay": ROUND_TRIP_SECONDS} if "measures" not in how else {})}
    contenders = [
        Contender(FLOORS[storage], "floors", {"storage": storage.lower(), **keywords}),
        *(library(name, "updates", keywords) for name in NAMES[storage]),
    ]
    return Case(f"{title}, {storage}", contenders, FLOORS[storage], **how)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one moves Redis away for one kind of update only."""
    kinds = {**KINDS, "counter.labels(a, b, c).inc() of a new series": "new_series"}
    near = [_case(title, kind, storage, measures=("cpu", "wall")) for storage in FLOORS for title, kind in kinds.items()]
    far = [_case(f"{title}, {ROUND_TRIP_SECONDS * 1000:.0f} ms away", kind, "Redis") for title, kind in kinds.items()]
    return Suite("write_through", "Cost of an update that is written at once", [*near, *(far[:1] if quick else far)])
