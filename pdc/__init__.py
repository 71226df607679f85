"""Prometheus metrics shared by every process."""

from .buffer import NotConfigured
from .config import clear, flush, get_redis_conn, get_sqlite_conn, setup, shutdown
from .metrics import Counter, Enum, Gauge, Histogram, Info, Summary
from .storage import StorageError
from . import redis, sqlite

__all__ = [
    "Counter", "Enum", "Gauge", "Histogram", "Info", "NotConfigured", "StorageError", "Summary",
    "clear", "flush", "get_redis_conn", "get_sqlite_conn", "redis", "setup", "shutdown", "sqlite",
]
