"""The keys of one prefix: a hash for each metric, and the index that lists their names."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from .. import ID, Batch, StorageError, new_id
from ..version2 import DEFAULT_PREFIX, VERSION2
from .commands import Command, Script, text_of
from .server import Server

BESIDE = "#"
"""The prefix of our keys beside those of version 2, where no other prefix keeps them apart; version 2 cannot spell it."""
MOST_PAGES = 200
"""How many thousand keys are searched for keys of version 2, once, before the first key of a program without a prefix."""


class Keys:
    """The keys of a storage.

    The metric ``requests`` of the prefix ``myapp`` is the hash ``prometheus_myapp_requests``. The sorted set
    ``prometheus#myapp``, a name that no metric can spell, lists the names, each with a time in milliseconds by which its hash
    has expired. Its first member, with ``-inf``, is the id of the storage.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._given = prefix
        self._use(prefix)
        self._settled = self._is_given
        """True once it is known which prefix the keys have."""

    @property
    def _is_given(self) -> bool:
        """True if the keys have the given prefix, since no keys of version 2 can be in the way."""
        return self._server.is_cluster or self.has_given_prefix

    @property
    def has_given_prefix(self) -> bool:
        """True if the program has a prefix."""
        return bool(self._given)

    def _use(self, prefix: str) -> None:
        """Use this prefix for keys."""
        self.prefix, self.index = prefix, f"prometheus#{prefix}"
        self.start = f"prometheus_{prefix}_" if prefix else "prometheus_"

    @property
    def version2_start(self) -> str:
        """How the keys of version 2 begin; empty in a cluster, which version 2 could not use."""
        return "" if self._server.is_cluster else f"{self._given or DEFAULT_PREFIX}_"

    def find(self) -> bool:
        """Find out where the metrics are; return whether there are any yet.

        A program without a prefix has them under keys of version 2's default, or beside these where version 2 has used them.
        """
        if not self._settled:
            indexes = self._server.run([_first(f"prometheus#{prefix}") for prefix in (BESIDE, "")])
            found = [prefix for prefix, index in zip((BESIDE, ""), indexes, strict=True) if index]
            if found:
                self._use(found[0])
                self._settled = True
        return self._settled

    def settle(self, batch: Batch, expire: int) -> None:
        """Decide where metrics are, where nobody has. The index lasts so many milliseconds; for ever with 0."""
        is_beside = self.prefix == BESIDE or self._has_version2(batch)
        arguments = str(int(is_beside)), batch.storage or new_id(), str(expire)
        (beside,) = self._server.run([Script("settle", ["prometheus#", f"prometheus#{BESIDE}"], arguments)])
        self._use(BESIDE if beside else "")
        self._settled = True

    def _has_version2(self, batch: Batch) -> bool:
        """True if version 2 has keys. Keys with the names of metrics in the batch are looked at first."""
        own = tuple(f"{DEFAULT_PREFIX}_{update.name}" for update in batch.updates)
        cursor, found = self._look("0", *own)
        for _ in range(0 if found else MOST_PAGES):
            cursor, found = self._look(cursor)
            if found or cursor == "0":
                break
        return found

    def _look(self, cursor: str, *keys: str) -> tuple[str, bool]:
        """Look at these keys, or at the next ones; return the next cursor, and whether a key is of version 2."""
        ((following, found),) = self._server.run([Script("look", [], (cursor, *keys))])
        return text_of(following), bool(found)

    def unsettle(self) -> None:
        """Find out again where the metrics are: the index is gone, and the keys of version 2 may be gone, too."""
        self._settled = self._is_given

    def of(self, name: str) -> str:
        """The key of a metric."""
        return self.start + name

    def id(self) -> str:
        """The id of the storage; empty where it has none."""
        self.find()
        return next((name for name in self._listed(_first(self.index)) if name.startswith(ID)), "")

    def members(self) -> list[str]:
        """All members of the index."""
        return self._listed(Command("ZRANGE", (self.index, "0", "-1")))

    def names(self) -> list[str]:
        """The names of the metrics."""
        return [name for name in self.members() if not name.startswith((ID, VERSION2))]

    def expiries(self) -> dict[str, float]:
        """By metric, the time in Unix seconds by which its hash has expired; infinite for one that never does."""
        self.find()
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
            return f"the key {key!r} holds something that is not a metric: delete it, or choose another redis_prefix"
        return f"the key {key!r} belongs to the redis_prefix {owner!r}, not {self._given!r}: choose another one"


def _first(index: str) -> Command:
    """Reads the first member of an index."""
    return Command("ZRANGE", (index, "0", "0"))
