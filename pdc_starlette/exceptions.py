"""Reports exceptions that leave a view to the tracker, also exceptions that the application handles."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from starlette._utils import is_async_callable
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.routing import Host, Mount, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from pdc.http import TRACKER, Tracker

from .routes import effective


def watch(app: Any) -> None:
    """Watch the scopes and exceptions of an application and of the applications mounted in it, again after new ones were.

    Starlette has no signal for them. It calls handlers around each view, so each handler is wrapped. An exception without
    a handler is seen on its way out, before a middleware can turn it into an answer.
    """
    is_watched = has_middleware = False
    while app is not None:
        if isinstance(app, Starlette):
            if app.middleware_stack is None:  # as its own first request would do
                app.middleware_stack = app.build_middleware_stack()
            app = app.middleware_stack
        elif isinstance(app, ExceptionMiddleware):
            _watch_handlers(app)
            app, is_watched = app.app, True
        elif isinstance(getattr(app, "routes", None), list):
            _watch_routes(app, has_middleware and not is_watched)
            return
        else:
            if hasattr(app, "is_known"):  # our middleware, in an application that is inside the watched one
                app.is_known = True
            app, has_middleware = getattr(app, "app", None), True


def _watch_routes(app: Any, has_only_middlewares: bool) -> None:
    """Watch the mounts of an application or router, and a router that middlewares are around, but no application."""
    if has_only_middlewares and isinstance(app, Router) and not isinstance(app.middleware_stack, _Watched):
        app.middleware_stack = _Watched(app.middleware_stack)
    for route in effective(app.routes):
        if isinstance(route, (Mount, Host)):
            watch(route.app)


def _watch_handlers(middleware: ExceptionMiddleware) -> None:
    if isinstance(middleware.app, _Watched):  # two applications mount this one
        return
    handlers: Any
    for handlers in (middleware._exception_handlers, middleware._status_handlers):  # noqa: SLF001 - there is no public way in
        for key, handler in handlers.items():
            handlers[key] = _watched(handler)
    middleware.app = _Watched(middleware.app)


class _Watched:
    """Reports the scope that reaches the routes of an application, and exceptions on their way out of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracker = scope.get(TRACKER)
        if tracker is not None:
            tracker.source = scope
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            _note(scope, error)
            raise


def _watched(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Let an exception handler report its exceptions."""

    async def watched(connection: Any, error: Exception) -> Any:
        _note(connection.scope, error)
        return await _call(handler, connection, error)

    return watched


async def _call(handler: Callable[[Any, Any], Any], connection: Any, error: Exception) -> Any:
    if is_async_callable(handler):
        return await handler(connection, error)
    return await run_in_threadpool(handler, connection, error)


def watch_error_page(app: Any, middleware: ASGIApp) -> bool:
    """Watch the application's handler of `Exception`; return True if it answers, and finishes, requests that failed.

    Starlette calls that handler outside of all middlewares. Middlewares of the frameworks, which may stand between it and
    ours, pass exceptions on; others may not.
    """
    outermost = getattr(app, "middleware_stack", None)
    if not isinstance(outermost, ServerErrorMiddleware) or outermost.handler is None or outermost.debug:
        return False
    layer: Any = outermost.app
    while layer is not middleware:
        if type(layer).__module__.partition(".")[0] not in ("starlette", "fastapi"):
            return False
        layer = getattr(layer, "app", None)
    outermost.handler = _finishing(outermost.handler)
    return True


def _finishing(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Let a handler of `Exception` finish the request with its answer."""

    async def finishing(connection: Any, error: Exception) -> Any:
        tracker = connection.scope[TRACKER]
        try:
            response = await _call(handler, connection, error)
            if tracker is not None:
                await _answer(tracker, response)
            return response
        finally:
            if tracker is not None:
                await tracker.learn()
                tracker.finish()

    return finishing


async def _answer(tracker: Tracker, response: Response) -> None:
    """Finish a request whose answer the framework sends by itself."""
    tracker.response = response
    start = response.status_code, response.raw_headers
    await tracker.learn(*start)
    tracker.started(*start)
    tracker.answered(response.status_code, len(getattr(response, "body", b"")))


def _note(scope: Scope, error: Exception) -> None:
    tracker = scope.get(TRACKER)
    if tracker is not None and not isinstance(error, _answers()):
        tracker.raised(error)


def _answers() -> tuple[type[Exception], ...]:
    """The exceptions by which a view gives an answer of status 4xx, or closes a WebSocket for a reason."""
    fastapi = sys.modules.get("fastapi.exceptions")
    own = (HTTPException, WebSocketException)
    return own if fastapi is None else (*own, fastapi.RequestValidationError, fastapi.WebSocketRequestValidationError)
