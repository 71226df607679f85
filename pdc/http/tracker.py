"""One request, or one WebSocket connection, from its start to its end; neutral to servers and frameworks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import perf_counter
from typing import Any, NamedTuple

from ..process.log import log_or_raise
from .families import RequestSeries
from .labels import RequestLabels
from .names import METHODS, OTHER_METHOD, UNMATCHED

CLIENT_CLOSED_REQUEST = 499
TRACKER = "pdc.tracker"
"""The key of a request's tracker in its WSGI environment or ASGI scope."""
WITHOUT_BODY = frozenset({204, 304})
"""The statuses whose responses have no body, whatever their headers say."""
MOST_DIGITS = 18
"""Of a length: longer bodies do not exist, and Python refuses to read a number of thousands of digits."""

Header = tuple[str, str] | tuple[bytes, bytes]


class ResponseStart(NamedTuple):
    """The start of an answer for which the framework has no object."""

    status_code: int
    headers: Any
    """A mapping in which case does not matter."""


class Match(NamedTuple):
    """The facts that a framework knows of a request or connection."""

    route: str = UNMATCHED
    """The template of the route, with the prefixes of mounts."""
    request: Any = None
    """The object that callables for labels take."""
    excluded: bool = False
    """True if `exclude` decorates the view."""
    is_mount: bool = False
    """True if another application is mounted there, which may know the rest of the route."""


FindRoute = Callable[[Any], Match]
"""Resolves route and request from the tracker's source."""


