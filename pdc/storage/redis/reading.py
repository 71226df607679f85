"""Reads metrics: many small ones in one round trip, a large one in pieces."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

from .. import FOLDED, MARK, Snapshot, foreign
from ..labels import around_bound
from ..ordered import MOST_TOGETHER, Parts, Picked
from .commands import Command, Repeated, Request, text_of
from .keys import Keys
from .server import Server

MOST_READ = 12_000
"""How many fields are read in one round trip; a larger metric is read in pieces."""
MOST_SMALL = 500
"""A metric with no more fields is read next time without a look at its size."""
_AT_ONCE = ("0", "COUNT", str(2 * MOST_SMALL))
"""Arguments of a search that has all fields of a small metric, and of a larger one not many more."""
MOST_LOOKED_AT = 2000
"""The size of a piece, in fields."""
MOST_FIELDS = 2000
"""How many fields of whole series are read in one piece."""
STEMS = "#stems"
"""The field that lists how the fields of a metric's series begin, and the bounds of its buckets: a line ``<start>{<bound>``
for each. Every new field is entered there. In a metric that has no such field, the first search for writers to forget enters
the fields of the metric; until the search is done, the first line is ``?``."""
INCOMPLETE = "\n?\n"
LAST_NEW = "#fields"
"""The field that says when the metric last got a new field that is no mark, by the server's clock."""
FEW_FIELDS = 100
"""A metric with no more fields is read whole, however many of them are marks."""
NO_BUCKETS = "?[^bn]*"
"""Matches all fields but buckets."""
_OF_WRITERS = (MARK, "#live:", "#all:", *(f"#{mode}:" for mode in FOLDED))
"""How the fields of single writers begin."""
_SEVERAL_NUMBERS = re.compile(r"^(_sum:|_count:|_bucket:|_native:|#(?!exemplar|updated))", re.MULTILINE)
"""Matches a stem of series that have more than one number which changes."""


