"""The pauses of other work in a process while it answers a scrape of many samples."""

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
    """Scrapes; returns the longest pause in seconds of this process's CPU time, which other programs do not prolong.

    The `others` are ``threads`` while one of them scrapes, or an ``event loop`` that has the metrics page.
    """
    chosen = LIBRARIES[library]()
    (fill if library == IN_MEMORY else fill_elsewhere)(chosen, counters, histograms)
    scrape_beside = OTHERS[others]

    def scrape(times: int) -> float:
        return sum(longest() for _ in range(times))

    def longest() -> float:
        pauses: list[float] = []
        text = scrape_beside(chosen, pauses)
        check(text, counters, histograms)
        return max(pauses)

    return scrape


def _beside_threads(chosen: Library, pauses: list[float]) -> bytes:
    done = threading.Event()
    ticker = threading.Thread(target=_tick, args=(pauses, done))
    ticker.start()
    text = chosen.render()
    done.set()
    ticker.join()
    return text


def _tick(pauses: list[float], done: threading.Event) -> None:
    last = time.process_time()
    while not done.wait(TICK_SECONDS):
        now = time.process_time()
        pauses.append(now - last)
        last = now


def _in_event_loop(chosen: Library, pauses: list[float]) -> bytes:
    return asyncio.run(_answer(chosen.metrics.make_asgi_app(), pauses))


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


OTHERS: dict[str, Callable[[Library, list[float]], bytes]] = {"threads": _beside_threads, "event loop": _in_event_loop}
