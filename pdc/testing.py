"""For tests of programs that have metrics: assert how a value in the storage changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .exposition import collect


def value_of(sample: str, **labels: str) -> float:
    """The sum of the samples with this name and these labels, among others; 0 where there is none.

    It is what a scrape would show of all processes, with what this one has pending. Raises NotConfigured and StorageError.
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
