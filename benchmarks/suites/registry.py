"""The cost of a scrape by `prometheus_client.generate_latest(registry)`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.contenders.scrapes import SAMPLES_OF_HISTOGRAM
from benchmarks.contest import Case, Suite

from .updates import MULTIPROCESS, PDC, REFERENCE, library

NAMES = [REFERENCE, MULTIPROCESS, *PDC, "version 2, Redis"]
SIZES = (1, 20, 200)
"""The numbers of metrics."""
MILLISECONDS: dict[str, Any] = {"unit": "ms", "scale": 1e3}


def _case(samples: int, metrics: int) -> Case:
    """Half of the metrics are counters, and the other half histograms; a single one is a histogram."""
    counters = samples // 5 if metrics > 1 else 0
    histograms = (samples - counters) // SAMPLES_OF_HISTOGRAM
    keywords = {"counters": counters, "histograms": histograms, "metrics": max(metrics // 2, 1), "registry": True}
    contenders = [library(name, "scrapes", keywords) for name in NAMES]
    name = f"{samples:,} samples of {metrics} metric{'s' if metrics > 1 else ''}"
    return Case(name, contenders, REFERENCE, costly=True, **MILLISECONDS)


def _by_metrics(most: int) -> Case:
    sizes = (most // 100, most // 10, most)
    contenders = [
        replace(library(name, "scrapes", {"counters": size, "histograms": 0, "metrics": size, "registry": True}), size=size)
        for name in NAMES
        for size in sizes
    ]
    return Case("Metrics of one sample, by their number", contenders, contenders[0].title, **MILLISECONDS)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one has a tenth of the samples."""
    samples, most = (1_000, 200) if quick else (10_000, 1_000)
    return Suite(
        "registry",
        "Cost of prometheus_client.generate_latest(registry)",
        [*(_case(samples, metrics) for metrics in SIZES), _by_metrics(most)],
    )
