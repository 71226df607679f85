"""The least work of an update that is written at once: one call of the driver."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from itertools import count

from benchmarks.worker import Operation

from .distance import move_redis_away

SCRIPT = "return redis.call('HINCRBYFLOAT', KEYS[1], ARGV[1], ARGV[2])"
FIELD = '_total:{"method":"GET","route":"/items","status":"200"}'


def make(storage: str, kind: str, delay: float = 0.0) -> Operation:
    """Additions to one field, or each to a new one for updates of the kind ``new_series``."""
    add = {"redis": _redis, "sqlite": _sqlite}[storage](delay)
    numbers = count()

    def update(times: int) -> None:
        for _ in range(times):
            add(f"{FIELD}{next(numbers)}" if kind == "new_series" else FIELD)

    return update


def _redis(delay: float) -> Callable[[str], object]:
    from redis import Redis

    if delay:
        move_redis_away(delay)
    client = Redis.from_url(os.environ["REDIS_URL"])
    script = client.script_load(SCRIPT)
    return lambda field: client.evalsha(script, 1, "metric", field, "1")


def _sqlite(_: float) -> Callable[[str], object]:
    connection = sqlite3.connect("metrics.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE metrics (metric_key, subkey, value, PRIMARY KEY (metric_key, subkey)) WITHOUT ROWID")
    add = "INSERT INTO metrics VALUES ('metric', ?, 1) ON CONFLICT DO UPDATE SET value = value + 1"
    return lambda field: connection.execute(add, (field,))
