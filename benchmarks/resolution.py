"""Draw what classic and native buckets show of the same requests: ``python -m benchmarks.resolution docs/images/native.png``.

Four processes observe the same made-up durations in a classic histogram with the default buckets, and in a native one. The
picture shows the counts of the storage, the quantiles that Prometheus 3 computes of them, and the true ones.
"""

from __future__ import annotations

import importlib
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import accumulate, chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pdc
from pdc.exposition.collection import read_storage
from pdc.native import Bucket

MINUTES = 60
PROCESSES = 4
PER_PROCESS = 250
"""Requests in a minute."""
NAMES = {"classic_seconds": "_bucket", "native_seconds": "_native"}
"""The histograms, and the suffix of their buckets."""
QUANTILES = {"p50": 0.5, "p99": 0.99}
COLORS = {"p50": "tab:blue", "p99": "tab:red"}
LOWEST, HIGHEST = 0.01, 6.0
"""The limits of the picture, in seconds."""

Limits = tuple[float, float]
"""Between which the numbers of a bucket are."""


class Minute(NamedTuple):
    """The durations of a minute, and the counts of the buckets that they added to, by histogram."""

    durations: list[float]
    counts: dict[str, dict[Limits, float]]


def durations(minute: int, process: int) -> list[float]:
    """The durations of the requests that a process answers in a minute: most from a cache, the others slower and slower."""
    made = random.Random(1000 * minute + process)
    slow = 0.26 + 0.5 * math.sin(math.pi * minute / MINUTES) ** 2
    return [
        made.lognormvariate(math.log(0.035), 0.2) if made.random() < 0.7 else made.lognormvariate(math.log(slow), 0.12)
        for _ in range(PER_PROCESS)
    ]


@cache
def histograms(path: str) -> tuple[pdc.Histogram, pdc.Histogram]:
    """Both histograms in this process."""
    pdc.setup(sqlite=path, flush_interval=3600)
    native = pdc.Histogram("native_seconds", "Durations.", buckets=(), native=True)
    return pdc.Histogram("classic_seconds", "Durations."), native


def observe(path: str, minute: int, process: int) -> None:
    """Observe the durations in this process."""
    for duration, histogram in product(durations(minute, process), histograms(path)):
        histogram.observe(duration)
    pdc.flush()


def stored() -> dict[str, dict[Limits, float]]:
    """The counts of the buckets in the storage, by histogram."""
    metrics = read_storage(own=False).metrics
    return {name: dict(_buckets(metrics.get(name, {}), suffix)) for name, suffix in NAMES.items()}


def _buckets(fields: Any, suffix: str) -> Iterator[tuple[Limits, float]]:
    ends = {field.split('"le":"')[1].split('"')[0]: float(fields[field]) for field in fields if field.startswith(suffix)}
    if suffix == "_native":
        yield from ((Bucket.loads(text).limits, count) for text, count in ends.items())
        return
    bounds = [0.0, *pdc.Histogram.DEFAULT_BUCKETS]
    lower = dict(zip(bounds[1:], bounds, strict=False))
    for text, count in ends.items():
        yield (lower[float(text)], float(text)), count


def measured(minutes: int = MINUTES) -> Iterator[Minute]:
    """Yield the minutes, one after the other."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        path = str(Path(folder) / "metrics.db")
        pdc.setup(sqlite=path)
        before = stored()
        for minute in range(minutes):
            list(pool.map(observe, [path] * PROCESSES, [minute] * PROCESSES, range(PROCESSES)))
            now = stored()
            grown = {name: {key: now[name][key] - before[name].get(key, 0.0) for key in now[name]} for name in now}
            yield Minute(sorted(chain.from_iterable(durations(minute, each) for each in range(PROCESSES))), grown)
            before = now
        pdc.shutdown()


def quantile(wanted: float, counts: dict[Limits, float], is_native: bool) -> float:
    """The quantile as ``histogram_quantile`` has it: linear within a classic bucket, exponential within a native one."""
    found = sorted((limits, count) for limits, count in counts.items() if count)
    sums = [*accumulate(count for _, count in found)]
    rank = wanted * sums[-1]
    place = next(place for place, total in enumerate(sums) if total >= rank)
    (lower, upper), count = found[place]
    part = 1 - (sums[place] - rank) / count
    if upper == math.inf:
        return lower
    return lower * (upper / lower) ** part if is_native else lower + (upper - lower) * part


def true_quantile(wanted: float, numbers: list[float]) -> float:
    """The quantile of the sorted numbers."""
    return numbers[math.ceil(wanted * len(numbers)) - 1]


def draw(minutes: list[Minute]) -> Any:
    """Draw a heat map of each histogram, with lines for its quantiles and for the true ones."""
    figure = importlib.import_module("matplotlib.figure").Figure((9, 3.2), layout="constrained")
    for name, axes in zip(NAMES, figure.subplots(1, 2, sharey=True), strict=True):
        draw_counts(axes, [minute.counts[name] for minute in minutes])
        worst = [draw_quantile(axes, minutes, name, label) for label in QUANTILES]
        title = "Classic buckets, the default ones" if name == "classic_seconds" else "Native buckets"
        axes.set_title(f"{title}\n{', '.join(worst)}", fontsize=9, loc="left")
        axes.set(yscale="log", ylim=(LOWEST, HIGHEST), xlim=(0, len(minutes)))
        axes.set_yticks([0.01, 0.1, 1], ["10 ms", "100 ms", "1 s"])
        axes.tick_params(labelsize=8)
        axes.set_xlabel("minutes", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, loc="upper left", frameon=False, ncols=len(QUANTILES))
    return figure


def draw_counts(axes: Any, counts: list[dict[Limits, float]]) -> None:
    """Draw the counts of the minutes, darker where more durations are within the same factor."""
    norm = importlib.import_module("matplotlib.colors").PowerNorm(0.5, 0, PROCESSES * PER_PROCESS * 1.5)
    for at, (limits, count) in ((at, each) for at, minute in enumerate(counts) for each in minute.items()):
        lower, upper = max(limits[0], LOWEST), limits[1]
        if count and lower < upper < math.inf:
            axes.pcolormesh([at, at + 1], [lower, upper], [[count / math.log(upper / lower)]], cmap="Oranges", norm=norm)


def draw_quantile(axes: Any, minutes: list[Minute], name: str, label: str) -> str:
    """Draw the quantile of the histogram and the true one. Returns the largest difference in words."""
    true = [true_quantile(QUANTILES[label], minute.durations) for minute in minutes]
    shown = [quantile(QUANTILES[label], minute.counts[name], NAMES[name] == "_native") for minute in minutes]
    times = [at + 0.5 for at in range(len(minutes))]
    axes.plot(times, shown, color=COLORS[label], linewidth=1.6, label=f"{label} as Prometheus computes it")
    axes.plot(times, true, color="black", linewidth=1.1, linestyle=(0, (1, 1.5)), label=f"true {label}")
    return f"{label} is off by up to {max(abs(a / b - 1) for a, b in zip(shown, true, strict=True)):.0%}"


def main() -> None:
    """Measure, and write the picture."""
    (path,) = sys.argv[1:]
    draw([*measured()]).savefig(path, dpi=100)
    importlib.import_module("PIL.Image").open(path).quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
