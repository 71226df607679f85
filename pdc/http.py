"""Metrics of HTTP requests, the same in every framework: options, one tracker per request, and the metrics endpoint."""

from __future__ import annotations

import hmac
import importlib
import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cache
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prometheus_client.registry import CollectorRegistry
from prometheus_client.validation import _validate_exemplar

from . import health
from .exposition import ASGIApplication, Port, Receive, Response, Scope, Scrape, Send, plain, respond, scrape_from_wsgi
from .metrics import Counter, Gauge, Histogram, StoredMetric
from .options import Label, OptionError, Options

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("pdc")

MetricT = TypeVar("MetricT", bound=StoredMetric)
ViewT = TypeVar("ViewT", bound=Callable[..., Any])

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "<other>"
UNMATCHED = "<unmatched>"
OVERFLOW = "<overflow>"
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
    sizes: tuple[Histogram, Histogram] | None


@cache
def _families(namespace: str, buckets: tuple[float, ...], labels: tuple[str, ...], sizes: bool) -> _Families:
    """The metrics of such options, once per process, however many applications it has."""
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
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
        else None,
    )


class _WebSocketFamilies(NamedTuple):
    connections: Counter
    in_progress: Gauge
    duration: Histogram


@cache
def _websocket_families(namespace: str, labels: tuple[str, ...]) -> _WebSocketFamilies:
    """The metrics of WebSockets, which only a process that had one declares."""
    common: dict[str, Any] = {"namespace": namespace, "registry": None}
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


class HTTPMetrics:
    """Counts and times the requests of an application, and answers its scrapes.

    With a registry, its collectors come after what the storage holds.
    """

    def __init__(self, options: Options, registry: CollectorRegistry | None = None) -> None:
        self.options = options
        self._registry = registry
        self._current_exemplar = _exemplar_source(options)
        options.setup()
        self.families = _families(options.namespace, options.buckets, tuple(options.labels), options.sizes)
        exact = [pattern for pattern in options.exclude_paths if isinstance(pattern, str)]
        self._excluded = frozenset([*exact, options.metrics_path])
        self._patterns = [pattern for pattern in options.exclude_paths if not isinstance(pattern, str)]
        self._complained: set[str] = set()
        self._port: Port | None = None

    def track(self, method: str, path: str) -> Tracker | None:
        """Begin to track a request; None for one that is excluded."""
        if self._port is not None:
            self._port.open()
        return None if self._excludes(path) else Tracker(self, method if method in METHODS else OTHER_METHOD)

    def _excludes(self, path: str) -> bool:
        return path in self._excluded or (self._patterns != [] and any(pattern.fullmatch(path) for pattern in self._patterns))

    def bounded(self, metric: MetricT, *values: str) -> MetricT:
        """The series of a metric with these label values, or one for all that are over the limit of its series."""
        known: MetricT | None = metric._metrics.get(values)
        if known is not None:
            return known
        if len(metric._metrics) >= self.options.max_series:
            self._complain(f"{metric} has {self.options.max_series} series (PDC_MAX_SERIES): new ones count as {OVERFLOW!r}")
            metric.buffer.health.count(health.SERIES_REFUSED)
            values = (OVERFLOW,) * len(values)
        return metric.labels(*values)

    def labels(self, request: Any) -> tuple[str, ...]:
        """The values of the application's own labels for a request, empty where a callable has none or fails."""
        labels = self.options.labels
        return tuple(self._label(name, label, request) for name, label in labels.items()) if labels else ()

    def _label(self, name: str, label: Label, request: Any) -> str:
        if isinstance(label, str):
            return label
        try:
            value = None if request is None else label(request)
            return "" if value is None else str(value)
        except Exception:  # noqa: BLE001 - a label must not break a request; the log has the traceback
            self._complain(f"the label {name!r} failed and is left empty", exc_info=True)
            return ""

    def exemplar(self) -> dict[str, str] | None:
        """The exemplar for the request that is being handled, if there is one."""
        if self._current_exemplar is None:
            return None
        try:
            found = self._current_exemplar()
            exemplar = None if found is None else {name: str(value) for name, value in found.items()}
            _validate_exemplar(exemplar or {})
        except Exception:  # noqa: BLE001 - nor must an exemplar
            self._complain("the exemplar failed and is left out", exc_info=True)
            return None
        return exemplar

    def _complain(self, message: str, *, exc_info: bool = False) -> None:
        """Log a fault of the configuration, once per application."""
        if message not in self._complained:
            self._complained.add(message)
            logger.warning(message, exc_info=exc_info)

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
            tracker.received = content_length(environ.get("CONTENT_LENGTH", ""))

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
                tracker.started(int(status[:3]), headers)
                return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

            try:
                body = app(environ, start)
            except BaseException as error:
                tracker.fail(error)
                raise
            return _watched(body, tracker, environ.get("wsgi.file_wrapper"))

        return tracked

    async def asgi(
        self, app: ASGIApplication, scope: Scope, receive: Receive, send: Send, look: Callable[[Tracker], None]
    ) -> None:
        """Track an HTTP request of an ASGI application; the framework finds its tracker in ``scope[TRACKER]``.

        `look` tells the tracker the route and the request. It is called once, when they are first needed: when the answer
        starts, an exception is counted, or the application ends without an answer.
        """
        tracker = scope[TRACKER] = self.track(scope["method"], asgi_path(scope))
        if tracker is None:
            await app(scope, receive, send)
            return
        tracker.look = look
        for name, value in scope.get("headers", ()):
            if name == b"content-length":
                tracker.received = content_length(value.decode("latin-1"))
                break
        channel = _Channel(tracker, receive, send)
        try:
            await app(scope, channel.receive, channel.send)
        except BaseException as error:
            channel.ended(error)
            raise
        channel.ended(None)

    async def websocket(
        self, app: ASGIApplication, scope: Scope, receive: Receive, send: Send, look: Callable[[Connection], None]
    ) -> None:
        """Count and time a WebSocket connection of an ASGI application; one that is never accepted is none.

        `look` tells the route and the request when the connection is accepted.
        """
        scope[TRACKER] = None
        if self._excludes(asgi_path(scope)):
            await app(scope, receive, send)
            return
        connection = Connection(self, look)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "websocket.accept":
                connection.opened()
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            connection.closed()


