"""A metric family: what it is, how its series are spelled in a storage, and how they become samples again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import repeat
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from typing import Any, NamedTuple

import prometheus_client.metrics
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8, escape_metric_name
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from .exemplars import EXEMPLAR, exemplar_from
from .merging import Processes
from .native import USUAL_CHANGES, Native, in_order, native_changes, resolution
from .process import log
from .process.interruption import let_through
from .process.once import once_each
from .storage import META, Limits, foreign
from .storage.labels import check_texts, parsed

OVERFLOW = "<overflow>"
"""The value of all labels of the series for those that are over the limit."""
_UNREADABLE = (ValueError, TypeError, AttributeError, RecursionError)
"""Errors of a `#meta` that no version wrote."""
LEASE_SECONDS = 15.0
"""A process not seen for so long counts as gone in the live modes of a gauge."""

Fields = Mapping[str, Any]
Labels = tuple[tuple[str, str], ...]
Key = tuple[str, str]
"""The suffix of a sample, and its bucket bound."""


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def dump(labels: Mapping[str, str]) -> str:
    """The labels as a subkey spells them: JSON in ASCII, sorted by name, no spaces."""
    return _ENCODER.encode(labels)


@lru_cache(maxsize=1024)
def _spelling(names: tuple[str, ...]) -> tuple[str, Callable[[tuple[str, ...]], tuple[str, ...]]]:
    """The template with which `dump` spells labels of these names, and a function that puts values in its order."""
    places = sorted(range(len(names)), key=names.__getitem__)
    pairs = ",".join(f"{encode_basestring_ascii(names[place])}:".replace("%", "%%") + "%s" for place in places)
    return f"{{{pairs}}}", itemgetter(*places) if len(places) > 1 else tuple


@lru_cache(maxsize=512)
def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Labels as `dump` spells them; those of busy series are spelled once, not for each batch."""
    template, chosen = _spelling(names)
    return template % tuple(map(encode_basestring_ascii, chosen(values)))


