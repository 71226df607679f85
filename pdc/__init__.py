"""Prometheus metrics shared by every process."""

from typing import TYPE_CHECKING, Any

from . import redis, sqlite
from .buffer import NotConfigured
from .config import clear, flush, get_redis_conn, get_sqlite_conn, setup, shutdown
from .exposition import generate_latest, make_asgi_app, make_wsgi_app, start_http_server
from .metrics import Counter, Enum, Gauge, Histogram, Info, Summary
from .storage import StorageError

if TYPE_CHECKING:
    from .options import setup_from_environ

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


def __getattr__(name: str) -> Any:
    """Import what is used once per process, if at all, when it is asked for."""
    if name == "setup_from_environ":
        from .options import setup_from_environ

        return setup_from_environ
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
