"""The memory of series that were updated once."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from benchmarks.worker import Operation

from .libraries import LIBRARIES


def make(library: str) -> Operation:
    """New series of one counter; returns the bytes by which the process has grown."""
    chosen = LIBRARIES[library]()
    counter = chosen.counter("events")
    counter.labels(*chosen.values("GET", "/", "200")).inc()
    chosen.settle()  # connections and threads are there before

    def create(times: int) -> float:
        before = resident_bytes()
        for number in range(times):
            counter.labels(*chosen.values("GET", f"/items/{number}", "200")).inc()
        chosen.settle()
        gc.collect()
        return resident_bytes() - before

    return create


def resident_bytes() -> int:
    """The memory that this process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
