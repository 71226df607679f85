"""The pauses of other work in a process while it answers a scrape of many samples, or sends many changed series."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.worker import Operation

from .first_scrapes import IN_MEMORY
from .libraries import LIBRARIES, Library
from .scrapes import check, fill, fill_elsewhere

TICK_SECONDS = 0.001


def make(library: str, counters: int, histograms: int, others: str) -> Operation:
    """Works of a thread; returns the longest pause in seconds of this process's CPU time, which other programs do not prolong.

    The `others` are ``threads`` beside a scrape, an ``event loop`` that has the metrics page, or ``threads beside a flush``.
    """
    beside = OTHERS[others](LIBRARIES[library](), library == IN_MEMORY, counters, histograms)

    def longest(times: int) -> float:
        return sum(max(beside()) for _ in range(times))

    return longest


Pauses = Callable[[], list[float]]
"""Does the work once, and returns the pauses of others meanwhile."""


def _threads(chosen: Library, in_memory: bool, counters: int, histograms: int) -> Pauses:
    (fill if in_memory else fill_elsewhere)(chosen, counters, histograms)
    return lambda: _beside_threads(lambda: check(chosen.render(), counters, histograms))


def _event_loop(chosen: Library, in_memory: bool, counters: int, histograms: int) -> Pauses:
    (fill if in_memory else fill_elsewhere)(chosen, counters, histograms)
    page = chosen.metrics.make_asgi_app()

    def pauses() -> list[float]:
        found: list[float] = []
        check(asyncio.run(_answer(page, found)), counters, histograms)
        return found

    return pauses


def _threads_beside_flush(chosen: Library, _: bool, counters: int, __: int) -> Pauses:
    counter = chosen.counter("events")
    children = [counter.labels(*chosen.values("GET", f"/items/{number}", "200")) for number in range(counters)]

    def pauses() -> list[float]:
        for child in children:
            child.inc()
        return _beside_threads(chosen.settle)

    return pauses


def _beside_threads(work: Callable[[], object]) -> list[float]:
    pauses: list[float] = []
    done = threading.Event()
    ticker = threading.Thread(target=_tick, args=(pauses, done))
    ticker.start()
    time.sleep(TICK_SECONDS)
    work()
    time.sleep(2 * TICK_SECONDS)
    done.set()
    ticker.join()
    return pauses


def _tick(pauses: list[float], done: threading.Event) -> None:
    last = time.process_time()
    while not done.wait(TICK_SECONDS):
        now = time.process_time()
        pauses.append(now - last)
        last = now


async def _answer(page: Any, pauses: list[float]) -> bytes:
    body = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        body.append(message.get("body", b""))

    ticker = asyncio.create_task(_tick_in_loop(pauses))
    await asyncio.sleep(TICK_SECONDS)
    await page({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}, receive, send)
    await asyncio.sleep(2 * TICK_SECONDS)
    ticker.cancel()
    return b"".join(body)


async def _tick_in_loop(pauses: list[float]) -> None:
    last = time.process_time()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.process_time()
        pauses.append(now - last)
        last = now


OTHERS: dict[str, Callable[[Library, bool, int, int], Pauses]] = {
    "threads": _threads,
    "event loop": _event_loop,
    "threads beside a flush": _threads_beside_flush,
}
