"""Updates of metrics, by one thread or several at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice
from typing import Any

from benchmarks.worker import Operation

from .distance import move_redis_away
from .libraries import BOUNDS, LIBRARIES, Library


def make(library: str, kind: str, threads: int = 1, delay: float = 0.0) -> Operation:
    """Updates of that kind; each of the threads makes as many as the round has. A `delay` moves Redis away."""
    if delay:
        move_redis_away(delay)
    update = KINDS[kind](LIBRARIES[library]())
    return update if threads == 1 else _at_once(update, threads)


def _increment(library: Library) -> Operation:
    increment: Callable[[], None] = library.counter("events").labels(*library.values("GET", "/items", "200")).inc

    def update(times: int) -> None:
        for _ in range(times):
            increment()

    return update


def _labels_and_increment(library: Library) -> Operation:
    values = library.values("GET", "/items", "200")
    labels: Callable[..., Any] = library.counter("events").labels

    def update(times: int) -> None:
        for _ in range(times):
            labels(*values).inc()

    return update


def _set(library: Library) -> Operation:
    set_to: Callable[[float], None] = library.gauge("level").labels(*library.values("GET", "/items", "200")).set

    def update(times: int) -> None:
        for number in range(times):
            set_to(number)

    return update


def _observe(library: Library) -> Operation:
    observe: Callable[[float], None] = library.histogram("seconds").labels(*library.values("GET", "/items", "200")).observe

    def update(times: int) -> None:
        for seconds in islice(cycle((*BOUNDS, 60.0)), times):  # each bucket in turn
            observe(seconds)

    return update


def _new_series(library: Library) -> Operation:
    labels: Callable[..., Any] = library.counter("events").labels
    numbers = count()

    def update(times: int) -> None:
        for _ in range(times):
            labels(*library.values("GET", f"/items/{next(numbers)}", "200")).inc()

    return update


KINDS: dict[str, Callable[[Library], Operation]] = {
    "inc": _increment,
    "labels_inc": _labels_and_increment,
    "set": _set,
    "observe": _observe,
    "new_series": _new_series,
}


def _at_once(update: Operation, threads: int) -> Operation:
    def updates(times: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(update, times) for _ in range(threads)]:
                done.result()

    return updates