def clean(value: str) -> str:
    """The value with lone surrogates, which no exposition format can carry, replaced by U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def text(about: str, value: Any) -> str:
    """The value as a `str`, `clean`: a text that is translated when it is read, for example. Raises TypeError for no text."""
    if not isinstance(value, str) and (isinstance(value, type) or not hasattr(value, "encode")):
        raise TypeError(f"{about} must be a text, got {value!r}")
    return clean(str.__str__(value) if isinstance(value, str) else str.__str__(str(value)))


_OPTIONAL = frozenset({"native", "max_series", "expire_series"})
"""The fields of a family that are stored only where they are set."""


class Family(NamedTuple):
    """Name (without ``_total``), type and help of a metric, as prometheus_client knows them."""

    name: str
    type: str
    documentation: str
    unit: str = ""
    labelnames: tuple[str, ...] = ()
    mode: str = "shared"
    """The way in which the values of several processes make one gauge: ``shared`` or a mode of prometheus_client.

    A counter that each process reads from elsewhere, and does not count itself, has the mode ``liveall``.
    """
    bounds: tuple[str, ...] = ()
    """Upper bounds of a histogram's buckets, as ``le`` spells them; only that of infinity where all others are native."""
    states: tuple[str, ...] = ()
    native: tuple[float, ...] = ()
    """The resolution of a histogram's native buckets, as the fields of `Native`; empty where it has none."""
    max_series: int = 0
    """The most series; 0 for no limit."""
    expire_series: float = 0.0
    """Seconds without an update after which a series expires; 0 for never."""

    @property
    def meta(self) -> str:
        """The family as ``#meta`` keeps it."""
        kept = {key: value for key, value in self._asdict().items() if value or key not in _OPTIONAL}
        return json.dumps(kept, separators=(",", ":"))

    @property
    def limits(self) -> Limits:
        """The limits that the storage holds."""
        overflow = self.labels((OVERFLOW,) * len(self.labelnames)) if self.max_series else ""
        native = self.resolution
        return Limits(int(self.max_series), overflow, float(self.expire_series), native.most_stored if native else 0)

    @classmethod
    def from_meta(cls, meta: str) -> Family:
        """The family in that text. Additions of later versions are ignored. Raises errors for a text that no version wrote."""
        stored = {key: value for key, value in json.loads(meta).items() if key in cls._fields}
        tuples: dict[str, Any] = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
        family = cls(**{**stored, **tuples})
        texts = (family.name, family.type, family.documentation, family.unit, family.mode)
        check_texts((*texts, *family.labelnames, *family.bounds, *family.states))
        check_unit(family.unit)
        _ = family.resolution
        return family

    @property
    def resolution(self) -> Native | None:
        """The resolution of native buckets; None where the histogram has none. Raises errors for an impossible one."""
        return resolution(self.native) if self.native else None

    @property
    def classic(self) -> tuple[str, ...]:
        """The bounds of classic buckets."""
        return () if self.native and len(self.bounds) == 1 else self.bounds

    @property
    def numbers(self) -> int:
        """About how many numbers one update of a series changes at most."""
        return 1 + len(self.bounds) + (USUAL_CHANGES if self.native else 0)

    @property
    def live(self) -> bool:
        """True where only processes that are alive count."""
        return self.mode.startswith("live")

    @property
    def lasting(self) -> bool:
        """True where the value of a process still counts after its end."""
        return self.mode != "shared" and not self.live

    @property
    def has_created(self) -> bool:
        """True where the series have a time of creation, and show it."""
        return self.type in TYPES and "_created" in TYPES[self.type][0] and shows_created()

    def labels(self, values: tuple[str, ...]) -> str:
        """The labels of the series with these values, as `dump` spells them."""
        return _labels(self.labelnames, values)

    def process_prefix(self, writer: str) -> str:
        """The start of the fields that hold the values of one process."""
        return f"#{'live' if self.live else self.mode}:{writer}:"

    def changed_since(self, before: str) -> str:
        """The differences from the family in that `#meta`, in words."""
        try:
            old, new = Family.from_meta(before)._asdict(), self._asdict()
        except _UNREADABLE as error:
            let_through(error)
            return "the declaration before is not of pdc"
        changed = [f"{key} {old[key]!r} is now {new[key]!r}" for key in new if key != "native" and old[key] != new[key]]
        return ", ".join([*changed, *native_changes(old["native"], self.native)])

    def has_other_kind(self, stored: Any) -> bool:
        """True where that `#meta` is of a histogram which has other kinds of buckets than this one, classic or native."""
        try:
            other = Family.from_meta(stored)
        except _UNREADABLE as error:
            let_through(error)
            return False
        kinds, others = ((bool(each.classic), bool(each.native)) for each in (self, other))
        return self.type == other.type == "histogram" and kinds != others

    def is_admitted(self, page: Page) -> bool:
        """True where the page may show the family. Raises StorageError for a family that pdc did not write."""
        with explained(self.name):
            shown = self.empty().name
        names = () if shown == self.name else tuple(_names(self.name, self.type, ALLOWUTF8))
        return page.admits(shown, self.type, *names)

    def has_one_of(self, names: Collection[str]) -> bool:
        """True where the family, or samples of it, have one of these names."""
        return any(self.name + suffix in names for suffix in ("", *_SUFFIXES[self.type]))

    def empty(self) -> Metric:
        """The family without samples."""
        return Metric(self.name, self.documentation, self.type, self.unit)

    def metric(self, fields: Fields, now: float) -> Metric:
        """The family with its samples, series sorted by their label values.

        `now` is the storage's clock. A process that it saw within `LEASE_SECONDS` is alive. A process last seen beyond the
        lease in the future (the clock was put back, or is another server's) counts as dead until it is seen again. Raises
        StorageError for fields that pdc did not write.
        """
        with explained(self.name):
            metric = self.empty()
            if self.mode == "shared":
                _, samples = TYPES[self.type]
                metric.samples = [*samples(self, self.series(fields))]
            else:
                metric.samples = self.merged(self.processes(fields), fields, now)
        return metric

    def processes(self, fields: Iterable[str]) -> Processes:
        """Where the values of processes are among these fields."""
        return Processes.among(fields, self.process_prefix("").removesuffix(":"), self.mode)

    def merged(self, processes: Processes, fields: Fields, now: float) -> list[Sample]:
        """The samples of these values of processes."""
        name = f"{self.name}_total" if self.type == "counter" else self.name
        labels, values = processes.merged(fields, now, LEASE_SECONDS)
        return made(repeat(name), map(dict.copy, labels), values)

    def series(self, fields: Fields) -> list[Series]:
        """The series with values that are one for all processes, sorted by their label values."""
        keys = {suffix: (suffix, "") for suffix in TYPES[self.type][0]}
        by_text: dict[str, Values] = {}
        exemplars: dict[str, Values] = {}
        for field, value in zip(fields, fields.values(), strict=True):  # `Parts` would look up each item
            suffix, _, text = field.partition(":")
            if suffix in keys:
                by_text.setdefault(text, {})[keys[suffix]] = value
            elif suffix.startswith(EXEMPLAR):
                exemplars.setdefault(text, {})[suffix, ""] = value
        found: dict[Labels, Series] = {}
        for labels, (text, values) in zip(parsed([*by_text]), by_text.items(), strict=True):
            own = values | exemplars[text] if text in exemplars else values
            if not _BOUNDED.isdisjoint(values):
                le = labels.pop("le", "")
                own = {(suffix, le): value for (suffix, _), value in own.items()}
            known = found.setdefault(tuple(labels.items()), (labels, own))
            if known[1] is not own:
                known[1].update(own)
        return sorted(found.values(), key=_label_values)

    def lines(self, found: Collection[Key]) -> list[Line]:
        """The lines that a series with these fields shows."""
        shown: list[Line] = []
        within: list[Key] = []
        for suffix, le in self.numbers_of(found):
            if suffix != "_until":
                within.append((suffix, le))
            if suffix == "_native":
                continue
            keys = () if suffix == "_count" and self.type == "histogram" else tuple(within)
            name = self.name + ("_bucket" if suffix == "_until" else suffix)
            exemplars = [key for key in ((EXEMPLAR + suffix, le) for suffix, le in keys) if key in found]
            shown.append(Line(keys, name, {"le": le} if le else {}, exemplars[-1] if exemplars else None))
            within.clear()
        return shown

    def located(self, fields: Iterable[str]) -> Iterator[tuple[str, Labels, Key]]:
        """Yield the fields that belong to series, each with its labels and key; the same pairs of texts are one object."""
        suffixes, _ = TYPES[self.type]
        shared: dict[tuple[str, str], tuple[str, str]] = {}
        for field in fields:
            suffix, _, text = field.partition(":")
            if suffix in suffixes:
                pairs = json.loads(text)
                key = suffix, pairs.pop("le", "") if suffix in ("_bucket", "_native") else ""
                labels = tuple(sorted(shared.setdefault(pair, pair) for pair in pairs.items()))
                yield field, labels, shared.setdefault(key, key)

    def numbers_of(self, found: Collection[Key]) -> Iterator[Key]:
        """Yield the keys of the numbers that a series shows, in prometheus_client's order. `found` are the stored keys.

        Numbers of buckets add up, and the ``_count`` of a histogram is their last sum; other numbers are as stored. Of a
        histogram with native buckets only, these and the bounds to show have the keys ``_native`` and ``_until``.
        """
        if self.type == "histogram" and not self.classic and (native := self.resolution):
            steps = in_order(frozenset(le for suffix, le in found if suffix == "_native"), native)
            yield from (("_native", each) if isinstance(each, str) else ("_until", floatToGoString(each)) for each in steps)
            yield _COUNT
            if not any(isinstance(each, float) and each < 0 for each in steps):
                yield "_sum", ""
        elif self.type == "histogram":
            bounds = _sorted_bounds(frozenset(le for suffix, le in found if suffix == "_bucket"), self.bounds)
            for le in bounds:
                yield "_bucket", le
            yield _COUNT
            if float(bounds[0]) >= 0:
                yield "_sum", ""
        else:
            yield from _NUMBERS[self.type]
        if _CREATED in found and shows_created():
            yield _CREATED


