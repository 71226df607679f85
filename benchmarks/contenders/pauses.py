"""The pauses of other work in a process while it answers a scrape of many samples, or sends many changed series."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.worker import Operation

from .first_scrapes import IN_MEMORY
from .libraries import LIBRARIES, Library
from .scrapes import check, fill, fill_elsewhere

TICK_SECONDS = 0.001


def make(library: str, counters: int, histograms: int, others: str, flush: bool = False) -> Operation:
    """Scrapes, or flushes of counters that have all changed; returns the longest pause of others in seconds.

    That is CPU time of this process, which other programs do not prolong. The others are ``threads`` or an ``event loop``; a
    scrape is answered by that loop.
    """
    chosen = LIBRARIES[library]()
    if flush:
        beside = _flushes(chosen, counters, others)
    else:
        (fill if library == IN_MEMORY else fill_elsewhere)(chosen, counters, histograms)
        beside = _scrapes(chosen, counters, histograms, others)

    def longest(times: int) -> float:
        return sum(max(beside()) for _ in range(times))

    return longest


Pauses = Callable[[], list[float]]
"""Does the work once, and returns the pauses of others meanwhile."""


def _flushes(chosen: Library, counters: int, others: str) -> Pauses:
    counter = chosen.counter("events")
    children = [counter.labels(*chosen.values("GET", f"/items/{number}", "200")) for number in range(counters)]

    def pauses() -> list[float]:
        for child in children:
            child.inc()
        if others == "threads":
            return _beside_threads(chosen.settle)
        return asyncio.run(_beside_loop(asyncio.to_thread(chosen.settle)))

    return pauses


def _scrapes(chosen: Library, counters: int, histograms: int, others: str) -> Pauses:
    def pauses() -> list[float]:
        body: list[bytes] = []
        if others == "threads":
            found = _beside_threads(lambda: body.append(chosen.render()))
        else:
            found = asyncio.run(_beside_loop(_answer(chosen.metrics.make_asgi_app(), body)))
        check(b"".join(body), counters, histograms)
        return found

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


async def _beside_loop(work: Awaitable[None]) -> list[float]:
    pauses: list[float] = []
    ticker = asyncio.create_task(_tick_in_loop(pauses))
    await asyncio.sleep(TICK_SECONDS)
    await work
    await asyncio.sleep(2 * TICK_SECONDS)
    ticker.cancel()
    return pauses


async def _answer(page: Any, body: list[bytes]) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        body.append(message.get("body", b""))

    await page({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}, receive, send)


async def _tick_in_loop(pauses: list[float]) -> None:
    last = time.process_time()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.process_time()
        pauses.append(now - last)
        last = now
