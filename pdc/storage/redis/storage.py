"""The storage in Redis."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

import redis

from .. import ID, Batch, Outcome, Snapshot
from ..version2 import VERSION2
from .commands import Command, Request, Script
from .keys import Keys
from .reading import Reader
from .server import Server
from .writing import Writer


class RedisStorage:
    """Metrics under one prefix of a Redis database.

    A write of a metric lets its hash expire after ``expire`` seconds from then (None: never); writers may differ in that.
    Batches of one update renew it once a second.
    """

    def __init__(self, client: Any, prefix: str = "", expire: float | None = 3600) -> None:
        if not isinstance(client, (str, redis.Redis, redis.RedisCluster)):
            kind = f"{type(client).__module__}.{type(client).__qualname__}"
            raise TypeError(f"setup(redis=...) takes a redis.Redis, a redis.RedisCluster or a URL, got a {kind}")
        self.redis_prefix = prefix
        """Part of every key."""
        self.server = Server(client)
        self.keys = Keys(self.server, prefix)
        self.reader = Reader(self.server, self.keys)
        self.writer = Writer(self.server, self.keys, self.reader, expire)

    def __str__(self) -> str:
        return str(self.server)

    @property
    def client(self) -> Any:
        """The client that was given, or one for the URL."""
        return self.server.client

    @property
    def identity(self) -> str:
        return f"{self.server.identity} {self.redis_prefix}"

    def places(self) -> list[str]:
        return [socket.gethostname()]

    def id(self) -> str:
        return self.keys.id()

    def apply(self, batch: Batch) -> Outcome:
        return self.writer.apply(batch)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        return self.reader.read(names)

    def remove(self, batch: Batch) -> None:
        self.writer.remove(batch)

    def delete(self, names: Collection[str] | None = None) -> None:
        keys = self.keys
        found = [member for member in keys.members() if not member.startswith(VERSION2)]
        members = [member for member in found if names is None or member in names]
        self.writer.forget_listed()
        chosen = [member for member in members if not member.startswith(ID)]
        requests: list[Request] = [Script("delete", [keys.of(name)], (keys.prefix, keys.index, name)) for name in chosen]
        if members:
            requests.append(Command("ZREM", (keys.index, *members)))
        self.server.run(requests)

    def set_deadline(self, deadline: float) -> None:
        self.server.set_deadline(deadline)

    def close(self) -> None:
        self.server.close()
