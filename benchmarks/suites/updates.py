"""The cost of updates, and of a metrics library that is not used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.contest import Case, Contender, Suite

REFERENCE = "prometheus_client, in memory"
NAMES = {
    REFERENCE: "prometheus_client",
    "prometheus_client, multiprocess mode": "multiprocess",
    "pdc, SQLite, every second": "pdc_sqlite",
    "pdc, Redis, every second": "pdc_redis",
    "pdc, SQLite, at once": "pdc_sqlite_through",
    "pdc, Redis, at once": "pdc_redis_through",
    "version 2, SQLite": "version2_sqlite",
    "version 2, Redis": "version2_redis",
    "pytheus, Redis": "pytheus",
}

STORED = {
    "Redis": ["pdc, Redis, every second", "version 2, Redis", "pytheus, Redis"],
    "SQLite": ["pdc, SQLite, every second", "version 2, SQLite"],
}
"""The contenders that keep series in each storage; the first one is the reference."""


def library(name: str, module: str, keywords: Mapping[str, Any]) -> Contender:
    """A contender from `benchmarks.contenders.libraries`."""
    chosen = NAMES[name]
    env = {"PROMETHEUS_DISABLE_CREATED_SERIES": "True"}
    if chosen == "multiprocess":
        env["PROMETHEUS_MULTIPROC_DIR"] = "."
    return Contender(name, module, {"library": chosen, **keywords}, env, version2=chosen.startswith("version2"))


def _updates(title: str, kind: str, threads: int) -> Case:
    names = [
        name for name in NAMES if threads == 1 or name != "version 2, SQLite"
    ]  # its threads break each other's transactions
    contenders = [library(name, "updates", {"kind": kind, "threads": threads}) for name in names]
    return Case(title if threads == 1 else f"{title}, {threads} threads", contenders, REFERENCE, scale=1e6 / threads)


def _imports() -> Case:
    modules = {
        REFERENCE: ["prometheus_client"],
        "pdc": ["pdc"],
        "pdc and redis-py": ["pdc", "redis"],
        "version 2": ["prometheus_distributed_client.redis"],
        "pytheus and redis-py": ["pytheus.metrics", "pytheus.backends.redis"],
    }
    contenders = [Contender(name, "imports", {"modules": each}, version2=name == "version 2") for name, each in modules.items()]
    return Case("Import", contenders, REFERENCE, unit="ms", scale=1e3, measure="cpu", fresh=1)


def _idle_series(series: int) -> Case:
    names = [
        name for name in NAMES if not name.endswith("at once") and name != "version 2, SQLite"
    ]  # they take minutes to fill
    contenders = [library(name, "series", {"size": "memory"}) for name in names]
    return Case("Memory of an idle series", contenders, REFERENCE, unit="bytes", scale=1, measure="result", fresh=series)


def _stored_series(database: str, names: list[str], series: int, *, histograms: bool) -> Case:
    contenders = [library(name, "series", {"size": database.lower(), "histograms": histograms}) for name in names]
    title = f"Room of a {'histogram' if histograms else 'counter'} in {database}"
    return Case(title, contenders, names[0], unit="bytes", scale=1, measure="result", fresh=series)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one makes fewer series."""
    kinds = {
        "counter.inc()": "inc",
        "counter.labels(a, b, c).inc()": "labels_inc",
        "histogram.observe() of 15 buckets": "observe",
    }
    return Suite(
        "updates",
        "Cost of an update",
        [
            *(_updates(title, kind, threads) for title, kind in kinds.items() for threads in (1, 4)),
            _imports(),
            _idle_series(1_000 if quick else 5_000),
            *(
                _stored_series(database, names, 100 if quick else 1_000, histograms=histograms)
                for database, names in STORED.items()
                for histograms in (False, True)
            ),
        ],
    )
