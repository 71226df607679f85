"""Applications in applications: the tracker of the outermost one counts a request, and the inner ones report to it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..exposition import Scope
from .application import HTTPMetrics
from .tracker import TRACKER, FindRoute, Tracker

AROUND: ContextVar[Tracker | Scope | None] = ContextVar("pdc_around", default=None)
"""The tracker of the ASGI request that is being handled, or its scope where its path is excluded.

Adapters call WSGI applications in the context of the request, mostly without another trace of its scope. To set it costs a
per cent of a small request, so that waits for `expect_wsgi`.
"""
WSGI_IS_EXPECTED: list[bool] = []
"""Not empty once this process has an instrumented application that WSGI may call."""


def expect_wsgi() -> None:
    """Let ASGI applications set `AROUND` from now on."""
    if not WSGI_IS_EXPECTED:
        WSGI_IS_EXPECTED.append(True)


class Outer(NamedTuple):
    """The application around the one that is called, as far as a request is concerned."""

    tracker: Tracker | None
    """None if it does not count the request."""
    root: str = ""
    """The path of the request up to the inner application, which its routes begin with."""


def outer_of(environ: Mapping[str, Any], scope: Scope | None = None) -> Outer | None:
    """The instrumented application around the one that is called with this environment, or with this scope."""
    if TRACKER in environ:
        return _unless_finished(environ[TRACKER])
    if scope is not None and TRACKER in scope:
        return _unless_finished(scope[TRACKER], scope)
    around = AROUND.get()
    if around is None:
        return None
    tracker, asgi = (around, around.source) if isinstance(around, Tracker) else (None, around)
    if asgi is None or not _is_same(environ, asgi):  # the tracker of a finished request has no source
        return None
    return Outer(tracker, asgi.get("root_path", ""))


def join(metrics: HTTPMetrics, outer: Outer, method: str, path: str, find_route: FindRoute | None = None) -> None:
    """Report the request to the application around this one. Requests that this one excludes are not counted either."""
    if metrics.is_counted(method, path):
        if outer.tracker is not None:
            outer.tracker.hand_over(find_route, outer.root)
    elif outer.tracker is not None:
        outer.tracker.forget()


def _unless_finished(tracker: Tracker | None, scope: Mapping[str, Any] | None = None) -> Outer | None:
    if tracker is not None and tracker.finished:  # of an earlier request, whose environment is used again
        return None
    return Outer(tracker, (scope or {}).get("root_path", ""))


def _is_same(environ: Mapping[str, Any], scope: Mapping[str, Any]) -> bool:
    """True if the environment is that of the scope's request, not of one that its application sends by itself."""
    path, root = scope["path"], scope.get("root_path", "")
    below = environ.get("PATH_INFO", "")
    paths = {environ.get("SCRIPT_NAME", "") + below, root + below, _of_wsgi(root) + below}
    return environ["REQUEST_METHOD"] == scope["method"] and bool(paths & {path, _of_wsgi(path)})


def _of_wsgi(path: str) -> str:
    """The path as WSGI has it: its bytes as characters."""
    return path.encode(errors="surrogatepass").decode("latin-1")
