"""The keys of one prefix: a hash for each metric, and the index that lists their names."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from .. import ID, Batch, StorageError
from ..version2 import DEFAULT_PREFIX, VERSION2
from .commands import Command, Script, text_of
from .server import Server

NO_PREFIX = "#"
"""Stands in keys for a prefix that was not given: without it, they would be those of version 2's default prefix."""


class Keys:
    """The keys of a storage.

    The metric ``requests`` of the prefix ``myapp`` is the hash ``prometheus_myapp_requests``, and without a prefix
    ``prometheus_#_requests``, which version 2 cannot spell. The sorted set ``prometheus#myapp``, a name that no metric can
    spell, lists the names, each with a time in milliseconds by which its hash has expired. Its first member, with ``-inf``,
    is the id of the storage.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self.prefix = prefix
        self.index = f"prometheus#{prefix}"
        self.start = f"prometheus_{prefix or NO_PREFIX}_"

    @property
    def version2_start(self) -> str:
        """How the keys of version 2 begin; empty in a cluster, which version 2 could not use."""
        return "" if self._server.is_cluster else f"{self.prefix or DEFAULT_PREFIX}_"

    def of(self, name: str) -> str:
        """The key of a metric."""
        return self.start + name

    def id(self) -> str:
        """The id of the storage; empty where it has none."""
        return next((name for name in self._listed(Command("ZRANGE", (self.index, "0", "0"))) if name.startswith(ID)), "")

    def members(self) -> list[str]:
        """All members of the index."""
        return self._listed(Command("ZRANGE", (self.index, "0", "-1")))

    def names(self) -> list[str]:
        """The names of the metrics."""
        return [name for name in self.members() if not name.startswith((ID, VERSION2))]

    def expiries(self) -> dict[str, float]:
        """By metric, the time in Unix seconds by which its hash has expired; infinite for one that never does."""
        (reply,) = self._server.run([Command("ZRANGE", (self.index, "0", "-1", "WITHSCORES"))])
        if isinstance(reply, ResponseError):
            raise self._server.failure(reply)
        if reply and isinstance(reply[0], list):  # RESP3 has pairs
            reply = [each for pair in reply for each in pair]
        members, times = map(text_of, reply[::2]), map(text_of, reply[1::2])
        return {name: float(time) / 1000 for name, time in zip(members, times, strict=True) if name[0] != "#"}

    def _listed(self, command: Command) -> list[str]:
        (members,) = self._server.run([command])
        if isinstance(members, ResponseError):
            raise self._server.failure(members)
        return list(map(text_of, members))

    def call(self, script: str, batch: Batch, name: str, *arguments: Any) -> Any:
        """Call a script with the key of one metric, the prefix, the writer and sequence of the batch, and these arguments."""
        texts = tuple(map(str, (self.prefix, batch.writer, batch.sequence, *arguments)))
        (reply,) = self._server.run([Script(script, [self.of(name)], texts)])
        return reply

    def expect_metric(self, name: str, reply: Any) -> None:
        """Raise StorageError where the key of a metric holds something else: the scrape would lack that metric."""
        if isinstance(reply, ResponseError):
            raise StorageError(f"metric {name!r} cannot be read: {self.reason(name, reply)}") from reply

    def reason(self, name: str, refusal: ResponseError) -> str:
        """Why a metric cannot be at its key, and the remedy."""
        key = self.of(name)
        if str(refusal).startswith("PDCFOREIGN"):
            return (
                f"the key {key!r} holds data of version 2 of this library, or of another program: "
                "give setup() a redis_prefix of its own, or delete the key"
            )
        owner = str(refusal).removeprefix("PDCPREFIX").strip()
        if owner == str(refusal):
            return f"the key {key!r} holds something that is not a metric: delete the key, or choose another redis_prefix"
        return f"the key {key!r} belongs to the redis_prefix {owner!r}, not {self.prefix!r}: choose another one"
