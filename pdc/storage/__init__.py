"""The contract between the buffer and a storage.

A storage keeps one mapping of fields to values per metric. It knows names, fields and numbers, never metric types.
Fields that start with ``#`` are bookkeeping and are never exported:

- ``#meta``: what the metric is (type, help, unit, labels, bounds), as JSON that only `pdc.family` understands;
- ``#writers``: for every writer, the last batch that was applied and when it was last seen, by the storage's clock;
- ``#live:<writer>:<labels>`` and ``#process:<writer>:<labels>``: the value of one process, and when it was set.
  Live values go when their writer goes;
- ``#exemplar<suffix>:<labels>``: the exemplar of the field of that suffix and labels.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeAlias

META = "#meta"
WRITERS = "#writers"
LIVE = "#live:"

FORGET_WRITER_SECONDS = 3600.0
"""A writer not seen for so long is forgotten, with its live values and its duplicate marks."""


FORK_SECONDS = 10.0
"""How long a fork waits for a storage that another thread is using."""


class StorageError(Exception):
    """The storage could not be read or written; the message says which, why, and what helps."""


class Kind(str, Enum):
    """What an operation does to its field."""

    DELETE = "delete"
    """Remove every field whose labels include those of ``field`` (a JSON object)."""
    INIT = "init"
    """Create the field with the value where it does not exist."""
    SET = "set"
    """Replace the value, a number or a text."""
    ADD = "add"
    """Add the number, as IEEE doubles do."""
    STAMP = "stamp"
    """Replace the value by ``"<number> <time>"``; the time is the storage's clock when the number was set."""


class Stamped(NamedTuple):
    """The value of a `Kind.STAMP`: a number, and when it was set by `time.monotonic` (None: never)."""

    number: float
    set_at: float | None

    def age(self, now: float) -> float | None:
        """Seconds since the number was set."""
        return None if self.set_at is None else max(now - self.set_at, 0.0)


Value: TypeAlias = float | str


class Operation(NamedTuple):
    """One change of one field."""

    kind: Kind
    field: str
    value: Value | Stamped = 0.0


@dataclass(frozen=True)
class Update:
    """What a batch changes in one metric; with no operations it renews the metric and the writer's mark."""

    name: str
    meta: str
    operations: list[Operation] = field(default_factory=list)
    declare: bool = False
    """Replace the stored ``#meta`` even where there is one: true once per process and metric."""

    def by_kind(self) -> Iterator[tuple[Kind, list[Operation]]]:
        """Yield the operations in the order in which they apply: deletes, then inits, then the rest."""
        for kind in Kind:
            if chosen := [operation for operation in self.operations if operation.kind is kind]:
                yield kind, chosen


@dataclass(frozen=True)
class Batch:
    """Updates of any number of metrics, each of them at most once.

    Applying a batch twice is applying it once: ``sequence`` grows with every batch of a ``writer``, and a metric
    ignores a sequence that it has seen. A writer that is ``leaving`` takes its live values along, and its marks once no
    duplicate of a batch can be on its way; it declares nothing.
    """

    writer: str
    sequence: int
    updates: list[Update]
    leaving: bool = False


@dataclass
class Outcome:
    """What a storage says of a batch that it applied."""

    unknown: set[str] = field(default_factory=set)
    """Metrics that held nothing of this writer before: new to it, expired, evicted or deleted."""
    replaced: dict[str, str] = field(default_factory=dict)
    """The ``#meta`` of metrics that somebody had declared otherwise before this batch did."""
    refused: dict[str, str] = field(default_factory=dict)
    """Metrics that can never be applied, with the reason; the others were."""


class Snapshot(NamedTuple):
    """The fields of some metrics, and the storage's clock when they were read."""

    now: float
    metrics: dict[str, dict[str, Any]]


class Storage(Protocol):
    """Where metrics live. Methods may be called from any thread and, after a fork, from the child."""

    @property
    def identity(self) -> str | None:
        """What is the same in every process that uses this storage, without secrets; None where no other one can."""

    def apply(self, batch: Batch) -> Outcome:
        """Apply the batch; each metric changes at once or not at all.

        Raises StorageError where that is unknown or failed for any metric: send the very same batch again.
        """

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Read those metrics, or all; each as it was at one moment. Never writes. Raises StorageError."""

    def delete(self) -> None:
        """Delete all metrics. Raises StorageError."""

    def close(self) -> None:
        """Let go of connections that the storage opened; the next call opens new ones."""


class ForkSafe:
    """Base of a storage whose driver must not be in the middle of a call, in another thread, when the process forks.

    A child would inherit the locks of the driver as they were, and nobody in it could release them. So a fork waits for
    `lock`, which the storage holds while it uses the driver; for `FORK_SECONDS` at most, in case a server hangs.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _fork_safe.add(self)

    def before_fork(self) -> None:
        """Let go of what a child must not inherit; called with the lock held."""


_fork_safe: weakref.WeakSet[ForkSafe] = weakref.WeakSet()
_held: dict[int, list[ForkSafe]] = {}
"""The storages that wait for a fork, by the thread that forks."""


def _before_fork() -> None:
    held = _held.setdefault(threading.get_ident(), [])
    for storage in list(_fork_safe):
        if storage.lock.acquire(timeout=FORK_SECONDS):
            held.append(storage)
            storage.before_fork()


def _after_fork_in_parent() -> None:
    for storage in _held.pop(threading.get_ident(), ()):
        storage.lock.release()


def _after_fork_in_child() -> None:
    _held.clear()
    for storage in list(_fork_safe):
        storage.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class Marks(dict[str, tuple[int, float]]):
    """The ``#writers`` of one metric: the last sequence of each writer and when it was seen (Unix seconds)."""

    @classmethod
    def loads(cls, stored: str | None) -> Marks:
        """Parse the stored JSON; no marks where there is none."""
        return cls((writer, (int(sequence), float(seen))) for writer, (sequence, seen) in json.loads(stored or "{}").items())

    def dumps(self) -> str:
        """The marks as JSON."""
        return json.dumps(self, separators=(",", ":"))

    def applied(self, batch: Batch) -> bool:
        """Whether the batch was applied before."""
        return batch.writer in self and self[batch.writer][0] >= batch.sequence

    def renew(self, batch: Batch, now: float) -> list[str]:
        """Record the batch, forget who left or was not seen for long, and return those."""
        last = max(batch.sequence, self.get(batch.writer, (0, 0.0))[0])
        self[batch.writer] = (last, now)
        gone = [writer for writer, (_, seen) in self.items() if seen < now - FORGET_WRITER_SECONDS]
        if batch.leaving:
            gone.append(batch.writer)
        for writer in gone:
            del self[writer]
        return gone


def has_labels(field: str, wanted: Mapping[str, str]) -> bool:
    """Whether the labels at the end of a field name include these; a field that nobody of us wrote has none."""
    start = field.find("{")
    try:
        return start >= 0 and wanted.items() <= json.loads(field[start:]).items()
    except ValueError:
        return False
