"""Scrapes after many short-lived processes have written and ended."""

from __future__ import annotations

import sys
import threading
import time

import pdc
import pdc.config
import pdc.delivery
import pdc.storage.redis
import pdc.storage.sqlite
from benchmarks.worker import Operation

from .libraries import LIBRARIES
from .scrapes import check, fill

MODES = ("sum", "min", "max", "mostrecent", "livesum")
FINAL_MARK_SECONDS = 0.5


def make(library: str, workers: int, counters: int) -> Operation:
    """Scrapes of so many counters and a gauge of each mode, after so many workers that counted one event each.

    The workers are writers of their own in this process; their marks are kept for a second, not for a minute, after they
    deregistered.
    """
    chosen = LIBRARIES[library]()
    fill(chosen, counters, 0)
    for name, module in list(sys.modules.items()):
        if name.startswith("pdc.storage.") and hasattr(module, "FINAL_MARK_SECONDS"):
            module.FINAL_MARK_SECONDS = FINAL_MARK_SECONDS  # type: ignore[attr-defined]  # of a module of one storage
    for number in range(workers):
        work(number)
    time.sleep(2 * FINAL_MARK_SECONDS)
    work(workers)
    chosen.settle()

    def scrape(times: int) -> None:
        for _ in range(times):
            check(chosen.render(), counters + len(MODES), 0)

    return scrape


def work(number: int) -> None:
    """Act as the worker of that number: count, set the gauges, and deregister."""
    buffer = pdc.delivery.Buffer()
    buffer.attach(pdc.config.DEFAULT.required(), 3600.0, None, thread=threading.get_ident())
    for mode in MODES:
        own = type("Gauge", (pdc.Gauge,), {"buffer": buffer})
        own(f"level_{mode}", "Of a worker.", registry=None, multiprocess_mode=mode).set(number)
    type("Counter", (pdc.Counter,), {"buffer": buffer})("work", "Done.", registry=None).inc()
    buffer.at_exit()
