"""For tests of programs that have metrics: assert the change of a value in the storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .exposition import collect

__all__ = ["assert_change", "value_of"]


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
