"""Gauges with a value for each process: where a metric has these values, and how they make those that a page shows."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain, compress, islice
from operator import add, itemgetter
from typing import Any, NamedTuple

from .storage import Mark, marks_of
from .storage.labels import check_texts, parsed

Labels = tuple[tuple[str, str], ...]


class Processes(NamedTuple):
    """The places of the values of processes in a metric: between two scrapes only the values change."""

    mode: str
    live: bool
    """True where only processes that are alive count."""
    labels: list[dict[str, str]]
    """The labels of each series, sorted by their values; in the mode ``all`` of each value."""
    values: array[int]
    """The indices of the values among those of the fields, those of one series after the other."""
    runs: array[int]
    """The number of values of each series."""
    writers: list[str]
    """The process of each value."""

    @classmethod
    def among(cls, fields: Iterable[str], prefix: str, mode: str) -> Processes:
        """Find the values of a gauge in that mode, whose fields begin with the prefix."""
        own = [
            (index, *field[len(prefix) :].partition(":")[::2]) for index, field in enumerate(fields) if field.startswith(prefix)
        ]
        merging = mode.removeprefix("live")
        found = cls(merging, merging != mode, [], array("I"), array("I"), [])
        for labels, values in _series(own, apart=merging not in _MERGES):
            found.labels.append(dict(labels))
            found.runs.append(len(values))
            found.values.extend([index for index, _ in values])
            found.writers.extend([writer for _, writer in values])
        check_texts(chain.from_iterable(map(dict.values, found.labels)))
        return found

    def merged(self, fields: Mapping[str, Any], now: float, lease: float) -> tuple[list[dict[str, str]], list[float]]:
        """The labels of the series, and their values. A process is alive if it was seen within the lease."""
        parts = _parts(list(map([*fields.values()].__getitem__, self.values)))
        numbers, times = _numbers(parts[::2]), parts[1::2]
        counting = self._alive(fields, times, now, lease) if self.live else [True] * len(numbers)
        if len(self.labels) == len(numbers):
            return list(compress(self.labels, counting)), list(compress(numbers, counting))
        values: Iterator[Any] = zip(numbers, map(float, times), strict=True) if self.mode == "mostrecent" else iter(numbers)
        counts = iter(counting)
        series = [list(compress(islice(values, run), islice(counts, run))) for run in self.runs]
        return list(compress(self.labels, series)), list(map(_MERGES[self.mode], filter(None, series)))

    def _alive(self, fields: Mapping[str, Any], times: Sequence[str], now: float, lease: float) -> list[bool]:
        """For each value, True where its process is alive: it was seen when the value was set, or later, as its mark tells."""
        if times and all(-lease <= now - limit <= lease for limit in _limits(times)):
            return [True] * len(times)
        alive = [-lease <= now - float(set_at) <= lease for set_at in times]
        others = [(place, self.writers[place]) for place, is_alive in enumerate(alive) if not is_alive]
        seen = Mark.times(marks_of(fields, {writer for _, writer in others}))
        for place, writer in others:
            alive[place] = -lease <= now - seen[writer] <= lease
        return alive


def _series(own: list[tuple[int, str, str]], *, apart: bool) -> list[tuple[Labels, list[tuple[int, str]]]]:
    """The labels of each series with the indices and the processes of its values, sorted by the values of the labels."""
    texts = list(dict.fromkeys([text for _, _, text in own]))
    known = dict(zip(texts, map(tuple, map(dict.items, parsed(texts))), strict=True))
    found: defaultdict[Labels, list[tuple[int, str]]] = defaultdict(list)
    for index, writer, text in own:
        found[known[text]].append((index, writer))
    series = [*found.items()]
    if apart:  # these labels are no keys: a series may have a label `pid` of its own
        series = [(_with_pid(labels, value[1]), [value]) for labels, values in series for value in values]
    return sorted(series, key=lambda each: [value for _, value in each[0]])


def _with_pid(labels: Labels, writer: str) -> Labels:
    """The labels of the value of a process."""
    return tuple(sorted({**dict(labels), "pid": writer}.items()))


def _parts(texts: Sequence[str]) -> list[str]:
    """The numbers in these texts, each before the time at which it was set."""
    parts = " ".join(texts).split(" ")
    return parts if len(parts) == 2 * len(texts) else list(chain.from_iterable([text.partition(" ")[::2] for text in texts]))


def _numbers(texts: Sequence[str]) -> list[float]:
    """The numbers in these texts, many of which are the same."""
    known = {text: float(text) for text in {*texts}}
    return list(map(known.__getitem__, texts))


def _limits(times: Sequence[str]) -> tuple[float, float]:
    """The first and the last of these times. Texts of one length are in order as they are: parsing thousands takes long."""
    ordered: Sequence[Any] = times if len({*map(len, times)}) == 1 else list(map(float, times))
    return float(min(ordered)), float(max(ordered))


def _sum(values: Sequence[float]) -> float:
    """The sum from the first on: `sum` begins with a zero that has a sign, and later versions of Python round less."""
    return reduce(add, values)


def _most_recent(values: Sequence[tuple[float, float]]) -> float:
    return max(values, key=itemgetter(1))[0]


_MERGES: dict[str, Callable[[Sequence[Any]], float]] = {"sum": _sum, "min": min, "max": max, "mostrecent": _most_recent}
"""By mode, how the values of processes make one; in ``mostrecent`` each with the time at which it was set."""
