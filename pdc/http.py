"""Metrics of HTTP requests, the same in every framework: options, one tracker per request, and the metrics endpoint."""

from __future__ import annotations

import difflib
import hmac
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from . import config
from .exposition import Response, Scrape, plain
from .metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("pdc")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "<other>"
UNMATCHED = "<unmatched>"
CLIENT_CLOSED_REQUEST = 499
TRACKER = "pdc.tracker"
"""Where a WSGI environment keeps the tracker of its request."""


class OptionError(ValueError):
    """An option has a value that is not allowed, or a name that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """How an option is read: `parse` takes a value or the text of an environment variable, or raises."""

    parse: Callable[[Any], Any]
    allowed: str


def _option(default: Any, parse: Callable[[Any], Any], allowed: str) -> Any:
    return field(default=default, metadata={"option": Option(parse=parse, allowed=allowed)})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _path(value: Any) -> str:
    return _text(os.fspath(value))


def _flag(value: Any) -> bool:
    flags = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return flags[str(value).strip().lower()]


def _seconds(value: Any) -> float:
    seconds = float(value)
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise ValueError(value)
    return seconds


def _expiry(value: Any) -> float | None:
    if value is None or str(value).strip().lower() == "never":
        return None
    seconds = _seconds(value)
    if seconds == 0:
        raise ValueError(value)
    return seconds


def _url_path(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not _text(value).startswith("/"):
        raise ValueError(value)
    return _text(value)


def _items(value: Any) -> list[Any]:
    """The items of an iterable, or of a text separated by commas."""
    if isinstance(value, str):
        return [item for part in value.split(",") if (item := part.strip())]
    return list(value)


def _bounds(value: Any) -> tuple[float, ...]:
    bounds = tuple(float(bound) for bound in _items(value))
    if not bounds or list(bounds) != sorted(set(bounds)) or any(math.isnan(bound) for bound in bounds):
        raise ValueError(value)
    return bounds


def _patterns(value: Any) -> tuple[str | re.Pattern[str], ...]:
    patterns = tuple(_items(value))
    if not all(isinstance(pattern, (str, re.Pattern)) for pattern in patterns):
        raise TypeError(value)
    return patterns


def _namespace(value: Any) -> str:
    if not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", _text(value)):
        raise ValueError(value)
    return _text(value)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be configured. The name ``redis_url`` is the setting ``PDC_REDIS_URL`` and the environment variable."""

    redis_url: str | None = _option(None, _text, "a URL such as redis://localhost:6379/0")
    sqlite_path: str | None = _option(None, _path, "the path of a file")
    redis_prefix: str = _option("", _text, "a text")
    redis_expire: float | None = _option(3600.0, _expiry, "seconds, more than 0, or None (never)")
    flush_interval: float = _option(1.0, _seconds, "seconds, 0 for write-through")
    metrics_path: str | None = _option("/metrics", _url_path, "a path that starts with /, or None to mount nothing")
    metrics_token: str | None = _option(None, _text, "the bearer token that a scrape must send")
    namespace: str = _option("", _namespace, "letters, digits and underscores")
    buckets: tuple[float, ...] = _option(Histogram.DEFAULT_BUCKETS, _bounds, "increasing numbers of seconds")
    exclude_paths: tuple[str | re.Pattern[str], ...] = _option(
        (), _patterns, "paths, or compiled patterns that must match fully"
    )
    group_status: bool = _option(False, _flag, "true or false")
    enabled: bool = _option(True, _flag, "true or false")

    @classmethod
    def load(cls, settings: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Options:
        """Read the options from the settings of a framework or, where it has none, from the environment.

        Raises OptionError for an unknown setting that starts with ``PDC_``, for a value that is not allowed, and for
        two storages. Unknown environment variables may belong to others: they are logged.
        """
        environ = os.environ if environ is None else environ
        known = {f"PDC_{option.name.upper()}": option for option in fields(cls)}
        for name in settings:
            if str(name).startswith("PDC_") and name not in known:
                raise OptionError(f"unknown option {_with_hint(name, known)}")
        for name in environ:
            if name.startswith("PDC_") and name not in known:
                logger.warning("the environment variable %s means nothing to pdc", _with_hint(name, known))
        options = cls(
            **{
                option.name: _parsed(name, source[name], option.metadata["option"])
                for name, option in known.items()
                for source in [settings if name in settings else environ]
                if name in source
            }
        )
        if options.redis_url is not None and options.sqlite_path is not None:
            raise OptionError(
                f"PDC_REDIS_URL and PDC_SQLITE_PATH={options.sqlite_path!r} are both given, metrics live in one of them: "
                "remove the other"
            )
        return options

    def setup(self) -> None:
        """Use the storage of these options; without one keep what `pdc.setup` was called with, or use ``metrics.db``."""
        if self.redis_url is not None:
            config.setup(
                redis=self.redis_url,
                redis_prefix=self.redis_prefix,
                redis_expire=self.redis_expire,
                flush_interval=self.flush_interval,
            )
        elif self.sqlite_path is not None or config.DEFAULT.storage is None:
            config.setup(sqlite=self.sqlite_path or "metrics.db", flush_interval=self.flush_interval)


def _with_hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}; did you mean {close[0]}?" if close else f"{name}; there are {', '.join(known)}"


