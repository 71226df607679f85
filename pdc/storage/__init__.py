"""The contract between the buffer and a storage.

A storage keeps one mapping of fields to values per metric. It knows names, fields and numbers, never metric types.
Fields that start with ``#`` are bookkeeping and are never exported:

- ``#meta``: what the metric is (type, help, unit, labels, bounds), as JSON that only `pdc.family` understands;
- ``#mark:<writer>``: the last batch of the writer that was applied, and when it was last seen, by the storage's clock;
- ``#search``: when to search next for writers that are to be forgotten;
- ``#series``: how many series there are, without those that only living processes have, where a limit needs to know;
- ``#updated<labels>``: when the series was updated last, by the storage's clock, in a metric whose idle series go;
- ``#sweep``: when to look for idle ones next;
- ``#<fate>:<writer>:<labels>``: the value of one process, and when it was set. The fate says what becomes of it when its
  writer has left or is forgotten: ``live`` goes, ``all`` goes too, but not yet when its writer leaves, and ``sum``,
  ``min``, ``max`` and ``mostrecent`` are folded into ``#<fate>::<labels>``, one value for all the dead;
- ``#exemplar<suffix>:<labels>``: the exemplar of the field of that suffix and labels.

A series is the fields with the same labels, but for the ``le`` of ``_bucket`` and of its exemplars.

Among the names of metrics there is one more, the id of the storage: ``#id:`` and 28 hexadecimal digits.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, ValuesView
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..process.forks import FORKS
from ..process.interruption import release_own

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
META = "#meta"
MARK = "#mark:"
SEARCH = "#search"
SERIES = "#series"
UPDATED = "#updated"
SWEEP = "#sweep"
BUCKETS = ("_bucket:", "#exemplar_bucket:")
"""How fields begin whose labels are those of their series and ``le``."""
FOLDED = ("sum", "min", "max", "mostrecent")
"""The fates of values that are folded; those of ``live`` and ``all`` are dropped."""
SWEEPS = 4
"""How often idle series are looked for in the time that they stay."""

FORGET_WRITER_SECONDS = 3600.0
"""A writer not seen for so long is forgotten: its mark goes, and its live values with it."""
FORGET_VALUES_SECONDS = 86400.0
"""The same for a writer with values of another fate: one that only slept must not find its own among those of the dead."""
LEFT_SECONDS = 30.0
"""How long the mark of a writer that left stays: a duplicate of its last batch may still be on its way to the storage.

A metric is searched for writers to forget after twice that time, and otherwise every `FORGET_WRITER_SECONDS`.
"""

ID = "#id:"
"""How the id of a storage begins, among the names of its metrics."""

MOST_TOGETHER = 50_000
"""About how many fields of a metric are in one dict."""

FORK_SECONDS = 0.05
"""How long a fork waits for another thread that is sending, or that asks a server: that may take as long as it likes."""


class StorageError(Exception):
    """The storage could not be read or written; the message says which, why, and what helps."""


def foreign(name: object, error: Exception) -> StorageError:
    """What to raise for a metric that holds something which pdc did not write, and which no format can carry."""
    why = str(error) if isinstance(error, UnicodeError) else repr(error)
    return StorageError(
        f"metric {name!r} holds something that pdc did not write: {why}. Delete the field or the metric in the storage."
    )


MOST_ENTRIES = 250
"""The most entries of a batch. A process keeps the memory that its largest batch took."""
MOST_NUMBERS = 4000
"""About the most numbers of a batch, since a storage does nothing else meanwhile: 250 histograms of 15 buckets have as many."""


class Kind(str, Enum):
    """What an operation does to its field."""

    DELETE = "delete"
    """Remove every series whose labels include those of ``field`` (a JSON object)."""
    REMOVE = "remove"
    """Remove the series with exactly the labels of ``field`` (JSON as fields spell it)."""
    INIT = "init"
    """Create the field with the value where it does not exist."""
    SET = "set"
    """Replace the value, a number or a text."""
    ADD = "add"
    """Add the number, as IEEE doubles do."""
    STAMP = "stamp"
    """Replace the value by ``"<number> <time>"``; the time is the storage's clock when the number was set."""

    __hash__ = str.__hash__  # that of an enumeration takes a call of Python


