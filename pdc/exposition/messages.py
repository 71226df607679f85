"""Renders families in the protobuf format, those of a storage with templates as `rendering` does.

Names of families, types and values are those of the text format 0.0.4, as client_golang has them. Creation times, units and
exemplars have fields of their own, and a family without samples has no message.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from io import BytesIO
from itertools import accumulate, chain, groupby, islice
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES, escape_label_name, escape_metric_name
from prometheus_client.samples import Sample

from ..exemplars import EXEMPLAR, exemplar_from
from ..family import Family, Fields, Key, Labels
from .natives import NativeFields, Plan, plan_of
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
    series_template,
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
        found: dict[tuple[Labels, Any], _Series] = {}
        for sample in metric.samples:
            suffix = sample.name.removeprefix(metric.name)
            own = OWN_LABELS.get((metric.type, suffix), "")
            labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != own))
            key = suffix, sample.labels.get(own, "")
            found.setdefault((labels, sample.timestamp), {}).setdefault(key, sample)
        series = [self._series(metric.type, labels, at, each) for (labels, at), each in found.items()]
        message = b"".join([self.head(metric), *series])
        return varint(len(message)) + message if series else b""

    def _series(self, kind: str, labels: Labels, at: Any, found: _Series) -> bytes:
        """The message of a series, with its time where it has one. The last bucket counts all where nothing else does."""
        if kind == "histogram":
            buckets = [sample for (suffix, _), sample in found.items() if suffix == "_bucket"]
            found.setdefault(("_count", ""), Sample("", {}, buckets[-1].value if buckets else 0.0))
        samples = [*found.values()]
        values = [encoder_of(TYPES[kind], suffix)(float(sample.value)) for (suffix, _), sample in found.items()]
        exemplars = {~gap: exemplar_message(each.exemplar) for gap, each in enumerate(samples) if each.exemplar is not None}
        value = value_part(TYPES[kind], tuple(found), tuple(~gap for gap in exemplars))
        milliseconds = None if at is None else int(float(at) * 1000)
        return series_part(self.labels(labels), value, milliseconds).filled(values, exemplars)


@lru_cache(maxsize=1024)
def _escaped(escape: Callable[[str, str], str], name: str, escaping: str) -> str:
    """The name without the quotes that text has around names in UTF-8."""
    return name if escaping == ALLOWUTF8 else escape(name, escaping)


def _without_strays(metric: Metric) -> Iterator[Metric]:
    """Yield the family, then samples with other names than its type has as families of no type: so Prometheus reads text."""
    names = [metric.name + suffix for suffix in SUFFIXES[metric.type]]
    known = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    strays: dict[str, Metric] = {}
    for sample in metric.samples:
        home = known if sample.name in names else strays.setdefault(sample.name, Metric(sample.name, "", "unknown"))
        home.samples.append(sample)
    yield known
    yield from strays.values()


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
    """The numbers of series that have the same keys, without inserts."""

    shown: list[tuple[Key, array[int]]]
    """The keys and the indices of their fields, of all series."""
    value: Part
    columns: dict[Callable[[float], bytes], list[array[int]]]
    """For each function that encodes numbers, the indices of their fields, of all series."""
    gaps: list[tuple[Callable[[float], bytes], int]]
    """For each gap the function of its value, and the place among the columns."""

    @classmethod
    def of(cls, kind: int, numbers: list[tuple[Key, array[int]]]) -> _Shape:
        """The shape of series with these keys, each with its column."""
        columns: dict[Callable[[float], bytes], list[array[int]]] = {}
        gaps = []
        for (suffix, _), column in numbers:
            encode = encoder_of(kind, suffix)
            known = columns.setdefault(encode, [])
            if suffix != "_count" or encode is not encode_count:  # the count of a histogram is its last sum
                known.append(column)
            gaps.append((encode, len(known) - 1))
        return cls(numbers, value_part(kind, tuple([key for key, _ in numbers])), columns, gaps)


class _ChunkDraft:
    """Gathers the messages of some series."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._templates: list[bytes] = []
        self._columns = {encode: array("I") for encode in ENCODERS}
        self._runs, self._inserts = array("I"), array("I")
        self._lengths: list[Length] = []
        self._gaps: list[list[tuple[Any, range]]] = []
        """For series that were added together, the column of the value of each gap, and for each series the place there."""

    def add_all(self, labels: list[bytes], shape: _Shape, series: list[int]) -> None:
        """Add these series, which have no inserts, column by column: there may be 100,000."""
        self._templates.append(series_template(labels, shape.value))
        places = {}
        for encode, columns in shape.columns.items():
            own, count = self._columns[encode], len(columns)
            start = len(own)
            own.extend(_in_turns([map(column.__getitem__, series) for column in columns]))
            places[encode] = range(start, len(own)), count
            if encode is encode_count:
                self._runs.extend([count] * len(series))
        self._gaps.append([(encode, places[encode][0][place :: places[encode][1]]) for encode, place in shape.gaps])

    def add(self, labels: bytes, numbers: list[tuple[Key, int]], insert_of: Mapping[int, int]) -> None:
        """Add a series with the numbers in these fields, and their inserts."""
        inserts = {~gap: insert_of[field] for gap, (_, field) in enumerate(numbers) if field in insert_of}
        value = value_part(self._kind, tuple([key for key, _ in numbers]), tuple([~gap for gap in inserts]))
        part = series_part(labels, value)
        places = self._places(numbers)
        self._templates.append(part.template)
        gaps: list[tuple[Any, int]] = []
        for gap in part.gaps:
            if isinstance(gap, Length):
                gaps.append((Length, len(self._lengths)))
                self._lengths.append(Length(gap.size, tuple(inserts[each] for each in gap.inserts)))
            elif gap < 0:
                gaps.append((Part, len(self._inserts)))
                self._inserts.append(inserts[gap])
            else:
                gaps.append(places[gap])
        self._gaps.append([(column, range(place, place + 1)) for column, place in gaps])

    def _places(self, numbers: list[tuple[Key, int]]) -> list[tuple[Any, int]]:
        """The column and the place of each number; inserts have no place. The count of a histogram is its last sum."""
        places = []
        sums = self._columns[encode_count]
        first = len(sums)
        for (suffix, _), field in numbers:
            encode = encoder_of(self._kind, suffix)
            column = self._columns[encode]
            if suffix != "_native" and (suffix != "_count" or encode is not encode_count):
                column.append(field)
            places.append((encode, len(column) - 1))
        if len(sums) > first:
            self._runs.append(len(sums) - first)
        return places

    def chunk(self) -> _Chunk:
        """The chunk of the series so far."""
        buckets, times = self._columns.pop(encode_count), self._columns.pop(encode_time)
        columns = [(encode, fields) for encode, fields in self._columns.items() if fields]
        sizes: list[tuple[Any, Sized]] = [(encode_count, buckets), *columns, (encode_time, times)]
        sizes += [(Part, self._inserts), (Length, self._lengths)]
        starts = accumulate((len(fields) for _, fields in sizes), initial=0)
        start = {column: first for (column, _), first in zip(sizes, starts, strict=False)}
        gaps = array("I")
        for together in self._gaps:
            all_places = [(start[column], places) for column, places in together]
            gaps.extend(_in_turns([range(first + each.start, first + each.stop, each.step) for first, each in all_places]))
        template = b"".join(self._templates)
        return _Chunk(template, gaps, buckets, self._runs, columns, _Times(times), self._inserts, self._lengths)


