"""The least work of a scrape from a storage: read all fields, and join them to one text."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from redis import Redis

from benchmarks.worker import Operation

from .libraries import LIBRARIES
from .scrapes import fill_elsewhere


def make(storage: str, counters: int, histograms: int) -> Operation:
    """Reads of that many series as pdc has stored them."""
    fill_elsewhere(LIBRARIES[f"pdc_{storage}"](), counters, histograms)
    read = {"redis": _redis, "sqlite": _sqlite}[storage]()

    def scrape(times: int) -> None:
        for _ in range(times):
            if len(read()) < counters + histograms:
                raise RuntimeError("the storage is empty")

    return scrape


def _redis() -> Callable[[], bytes]:
    client = Redis.from_url(os.environ["REDIS_URL"])
    keys = [key for key in client.scan_iter() if client.type(key) == b"hash"]

    def read() -> bytes:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return b"\n".join(b"%b %b" % item for fields in pipeline.execute() for item in fields.items())

    return read


def _sqlite() -> Callable[[], bytes]:
    connection = sqlite3.connect("metrics.db")
    query = "SELECT metric_key, subkey, value FROM pdc_metrics"
    return lambda: "\n".join(f"{key}{field} {value}" for key, field, value in connection.execute(query)).encode()
