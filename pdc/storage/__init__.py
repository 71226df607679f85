"""The contract between pdc and a storage: `Storage`, and the types that it needs.

`pdc.setup(storage=...)` takes any object that keeps it, and `pdc.testing.StorageContract` tests one.

A storage keeps one mapping of fields to values per metric. It knows names, fields and numbers, never metric types.
Fields that start with ``#`` are bookkeeping and are never exported:

- ``#meta``: the description of the metric (type, help, unit, labels, bounds), as JSON that only `pdc.family` understands;
- ``#mark:<writer>``: the last batch of the writer that was applied, and when the writer was last seen, by the storage's clock;
- ``#search``: when to search next for writers to forget;
- ``#series``: the count of series, without series that only living processes have, in a metric with a limit;
- ``#updated<labels>``: when the series was last updated, by the storage's clock, in a metric whose idle series go;
- ``#sweep``: when to look next for idle series;
- ``#<mode>:<writer>:<labels>``: the value of one process, and when it was set. The mode is that of the gauge. A value of
  ``live`` goes when its writer deregisters or is forgotten; a value of ``all`` goes when its writer is forgotten. Values of
  ``sum``, ``min``, ``max`` and ``mostrecent`` are folded then into ``#<mode>::<labels>``, one value for all the dead;
- ``#exemplar<suffix>:<labels>``: the exemplar of the field with that suffix and these labels.

A series is the fields with the same labels; those of buckets (``_bucket``, ``_native``) and of their exemplars have ``le``
beside them.

The names of metrics have one more name among them, the id of the storage: ``#id:`` and 28 hexadecimal digits.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..process.forks import FORKS
from ..process.interruption import interruption, let_through, release_own, tolerate
from .ordered import Marks, Ordered

__all__ = [
    "FINAL_MARK_SECONDS",
    "FOLDED",
    "FORGET_VALUES_SECONDS",
    "FORGET_WRITER_SECONDS",
    "MARK",
    "META",
    "UPDATED",
    "Batch",
    "ForkSafe",
    "Kind",
    "Limits",
    "Mark",
    "Operation",
    "Outcome",
    "Snapshot",
    "Stamped",
    "Storage",
    "StorageError",
    "Update",
    "Value",
    "new_id",
]

META = "#meta"
MARK = "#mark:"
SEARCH = "#search"
SERIES = "#series"
UPDATED = "#updated"
CREATED = "_created:"
SWEEP = "#sweep"
FOLDED = ("sum", "min", "max", "mostrecent")
"""The modes whose values are folded; values of ``live`` and ``all`` are dropped."""
SWEEPS = 4
"""How many times a storage looks for idle series in the time that they stay."""

FORGET_WRITER_SECONDS = 3600.0
"""A writer not seen for so long is forgotten: its mark goes, and its live values with it."""
FORGET_VALUES_SECONDS = 86400.0
"""The same for a writer with values of another mode: a writer that only slept must not find its values among the dead."""
FINAL_MARK_SECONDS = 30.0
"""How long the mark of a deregistered writer stays: a duplicate of its final batch may still be on its way to the storage.

A metric is searched for writers to forget after twice that time, and otherwise every `FORGET_WRITER_SECONDS`.
"""

ID = "#id:"
"""How the id of a storage begins, among the names of its metrics."""

FORK_SECONDS = 0.05
"""How long a fork waits for another thread that is sending, or that asks a server: a server may never answer."""


class StorageError(Exception):
    """The storage could not be read or written; the message names the storage, the reason and the remedy."""


def foreign(name: object, error: Exception) -> StorageError:
    """The error for a metric with content that pdc did not write, and that no exposition format can carry."""
    why = str(error) if isinstance(error, UnicodeError) else repr(error)
    return StorageError(
        f"metric {name!r} holds something that pdc did not write: {why}. Delete the field or the metric in the storage."
    )


MOST_ENTRIES = 250
"""The most entries of a batch. A process keeps the memory that its largest batch took."""
MOST_NUMBERS = 2500
"""About the most numbers of a batch, since a storage, and other threads of the process, do nothing else meanwhile: 156
histograms of 15 buckets have as many."""


class Kind(str, Enum):
    """The effect of an operation on its field."""

    DELETE = "delete"
    """Remove every series whose labels include those of ``field`` (a JSON object)."""
    REMOVE = "remove"
    """Remove the series with exactly the labels in ``field`` (JSON as fields spell it)."""
    INIT = "init"
    """Create the field with the value, unless it exists."""
    SET = "set"
    """Replace the value by a number or a text."""
    ADD = "add"
    """Add the number, as IEEE doubles do."""
    STAMP = "stamp"
    """Replace the value by ``"<number> <time>"``; the time is by the storage's clock, when the number was set."""

    __hash__ = str.__hash__  # the hash of an enumeration takes a call of Python


