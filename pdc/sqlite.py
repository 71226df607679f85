"""The metric classes, tied to the SQLite database that `setup(sqlite=...)` chose."""

from . import config, metrics

__all__ = ["Counter", "Enum", "Gauge", "Histogram", "Info", "Summary"]


class Counter(metrics.Counter):
    """A counter in SQLite."""

    buffer = config.SQLITE


class Gauge(metrics.Gauge):
    """A gauge in SQLite."""

    buffer = config.SQLITE


class Summary(metrics.Summary):
    """A summary in SQLite."""

    buffer = config.SQLITE


class Histogram(metrics.Histogram):
    """A histogram in SQLite."""

    buffer = config.SQLITE


class Info(metrics.Info):
    """An info metric in SQLite."""

    buffer = config.SQLITE


class Enum(metrics.Enum):
    """An enum metric in SQLite."""

    buffer = config.SQLITE
