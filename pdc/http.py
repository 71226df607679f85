"""Metrics of HTTP requests, the same in every framework: options, one tracker per request, and the metrics endpoint."""

from __future__ import annotations

import hmac
import importlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cache, partial
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prometheus_client.registry import CollectorRegistry
from prometheus_client.validation import _validate_exemplar

from . import log
from .exposition import ASGIApplication, Port, Receive, Response, Scope, Scrape, Send, plain, respond, scrape_from_wsgi
from .interruption import interruption
from .log import log_or_raise
from .metrics import Counter, Gauge, Histogram
from .options import Label, OptionError, Options

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "<other>"
UNMATCHED = "<unmatched>"
CLIENT_CLOSED_REQUEST = 499
WITHOUT_BODY = frozenset({204, 304})
"""Of answers that have no body, whatever their headers say."""
SIZE_BUCKETS = tuple(float(4**power) for power in range(3, 14))
"""64 bytes to 64 MiB."""
WEBSOCKET_BUCKETS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
"""A tenth of a second to a day."""
MOST_DIGITS = 18
"""Of a length: there are no longer bodies, and Python refuses to read a number of thousands of digits."""
TRACKER = "pdc.tracker"
"""Where a WSGI environment or an ASGI scope keeps the tracker of its request."""
_EXCLUDED = "pdc_excluded"
"""The attribute of a view whose requests are not counted."""


def exclude(view: ViewT) -> ViewT:
    """Do not count the requests of this view: a decorator, to be written below that of the route."""
    setattr(view, _EXCLUDED, True)
    return view


def is_excluded(view: object) -> bool:
    """Whether `exclude` decorates the view."""
    return getattr(view, _EXCLUDED, False)


class _Families(NamedTuple):
    requests: Counter
    duration: Histogram
    in_progress: Gauge
    exceptions: Counter
    sizes: tuple[Histogram, ...]
    """Of the body of the request, and of the answer; none unless asked for."""


@cache
def _families(namespace: str, buckets: tuple[float, ...], labels: tuple[str, ...], sizes: bool, max_series: int) -> _Families:
    """The metrics of such options, once per process, however many applications it has."""
    common: dict[str, Any] = {"namespace": namespace, "registry": None, "max_series": max_series}
    answer = ["method", "route", "status", *labels]

    def size(name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, answer, unit="bytes", buckets=SIZE_BUCKETS, **common)

    return _Families(
        Counter("http_requests", "Requests that were answered.", answer, **common),
        Histogram(
            "http_request_duration_seconds",
            "Time from the start of a request to the last byte of its answer.",
            answer,
            buckets=buckets,
            **common,
        ),
        Gauge("http_requests_in_progress", "Requests in progress.", ["method"], multiprocess_mode="livesum", **common),
        Counter("http_exceptions", "Exceptions that left a view.", ["method", "route", "exception", *labels], **common),
        (size("http_request_size", "Bytes of request bodies."), size("http_response_size", "Bytes of response bodies."))
        if sizes
        else (),
    )


class _WebSocketFamilies(NamedTuple):
    connections: Counter
    in_progress: Gauge
    duration: Histogram


@cache
def _websocket_families(namespace: str, labels: tuple[str, ...], max_series: int) -> _WebSocketFamilies:
    """The metrics of WebSockets, which only a process that had one declares."""
    common: dict[str, Any] = {"namespace": namespace, "registry": None, "max_series": max_series}
    route = ["route", *labels]
    return _WebSocketFamilies(
        Counter("websocket_connections", "WebSocket connections that were accepted.", route, **common),
        Gauge("websocket_connections_in_progress", "Open WebSocket connections.", multiprocess_mode="livesum", **common),
        Histogram(
            "websocket_duration_seconds",
            "Time from the acceptance of a WebSocket connection to its end.",
            route,
            buckets=WEBSOCKET_BUCKETS,
            **common,
        ),
    )


_Series = tuple[Counter, Histogram, list[Histogram]]
"""What counts the requests of one method, route and status, their durations, and the sizes if these are asked for."""


