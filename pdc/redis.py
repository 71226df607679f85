"""The metric classes, tied to the Redis that `setup(redis=...)` chose."""

from . import config, metrics

__all__ = ["Counter", "Enum", "Gauge", "Histogram", "Info", "Summary"]


class Counter(metrics.Counter):
    """A counter in Redis."""

    buffer = config.REDIS


class Gauge(metrics.Gauge):
    """A gauge in Redis."""

    buffer = config.REDIS


class Summary(metrics.Summary):
    """A summary in Redis."""

    buffer = config.REDIS


class Histogram(metrics.Histogram):
    """A histogram in Redis."""

    buffer = config.REDIS


class Info(metrics.Info):
    """An info metric in Redis."""

    buffer = config.REDIS


class Enum(metrics.Enum):
    """An enum metric in Redis."""

    buffer = config.REDIS
