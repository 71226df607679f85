"""Applies a batch of one update by a short script, where its metric has all fields of it: most batches of write-through."""

from __future__ import annotations

from .. import FORGET_WRITER_SECONDS, SERIES, Batch, Kind, Stamped, Update
from .commands import number_text
from .keys import Keys
from .server import Server

MOST_CHANGES = 100
"""The most operations that the short script applies."""
MOST_KNOWN = 10_000
"""The most fields that are remembered."""
CHANGES = (Kind.INIT, Kind.SET, Kind.ADD)
"""The kinds of these operations."""
_SEARCH_SECONDS = str(FORGET_WRITER_SECONDS)


class Changes:
    """Makes calls of the short script for fields that their metrics had a while ago.

    Where one of them is gone, the script does nothing, which costs a round trip.
    """

    def __init__(self, server: Server, keys: Keys, expire: int) -> None:
        self._server = server
        self._keys = keys
        self._expire = str(expire)
        self._known: set[int] = set()
        """The hashes of names and fields."""

    def apply(self, batch: Batch) -> bool:
        """Apply the batch, which has one update; return False where that takes apply.lua."""
        name, _, operations, declare, (most, _, idle, _), _ = batch.updates[0]
        if batch.final or declare or idle or len(operations) > MOST_CHANGES or self._server.is_cluster:
            return False  # a call of a cluster cannot ask for the index, too
        keys, known = self._keys, self._known
        arguments = [keys.prefix, batch.writer, str(batch.sequence), self._expire, keys.index, _SEARCH_SECONDS]
        if most:
            arguments += (Kind.INIT, SERIES, "")
        fields = len(arguments) + 1
        for kind, field, value in operations:
            if hash((name, field)) not in known or isinstance(value, Stamped):
                return False
            arguments += (kind, field, "" if kind is Kind.INIT else value if isinstance(value, str) else number_text(value))
        if len(set(arguments[fields::3])) < len(operations):
            return False
        return bool(self._server.call("change", keys.start + name, arguments) == 1)

    def note(self, batch: Batch, update: Update, *, overflowed: bool) -> None:
        """Note what an update did that apply.lua applied: its fields exist, unless they are those of series over a limit.

        Fields of batches of several updates are not remembered: they come from a process that buffers.
        """
        if overflowed or len(self._known) > MOST_KNOWN:
            self._known.clear()
        if not overflowed and len(batch.updates) == 1:
            self._known.update(hash((update.name, field)) for kind, field, _ in update.operations if kind in CHANGES)
