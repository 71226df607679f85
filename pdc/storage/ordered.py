"""The fields of a metric as storages read them: in an order that stays while the metric has the same fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from typing import Any, TypeAlias

MOST_TOGETHER = 50_000
"""About how many fields of a metric one dict holds."""

Marks: TypeAlias = Callable[[Collection[str] | None], Mapping[str, Any]]
"""Reads the marks with these names, and maybe more; or all."""


class Ordered(Mapping[str, Any]):
    """The fields of a metric, in order. The marks of its writers, of which there may be thousands, may be apart."""

    marks: Marks | None = None
    """Reads the marks where they are apart."""

    @abstractmethod
    def stored(self) -> Iterable[Iterable[Any]]:
        """The values in the order of the fields, in parts."""

    def values(self) -> ValuesView[Any]:
        return _Values(self)


class Parts(Ordered):
    """The fields of a large metric in several dicts: other threads wait while Python enlarges or frees a dict."""

    def __init__(self, parts: list[dict[str, Any]], marks: Marks | None = None) -> None:
        self.parts = parts
        self.marks = marks

    def __del__(self) -> None:
        parts = getattr(self, "parts", [])  # a handler may have raised before there are any
        while parts:
            parts.pop()

    def __getitem__(self, field: str) -> Any:
        for part in self.parts:
            if field in part:
                return part[field]
        raise KeyError(field)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._in_turn())

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def stored(self) -> Iterable[Iterable[Any]]:
        return map(dict.values, self._in_turn())

    def _in_turn(self) -> Iterator[dict[str, Any]]:
        """The parts; the iterator keeps this object, which would take them away with it."""
        yield from self.parts


class Picked(Ordered):
    """The fields of a metric that were read by their names, all but the marks."""

    def __init__(self, places: Mapping[str, int], values: Sequence[Any], marks: Marks) -> None:
        self._places = places
        self._values = values
        self.marks = marks

    def __getitem__(self, field: str) -> Any:
        return self._values[self._places[field]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def stored(self) -> Iterable[Iterable[Any]]:
        return (self._values,)


class _Values(ValuesView[Any]):
    """The values of a mapping that has them in order: the views of `Mapping` look up each field."""

    _mapping: Ordered

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._mapping.stored())
