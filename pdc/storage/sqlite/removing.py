"""Removes series of a metric, inside transactions that each remove a bounded number of fields."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from sqlite3 import Cursor

from .. import MARK, SERIES, UPDATED, Batch
from ..fields import stamped
from ..labels import BUCKETS, Selectors, around_bound, series_of
from .rows import LAST, Rows, after_all_with

MOST_FIELDS = 250
"""How many fields are removed in one transaction, or a few more: others wait for the lock meanwhile."""
MOST_STEMS = 100
"""The most ways in which the fields of series may begin where they are named, not searched: each takes a look at the index."""
MOST_FOUND = 1000
"""How many fields one search looks at."""


class Removal:
    """Removes series from these rows."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def remove(self, batch: Batch, series: Sequence[str]) -> int:
        """Remove the first of these series, and return how many: all where the batch was applied.

        It is -1 where their fields begin in too many ways, as in a gauge with values of hundreds of processes.
        """
        return len(series) if self._rows.has_applied(batch) else self._remove_some(series)

    def remove_fields(self, batch: Batch, fields: Iterable[str]) -> None:
        """Remove these fields unless the batch was applied."""
        if not self._rows.has_applied(batch):
            self._rows.delete(fields)

    def sweep(self, idle: float, after: str) -> str | None:
        """Remove idle series among some fields after this one; return the field after which to go on, None at the end.

        A series that was never updated since the metric has this limit counts as updated now.
        """
        now, rows = time.time(), self._rows
        fields = rows.after(after, MOST_FIELDS)
        series = {labels: UPDATED + labels for field in fields if (labels := series_of(field)) is not None}
        for labels in series.keys() - rows.known(series):
            rows.put(series[labels], f"0.0 {now!r}")
        doomed = [labels for labels, field in series.items() if (stamped(rows.get(field)) or (0.0, now))[1] <= now - idle]
        done = self._remove_some(doomed)
        if done < 0:
            rows.delete(field for field in fields if series_of(field) in doomed)
        elif done < len(doomed):
            return after
        return fields[-1] if fields else None

    def _remove_some(self, series: Sequence[str]) -> int:
        """Remove the first of these series, and return how many; -1 where a search for their fields takes less."""
        rows = self._rows
        stems, bounds, done, deleted, gone = self._stems(), Bounds(rows), 0, 0, 0
        if len(stems) > MOST_STEMS:
            return -1
        while done < len(series) and (not done or deleted < MOST_FIELDS):
            doomed = list(fields_of(series[done], stems, bounds))
            gone += rows.delete(doomed) > 0
            deleted += len(doomed)
            done += 1
        count = rows.get(SERIES)
        if isinstance(count, float):
            rows.put(SERIES, max(count - gone, 0.0))
        return done

    def _stems(self) -> list[str]:
        """How the fields of series begin, before their labels; each takes a look at the index of the table.

        It looks no further once there are too many.
        """
        stems: list[str] = []
        field = self._rows.first("")
        while field is not None and len(stems) <= MOST_STEMS:
            stem, brace, _ = field.partition("{")
            if brace:
                stems.append(stem)
            field = self._rows.first(f"{stem}|" if brace else after_all_with(MARK) if field.startswith(MARK) else f"{field}\1")
        return stems


class Bounds(dict[str, list[str]]):
    """The bounds of buckets by the text before them in a field; each takes a look at the index of the table."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __missing__(self, start: str) -> list[str]:
        bounds = self[start] = []
        while (field := self._rows.first(f"{start}{bounds[-1]}#" if bounds else start, start + LAST)) is not None:
            bounds.append(field.removeprefix(start).partition('"')[0])
        return bounds


def fields_of(labels: str, stems: Iterable[str], bounds: Mapping[str, list[str]]) -> Iterator[str]:
    """The fields that the series with these labels may have."""
    before, after = around_bound(labels)
    for stem in stems:
        if stem in BUCKETS:
            yield from (f"{stem}{before}{bound}{after}" for bound in bounds[stem + before])
        else:
            yield stem + labels


def find_series(rows: Rows, selectors: Selectors, after: str) -> tuple[dict[str, list[str]], str | None]:
    """The selected series among some fields after this one, with these fields, and the last of all; None at the end."""
    fields = rows.after(after, MOST_FOUND)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for field in fields:
        if (labels := series_of(field)) is not None:
            found[labels].append(field)
    wanted = {labels: own for labels, own in found.items() if selectors.match_text(labels)}
    return wanted, fields[-1] if fields else None


class Remover:
    """Removes series of the metric as far as one transaction goes; call it as long as it returns True."""

    def __init__(self, batch: Batch, name: str, series: Sequence[str]) -> None:
        self._batch = batch
        self._name = name
        self._left = series
        self.names_fields = True
        """True if the fields of the series can be named."""

    def __call__(self, cursor: Cursor) -> bool:
        done = Removal(Rows(cursor, self._name)).remove(self._batch, self._left)
        self.names_fields = done >= 0
        self._left = self._left[done:]
        return self.names_fields and bool(self._left)


def remove_some_fields(batch: Batch, name: str, fields: list[str], cursor: Cursor) -> bool:
    """Remove the first of these fields, and return whether more are left."""
    Removal(Rows(cursor, name)).remove_fields(batch, fields[:MOST_FIELDS])
    del fields[:MOST_FIELDS]
    return bool(fields)


def sweeper(name: str, idle: float) -> Callable[[Cursor], bool]:
    """A function that removes some idle series of the metric; it returns whether there may be more."""
    after: str | None = ""

    def sweep_some(cursor: Cursor) -> bool:
        nonlocal after
        after = Removal(Rows(cursor, name)).sweep(idle, after or "")
        return after is not None

    return sweep_some