REMOVALS = (Kind.DELETE, Kind.REMOVE)


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


class Limits(NamedTuple):
    """How many series a metric may have, and how many seconds one stays that is not updated; 0 where there is no limit.

    Operations on a new one that is over the limit are done to another series. Those of `Kind.STAMP` are not: each process has
    its own limit for values of its own, and the limit holds for those into which they are folded.
    """

    max_series: int = 0
    overflow: str = ""
    """The labels of that other series, as fields spell them."""
    expire_series: float = 0.0


def updated(labels: str) -> Operation:
    """Note that the series with these labels is updated, when that reaches the storage."""
    return Operation(Kind.STAMP, UPDATED + labels, Stamped(0.0, math.inf))


class Update(NamedTuple):
    """What a batch changes in one metric; with no operations it renews the metric and the writer's mark."""

    name: str
    meta: str
    operations: list[Operation]
    declare: bool = False
    """Replace the stored ``#meta`` even where there is one: true once per process and metric."""
    limits: Limits = Limits()

    def by_kind(self) -> Iterator[tuple[Kind, list[Operation]]]:
        """Yield the operations in the order in which they apply: removals, then inits, then the rest."""
        for kind in Kind:
            if chosen := [operation for operation in self.operations if operation.kind is kind]:
                yield kind, chosen

    def removals(self, kind: Kind) -> list[str]:
        """The labels of the series to remove, by all of their labels or by some."""
        return [operation.field for operation in self.operations if operation.kind is kind]


class Batch(NamedTuple):
    """Updates of any number of metrics, each of them at most once.

    Applying a batch twice is applying it once: ``sequence`` grows with every batch of a ``writer``, and a metric
    ignores a sequence that it has seen. The values of a writer that is ``leaving`` meet their fate, and its marks go once
    no duplicate of a batch can be on its way; it declares nothing.
    """

    writer: str
    sequence: int
    updates: list[Update]
    leaving: bool = False
    storage: str = ""
    """The id to give to a storage that has none; a new one where this is empty."""


class Outcome(NamedTuple):
    """What a storage says of a batch that it applied."""

    unknown: set[str]
    """Metrics that held nothing of this writer before: new to it, expired, evicted or deleted."""
    replaced: dict[str, str]
    """The ``#meta`` of metrics that somebody had declared otherwise before this batch did."""
    refused: dict[str, str]
    """Metrics that can never be applied, with the reason; the others were."""
    overflowed: dict[str, int]
    """Metrics with new series over their limit, and how many."""
    storage: str = ""
    """The id of the storage, where the batch came across it."""
    note: str = ""
    """A thing that whoever runs the program should hear once."""

    def joined(self, later: Outcome) -> Outcome:
        """This and the outcome of the rest of the batch."""
        unknown, note = self.unknown | later.unknown, self.note or later.note
        replaced, refused = self.replaced | later.replaced, self.refused | later.refused
        return Outcome(unknown, replaced, refused, self.overflowed | later.overflowed, self.storage or later.storage, note)


class Parts(Mapping[str, Any]):
    """The fields of a large metric in several dicts: other threads wait while Python enlarges a dict, or frees it."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self._parts = parts

    def __del__(self) -> None:
        while self._parts:
            self._parts.pop()

    def __getitem__(self, field: str) -> Any:
        for part in self._parts:
            if field in part:
                return part[field]
        raise KeyError(field)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def values(self) -> ValuesView[Any]:
        return _PartsValues(self)


class _PartsValues(ValuesView[Any]):
    _mapping: Parts

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(part.values() for part in self._mapping._parts)


class Snapshot(NamedTuple):
    """The fields of some metrics, and the storage's clock when they were read."""

    now: float
    metrics: dict[str, Mapping[str, Any]]