class Tracker:
    """One request, from its start until its last byte is handed to the server. Its methods raise no errors of their own.

    A framework sets `route` and `request`, or gives a `find_route`. That is called once, with `source`, when the match is first
    needed: when the answer starts, an exception is counted, or the application ends without an answer. Then come `started`, and
    `finish` or one of its variants: `answered`, `all_sent`, `abandon`, `fail`. Until then it may replace `source`, which a
    middleware in between may have changed or copied, and set `response`, if it has an object for that, and `is_buffered`. One
    that can await sets `may_wait` where callables of labels may return awaitables, and calls `learn` before the others.
    """

    finished: bool
    gone: bool
    """True once the client is gone: exceptions from then on are not the application's."""
    is_buffered = False
    """True where the body of the answer is in memory, in one piece: it need not be watched."""
    may_wait: bool
    route = UNMATCHED
    request: Any = None
    """The object that callables for labels take."""
    response: Any = None
    until_start: float | None = None
    """The seconds until the answer started, where a subclass measures them."""
    reads_answer = False
    """True where a subclass reads the headers of each answer."""
    _status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
    _received = 0
    _headers: Iterable[Header] | None = None
    _exception: Exception | None = None
    _uncounted: tuple[Exception, ...]
    _label_values: tuple[str, ...]
    _exemplar: dict[str, str] | None

    def begin(
        self, series: RequestSeries, labels: RequestLabels, method: str, find_route: FindRoute | None, source: Any
    ) -> None:
        """Begin to track a request of that method. A constructor would take longer, as do reads of defaults of the class."""
        self._series = series
        self._labels = labels
        self._method = method
        self._find_route = find_route
        self.source = source
        self._known = find_route is None and not labels.are_asked_for
        self.finished, self.gone, self.may_wait = False, False, False
        self._uncounted, self._label_values, self._exemplar = (), (), None
        self._start = perf_counter()
        try:
            add = series.adders.get(method)
            if add is None:
                self._method = method if method in METHODS else OTHER_METHOD
                add = series.adders.get(self._method) or series.adder(self._method, find_route, source)
            self._in_progress = add
            add(1.0)
        except Exception as error:
            log_or_raise(error, "a request could not be tracked")
            self.finished = True

    def enter(self) -> None:
        """Show the request in progress under its route: for PDC_IN_PROGRESS_BY_ROUTE without a `find_route`."""
        if self.finished:
            return
        try:
            self._in_progress(-1.0)
            self._in_progress = self._series.adder_of(self._method, self.route)
            self._in_progress(1.0)
        except Exception as error:
            log_or_raise(error, "a request in progress could not be shown")

    async def learn(self, status: int = 500, headers: Iterable[Header] | None = None) -> None:
        """Find out the route and the labels, and await what callables return; `may_wait` is true until this is called.

        An answer that starts has this status and these headers.
        """
        if not self.may_wait or self.finished:
            return
        self.may_wait = False
        self._status = status
        self._headers = headers
        self._learn(without_labels=True)
        self._label_values = self._labels.defaults  # for a request that is cancelled meanwhile
        if not self.finished:
            response = self._answer() if self._labels.take_response else None
            self._label_values = await self._labels.awaited(self.request, response)
            self._exemplar = self._labels.exemplar(self.request)
            self._count_exceptions()

    def hand_over(self, find_inner: FindRoute | None = None, root: str = "") -> None:
        """Let an application that is inside this one find the route, or set it.

        Its routes begin with `root`, the path of the mount, of which this one may know the template.
        """
        find_outer, outer_source = self._find_route, self.source

        def find(source: Any) -> Match:
            outer = Match(request=self.request) if find_outer is None else find_outer(outer_source)
            return _joined(outer, Match(self.route) if find_inner is None else find_inner(source), root)

        if not self.finished and (find_inner is not None or find_outer is not None):
            self._find_route, self._known = find, False

    def read(self, length: int) -> None:
        """Add to the length of the request's body."""
        self._received += length

    def started(self, status: int, headers: Iterable[Header]) -> None:
        """Note the start of the answer, while the request is being handled."""
        self._status = status
        self._headers = headers
        if not self._known:
            self._learn()

    def disconnected(self) -> None:
        """Note that the client is gone: exceptions from now on are not the application's."""
        self.gone = True

    @property
    def has_started(self) -> bool:
        """True once the answer has started."""
        return self._headers is not None

    def body_bytes(self) -> float:
        """The length of the answer's body; infinite if only its end shows it."""
        if self._headers is None:
            return math.inf
        if self._method == "HEAD" or self._status in WITHOUT_BODY:
            return 0.0
        for name, value in self._headers:
            if len(name) == len("content-length") and _text(name).lower() == "content-length" and _text(value).isdecimal():
                return float(value)
        return math.inf

    def raised(self, error: BaseException) -> None:
        """Count an exception that left the view, once. Ignores exits and disconnected clients."""
        if error is self._exception or self.gone or not isinstance(error, Exception):
            return
        self._exception = error
        self._uncounted = (*self._uncounted, error)
        if self.may_wait or (self._labels.take_response and not self._known):  # until the response is there
            return
        if not self._known:
            self._learn()
        self._count_exceptions()

    def _count_exceptions(self) -> None:
        errors, self._uncounted = self._uncounted, ()
        if self.finished:
            return
        try:
            for error in errors:
                self._series.raised(self._method, self.route, type(error).__name__, self._label_values)
        except Exception as error:
            log_or_raise(error, "an exception could not be counted")

    def finish(self, sent: int = 0) -> None:
        """Count and time the request, whose answer had a body of `sent` bytes; only the first call has an effect."""
        duration = perf_counter() - self._start
        if not self._known:
            self._learn()  # which may forget the request
        if self._uncounted:
            self._count_exceptions()
        if self.finished:
            return
        self.finished = True
        try:
            key = (self._method, self.route, self._status, self._label_values)
            requests, durations, more, finish = self._series.known.get(key) or self._series.find(*key)
            if finish is not None and self._exemplar is None:
                finish(duration, self._in_progress)
            else:
                self._in_progress(-1.0)
                requests.inc(1.0, self._exemplar)
                durations.observe(duration, self._exemplar)
            if more:
                measured = (1.0, duration, self._received, sent, self.until_start)  # as `MEASURED` has them
                _observe((measured[place], observe) for place, observe in more)
        except Exception as error:
            log_or_raise(error, "a request could not be counted")
        # Only the garbage collector would free a cycle with the tracker.
        self.request, self.response, self.source, self._exception, self._find_route = None, None, None, None, None

    def answered(self, status: int, length: int) -> None:
        """Finish a request whose answer is complete: its status, and the length of its body unless the headers say less."""
        self._status = status
        self.finish(int(min(length, self.body_bytes())))

    def all_sent(self) -> None:
        """Finish a request whose body the server sends by itself."""
        length = self.body_bytes()
        self.finish(int(length) if math.isfinite(length) else 0)

    def abandon(self, sent: int = 0) -> None:
        """Finish a request whose client did not wait for the end of the answer: status 499."""
        self._status = CLIENT_CLOSED_REQUEST
        self.finish(sent)

    def fail(self, error: BaseException) -> None:
        """Count the exception and finish the request as status 500."""
        self.raised(error)
        if not self.has_started:  # and never will
            self.response = None
        self._status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.finish()

    def forget(self) -> None:
        """Do not count the request after all; its route is not asked for any more."""
        if self.finished:
            return
        self.finished = self._known = True
        self.may_wait = False
        try:
            self._in_progress(-1.0)
        except Exception as error:
            log_or_raise(error, "a request could not be left out")
        self.request = self.response = self.source = self._exception = self._find_route = None
        self._uncounted = ()

    def _answer(self) -> Any:
        """The response; None before it starts, and for a client that left before."""
        if self.response is None and self._headers is not None and not self.gone:
            self.response = ResponseStart(int(self._status), self._labels.make_headers(self._headers))
        return self.response

    def _learn(self, *, without_labels: bool = False) -> None:
        """Find out the route, the application's labels and the exemplar."""
        self._known = True
        try:
            if self._find_route is not None:
                self.route, request, excluded, _ = self._find_route(self.source)
                if request is not None:
                    self.request = request
                if excluded:
                    self.forget()
        except Exception as error:
            log_or_raise(error, "the route of a request could not be found")
        if self._labels.are_asked_for and not without_labels:
            response = self._answer() if self._labels.take_response else None
            self._label_values = self._labels.values(self.request, response, is_left=self.may_wait)
            self._exemplar = self._labels.exemplar(self.request)
            if self._uncounted:
                self._count_exceptions()