def made(
    names: Iterable[str],
    labels: Iterable[dict[str, str]],
    values: Iterable[float],
    exemplars: Iterable[Exemplar | None] = repeat(None),
) -> list[Sample]:
    """Samples with these parts. Each needs labels of its own, which users may change."""
    columns = zip(names, labels, values, repeat(None), exemplars, *map(repeat, _MORE), strict=False)
    return list(map(tuple.__new__, repeat(Sample), columns))  # the constructor of a named tuple is Python code


_MORE = Sample("", {}, 0.0)[5:]
"""The rest of a sample after its exemplar."""


def number(value: Any) -> float:
    """A stored value; 0 for a text, which the metric stored when it was an enum."""
    try:
        return float(value)
    except ValueError as error:
        let_through(error)
        return 0.0


Values = dict[Key, Any]
"""The fields of one series, with its exemplars."""
Series = tuple[dict[str, str], Values]
"""The labels of a series, sorted by name, and its fields."""


def _label_values(series: tuple[dict[str, str], Any]) -> list[str]:
    return [*series[0].values()]


class Line(NamedTuple):
    """A sample of a series without its labels and its value."""

    keys: tuple[Key, ...]
    """The field with the value; of a bucket all that count in it and not in the one before; none for the sum of buckets."""
    name: str
    bound: dict[str, str]
    """The label of a bucket, whose value counts those before it, too."""
    exemplar: Key | None