class Reader:
    """Reads the metrics at these keys."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys
        self._known: dict[str, _Known] = {}
        """Metrics most of whose fields are marks: with thousands of writers, a scrape would mostly read marks."""
        self._small: set[str] = set()
        """Metrics that had few fields when they were read: one call may read them."""
        self._sizes: dict[str, int] = {}
        """By metric, the count of its fields when it was last looked at whether most of them are marks."""

    def read(self, names: Collection[str] | None) -> Snapshot:
        """Read these metrics, or all."""
        wanted = sorted(self._keys.names()) if names is None else list(names)
        now, sizes, metrics = self._look_at(wanted, self._small.intersection(wanted))
        if grown := [name for name in wanted if name not in sizes and name not in metrics]:
            sizes |= self._look_at(grown, frozenset())[1]  # other threads may have found them small again
        for name, fields in self._read(sizes):
            metrics[name] = fields
        return Snapshot(now, {name: fields for name, fields in metrics.items() if fields})

    def _look_at(self, names: list[str], small: Collection[str]) -> tuple[float, dict[str, int], dict[str, Mapping[str, Any]]]:
        """The server's clock; metrics with their numbers of fields; and metrics that were small, and still are.

        Forgets metrics that are small no more, and the fields of those that got new ones.
        """
        known = [(name, fields) for name in names if (fields := self._known.get(name)) is not None]
        first = [
            Command("HSCAN", (self._keys.of(name), *_AT_ONCE)) if name in small else Command("HLEN", (self._keys.of(name),))
            for name in names
        ]
        last_new = [Command("HMGET", (self._keys.of(name), LAST_NEW)) for name, _ in known]
        (seconds, microseconds), *replies = self._server.run([Command("TIME", has_key=False), *first, *last_new])
        sizes: dict[str, int] = {}
        metrics: dict[str, Mapping[str, Any]] = {}
        for name, reply in zip(names, replies, strict=False):
            self._keys.expect_metric(name, reply)
            if name not in small:
                sizes[name] = reply
            elif int(reply[0]) == 0:
                metrics[name] = self._whole(name, reply[1])
            else:
                self._small.discard(name)
        for (name, fields), reply in zip(known, replies[len(names) :], strict=True):
            self._keys.expect_metric(name, reply)
            if not fields.fits(reply[0]):
                self._forget(name)
        return int(seconds) + int(microseconds) / 1e6, sizes, metrics

    def _read(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Read these metrics, each with its number of fields; those that got new fields once more, whole."""
        outdated = {}
        known = ((name, self._known.get(name), size) for name, size in sizes.items())  # other threads may forget them
        for group in _grouped((name, size if fields is None else fields.size) for name, fields, size in known):
            for name, fields in self._read_group(group):
                if fields is None:
                    outdated[name] = sizes[name]
                else:
                    yield name, fields
        if outdated:
            yield from self._read(outdated)

    def stems(self, name: str) -> str:
        """The beginnings of the fields of a metric; empty where they are not listed."""
        return text_of(self._values(name, [STEMS])[0]) or ""

    def look_through(self, name: str, *pattern: str) -> dict[str, str]:
        """All fields of a metric, or all that match a pattern, each as it was when its piece was read."""
        fields: dict[str, str] = {}
        for piece in self.pieces(name, *pattern):
            fields.update(piece)
        return fields

    def pieces(self, name: str, *pattern: str) -> Iterator[dict[str, str]]:
        """Yield these fields piece by piece; a field may be in several pieces."""
        cursor = None
        while cursor != "0":
            arguments = self._keys.of(name), cursor or "0", *pattern, "COUNT", str(MOST_LOOKED_AT)
            (reply,) = self._server.run([Command("HSCAN", arguments)])
            self._keys.expect_metric(name, reply)
            cursor = str(int(reply[0]))
            yield self.fields(name, reply[1])

    def fields(self, name: str, reply: Any) -> dict[str, str]:
        """The fields of a metric as texts. Raises StorageError where they are not."""
        self._keys.expect_metric(name, reply)
        try:
            return _texts(reply)
        except UnicodeDecodeError as error:
            raise foreign(name, error) from error

    def _read_group(self, group: list[tuple[str, int]]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        """Read some metrics, each as it was at one moment, or one large metric, which may be in several parts.

        A metric whose fields have changed since they were known comes without any, and is not known any more.
        """
        (name, size), *others = group
        if size > MOST_READ and not others:
            yield name, self._shown(self._read_large(name))
            return
        known = {name: self._known.get(name) for name, _ in group}
        replies = self._server.run([self._reading(name, known[name]) for name, _ in reversed(group)])
        for name, _ in group:
            reply = replies.pop()  # texts need more memory than the reply: free each reply before the next
            fields = known[name]
            yield name, self._whole(name, reply) if fields is None else self._read_known(name, fields, reply)

    def _whole(self, name: str, reply: Any) -> Mapping[str, Any]:
        """All fields of a metric, in the reply; remembers whether it is small, or which fields are to be read next time."""
        fields = self.fields(name, reply)
        self._learn(name, fields)
        is_small = len(fields) <= min(MOST_SMALL, MOST_READ) and name not in self._known
        (self._small.add if is_small else self._small.discard)(name)
        return self._shown([fields])

    def _shown(self, parts: list[dict[str, str]]) -> Mapping[str, Any]:
        """The fields in these parts without those of the storage itself; none of a metric of another prefix."""
        first = parts[0]
        if first.pop("#prefix", None) != self._keys.prefix:
            return {}
        first.pop(STEMS, None)
        first.pop(LAST_NEW, None)
        return Parts(parts) if len(parts) > 1 else first

    def _reading(self, name: str, known: _Known | None) -> Request:
        """Reads a metric, or only these fields of it."""
        return Command("HGETALL", (self._keys.of(name),)) if known is None else known.reading

    def _read_known(self, name: str, known: _Known, reply: Any) -> Picked | None:
        """The fields in the reply, unless the metric has other ones."""
        self._keys.expect_metric(name, reply)
        if not known.fits(reply[0]) or type(None) in {*map(type, reply)}:
            self._forget(name)
            return None
        try:
            return Picked(known.places, _all_text(reply[1:]), partial(self._marks, name))
        except UnicodeDecodeError as error:
            raise foreign(name, error) from error

    def _forget(self, name: str) -> None:
        """Forget the fields of a metric."""
        self._known.pop(name, None)
        self._sizes.pop(name, None)

    def _marks(self, name: str, wanted: Collection[str] | None) -> dict[str, str]:
        """The marks with these names in a metric, or all."""
        if wanted is None:
            return self.look_through(name, "MATCH", f"{MARK}*")
        marks: dict[str, str] = {}
        rest = iter(wanted)
        while names := list(islice(rest, MOST_READ)):
            marks.update(_decoded(name, zip(names, self._values(name, names), strict=True)))
        return marks

    def _learn(self, name: str, fields: Mapping[str, str]) -> None:
        """Remember the fields of a metric most of whose fields belong to its writers, without their marks."""
        if len(fields) <= max(1.5 * self._sizes.get(name, 0), FEW_FIELDS):
            return
        self._sizes[name] = len(fields)
        own = sum(field.startswith(_OF_WRITERS) for field in fields)
        if 2 * own > len(fields) and LAST_NEW in fields and fields.get("#prefix") == self._keys.prefix:
            wanted = [field for field in fields if not field.startswith((MARK, LAST_NEW, STEMS, "#prefix"))]
            reading = Repeated(("HMGET", self._keys.of(name), LAST_NEW, *wanted))
            self._known[name] = _Known(fields[LAST_NEW], dict(zip(wanted, count(), strict=False)), reading)

    def _read_large(self, name: str) -> list[dict[str, str]]:
        """Read a metric in pieces, so that others have their turns; each of its series is as it was at one moment.

        A search of all fields but buckets finds the series of several numbers. Then each of these is read in one piece.
        """
        listed = self.stems(name)
        if listed.startswith(INCOMPLETE) or not _SEVERAL_NUMBERS.search(listed):
            return [self.look_through(name)]
        others = self.look_through(name, "MATCH", NO_BUCKETS)
        series, own = _series_in(others)
        parts: list[dict[str, str]] = [{}]
        for fields in self._read_series(name, series, own, listed):
            if len(parts[-1]) >= MOST_TOGETHER:
                parts.append({})
            parts[-1].update(fields)
        return [others, *parts]

    def _read_series(self, name: str, left: list[str], own: Mapping[str, list[str]], listed: str) -> Iterator[dict[str, str]]:
        """Read all fields that series with these labels may have, each series as it is at one moment."""
        stems = _Stems.loads(listed)
        while left:
            names: list[str] = []
            done = 0
            while done < len(left) and len(names) < MOST_FIELDS:
                done += 1
                labels = left[-done]
                names += stems.fields_of(labels)
                names += own.get(labels, ())
            values = self._values(name, [STEMS, *names])
            before, listed = listed, text_of(values[0]) or ""
            if listed != before and (now := _Stems.loads(listed)) != stems:
                stems = now  # and series may have other fields
            else:
                del left[-done:]
                yield _decoded(name, zip(names, values[1:], strict=True))

    def _values(self, name: str, fields: list[str]) -> list[Any]:
        """The values of these fields of a metric; None where there is no field."""
        (values,) = self._server.run([Command("HMGET", (self._keys.of(name), *fields))])
        self._keys.expect_metric(name, values)
        return list(values)


class _Known(NamedTuple):
    """Fields of a metric, and when it last got a new one."""

    last_new: str
    places: dict[str, int]
    """The fields, each with its place."""
    reading: Repeated
    """Reads when the metric got its last new field, and the values of the fields."""

    @property
    def size(self) -> int:
        """The count of the fields."""
        return len(self.places)

    def fits(self, last_new: Any) -> bool:
        """True where the metric has got no new field since then."""
        return last_new is not None and text_of(last_new) == self.last_new


class _Stems(NamedTuple):
    """How the fields of a series begin, without the values of single processes, and the bounds of its buckets."""

    plain: list[str]
    bounded: list[tuple[str, str]]

    @classmethod
    def loads(cls, stored: str) -> _Stems:
        """Parse the field."""
        lines = [line.partition("{")[::2] for line in stored.split() if not line.startswith("#")]
        return cls([stem for stem, bound in lines if not bound], [line for line in lines if line[1]])

    def fields_of(self, labels: str) -> Iterator[str]:
        """The fields that the series with these labels may have."""
        yield from [stem + labels for stem in self.plain]
        if self.bounded:
            before, after = around_bound(labels)
            yield from [f"{stem}{before}{bound}{after}" for stem, bound in self.bounded]


def _grouped(sizes: Iterable[tuple[str, Any]]) -> Iterator[list[tuple[str, int]]]:
    """The names of metrics with their numbers of fields, in groups that are read in one round trip each."""
    group: list[tuple[str, int]] = []
    total = 0
    for name, size in sizes:
        if group and total + size > MOST_READ:
            yield group
            group, total = [], 0
        group.append((name, size))
        total += size
    if group:
        yield group


def _series_in(fields: dict[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take the series out of the fields: return their labels and, by labels, the values of single processes and of the dead."""
    series: dict[str, None] = {}
    own: defaultdict[str, list[str]] = defaultdict(list)
    for field in list(fields):
        start, brace, rest = field.partition("{")
        if brace and not start.startswith("#exemplar"):
            del fields[field]
            series[brace + rest] = None
            if start.startswith("#"):
                own[brace + rest].append(field)
    return list(series), {labels: _with_heirs(labels, names) for labels, names in own.items()}


def _with_heirs(labels: str, names: list[str]) -> list[str]:
    """These values of single processes, and the values of the dead into which they may be folded."""
    modes = {name[1:].partition(":")[0] for name in names}
    return list(dict.fromkeys([*names, *(f"#{mode}::{labels}" for mode in FOLDED if mode in modes)]))


def _decoded(name: str, fields: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """The fields that have values, as texts. Raises StorageError where these are not."""
    try:
        return {field: text_of(value) for field, value in fields if value is not None}
    except UnicodeDecodeError as error:
        raise foreign(name, error) from error


def _all_text(values: list[Any]) -> list[str]:
    """The values as texts."""
    return list(map(bytes.decode, values)) if bytes in map(type, values[:1]) else values


def _texts(fields: dict[Any, Any] | list[Any]) -> dict[str, str]:
    """The fields as texts, made by C code where possible: there may be many. A list has each value after its field."""
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    if isinstance(next(iter(fields), ""), bytes):
        return dict(zip(map(bytes.decode, fields), map(bytes.decode, fields.values()), strict=True))
    return fields
