"""Prometheus metrics shared by every process."""

from . import redis, sqlite
from .buffer import NotConfigured
from .config import clear, flush, get_redis_conn, get_sqlite_conn, setup, shutdown
from .exposition import generate_latest, make_asgi_app, make_wsgi_app, start_http_server
from .metrics import Counter, Enum, Gauge, Histogram, Info, Summary
from .options import setup_from_environ
from .storage import StorageError

__all__ = [
    "Counter",
    "Enum",
    "Gauge",
    "Histogram",
    "Info",
    "NotConfigured",
    "StorageError",
    "Summary",
    "clear",
    "flush",
    "generate_latest",
    "get_redis_conn",
    "get_sqlite_conn",
    "make_asgi_app",
    "make_wsgi_app",
    "redis",
    "setup",
    "setup_from_environ",
    "shutdown",
    "sqlite",
    "start_http_server",
]