class Connection:
    """One WebSocket connection. Its methods raise no errors of their own."""

    __slots__ = (
        *("_counts_unmatched", "_exception", "_find_route", "_is_excluded", "_label_values", "_labels", "_series", "_start"),
        *("_uncounted", "gone", "source"),
    )

    def __init__(
        self, series: RequestSeries, labels: RequestLabels, find_route: FindRoute, source: Any, counts_unmatched: bool
    ) -> None:
        self._series = series
        self._labels = labels
        self._find_route = find_route
        self._counts_unmatched = counts_unmatched
        self.source = source
        self._is_excluded = self.gone = False
        self._label_values: tuple[str, ...] = ()
        self._exception: BaseException | None = None
        self._uncounted: BaseException | None = None
        self._start: float | None = None

    async def learn(self) -> None:
        """Find out the route and the labels, unless they are known, and await what callables return."""
        if self._label_values:
            return
        try:
            match = self._find_route(self.source)
            self._is_excluded = match.excluded or (match.route == UNMATCHED and not self._counts_unmatched)
            self._label_values = (match.route, *self._labels.defaults)  # for a connection that is cancelled meanwhile
            if self._labels.are_asked_for:
                self._label_values = (match.route, *await self._labels.awaited(match.request))
        except Exception as error:
            log_or_raise(error, "the route of a WebSocket connection could not be found")
            self._label_values = (UNMATCHED, *self._labels.defaults)
        if self._uncounted is not None:
            self._count(self._uncounted)

    def opened(self) -> None:
        """Count the connection once, unless its endpoint is excluded; `learn` was called before."""
        if self._is_excluded or self._start is not None:
            return
        try:
            families = self._series.websockets
            families.connections.labels(*self._label_values).inc()
            self._series.open_websockets(self._label_values[0]).inc()
        except Exception as error:
            log_or_raise(error, "a WebSocket connection could not be counted")
        else:
            self._start = perf_counter()

    def disconnected(self) -> None:
        """Note that the client is gone: exceptions from now on are not the application's."""
        self.gone = True

    def raised(self, error: BaseException) -> None:
        """Count an exception that left the view, once. Ignores exits, disconnected clients, and excluded endpoints."""
        if error is self._exception or self.gone or not isinstance(error, Exception):
            return
        self._exception = error
        if self._label_values:
            self._count(error)
        else:  # until `learn` is called
            self._uncounted = error

    def _count(self, error: BaseException) -> None:
        if self._is_excluded:
            return
        try:
            self._series.websockets.exceptions.labels(*self._label_values, type(error).__name__).inc()
        except Exception as error:
            log_or_raise(error, "an exception could not be counted")

    def closed(self) -> None:
        """Time the connection, if it was ever opened."""
        self.source = self._exception = self._uncounted = None  # else only the garbage collector would free a cycle
        if self._start is None:
            return
        try:
            families = self._series.websockets
            self._series.open_websockets(self._label_values[0]).dec()
            families.duration.labels(*self._label_values).observe(perf_counter() - self._start)
        except Exception as error:
            log_or_raise(error, "a WebSocket connection could not be timed")


class WatchedBody:
    """A body that reports its end: read to the last byte, broken by an exception, or dropped by a client that disconnected."""

    __slots__ = ("_body", "_iterator", "_left", "_sent", "_tracker")

    _iterate: Callable[[Any], Any]

    def __init__(self, tracker: Tracker, body: Any) -> None:
        self._tracker = tracker
        self._body = body
        self._sent = 0
        self._left = tracker.body_bytes()
        self._iterator = self._iterate(body)

    def _passed(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        self._left -= len(chunk)
        if self._left <= 0:
            self._tracker.finish(self._sent)

    def _ended(self, error: BaseException | None) -> None:
        self._left = 0
        if error is not None:
            self._tracker.raised(error)
        self._tracker.finish(self._sent)

    def close(self) -> None:
        """Finish the request; the server always calls this (PEP 3333)."""
        if not self._tracker.finished:
            (self._tracker.abandon if self._left > 0 else self._tracker.finish)(self._sent)
        if hasattr(self._body, "close"):
            self._body.close()


def _observe(measured: Iterable[tuple[float | None, Callable[[float], None]]]) -> None:
    """Observe what was measured."""
    for value, observe in measured:
        if value is not None:
            observe(value)


def _joined(outer: Match, inner: Match, root: str) -> Match:
    """The match of a request in an inner application, with the template of the mount in place of its path."""
    route = inner.route
    if outer.is_mount and route.startswith(f"{root}/"):
        route = outer.route.rstrip("/") + route.removeprefix(root)
    return Match(route, outer.request, outer.excluded or inner.excluded)


def content_length(header: str) -> int:
    """The value of a header Content-Length; 0 for one that is missing, malformed or absurd."""
    return int(header) if header.isdecimal() and len(header) <= MOST_DIGITS else 0


def _text(header: str | bytes) -> str:
    """The name or value of a header as WSGI has it; ASGI has bytes."""
    return header if isinstance(header, str) else header.decode("latin-1")
