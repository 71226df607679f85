"""Tables, JSON and plots of the measurements."""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .contest import Case, Costs, Suite

COMPARED = (
    *("prometheus_client", "prometheus-flask-exporter", "django-prometheus", "starlette_exporter"),
    *("prometheus-fastapi-instrumentator", "pytheus", "flask", "django", "starlette", "fastapi", "redis", "hiredis"),
)
"""The distributions whose versions a report names."""


RESAMPLES = 400
"""The number of draws of the rounds that give the interval of a ratio."""


@dataclass(frozen=True)
class Line:
    """The cost of one contender: the median of its rounds; half of the rounds lie within `low` and `high`.

    The ratio to the reference lies within `ratio_low` and `ratio_high` in nine of ten samples of the rounds.
    """

    contender: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: list[float]


@dataclass(frozen=True)
class Result:
    """A measured case. With a baseline, a contender costs its addition to the baseline in the same round."""

    case: str
    unit: str
    measure: str
    baseline: str | None
    baseline_median: float | None
    reference: str
    noise: float
    """The width of the middle half of the rounds, in parts of their median; that of the median contender."""
    lines: list[Line]


def result(case: Case, costs: Costs) -> Result:
    """The medians and ratios of a case."""
    baseline = None if case.baseline is None else costs[case.baseline]
    added = {
        name: rounds if baseline is None else [cost - base for cost, base in zip(rounds, baseline, strict=True)]
        for name, rounds in costs.items()
        if name != case.baseline
    }
    return Result(
        case=case.name,
        unit=case.unit,
        measure=case.measure,
        baseline=case.baseline,
        baseline_median=None if baseline is None else median(baseline),
        reference=case.reference,
        noise=median(_relative_spread(rounds) for rounds in costs.values()),
        lines=[_line(name, rounds, added[case.reference], subtracted=baseline is not None) for name, rounds in added.items()],
    )


def _line(name: str, rounds: list[float], reference: list[float], *, subtracted: bool) -> Line:
    low, middle, high = _quartiles(rounds)
    pairs = list(zip(rounds, reference, strict=True))
    ratio = _ratio_of_medians if subtracted else _median_of_ratios  # a difference may be 0 in a round
    chance = random.Random(0)
    drawn = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Line(name, middle, low, high, ratio(pairs), drawn[RESAMPLES // 20], drawn[-RESAMPLES // 20], rounds)


def _median_of_ratios(pairs: Sequence[tuple[float, float]]) -> float:
    return median(cost / reference for cost, reference in pairs)


def _ratio_of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    cost, reference = (median(column) for column in zip(*pairs, strict=True))
    return cost / reference if reference > 0 else 0.0  # where the reference adds nothing measurable


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = quantiles(values, method="inclusive") if len(values) > 1 else [*values] * 3
    return low, middle, high


def _relative_spread(values: Sequence[float]) -> float:
    low, middle, high = _quartiles(values)
    return (high - low) / middle if middle else 0.0


def table(found: Result) -> str:
    """The result for a terminal, in Markdown."""
    per = {"cpu": " of CPU time per operation", "wall": " per operation"}.get(found.measure, "")
    added = (
        "" if found.baseline_median is None else f", added to {found.baseline} ({_short(found.baseline_median)} {found.unit})"
    )
    head = ("contender", found.unit, "middle half", f"ratio to {found.reference}")
    rows = [
        (line.contender, _short(line.median), f"{_short(line.low)} to {_short(line.high)}", _ratio(line))
        for line in found.lines
    ]
    note = f"In {found.unit}{per}{added}; noise {found.noise:.0%}."
    return "\n".join([f"### {found.case}", note, "", *aligned([head, *rows]), ""])


def _ratio(line: Line) -> str:
    if not line.ratio_low > 0:  # the rounds do not separate the reference, or this contender, from the baseline
        return "lost in the noise"
    return f"{_short(line.ratio)} ({_short(line.ratio_low)} to {_short(line.ratio_high)})"


def _short(value: float) -> str:
    """The number with three digits, or all digits before the point if they are more."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def aligned(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """The lines of a table in Markdown, of which the first row has the titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|-" + "-|-".join("-" * width for width in widths) + "-|"


def write_json(suite: Suite, found: list[Result], path: Path) -> None:
    """Write all measurements, and the machine."""
    document = {"suite": suite.name, "title": suite.title, "machine": machine(), "results": [asdict(each) for each in found]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """The facts on which the measurements depend."""
    versions = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in distributions()}
    wanted = {name: versions.get(name.replace("_", "-")) for name in COMPARED}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in wanted.items() if version is not None},
        "load_average": round(os.getloadavg()[0], 1),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def plot(suite: Suite, found: list[Result], path: Path) -> None:
    """Draw the medians of each case as bars, with the middle half of the rounds."""
    figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    heights = [len(each.lines) + 1.8 for each in found]
    figure = figure_class(figsize=(9, 0.32 * sum(heights)), layout="constrained")
    figure.suptitle(suite.title)
    axes = figure.subplots(len(found), squeeze=False, height_ratios=heights)
    for each, axis in zip(found, axes[:, 0], strict=True):
        medians = [line.median for line in each.lines]
        errors = [[line.median - line.low for line in each.lines], [line.high - line.median for line in each.lines]]
        names = [line.contender for line in each.lines]
        colors = ["tab:gray" if name == each.reference else "tab:blue" for name in names]
        bars = axis.barh(names, medians, xerr=errors, color=colors, error_kw={"ecolor": "black", "elinewidth": 0.8})
        axis.bar_label(bars, [f" {_short(value)}" for value in medians], fontsize=7)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        if min(medians) > 0 and max(medians) > 50 * min(medians):
            axis.set_xscale("log")
        added = "" if each.baseline is None else f" added to {each.baseline}"
        axis.set_title(f"{each.case} ({each.unit}{added})", fontsize=9, loc="left")
    figure.savefig(path, dpi=110)


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
