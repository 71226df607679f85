"""Stored metrics in words: numbers, times, labels, series, writers, and selectors such as ``hits{path="/"}``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ..family import LEASE_SECONDS, Family, Fields, Labels, explained
from ..storage import FINAL_MARK_SECONDS, FORGET_WRITER_SECONDS

SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created", "_info")
"""The ends of names of samples, which the names of metrics lack."""
COUNTS = {"counter": "_total", "gauge": "", "summary": "_count", "histogram": "_count", "info": "_info"}
"""By type, the end of the name of the sample that each series has once."""
RENEWAL_SECONDS = FORGET_WRITER_SECONDS / 3
"""A process that is idle renews its marks at least that often."""
QUANTILES = (0.5, 0.95, 0.99)
ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
"""Of the values of labels."""
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: float) -> str:
    """A number, short, but with all digits before the point: those of a time are the seconds."""
    is_whole = value % 1 == 0 or abs(value) >= 1e6
    return f"{value:.0f}" if is_whole and abs(value) < 1e15 else f"{value:.6g}"


def duration(seconds: float) -> str:
    """A duration in its largest unit."""
    size, unit = next((each for each in UNITS if seconds >= each[0]), (0.001, "ms"))
    return f"{seconds / size:.0f} {unit}"


def size(count: float) -> str:
    """A count of bytes in its largest unit."""
    power = next((each for each in (3, 2, 1) if count >= 1024**each), 0)
    return f"{count / 1024**power:.1f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}" if power else f"{count} bytes"


def ago(then: float, now: float) -> str:
    """The time since then."""
    return f"{duration(max(now - then, 0.0))} ago"


def spelled(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as the text format and selectors have them; a dash for a series without labels."""
    pairs = ",".join(f'{name}="{value.translate(ESCAPES)}"' for name, value in labels)
    return f"{{{pairs}}}" if pairs else "-"


