"""Samples of a metric, scrape after scrape."""

from __future__ import annotations

from array import array
from itertools import accumulate, count, islice, repeat
from operator import or_
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from ..exemplars import exemplar_from
from ..family import Family, Fields, Key, Line, explained, number, shows_created

_MORE = Sample("", {}, 0.0)[5:]
"""The rest of a sample after its exemplar."""


class Sampler:
    """Makes the samples of a metric, and keeps the layout of the last ones: between two scrapes only numbers change."""

    def __init__(self) -> None:
        self._layout: _Layout | None = None

    def metric(self, family: Family, fields: Fields, now: float) -> Metric:
        """The metric that `Family.metric` makes. Raises StorageError for fields that pdc did not write."""
        if family.mode != "shared" or family.type in ("info", "stateset"):
            return family.metric(fields, now)
        with explained(family.name):
            key = family, shows_created(), hash(tuple(fields))
            layout = self._layout
            if layout is None or layout.key != key:
                layout = self._layout = _layout(family, fields, key)
            metric = family.empty()
            metric.samples = layout.samples(fields)
        return metric


class _Layout(NamedTuple):
    """The samples of a metric without their values, in their order.

    Indices count the fields in their order, then a zero for missing fields, then the sums of buckets.
    """

    key: tuple[Any, ...]
    """The family, and a hash of the fields: a layout fits only the same."""
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

    def samples(self, fields: Fields) -> list[Sample]:
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
        labels = map(or_, self.labels, self.bounds)
        columns = zip(self.names, labels, numbers, repeat(None), exemplars, *map(repeat, _MORE), strict=False)
        return list(map(tuple.__new__, repeat(Sample), columns))  # the constructor of a named tuple is Python code


def _layout(family: Family, fields: Fields, key: tuple[Any, ...]) -> _Layout:
    missing = len(fields)
    sums = count(missing + 1)
    layout = _Layout(key, [], [], [], array("I"), array("I"), array("I"), {})
    shown: dict[frozenset[Key], list[Line]] = {}
    for labels, found in family.series(dict(zip(fields, count(), strict=False))):
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
