r"""Renders a storage as text: the same bytes as prometheus_client renders of the same families, in a fraction of the time.

prometheus_client's encoders render each distinct part (headers, names, pairs of labels, exemplars), and pdc joins the parts.
It keeps the text between the numbers of a metric as a template while the metric has the same fields in the same order, so
that the next scrape only fills in numbers. For example, the fields ``_total:{"path":"/"}`` and ``_total:{"path":"/a"}`` of
the counter ``hits`` become the template ``# HELP hits_total ...\n# TYPE hits_total counter\nhits_total{path="/"} %s\n
hits_total{path="/a"} %s\n``, whose gaps have the indices 0 and 1, as the fields have in the hash.
"""

from __future__ import annotations

import gc
import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol, TypeAlias

from prometheus_client import exposition as text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_text
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from ..exemplars import EXEMPLAR, exemplar_from
from ..family import (
    TYPES,
    Family,
    Fields,
    Key,
    Page,
    explained,
    known_families,
    number,
    shows_created,
)
from ..metrics.samples import Sampler
from ..storage import META, Snapshot
from ..storage.labels import without_bound
from .series import CHUNK, SeriesLabels, Shown, doubled

MOST_TEXTS = 10_000
"""Numbers that a scrape keeps as text."""
MOST_SHAPES = 100
"""Shapes of series that a draft keeps: of series with exemplars, each may have its own."""
TEMPLATES = ("counter", "gauge", "summary", "histogram")
"""The types that have templates: their values are plain numbers."""

WITH_EXEMPLARS = frozenset({"_total", "_bucket", "_native"})
"""The suffixes of samples that may have an exemplar."""

_Column: TypeAlias = "array[int]"


class Collected:
    """Collected families, in the form that the encoders take."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._metrics


class Layout(Protocol):
    """The output of a family with gaps for its numbers, while the family has the same fields in the same order."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Metadata, encoder and a digest of the fields: a layout fits only the same."""

    def write(self, output: BytesIO, fields: Fields) -> None:
        """Write the output with the values of these fields."""


class AnyEncoder(Protocol):
    """An encoder of a format, with an escaping of names."""

    @property
    def escaping(self) -> str:
        """A scheme of prometheus_client."""

    @property
    def splits(self) -> bool:
        """True where a family may be shown without some of its samples."""

    @property
    def end(self) -> bytes:
        """The output after the last family."""

    def encode(self, metrics: Iterable[Metric]) -> bytes:
        """The families without the end."""

    def layout(self, key: tuple[Any, ...], family: Family, fields: Fields) -> Layout:
        """The layout of the family with these fields, under that key."""

    def __hash__(self) -> int: ...


