"""Keeps a metric within its most series. Twin: `limit` in `pdc/storage/lua/apply.lua`."""

from __future__ import annotations

import json

from .. import REMOVALS, SERIES, Kind, Operation, Outcome, Update
from ..labels import BUCKETS, around_bound, series_of
from .rows import Rows


def limited(rows: Rows, update: Update, outcome: Outcome) -> Update:
    """The update, with its operations on new series over the limit done to the overflow series."""
    most, overflow, _ = update.limits
    series = {labels: each.field for each in update.operations if (labels := _begun_series(each)) is not None}
    new = series.keys() - rows.known(series)
    if not new:
        return update
    stored, has_overflow = count_series(rows, update), rows.known({overflow: _moved(series[min(new)], overflow)})
    room = max(most - stored + len(has_overflow), 0)
    candidates = [labels for labels in series if labels in new and labels != overflow]
    refused = set(candidates[room:])
    is_new_overflow = not has_overflow and (overflow in new or bool(refused))
    rows.put(SERIES, float(stored + len(candidates) - len(refused) + is_new_overflow))
    if not refused:
        return update
    outcome.overflowed[rows.name] = len(refused)
    operations = [
        each._replace(field=_moved(each.field, overflow)) if series_of(each.field) in refused else each
        for each in update.operations
    ]
    return update._replace(operations=operations)


def count_series(rows: Rows, update: Update) -> int:
    """The count of series; in a metric that had no limit before, they are counted."""
    stored = rows.get(SERIES)
    if isinstance(stored, float):
        return int(stored)
    stems = {each.field.partition("{")[0] for each in update.operations if _begun_series(each) is not None}
    return max(map(rows.count_labelled, stems))


def _begun_series(operation: Operation) -> str | None:
    """The labels of the series that the operation may begin: buckets and creation times come with another field."""
    if operation.kind is Kind.STAMP or operation.kind in REMOVALS or operation.field.startswith(("_bucket:", "_created:", "#")):
        return None
    return series_of(operation.field)


def _moved(field: str, labels: str) -> str:
    """The same field of another series."""
    stem, _, own = field.partition("{")
    if stem in BUCKETS:
        before, after = around_bound(labels)
        return f"{stem}{before}{json.loads('{' + own)['le']}{after}"
    return stem + labels