def _in_turns(columns: list[Iterable[int]]) -> Iterator[int]:
    """The first numbers of all columns, then the second ones."""
    return chain.from_iterable(zip(*columns, strict=True))


class _Draft(Draft):
    """Builds the layout of some fields."""

    def __init__(self, family: Family, fields: Fields, encoder: ProtobufEncoder) -> None:
        super().__init__(family, fields)
        self._encoder = encoder
        self._shapes: dict[tuple[Key, ...], _Shape] = {}
        self._natives: list[NativeFields] = []

    def layout(self, key: tuple[Any, ...]) -> _Layout:
        """Build the layout under that key."""
        self._find(with_exemplars=True)
        chunks, order, further = [], self._series.in_order(), self._further()
        while block := [*islice(order, max(CHUNK // self._family.numbers, 1))]:
            draft = _ChunkDraft(TYPES[self._family.type])
            all_labels = iter(self._labels(block))
            for keys, series in self._runs(block, further):
                labels = [*islice(all_labels, len(series))]
                if self._family.native or any(suffix.startswith(EXEMPLAR) for suffix, _ in keys):
                    for each, own in zip(series, labels, strict=True):
                        draft.add(own, *self._numbers(each, keys))
                else:
                    draft.add_all(labels, self._shape(keys), series)
            chunks.append(draft.chunk())
        self._series.free()
        return _Layout(key, self._encoder.head(self._family), chunks, self._natives)

    def _runs(self, block: list[int], further: list[tuple[Key, array[int]]]) -> Iterator[tuple[tuple[Key, ...], list[int]]]:
        """Yield the series in their order, those together that have the same of the further keys, after these."""

        def keys_of(series: int) -> tuple[Key, ...]:
            return tuple([each for each, column in further if column[series] != self._missing])

        for keys, run in groupby(block, keys_of) if further else [((), block)]:
            yield keys, [*run]

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

    def _numbers(self, series: int, keys: tuple[Key, ...]) -> tuple[list[tuple[Key, int]], dict[int, int]]:
        """The keys and the fields of the numbers of a series, and the inserts by these fields.

        A series with native buckets has count and sum beside them: Prometheus wants a count that is that of its buckets. It has
        none where classic buckets alone have counts, of processes without native ones.
        """
        plain = tuple([key for key in keys if not key[0].startswith(("_native", EXEMPLAR))])
        numbers = [(each, column[series]) for each, column in self._shape(plain).shown]
        native = self._family.resolution
        exemplars = [(suffix.removeprefix(EXEMPLAR), le) for suffix, le in keys if suffix.startswith(EXEMPLAR)]
        inserts = {self._columns[each][series]: self._columns[EXEMPLAR + each[0], each[1]][series] for each in exemplars}
        buckets = {key[1]: self._columns[key][series] for key in keys if key[0] == "_native"} if native else {}
        is_classic = any(field != self._missing for (suffix, _), field in numbers if suffix == "_bucket")
        if native is not None and (buckets or not is_classic):
            number = self._missing + 1 + len(self._natives)
            self._natives.append(self._native(plan_of(frozenset(buckets), native), buckets, series, inserts))
            inserts[number] = number
            numbers = [*(each for each in numbers if each[0][0] in ("_bucket", "_created")), (NATIVE, number)]
        return numbers, inserts

    def _native(self, plan: Plan, buckets: Mapping[str, int], series: int, inserts: Mapping[int, int]) -> NativeFields:
        counts = array("I", [buckets.get(text, self._missing) for text in plan.texts])
        exemplars = array("I", [inserts[field] for field in buckets.values() if field in inserts])
        return NativeFields(plan, counts, self._column(("_sum", ""))[series], exemplars)

    def _shape(self, keys: tuple[Key, ...]) -> _Shape:
        """The shape of series with these keys, which are no native buckets."""
        if keys not in self._shapes:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            shown = [(each, self._column(each)) for each in self._family.numbers_of(keys) if each[0] != "_until"]
            self._shapes[keys] = _Shape.of(TYPES[self._family.type], shown)
        return self._shapes[keys]