class Tracker:
    """One request, from its start until its last byte is handed to the server. Its methods never raise.

    The framework says what it knows: `request`, as callables for labels take it, and `route`; or it sets `look`, which
    does so when they are first needed. With `has_error_page` it finishes a request by itself whose application raised
    before the answer started, after making the answer.
    """

    __slots__ = (
        *("_exception", "_exemplar", "_finished", "_labels", "_method", "_metrics", "_start"),
        *("body_bytes", "gone", "has_error_page", "look", "received", "request", "route", "sent", "status"),
    )

    def __init__(self, metrics: HTTPMetrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._labels: tuple[str, ...] | None = None
        self._exemplar: dict[str, str] | None = None
        self._exception: BaseException | None = None
        self._finished = False
        self.look: Callable[[Tracker], None] = _know_nothing
        self.gone = False
        self.has_error_page = False
        self.request: Any = None
        self.route = UNMATCHED
        self.status = 500
        self.body_bytes = math.inf
        self.received = self.sent = 0
        self._start = perf_counter()
        try:
            metrics.bounded(metrics.families.in_progress, method).inc()
        except Exception:
            logger.exception("a request could not be tracked")
            self._finished = True

    def started(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Note the start of the answer, while the request is being handled."""
        self.status = status
        self.body_bytes = 0.0 if self._method == "HEAD" else _body_bytes(status, headers)
        self._labelled()

    def raised(self, error: BaseException) -> None:
        """Count an exception that left the view, once however often it is seen; exits are none, nor is a client that went."""
        if error is self._exception or self.gone or not isinstance(error, Exception):
            return
        self._exception = error
        metrics, labels = self._metrics, self._labelled()
        if self._finished:
            return
        try:
            metrics.bounded(metrics.families.exceptions, self._method, self.route, type(error).__name__, *labels).inc()
        except Exception:
            logger.exception("an exception could not be counted")

    def finish(self) -> None:
        """Count and time the request; only the first call does."""
        duration = perf_counter() - self._start
        labels = self._labelled()  # which may forget the request
        if self._finished:
            return
        self._finished = True
        metrics, families = self._metrics, self._metrics.families
        status = f"{self.status // 100}xx" if metrics.options.group_status else str(self.status)
        values = (self._method, self.route, status, *labels)
        try:
            metrics.bounded(families.in_progress, self._method).dec()
            metrics.bounded(families.requests, *values).inc(1, self._exemplar)
            metrics.bounded(families.duration, *values).observe(duration, self._exemplar)
            if families.sizes is not None:
                for size, count in zip(families.sizes, (self.received, self.sent), strict=True):
                    metrics.bounded(size, *values).observe(count)
        except Exception:
            logger.exception("a request could not be counted")
        self._let_go()

    def forget(self) -> None:
        """Do not count the request after all."""
        if self._finished:
            return
        self._finished = True
        try:
            self._metrics.bounded(self._metrics.families.in_progress, self._method).dec()
        except Exception:
            logger.exception("a request could not be left out")
        self._let_go()

    def _let_go(self) -> None:
        """Hold the request no longer, which holds the tracker: only the garbage collector would free the two."""
        self.request, self.look, self._exception = None, _know_nothing, None

    def fail(self, error: BaseException) -> None:
        """End a request whose application raised: nothing but an error 500 can have come of it."""
        self.raised(error)
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.finish()

    def _labelled(self) -> tuple[str, ...]:
        """The application's labels, found out with the route and the exemplar when they are first needed."""
        if self._labels is None:
            try:
                self.look(self)
            except Exception:
                logger.exception("the route of a request could not be found")
            self._labels = self._metrics.labels(self.request)
            self._exemplar = self._metrics.exemplar()
        return self._labels


def _know_nothing(_: Tracker) -> None:
    """Say nothing of the request."""


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
            self._metrics.bounded(self._families.connections, *self._labels).inc()
            self._families.in_progress.inc()
        except Exception:
            logger.exception("a WebSocket connection could not be counted")
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
            self._metrics.bounded(self._families.duration, *self._labels).observe(perf_counter() - self._start)
        except Exception:
            logger.exception("a WebSocket connection could not be timed")

    @property
    def _families(self) -> _WebSocketFamilies:
        options = self._metrics.options
        return _websocket_families(options.namespace, tuple(options.labels))


def _watched(body: Iterable[bytes], tracker: Tracker, file_wrapper: Any) -> Iterable[bytes]:
    """The body of a WSGI answer, which finishes the request at its end.

    What the server would send by itself from a file (PEP 3333, ``wsgi.file_wrapper``) is left as it is.
    """
    if not (isinstance(file_wrapper, type) and isinstance(body, file_wrapper)):
        return Body(tracker, body)
    file: Any = body
    close: Callable[[], None] | None = getattr(file, "close", None)

    def finish_and_close() -> None:
        if math.isfinite(tracker.body_bytes):
            tracker.sent = int(tracker.body_bytes)
        tracker.finish()
        if close is not None:
            close()

    file.close = finish_and_close
    return body


class _AnyBody:
    """A body that is watched: read to its end, broken by an exception, or left by a client that went away."""

    def __init__(self, tracker: Tracker, body: Any) -> None:
        self._tracker = tracker
        self._body = body
        self._left = tracker.body_bytes

    def _passed(self, chunk: bytes) -> bytes:
        self._tracker.sent += len(chunk)
        self._left -= len(chunk)
        if self._left <= 0:
            self._tracker.finish()
        return chunk

    def _ended(self, error: BaseException | None) -> None:
        self._left = 0
        if error is not None:
            self._tracker.raised(error)
        self._tracker.finish()

    def close(self) -> None:
        """Finish the request; the server calls this whatever became of it (PEP 3333)."""
        if self._left > 0:
            self._tracker.status = CLIENT_CLOSED_REQUEST
        self._tracker.finish()
        if hasattr(self._body, "close"):
            self._body.close()


class Body(_AnyBody):
    """The watched body of a WSGI answer."""

    def __init__(self, tracker: Tracker, body: Iterable[bytes]) -> None:
        super().__init__(tracker, body)
        self._iterator = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return self._passed(next(self._iterator))
        except BaseException as error:
            self._ended(None if isinstance(error, StopIteration) else error)
            raise


class AsyncBody(_AnyBody):
    """The watched body of an answer that is made asynchronously; what is dropped unread was left, too."""

    def __init__(self, tracker: Tracker, body: AsyncIterable[bytes]) -> None:
        super().__init__(tracker, body)
        self._iterator = body.__aiter__()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return self._passed(await self._iterator.__anext__())
        except StopAsyncIteration:
            self._ended(None)
            raise
        except Exception as error:
            self._ended(error)
            raise

    def __del__(self) -> None:
        self.close()


class _Channel:
    """The messages of one ASGI request, which are watched."""

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
        tracker = self._tracker
        if message["type"] == "http.response.start":
            headers = [item for item in message.get("headers", ()) if item[0].lower() == b"content-length"]
            tracker.started(message["status"], [("content-length", value.decode("latin-1")) for _, value in headers])
            self._started = True
        try:
            await self._send(message)
        except OSError:  # what a server raises for a client that is gone (ASGI 2.4)
            tracker.gone = True
            raise
        if message["type"] == "http.response.body":
            tracker.sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                tracker.finish()
        elif message["type"] == "http.response.pathsend":  # a file that the server sends by itself is all of the body
            tracker.sent = int(tracker.body_bytes) if math.isfinite(tracker.body_bytes) else 0
            tracker.finish()

    def ended(self, error: BaseException | None) -> None:
        """Finish the request, unless its answer was complete; a server cancels one whose client is gone."""
        if self._tracker.gone or (error is not None and not isinstance(error, Exception)):
            self._tracker.status = CLIENT_CLOSED_REQUEST
        elif error is not None:
            self._tracker.raised(error)
            if self._tracker.has_error_page and not self._started:
                return
        self._tracker.finish()


def asgi_path(scope: Scope) -> str:
    """The path of an ASGI request below the `root_path` of its application."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _body_bytes(status: int, headers: Iterable[tuple[str, str]]) -> float:
    """How long the body will be; infinite where only its end can tell."""
    if status in WITHOUT_BODY:
        return 0.0
    for name, value in headers:
        if name.lower() == "content-length" and value.isdecimal():
            return float(value)
    return math.inf


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
