"""For tests of programs that have metrics: assert the change of a value in the storage. And the tests of a storage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain

from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from . import config
from .exposition import collect
from .storage.contract import StorageContract

__all__ = ["StorageContract", "assert_change", "own_storage", "value_of"]

MOST_SHOWN = 10
"""The most samples in an error."""


@contextmanager
def own_storage() -> Iterator[None]:
    """Keep the metrics of this process in its memory for the block, whatever storage the program chooses.

    Tests that run at the same time do not see each other then, and leave nothing in the storage of the program. Processes
    that the block starts have not this one. After the block, metrics need another `setup`, or go on in the block around it.
    The fixture of `pdc.fixtures` and the runner of `pdc_django.testing` do this for all tests of a process.
    """
    config.use_own_storage()
    try:
        yield
    finally:
        config.leave_own_storage()


def value_of(sample: str, /, **labels: object) -> float:
    """The sum of all samples with this name and at least these labels; 0 without any.

    Values of labels become texts, as in `labels()` of a metric; a number as ``le`` is spelled as a bucket spells it. A scrape
    would show the same: the values of all processes, with pending updates of this one. Raises NotConfigured and StorageError.
    """
    wanted = _texts(labels).items()
    return sum(each.value for each in _samples() if each.name == sample and wanted <= each.labels.items())


@contextmanager
def assert_change(sample: str, change: float = 1, /, **labels: object) -> Iterator[None]:
    """Assert that the block changes the sum of such samples by so much. The error shows the samples that there are.

    with assert_change("http_requests_total", route="/items/<name>"):
        client.get("/items/tea")
    """
    before = value_of(sample, **labels)
    yield
    found = value_of(sample, **labels) - before
    if not math.isclose(found, change, rel_tol=1e-9, abs_tol=1e-12 * abs(before)):
        wanted = f"{_spelled(sample, _texts(labels))} should change by {change:g}, but changed by {found:g}, from {before:g}"
        raise AssertionError(f"{wanted}; {_nearest(sample)}")


def _samples() -> Iterator[Sample]:
    return chain.from_iterable(metric.samples for metric in collect())


def _texts(labels: Mapping[str, object]) -> dict[str, str]:
    """The values of labels as samples have them."""
    return {
        name: floatToGoString(value) if name == "le" and isinstance(value, (int, float)) else str(value)
        for name, value in labels.items()
    }


def _spelled(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def _nearest(sample: str) -> str:
    """The samples of that name, or else the names that are close to it, as the end of a message."""
    same = [f"{_spelled(each.name, each.labels)} {each.value:g}" for each in _samples() if each.name == sample]
    if same:
        return f"there {'is' if len(same) == 1 else 'are'} {', '.join(same[:MOST_SHOWN])}{', ...' if same[MOST_SHOWN:] else ''}"
    close = get_close_matches(sample, {each.name for each in _samples()})
    return f"there is no sample {sample}{f', did you mean {close[0]}?' if close else ''}"
