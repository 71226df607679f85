"""Tracks the requests and WebSocket connections of ASGI applications."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from ..exposition import ASGIApplication, Receive, Scope, Send
from .application import HTTPMetrics
from .nesting import AROUND, WSGI_IS_EXPECTED
from .tracker import TRACKER, FindRoute, Tracker, WatchedBody, content_length


def track_asgi(
    metrics: HTTPMetrics, scope: Scope, receive: Receive, send: Send, find_route: FindRoute
) -> Channel | ExcludedChannel:
    """Begin to track an HTTP request of an ASGI application; the framework finds its tracker in ``scope[TRACKER]``.

    The application gets the `receive` and `send` of the channel. Then the framework calls `ended`, unless the tracker has
    finished. The source of `find_route` is the scope.
    """
    path = asgi_path(scope) if scope.get("root_path") else scope["path"]
    tracker = scope[TRACKER] = metrics.track(scope["method"], path, find_route, scope)
    if tracker is None:
        return ExcludedChannel(scope, receive, send)
    if WSGI_IS_EXPECTED:
        AROUND.set(tracker)
    channel = Channel(tracker, receive, send)
    if metrics.labels.may_wait:
        tracker.may_wait = True
    if metrics.options.sizes:
        announced = _announced_length(scope)
        tracker.read(announced)
        channel.counts_received = not announced
    return channel


async def track_websocket(
    metrics: HTTPMetrics, app: ASGIApplication, scope: Scope, receive: Receive, send: Send, find_route: FindRoute
) -> None:
    """Count and time a WebSocket connection of an ASGI application. Connections that are never accepted are not counted.

    The framework finds the connection in ``scope[TRACKER]``, to report exceptions. The source of `find_route`, which is called
    when the connection is accepted or an exception is counted, is the scope.
    """
    connection = scope[TRACKER] = metrics.connect(asgi_path(scope), find_route, scope)
    if connection is None:
        await app(scope, receive, send)
        return

    async def watched(message: MutableMapping[str, Any]) -> None:
        await connection.learn()
        if message["type"] == "websocket.accept":
            connection.opened()
        try:
            await send(message)
        except OSError:  # a server raises it for a client that is gone (ASGI 2.4)
            connection.disconnected()
            raise

    async def received() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            connection.disconnected()
        return message

    try:
        await app(scope, received, watched)
    except Exception as error:
        await connection.learn()
        connection.raised(error)
        raise
    finally:
        connection.closed()


class Channel:
    """The messages of one ASGI request, which it watches."""

    counts_received = False
    """True where the tracker does not know the length of the request's body."""
    _sent = 0

    def __init__(self, tracker: Tracker, receive: Receive, send: Send) -> None:
        self.tracker, self._receive, self._send = tracker, receive, send

    async def receive(self) -> MutableMapping[str, Any]:
        """Pass a message on to the application."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.tracker.disconnected()
        if self.counts_received:
            self.tracker.read(len(message.get("body", b"")))
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message on to the server."""
        tracker, kind = self.tracker, message["type"]
        if kind == "http.response.start":
            if tracker.may_wait or tracker.reads_answer:
                _keep_headers(message)
                await tracker.learn(message["status"], message.get("headers", ()))
            tracker.started(message["status"], message.get("headers", ()))
        left_before = tracker.gone
        try:
            await self._send(message)
        except OSError:  # a server raises it for a client that is gone (ASGI 2.4)
            tracker.disconnected()
            raise
        if left_before:  # a server drops bytes for a client that is gone
            self._unsent(message)
        elif kind == "http.response.body":
            self._sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                tracker.finish(self._sent)
        elif kind == "http.response.pathsend":  # a file that the server sends by itself is all of the body
            tracker.all_sent()

    def _unsent(self, message: MutableMapping[str, Any]) -> None:
        """Finish a request with its last message, which applications also send for a client that left before."""
        if message["type"] == "http.response.start" or message.get("more_body", False):
            return
        if self._sent < self.tracker.body_bytes():
            self.tracker.abandon(self._sent)
        else:
            self.tracker.finish(self._sent)

    async def ended(self, error: BaseException | None, *, has_error_page: bool = False) -> None:
        """Finish the request, unless its answer was complete; a server cancels a request whose client is gone.

        With `has_error_page` the framework answers, and finishes, a request whose application raised before the answer started.
        """
        tracker = self.tracker
        if tracker.gone or (error is not None and not isinstance(error, Exception)):
            tracker.abandon(self._sent)
            return
        if error is not None:
            tracker.raised(error)
            if has_error_page and not tracker.has_started:
                return
        await tracker.learn()
        tracker.finish(self._sent)


class ExcludedChannel:
    """The messages of a request that is not tracked; applications of WSGI inside of its own do not track it either."""

    tracker = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive, self.send = receive, send
        AROUND.set(scope)

    async def ended(self, _: BaseException | None, *, has_error_page: bool = False) -> None:  # noqa: ARG002 - as of `Channel`
        """Note the end of the request."""
        AROUND.set(None)


class AsyncBody(WatchedBody):
    """Asynchronous body; dropping it unread counts as a disconnect."""

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


def asgi_path(scope: Scope) -> str:
    """The path of an ASGI request below the `root_path` of its application."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _keep_headers(message: MutableMapping[str, Any]) -> None:
    """Let the server read the headers of an answer after us."""
    if not isinstance(message.get("headers", ()), (list, tuple)):
        message["headers"] = list(message["headers"])


def _announced_length(scope: Scope) -> int:
    lengths = [value for name, value in scope.get("headers", ()) if name == b"content-length"]
    return content_length(lengths[0].decode("latin-1")) if lengths else 0