ADD, INIT, SET = Kind.ADD, Kind.INIT, Kind.SET
"""The same members: Python 3.11 finds a member of an enumeration several times as slowly."""
REMOVALS = (Kind.DELETE, Kind.REMOVE)
BEGINNINGS = (Kind.INIT, Kind.ADD)
"""The kinds of operations that begin a series where its field is new."""
_IN_ORDER = tuple(Kind)


class Stamped(NamedTuple):
    """The value of a `Kind.STAMP`: a number, and the time of `time.monotonic` when it was set (None: never)."""

    number: float
    set_at: float | None

    @classmethod
    def when_applied(cls, number: float = 0.0) -> Stamped:
        """A stamp with the time at which the storage applies the operation."""
        return cls(number, math.inf)

    def age(self, now: float) -> float | None:
        """Seconds since the number was set."""
        return None if self.set_at is None else max(now - self.set_at, 0.0)


Value: TypeAlias = float | str


class Operation(NamedTuple):
    """One change of one field."""

    kind: Kind
    field: str
    value: Value | Stamped = 0.0


class Limits(NamedTuple):
    """The most series of a metric, the seconds that a series stays without an update, and the most native buckets of one.

    0 is no limit. Operations on a new series over the limit are done to the overflow series instead. Operations of
    `Kind.STAMP` are not: each process limits values of its own, and the limit holds for the values of the dead into which
    they are folded.

    Native buckets may be more until the storage looks for writers to forget. Then it adds the counts of some buckets to those
    of coarser ones, as `pdc.native.coarsened` states, each in one change.
    """

    max_series: int = 0
    overflow: str = ""
    """The labels of the overflow series, as fields spell them."""
    expire_series: float = 0.0
    max_buckets: int = 0


def updated(labels: str) -> Operation:
    """Note that the series with these labels is updated, at the time when the storage applies it."""
    return Operation(Kind.STAMP, UPDATED + labels, Stamped.when_applied())


class Update(NamedTuple):
    """The changes of a batch to one metric; without operations, it renews the metric and the writer's mark."""

    name: str
    meta: str
    operations: list[Operation]
    declare: bool = False
    """Replace the stored ``#meta`` even where there is one: true once per process and metric."""
    limits: Limits = Limits()
    created: bool = False
    """Give a time of creation, the present, to each series that begins: one that gets a field by an init or an addition, and
    has no field ``_created`` after all operations."""

    def by_kind(self) -> Iterator[tuple[Kind, list[Operation]]]:
        """Yield the operations in the order in which they apply: removals, then inits, then the rest."""
        found = {operation.kind for operation in self.operations}
        for kind in _IN_ORDER:
            if kind in found:
                yield kind, [operation for operation in self.operations if operation.kind is kind]

    def removals(self, kind: Kind) -> list[str]:
        """The labels of the series to remove: `Kind.REMOVE` has all labels of a series, `Kind.DELETE` some."""
        return [operation.field for operation in self.operations if operation.kind is kind]


