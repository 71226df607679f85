"""Prometheus metrics shared by every process."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import clear, flush, get_redis_conn, get_sqlite_conn, setup, shutdown
from .delivery import NotConfigured
from .metrics import Counter, Enum, Gauge, Histogram, Info, Summary
from .native import Native
from .process.forks import FORKS
from .storage import StorageError

if TYPE_CHECKING:
    from . import celery as celery
    from . import dramatiq as dramatiq
    from . import redis, sqlite
    from . import rq as rq
    from .exposition import generate_latest, make_asgi_app, make_wsgi_app, scrape_response, start_http_server
    from .jobs import job
    from .metrics.installation import install, uninstall
    from .metrics.processes import ProcessMetrics
    from .options import setup_from_environ

    __version__: str

__all__ = [
    "Counter",
    "Enum",
    "Gauge",
    "Histogram",
    "Info",
    "Native",
    "NotConfigured",
    "ProcessMetrics",
    "StorageError",
    "Summary",
    "clear",
    "flush",
    "generate_latest",
    "get_redis_conn",
    "get_sqlite_conn",
    "install",
    "job",
    "make_asgi_app",
    "make_wsgi_app",
    "redis",
    "scrape_response",
    "setup",
    "setup_from_environ",
    "shutdown",
    "sqlite",
    "start_http_server",
    "uninstall",
]

_LATER = {
    **dict.fromkeys(
        ("generate_latest", "make_asgi_app", "make_wsgi_app", "scrape_response", "start_http_server"), "exposition"
    ),
    "ProcessMetrics": "metrics.processes",
    **dict.fromkeys(("install", "uninstall"), "metrics.installation"),
    "job": "jobs",
    "setup_from_environ": "options",
    "redis": "redis",
    "sqlite": "sqlite",
}
"""The modules of names that most programs use once, if at all. The first use of a name imports its module."""

_NEED_OTHERS = frozenset({"celery", "dramatiq", "rq"})
"""Public modules that import another library. They are not in `__all__`: the library may not be installed."""

FORKS.import_first(f"{__name__}.delivery.journal", *(f"{__name__}.{module}" for module in sorted({*_LATER.values()})))

if not TYPE_CHECKING:  # type checkers know all names

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version("prometheus-distributed-client")
        if name in _NEED_OTHERS:
            return import_module(f"{__name__}.{name}")
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_LATER[name]}")
        return module if name == _LATER[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
