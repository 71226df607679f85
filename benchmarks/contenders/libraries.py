"""Metrics libraries behind one interface: they differ in set-up, declaration and rendering, not in use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The buckets of prometheus_client; with the infinite one they are 15."""
LABELS = ("method", "route", "status")


class Library:
    """A library whose metrics have the interface of prometheus_client; it is set up once per process."""

    module = "prometheus_client"

    def __init__(self) -> None:
        self.metrics = importlib.import_module(self.module)

    def counter(self, name: str) -> Any:
        """A counter with three labels."""
        return self.metrics.Counter(name, "Events so far.", LABELS)

    def gauge(self, name: str) -> Any:
        """A gauge with three labels."""
        return self.metrics.Gauge(name, "A level.", LABELS)

    def histogram(self, name: str) -> Any:
        """A histogram with three labels and 15 buckets."""
        return self.metrics.Histogram(name, "Seconds.", LABELS, buckets=BOUNDS)

    def values(self, *values: str) -> tuple[Any, ...]:
        """The arguments of `labels()` for these label values."""
        return values

    def settle(self) -> None:
        """Finish pending work of the background."""

    def render(self) -> bytes:
        """The metrics as text, by the function of the library."""
        return self.render_registry()

    def render_registry(self) -> bytes:
        """The metrics as text, by the function of prometheus_client."""
        return importlib.import_module("prometheus_client").generate_latest()  # type: ignore[no-any-return]  # it is Any


class Multiprocess(Library):
    """prometheus_client with ``PROMETHEUS_MULTIPROC_DIR``."""

    def render_registry(self) -> bytes:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


class PDC(Library):
    """This project."""

    module = "pdc"

    def __init__(self, flush_interval: float = 1.0, **storage: str) -> None:
        super().__init__()
        self.metrics.setup(flush_interval=flush_interval, **storage)

    def settle(self) -> None:
        self.metrics.flush()

    def render(self) -> bytes:
        return self.metrics.generate_latest()  # type: ignore[no-any-return]  # it is Any


class Version2Redis(Library):
    """prometheus-distributed-client 2."""

    module = "prometheus_distributed_client.redis"

    def __init__(self) -> None:
        from prometheus_distributed_client import setup
        from redis import Redis

        super().__init__()
        setup(redis=Redis.from_url(os.environ["REDIS_URL"]))


class Version2Sqlite(Library):
    """prometheus-distributed-client 2."""

    module = "prometheus_distributed_client.sqlite"

    def __init__(self) -> None:
        import sqlite3

        from prometheus_distributed_client import setup

        super().__init__()
        setup(sqlite=sqlite3.connect("metrics.db", check_same_thread=False))


class Pytheus(Library):
    """pytheus with Redis."""

    module = "pytheus.metrics"

    def __init__(self) -> None:
        from pytheus.backends import load_backend
        from pytheus.backends.redis import MultiProcessRedisBackend

        super().__init__()
        url = urlsplit(os.environ["REDIS_URL"])
        load_backend(MultiProcessRedisBackend, {"host": url.hostname, "port": url.port, "db": int(url.path[1:])})

    def counter(self, name: str) -> Any:
        return self.metrics.Counter(name, "Events so far.", LABELS)

    def gauge(self, name: str) -> Any:
        return self.metrics.Gauge(name, "A level.", LABELS)

    def histogram(self, name: str) -> Any:
        return self.metrics.Histogram(name, "Seconds.", LABELS, buckets=BOUNDS)

    def values(self, *values: str) -> tuple[Any, ...]:
        return (dict(zip(LABELS, values, strict=True)),)

    def render(self) -> bytes:
        from pytheus.exposition import generate_metrics

        text: str = generate_metrics()
        return text.encode()


LIBRARIES: dict[str, Callable[[], Library]] = {
    "prometheus_client": Library,
    "multiprocess": Multiprocess,
    "pdc_sqlite": lambda: PDC(sqlite="metrics.db"),
    "pdc_redis": lambda: PDC(redis=os.environ["REDIS_URL"]),
    "pdc_sqlite_through": lambda: PDC(0.0, sqlite="metrics.db"),
    "pdc_redis_through": lambda: PDC(0.0, redis=os.environ["REDIS_URL"]),
    "version2_sqlite": Version2Sqlite,
    "version2_redis": Version2Redis,
    "pytheus": Pytheus,
}