def _numbers(family: Family, series: Iterable[Series]) -> Iterator[Sample]:
    lines: dict[frozenset[Key], list[Line]] = {}
    for labels, values in series:
        found = frozenset(values)
        if found not in lines:
            lines[found] = family.lines(found)
        observed = 0.0
        for keys, name, bound, exemplar in lines[found]:
            for key in keys:
                value = number(values.get(key, 0.0))
                observed += value if bound else 0.0
            value = observed if bound or not keys else value
            yield Sample(name, {**labels, **bound}, value, None, exemplar_from(values[exemplar]) if exemplar else None)


def _info(family: Family, series: Collection[Series]) -> Iterator[Sample]:
    pairs = parsed([values["_info", ""] for _, values in series])
    for (labels, _), own in zip(series, pairs, strict=True):
        yield Sample(f"{family.name}_info", {**labels, **own}, 1.0)


def _stateset(family: Family, series: Iterable[Series]) -> Iterator[Sample]:
    for labels, values in series:
        for state in family.states:
            yield Sample(family.name, {**labels, family.name: state}, float(state == values["", ""]))


def shows_created() -> bool:
    """True where ``_created`` series are shown; see `prometheus_client.disable_created_metrics`."""
    return prometheus_client.metrics._use_created  # noqa: SLF001 - it has no public getter


def check_unit(unit: str) -> None:
    """Raise ValueError unless a format can carry the unit. No format escapes it."""
    if "\n" in unit:
        raise ValueError(f"a unit must be one line, got {unit!r}")


TYPES = {
    "counter": (frozenset({"_total", "_created"}), _numbers),
    "gauge": (frozenset({""}), _numbers),
    "summary": (frozenset({"_count", "_sum", "_created"}), _numbers),
    "histogram": (frozenset({"_bucket", "_native", "_sum", "_created"}), _numbers),
    "info": (frozenset({"_info"}), _info),
    "stateset": (frozenset({""}), _stateset),
}
"""The suffixes of a type, and how its series become samples."""

