"""Keeps a metric within its most series. Twin: `limit` in `pdc/storage/lua/apply.lua`."""

from __future__ import annotations

from .. import SERIES, Outcome, Update
from ..fields import begun_series, moved, moved_to
from .rows import Rows


def limited(rows: Rows, update: Update, outcome: Outcome) -> Update:
    """The update, with its operations on new series over the limit done to the overflow series."""
    most, overflow, *_ = update.limits
    series = {labels: each.field for each in update.operations if (labels := begun_series(each)) is not None}
    new = series.keys() - rows.known(series)
    if not new:
        return update
    stored, has_overflow = count_series(rows, update), rows.known({overflow: moved(series[min(new)], overflow)})
    room = max(most - stored + len(has_overflow), 0)
    candidates = [labels for labels in series if labels in new and labels != overflow]
    refused = set(candidates[room:])
    is_new_overflow = not has_overflow and (overflow in new or bool(refused))
    rows.put(SERIES, float(stored + len(candidates) - len(refused) + is_new_overflow))
    if refused:
        outcome.overflowed[rows.name] = len(refused)
    return moved_to(overflow, update, refused)


def count_series(rows: Rows, update: Update) -> int:
    """The count of series; in a metric that had no limit before, they are counted."""
    stored = rows.get(SERIES)
    if isinstance(stored, float):
        return int(stored)
    stems = {each.field.partition("{")[0] for each in update.operations if begun_series(each) is not None}
    return max(map(rows.count_labelled, stems))
