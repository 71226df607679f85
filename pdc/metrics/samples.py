"""Samples of a metric, scrape after scrape."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from itertools import accumulate, count, cycle, islice, repeat
from operator import eq, or_
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from ..exemplars import exemplar_from
from ..family import FOREIGN, Family, Fields, Key, Line, made, number, shows_created
from ..process.interruption import let_through
from ..storage import foreign
from ..storage.labels import parsed

Layout = Callable[[Fields, float], list[Sample]]
"""Makes the samples of a metric from its fields, at a time by the storage's clock, while it has the same fields."""


class Sampler:
    """Makes the samples of a metric, and keeps the layout of the last ones: between two scrapes only values change."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Layout, Metric] | None = None
        """The family and a hash of the fields, the layout that fits these, and the metric without samples."""

    def metric(self, family: Family, fields: Fields, now: float) -> Metric:
        """The metric that `Family.metric` makes. Raises StorageError for fields that pdc did not write."""
        try:
            key = family, shows_created(), hash(tuple(fields))
            kept = self._kept
            if kept is None or kept[0] != key:
                kept = self._kept = key, _layout(family, fields), family.empty()
            metric = object.__new__(Metric)  # the constructor checks the name each time
            vars(metric).update(vars(kept[2]), samples=kept[1](fields, now))
        except FOREIGN as error:
            let_through(error)
            raise foreign(family.name, error) from error
        return metric


def _layout(family: Family, fields: Fields) -> Layout:
    if family.mode != "shared":
        return partial(family.merged, family.processes(fields))
    if family.type == "info":
        return _Infos(family, fields).samples
    if family.type == "stateset":
        return _States.of(family, fields).samples
    return _Numbers.of(family, fields).samples


def _numbered(family: Family, fields: Fields) -> list[tuple[dict[str, str], dict[Key, int]]]:
    """The series of the family, with the indices of the fields in place of their values."""
    return family.series(dict(zip(fields, count(), strict=False)))


class _Infos:
    """The samples of an info, whose values are texts of labels."""

    def __init__(self, family: Family, fields: Fields) -> None:
        series = _numbered(family, fields)
        self._name = f"{family.name}_info"
        self._labels = [labels for labels, _ in series]
        self._values = array("I", [found["_info", ""] for _, found in series])
        self._parsed: dict[Any, dict[str, str]] = {}
        """The labels in the values of the last scrape."""

    def samples(self, fields: Fields, _: float) -> list[Sample]:
        """The samples with the values of these fields."""
        texts = list(map([*fields.values()].__getitem__, self._values))
        known = self._parsed
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            found = known | dict(zip(new, parsed(new), strict=True))
            known = self._parsed = {text: found[text] for text in texts}
        return made(repeat(self._name), map(or_, self._labels, map(known.__getitem__, texts)), repeat(1.0))


class _States(NamedTuple):
    """The samples of a set of states."""

    name: str
    labels: list[dict[str, str]]
    states: tuple[str, ...]
    values: array[int]

    @classmethod
    def of(cls, family: Family, fields: Fields) -> _States:
        """The samples of these fields."""
        layout = cls(family.name, [], family.states, array("I"))
        for labels, found in _numbered(family, fields):
            layout.labels.extend([{**labels, family.name: state} for state in family.states])
            layout.values.extend([found["", ""]] * len(family.states))
        return layout

    def samples(self, fields: Fields, _: float) -> list[Sample]:
        """The samples with the values of these fields."""
        values = map([*fields.values()].__getitem__, self.values)
        return made(repeat(self.name), map(dict.copy, self.labels), map(float, map(eq, cycle(self.states), values)))


class _Numbers(NamedTuple):
    """The samples of a metric without their values, in their order.

    Indices count the fields in their order, then a zero for missing fields, then the sums of buckets.
    """

    names: list[str]
    labels: list[dict[str, str]]
    """The labels of the series. Samples have copies, which their users may change."""
    bounds: list[dict[str, str]]
    values: array[int]
    """The index of each value."""
    buckets: array[int]
    """The fields of buckets, one histogram after the other."""
    runs: array[int]
    """The number of buckets of each histogram."""
    exemplars: dict[int, int]
    """The index of the exemplar by the place of its sample."""

    @classmethod
    def of(cls, family: Family, fields: Fields) -> _Numbers:
        """The samples of these fields."""
        missing = len(fields)
        sums = count(missing + 1)
        layout = cls([], [], [], array("I"), array("I"), array("I"), {})
        shown: dict[frozenset[Key], list[Line]] = {}
        for labels, found in _numbered(family, fields):
            keys = frozenset(found)
            if keys not in shown:
                shown[keys] = family.lines(keys)
            before, total = len(layout.buckets), missing
            for own, name, bound, exemplar in shown[keys]:
                index = total if bound or not own else found.get(own[0], missing)
                for field in own if bound else ():
                    layout.buckets.append(found.get(field, missing))
                    index = total = next(sums)
                if exemplar:
                    layout.exemplars[len(layout.names)] = found[exemplar]
                layout.names.append(name)
                layout.labels.append(labels)
                layout.bounds.append(bound)
                layout.values.append(index)
            if len(layout.buckets) > before:
                layout.runs.append(len(layout.buckets) - before)
        return layout

    def samples(self, fields: Fields, _: float) -> list[Sample]:
        """The samples with the values of these fields."""
        values: list[Any] = [*fields.values(), 0.0]
        bucket = map(number, map(values.__getitem__, self.buckets))
        for run in self.runs:
            values += [total or 0.0 for total in accumulate(islice(bucket, run))]  # a sum of zeros is not negative
        exemplars: Any = repeat(None)
        if self.exemplars:
            exemplars = [None] * len(self.names)
            for place, index in self.exemplars.items():
                exemplars[place] = exemplar_from(values[index])
        numbers = map(number, map(values.__getitem__, self.values))
        return made(self.names, map(or_, self.labels, self.bounds), numbers, exemplars)
