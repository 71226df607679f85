"""Metrics in one SQLite table, ``pdc_metrics(metric_key, subkey, value)``; NaN is stored as NULL."""

from .storage import SqliteStorage

__all__ = ["SqliteStorage"]
