"""Batches for the tests of the contract, and the fields that they leave."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from . import CREATED, MARK, UPDATED, Batch, Kind, Limits, Mark, Operation, Snapshot, Stamped, Storage, Update, marks_of

NO_LIMITS = Limits()


def expect(found: object, wanted: object, about: object = "") -> None:
    """Raise AssertionError where the two differ. Unlike `assert`, it shows both in every runner of tests."""
    if found != wanted:
        raise AssertionError(f"{f'{about}: ' if about != '' else ''}expected {wanted!r}, got {found!r}")


def update(*operations: Operation, name: str = "m", limits: Limits = NO_LIMITS, created: bool = False) -> Update:
    """An update of a metric."""
    return Update(name, '{"version":1}', list(operations), limits=limits, created=created)


def batch(sequence: int, *operations: Operation, writer: str = "1-a", final: bool = False, **of_metric: Any) -> Batch:
    """A batch that updates one metric."""
    return Batch(writer, sequence, [update(*operations, **of_metric)], final)


def numbers(snapshot: Snapshot, name: str = "m") -> dict[str, str]:
    """The fields of a metric but for bookkeeping, with the shortest text of their numbers."""
    fields = {field: value for field, value in snapshot.metrics.get(name, {}).items() if not field.startswith("#")}
    return {field: repr(float(value)) for field, value in fields.items()}


def series(suffix: str, **labels: str) -> str:
    """A field, as it is spelled."""
    return f"{suffix}:{json.dumps(labels, sort_keys=True, separators=(',', ':'))}"


def created(store: Storage) -> dict[str, float]:
    """The times of creation in the metric by the labels of their series."""
    fields = store.read().metrics["m"]
    return {field.removeprefix(CREATED): float(value) for field, value in fields.items() if field.startswith(CREATED)}


def adds(*fields: str) -> list[Operation]:
    """Add 1 to each of the fields."""
    return [Operation(Kind.ADD, field, 1.0) for field in fields]


def sets(*fields: str) -> list[Operation]:
    """Set each of the fields to 1."""
    return [Operation(Kind.SET, field, 1.0) for field in fields]


def stamps(number: float, *modes: str, writer: str = "1-a", labels: str = "{}", age: float = 10.0) -> list[Operation]:
    """Set the values of a process that have these modes."""
    value = Stamped(number, time.monotonic() - age)
    return [Operation(Kind.STAMP, f"#{mode}:{writer}:{labels}", value) for mode in modes]


def own(fields: Mapping[str, Any]) -> dict[str, float]:
    """The values of processes among the fields of a metric."""
    found = {field: value for field, value in fields.items() if field.startswith("#") and field.count(":") > 1}
    return {field: float(value.split(" ")[0]) for field, value in found.items() if not field.startswith(UPDATED)}


def marks(store: Storage) -> dict[str, Mark]:
    """The marks of the metric by their writers."""
    return {writer: Mark.loads(stored) for writer, stored in marks_of(store.read().metrics["m"]).items()}


def grow_old(store: Storage, ages: Mapping[str, float]) -> None:
    """Let these writers be last seen so many seconds ago, and let another one look for writers to forget."""
    now, known = store.read().now, marks(store)
    old = [Operation(Kind.SET, MARK + each, known[each]._replace(seen=now - age).dumps()) for each, age in ages.items()]
    latest = known["9-z"].sequence if "9-z" in known else 0
    store.apply(batch(latest + 1, *old, Operation(Kind.SET, "#search", 0.0), writer="9-z"))
    store.apply(batch(latest + 2, writer="9-z"))


A, B = series("_total", path="/", method="GET"), series("_total", path="/b", method="GET")
SERIES = [series(suffix, path="/") for suffix in ("", "_created", "_count", "_info", "#exemplar_total")] + [
    series(start + suffix, le=le, path="/")
    for suffix, bounds in (("_bucket", ("0.1", "2.5", "+Inf")), ("_native", ("3p17", "3n-5", "0z", "nan")))
    for le in bounds
    for start in ("", "#exemplar")
]
"""Fields of one series, of all types and bounds that the metric has had."""
LAST_IN_ORDER = [Operation(Kind.ADD, A, 1.0), Operation(Kind.SET, A, 5.0), Operation(Kind.INIT, A, 7.0)]
EVERY_KIND: dict[str, tuple[list[list[Operation]], dict[str, str]]] = {
    "init creates": ([[Operation(Kind.INIT, A, 1.5)]], {A: "1.5"}),
    "init keeps": ([[Operation(Kind.ADD, A, 2.0)], [Operation(Kind.INIT, A, 0.0)]], {A: "2.0"}),
    "set creates and replaces": ([sets(A), [Operation(Kind.SET, A, -3.0), *sets(B)]], {A: "-3.0", B: "1.0"}),
    "the last set wins": ([[Operation(Kind.SET, A, 2.0), Operation(Kind.SET, A, 1.0)]], {A: "1.0"}),
    "add creates and adds": ([[Operation(Kind.ADD, A, 2.0)], [Operation(Kind.ADD, A, 0.5)]], {A: "2.5"}),
    "add twice in a batch": ([[Operation(Kind.ADD, A, 2.0), Operation(Kind.ADD, A, 0.5)]], {A: "2.5"}),
    "add counts a text as 0": ([[Operation(Kind.SET, A, "text")], [Operation(Kind.ADD, A, 2.0)]], {A: "2.0"}),
    "deletes, then inits, sets, adds": ([sets(A, B), [*LAST_IN_ORDER, Operation(Kind.DELETE, "{}")]], {A: "6.0"}),
    "delete takes the series with these labels": ([sets(A, B), [Operation(Kind.DELETE, '{"path":"/b"}')]], {A: "1.0"}),
    "delete takes the series with all of these labels": (
        [sets(A, B), [Operation(Kind.DELETE, '{"method":"GET","path":"/c"}')]],
        {A: "1.0", B: "1.0"},
    ),
    "remove takes the series with exactly these labels": (
        [
            sets(A, B, *SERIES, series("_sum", path="/"), series("_sum", method="GET")),
            [Operation(Kind.REMOVE, '{"path":"/"}'), Operation(Kind.REMOVE, '{"method":"GET","path":"/b"}')],
        ],
        {A: "1.0", series("_sum", method="GET"): "1.0"},
    ),
    "delete takes whole series": (
        [
            sets(A, *SERIES, series("_bucket", a="{", le="1.0", path="/")),
            [Operation(Kind.DELETE, '{"path":"/"}'), Operation(Kind.DELETE, '{"a":"}"}'), *adds(B)],
        ],
        {B: "1.0"},
    ),
    "remove, then inits, sets, adds": (
        [sets(A), [*adds(A), Operation(Kind.REMOVE, '{"method":"GET","path":"/"}'), Operation(Kind.INIT, A, 7.0)]],
        {A: "8.0"},
    ),
}
"""Batches of operations by the name of their case, and the numbers after them."""
SPECIAL = [
    *([0.1, 0.2], [1e-20], [1.0, 1e-20, -1.0], [1e308, 1e308], [math.inf, 1.0], [math.inf, -math.inf], [math.nan, 1.0]),
    *([-0.0], [0.0, -0.0], [5e-324, 5e-324], [2.0**53, 1.0, 1.0], [1e15, 0.3], [123456789012345678.0]),
    [(-1) ** number * math.sqrt(number) * 10.0 ** (number * 7 % 41 - 20) for number in range(1, 51)],
]
FIRST, SECOND, OVER = (series("_total", path=path) for path in ("1", "2", "over"))
LIMITS = Limits(2, '{"path":"over"}')