class Storage(Protocol):
    """Where metrics live. Methods may be called from any thread and, after a fork, from the child."""

    @property
    def identity(self) -> str | None:
        """How processes that use this storage name it, without secrets; None where no other one can.

        Another storage may have the same name for other processes, as in another container.
        """

    def places(self) -> Sequence[str]:
        """What also has to be the same in two processes for the name to mean one storage; one of them is enough.

        The first is the closest. It counts where the storage has no id, or where it was not reached to ask for that.
        """

    def id(self) -> str:
        """The id that the first write gave to the storage; empty where it holds nothing. Never writes. Raises StorageError."""

    def apply(self, batch: Batch) -> Outcome:
        """Apply the batch; each metric changes at once or not at all, but for series that are removed.

        Those go before all else in the batch, each at once, in pieces of bounded work: others have their turns in between. A
        removal that was cut short is done again with its batch, and takes along what others have added since; one whose
        batch was applied is not done again.

        Series that were not updated for longer than the limits of their metric say are removed now and then, each at once, by
        the clock of the storage.

        Raises StorageError where that is unknown or failed for any metric: send the very same batch again.
        """

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Read those metrics, or all; each series as it was at one moment, and each number at least as late as the call.

        A metric that is not large is as it was at one moment, too. Never writes. Raises StorageError.
        """

    def delete(self) -> None:
        """Delete all metrics. Raises StorageError."""

    def hurry(self, until: float) -> None:
        """Let no call last beyond that time of `time.monotonic`, as far as that can be; from then on, break off what waits."""

    def close(self) -> None:
        """Let go of connections that the storage opened; the next call opens new ones."""


class ForkSafe:
    """Base of a storage whose driver must not be in the middle of a call, in another thread, when the process forks.

    A child would inherit the locks of the driver as they were, and nobody in it could release them. So a fork waits for
    `lock`, which the storage holds while it uses the driver; for `fork_seconds` at most.
    """

    fork_seconds = FORK_SECONDS

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.until = math.inf
        """When calls have to end, by `time.monotonic`."""
        _fork_safe.add(self)

    def hurry(self, until: float) -> None:
        """Let no call last beyond that time."""
        self.until = until

    def before_fork(self) -> None:
        """Let go of what a child must not inherit; called with the lock held."""

    def inherit(self, *, idle: bool) -> None:
        """Do in a child what `before_fork` would have done, had it been called; `idle` unless a thread was using the driver."""


_fork_safe: weakref.WeakSet[ForkSafe] = weakref.WeakSet()


def _before_fork() -> None:
    for storage in list(_fork_safe):
        if storage.lock.acquire(timeout=storage.fork_seconds):
            storage.before_fork()


def _after_fork_in_parent() -> None:
    for storage in list(_fork_safe):
        release_own(storage.lock)


def _after_fork_in_child() -> None:
    for storage in list(_fork_safe):
        idle = storage.lock.acquire(blocking=False)  # by this thread, which forked, or by nobody
        storage.lock = threading.RLock()
        storage.until = math.inf
        storage.inherit(idle=idle)


FORKS.register(_before_fork, _after_fork_in_parent, _after_fork_in_child)


class Mark(NamedTuple):
    """What a metric keeps of a writer."""

    sequence: int
    """Of the last batch that was applied."""
    seen: float
    """Unix seconds."""
    fate: str = ""
    """That of the values that it has here; empty where it has none."""

    @classmethod
    def loads(cls, stored: object) -> Mark:
        """Parse a stored mark; what nobody of us wrote is that of a writer which was never seen."""
        try:
            sequence, seen, *fate = str(stored).split(" ")
            return cls(int(sequence), float(seen), *fate)
        except (TypeError, ValueError):
            return cls(-1, 0.0)

    def dumps(self) -> str:
        """The mark as it is stored."""
        return " ".join(map(str, self)).rstrip()

    def forgotten(self, now: float) -> bool:
        """Whether the writer was not seen for so long that it does not count any more."""
        return self.seen < now - (FORGET_WRITER_SECONDS if self.fate in ("", "live") else FORGET_VALUES_SECONDS)


_HIDDEN = (
    (re.compile(r"(\b[A-Za-z]{2,}:/+)[^\s'\"]+"), r"\1***"),  # a URL
    (re.compile(r"((?:pass|secret|token|credential)\w*['\"]?\s*[=:]\s*)[^\s,;&)}\]]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(with args beginning with).*", re.DOTALL), r"\1 ***"),  # where a server knows no AUTH or HELLO
)


def is_url(text: str) -> bool:
    """Whether the text is a URL, perhaps a misspelt one, and no path."""
    return re.match(r"[A-Za-z]{2,}:/", text) is not None


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without what may be a password, as drivers quote them, and without these."""
    for secret in secrets:
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    for pattern, shown in _HIDDEN:
        text = pattern.sub(shown, text)
    return text


