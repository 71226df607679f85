"""Many living processes that all write the metrics of requests: the batches of one, sent in the names of others."""

from __future__ import annotations

import os
import shutil
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.worker import Operation

from .by_hand import ByHand
from .flushes import answer_requests
from .libraries import LIBRARIES, Library
from .series import SIZES

ROUTES = 20
"""The routes with requests since the last batch of a process."""


def make(library: str, writers: int, measured: str, routes: int = ROUTES) -> Operation:
    """Of so many writers: their `batches`, ``scrapes`` of them, or their ``room`` in the storage in bytes.

    A batch is measured as the ``processor`` seconds of Redis, or the bytes of its ``network``.
    """
    if measured == "room":
        return _room(library, writers, routes)
    chosen = LIBRARIES[library]()
    if library == "multiprocess":
        _copy_files(chosen, writers, routes)
        return _scrapes(chosen)
    crowd = Crowd(chosen, writers, routes)
    crowd.write(writers)
    return _scrapes(chosen) if measured == "scrapes" else _work_of_redis(crowd, measured)


def _scrapes(library: Library) -> Operation:
    def scrape(times: int) -> None:
        for _ in range(times):
            if b"http_requests_total" not in library.render():
                raise RuntimeError("the scrape lacks the writers")

    return scrape


def _work_of_redis(crowd: Crowd, measured: str) -> Operation:
    from redis import Redis

    client: Any = Redis.from_url(os.environ["REDIS_URL"])

    def spent() -> float:
        info = client.info("stats" if measured == "network" else "cpu")
        return sum(float(info[name]) for name in ACCOUNTS[measured])

    def write(times: int) -> float:
        before = spent()
        crowd.write(times)
        return spent() - before

    return write


ACCOUNTS = {
    "processor": ("used_cpu_user", "used_cpu_sys"),
    "network": ("total_net_input_bytes", "total_net_output_bytes"),
}


def _room(library: str, writers: int, routes: int) -> Operation:
    chosen = LIBRARIES[library]()
    measure = SIZES[library.removeprefix("pdc_")]

    def room(_: int) -> float:
        Crowd(chosen, writers, routes).write(writers)
        return measure()

    return room


class Crowd:
    """Writers that take turns."""

    def __init__(self, library: Library, writers: int, routes: int) -> None:
        import pdc.config

        self._storage: Any = pdc.config.DEFAULT.required()
        self._first, self._later = self._recorded(library, routes)
        self._sequences = dict.fromkeys((f"{number}-{number:016x}" for number in range(writers)), 0)
        self._turns = cycle(self._sequences)

    def _recorded(self, library: Library, routes: int) -> tuple[list[Any], list[Any]]:
        """The batches of a process that has just started, and its later ones."""
        metrics = ByHand(library.metrics, registry=None, multiprocess_mode="livesum")
        send, sent = self._storage.apply, []

        def apply(batch: Any) -> Any:
            sent.append(batch)
            return send(batch)

        self._storage.apply = apply
        answer_requests(metrics, routes)
        library.settle()
        first, sent = sent, []
        answer_requests(metrics, routes)
        library.settle()
        self._storage.apply = send
        return first, sent

    def write(self, times: int) -> None:
        """Send the batches of so many processes, each in its turn."""
        for writer in islice(self._turns, times):
            batches = self._later if self._sequences[writer] else self._first
            for batch in batches:
                self._sequences[writer] += 1
                self._storage.apply(_in_name_of(writer, batch, self._sequences[writer]))


def _in_name_of(writer: str, batch: Any, sequence: int) -> Any:
    updates = [
        update._replace(
            operations=[each._replace(field=each.field.replace(batch.writer, writer)) for each in update.operations]
        )
        for update in batch.updates
    ]
    return batch._replace(writer=writer, sequence=sequence, updates=updates)


def _copy_files(library: Library, writers: int, routes: int) -> None:
    """Give the multiprocess mode the files of so many processes."""
    answer_requests(ByHand(library.metrics, multiprocess_mode="livesum"), routes)
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{os.getpid()}.db"):
        for number in range(1, writers):
            shutil.copy(file, file.with_name(file.name.replace(f"_{os.getpid()}.", f"_{10_000_000 + number}.")))