class Batch(NamedTuple):
    """Updates of any number of metrics, at most one for each.

    Applying a batch twice is applying it once: ``sequence`` grows with every batch of a ``writer``, and a metric ignores a
    sequence that it has seen. A ``final`` batch is the last of its writer and deregisters it: the storage drops or folds the
    writer's values by their modes, and deletes its marks once no duplicate of a batch can be on its way. A final batch declares
    nothing.
    """

    writer: str
    sequence: int
    updates: list[Update]
    final: bool = False
    storage: str = ""
    """The id to give to a storage that has none; a new one where this is empty."""


class Outcome(NamedTuple):
    """The answer of a storage to a batch that it applied."""

    unknown: set[str]
    """Metrics that held nothing of this writer before: they are new to it, expired, evicted or deleted."""
    replaced: dict[str, str]
    """By metric, the ``#meta`` that this batch replaced, where another process had declared a different one."""
    refused: dict[str, str]
    """By metric, the reason why its update can never be applied; the other updates were."""
    overflowed: dict[str, int]
    """By metric, the count of its new series over the limit."""
    storage: str = ""
    """The id of the storage, where the batch happened to read it."""
    note: str = ""
    """A message for the log of the program."""

    def joined(self, later: Outcome) -> Outcome:
        """This outcome together with that of the rest of the batch."""
        unknown, note = self.unknown | later.unknown, self.note or later.note
        replaced, refused = self.replaced | later.replaced, self.refused | later.refused
        return Outcome(unknown, replaced, refused, self.overflowed | later.overflowed, self.storage or later.storage, note)


USUAL = Outcome(set(), {}, {}, {})
"""The outcome of most batches: there is nothing to note."""


class Snapshot(NamedTuple):
    """The fields of some metrics, and the storage's clock when they were read."""

    now: float
    metrics: dict[str, Mapping[str, Any]]