class Selector(NamedTuple):
    """A metric, or its series with some labels."""

    name: str
    labels: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Parse ``hits`` or ``hits{path="/"}``. Raises UsageError."""
        try:
            families = list(text_string_to_metric_families(f"{text.strip()} 0\n"))
        except ValueError:
            families = []
        samples = [sample for family in families for sample in family.samples]
        if len(samples) != 1 or samples[0].value != 0.0:
            expected = """a metric such as hits, or series of it such as 'hits{path="/"}'"""
            raise click.UsageError(f"expected {expected}, got {text!r}")
        return cls(samples[0].name, dict(samples[0].labels))

    def names(self) -> list[str]:
        """The metrics that the name may mean: it may also be the name of a sample."""
        return [self.name, *(self.name.removesuffix(suffix) for suffix in SUFFIXES if self.name.endswith(suffix))]

    def match(self, labels: Mapping[str, str]) -> bool:
        """True for a series that has these labels."""
        return self.labels.items() <= labels.items()


class SeriesOf(NamedTuple):
    """The samples of one series."""

    labels: Labels
    samples: list[Sample]

    def has(self, suffix: str) -> bool:
        """True where there is a sample whose name ends so. A histogram with a bound below 0 has no sum."""
        return any(sample.name.endswith(suffix) for sample in self.samples)

    def value(self, suffix: str) -> float:
        """The value of the sample whose name ends so; NaN where there is none."""
        return next((sample.value for sample in self.samples if sample.name.endswith(suffix)), math.nan)

    def buckets(self) -> list[tuple[float, float]]:
        """The bounds and the cumulated counts of a histogram."""
        return [(float(sample.labels["le"]), sample.value) for sample in self.samples if sample.name.endswith("_bucket")]


def series_of(metric: Metric) -> list[SeriesOf]:
    """The series of a metric."""
    own = {"le"} if metric.type == "histogram" else {metric.name} if metric.type == "stateset" else set()
    found: defaultdict[Labels, list[Sample]] = defaultdict(list)
    for sample in metric.samples:
        labels = {} if metric.type == "info" else sample.labels
        found[tuple((name, value) for name, value in labels.items() if name not in own)].append(sample)
    return [SeriesOf(labels, samples) for labels, samples in found.items()]


def some(series: Sequence[SeriesOf]) -> str:
    """The labels of the first series, as the end of a message."""
    first = ", ".join(spelled(each.labels) for each in series[:3])
    more = f" and {len(series) - 3} more" if len(series) > 3 else ""
    return f"; it has {plural(len(series), 'series')}: {first}{more}" if series else ""


def quantile(wanted: float, buckets: list[tuple[float, float]]) -> float:
    """The quantile of cumulated buckets, as `histogram_quantile` of Prometheus has it."""
    rank = wanted * (buckets[-1][1] if buckets else 0.0)
    if rank == 0:
        return math.nan
    lower, before = min(0.0, buckets[0][0]), 0.0  # numbers below a first bound below 0 are taken for that bound
    for bound, count in buckets:
        if count >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - before) / (count - before)
        lower, before = bound, count
    return lower


def value_columns(kind: str) -> list[str]:
    """The names of the columns for the values of a series."""
    if kind == "histogram":
        return ["Count ", "Sum ", "Mean ", *(f"p{100 * each:g} " for each in QUANTILES)]
    return ["Count ", "Sum ", "Mean "] if kind == "summary" else ["Value "]


def value_cells(metric: Metric, series: SeriesOf) -> list[str]:
    """The values of a series."""
    if metric.type in ("histogram", "summary"):
        count, total = series.value("_count"), series.value("_sum")
        sums = [number(total), number(total / count if count else math.nan)] if series.has("_sum") else ["-", "-"]
        quantiles = [quantile(each, series.buckets()) for each in QUANTILES] if metric.type == "histogram" else []
        return [number(count), *sums, *map(number, quantiles)]
    if metric.type == "stateset":
        return [next((sample.labels[metric.name] for sample in series.samples if sample.value), "-")]
    if metric.type == "info":
        return [spelled(series.samples[0].labels.items())]
    return [number(series.value("_total" if metric.type == "counter" else ""))]


def summary(metric: Metric) -> str:
    """All series of a metric in a few words."""
    series = series_of(metric)
    if not series:
        return "-"
    if metric.type in ("histogram", "summary"):
        count, total = (sum(each.value(suffix) for each in series) for suffix in ("_count", "_sum"))
        mean = f" x {number(total / count)}" if count and all(each.has("_sum") for each in series) else ""
        return f"{number(count)}{mean}"
    if metric.type == "counter":
        return number(sum(each.value("_total") for each in series))
    if len(series) == 1 or metric.type != "gauge":
        return ", ".join(value_cells(metric, each)[0] for each in series[:3])
    values = [each.value("") for each in series]
    lowest, highest = number(min(values)), number(max(values))
    return lowest if lowest == highest else f"{lowest} to {highest}"


class OwnValue(NamedTuple):
    """The value of one process, or of all that have ended."""

    writer: str
    """Empty for those that have ended."""
    labels: str
    """As fields spell them."""
    value: float
    set_at: float


def own_values(family: Family, fields: Fields) -> Iterator[OwnValue]:
    """The values of single processes of a gauge in a mode other than ``shared``."""
    start = family.process_prefix("").removesuffix(":")
    for field, stored in sorted(fields.items()) if family.mode != "shared" else ():
        if field.startswith(start):
            writer, _, labels = field.removeprefix(start).partition(":")
            with explained(family.name):
                value, set_at = map(float, str(stored).split(" "))
            yield OwnValue(writer, labels, value, set_at)


def state(seen: float, now: float) -> str:
    """The state of a process that was last seen then: an idle one writes seldom."""
    if abs(now - seen) <= LEASE_SECONDS:
        return "alive"
    return "idle or gone" if now - seen <= RENEWAL_SECONDS else "gone"


def last_seen(then: float, now: float) -> str:
    """When a process was last seen; the marks of one that has deregistered are set back, so that they go soon."""
    return "ended" if now - then >= FORGET_WRITER_SECONDS - FINAL_MARK_SECONDS else ago(then, now)


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    ending = "" if count == 1 or noun == "series" else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def as_json(value: Any) -> Any:
    """The value for JSON, which has no infinite numbers: these are the texts of the text format."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return value
