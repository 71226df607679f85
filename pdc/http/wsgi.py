"""Tracks the requests of WSGI applications."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ..options import OptionError
from .application import HTTPMetrics
from .labels import ONLY_ASGI
from .nesting import AROUND, Outer, expect_wsgi, join, outer_of
from .tracker import TRACKER, Tracker, WatchedBody, content_length

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


_STATUSES = {f"{status.value} {text}": status.value for status in HTTPStatus for text in (status.phrase, status.phrase.upper())}
"""Most statuses as texts: to look one up is faster than to read its number."""


def track_wsgi(metrics: HTTPMetrics, app: WSGIApplication) -> WSGIApplication:
    """Track the requests of a WSGI application; the framework finds its tracker in ``environ[TRACKER]``. Raises OptionError."""
    _refuse_coroutines(metrics.options.labels)
    expect_wsgi()
    sizes = metrics.options.sizes

    def tracked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if (TRACKER in environ or AROUND.get() is not None) and (outer := outer_of(environ)) is not None:
            _report(metrics, environ, outer)
            return app(environ, start_response)
        environ[TRACKER] = tracker = metrics.track(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
        if tracker is None:
            return app(environ, start_response)
        if sizes:
            tracker.read(content_length(environ.get("CONTENT_LENGTH", "")))

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            tracker.started(_STATUSES.get(status) or int(status[:3]), headers)
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            body = app(environ, start)
        except BaseException as error:
            tracker.fail(error)
            raise
        if tracker.is_buffered and not sizes:
            tracker.finish()
            return body
        return _watched(environ, tracker, body)

    return tracked


def _report(metrics: HTTPMetrics, environ: WSGIEnvironment, outer: Outer) -> None:
    """Report a request to the application around this one."""
    environ[TRACKER] = outer.tracker
    join(metrics, outer, environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))


def _refuse_coroutines(labels: Mapping[str, object]) -> None:
    """Refuse labels that only ASGI awaits, as far as they can be told from others before their first call."""
    if names := [name for name, label in labels.items() if inspect.iscoroutinefunction(label)]:
        raise OptionError(f"PDC_LABELS: expected no coroutine functions under WSGI, got them for {names}: {ONLY_ASGI}")


def _watched(environ: WSGIEnvironment, tracker: Tracker, body: Iterable[bytes]) -> Iterable[bytes]:
    """The body of an answer, the end of which finishes the request."""
    file_wrapper: Any = environ.get("wsgi.file_wrapper")
    if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
        return _sent_by_server(body, tracker)
    return Body(tracker, body)


def _sent_by_server(file: Any, tracker: Tracker) -> Iterable[bytes]:
    """Let the end of a file that the server sends by itself (PEP 3333, ``wsgi.file_wrapper``) finish the request."""
    close: Callable[[], None] | None = getattr(file, "close", None)

    def finish_and_close() -> None:
        tracker.all_sent()
        if close is not None:
            close()

    file.close = finish_and_close
    return file  # type: ignore[no-any-return] # it stays the server's own type


class Body(WatchedBody):
    """The watched body of a WSGI response."""

    __slots__ = ()

    _iterate = staticmethod(iter)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._iterator:
                self._passed(chunk)
                yield chunk
        except GeneratorExit:  # `close` counts it
            raise
        except BaseException as error:
            self._ended(error)
            raise
        if not self._tracker.finished:
            self._ended(None)
