"""The metrics of version 2 in Redis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from ..storage import StorageError
from ..storage.redis import RedisStorage
from ..storage.redis.commands import Command, text_of
from ..storage.version2 import VERSION2

SCAN_COUNT = 1000
OF_VERSION3 = "#"
"""Fields that begin so are of version 3."""


def metrics(storage: RedisStorage) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The names and fields of version 2's metrics. Raises StorageError where this user may not look for them."""
    start = storage.keys.version2_start
    pattern = re.sub(r"([\\*?\[\]^-])", r"\\\1", start) + "*"
    cursor = None
    while start and cursor != "0":
        arguments = cursor or "0", "MATCH", pattern, "COUNT", str(SCAN_COUNT)
        ((following, keys),) = storage.server.run([Command("SCAN", arguments, has_key=False)])
        cursor = text_of(following)
        for key in map(text_of, keys):
            if fields := _fields(storage, key, key.removeprefix(start)):
                yield key.removeprefix(start), fields


def _fields(storage: RedisStorage, key: str, name: str) -> Mapping[str, Any]:
    """The fields of a key of version 2; nothing for a key of others."""
    (reply,) = storage.server.run([Command("HGETALL", (key,))])
    if isinstance(reply, ResponseError):
        return {}
    try:
        fields = storage.reader.fields(name, reply)
    except StorageError:  # no text
        return {}
    return {} if any(field.startswith(OF_VERSION3) for field in fields) else fields


def noted(storage: RedisStorage) -> set[str]:
    """The metrics that are not to be taken over again."""
    start = f"{VERSION2}:"
    return {member.removeprefix(start) for member in storage.keys.members() if member.startswith(start)}
