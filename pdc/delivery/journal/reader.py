"""The reader of journals: from the bytes that a dead process wrote to the batches that it had not sent."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ...cells import (
    SUM_ROWS,
    CounterCell,
    JournaledOperation,
    ProcessGaugeCell,
    SharedGaugeCell,
    SummaryCell,
    Unsent,
    Window,
    buckets_of,
    counter_additions,
    histogram_additions,
    summary_additions,
    unsent_process_gauge,
    unsent_shared_gauge,
    unsent_sums,
)
from ...family import Family
from ...process import log
from ...storage import (
    FORGET_VALUES_SECONDS,
    FORGET_WRITER_SECONDS,
    MOST_ENTRIES,
    MOST_NUMBERS,
    REMOVALS,
    Batch,
    Kind,
    Operation,
    Stamped,
    Update,
    updated,
)
from ...storage.labels import Selectors, series_of
from .layout import (
    ALIGNMENT,
    CLOCK,
    HEADER,
    IN_FLIGHT,
    LAST,
    MAGIC,
    RECORD,
    REPLAYED,
    SENDING,
    SENT_AT,
    SINCE,
    WRITER,
    WRITTEN,
    DamagedJournal,
    integer_of,
    text_of,
)

Additions = Callable[[Family, tuple[str, ...], list[float], float | None], list[Operation]]
"""A function that makes operations of what the numbers of a series gained: family, label values, gains, time of creation."""
SUMS: dict[str, tuple[int, Additions]] = {
    "counter": (CounterCell.width, counter_additions),
    "summary": (SummaryCell.width, summary_additions),
}
"""The types of metrics whose updates only add: the width of a row of their cells, and their additions. Histograms do, too."""


class Series(NamedTuple):
    """The record of a series."""

    family: Family
    values: tuple[str, ...]
    """Of its labels."""
    created: float | None
    """As `Cell.created`."""
    numbers: list[float]
    window: Window | None = None
    """Of a native histogram."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels by name. Raises ValueError where their count is another one than the family's."""
        return dict(zip(self.family.labelnames, self.values, strict=True))

    def unsent(self, writer: str, in_flight: bool) -> Unsent:
        """The part that the storage may lack, where that writer died with a batch in flight or without one."""
        family, values, created, numbers, window = self
        if family.type == "gauge":
            if family.mode == "shared":
                return unsent_shared_gauge(family, values, numbers, in_flight)
            return unsent_process_gauge(family, values, numbers, writer)
        if any(numbers[-(len(numbers) // SUM_ROWS) :]):  # the storage had it: where it begins again, it is created then
            created = None
        if family.type == "histogram":
            buckets = buckets_of(family.classic, family.resolution, window)
            return unsent_sums(numbers, in_flight, lambda gained: histogram_additions(family, values, gained, created, buckets))
        _, additions = SUMS[family.type]
        return unsent_sums(numbers, in_flight, lambda gained: additions(family, values, gained, created))


class Once(NamedTuple):
    """The record of an operation that the storage does once."""

    family: Family
    operation: Operation
    is_drained: bool
    """True once it is in a batch."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the series, or the labels that all removed series have."""
        field = self.operation.field
        return dict(json.loads(field[field.index("{") :]))

    def unsent(self, _writer: str, in_flight: bool) -> Unsent:
        """The operation, as the part that it belongs to."""
        return Unsent([self.operation], []) if in_flight and self.is_drained else Unsent([], [self.operation])


Parts = list[tuple[Family, list[Operation]]]
"""The operations of one batch by entries, with the family of each."""


def batches(content: bytes, now: float) -> Iterator[Batch]:
    """The batches that a journal with that content has to send, as its owner would have. Raises DamagedJournal.

    `now` is the time in Unix seconds. The batches have no values of one process that are a day old: the storage has counted
    them by then as they were last sent. They have no batch whose sender was killed in the middle of it, once the storage may
    have forgotten whether it has that: nobody can know, and nothing may count twice.
    """
    _check_header(content)
    last, in_flight = integer_of(content, LAST), integer_of(content, IN_FLIGHT)
    writer = text_of(content, WRITER)
    families, unsent = _unsent(content, writer, in_flight=bool(in_flight))
    drained: Parts = [(family, each.drained) for family, each in unsent]
    gathered = _in_batches((family, each.gathered) for family, each in unsent)
    numbered = [(in_flight, drained), *enumerate(gathered, last + 1)]
    sending = integer_of(content, SENDING)
    first = max(sending, integer_of(content, REPLAYED))
    is_forgotten = not 0 <= now - integer_of(content, SENT_AT) <= FORGET_WRITER_SECONDS
    for sequence, parts in numbered:
        if sequence < first:  # another process found the file before, sent this one, and was killed too
            continue
        updates = _updates(content, parts, now)
        if updates and sequence == sending and is_forgotten:
            _log_dropped(updates)
        elif updates:
            yield Batch(writer, sequence, updates)
    ended = {family.name: Update(family.name, "", [], limits=family.limits) for family in families}
    yield Batch(writer, last + len(numbered) + 1, [ended[name] for name in sorted(ended)], final=True)


def _in_batches(parts: Iterable[tuple[Family, list[Operation]]]) -> Iterator[Parts]:
    """Yield the parts in batches no larger than those of a living process: the same ones for every reader."""
    batch: Parts = []
    size = 0
    for family, operations in parts:
        if operations:
            batch.append((family, operations))
            size += family.numbers
        if len(batch) >= MOST_ENTRIES or size >= MOST_NUMBERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_header(content: bytes) -> None:
    if len(content) < HEADER or content[: len(MAGIC)] != MAGIC:
        raise DamagedJournal(f"expected a file that starts with {MAGIC!r}, got {content[: len(MAGIC)]!r}")
    length = integer_of(content, WRITTEN)
    if length > len(content):
        raise DamagedJournal(f"expected {length} bytes, got {len(content)}")


def _updates(content: bytes, parts: Parts, now: float) -> list[Update]:
    """The updates of one batch."""
    are_counted = integer_of(content, SINCE) < now - FORGET_VALUES_SECONDS
    clock = struct.unpack_from("=d", content, CLOCK)[0] - (now - time.monotonic())
    updates: dict[str, Update] = {}
    for family, operations in parts:
        new = Update(family.name, family.meta, [], limits=family.limits, created=family.has_created)
        update = updates.setdefault(family.name, new)
        left = (each for each in operations if not are_counted or each.kind is not Kind.STAMP)
        update.operations.extend(_timed(each, clock) for each in left)
        update.operations.extend(_notes_of_updates(family, operations))
    return [update for update in updates.values() if update.operations]


def _log_dropped(updates: Iterable[Update]) -> None:
    log.defer(
        logging.WARNING,
        "a process was killed so long ago that the storage cannot tell whether it has what was on the way; that is "
        "dropped, so that nothing counts twice: %s",
        ", ".join(update.name for update in updates),
    )


def _timed(operation: Operation, clock: float) -> Operation:
    """The operation with the time of setting by our clock; 0 on the owner's clock is `clock` on ours.

    It drops a time that is still to come: the time of day was put back since.
    """
    value = operation.value
    if not isinstance(value, Stamped) or value.set_at is None:
        return operation
    set_at = value.set_at + clock
    return operation._replace(value=value._replace(set_at=set_at if set_at <= time.monotonic() else None))


def _notes_of_updates(family: Family, operations: Iterable[Operation]) -> list[Operation]:
    """Notes that series are updated, where idle series go. Values of one process have no note: they may be unchanged."""
    if not family.expire_series:
        return []
    changes = (each.field for each in operations if each.kind not in (*REMOVALS, Kind.STAMP))
    return [updated(labels) for labels in {series_of(field) for field in changes} if labels is not None]


def _unsent(content: bytes, writer: str, *, in_flight: bool) -> tuple[list[Family], list[tuple[Family, Unsent]]]:
    """The families of a journal, and the unsent part of each entry, in the order of the entries' serials."""
    families: list[Family] = []
    entries: dict[int, Series | Once] = {}
    for offset, text, numbers in sorted(_records(content), key=lambda record: len(record[2]) > 0):  # families first
        try:
            if numbers:
                number, serial, *key = json.loads(text)
                entries[int(serial)] = _entry(families[number], key, numbers)
            else:
                families.append(Family.from_meta(text.decode()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedJournal(f"the record at byte {offset} says {text[:80]!r}") from error
    try:
        left = _without_removed([entries[serial] for serial in sorted(entries)])
        return families, [(entry.family, entry.unsent(writer, in_flight)) for entry in left]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedJournal(f"a record has impossible numbers or labels: {error}") from error


def _records(content: bytes) -> Iterator[tuple[int, bytes, list[float]]]:
    """Yield the place, the text and the numbers of each record that counts."""
    offset, end = HEADER, integer_of(content, WRITTEN)
    while offset + RECORD.size <= end:
        marked, count = RECORD.unpack_from(content, offset)
        if marked == 0:
            return
        size, text_at = abs(marked), offset + RECORD.size + count * 8
        if not (size % ALIGNMENT == 0 and count >= 0 and count == count // 1 and text_at <= offset + size <= end):
            raise DamagedJournal(f"the record at byte {offset} has an impossible size ({size:g} bytes, {count:g} numbers)")
        if marked > 0:
            numbers = list(memoryview(content)[offset + RECORD.size : int(text_at)].cast("d"))
            yield offset, content[int(text_at) : offset + int(size)].rstrip(b"\0"), numbers
        offset += int(size)


def _entry(family: Family, key: list[Any], numbers: list[float]) -> Series | Once:
    """The entry of a record with these numbers. Raises errors for a record that no version wrote."""
    if isinstance(key[0], str):
        _expect(JournaledOperation.size, numbers)
        return Once(family, _operation(*key), bool(numbers[0]))
    values, created, *parts = key
    window = Window.loads(*parts[0], most=len(numbers)) if parts else None
    _expect(_size(family, window), numbers)
    return Series(family, tuple(map(str, values)), None if created is None else float(created), numbers, window)


def _expect(size: int, numbers: list[float]) -> None:
    if size != len(numbers):
        raise ValueError(f"expected {size} numbers, got {len(numbers)}")


def _size(family: Family, window: Window | None) -> int:
    """The count of numbers in the cell of a series. Raises KeyError for a type without numbers, ValueError for no bounds."""
    if family.type == "gauge":
        return (SharedGaugeCell if family.mode == "shared" else ProcessGaugeCell).size
    if family.type == "histogram":
        return SUM_ROWS * buckets_of(family.classic, family.resolution, window).width
    width, _ = SUMS[family.type]
    return SUM_ROWS * width


def _operation(kind: str, field: str, value: Any) -> Operation:
    """An operation that a storage can apply. Raises ValueError."""
    found = Operation(Kind(kind), field, value)
    labels = json.loads(field[0 if found.kind in REMOVALS else field.index("{") :])
    if found.kind not in (*REMOVALS, Kind.SET) or not isinstance(labels, dict) or not isinstance(value, (float, int, str)):
        raise ValueError(f"expected to remove a series or set a field with labels, got {found}")
    return found


def _without_removed(entries: list[Series | Once]) -> list[Series | Once]:
    """The entries in this order, without the ones that a later removal or reset ends: it comes before their release."""
    left: list[Series | Once] = []
    removed: defaultdict[str, Selectors] = defaultdict(Selectors)
    reset: defaultdict[str, Selectors] = defaultdict(Selectors)
    for entry in reversed(entries):
        name, labels = entry.family.name, entry.labels
        if isinstance(entry, Series):
            is_ended = removed[name].match(labels) or reset[name].match(labels)
        else:
            is_removal = entry.operation.kind in REMOVALS
            is_ended = not is_removal and removed[name].match(labels)
            if is_removal or entry.family.type == "counter":
                (removed if is_removal else reset)[name].add(labels)
        if not is_ended:
            left.append(entry)
    return left[::-1]
