"""The cost of updates, and of a metrics library that is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contest import Case, Contender, Suite

REFERENCE = "prometheus_client, in memory"
MULTIPROCESS = "prometheus_client, multiprocess mode"
PDC = ["pdc, SQLite, every second", "pdc, Redis, every second"]
AT_ONCE = ["pdc, SQLite, at once", "pdc, Redis, at once"]
NAMES = {
    REFERENCE: "prometheus_client",
    MULTIPROCESS: "multiprocess",
    PDC[0]: "pdc_sqlite",
    PDC[1]: "pdc_redis",
    AT_ONCE[0]: "pdc_sqlite_through",
    AT_ONCE[1]: "pdc_redis_through",
    "version 2, SQLite": "version2_sqlite",
    "version 2, Redis": "version2_redis",
    "pytheus, Redis": "pytheus",
}

STORED = {
    "Redis": [PDC[1], "version 2, Redis", "pytheus, Redis"],
    "SQLite": [PDC[0], "version 2, SQLite"],
}
"""The contenders that keep series in each storage; the first one is the reference."""


def library(name: str, module: str, keywords: Mapping[str, Any]) -> Contender:
    """A contender from `benchmarks.contenders.libraries`."""
    chosen = NAMES[name]
    env = {"PROMETHEUS_DISABLE_CREATED_SERIES": "True"}
    if chosen == "multiprocess":
        env["PROMETHEUS_MULTIPROC_DIR"] = "."
    return Contender(name, module, {"library": chosen, **keywords}, env, version2=chosen.startswith("version2"))


def updates(title: str, kind: str, names: Sequence[str], threads: int = 1) -> Case:
    """A case of updates of that kind, by these libraries; the first one is the reference."""
    contenders = [library(name, "updates", {"kind": kind, "threads": threads}) for name in names]
    title = title if threads == 1 else f"{title}, {threads} threads"
    return Case(title, contenders, names[0], scale=1e6 / threads, measures=("cpu",))


KINDS = {
    "counter.inc()": "inc",
    "counter.labels(a, b, c).inc()": "labels_inc",
    "gauge.set()": "set",
    "histogram.observe() of 15 buckets": "observe",
}


def _removals(series: int) -> Case:
    contenders = [library(name, "removals", {"series": series}) for name in (REFERENCE, *PDC)]
    name = f"remove() of a metric of {series:,} series"
    return Case(name, contenders, REFERENCE, measures=("cpu",), fresh=series // 10, most_rounds=3)  # they take long to fill


def _imports() -> Case:
    modules = {
        REFERENCE: ["prometheus_client"],
        "pdc": ["pdc"],
        "pdc and redis-py": ["pdc", "redis"],
        "version 2": ["prometheus_distributed_client.redis"],
        "pytheus and redis-py": ["pytheus.metrics", "pytheus.backends.redis"],
    }
    contenders = [Contender(name, "imports", {"modules": each}, version2=name == "version 2") for name, each in modules.items()]
    return Case("Import", contenders, REFERENCE, unit="ms", scale=1e3, measures=("cpu",), fresh=1)


def _idle_series(series: int) -> Case:
    names = [
        name for name in NAMES if not name.endswith("at once") and name != "version 2, SQLite"
    ]  # they take minutes to fill
    contenders = [library(name, "series", {"size": "memory"}) for name in names]
    name = "Memory of an idle series"
    return Case(name, contenders, REFERENCE, unit="bytes", scale=1, measures=("result",), fresh=series, most_rounds=3)


def _stored_series(database: str, names: list[str], series: int, *, histograms: bool) -> Case:
    contenders = [library(name, "series", {"size": database.lower(), "histograms": histograms}) for name in names]
    title = f"Room of a {'histogram' if histograms else 'counter'} in {database}"
    return Case(title, contenders, names[0], unit="bytes", scale=1, measures=("result",), fresh=series, most_rounds=1)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one makes fewer series."""
    names = [REFERENCE, MULTIPROCESS, *PDC]
    return Suite(
        "updates",
        "Cost of an update",
        [
            *(updates(title, kind, names, threads) for title, kind in KINDS.items() for threads in (1, 4)),
            _removals(10_000 if quick else 100_000),
            _imports(),
            _idle_series(1_000 if quick else 5_000),
            *(
                _stored_series(database, names, 100 if quick else 1_000, histograms=histograms)
                for database, names in STORED.items()
                for histograms in (False, True)
            ),
        ],
    )
