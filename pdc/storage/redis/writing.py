"""Applies batches: one call of a script for their updates, and calls for the work that it asks for."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from redis.exceptions import ResponseError

from ...process.interruption import let_through
from .. import (
    FINAL_MARK_SECONDS,
    FORGET_WRITER_SECONDS,
    INIT,
    REMOVALS,
    SWEEPS,
    USUAL,
    Batch,
    Kind,
    Outcome,
    Stamped,
    StorageError,
    Update,
    Value,
    new_id,
)
from ..labels import around_bound, series_of
from ..version2 import VERSION2, report, taken_over
from .changing import Changes
from .commands import Command, Request, Script, number_text, text_of
from .forgetting import coarsen, fold_final, forget
from .keys import Keys
from .reading import Reader
from .removing import Removal
from .server import Server

MOST_RELIST_SECONDS = 60.0
"""How long a batch asks only for the index itself, not for its metrics in it."""
MOST_OPERATIONS = 1000
"""How many operations one call applies, about: other clients of the server have their turns in between."""

MOST_TEXTS = 2000
"""How many fields and values one call adds to a hash that is made for a metric."""
MADE_MILLISECONDS = "60000"
"""How long such a hash stays where the process that makes it is killed."""

_BEGIN = "begin"
"""The kind of an operation that creates a field with a text."""
_IN_ORDER = (_BEGIN, Kind.INIT, Kind.ADD, Kind.SET, Kind.STAMP)
"""The kinds of operations in the order of `apply.lua`."""

_OWN: set[str] = set()
"""Metrics that this process, several threads of it perhaps, sends to servers without a prefix."""


class Writer:
    """Applies batches to the metrics at these keys; hashes expire after so many seconds without a batch, or never."""

    def __init__(self, server: Server, keys: Keys, reader: Reader, expire: float | None) -> None:
        self._server = server
        self._keys = keys
        self._reader = reader
        self._removal = Removal(keys)
        self._expire = 0 if expire is None else max(int(expire * 1000), 1)
        self._changes = Changes(server, keys, self._expire)
        self._relist_seconds = min(MOST_RELIST_SECONDS, (expire or math.inf) / 10)
        self._listed: dict[str, float] = {}
        """By metric, the time of `time.monotonic` until which the index lists it for as long as its hash lasts."""
        self._noted = False
        """True once it is known if other programs use Redis without a prefix, too."""

    def apply(self, batch: Batch) -> Outcome:
        """Apply the batch."""
        if len(batch.updates) == 1:
            now = time.monotonic()
            if self._listed.get(batch.updates[0].name, 0.0) > now and self._changes.apply(batch, now):
                return USUAL
        self._changes.renew_all()
        self._removal.remove(batch)
        outcome, replies = self._send(batch)
        left = []
        for update, reply in zip(batch.updates, replies, strict=True):
            if not isinstance(reply, ResponseError):
                self._record(batch, update, reply, outcome)
            elif str(reply).startswith("PDCVERSION2"):
                self.take_over(update)
                left.append(update)
            else:
                outcome.refused[update.name] = self._keys.reason(update.name, reply)
        for name in outcome.unknown:
            self._listed.pop(name, None)
        return outcome.joined(self.apply(batch._replace(updates=left))) if left else outcome

    def remove(self, batch: Batch) -> None:
        """Do the removals of the batch."""
        self._removal.remove(batch)

    def forget_listed(self) -> None:
        """List metrics again with the next batch."""
        self._listed.clear()

    def _send(self, batch: Batch) -> tuple[Outcome, Iterator[Any]]:
        """Send the batch; return the answer of the index, and the reply for each update."""
        now = time.monotonic()
        due = [update.name for update in batch.updates if self._listed.get(update.name, 0.0) <= now]
        if not self._keys.prefix:
            _OWN.update(due)
        looks = bool(batch.updates) and not due and not self._server.is_cluster
        requests: list[Request] = [] if looks else [self._listing(batch, due)]
        requests += [self._call(batch, updates, looks=looks and not at) for at, updates in enumerate(self._groups(batch))]
        replies = self._server.run(requests)
        listed = replies[0][0] if looks else replies.pop(0)
        if isinstance(listed, ResponseError):
            raise self._server.failure(listed)
        found, missing = listed if due else ("", [] if listed else [update.name for update in batch.updates])
        unlisted = set(map(text_of, missing))
        if unlisted:
            self._listed.clear()
        else:
            self._listed.update(dict.fromkeys(due, now + self._relist_seconds))
        return Outcome(unlisted, {}, {}, {}, text_of(found), self._note(batch, unlisted)), chain.from_iterable(
            each[1:] for each in replies
        )

    def _listing(self, batch: Batch, due: list[str]) -> Request:
        """Lists these metrics in the index, or asks whether the index exists."""
        if not due:
            return Command("EXISTS", (self._keys.index,))
        return Script("list", [self._keys.index], (str(self._expire), batch.storage or new_id(), *due))

    def _groups(self, batch: Batch) -> Iterator[list[Update]]:
        """The updates of each call: in a cluster a call has one key, and elsewhere other clients have their turns."""
        group: list[Update] = []
        size = 0
        for update in batch.updates:
            if group and (self._server.is_cluster or size + len(update.operations) > MOST_OPERATIONS):
                yield group
                group, size = [], 0
            group.append(update)
            size += len(update.operations)
        if group:
            yield group

    def _call(self, batch: Batch, updates: list[Update], *, looks: bool) -> Script:
        """Applies these updates; `looks` whether the index exists, which has another key and so needs a call in a cluster."""
        now, keys = time.monotonic(), self._keys
        arguments: list[str | bytes] = [
            keys.prefix,
            str(self._expire),
            batch.writer,
            str(batch.sequence),
            str(int(batch.final)),
        ]
        arguments += map(str, (FORGET_WRITER_SECONDS, FINAL_MARK_SECONDS, SWEEPS))
        arguments += (keys.start, keys.version2_start, keys.index, str(int(looks)))
        for update in updates:
            arguments += _arguments(update, now)
        return Script("apply", [keys.of(update.name) for update in updates], tuple(arguments))

    def _record(self, batch: Batch, update: Update, reply: list[Any], outcome: Outcome) -> None:
        """Record the reply of the script for a metric, and do the work that it asks for."""
        name = update.name
        found, folds, searches, overflowed, uncounted, sweeps = reply
        if not found:
            outcome.unknown.add(name)
        elif found != 1:
            outcome.replaced[name] = text_of(found)
        if overflowed:
            outcome.overflowed[name] = overflowed
        self._changes.note(batch, update, overflowed=bool(overflowed))
        if uncounted:
            self._count_series(batch, name)
        if sweeps:
            self._removal.sweep(batch, name, update.limits.expire_series)
        if folds:
            fold_final(self._keys, batch, update)
        if searches:
            coarsen(self._keys, self._reader, batch, update)  # first, as `forget` may list the beginnings of fields
            forget(self._keys, batch, update)

    def _count_series(self, batch: Batch, name: str) -> None:
        """Count the series of a metric that had no limit before, without series that only living processes have."""
        fields = [field for field in self._reader.look_through(name) if not field.startswith("#") or "::{" in field]
        self._keys.call("counted", batch, name, len(set(map(series_of, fields))))

    def take_over(self, update: Update) -> None:
        """Begin the metric with the data of version 2; or note, and log, that this cannot be."""
        source = self._keys.version2_start + update.name
        (stored,) = self._server.run([Command("HGETALL", (source,))])
        try:
            fields = taken_over(self._reader.fields(update.name, stored), update.meta)
        except (ValueError, StorageError) as error:
            let_through(error)
            report(update.name, f"the key {source!r}", str(error))
            self._server.run([Command("ZADD", (self._keys.index, "-inf", f"{VERSION2}:{update.name}"))])
        else:
            texts = [text for field, number in fields.items() for text in (field, number_text(number))]
            own = ("#prefix", self._keys.prefix, "#meta", update.meta, "#version2", source)
            self._begin(update.name, [*own, *texts])

    def _begin(self, name: str, texts: list[str]) -> None:
        """Make a hash of these fields and values, in pieces, and begin the metric with it, unless another process has."""
        key = self._keys.of(name)
        made = f"{key}#{os.urandom(8).hex()}"
        for first in range(0, len(texts), MOST_TEXTS):
            piece = Command("HSET", (made, *texts[first : first + MOST_TEXTS]))
            self._server.run([piece, Command("PEXPIRE", (made, MADE_MILLISECONDS))])
        self._server.run([Script("take_over", [key, made], (str(self._expire),))])

    def _note(self, batch: Batch, unlisted: set[str]) -> str:
        """A warning for a program without a prefix whose metrics are new beside others: equal names add up."""
        names = {update.name for update in batch.updates if not update.name.startswith("pdc_")}  # which every program has
        if self._keys.prefix or self._noted or batch.final or not names:
            return ""
        self._noted = True
        if not names <= unlisted or all(name in _OWN or name.startswith("pdc_") for name in self._keys.names()):
            return ""
        return (
            f"{self._server} has metrics without redis_prefix: where other programs use it without one, too, metrics of the "
            "same name add up; give each program a redis_prefix of its own"
        )


def _arguments(update: Update, now: float) -> list[str | bytes]:
    """An update as `apply.lua` takes it: numbers are packed, since many arguments take long."""
    found: dict[str, tuple[list[str], list[Any]]] = {kind: ([], []) for kind in (*_IN_ORDER, *REMOVALS)}
    for kind, field, value in update.operations:
        fields, values = found[_BEGIN if kind is INIT and isinstance(value, str) else kind]
        fields.append(field)
        values.append(value)
    most, overflow, idle, _ = update.limits
    fields = [field for kind in _IN_ORDER for field in found[kind][0]]
    counts = [len(found[kind][0]) for kind in _IN_ORDER]
    numbers = (update.declare, most, idle, update.created, len(set(fields)) < len(fields), *counts)
    numbers += (*found[Kind.INIT][1], *found[Kind.ADD][1])
    others = (overflow, *around_bound(overflow)) if most else ()
    texts = [_text(value, now) for kind in (_BEGIN, Kind.SET, Kind.STAMP) for value in found[kind][1]]
    return [struct.pack(f"<{len(numbers)}d", *numbers), update.meta, *others, *fields, *texts]


def _text(value: Value | Stamped, now: float) -> str:
    if isinstance(value, Stamped):
        age = value.age(now)
        return f"{number_text(value.number)} {'never' if age is None else repr(age)}"
    return value if isinstance(value, str) else number_text(value)