class Encoder(NamedTuple):
    """An encoder of prometheus_client, for text."""

    openmetrics: bool = False
    escaping: str = openmetrics_text.UNDERSCORES

    @property
    def splits(self) -> bool:
        """True: each sample has a line."""
        return True

    @property
    def end(self) -> bytes:
        """The text after the last family."""
        return b"# EOF\n" if self.openmetrics else b""

    def encode(self, metrics: Iterable[Metric]) -> bytes:
        """The text of the families without the end."""
        encode: Callable[..., bytes] = openmetrics_text.generate_latest if self.openmetrics else text.generate_latest
        return encode(Collected(metrics), escaping=self.escaping).removesuffix(self.end)

    def layout(self, key: tuple[Any, ...], family: Family, fields: Fields) -> Layout:
        """The layout of the family with these fields, under that key."""
        return _Draft(family, fields, self).layout(key)

    def header(self, metric: Metric) -> str:
        """The comments before the samples of the family, as a template."""
        return _template(self.encode([Metric(metric.name, metric.documentation, metric.type, metric.unit)]))

    def frame(self, name: str) -> tuple[str, str, str]:
        """The text before and after the labels of a sample, and before a number without labels, as templates."""
        with_labels, without = self._lines(Sample(name, {"a": "b"}, 0.0), Sample(name, {}, 0.0))
        before, _, after = with_labels.rpartition('a="b"')
        return before, after.removesuffix("0.0"), without.removesuffix("0.0")

    def pairs(self, labels: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Each pair of label and value as a template."""
        before, after, _ = self.frame("m")
        found: dict[tuple[str, str], str] = {}
        rest = iter(labels)
        while part := list(islice(rest, CHUNK)):
            new = [pair for pair in dict.fromkeys(part) if pair not in found]
            lines = self._lines(*(Sample("m", {name: value}, 0.0) for name, value in new))
            found.update((pair, line[len(before) : -len(f"{after}0.0")]) for pair, line in zip(new, lines, strict=True))
        return found

    def exemplar(self, stored: str) -> bytes:
        """The exemplar with the space before it."""
        metric = Metric("m", "", "histogram")
        header = self.encode([metric])
        metric.samples = [Sample("m_bucket", {}, 0.0, None, exemplar_from(stored))]
        return self.encode([metric]).removeprefix(header).removesuffix(b"\n").partition(b" 0.0")[2]

    def _lines(self, *samples: Sample) -> list[str]:
        """The lines of the samples as templates, from a metric whose name is no sample's."""
        metric = Metric("m_", "", "unknown")
        header = self.encode([metric])
        metric.samples = list(samples)
        return _template(self.encode([metric]).removeprefix(header)).split("\n")[:-1]


class Renderer:
    """Renders one snapshot after the other and keeps the layouts of the last one."""

    def __init__(self) -> None:
        self._layouts: dict[str, Layout] = {}
        self._samplers: dict[str, Sampler] = {}
        """By metric without a template, the layout of its samples."""

    def render(
        self,
        snapshot: Snapshot,
        encoder: AnyEncoder,
        others: Callable[[Page], bytes] = lambda _: b"",
        names: Collection[str] | None = None,
    ) -> bytes:
        """Render the families of the snapshot, then the output of those that `others` adds to the page, and the end.

        With `names`, only families that may have a sample of such a name. Frees the snapshot's fields on the way. Raises
        StorageError for fields that pdc did not write.
        """
        output, page = BytesIO(), Page(encoder.escaping)
        layouts: dict[str, Layout] = {}
        samplers: dict[str, Sampler] = {}
        now, metrics = snapshot
        for name, family in known_families(metrics, page):
            fields = metrics.pop(name)
            if names is not None and not family.has_one_of(names):
                continue
            if family.type in TEMPLATES and family.mode == "shared":
                with explained(family.name):
                    layouts[name] = _layout(self._layouts.get(name), family, fields, encoder)
                    layouts[name].write(output, fields)
            else:
                samplers[name] = self._samplers.get(name) or Sampler()
                output.write(encoder.encode([samplers[name].metric(family, fields, now)]))
        self._layouts, self._samplers = layouts, samplers
        output.write(others(page))
        output.write(encoder.end)
        return output.getvalue()


class _Layout(NamedTuple):
    """The text of a family with gaps for its numbers.

    Indices count the fields in their order, then a zero for missing fields, then the sums of buckets.
    """

    key: tuple[Any, ...]
    encoder: Encoder
    chunks: list[tuple[bytes, array[int]]]
    """Templates of some lines, each with the indices of the values in its gaps."""
    buckets: array[int]
    """Fields of buckets, one histogram after the other."""
    runs: array[int]
    """The number of buckets of each histogram."""
    exemplars: array[int]
    """Fields of the exemplars to show."""

    def write(self, output: BytesIO, fields: Fields) -> None:
        """Write the text with the values of these fields."""
        values = [*fields.values(), 0]
        bucket = map(number, map(values.__getitem__, self.buckets))
        for run in self.runs:
            values += [total or b"0.0" for total in accumulate(islice(bucket, run))]
        for index in self.exemplars:
            values[index] = self.encoder.exemplar(values[index])
        texts = _Texts()
        for template, gaps in self.chunks:
            output.write(template % tuple(map(texts.__getitem__, map(values.__getitem__, gaps))))


class _Texts(dict[Any, bytes]):
    """The text of values; bytes are text already."""

    def __missing__(self, value: Any) -> bytes:
        shown = value if isinstance(value, bytes) else _shown(number(value)).encode()
        if value != 0:  # the zeros are equal, but one of them is negative
            if len(self) >= MOST_TEXTS:
                self.clear()
            self[value] = shown
        return shown


def _shown(value: float) -> str:
    """The number as `floatToGoString` shows it: Go and Python differ in few."""
    return repr(value) if -1e6 < value < 1e6 else floatToGoString(value)


def _layout(before: Layout | None, family: Family, fields: Fields, encoder: AnyEncoder) -> Layout:
    """Return the layout of these fields: the one before where it still fits."""
    key = (fields[META], encoder, shows_created(), len(fields), _digest(fields))
    if before is not None and before.key == key:
        return before
    with _no_collections():
        return encoder.layout(key, family, fields)


def _digest(fields: Iterable[str]) -> bytes:
    """A digest of the fields and their order, computed in small parts: other threads wait while Python joins."""
    digest, rest = hashlib.blake2b(digest_size=16), iter(fields)
    while part := list(islice(rest, CHUNK)):
        digest.update("\n".join(part).encode() + b"\n")
    return digest.digest()


@contextmanager
def _no_collections() -> Iterator[None]:
    """Pause the garbage collector: so many new objects would make it traverse all objects of the process."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Chunks:
    """Templates of some lines each."""

    def __init__(self, header: str) -> None:
        self.done: list[tuple[bytes, array[int]]] = []
        self._texts = [header]
        self._gaps = array("I")

    @property
    def has_lines(self) -> bool:
        """True where there is more than the header."""
        return bool(self.done or self._gaps)

    def add(self, template: str, gaps: list[int]) -> None:
        """Add lines, and the indices of the values in their gaps."""
        self._texts.append(template)
        self._gaps.extend(gaps)
        if len(self._gaps) >= CHUNK:
            self._end()

    def all(self) -> list[tuple[bytes, array[int]]]:
        """All templates, each with the indices of the values in its gaps."""
        self._end()
        return self.done

    def _end(self) -> None:
        self.done.append(("".join(self._texts).encode(), self._gaps))
        self._texts, self._gaps = [], array("I")


class _Lines:
    """Lines of a series without its labels and the indices of its values."""

    def __init__(self, output: _Chunks) -> None:
        self.output = output
        self.texts: list[tuple[str, str, str]] = []
        """For each line, the text before the labels, the bound of a bucket as a label or nothing, and the text after them."""
        self.gaps: list[tuple[_Column | None, int]] = []
        """For each gap, the column that has the index of the value; for a sum of buckets the place of the last one."""
        self._format = ""

    def text(self, labels: Shown) -> str:
        """The template of the lines with these labels."""
        every, before, after = labels
        return "".join([f"{head}{before}{le}{after}{tail}" if le else f"{head}{every}{tail}" for head, le, tail in self.texts])

    def filled(self, plain: Shown, values: tuple[str, ...]) -> str:
        """The template of the lines with plain labels of these values."""
        if not self._format:
            lines = _Lines(self.output)
            lines.texts = [(doubled(head), doubled(le), doubled(tail)) for head, le, tail in self.texts]
            self._format = lines.text(plain)
        return self._format % (values * len(self.texts))

    def indices(self, series: int, first_sum: int) -> list[int]:
        """The indices of the values of a series."""
        return [first_sum + place if column is None else column[series] for column, place in self.gaps]


class _Shape(NamedTuple):
    """Series with the same numbers have the same shape."""

    parts: list[_Lines]
    buckets: list[_Column]
    exemplars: list[_Column]


class Draft:
    """Finds the numbers of series in some fields."""

    def __init__(self, family: Family, fields: Fields) -> None:
        self._family = family
        self._fields = fields
        self._missing = len(fields)
        self._series = SeriesLabels(family.labelnames)
        self._columns: defaultdict[Key, _Column] = defaultdict(partial(array, "I"))
        """By key, the index of the field of each series, or that of the zero."""

    def _find(self, *, with_exemplars: bool) -> None:
        """Find the numbers of the series, and their exemplars where the format shows them."""
        suffixes, _ = TYPES[self._family.type]
        numbers, columns, missing = self._series.numbers, self._columns, self._missing
        for index, suffix, labels, le in _split(self._fields, suffixes):
            series = numbers.get(labels)
            if series is None:
                series = self._series.add(labels)
            column = columns[suffix, le]
            if series < len(column):
                column[series] = index
            else:
                column.extend([missing] * (series - len(column)))
                column.append(index)
        if with_exemplars:
            for index, suffix, labels, le in _split(self._fields, [EXEMPLAR + each for each in WITH_EXEMPLARS & suffixes]):
                series = numbers.get(labels)
                if series is not None and self._column((suffix.removeprefix(EXEMPLAR), le))[series] != self._missing:
                    self._column((suffix, le))[series] = index

    def _column(self, key: Key) -> _Column:
        """The indices of the fields with that key, of all series."""
        column = self._columns[key]
        column.extend([self._missing] * (len(self._series) - len(column)))
        return column

    def _further(self) -> list[tuple[Key, _Column]]:
        """The keys that some series have beside the declared ones, and their columns."""
        without = self._family.type == "histogram" and not self._family.bounds
        declared = set() if without else set(self._family.numbers_of(()))
        return [(key, self._column(key)) for key in self._columns if key not in declared]


class _Draft(Draft):
    """Builds the layout of some fields."""

    def __init__(self, family: Family, fields: Fields, encoder: Encoder) -> None:
        super().__init__(family, fields)
        self._encoder = encoder
        self._next_sum = self._missing + 1
        self._buckets, self._runs, self._exemplars = array("I"), array("I"), array("I")
        self._has_created_apart = not encoder.openmetrics and family.empty().name == family.name
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._frames: dict[Key, tuple[str, str, str, str]] = {}
        self._output, self._created = (_Chunks(encoder.header(header)) for header in self._headers())

    def _headers(self) -> tuple[Metric, Metric]:
        """The family without samples, and that of its creation times where they come after all others."""
        empty = self._family.empty()
        return empty, Metric(f"{empty.name}_created", empty.documentation, "gauge")

    def layout(self, key: tuple[Any, ...]) -> _Layout:
        """Build the layout under that key."""
        self._find(with_exemplars=self._encoder.openmetrics)
        self._series.render(self._encoder.pairs)
        further = self._further()
        plain, missing = self._series.plain, self._missing
        for series in self._series.in_order():
            values, labels = self._series.take(series)
            shape = self._shape(tuple([key for key, column in further if column[series] != missing]), bool(labels.every))
            for lines in shape.parts:
                text = lines.filled(plain, values) if labels is plain else lines.text(labels)
                lines.output.add(text, lines.indices(series, self._next_sum))
            if shape.buckets or shape.exemplars:
                self._count(shape, series)
        self._series.free()
        chunks = self._output.all() + (self._created.all() if self._created.has_lines else [])
        return _Layout(key, self._encoder, chunks, self._buckets, self._runs, self._exemplars)

    def _count(self, shape: _Shape, series: int) -> None:
        """Note the buckets to add up, and the exemplars to show."""
        self._buckets.extend([column[series] for column in shape.buckets])
        self._runs.append(len(shape.buckets))
        self._next_sum += len(shape.buckets)
        self._exemplars.extend([column[series] for column in shape.exemplars])

    def _shape(self, keys: tuple[Key, ...], has_labels: bool) -> _Shape:
        """The shape of series that have these keys beside the declared ones."""
        shape = self._shapes.get((keys, has_labels))
        if shape is None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[keys, has_labels] = self._new_shape(keys, has_labels)
        return shape

    def _new_shape(self, keys: tuple[Key, ...], has_labels: bool) -> _Shape:
        parts = [_Lines(self._output), _Lines(self._created)]
        buckets: list[_Column] = []
        exemplars: list[_Column] = []
        for line in self._family.lines(keys):
            suffix, le = line.name.removeprefix(self._family.name), line.bound.get("le", "")
            lines = parts[suffix == "_created" and self._has_created_apart]
            if suffix == "_bucket":
                buckets += map(self._column, line.keys or [("_until", le)])
            is_sum = suffix == "_bucket" or not line.keys
            lines.gaps.append((None, len(buckets) - 1) if is_sum else (self._column(line.keys[0]), 0))
            gap = "%s\n"
            if line.exemplar is not None:
                gap = "%s%s\n"
                exemplars.append(self._column(line.exemplar))
                lines.gaps.append((exemplars[-1], 0))
            head, bound, tail, bare = self._frame((suffix, le))
            lines.texts.append((head, bound, f"{tail}{gap}") if has_labels or bound else (bare, "", gap))
        return _Shape([lines for lines in parts if lines.texts], buckets, exemplars)

    def _frame(self, key: Key) -> tuple[str, str, str, str]:
        """The texts around the labels of a line: before, the bound of a bucket, and after; and the text without labels."""
        if key not in self._frames:
            suffix, le = key
            head, tail, bare = self._encoder.frame(self._family.name + suffix)
            bound = self._encoder.pairs([("le", le)])["le", le] if le else ""
            self._frames[key] = head, bound, tail, bare
        return self._frames[key]


def _split(fields: Iterable[str], suffixes: Collection[str]) -> Iterator[tuple[int, str, str, str]]:
    """Yield the fields with these suffixes: index, suffix, labels of the series, and bucket bound."""
    for index, field in enumerate(fields):
        suffix, _, labels = field.partition(":")
        if suffix in suffixes:
            if suffix.endswith(("_bucket", "_native")):
                yield index, suffix, *without_bound(labels)
            else:
                yield index, suffix, labels, ""


def _template(encoded: bytes) -> str:
    """The text as a template without gaps."""
    return doubled(encoded.decode())
