"""Tracks the requests of WSGI applications."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..options import OptionError
from .application import HTTPMetrics
from .labels import ONLY_ASGI
from .nesting import expect_wsgi, join, outer_of
from .tracker import TRACKER, Tracker, WatchedBody, content_length

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def track_wsgi(metrics: HTTPMetrics, app: WSGIApplication) -> WSGIApplication:
    """Track the requests of a WSGI application; the framework finds its tracker in ``environ[TRACKER]``. Raises OptionError."""
    _refuse_coroutines(metrics.options.labels)
    expect_wsgi()
    sizes = metrics.options.sizes

    def tracked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        tracker = _begin(metrics, environ)
        if tracker is None:
            return app(environ, start_response)
        if sizes:
            tracker.read(content_length(environ.get("CONTENT_LENGTH", "")))

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
            tracker.started(int(status[:3]), headers)
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            body = app(environ, start)
        except BaseException as error:
            tracker.fail(error)
            raise
        if tracker.is_buffered and not sizes:
            tracker.finish()
            return body
        file_wrapper: Any = environ.get("wsgi.file_wrapper")
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
            return _sent_by_server(body, tracker)
        return Body(tracker, body)

    return tracked


def _begin(metrics: HTTPMetrics, environ: WSGIEnvironment) -> Tracker | None:
    """Begin to track a request, unless its path is excluded or an application around this one decides that."""
    path, outer = environ.get("PATH_INFO", ""), outer_of(environ)
    if outer is not None:
        environ[TRACKER] = outer.tracker
        join(metrics, outer, environ["REQUEST_METHOD"], path)
        return None
    tracker = environ[TRACKER] = metrics.track(environ["REQUEST_METHOD"], path)
    return tracker


def _refuse_coroutines(labels: Mapping[str, object]) -> None:
    """Refuse labels that only ASGI awaits, as far as they can be told from others before their first call."""
    if names := [name for name, label in labels.items() if inspect.iscoroutinefunction(label)]:
        raise OptionError(f"PDC_LABELS: expected no coroutine functions under WSGI, got them for {names}: {ONLY_ASGI}")


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
