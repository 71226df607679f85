"""The fields of a metric as a dict, for storages that load and save a metric whole; and their values."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ..process.interruption import let_through
from . import (
    BEGINNINGS,
    CREATED,
    FINAL_MARK_SECONDS,
    FOLDED,
    FORGET_WRITER_SECONDS,
    MARK,
    META,
    REMOVALS,
    UPDATED,
    Batch,
    Kind,
    Limits,
    Mark,
    Operation,
    Outcome,
    Stamped,
    Update,
)
from .coarsening import Coarsening
from .labels import BUCKETS, EXEMPLAR, Selectors, around_bound, series_of

__all__ = ["Fields"]

_BESIDES = ("_bucket:", "_native:", "_created:", "#")


class Fields(dict[str, Any]):
    """All fields of one metric. Its methods do in a dict all that `Storage` asks for.

    Load the fields, call a method, and save them, while nobody else does. `json` can save them. An update takes time for all
    fields of the metric, since it looks for writers to forget and for idle series each time.
    """

    def apply(self, batch: Batch, update: Update, outcome: Outcome) -> None:
        """Apply this update of the batch, unless the metric has seen it, and add to the outcome."""
        now, name, own = time.time(), update.name, MARK + batch.writer
        meta, mark = self.get(META), self.get(own)
        if meta is None or mark is None:
            outcome.unknown.add(name)
        if meta is None and batch.final:
            return
        last = Mark(-1, 0.0) if mark is None else Mark.loads(mark)
        if last.sequence < batch.sequence:
            self.remove(update)
            self._write(self._limited(update, outcome), now)
        if last.sequence <= batch.sequence:
            self._sign(batch, mode_of(update) or last.mode, update.limits, now)
        if update.declare and meta not in (None, update.meta):
            outcome.replaced[name] = meta
        if update.declare or meta is None:
            self[META] = update.meta
        self._forget(own, update.limits, now)
        if update.limits.expire_series:
            self._expire(now, update.limits.expire_series)

    def remove(self, update: Update) -> None:
        """Do only the removals of the update."""
        exact, some = set(update.removals(Kind.REMOVE)), Selectors(map(json.loads, update.removals(Kind.DELETE)))
        self._drop({labels for labels in self._series() if labels in exact or some.match_text(labels)})

    def _drop(self, series: set[str]) -> None:
        for field in [field for field in self if series_of(field) in series]:
            del self[field]

    def _series(self, *, stored: bool = False) -> set[str]:
        """The labels of all series; with `stored` of those only that do not belong to single processes."""
        found = (series_of(field) for field in self if not (stored and field.startswith("#")))
        return {labels for labels in found if labels is not None}

    def _write(self, update: Update, now: float) -> None:
        new = []
        for kind, operations in update.by_kind():
            for _, field, value in operations if kind not in REMOVALS else ():
                if kind in BEGINNINGS and field not in self:
                    new.append(field)
                if isinstance(value, Stamped) or kind is Kind.SET:
                    self[field] = stored(value, now)
                elif kind is Kind.ADD:
                    self[field] = _number(self.get(field)) + _number(value)
                else:
                    self.setdefault(field, value)
        for field in created_of(new) if update.created else ():
            self.setdefault(field, now)

    def _limited(self, update: Update, outcome: Outcome) -> Update:
        """The update, with its operations on new series over the limit done to the overflow series."""
        most, overflow, *_ = update.limits
        begun = [(labels, each.field) for each in update.operations if most and (labels := begun_series(each)) is not None]
        if all(field in self for _, field in begun):
            return update
        known = self._series(stored=True)
        new = dict.fromkeys(labels for labels, _ in begun if labels not in known and labels != overflow)
        refused = set([*new][max(most - len(known - {overflow}), 0) :])
        if refused:
            outcome.overflowed[update.name] = len(refused)
        return moved_to(overflow, update, refused)

    def _sign(self, batch: Batch, mode: str, limits: Limits, now: float) -> None:
        """Note that the batch was applied; the values of a writer that deregisters go, or are folded."""
        mark = Mark(batch.sequence, now, mode)
        if batch.final and mode != "all":
            self._take_from(batch.writer, limits)
            mark = old(mark)
        self[MARK + batch.writer] = mark.dumps()

    def _forget(self, own: str, limits: Limits, now: float) -> None:
        """Forget the other writers that were not seen for long, with their values."""
        for field in [field for field in self if field.startswith(MARK) and field != own]:
            if Mark.loads(self[field]).is_forgotten(now):
                self._take_from(field.removeprefix(MARK), limits)
                del self[field]
        if limits.max_buckets:
            self._coarsen(limits.max_buckets)

    def _coarsen(self, most: int) -> None:
        """Add native buckets to coarser ones where a series has too many, with their exemplars unless these have some."""
        coarsening = Coarsening(most)
        coarsening.add(self)
        for field, into in coarsening.moves():
            self[into] = _number(self.get(into)) + _number(self.pop(field))
            if (exemplar := self.pop(EXEMPLAR + field, None)) is not None:
                self.setdefault(EXEMPLAR + into, exemplar)

    def _take_from(self, writer: str, limits: Limits) -> None:
        """Drop the values of the writer, or fold them into those of the dead."""
        for mode in (*FOLDED, "live", "all"):
            prefix = f"#{mode}:{writer}:"
            for field in [field for field in self if field.startswith(prefix)]:
                value = self.pop(field)
                if mode in FOLDED:
                    heir = self._heir(f"#{mode}::", field.removeprefix(prefix), limits)
                    self[heir] = fold(mode, self.get(heir), value)

    def _heir(self, start: str, labels: str, limits: Limits) -> str:
        """The field of the dead into which a value of that series is folded."""
        others = [field for field in self if field.startswith(start) and field != start + limits.overflow]
        is_full = 0 < limits.max_series <= len(others)
        return start + (limits.overflow if is_full and start + labels not in self else labels)

    def _expire(self, now: float, idle: float) -> None:
        """Remove idle series. One that was never updated since the metric has this limit counts as updated now."""
        updates = {labels: UPDATED + labels for labels in self._series()}
        for field in updates.values():
            self.setdefault(field, f"0.0 {now!r}")
        self._drop({labels for labels, field in updates.items() if (stamped(self[field]) or (0.0, now))[1] <= now - idle})


def created_of(fields: Iterable[str]) -> set[str]:
    """The fields that say when the series of these fields were created."""
    return {CREATED + labels for field in fields if (labels := series_of(field)) is not None}


def stamped(value: object) -> tuple[float, float] | None:
    """A number and the time it was set; None for a value that pdc did not write."""
    try:
        number, set_at = map(float, str(value).split(" "))
    except ValueError as error:
        let_through(error)
        return None
    return number, set_at


def stored(value: float | str | Stamped, now: float) -> float | str:
    """The value as a storage keeps it, at this time."""
    if not isinstance(value, Stamped):
        return value
    age = value.age(time.monotonic())
    return f"{value.number!r} {0.0 if age is None else now - age!r}"


def mode_of(update: Update) -> str:
    """The mode of the values that the update has of its writer; empty without any."""
    for kind, field, _ in reversed(update.operations):
        if kind is Kind.STAMP and (mode := _mode(field)):
            return mode
    return ""


def _mode(field: str) -> str:
    """The mode of the value of a process; empty for another field."""
    start, _, rest = field.removeprefix("#").partition(":")
    return start if rest and start.isalpha() else ""


def begun_series(operation: Operation) -> str | None:
    """The labels of the series that the operation may begin: buckets and creation times come with another field."""
    if operation.kind is Kind.STAMP or operation.kind in REMOVALS or operation.field.startswith(_BESIDES):
        return None
    return series_of(operation.field)


def moved(field: str, labels: str) -> str:
    """The same field of another series."""
    stem, _, own = field.partition("{")
    if stem in BUCKETS:
        before, after = around_bound(labels)
        return f"{stem}{before}{json.loads('{' + own)['le']}{after}"
    return stem + labels


def moved_to(overflow: str, update: Update, refused: set[str]) -> Update:
    """The update, with its operations on the refused series done to that for all others."""
    return update._replace(operations=list(_moved(overflow, update, refused))) if refused else update


def _moved(overflow: str, update: Update, refused: set[str]) -> Iterator[Operation]:
    for each in update.operations:
        yield each._replace(field=moved(each.field, overflow)) if series_of(each.field) in refused else each


def old(mark: Mark) -> Mark:
    """The mark of a deregistered writer, which stays until no duplicate of its batches can be on its way."""
    return Mark(mark.sequence, time.time() - FORGET_WRITER_SECONDS + FINAL_MARK_SECONDS)


def fold(mode: str, dead: Any, value: Any) -> Any:
    """The value of the dead together with the value of one more, each with the time it was set."""
    before, after = stamped(dead), stamped(value)
    if before is None:
        return value
    if after is None:
        return dead
    (number, set_at), (new, new_set_at) = before, after
    if mode == "sum":
        return f"{number + new!r} {max(set_at, new_set_at)!r}"
    wins = {"min": new < number, "max": new > number, "mostrecent": new_set_at > set_at}[mode]
    return value if wins else dead


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # a value of any type may be in the storage
    except (TypeError, ValueError) as error:
        let_through(error)
        return 0.0
