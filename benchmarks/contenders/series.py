"""The cost of series that were updated once: memory of the process, or room in the storage."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.worker import Operation

from .libraries import LIBRARIES

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - the folder in it is a private one
"""A file system in memory, where the system has one."""


def make(library: str, size: str, histograms: bool = False) -> Operation:
    """New series of one metric; returns the growth of that size in bytes.

    A database is in memory, since version 2 waits for the disk after each update: its room is the same there.
    """
    if size == "sqlite":
        folder = tempfile.mkdtemp(dir=MEMORY)
        atexit.register(shutil.rmtree, folder)
        os.chdir(folder)
    chosen = LIBRARIES[library]()
    metric = (chosen.histogram if histograms else chosen.counter)("events")
    update = "observe" if histograms else "inc"
    measured = SIZES[size]

    def add(route: str) -> None:
        getattr(metric.labels(*chosen.values("GET", route, "200")), update)(1)

    def size_with(names: Iterable[str]) -> int:
        for name in names:
            add(name)
        chosen.settle()
        gc.collect()
        return measured()

    def create(times: int) -> float:
        before = size_with(f"/first/{number}" for number in range(times // 5))  # so that the series take new, not freed memory
        return size_with(f"/items/{number}" for number in range(times)) - before

    return create


def _resident_bytes() -> int:
    """The memory that this process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _redis_bytes() -> int:
    """The memory of all keys of this contender's database, by Redis's own account."""
    from redis import Redis

    client: Any = Redis.from_url(os.environ["REDIS_URL"])
    return sum(client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0) for key in client.scan_iter())


def _sqlite_bytes() -> int:
    """The size of the pages in use of the database in this folder."""
    import sqlite3

    connection = sqlite3.connect("metrics.db")
    try:
        pages, free, size = (connection.execute(f"PRAGMA {each}").fetchone()[0] for each in _PAGES)
    finally:
        connection.close()
    return int((pages - free) * size)


_PAGES = ("page_count", "freelist_count", "page_size")
SIZES: dict[str, Callable[[], int]] = {"memory": _resident_bytes, "redis": _redis_bytes, "sqlite": _sqlite_bytes}