class Storage(Protocol):
    """Keeps metrics. Its methods may be called from any thread and, after a fork, from the child."""

    @property
    def identity(self) -> str | None:
        """The name of this storage for all processes that use it, without secrets; None where no other process can use it.

        For other processes, as in another container, the same name may mean another storage.
        """

    def places(self) -> Sequence[str]:
        """Places, one of which two processes must share for the name to mean the same storage; the closest comes first.

        Places count where the storage has no id, or where nobody could reach it to read the id.
        """

    def id(self) -> str:
        """The id that the first write gave to the storage; empty where it holds nothing. Never writes. Raises StorageError."""

    def apply(self, batch: Batch) -> Outcome:
        """Apply the batch. Each metric changes at once or not at all; removals are an exception.

        Removals come before all other operations. Each series goes at once, but many series go in pieces of bounded work, and
        other writers have their turns in between. A removal that was cut short is done again with its batch, and also removes
        what others have added since. A removal whose batch was applied is not done again.

        From time to time, series that were not updated within the limits of their metric are removed, each at once, by the
        clock of the storage.

        Raises StorageError where an update failed, or may have failed: send the very same batch again.
        """

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Read these metrics, or all. Each series is as it was at one moment after the call began.

        A whole metric is as it was at one moment, too, unless it is large. Never writes. Raises StorageError.
        """

    def remove(self, batch: Batch) -> None:
        """Do only the removals of the batch. Unlike `apply`, it marks no writer and renews no expiry. Raises StorageError."""

    def delete(self, names: Collection[str] | None = None) -> None:
        """Delete these metrics, or all. Raises StorageError."""

    def set_deadline(self, deadline: float) -> None:
        """End each call by this time of `time.monotonic`, as far as possible; after it, also break off a call that waits.

        `math.inf` is no deadline: `setup` calls this, since `shutdown` may have set another one.
        """

    def close(self) -> None:
        """Close the connections that the storage opened, once no other thread uses them; the next call opens new ones."""


class ForkSafe:
    """Base of a user of a driver that must not be in the middle of a call, in another thread, when the process forks.

    A child would inherit the locks of the driver as they were, and no thread of it could release them. So a fork waits for
    `lock`, which is held while the driver is used; it waits for `fork_seconds` at most.
    """

    fork_seconds = FORK_SECONDS

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.deadline = math.inf
        """The time of `time.monotonic` by which calls have to end."""
        _fork_safe[id(self)] = self

    def set_deadline(self, deadline: float) -> None:
        """End each call by this time."""
        self.deadline = deadline

    def before_fork(self) -> None:
        """Close what a child must not inherit; called with the lock held."""

    def inherit(self, *, idle: bool) -> None:
        """Close in a child what `before_fork` did not; `idle` unless another thread was using the driver at the fork."""


_fork_safe: weakref.WeakValueDictionary[int, ForkSafe] = weakref.WeakValueDictionary()
"""By their ids: storages of applications may be equal, or have no hash."""


def _before_fork() -> None:
    for user in list(_fork_safe.values()):
        if user.lock.acquire(timeout=user.fork_seconds):
            user.before_fork()


def _after_fork_in_parent() -> None:
    for user in list(_fork_safe.values()):
        release_own(user.lock)


def _after_fork_in_child() -> None:
    for user in list(_fork_safe.values()):
        idle = user.lock.acquire(blocking=False)  # this thread, which forked, has it, or it is free
        user.lock = threading.RLock()
        user.deadline = math.inf
        user.inherit(idle=idle)


FORKS.register(_before_fork, _after_fork_in_parent, _after_fork_in_child)


class Mark(NamedTuple):
    """The mark of a writer in a metric."""

    sequence: int
    """The last batch that was applied."""
    seen: float
    """When the writer was last seen, in Unix seconds."""
    mode: str = ""
    """The mode of the writer's values in the metric; empty where it has none."""

    @classmethod
    def loads(cls, stored: object) -> Mark:
        """Parse a stored mark; one that cannot be parsed counts as never seen."""
        try:
            sequence, seen, *mode = str(stored).split(" ")
            return cls(int(sequence), float(seen), *mode)
        except (TypeError, ValueError) as error:
            let_through(error)
            return cls(-1, 0.0)

    @classmethod
    def times(cls, marks: Mapping[str, Any]) -> dict[str, float]:
        """When the writers with these marks were last seen; of thousands of writers, marks are parsed together."""
        with tolerate(TypeError, ValueError):
            parts = " ".join(marks.values()).split(" ")
            if len(parts) == 3 * len(marks):
                return dict(zip(marks, map(float, parts[1::3]), strict=True))
        return {writer: cls.loads(stored).seen for writer, stored in marks.items()}

    def dumps(self) -> str:
        """The mark as it is stored."""
        return f"{self.sequence} {self.seen!r} {self.mode}".rstrip()

    def is_forgotten(self, now: float) -> bool:
        """True if the writer was not seen for so long that it does not count any more."""
        return self.seen < now - (FORGET_WRITER_SECONDS if self.mode in ("", "live") else FORGET_VALUES_SECONDS)


def marks_of(fields: Mapping[str, Any], writers: Collection[str] | None = None) -> dict[str, Any]:
    """The marks of these writers of a metric, or of all; a writer without a mark was never seen.

    Raises StorageError, or the exception of the application that broke a read of marks off.
    """
    if isinstance(fields, Ordered) and fields.marks is not None:
        fields = _read_marks(fields.marks, None if writers is None else [MARK + writer for writer in writers])
    if writers is not None:
        return {writer: fields.get(MARK + writer) for writer in writers}
    return {field.removeprefix(MARK): stored for field, stored in fields.items() if field.startswith(MARK)}


def _read_marks(read: Marks, names: Collection[str] | None) -> Mapping[str, Any]:
    handled = sys.exc_info()[1]
    try:
        return read(names)
    except StorageError as error:
        raise interruption(error, handled) or error  # noqa: B904 - each has the cause that it needs


def writers(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The processes that wrote these metrics, each with the time at which it was last seen, the latest first."""
    seen: dict[str, float] = {}
    for fields in metrics:
        for writer, at in Mark.times(marks_of(fields)).items():
            seen[writer] = max(seen.get(writer, 0.0), at)
    return dict(sorted(seen.items(), key=lambda item: -item[1]))


def new_id() -> str:
    """An id for a storage that has none."""
    return ID + os.urandom(14).hex()