def _parsed(name: str, value: Any, option: Option) -> Any:
    try:
        return option.parse(value)
    except (ValueError, TypeError, KeyError) as error:
        raise OptionError(f"{name} must be {option.allowed}, got {value!r}") from error


class _Families(NamedTuple):
    requests: Counter
    duration: Histogram
    in_progress: Gauge
    exceptions: Counter


@cache
def _families(namespace: str, buckets: tuple[float, ...]) -> _Families:
    """The metrics of that namespace, once per process, however many applications it has."""
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
    return _Families(
        Counter("http_requests", "Requests that were answered.", ["method", "route", "status"], **common),
        Histogram(
            "http_request_duration_seconds",
            "Time from the start of a request to the last byte of its answer.",
            ["method", "route", "status"],
            buckets=buckets,
            **common,
        ),
        Gauge("http_requests_in_progress", "Requests in progress.", ["method"], multiprocess_mode="livesum", **common),
        Counter("http_exceptions", "Exceptions that left a view.", ["method", "route", "exception"], **common),
    )


class HTTPMetrics:
    """Counts and times the requests of an application, and answers its scrapes."""

    def __init__(self, options: Options) -> None:
        options.setup()
        self.options = options
        self._families = _families(options.namespace, options.buckets)
        exact = [pattern for pattern in options.exclude_paths if isinstance(pattern, str)]
        self._excluded = frozenset([*exact, options.metrics_path])
        self._patterns = [pattern for pattern in options.exclude_paths if not isinstance(pattern, str)]

    def track(self, method: str, path: str) -> Tracker | None:
        """Begin to track a request; None for one that is excluded."""
        if path in self._excluded or any(pattern.fullmatch(path) for pattern in self._patterns):
            return None
        return Tracker(self._families, method if method in METHODS else OTHER_METHOD, self.options.group_status)

    def answer(self, scrape: Scrape, authorization: str = "") -> Response:
        """Answer a scrape whose header Authorization is given; 401 without the right token."""
        token = self.options.metrics_token
        if token is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            challenge = ("WWW-Authenticate", "Bearer")
            return plain(HTTPStatus.UNAUTHORIZED, "metrics need the header Authorization: Bearer <token>", challenge)
        return scrape.answer()

    def wsgi(self, app: WSGIApplication) -> WSGIApplication:
        """Track the requests of a WSGI application; the framework finds its tracker in ``environ[TRACKER]``."""

        def tracked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            tracker = self.track(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
            if tracker is None:
                return app(environ, start_response)
            environ[TRACKER] = tracker
            try:
                body = app(environ, tracker.watch(start_response))
            except BaseException as error:
                tracker.fail(error)
                raise
            return tracker.watch_body(body, environ.get("wsgi.file_wrapper"))

        return tracked


class Tracker:
    """One request, from its start until its last byte is handed to the server. Its methods never raise."""

    __slots__ = ("_exception", "_families", "_finished", "_group", "_method", "_start", "body_bytes", "route", "status")

    def __init__(self, families: _Families, method: str, group_status: bool) -> None:
        self._families = families
        self._method = method
        self._group = group_status
        self._exception: BaseException | None = None
        self._finished = False
        self.route = UNMATCHED
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.body_bytes = math.inf
        self._start = perf_counter()
        try:
            families.in_progress.labels(method).inc()
        except Exception:
            logger.exception("a request could not be tracked")
            self._finished = True

    def raised(self, error: BaseException) -> None:
        """Count an exception that left the view, once however often it is seen; exits are none."""
        if error is self._exception or not isinstance(error, Exception):
            return
        self._exception = error
        try:
            self._families.exceptions.labels(self._method, self.route, type(error).__name__).inc()
        except Exception:
            logger.exception("an exception could not be counted")

    def finish(self) -> None:
        """Count and time the request; only the first call does."""
        if self._finished:
            return
        self._finished = True
        duration = perf_counter() - self._start
        status = f"{self.status // 100}xx" if self._group else str(self.status)
        families = self._families
        try:
            families.in_progress.labels(self._method).dec()
            families.requests.labels(self._method, self.route, status).inc()
            families.duration.labels(self._method, self.route, status).observe(duration)
        except Exception:
            logger.exception("a request could not be counted")

    def fail(self, error: BaseException) -> None:
        """End a request whose application raised: nothing but an error 500 can have come of it."""
        self.raised(error)
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.finish()

    def watch(self, start_response: StartResponse) -> StartResponse:
        """Note the status that a WSGI application sends."""

        def watching(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            self.status = int(status[:3])
            self.body_bytes = 0.0 if self._method == "HEAD" else _body_bytes(self.status, headers)
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        return watching

    def watch_body(self, body: Iterable[bytes], file_wrapper: Any) -> Iterable[bytes]:
        """The body of a WSGI answer, which finishes the request at its end.

        What the server would send by itself from a file (PEP 3333, ``wsgi.file_wrapper``) is left as it is.
        """
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
            file: Any = body
            file.close = self._finish_then(getattr(file, "close", None))
            return body
        return _Body(self, body)

    def _finish_then(self, close: Callable[[], None] | None) -> Callable[[], None]:
        def closing() -> None:
            self.finish()
            if close is not None:
                close()

        return closing


class _Body:
    """A WSGI body that is watched: read to its end, broken by an exception, or left by a client that went away."""

    def __init__(self, tracker: Tracker, body: Iterable[bytes]) -> None:
        self._tracker = tracker
        self._body = body
        self._iterator = iter(body)
        self._left = tracker.body_bytes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._iterator)
        except BaseException as error:
            self._left = 0
            if not isinstance(error, StopIteration):
                self._tracker.raised(error)
            self._tracker.finish()
            raise
        self._left -= len(chunk)
        if self._left <= 0:
            self._tracker.finish()
        return chunk

    def close(self) -> None:
        """Finish the request; the server calls this whatever became of it (PEP 3333)."""
        if self._left > 0:
            self._tracker.status = CLIENT_CLOSED_REQUEST
        self._tracker.finish()
        if hasattr(self._body, "close"):
            self._body.close()


def _body_bytes(status: int, headers: Iterable[tuple[str, str]]) -> float:
    """How long the body will be; infinite where only its end can tell."""
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return 0.0
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    return float(lengths[0]) if lengths and lengths[0].isdecimal() else math.inf
