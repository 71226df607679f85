"""Removes series in calls of bounded length: other clients of the server have their turns in between."""

from __future__ import annotations

import json
from itertools import chain

from redis.exceptions import ResponseError

from .. import REMOVALS, Batch, Kind
from ..labels import Selectors, around_bound
from .commands import text_of
from .keys import Keys

MOST_SERIES = 250
"""How many series one call removes."""
MOST_FIELDS = 2000
"""How many fields one call removes."""
MOST_FOUND = 500
"""How many fields one call looks at."""


class Removal:
    """Removes series of the metrics at these keys."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def remove(self, batch: Batch) -> None:
        """Do the removals of the batch; once it is applied, its mark keeps them from being done again."""
        for update in batch.updates:
            if {operation.kind for operation in update.operations}.isdisjoint(REMOVALS):
                continue
            series, selectors = update.removals(Kind.REMOVE), update.removals(Kind.DELETE)
            if series and not self._remove_series(batch, update.name, series):
                selectors += series
            if selectors:
                self._remove_found(batch, update.name, selectors)

    def sweep(self, batch: Batch, name: str, idle: float) -> None:
        """Remove series that are idle for so many seconds, until this process sends a later batch."""
        later = batch._replace(sequence=batch.sequence + 1)
        cursor = None
        while cursor != "0":
            cursor, *series = map(text_of, self._keys.call("idle", batch, name, cursor or "0", MOST_FOUND, idle))
            if series and not self._remove_series(later, name, series, idle):
                self._remove_found(later, name, series)

    def _remove_series(self, batch: Batch, name: str, series: list[str], idle: float = 0.0) -> bool:
        """Remove the series with these labels, or the idle ones of them; return whether their fields are known."""
        done = 0
        while done < len(series):
            parts = ((labels, *around_bound(labels)) for labels in series[done : done + MOST_SERIES])
            count = self._keys.call("remove", batch, name, MOST_FIELDS, idle, *chain.from_iterable(parts))
            if isinstance(count, ResponseError):  # the call that applies the batch reports it
                return True
            if count < 0:
                return False
            done += count
        return True

    def _remove_found(self, batch: Batch, name: str, selectors: list[str]) -> None:
        """Remove the series whose labels include all labels of a selector."""
        groups = Selectors(map(json.loads, selectors)).dumps()
        cursor = None
        while cursor != "0":
            found = self._keys.call("find", batch, name, cursor or "0", MOST_FOUND, groups)
            if isinstance(found, ResponseError):
                return
            cursor, *series = map(text_of, found)
            self._remove_series(batch, name, series)
