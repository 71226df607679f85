"""Labels as fields spell them: JSON with sorted names and no spaces."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..process.interruption import let_through

NATIVE = "_native:"
"""How the fields of native buckets begin."""
EXEMPLAR = "#exemplar"
"""How the fields of exemplars begin. The name of the field with the number follows."""
BUCKETS = ("_bucket:", "_native:", "#exemplar_bucket:", "#exemplar_native:")
"""How fields begin that have ``le`` beside the labels of their series."""

MOST_PARSED = 1_000
"""Texts that are parsed in one go: other threads run in between."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_BEFORE_LE = re.compile(r'\{(?:"(?:[ !#-k][^"]*|l(?:[ !#-d][^"]*)?|)":"[^"]*",?)*')
"""The labels whose names come before ``le``, where nothing is escaped."""
_LE = re.compile(r"""(?<=[{,])"le":"(?:[^"\\]|\\.)*"(?:,|(?=\}))|,"le":"(?:[^"\\]|\\.)*"(?=\})""")
"""The label ``le`` and the comma that goes with it."""


class Selectors:
    """Finds series that have all labels of one of several sets, without a look at each set: there may be thousands."""

    def __init__(self, wanted: Iterable[Mapping[str, Any]] = ()) -> None:
        self._values: defaultdict[tuple[str, ...], set[tuple[Any, ...]]] = defaultdict(set)
        for labels in wanted:
            self.add(labels)

    def add(self, wanted: Mapping[str, Any]) -> None:
        """Look for these labels too."""
        names = tuple(sorted(wanted))
        self._values[names].add(tuple(wanted[name] for name in names))

    def match(self, labels: Mapping[str, Any]) -> bool:
        """True if a series with these labels is looked for."""
        return any(tuple(labels.get(name) for name in names) in values for names, values in self._values.items())

    def match_text(self, labels: str) -> bool:
        """The same for labels as JSON; a text that pdc did not write matches nothing."""
        try:
            return self.match(json.loads(labels))
        except (ValueError, AttributeError, TypeError) as error:
            let_through(error)
            return False

    def dumps(self) -> str:
        """As JSON: for each set of names, the names and the values that are looked for, as fields spell them."""
        spell = _ENCODER.encode
        return spell(
            [[[*map(spell, names)], [",".join(map(spell, each)) for each in found]] for names, found in self._values.items()]
        )


def around_bound(labels: str) -> tuple[str, str]:
    """The text before and after the bound in the labels of a series' buckets, which have ``le``, too."""
    found = None if "\\" in labels else _BEFORE_LE.match(labels)
    if found is None:
        before, _, after = _ENCODER.encode({**json.loads(labels), "le": ""}).partition('"le":""')
        return f'{before}"le":"', f'"{after}'
    before = found.group()
    after = labels[len(before) :]
    if after != "}":
        return f'{before}"le":"', f'",{after}'
    return f'{before}{"" if before == "{" else ","}"le":"', '"}'


def without_bound(labels: str) -> tuple[str, str]:
    """The labels of the series of a bucket with these labels, and its bound: the opposite of `around_bound`."""
    if "\\" not in labels:
        before, _, rest = labels.partition('"le":"')
        bound, quote, after = rest.partition('"')
        if quote and before[-1:] in "{,":
            if after == "}":
                return f"{before.removesuffix(',')}}}", bound
            if after[:1] == ",":
                return before + after[1:], bound
    pairs = json.loads(labels)
    bound = pairs.pop("le", "")
    return _ENCODER.encode(pairs), bound


def series_of(field: str) -> str | None:
    """The labels of the series that the field belongs to; None for a field that pdc did not write, or without labels."""
    start = field.find("{")
    if start < 0 or not field.endswith("}"):
        return None
    return _LE.sub("", field[start:], 1) if field.startswith(BUCKETS) else field[start:]


def parsed(texts: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the labels in these texts, sorted by name. To parse many together takes a fifth of the time.

    Raises TypeError or ValueError for a text that holds no labels.
    """
    for start in range(0, len(texts), MOST_PARSED):
        part = texts[start : start + MOST_PARSED]
        found = json.loads(f"[{','.join(part)}]")
        if len(found) != len(part) or {text[0] + text[-1] for text in part} != {"{}"}:
            raise ValueError("expected labels as JSON objects")
        names = {*map(tuple, found)}
        check_texts(chain(chain.from_iterable(names), chain.from_iterable(map(dict.values, found))))
        is_sorted = {each: each == tuple(sorted(each)) for each in names}
        for labels in found:
            yield labels if is_sorted[tuple(labels)] else dict(sorted(labels.items()))


def check_texts(texts: Iterable[str]) -> None:
    """Raise TypeError or ValueError unless all are texts that an exposition format can carry."""
    "".join(texts).encode()
