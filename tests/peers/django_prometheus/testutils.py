"""The peer's assertions about the values of metrics."""

from __future__ import annotations

from collections.abc import Callable

from pdc.exposition import collect

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def save_registry() -> Values:
    """The values of all samples."""
    return {(sample.name, frozenset(sample.labels.items())): sample.value for metric in collect() for sample in metric.samples}


def get_metric(metric_name: str, **labels: str) -> float | None:
    """The value of the sample with this name and exactly these labels."""
    return save_registry().get((metric_name, frozenset(labels.items())))


def assert_metric_equal(expected: float | None, metric_name: str, **labels: str) -> None:
    """Assert that the sample has this value."""
    found = get_metric(metric_name, **labels)
    assert found == expected, f"{metric_name}{labels} is {found}, expected {expected}"


def assert_metric_compare(before: Values, predicate: Callable[[float, float], bool], metric_name: str, **labels: str) -> None:
    """Assert that the predicate is true of the values before and now."""
    old, new = before.get((metric_name, frozenset(labels.items())), 0.0), get_metric(metric_name, **labels)
    assert new is not None, f"{metric_name}{labels} is missing"
    assert predicate(old, new), f"{metric_name}{labels} was {old}, is {new}"


def assert_metric_diff(before: Values, expected: float, metric_name: str, **labels: str) -> None:
    """Assert that the sample has changed by so much."""
    assert_metric_compare(before, lambda old, new: new - old == expected, metric_name, **labels)