def new_id() -> str:
    """An id for a storage that has none."""
    return ID + os.urandom(14).hex()


class Selectors:
    """Labels of which a series must have all of one set, found without looking at each: there may be thousands."""

    def __init__(self, wanted: Iterable[Mapping[str, Any]] = ()) -> None:
        self._values: defaultdict[tuple[str, ...], set[tuple[Any, ...]]] = defaultdict(set)
        for labels in wanted:
            self.add(labels)

    def add(self, wanted: Mapping[str, Any]) -> None:
        """Look for these too."""
        names = tuple(sorted(wanted))
        self._values[names].add(tuple(wanted[name] for name in names))

    def match(self, labels: Mapping[str, Any]) -> bool:
        """Whether a series with these labels is looked for."""
        return any(tuple(labels.get(name) for name in names) in values for names, values in self._values.items())

    def match_text(self, labels: str) -> bool:
        """The same for labels as JSON; what nobody of us wrote is not looked for."""
        try:
            return self.match(json.loads(labels))
        except (ValueError, AttributeError, TypeError):
            return False

    def dumps(self) -> str:
        """As JSON: the names of each set of labels with the values of those that have these names, as fields spell them."""
        spell = _ENCODER.encode
        return spell(
            [[[*map(spell, names)], [",".join(map(spell, each)) for each in found]] for names, found in self._values.items()]
        )


_BEFORE_LE = re.compile(r'\{(?:"(?:[ !#-k][^"]*|l(?:[ !#-d][^"]*)?|)":"[^"]*",?)*')
"""The labels whose names come before ``le``, where nothing is escaped."""
_LE = re.compile(r"""(?<=[{,])"le":"(?:[^"\\]|\\.)*"(?:,|(?=\}))|,"le":"(?:[^"\\]|\\.)*"(?=\})""")
"""The label ``le`` and the comma that goes with it."""


def around_bound(labels: str) -> tuple[str, str]:
    """The parts of a series' labels, as fields spell them, between which those of a bucket have their ``le``."""
    found = None if "\\" in labels else _BEFORE_LE.match(labels)
    if found is None:
        before, _, after = _ENCODER.encode({**json.loads(labels), "le": ""}).partition('"le":""')
        return f'{before}"le":"', f'"{after}'
    before = found.group()
    after = labels[len(before) :]
    if after != "}":
        return f'{before}"le":"', f'",{after}'
    return f'{before}{"" if before == "{" else ","}"le":"', '"}'


def series_of(field: str) -> str | None:
    """The labels of the series that the field belongs to, as fields spell them; nothing for what nobody of us wrote."""
    start = field.find("{")
    if start < 0 or not field.endswith("}"):
        return None
    return _LE.sub("", field[start:], 1) if field.startswith(BUCKETS) else field[start:]
