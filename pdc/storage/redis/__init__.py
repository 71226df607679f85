"""Metrics in Redis: one hash a metric, and one sorted set that lists the metrics of a prefix."""

from .storage import RedisStorage

__all__ = ["RedisStorage"]
