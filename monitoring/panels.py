"""Kinds of panels, and the rows and dashboards that they are in.

Words in capitals in a query stand for a selector or a range of `WORDS`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WORDS = {
    "HTTP": 'job=~"$job", route=~"$route", method=~"$method"',
    "METHOD": 'job=~"$job", method=~"$method"',
    "ROUTE": 'job=~"$job", route=~"$route"',
    "RUNS": 'job=~"$job", job_name=~"$job_name"',
    "TASKS": 'job=~"$job", queue=~"$queue", task=~"$task"',
    "QUEUES": 'job=~"$job", queue=~"$queue"',
    "JOB": 'job=~"$job"',
    "OURS": 'job=~"$job", pid!=""',
    "RATE": "$__rate_interval",
    "LIBRARY": "${library}",
}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Query(NamedTuple):
    """A query, and its legend or the name of its column."""

    expr: str
    legend: str = ""
    unit: str = ""
    """Of a column; the queries of other panels have that of the panel."""


class Panel(NamedTuple):
    """A panel, in a grid of 24 columns."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: tuple[tuple[float, str], ...] = ()
    """Values from which on a colour holds. Below the first it is green."""
    repeat: str = ""
    """The variable that gets such a panel for each of its values."""


class Row(NamedTuple):
    """Panels below a title. The panels of a folded row show once somebody opens it."""

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False


class Variable(NamedTuple):
    """A choice at the top of a dashboard. Several values may be chosen, unless a regular expression cuts them out."""

    name: str
    label: str
    query: str
    regex: str = ""


class Dashboard(NamedTuple):
    """A dashboard. Links have its `uid`, which stays."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def spelled_out(query: str) -> str:
    """Return the query with the selectors and ranges of `WORDS`."""
    return re.sub(r"LIBRARY|\b[A-Z]+\b", lambda word: WORDS.get(word[0], word[0]), query)


def row(title: str, *panels: Panel, folded: bool = False) -> Row:
    """A row of these panels."""
    return Row(title, panels, folded)


def stat(title: str, description: str, unit: str, expr: str, *thresholds: tuple[float, str]) -> Panel:
    """A number."""
    return Panel(title, description, unit, (Query(expr),), "stat", 4, 4, thresholds)


def graph(title: str, description: str, unit: str, *queries: tuple[str, str]) -> Panel:
    """Lines: queries with their legends."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries))


def quantiles(title: str, description: str, unit: str, histogram: str) -> Panel:
    """The quantiles of a histogram, of which the name and the selector are given."""
    return graph(title, description, unit, *((quantile(at, histogram), label) for label, at in QUANTILES.items()))


def heat_map(title: str, description: str, unit: str, histogram: str) -> Panel:
    """The buckets of a histogram over time, of which the name and the selector are given; its native ones where it has any."""
    query = f"sum(increase({histogram}[RATE])) or on () sum by (le) (increase({_part(histogram, 'bucket')}[RATE]))"
    return Panel(title, description, unit, (Query(query, "{{le}}"),), "heatmap")


def table(title: str, description: str, *columns: tuple[str, str, str]) -> Panel:
    """A table of columns: queries with their names and units."""
    return Panel(title, description, "short", tuple(Query(*column) for column in columns), "table", 24)


def rate(metric: str, by: str = "", over: str = "RATE") -> str:
    """The query for events per second, by these labels."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}[{over}]))"


def share(part: str, whole: str, by: str) -> str:
    """The query for the part of the events that some of them are, by these labels."""
    return f"{rate(part, by)} / {rate(whole, by)}"


def quantile(at: float, histogram: str, by: str = "", over: str = "RATE") -> str:
    """The query for a quantile by these labels: of native buckets, and of classic ones where there are no native ones."""
    classic = rate(_part(histogram, "bucket"), f"{by}, le" if by else "le", over)
    return f"histogram_quantile({at}, {rate(histogram, by, over)}) or histogram_quantile({at}, {classic})"


def observed(part: str, histogram: str, by: str = "", over: str = "RATE") -> str:
    """The query for the growth of the ``sum`` or ``count`` of a histogram per second, by these labels."""
    return f"(histogram_{part}({rate(histogram, by, over)}) or {rate(_part(histogram, part), by, over)})"


def _part(histogram: str, part: str) -> str:
    """The series of a classic histogram with that part of it."""
    return histogram.replace("{", f"_{part}{{")
