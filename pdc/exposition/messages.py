"""Renders families in the protobuf format, those of a storage with templates as `rendering` does.

Names of families, types and values are those of the text format 0.0.4, as client_golang has them. Creation times, units and
exemplars have fields of their own, and a family without samples has no message.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from io import BytesIO
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES, escape_label_name, escape_metric_name
from prometheus_client.samples import Sample

from ..exemplars import EXEMPLAR, exemplar_from
from ..family import Family, Fields, Key, Labels
from ..process.interruption import tolerate
from .natives import NativeFields, plan_of
from .protobuf import (
    ENCODERS,
    KEYS,
    NATIVE,
    Kept,
    Length,
    Part,
    content,
    encode_count,
    encode_time,
    encoder_of,
    exemplar_message,
    numbers,
    pair,
    series_part,
    series_templates,
    value_part,
    varint,
)
from .rendering import MOST_SHAPES, Draft, Layout
from .series import CHUNK

TYPES = {"counter": 0, "gauge": 1, "summary": 2, "unknown": 3, "histogram": 4, "gaugehistogram": 3, "info": 1, "stateset": 1}
"""The MetricType of each type of prometheus_client."""
SUFFIXES = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "summary": ("", "_count", "_sum", "_created"),
    "unknown": ("",),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "gaugehistogram": (),
    "info": ("_info",),
    "stateset": ("",),
}
"""The suffixes of the samples that a message of the type can have. Gauge histograms would get other names than in text."""
OWN_LABELS = {("summary", ""): "quantile", ("histogram", "_bucket"): "le"}
"""The labels that are no labels of the series."""

_Series = dict[Key, Sample]


class ProtobufEncoder(NamedTuple):
    """An encoder of messages ``io.prometheus.client.MetricFamily``, each after its length."""

    escaping: str = UNDERSCORES

    @property
    def splits(self) -> bool:
        """False: a summary without its count would have the count 0."""
        return False

    @property
    def end(self) -> bytes:
        """The bytes after the last family."""
        return b""

    def encode(self, metrics: Iterable[Metric]) -> bytes:
        """The messages of the families."""
        return b"".join([self._message(each) for metric in metrics for each in _without_strays(metric)])

    def layout(self, key: tuple[Any, ...], family: Family, fields: Fields) -> Layout:
        """The layout of the family with these fields, under that key."""
        return _Draft(family, fields, self).layout(key)

    def head(self, metric: Family | Metric) -> bytes:
        """The fields of the family before its series."""
        shown = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        name = content("MetricFamily.name", _escaped(escape_metric_name, shown, self.escaping).encode())
        about = content("MetricFamily.help", metric.documentation.encode()) if metric.documentation else b""
        unit = content("MetricFamily.unit", metric.unit.encode()) if metric.unit else b""
        return name + about + KEYS["MetricFamily.type"] + varint(TYPES[metric.type]) + unit

    def pair(self, name: str) -> Callable[[str], bytes]:
        """A function that encodes values of a label of series."""
        return pair("Metric.label", _escaped(escape_label_name, name, self.escaping))

    def labels(self, labels: Labels) -> bytes:
        """The fields with the labels of a series."""
        return b"".join([self.pair(name)(value) for name, value in labels])

    def _message(self, metric: Metric) -> bytes:
        """The message of a family; nothing where it has no samples."""
        found: dict[tuple[Labels, int | None], _Series] = {}
        for sample in metric.samples:
            suffix = sample.name.removeprefix(metric.name)
            own = OWN_LABELS.get((metric.type, suffix), "")
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != own))
            key = suffix, sample.labels.get(own, "")
            milliseconds = None if sample.timestamp is None else int(float(sample.timestamp) * 1000)
            found.setdefault((labels, milliseconds), {}).setdefault(key, sample)
        series = [self._series(metric.type, labels, milliseconds, each) for (labels, milliseconds), each in found.items()]
        message = b"".join([self.head(metric), *series])
        return varint(len(message)) + message if series else b""

    def _series(self, kind: str, labels: Labels, milliseconds: int | None, found: _Series) -> bytes:
        """The message of a series, with its time where it has one. The last bucket counts all where nothing else does."""
        if kind == "histogram":
            buckets = [sample for (suffix, _), sample in found.items() if suffix == "_bucket"]
            found.setdefault(("_count", ""), Sample("", {}, buckets[-1].value if buckets else 0.0))
        samples = [*found.values()]
        values = [encoder_of(TYPES[kind], suffix)(float(sample.value)) for (suffix, _), sample in found.items()]
        exemplars = {~gap: exemplar_message(each.exemplar) for gap, each in enumerate(samples) if each.exemplar is not None}
        value = value_part(TYPES[kind], tuple(found), tuple(~gap for gap in exemplars))
        return series_part(self.labels(labels), value, milliseconds).filled(values, exemplars)


@lru_cache(maxsize=1024)
def _escaped(escape: Callable[[str, str], str], name: str, escaping: str) -> str:
    """The name without the quotes that text has around names in UTF-8."""
    return name if escaping == ALLOWUTF8 else escape(name, escaping)


def _without_strays(metric: Metric) -> Iterator[Metric]:
    """Yield the family, then samples that its type does not have as families of no type: so Prometheus reads text."""
    own_labels = {metric.name + suffix: OWN_LABELS.get((metric.type, suffix)) for suffix in SUFFIXES[metric.type]}
    known = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    strays: dict[str, Metric] = {}
    for sample in metric.samples:
        own = own_labels.get(sample.name)
        is_known = sample.name in own_labels and (own is None or _has_number(sample.labels, own))
        home = known if is_known else strays.setdefault(sample.name, Metric(sample.name, "", "unknown"))
        home.samples.append(sample)
    yield known
    yield from strays.values()


def _has_number(labels: Mapping[str, str], name: str) -> bool:
    """True where that label is a number."""
    with tolerate(KeyError, ValueError):
        float(labels[name])
        return True
    return False


class _Times:
    """The creation times of some series. They seldom change, so that their bytes are kept."""

    def __init__(self, fields: array[int]) -> None:
        self._fields = fields
        self._last: tuple[array[float], list[bytes]] = (array("d"), [])

    def shown(self, stored: list[Any]) -> list[bytes]:
        """The bytes of the times."""
        times = array("d", numbers(map(stored.__getitem__, self._fields)))
        before, shown = self._last
        if times != before:
            shown = [*map(encode_time, times)]
            self._last = times, shown
        return shown


class _Chunk(NamedTuple):
    """The messages of some series with gaps for their numbers.

    The gaps count the sums of buckets, then the numbers of the columns, the times, inserts and lengths.
    """

    template: bytes
    gaps: array[int]
    buckets: array[int]
    """Fields of buckets, one histogram after the other."""
    runs: array[int]
    """The number of buckets of each histogram."""
    columns: list[tuple[Callable[[float], bytes], array[int]]]
    """Fields of other numbers by the function that encodes them."""
    times: _Times
    inserts: array[int]
    """Fields of exemplars, and numbers of native buckets after those of all fields."""
    lengths: list[Length]
    """Lengths of messages with these."""

    def filled(self, stored: list[Any], kept: Mapping[Any, Callable[[Any], bytes]], natives: list[NativeFields]) -> bytes:
        """The messages with these numbers."""
        values: list[bytes] = []
        bucket = iter(numbers(map(stored.__getitem__, self.buckets)))
        for run in self.runs:
            values += map(kept[encode_count], accumulate(islice(bucket, run)))
        for encode, fields in self.columns:
            values += map(kept[encode], numbers(map(stored.__getitem__, fields)))
        values += self.times.shown(stored)
        inserts = {each: _insert(each, stored, natives) for each in self.inserts}
        values += inserts.values()
        values += [length.of(inserts) for length in self.lengths]
        return self.template % tuple(map(values.__getitem__, self.gaps))


def _insert(index: int, stored: list[Any], natives: list[NativeFields]) -> bytes:
    """The exemplar in that field, or the native buckets of that number."""
    if index < len(stored):
        return exemplar_message(exemplar_from(stored[index]))
    return natives[index - len(stored)].shown(stored)


class _Layout(NamedTuple):
    """The message of a family with gaps for its numbers."""

    key: tuple[Any, ...]
    """As that of a layout of text."""
    head: bytes
    chunks: list[_Chunk]
    natives: list[NativeFields]

    def write(self, output: BytesIO, fields: Fields) -> None:
        """Write the message with the values of these fields; nothing without series."""
        stored = [*fields.values(), 0]
        kept = {encode: Kept(encode).__getitem__ for encode in ENCODERS}
        filled = [chunk.filled(stored, kept, self.natives) for chunk in self.chunks]
        if filled:
            output.write(varint(len(self.head) + sum(map(len, filled))) + self.head)
        output.writelines(filled)


class _Shape(NamedTuple):
    """The values of series that have the same keys."""

    value: Part
    columns: dict[Callable[[float], bytes], list[array[int]]]
    """For each function that encodes numbers, the indices of their fields, of all series."""
    gaps: list[tuple[Any, int]]
    """For each gap the function of its number, `Part` for an insert or `Length`, and the place among such values."""
    inserts: list[array[int]]
    """The indices of the inserts, of all series."""
    lengths: list[tuple[int, list[array[int]]]]
    """The size of each message with inserts, of that of the series without the labels, and its inserts."""

    @classmethod
    def of(cls, kind: int, numbers: list[tuple[Key, array[int]]], exemplars: Mapping[int, array[int]]) -> _Shape:
        """The shape of series with these keys, each with its column, and exemplars by the place of their keys."""
        columns: dict[Callable[[float], bytes], list[array[int]]] = {}
        places: list[tuple[Any, int]] = []
        for (suffix, _), column in numbers:
            encode = encoder_of(kind, suffix)
            known = columns.setdefault(encode, [])
            if suffix != NATIVE[0] and (suffix != "_count" or encode is not encode_count):  # the last sum is the count
                known.append(column)
            places.append((encode, len(known) - 1))
        value = value_part(kind, tuple([key for key, _ in numbers]), tuple(exemplars))
        shape = cls(value, columns, [], [], [])
        own = {gap: exemplars.get(~gap, numbers[~gap][1]) for gap in value.inserts}
        whole = (Length(value.size, value.inserts),) if value.inserts else ()
        for gap in (*whole, *value.gaps):
            if isinstance(gap, Length):
                shape.gaps.append((Length, len(shape.lengths)))
                shape.lengths.append((gap.size, [own[each] for each in gap.inserts]))
            elif gap < 0:
                shape.gaps.append((Part, len(shape.inserts)))
                shape.inserts.append(own[gap])
            else:
                shape.gaps.append(places[gap])
        return shape

    def lengths_of(self, labels: int, series: int) -> list[Length]:
        """The lengths of a series with so many bytes of labels."""
        found = [Length(size, tuple([column[series] for column in inserts])) for size, inserts in self.lengths]
        return [found[0]._replace(size=found[0].size + labels), *found[1:]]


class _ChunkDraft:
    """Gathers the messages of some series."""

    def __init__(self) -> None:
        self._templates: list[bytes] = []
        self._columns: dict[Any, array[int]] = {kind: array("I") for kind in (*ENCODERS, Part)}
        self._runs = array("I")
        self._lengths: list[Length] = []
        self._gaps: list[list[tuple[Any, range]]] = []
        """For series that were added together, the kind of each gap, and for each series the place of its value."""
        self._order: list[int] = []

    def add(self, labels: list[bytes], shape: _Shape, series: list[int], order: list[int]) -> None:
        """Add these series column by column, since there may be 100,000; in the end they are in that order."""
        self._templates += series_templates(labels, shape.value)
        self._order += order
        places: dict[Any, tuple[int, int]] = {Length: (len(self._lengths), len(shape.lengths))}
        for kind, columns in ((Part, shape.inserts), *shape.columns.items()):
            own = self._columns[kind]
            places[kind] = len(own), len(columns)
            own.extend(_in_turns([map(column.__getitem__, series) for column in columns]))
        if counts := shape.columns.get(encode_count):
            self._runs.extend([len(counts)] * len(series))
        if shape.lengths:
            self._lengths += chain.from_iterable(map(shape.lengths_of, map(len, labels), series))
        self._gaps.append([(kind, _stepped(*places[kind], place, len(series))) for kind, place in shape.gaps])

    def chunk(self) -> _Chunk:
        """The chunk of the series so far."""
        buckets, times, inserts = map(self._columns.pop, (encode_count, encode_time, Part))
        columns = [(encode, fields) for encode, fields in self._columns.items() if fields]
        sizes: list[tuple[Any, Sized]] = [(encode_count, buckets), *columns, (encode_time, times)]
        sizes += [(Part, inserts), (Length, self._lengths)]
        starts = accumulate((len(fields) for _, fields in sizes), initial=0)
        start = {column: first for (column, _), first in zip(sizes, starts, strict=False)}
        gaps: list[tuple[int, ...]] = []
        for together in self._gaps:
            all_places = [(start[column], places) for column, places in together]
            gaps += zip(*[range(first + each.start, first + each.stop, each.step) for first, each in all_places], strict=True)
        rows = [*zip(self._order, self._templates, gaps, strict=True)]
        if len(self._gaps) > 1:
            rows.sort()
        template = b"".join([each for _, each, _ in rows])
        places = array("I", chain.from_iterable([each for _, _, each in rows]))
        return _Chunk(template, places, buckets, self._runs, columns, _Times(times), inserts, self._lengths)


def _stepped(start: int, step: int, place: int, count: int) -> range:
    """So many places, each `step` after the one before."""
    return range(start + place, start + place + count * step, step)


def _in_turns(columns: list[Iterable[int]]) -> Iterator[int]:
    """The first numbers of all columns, then the second ones."""
    return chain.from_iterable(zip(*columns, strict=True))


_EXEMPLAR_OF_NATIVE = f"{EXEMPLAR}_native"


class _Draft(Draft):
    """Builds the layout of some fields."""

    def __init__(self, family: Family, fields: Fields, encoder: ProtobufEncoder) -> None:
        super().__init__(family, fields)
        self._encoder = encoder
        self._shapes: dict[tuple[tuple[Key, ...], bool], _Shape] = {}
        self._buckets: list[tuple[str, array[int]]] = []
        """Native buckets, and the indices of their fields, of all series."""
        self._natives: list[NativeFields] = []

    def layout(self, key: tuple[Any, ...]) -> _Layout:
        """Build the layout under that key."""
        self._find(with_exemplars=True)
        chunks, order, further = [], self._series.in_order(), self._further()
        self._buckets = [(le, column) for (suffix, le), column in further if suffix == "_native"]
        others = [(each, column) for each, column in further if each[0] not in ("_native", _EXEMPLAR_OF_NATIVE)]
        while block := [*islice(order, max(CHUNK // self._family.numbers, 1))]:
            draft = _ChunkDraft()
            labels = self._labels(block)
            for shape, places in self._alike(block, others):
                draft.add([labels[each] for each in places], shape, [block[each] for each in places], places)
            chunks.append(draft.chunk())
        self._series.free()
        return _Layout(key, self._encoder.head(self._family), chunks, self._natives)

    def _alike(self, block: list[int], others: list[tuple[Key, array[int]]]) -> Iterator[tuple[_Shape, list[int]]]:
        """Yield the shapes of the series, each with the places in the block of the series that have it."""
        found: dict[tuple[tuple[Key, ...], bool], list[int]] = {}
        for place, series in enumerate(block):
            keys = tuple([each for each, column in others if column[series] != self._missing]) if others else ()
            is_native = bool(self._family.native) and self._add_native(series)
            found.setdefault((keys, is_native), []).append(place)
        for (keys, is_native), places in found.items():
            yield self._shape(keys, is_native), places

    def _labels(self, series: list[int]) -> list[bytes]:
        """The fields of the labels of each series."""
        if not self._series.are_plain(series):
            return [self._encoder.labels(self._series.pairs(each)) for each in series]
        fields = []
        for name, values in self._series.columns(series):
            distinct = [*set(values)]
            known = dict(zip(distinct, map(self._encoder.pair(name), distinct), strict=True))
            fields.append(map(known.__getitem__, values))
        return [*map(b"".join, zip(*fields, strict=True))]

    def _add_native(self, series: int) -> bool:
        """Add the native buckets of the series, if it has such ones.

        It has none where classic buckets alone have counts, of processes without native ones.
        """
        missing, native = self._missing, self._family.resolution
        buckets = {le: column[series] for le, column in self._buckets if column[series] != missing}
        if native is None or (not buckets and self._family.classic and self._has_classic(series)):
            return False
        plan = plan_of(frozenset(buckets), native)
        counts = array("I", [buckets.get(text, missing) for text in plan.texts])
        known = [(_EXEMPLAR_OF_NATIVE, le) for le in buckets if (_EXEMPLAR_OF_NATIVE, le) in self._columns]
        exemplars = array("I", [field for each in known if (field := self._column(each)[series]) != missing])
        self._column(NATIVE)[series] = missing + 1 + len(self._natives)
        self._natives.append(NativeFields(plan, counts, self._column(("_sum", ""))[series], exemplars))
        return True

    def _has_classic(self, series: int) -> bool:
        columns = [self._column(each) for each in self._columns if each[0] == "_bucket"]
        return any(column[series] != self._missing for column in columns)

    def _shape(self, keys: tuple[Key, ...], is_native: bool) -> _Shape:
        """The shape of series with these keys, which are no native buckets.

        A series with native buckets has count and sum beside them: Prometheus wants a count that is that of its buckets.
        """
        shape = self._shapes.get((keys, is_native))
        if shape is None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            plain = [each for each in keys if not each[0].startswith(EXEMPLAR)]
            shown = [each for each in self._family.numbers_of(plain) if each[0] != "_until"]
            if is_native:
                shown = [*(each for each in shown if each[0] in ("_bucket", "_created")), NATIVE]
            exemplars = {place: (EXEMPLAR + suffix, le) for place, (suffix, le) in enumerate(shown)}
            own = {place: self._column(each) for place, each in exemplars.items() if each in keys}
            shape = _Shape.of(TYPES[self._family.type], [(each, self._column(each)) for each in shown], own)
            self._shapes[keys, is_native] = shape
        return shape
