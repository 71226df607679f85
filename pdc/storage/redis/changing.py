"""Applies a batch of one update by a short script, where its metric has all fields of it: most batches of write-through."""

from __future__ import annotations

import math

from .. import ADD, FORGET_WRITER_SECONDS, MARK, SERIES, SET, Batch, Kind, Stamped, Update
from .commands import CHANGE, number_text
from .keys import Keys
from .server import Server

MOST_RENEW_SECONDS = 1.0
MOST_OF_EXPIRE = 0.01
"""How long a metric is not renewed, also in parts of the time after which it expires: it may expire earlier by so much."""
MOST_CHANGES = 100
"""The most operations that the short script applies."""
MOST_KNOWN = 10_000
"""The most fields that are remembered."""
CHANGES = (Kind.INIT, Kind.SET, Kind.ADD)
"""The kinds of these operations."""
_SEARCH_SECONDS = str(FORGET_WRITER_SECONDS)


class Changes:
    """Makes calls of the short script for fields that their metrics had a while ago.

    Where one of them is gone, the script does nothing, which costs a round trip. The first call of each second, and
    one without operations, renew the metric: its expiry, and the time in the mark of the writer. They also look for the index.
    """

    def __init__(self, server: Server, keys: Keys, expire: int) -> None:
        self._server = server
        self._keys = keys
        self._expire = str(expire)
        self._renew_seconds = min(MOST_RENEW_SECONDS, (expire or math.inf) / 1000 * MOST_OF_EXPIRE)
        self._renewed: dict[tuple[str, str], float] = {}
        """By writer and metric, the time of `time.monotonic` until which no renewal is due."""
        self._known: set[int] = set()
        """The hashes of names and fields."""

    def apply(self, batch: Batch, now: float) -> bool:
        """Apply the batch, which has one update; return False where that takes apply.lua."""
        name, _, operations, declare, (most, _, idle, _), _ = batch.updates[0]
        if batch.final or declare or idle or len(operations) > MOST_CHANGES or self._server.is_cluster:
            return False  # a call of a cluster cannot ask for the index, too
        known, keys = self._known, [self._keys.start + name]
        fields, changes = ([SERIES], [""]) if most else ([], [])
        for kind, field, value in operations:
            if hash((name, field)) not in known or isinstance(value, Stamped):
                return False
            text = value if isinstance(value, str) else number_text(value)
            fields.append(field)
            changes.append(text if kind is ADD else f"={text}" if kind is SET else "")
        if len(fields) > 1 and len(set(fields)) < len(fields):
            return False
        arguments = [self._keys.prefix, str(batch.sequence), MARK + batch.writer, *fields, *changes]
        is_due = not operations or self._renewed.get((batch.writer, name), 0.0) <= now
        if is_due:
            keys.append(self._keys.index)
            arguments += (self._expire, _SEARCH_SECONDS)
        if self._server.call(CHANGE, keys, arguments) != 1:
            return False
        if is_due:
            self._renewed[batch.writer, name] = now + self._renew_seconds
        return True

    def renew_all(self) -> None:
        """Renew all metrics with their next calls: the mark of a writer that deregisters has an old time."""
        self._renewed.clear()

    def note(self, batch: Batch, update: Update, *, overflowed: bool) -> None:
        """Note what an update did that apply.lua applied: its fields exist, unless they are those of series over a limit.

        Fields of batches of several updates, or many operations, are not remembered: they come from a process that buffers.
        """
        if overflowed or len(self._known) > MOST_KNOWN:
            self._known.clear()
        if not overflowed and len(batch.updates) == 1 and len(update.operations) <= MOST_CHANGES:
            self._known.update(hash((update.name, field)) for kind, field, _ in update.operations if kind in CHANGES)
