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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from io import BytesIO
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

from prometheus_client import exposition as text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_text
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from ..exemplars import EXEMPLAR, exemplar_from
from ..family import (
    Family,
    Fields,
    Key,
    Labels,
    Page,
    explained,
    known_families,
    number,
    shows_created,
)
from ..storage import META, Snapshot

CHUNK = 1_000
"""Lines that are filled in, or series that are sorted, in one go: other threads run between chunks."""
MOST_TEXTS = 10_000
"""Numbers that a scrape keeps as text."""
TEMPLATES = ("counter", "gauge", "summary", "histogram")
"""The types that have templates: their values are plain numbers."""

SUFFIXES = ("_total", "_count", "_sum", "_bucket", "_created")

_Found = dict[Key, int]
"""The fields of a series."""
_Line = tuple[str, str, tuple[int, ...]]
"""Suffix, bucket bound, and the indices of the values in the gaps."""
_Piece = tuple[str, tuple[int, ...]]
"""A template, and the indices of the values in its gaps."""


class Collected:
    """Collected families, in the form that the encoders take."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._metrics


class Encoder(NamedTuple):
    """An encoder of prometheus_client."""

    openmetrics: bool = False
    escaping: str = openmetrics_text.UNDERSCORES

    @property
    def end(self) -> bytes:
        """The text after the last family."""
        return b"# EOF\n" if self.openmetrics else b""

    def encode(self, metrics: Iterable[Metric]) -> bytes:
        """The text of the families without the end."""
        encode: Callable[..., bytes] = openmetrics_text.generate_latest if self.openmetrics else text.generate_latest
        return encode(Collected(metrics), escaping=self.escaping).removesuffix(self.end)

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
        self._layouts: dict[str, _Layout] = {}

    def render(self, snapshot: Snapshot, encoder: Encoder, others: Callable[[Page], bytes]) -> bytes:
        """Render the families of the snapshot, then the text of those that `others` adds to the page, and the end.

        Frees the snapshot's fields on the way. Raises StorageError for fields that pdc did not write.
        """
        output, page = BytesIO(), Page(encoder.escaping)
        layouts: dict[str, _Layout] = {}
        now, metrics = snapshot
        for name, family in known_families(metrics, page):
            fields = metrics.pop(name)
            if family.type in TEMPLATES and family.mode == "shared":
                with explained(family.name):
                    layouts[name] = _layout(self._layouts.get(name), family, fields, encoder)
                    layouts[name].write(output, fields, encoder)
            else:
                output.write(encoder.encode([family.metric(fields, now)]))
        self._layouts = layouts
        output.write(others(page))
        output.write(encoder.end)
        return output.getvalue()


class _Layout(NamedTuple):
    """The text of a family with gaps for its numbers.

    Indices count the fields in their order, then a zero for missing fields, then the sums of buckets.
    """

    key: tuple[Any, ...]
    """Metadata, encoder and a digest of the fields: a layout fits only the same."""
    chunks: list[tuple[bytes, array[int]]]
    """Templates of some lines, each with the indices of the values in its gaps."""
    buckets: array[int]
    """Fields of buckets, one histogram after the other."""
    runs: array[int]
    """The number of buckets of each histogram."""
    exemplars: array[int]
    """Fields of the exemplars to show."""

    def write(self, output: BytesIO, fields: Fields, encoder: Encoder) -> None:
        """Write the text with the values of these fields."""
        values = [*fields.values(), 0]
        bucket = map(number, map(values.__getitem__, self.buckets))
        for run in self.runs:
            values += [total or b"0.0" for total in accumulate(islice(bucket, run))]
        for index in self.exemplars:
            values[index] = encoder.exemplar(values[index])
        texts = _Texts()
        for template, gaps in self.chunks:
            output.write(template % tuple(map(texts.__getitem__, map(values.__getitem__, gaps))))


class _Texts(dict[Any, bytes]):
    """The text of values; bytes are text already."""

    def __missing__(self, value: Any) -> bytes:
        shown = value if isinstance(value, bytes) else floatToGoString(number(value)).encode()
        if value != 0:  # the zeros are equal, but one of them is negative
            if len(self) >= MOST_TEXTS:
                self.clear()
            self[value] = shown
        return shown


def _layout(before: _Layout | None, family: Family, fields: Fields, encoder: Encoder) -> _Layout:
    """Return the layout of these fields: the one before where it still fits."""
    key = (fields[META], encoder, shows_created(), len(fields), _digest(fields))
    if before is not None and before.key == key:
        return before
    with _no_collections():
        return _Draft(family, fields, encoder).layout(key)


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


class _Draft:
    """Builds the layout of some fields."""

    def __init__(self, family: Family, fields: Fields, encoder: Encoder) -> None:
        self._family = family
        self._encoder = encoder
        self._fields = fields
        self._missing = len(fields)
        self._next_sum = self._missing + 1
        self._buckets, self._runs, self._exemplars = array("I"), array("I"), array("I")
        self._series: dict[Labels, _Found] = {}
        self._bounds = set(family.bounds)
        self._at = 0
        self._exemplar_of: dict[int, int] = {}
        """The index of the exemplar by the index of its field."""

    def layout(self, key: tuple[Any, ...]) -> _Layout:
        """Build the layout under that key."""
        self._find()
        pieces, chunks = self._pieces(), []
        while chunk := list(islice(pieces, CHUNK)):
            template = "".join(piece for piece, _ in chunk).encode()
            chunks.append((template, array("I", chain.from_iterable(gaps for _, gaps in chunk))))
        return _Layout(key, chunks, self._buckets, self._runs, self._exemplars)

    def _find(self) -> None:
        """Find the series, and the exemplars where the format shows them."""
        for _, labels, key in self._family.located(self._counted()):
            self._series.setdefault(labels, {})[key] = self._at
            if key[0] == "_bucket":
                self._bounds.add(key[1])
        if self._encoder.openmetrics:
            numbered = enumerate(self._fields)
            exemplars = {field.removeprefix(EXEMPLAR): index for index, field in numbered if field.startswith(EXEMPLAR)}
            for index, field in enumerate(self._fields if exemplars else ()):
                if field in exemplars:
                    self._exemplar_of[index] = exemplars[field]

    def _counted(self) -> Iterator[str]:
        """Yield the fields, and note the index of the last one."""
        for index, field in enumerate(self._fields):
            self._at = index
            yield field

    def _pieces(self) -> Iterator[_Piece]:
        """Yield headers and lines; creation times come where the format has them."""
        empty = self._family.empty()
        yield self._encoder.header(empty), ()
        lines = self._sample_lines()
        if self._encoder.openmetrics or empty.name != self._family.name:
            yield from (piece for _, piece in lines)
            return
        apart = []
        for suffix, piece in lines:
            if suffix == "_created":
                apart.append(piece)
            else:
                yield piece
        if apart:
            yield self._encoder.header(Metric(f"{empty.name}_created", empty.documentation, "gauge")), ()
            yield from apart

    def _sample_lines(self) -> Iterator[tuple[str, _Piece]]:
        """Yield the lines of the series, sorted by their label values, each after its suffix."""
        pairs = self._encoder.pairs(chain(chain.from_iterable(self._series), (("le", le) for le in self._bounds)))
        frames = {suffix: self._encoder.frame(self._family.name + suffix) for suffix in ("", *SUFFIXES)}
        for labels in _sorted(self._series):
            before = [pairs[pair] for pair in labels if pair[0] < "le"]
            after = [pairs[pair] for pair in labels if pair[0] > "le"]
            plain = ",".join([pairs[pair] for pair in labels])
            found = self._series.pop(labels)  # other threads would wait while all are freed at once
            for suffix, le, gaps in self._lines(found):
                if le and ("le", le) not in pairs:  # a bound of native buckets
                    pairs |= self._encoder.pairs([("le", le)])
                shown = ",".join([*before, pairs["le", le], *after]) if le else plain
                head, tail, bare = frames[suffix]
                gap = "%s" * len(gaps)
                yield suffix, (f"{head}{shown}{tail}{gap}\n" if shown else f"{bare}{gap}\n", gaps)
        while pairs:
            pairs.popitem()

    def _lines(self, found: _Found) -> Iterator[_Line]:
        """Yield the lines of one series."""
        first_sum, last = self._next_sum, self._missing
        for key in self._family.numbers_of(found):
            suffix, le = key
            field = found.get(key, self._missing)
            if suffix in ("_native", "_until"):
                self._buckets.append(field)
                self._next_sum += 1
                last = field if field in self._exemplar_of else last
                if suffix == "_until":
                    yield "_bucket", le, self._with_exemplar(self._next_sum - 1, last)
                    last = self._missing
            elif suffix == "_bucket":
                self._buckets.append(field)
                yield suffix, le, self._with_exemplar(self._next_sum, field)
                self._next_sum += 1
            elif suffix == "_count" and self._family.type == "histogram":
                self._runs.append(self._next_sum - first_sum)
                yield suffix, le, (self._next_sum - 1,)
            else:
                yield suffix, le, self._with_exemplar(field, field) if suffix == "_total" else (field,)

    def _with_exemplar(self, shown: int, field: int) -> tuple[int, ...]:
        """The gaps for a value, and for the exemplar of the field if it has one."""
        exemplar = self._exemplar_of.get(field)
        if exemplar is None:
            return (shown,)
        self._exemplars.append(exemplar)
        return shown, exemplar


def _sorted(series: Iterable[Labels]) -> Iterator[Labels]:
    """Sort the series by the values of their labels, in small parts: other threads wait while Python sorts."""
    parts, rest = [], iter(series)
    while part := list(islice(rest, CHUNK)):
        parts.append(_taken_from(sorted(part, key=_values)))
    return merge(*parts, key=_values)


def _taken_from(series: list[Labels]) -> Iterator[Labels]:
    """Yield the series one after the other and drop each from the list, so that they are not freed all at once."""
    series.reverse()
    while series:
        yield series.pop()


def _values(labels: Labels) -> list[str]:
    return [value for _, value in labels]


def _template(encoded: bytes) -> str:
    """The text as a template without gaps."""
    return encoded.decode().replace("%", "%%")