class HTTPMetrics:
    """Counts and times the requests of an application, and answers its scrapes.

    With a registry, its collectors come after what the storage holds.
    """

    def __init__(self, options: Options, registry: CollectorRegistry | None = None) -> None:
        self.options = options
        self._registry = registry
        self._current_exemplar = _exemplar_source(options)
        options.setup()
        self.families = _families(options.namespace, options.buckets, tuple(options.labels), options.sizes, options.max_series)
        exact = [pattern for pattern in options.exclude_paths if isinstance(pattern, str)]
        self._excluded = frozenset([*exact, options.metrics_path])
        self._patterns = [pattern for pattern in options.exclude_paths if not isinstance(pattern, str)]
        self._in_progress: dict[str, Callable[[float], None]] = {}
        self.series: dict[tuple[str, str, int, tuple[str, ...]], _Series] = {}
        """What requests change, by method, route, status and the application's own labels."""
        self.asks = bool(options.labels or options.exemplars)
        """Whether there is more to find out about a request than its method, route and status."""
        self._complained: set[str] = set()
        self._port: Port | None = None

    def track(self, method: str, path: str, look: Look | None = None, source: Any = None) -> Tracker | None:
        """Begin to track a request; None for one that is excluded. `look` and `source` are those of a `Tracker`."""
        if self._port is not None:
            self._port.open()
        if path in self._excluded or (self._patterns and self._excludes(path)):
            return None
        return Tracker(self, method if method in METHODS else OTHER_METHOD, look, source)

    def _excludes(self, path: str) -> bool:
        return path in self._excluded or any(pattern.fullmatch(path) for pattern in self._patterns)

    def in_progress(self, method: str) -> Callable[[float], None]:
        """What adds to the requests in progress of a method."""
        known = self._in_progress.get(method)
        if known is None:
            known = self.families.in_progress.labels(method)._cell.add
            if (method,) in self.families.in_progress._metrics:  # not the one for all that are over the limit
                self._in_progress[method] = known
        return known

    def new_series(self, method: str, route: str, status: int, labels: tuple[str, ...]) -> _Series:
        """What a request with that answer changes, for the first time."""
        values = (method, route, f"{status // 100}xx" if self.options.group_status else str(int(status)), *labels)
        families = self.families
        series = (
            families.requests.labels(*values),
            families.duration.labels(*values),
            [size.labels(*values) for size in families.sizes],
        )
        if values in families.requests._metrics:  # not one for all that are over the limit
            self.series[method, route, status, labels] = series
        return series

    def labels(self, request: Any) -> tuple[str, ...]:
        """The values of the application's own labels for a request, empty where a callable has none or fails."""
        return tuple(self._label(name, label, request) for name, label in self.options.labels.items())

    def _label(self, name: str, label: Label, request: Any) -> str:
        if isinstance(label, str):
            return label
        try:
            value = None if request is None else label(request)
            return "" if value is None else str(value)
        except Exception as error:  # a label must not break a request
            self._complain(f"the label {name!r} failed and is left empty", error)
            return ""

    def exemplar(self) -> dict[str, str] | None:
        """The exemplar for the request that is being handled, if there is one."""
        if self._current_exemplar is None:
            return None
        try:
            found = self._current_exemplar()
            exemplar = None if found is None else {name: str(value) for name, value in found.items()}
            _validate_exemplar(exemplar or {})
        except Exception as error:  # nor must an exemplar
            self._complain("the exemplar failed and is left out", error)
            return None
        return exemplar

    def _complain(self, message: str, error: Exception | None = None) -> None:
        """Log a fault of the configuration, once per application; raise what the application raised into it."""
        if error is not None and (raised := interruption(error)) is not None:
            raise raised
        if message not in self._complained:
            self._complained.add(message)
            log.write(logging.WARNING, message, error=error)

    def open_port(self) -> None:
        """Serve scrapes on PDC_METRICS_PORT, if there is one; called by processes that serve requests, once they begin to."""
        if self.options.metrics_port is not None:
            self._port = Port.of(self.options.metrics_port, self._serve)
            self._port.open()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self.answer(scrape_from_wsgi(environ), environ.get("HTTP_AUTHORIZATION", ""))
        return respond(response, start_response)

    def answer(self, scrape: Scrape, authorization: str = "") -> Response:
        """Answer a scrape whose header Authorization is given; 401 without the right token."""
        token = self.options.metrics_token
        if token is not None and not hmac.compare_digest(_bytes(authorization), _bytes(f"Bearer {token}")):
            challenge = ("WWW-Authenticate", "Bearer")
            return plain(HTTPStatus.UNAUTHORIZED, "metrics need the header Authorization: Bearer <token>", challenge)
        return scrape.answer(self._registry)

    def wsgi(self, app: WSGIApplication) -> WSGIApplication:
        """Track the requests of a WSGI application; the framework finds its tracker in ``environ[TRACKER]``."""

        def tracked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            tracker = self.track(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
            if tracker is None:
                return app(environ, start_response)
            environ[TRACKER] = tracker
            if self.options.sizes:
                tracker.received = content_length(environ.get("CONTENT_LENGTH", ""))

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
                tracker.started(int(status[:3]), headers)
                return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

            try:
                body = app(environ, start)
            except BaseException as error:
                tracker.fail(error)
                raise
            if tracker.complete and not self.options.sizes:
                tracker.finish()
                return body
            file_wrapper: Any = environ.get("wsgi.file_wrapper")
            if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
                return _sent_by_server(body, tracker)
            return Body(tracker, body)

        return tracked

    async def asgi(self, app: ASGIApplication, scope: Scope, receive: Receive, send: Send, look: Look) -> None:
        """Track an HTTP request of an ASGI application; the framework finds its tracker in ``scope[TRACKER]``.

        `look` is that of a `Tracker`; its source is the scope.
        """
        tracker = scope[TRACKER] = self.track(scope["method"], asgi_path(scope), look, scope)
        if tracker is None:
            await app(scope, receive, send)
            return
        if self.options.sizes:
            lengths = [value for name, value in scope.get("headers", ()) if name == b"content-length"]
            tracker.received = content_length(lengths[0].decode("latin-1")) if lengths else 0
        channel = _Channel(tracker, receive, send)
        try:
            await app(scope, channel.receive, channel.send)
        except BaseException as error:
            channel.ended(error)
            raise
        if not tracker.finished:
            channel.ended(None)

    async def websocket(
        self, app: ASGIApplication, scope: Scope, receive: Receive, send: Send, look: Callable[[Scope, Connection], None]
    ) -> None:
        """Count and time a WebSocket connection of an ASGI application; one that is never accepted is none.

        `look` tells the route and the request when the connection is accepted.
        """
        scope[TRACKER] = None
        if self._excludes(asgi_path(scope)):
            await app(scope, receive, send)
            return
        connection = Connection(self, partial(look, scope))

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "websocket.accept":
                connection.opened()
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            connection.closed()


class Tracker:
    """One request, from its start until its last byte is handed to the server. Its methods raise nothing of their own.

    The framework says what it knows: `request`, as callables for labels take it, and `route`; or `look` does so, which is
    called once with its `source` and the tracker, when they are first needed: when the answer starts, an exception is
    counted, or the application ends without an answer. A body that is `complete` need not be watched. With
    `has_error_page` a tracker finishes a request by itself whose application raised before the answer started, after
    making the answer.
    """

    __slots__ = (
        *("_exception", "_exemplar", "_headers", "_in_progress", "_known", "_labels", "_look", "_method", "_metrics"),
        *("_source", "_start", "complete", "finished", "gone", "has_error_page", "received", "request", "route", "sent"),
        "status",
    )

    def __init__(self, metrics: HTTPMetrics, method: str, look: Look | None, source: Any) -> None:
        self._metrics = metrics
        self._method = method
        self._look = look
        self._source = source
        self._known = look is None and not metrics.asks
        self.complete = self.finished = self.gone = self.has_error_page = False
        self._labels: tuple[str, ...] = ()
        self._headers: Iterable[Header] | None = None
        self._exemplar: dict[str, str] | None = None
        self._exception: BaseException | None = None
        self.request: Any = None
        self.route = UNMATCHED
        self.status = 500
        self.received = self.sent = 0
        self._start = perf_counter()
        try:
            self._in_progress = metrics._in_progress.get(method) or metrics.in_progress(method)
            self._in_progress(1.0)
        except Exception as error:
            log_or_raise(error, "a request could not be tracked")
            self.finished = True

    def started(self, status: int, headers: Iterable[Header]) -> None:
        """Note the start of the answer, while the request is being handled."""
        self.status = status
        self._headers = headers
        if not self._known:
            self._learn()

    def body_bytes(self) -> float:
        """How long the body of the answer will be; infinite where only its end can tell."""
        if self._headers is None:  # nothing was said yet
            return math.inf
        if self._method == "HEAD" or self.status in WITHOUT_BODY:
            return 0.0
        for name, value in self._headers:
            if len(name) == len("content-length") and _text(name).lower() == "content-length" and _text(value).isdecimal():
                return float(value)
        return math.inf

    def raised(self, error: BaseException) -> None:
        """Count an exception that left the view, once however often it is seen; exits are none, nor is a client that went."""
        if error is self._exception or self.gone or not isinstance(error, Exception):
            return
        self._exception = error
        if not self._known:
            self._learn()
        if self.finished:
            return
        metrics, labels = self._metrics, self._labels
        try:
            metrics.families.exceptions.labels(self._method, self.route, type(error).__name__, *labels).inc()
        except Exception as error:
            log_or_raise(error, "an exception could not be counted")

    def finish(self) -> None:
        """Count and time the request; only the first call does."""
        duration = perf_counter() - self._start
        if not self._known:
            self._learn()  # which may forget the request
        if self.finished:
            return
        self.finished = True
        try:
            self._in_progress(-1.0)
            key = (self._method, self.route, self.status, self._labels)
            requests, durations, sizes = self._metrics.series.get(key) or self._metrics.new_series(*key)
            requests.inc(1.0, self._exemplar)
            durations.observe(duration, self._exemplar)
            if sizes:
                sizes[0].observe(self.received)
                sizes[1].observe(self.sent)
        except Exception as error:
            log_or_raise(error, "a request could not be counted")
        self.request = self._source = self._exception = None  # they hold the tracker: only the garbage collector would free all

    def all_sent(self) -> None:
        """Finish a request whose body the server sends by itself."""
        length = self.body_bytes()
        self.sent = int(length) if math.isfinite(length) else 0
        self.finish()

    def forget(self) -> None:
        """Do not count the request after all."""
        if self.finished:
            return
        self.finished = True
        try:
            self._in_progress(-1.0)
        except Exception as error:
            log_or_raise(error, "a request could not be left out")
        self.request = self._source = self._exception = None

    def fail(self, error: BaseException) -> None:
        """End a request whose application raised: nothing but an error 500 can have come of it."""
        self.raised(error)
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.finish()

    def _learn(self) -> None:
        """Find out the route, the application's labels and the exemplar."""
        self._known = True
        try:
            if self._look is not None:
                self._look(self._source, self)
        except Exception as error:
            log_or_raise(error, "the route of a request could not be found")
        if self._metrics.asks:
            self._labels = self._metrics.labels(self.request)
            self._exemplar = self._metrics.exemplar()


Header = tuple[str, str] | tuple[bytes, bytes]
Look = Callable[[Any, Tracker], None]
"""Says the route and the request to a tracker, of what it was given as its source."""


class Connection:
    """One WebSocket connection; `look` is called to set `request` and `route`. Its methods never raise."""

    __slots__ = ("_forgotten", "_labels", "_look", "_metrics", "_start", "request", "route")

    def __init__(self, metrics: HTTPMetrics, look: Callable[[Connection], None]) -> None:
        self._metrics = metrics
        self._look = look
        self._forgotten = False
        self._labels: tuple[str, ...] = ()
        self._start: float | None = None
        self.request: Any = None
        self.route = UNMATCHED

    def opened(self) -> None:
        """Count the connection."""
        try:
            self._look(self)
            if self._forgotten:
                return
            self._labels = (self.route, *self._metrics.labels(self.request))
            self._families.connections.labels(*self._labels).inc()
            self._families.in_progress.inc()
        except Exception as error:
            log_or_raise(error, "a WebSocket connection could not be counted")
        else:
            self._start = perf_counter()

    def forget(self) -> None:
        """Do not count the connection after all."""
        self._forgotten = True

    def closed(self) -> None:
        """Time the connection, if it was ever opened."""
        if self._start is None:
            return
        try:
            self._families.in_progress.dec()
            self._families.duration.labels(*self._labels).observe(perf_counter() - self._start)
        except Exception as error:
            log_or_raise(error, "a WebSocket connection could not be timed")

    @property
    def _families(self) -> _WebSocketFamilies:
        options = self._metrics.options
        return _websocket_families(options.namespace, tuple(options.labels), options.max_series)


def _sent_by_server(file: Any, tracker: Tracker) -> Iterable[bytes]:
    """A file that the server sends by itself (PEP 3333, ``wsgi.file_wrapper``): it stays what it is, and ends the request."""
    close: Callable[[], None] | None = getattr(file, "close", None)

    def finish_and_close() -> None:
        tracker.all_sent()
        if close is not None:
            close()

    file.close = finish_and_close
    return file  # type: ignore[no-any-return]


class _AnyBody:
    """A body that is watched: read to its end, broken by an exception, or left by a client that went away."""

    __slots__ = ("_body", "_iterator", "_left", "_tracker")

    _iterate: Callable[[Any], Any]

    def __init__(self, tracker: Tracker, body: Any) -> None:
        self._tracker = tracker
        self._body = body
        self._left = tracker.body_bytes()
        self._iterator = self._iterate(body)

    def _passed(self, chunk: bytes) -> None:
        self._tracker.sent += len(chunk)
        self._left -= len(chunk)
        if self._left <= 0:
            self._tracker.finish()

    def _ended(self, error: BaseException | None) -> None:
        self._left = 0
        if error is not None:
            self._tracker.raised(error)
        self._tracker.finish()

    def close(self) -> None:
        """Finish the request; the server calls this whatever became of it (PEP 3333)."""
        if not self._tracker.finished:
            if self._left > 0:
                self._tracker.status = CLIENT_CLOSED_REQUEST
            self._tracker.finish()
        if hasattr(self._body, "close"):
            self._body.close()


class Body(_AnyBody):
    """The watched body of a WSGI answer."""

    __slots__ = ()

    _iterate = staticmethod(iter)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._iterator:
                self._passed(chunk)
                yield chunk
        except GeneratorExit:  # `close` tells what that means
            raise
        except BaseException as error:
            self._ended(error)
            raise
        if not self._tracker.finished:
            self._ended(None)


class AsyncBody(_AnyBody):
    """The watched body of an answer that is made asynchronously; what is dropped unread was left, too."""

    __slots__ = ()

    _iterate = staticmethod(aiter)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await self._iterator.__anext__()
        except StopAsyncIteration:
            self._ended(None)
            raise
        except Exception as error:
            self._ended(error)
            raise
        self._passed(chunk)
        return chunk

    def __del__(self) -> None:
        self.close()


class _Channel:
    """The messages of one ASGI request, which are watched."""

    __slots__ = ("_length_is_known", "_receive", "_send", "_started", "_tracker")

    def __init__(self, tracker: Tracker, receive: Receive, send: Send) -> None:
        self._tracker = tracker
        self._receive = receive
        self._send = send
        self._length_is_known = tracker.received > 0
        self._started = False

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._tracker.gone = True
        if not self._length_is_known:
            self._tracker.received += len(message.get("body", b""))
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        tracker, kind = self._tracker, message["type"]
        if kind == "http.response.start":
            tracker.started(message["status"], message.get("headers", ()))
            self._started = True
        try:
            await self._send(message)
        except OSError:  # what a server raises for a client that is gone (ASGI 2.4)
            tracker.gone = True
            raise
        if kind == "http.response.body":
            tracker.sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                tracker.finish()
        elif kind == "http.response.pathsend":  # a file that the server sends by itself is all of the body
            tracker.all_sent()

    def ended(self, error: BaseException | None) -> None:
        """Finish the request, unless its answer was complete; a server cancels one whose client is gone."""
        if self._tracker.gone or (error is not None and not isinstance(error, Exception)):
            self._tracker.status = CLIENT_CLOSED_REQUEST
        elif error is not None:
            self._tracker.raised(error)
            if self._tracker.has_error_page and not self._started:
                return
        self._tracker.finish()


def _text(header: str | bytes) -> str:
    """The name or value of a header as WSGI has it; ASGI has bytes."""
    return header if isinstance(header, str) else header.decode("latin-1")


def asgi_path(scope: Scope) -> str:
    """The path of an ASGI request below the `root_path` of its application."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def content_length(header: str) -> int:
    """The value of a header Content-Length, 0 for none or one that is malformed or absurd."""
    return int(header) if header.isdecimal() and len(header) <= MOST_DIGITS else 0


def _exemplar_source(options: Options) -> Callable[[], Mapping[str, str] | None] | None:
    """What gives the exemplar of the current request. Raises OptionError where OpenTelemetry is wanted but missing."""
    if callable(options.exemplars):
        return options.exemplars
    if not options.exemplars:
        return None
    try:
        trace = importlib.import_module("opentelemetry.trace")
    except ImportError as error:
        raise OptionError(
            "PDC_EXEMPLARS=True needs OpenTelemetry: pip install opentelemetry-api, or give a callable"
        ) from error

    def current() -> dict[str, str] | None:
        span = trace.get_current_span().get_span_context()
        return {"trace_id": trace.format_trace_id(span.trace_id)} if span.is_valid and span.trace_flags.sampled else None

    return current


def _bytes(text: str) -> bytes:
    """The text in UTF-8, also where it has lone surrogates, as an environment variable may."""
    return text.encode(errors="surrogatepass")
