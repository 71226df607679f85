"""The longest wait of another client of a storage while a large metric is scraped or updated, or loses series."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.worker import Operation

from .libraries import LIBRARIES, Library

TICK_SECONDS = 0.001


def make(storage: str, work: str, series: int, histograms: bool = False) -> Operation:
    """Works with one metric of that many series; returns the longest wait of the other client in seconds."""
    large = _Large(LIBRARIES[f"pdc_{storage}"](), series, histograms=histograms)
    large.flush()

    def wait(times: int) -> float:
        longest = 0.0
        for _ in range(times):
            if work.startswith("remove"):
                large.flush()
            longest += _longest_wait(WAITS[storage], getattr(large, work))
        return longest

    return wait


class _Large:
    """A metric of many series, and the work to do with it."""

    def __init__(self, library: Library, series: int, *, histograms: bool) -> None:
        self._library = library
        self._metric = (library.histogram if histograms else library.counter)("events")
        self._update = "observe" if histograms else "inc"
        self._children = [library.values("GET", f"/items/{number}", "200") for number in range(series)]

    def flush(self) -> None:
        """Update all series, and send them."""
        for values in self._children:
            getattr(self._metric.labels(*values), self._update)(1.0)
        self._library.settle()

    def nothing(self) -> None:
        """Do nothing for a while."""
        time.sleep(1.0)

    def scrape(self) -> None:
        """Render all series."""
        self._library.render()

    def remove(self) -> None:
        """Remove a tenth of the series, one by one."""
        for values in self._children[::10]:
            self._metric.remove(*values)
        self._library.settle()

    def remove_by_labels(self) -> None:
        """Remove all series at once, by a label that they share."""
        self._metric.remove_by_labels({"method": "GET"})
        self._library.settle()


def _longest_wait(wait: Callable[[], Callable[[], Any]], work: Callable[[], None]) -> float:
    """The longest time that the other client waited for an answer during the work."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(target=_ask_again_and_again, args=(wait, theirs))
    other.start()
    ours.recv()
    work()
    ours.send("done")
    longest: float = ours.recv()
    other.join()
    return longest


def _ask_again_and_again(wait: Callable[[], Callable[[], Any]], parent: Connection) -> None:
    ask = wait()
    ask()
    parent.send("ready")
    longest = 0.0
    while not parent.poll(TICK_SECONDS):
        began = time.perf_counter()
        ask()
        longest = max(longest, time.perf_counter() - began)
    parent.send(longest)


def _pings() -> Callable[[], Any]:
    from redis import Redis

    client: Any = Redis.from_url(os.environ["REDIS_URL"])
    return client.ping  # type: ignore[no-any-return]  # the client is Any


def _writes() -> Callable[[], Any]:
    connection = sqlite3.connect("metrics.db", timeout=30, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS others (number)")
    return lambda: connection.execute("INSERT INTO others VALUES (1)")


WAITS = {"redis": _pings, "sqlite": _writes}
"""The request of the other client to each storage: an answer, or the write lock."""
