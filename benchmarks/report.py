"""Tables, JSON and plots of the measurements, and the page that has the tables of all suites."""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

from .contest import ROOT, Case, Costs, Suite

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
    size: int
    median: float
    low: float
    high: float
    worst: float
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
    growth: dict[str, float]
    """For contenders of several sizes, by name: the exponent of the size that the cost follows."""


TIMES = {"cpu": "CPU time", "wall": "wall-clock time"}


def title(case: Case, measure: str) -> str:
    """The title of the table of a case, for one of its measures."""
    return case.name if len(case.measures) == 1 else f"{case.name}, {TIMES[measure]}"


def result(case: Case, costs: Costs, measure: str = "wall") -> Result:
    """The medians and ratios of a case, for one of its measures."""
    baseline = None if case.baseline is None else costs[case.baseline]
    added = {
        title: rounds if baseline is None else [cost - base for cost, base in zip(rounds, baseline, strict=True)]
        for title, rounds in costs.items()
        if title != case.baseline
    }
    sizes = {each.title: each.size for each in case.contenders}
    lines = [
        _line(title, sizes.get(title, 0), rounds, added[case.reference], subtracted=baseline is not None)
        for title, rounds in added.items()
    ]
    return Result(
        case=title(case, measure),
        unit=case.unit,
        measure=measure,
        baseline=case.baseline,
        baseline_median=None if baseline is None else median(baseline),
        reference=case.reference,
        noise=median(_relative_spread(rounds) for rounds in costs.values()),
        lines=lines,
        growth=_growth(case, {line.contender: line.median for line in lines}),
    )


def _growth(case: Case, medians: dict[str, float]) -> dict[str, float]:
    """The slopes of the logarithms of the costs over those of the sizes, by the name of the contenders."""
    points: dict[str, list[tuple[float, float]]] = {}
    for each in case.contenders:
        if each.size and medians.get(each.title, 0) > 0:
            points.setdefault(each.name, []).append((math.log(each.size), math.log(medians[each.title])))
    return {name: linear_regression(*zip(*found, strict=True)).slope for name, found in points.items() if len(found) > 1}


def _line(title: str, size: int, rounds: list[float], reference: list[float], *, subtracted: bool) -> Line:
    low, middle, high = _quartiles(rounds)
    pairs = list(zip(rounds, reference, strict=True))
    ratio = _ratio_of_medians if subtracted else _median_of_ratios  # a difference may be 0 in a round
    chance = random.Random(0)
    drawn = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Line(
        title, size, middle, low, high, max(rounds), ratio(pairs), drawn[RESAMPLES // 20], drawn[-RESAMPLES // 20], rounds
    )


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
    head = ("contender", found.unit, "middle half", "worst", f"ratio to {found.reference}")
    rows = [
        (line.contender, _short(line.median), f"{_short(line.low)} to {_short(line.high)}", _short(line.worst), _ratio(line))
        for line in found.lines
    ]
    rounds = len(found.lines[0].rounds)
    notes = [f"In {found.unit}{per}{added}; noise {found.noise:.0%} of {rounds} round{'s' if rounds > 1 else ''}."]
    if found.growth:
        exponents = [f"{name} {exponent:.2f}" for name, exponent in found.growth.items()]
        notes.append(f"Exponents of growth: {'; '.join(exponents)}.")
    return "\n".join([f"### {found.case}", *notes, "", *aligned([head, *rows]), ""])


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


HEAD = """# Measurements

The tables behind [performance](performance.md), which explains how to read them. `make bench DOCUMENT=1` writes this page.

## In short
For each table with a peer, or with a bare call of the driver: the dearest contender of pdc, and the cheapest other one.
For each table with several sizes: how the cost grows."""


def write_page(suites: Iterable[str], folder: Path, path: Path) -> None:
    """Write the tables of all suites that have JSON in the folder."""
    rows: list[tuple[str, ...]] = [("case", "unit", "pdc", "cost", "cheapest other", "cost", "ratio")]
    growth: list[tuple[str, ...]] = [("case", "contender", "exponent of growth")]
    parts, about = [], ""
    for name in suites:
        if not (measured := folder / f"{name}.json").exists():
            continue
        document = json.loads(measured.read_text())
        parts.append(f"## {document['title']}")
        if about != (about := _about(document["machine"])):
            parts.append(about)
        for each in document["results"]:
            found = Result(**{**each, "lines": [Line(**line) for line in each["lines"]]})
            rows += _in_short(found)
            growth += [(found.case, name, f"{exponent:.2f}") for name, exponent in found.growth.items()]
            parts.append(table(found).strip())
    path.write_text("\n\n".join([HEAD, *("\n".join(aligned(each)) for each in (rows, growth)), *parts]) + "\n")


def _in_short(found: Result) -> Iterable[tuple[str, ...]]:
    """A row for the result, if it has other contenders than those of pdc: of the largest size that both have."""
    ours, others = ([line for line in found.lines if line.contender.startswith("pdc") is own] for own in (True, False))
    if sizes := {line.size for line in ours} & {line.size for line in others}:
        dearest = max((line for line in ours if line.size == max(sizes)), key=lambda line: line.median)
        cheapest = min((line for line in others if line.size == max(sizes)), key=lambda line: line.median)
        divide = _median_of_ratios if found.baseline is None else _ratio_of_medians
        ratio = divide(list(zip(dearest.rounds, cheapest.rounds, strict=True)))
        pairs = [cell for line in (dearest, cheapest) for cell in (line.contender, _short(line.median))]
        yield (found.case, found.unit, *pairs, _short(ratio) if ratio > 0 else "lost in the noise")


def _about(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = (
        "\n\n**The machine was busy with other work: the figures are rough.**"
        if machine["load_average"] > machine["cores"]
        else ""
    )
    return (
        f"Measured on {machine['date']}, commit {machine['commit']}: {machine['cores']} cores, {machine['cpu']}, "
        f"{machine['system']}, load {machine['load_average']} at the end, Python {machine['python']}; {versions}.{busy}"
    )


def machine() -> dict[str, Any]:
    """The facts on which the measurements depend."""
    versions = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in distributions()}
    wanted = {name: versions.get(name.replace("_", "-")) for name in COMPARED}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": f"{datetime.now(timezone.utc):%d %B %Y}".lstrip("0"),
        "commit": commit.stdout.strip() or "unknown",
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
