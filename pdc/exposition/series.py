"""The labels of a metric's series: from the fields of a storage to the text of a page.

Nearly all series of a metric have the labels that it declares, with values that neither JSON nor a page nor a template escapes:
one search finds these values, and one format shows them. All other labels are parsed, and rendered by prometheus_client.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from ..family import Labels, dump

CHUNK = 1_000
"""Lines that are filled in, or series that are sorted, in one go: other threads run between chunks."""

Pairs = dict[tuple[str, str], str]
"""The text of labels, as templates."""


class Shown(NamedTuple):
    """The labels of a series as a page shows them."""

    every: str
    """All labels; metrics without buckets may have one of the name of their bounds."""
    before: str
    """The labels before the bound of a bucket, and a comma after them."""
    after: str
    """The labels after the bound, and a comma before them."""

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]]) -> Shown:
        """Join the texts of labels, each given after the name of its label."""
        pairs = list(texts)
        before = [text for name, text in pairs if name < "le"]
        after = [text for name, text in pairs if name > "le"]
        return cls(
            ",".join([text for _, text in pairs]), "".join(f"{text}," for text in before), "".join(f",{text}" for text in after)
        )


class SeriesLabels:
    """The labels of series. Each series has a number: the first one 0, the next one 1."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        values = ",".join(rf'{re.escape(encode_basestring_ascii(name))}:"([^"\\%\x00-\x1f]*)"' for name in self._names)
        self._plain = re.compile(rf"\{{{values}\}}")
        self._values: list[tuple[str, ...]] = []
        self._others: dict[int, Labels] = {}
        """By the number of their series, labels that are not plain."""
        self._pairs: Pairs = {}
        self.plain = Shown("", "", "")
        """A format of plain labels; what it makes of their values is a template."""
        self.numbers: dict[str, int] = {}
        """The number of a series by its labels, as fields spell them."""

    def __len__(self) -> int:
        return len(self._values)

    def add(self, labels: str) -> int:
        """The number of a series with labels that are not among the `numbers`, where they are then."""
        plain = self._plain.fullmatch(labels)
        if plain is None:
            return self._add_other(labels)
        number = self.numbers[labels] = len(self._values)
        self._values.append(plain.groups())
        return number

    def _add_other(self, labels: str) -> int:
        pairs = json.loads(labels)
        spelled = dump(pairs)  # the labels of one series may be spelled in several ways by others
        number = self.numbers.get(spelled, len(self._values))
        if number == len(self._values):
            self._others[number] = tuple(sorted(pairs.items()))
            self._values.append(tuple(value for _, value in self._others[number]))
        self.numbers[labels] = self.numbers[spelled] = number
        return number

    def in_order(self) -> Iterator[int]:
        """The numbers of the series, sorted by label values, in small parts: other threads wait while Python sorts."""
        bounds = sorted(self._values[:: CHUNK // 2])
        parts: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
        for number, values in enumerate(self._values):
            parts[bisect(bounds, values)].append(number)
        for part in parts:
            yield from sorted(part, key=self._values.__getitem__)

    def render(self, pairs: Callable[[Iterable[tuple[str, str]]], Pairs]) -> None:
        """Render the label names, and labels that are not plain, with a function that renders labels as templates."""
        empty = pairs((name, "") for name in self._names)
        self.plain = Shown.of((name, f'{doubled(empty[name, ""][:-1])}%s"') for name in self._names)
        self._pairs = pairs(chain.from_iterable(self._others.values()))

    def take(self, number: int) -> tuple[tuple[str, ...], Shown]:
        """The values of the labels for their text. The series is forgotten: to free all at once would keep others waiting."""
        values, self._values[number] = self._values[number], ()
        other = self._others.get(number)
        if other is None:
            return values, self.plain
        return (), Shown.of((pair[0], self._pairs[pair]) for pair in other)

    def are_plain(self, numbers: Collection[int]) -> bool:
        """True where all of these series have plain labels, one at least."""
        return bool(self._names) and self._others.keys().isdisjoint(numbers)

    def columns(self, numbers: Collection[int]) -> list[tuple[str, tuple[str, ...]]]:
        """The labels of series that are plain, each with its values. The series are forgotten."""
        rows = [self._values[number] for number in numbers]
        for number in numbers:
            self._values[number] = ()
        return [*zip(self._names, zip(*rows, strict=True), strict=True)]

    def pairs(self, number: int) -> Labels:
        """The labels of a series, which is forgotten."""
        values, self._values[number] = self._values[number], ()
        other = self._others.get(number)
        return tuple(zip(self._names, values, strict=True)) if other is None else other

    def free(self) -> None:
        """Forget the rest of the labels little by little."""
        for found in (self.numbers, self._pairs):
            while found:
                found.popitem()


def doubled(text: str) -> str:
    """The text as it is in a template."""
    return text.replace("%", "%%")
