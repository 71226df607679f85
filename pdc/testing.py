"""For tests of programs that have metrics: assert the change of a value in the storage. And the tests of a storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import config
from .exposition import collect
from .storage.contract import StorageContract

__all__ = ["StorageContract", "assert_change", "own_storage", "value_of"]


@contextmanager
def own_storage() -> Iterator[None]:
    """Keep the metrics of this process in its memory for the block, whatever storage the program chooses.

    Tests that run at the same time do not see each other then, and leave nothing in the storage of the program. Processes
    that the block starts have not this one. After the block, metrics need another `setup`. The fixture of `pdc.fixtures`
    and the runner of `pdc_django.testing` do this for all tests of a process.
    """
    config.use_own_storage()
    try:
        yield
    finally:
        config.leave_own_storage()


def value_of(sample: str, **labels: str) -> float:
    """The sum of all samples with this name and at least these labels; 0 without any.

    A scrape would show the same: the values of all processes, with pending updates of this one. Raises NotConfigured and
    StorageError.
    """
    return sum(
        candidate.value
        for metric in collect()
        for candidate in metric.samples
        if candidate.name == sample and labels.items() <= candidate.labels.items()
    )


@contextmanager
def assert_change(sample: str, change: float = 1, **labels: str) -> Iterator[None]:
    """Assert that the block changes the sum of such samples by so much.

    with assert_change("http_requests_total", route="/items/<name>"):
        client.get("/items/tea")
    """
    before = value_of(sample, **labels)
    yield
    found = value_of(sample, **labels) - before
    if found != change:
        raise AssertionError(f"{sample}{labels or ''} should change by {change:g}, but changed by {found:g}, from {before:g}")