_BOUNDED = frozenset({("_bucket", ""), ("_native", "")})
"""Fields whose labels have a bound, too."""
_COUNT, _CREATED = ("_count", ""), ("_created", "")
_NUMBERS = {"counter": (("_total", ""),), "gauge": (("", ""),), "summary": (_COUNT, ("_sum", ""))}


@lru_cache(maxsize=256)
def _sorted_bounds(found: frozenset[str], declared: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(found.union(declared), key=float))


def bucket_bounds(bounds: Iterable[float]) -> tuple[str, ...]:
    """Upper bounds as ``le`` spells them."""
    return tuple(floatToGoString(bound) for bound in bounds)


class Page:
    """The names of families and samples on one page, which no two families may share.

    Of two families that share a name, the first is shown, and the log names the other one. In a storage the first one is the
    one whose name sorts first. As in a registry of prometheus_client, all possible samples of a type count.
    """

    def __init__(self, escaping: str = ALLOWUTF8) -> None:
        self._escaping = escaping
        self._families: dict[str, str] = {}

    def admits(self, name: str, kind: str, *samples: str) -> bool:
        """True where this family, with samples of these names, may be shown. Its names are reserved from now on."""
        names = _names(name, kind, self._escaping).union(escape_metric_name(each, self._escaping) for each in samples)
        for each in sorted(names):
            if each in self._families:
                _log_clash(name, self._families[each], each)
                return False
        self._families.update(dict.fromkeys(names, name))
        return True

    def has(self, name: str) -> bool:
        """True where the page has that name."""
        return escape_metric_name(name, self._escaping) in self._families

    def admitted(self, metrics: Iterable[Metric]) -> Iterator[Metric]:
        """Yield the families that may be shown."""
        for metric in metrics:
            if self.admits(metric.name, metric.type, *{sample.name for sample in metric.samples}):
                yield metric


@lru_cache(maxsize=4096)
def _names(name: str, kind: str, escaping: str) -> frozenset[str]:
    """The names of a family and of the samples that its type has, as they are spelled on a page."""
    return frozenset(escape_metric_name(name + suffix, escaping) for suffix in ("", *_SUFFIXES.get(kind, ())))


_SUFFIXES = {kind: tuple(suffixes) for kind, (suffixes, _) in TYPES.items()} | {
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
}


@once_each(4096)
def _log_clash(name: str, other: str, shared: str) -> None:
    """Log the clash once."""
    taken = "there is another one of that name" if name == other else f"{shared} is a name of metric {other}, too"
    log.write(logging.WARNING, "metric %s is not shown: %s; rename one, or remove the exporter that makes it", name, taken)


def families(
    metrics: Mapping[str, Fields], now: float, page: Page | None = None, names: Collection[str] | None = None
) -> list[Metric]:
    """The families of a snapshot, sorted by name, without fields of no metric and types of later versions.

    With `names`, only families that may have a sample of such a name. Raises StorageError for a family that pdc did not write.
    """
    known = known_families(metrics, page or Page())
    return [family.metric(metrics[name], now) for name, family in known if names is None or family.has_one_of(names)]


def known_families(metrics: Mapping[str, Fields], page: Page) -> list[tuple[str, Family]]:
    """The names and families that `families` shows on the page."""
    known = []
    for name, fields in sorted(metrics.items()):
        if META in fields:
            with explained(name):
                known.append((name, Family.from_meta(fields[META])))
    return [(name, family) for name, family in known if family.type in TYPES and family.is_admitted(page)]


FOREIGN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""The errors that fields raise which pdc did not write."""


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors about fields of that metric into a StorageError that names the metric and the remedy."""
    try:
        yield
    except FOREIGN as error:
        let_through(error)
        raise foreign(name, error) from error
