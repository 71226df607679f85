"""Prometheus metrics of a Starlette or FastAPI application, shared by all of its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import isawaitable
from typing import Any

try:
    import starlette  # noqa: F401 - without it, the error names the extra to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{__name__} needs Starlette: pip install 'prometheus-distributed-client[starlette]', or [fastapi]"
    ) from error

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdc import config
from pdc.dashboard import path_of
from pdc.exposition import in_thread, scrape_from_asgi
from pdc.http import (
    TRACKER,
    UNMATCHED,
    Channel,
    ExcludedChannel,
    Hooks,
    HTTPMetrics,
    Match,
    Outer,
    RequestRecord,
    asgi_path,
    exclude,
    join,
    outer_of,
    track_asgi,
    track_websocket,
    warn_of_port,
)
from pdc.options import OptionError, Options, with_options_shown

from .exceptions import watch, watch_error_page
from .routes import RouteFinder

__all__ = ["PrometheusMiddleware", "RequestRecord", "add", "exclude", "instrument", "metrics"]

ENVIRON = "wsgi_environ"
"""The key of the environment in a scope that `a2wsgi.ASGIMiddleware` makes."""
CONFIG_ERRORS = (ValueError, TypeError, ImportError)
"""Errors of wrong options (OptionError is a ValueError), of a storage that refuses them, and of a missing driver."""
METHODS = ("GET", "HEAD", "OPTIONS")
METRICS = "pdc.metrics"
"""The key of the application's HTTPMetrics in a scope; its value is None where PDC_ENABLED is false."""
HOOKS = Hooks()
"""The hooks of all applications of this process."""
add = HOOKS.add


class PrometheusMiddleware:
    """Counts and times every request and WebSocket connection; add it last, so that it sees the work of other middlewares.

    Options are keywords, or environment variables such as ``PDC_REDIS_URL`` for ``redis_url``: ``redis_url`` or
    ``sqlite_path`` (neither: the file ``metrics.db``), and more that `pdc.options.Options` has. Requests of an endpoint that
    `exclude` decorates, below its route, are not counted. `add` adds a hook.

    A wrong or unknown option, also one that only the storage refuses, or Redis without its driver, fails the start of the
    application.
    """

    @with_options_shown
    def __init__(self, app: ASGIApp, /, **options: Any) -> None:
        self.app = app
        self._routes = RouteFinder(app)
        self._metrics: HTTPMetrics | None = None
        self._refusal: str | None = None
        self._watching = self._has_error_page = self._takes_request = False
        self.is_known = False
        """True if an application around this one finds the routes of this one by itself; `watch` notes that."""
        try:
            loaded = _load(options)
            if not loaded.enabled:
                loaded.setup()
            else:
                self._metrics = HTTPMetrics(loaded, hooks=HOOKS, make_headers=_headers)
                self._takes_request = self._metrics.labels.take_request
                self._metrics.begin_serving()
        except CONFIG_ERRORS as error:  # raised here, it would look to a server like one without lifespan
            self._refusal = str(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Track the request or connection, unless an application around this one already does."""
        channel = self._track(scope, receive, send) if scope["type"] == "http" else None
        if channel is None:
            await self._pass_on(scope, receive, send)
            return
        try:
            await self.app(scope, channel.receive, channel.send)
        except BaseException as error:
            await channel.ended(error, has_error_page=self._has_error_page)
            raise
        tracker = channel.tracker
        if tracker is None or not tracker.finished:
            await channel.ended(None)

    def _track(self, scope: Scope, receive: Receive, send: Send) -> Channel | ExcludedChannel | None:
        """Begin to track an HTTP request; None where metrics are off, and where an application around this one decides that."""
        metrics = self._metrics
        if metrics is None or ((METRICS in scope or ENVIRON in scope) and self._is_inside(scope)):
            return None
        scope[METRICS] = metrics
        if not self._watching or self._routes.forget():
            self._watch(scope)
        find_route = self._find_with_request if self._takes_request or HOOKS.functions else self._routes.find
        return track_asgi(metrics, scope, receive, send, find_route)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not tracked, a WebSocket connection, or a message about the start or the end."""
        if self._refusal is not None:
            await _refuse(self._refusal, scope, receive, send)
        metrics = None if scope["type"] == "http" or METRICS in scope else self._metrics
        scope.setdefault(METRICS, metrics)
        if metrics is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            self._watch_changes(scope)
            await track_websocket(metrics, self.app, scope, receive, send, self._find_route)
        else:
            await self.app(scope, receive, _flushing(send))

    def _is_inside(self, scope: Scope) -> bool:
        """Return True where an application around this one decides what is counted, after letting that one know the route."""
        own, of_starlette, root = self._metrics, METRICS in scope, scope.get("root_path", "")
        if own is None or scope["type"] != "http":
            return of_starlette
        outer = Outer(scope.get(TRACKER), root) if of_starlette else outer_of(scope[ENVIRON])
        if outer is None:
            return False
        if of_starlette and self.is_known:
            if not own.is_counted(scope["method"], asgi_path(scope)):
                _leave_out(scope)
            return True
        scope.setdefault(METRICS, own)
        scope[TRACKER] = outer.tracker
        join(own, outer, scope["method"], asgi_path(scope), partial(self._find_inside, root))
        if outer.tracker is not None:
            outer.tracker.source = scope
            self._watch_changes(scope)
        return True

    def _find_inside(self, root: str, scope: Scope) -> Match:
        """Find the route with the path of the mount, `root`, before it; the scope may have the router of another one."""
        own = {key: value for key, value in scope.items() if key != "router"}
        match = self._find_route({**own, "app_root_path": root})
        return match if match.route == UNMATCHED else match._replace(route=root.rstrip("/") + match.route)

    def _watch_changes(self, scope: Scope) -> None:
        if not self._watching or self._routes.forget():
            self._watch(scope)

    def _watch(self, scope: Scope) -> None:
        """Watch the application's exceptions, once it is complete: at its first request, and after its routes changed."""
        watch(self.app)
        if not self._watching:
            self._has_error_page = watch_error_page(scope.get("app"), self)
        self._watching = True

    def _find_route(self, scope: Scope) -> Match:
        return (self._find_with_request if self._takes_request or HOOKS.functions else self._routes.find)(scope)

    def _find_with_request(self, scope: Scope) -> Match:
        match = self._routes.find(scope)
        return match._replace(request=Request(scope) if scope["type"] == "http" else HTTPConnection(scope))


async def metrics(request: Request) -> Response:
    """Answer a scrape; it is not counted, wherever this is mounted."""
    return await _answered(request, _page)


async def _dashboard(request: Request) -> Response:
    """Answer a browser that asks for the page of PDC_DASHBOARD, which is not counted either."""
    return await _answered(request, _browser_page)


async def _answered(request: Request, page: Callable[[Request], Any]) -> Response:
    scope = request.scope
    if METRICS not in scope:
        raise RuntimeError("metrics() needs the middleware: call app.add_middleware(PrometheusMiddleware) or instrument(app)")
    if scope[METRICS] is None:
        raise HTTPException(404, "metrics are switched off (PDC_ENABLED)")
    _leave_out(scope)
    answer: Any = scope[METRICS].decorated(page)(request)
    response: Response = await answer if isawaitable(answer) else answer
    return response


async def _page(request: Request) -> Response:
    return Response(*await in_thread(partial(request.scope[METRICS].answer, scrape_from_asgi(request.scope))))


async def _browser_page(request: Request) -> Response:
    return Response(*await in_thread(partial(request.scope[METRICS].answer_browser, scrape_from_asgi(request.scope))))


@with_options_shown
def instrument(
    app: Starlette,
    *,
    dependencies: Sequence[Any] | None = None,
    include_in_schema: bool = False,
    tags: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Add the middleware with these options, and the metrics page.

    In FastAPI, `dependencies` such as ``[Depends(check)]`` run before the page, `include_in_schema` shows it in the schema,
    and `tags` group it there. With any of them the page is a route of FastAPI: dependencies of the application run, too.

    Raises OptionError for a wrong or unknown option, RuntimeError for an application that has the middleware already, TypeError
    for another object, and for `dependencies`, `include_in_schema` or `tags` of an application that is not one of FastAPI.
    """
    is_of_fastapi = bool(dependencies or include_in_schema or tags)
    _check(app, is_of_fastapi)
    loaded = _load(options)
    app.add_middleware(PrometheusMiddleware, **options)
    if loaded.metrics_path is None:
        return
    if dependencies:
        warn_of_port(loaded, "dependencies")
    routes = app.router.routes
    before = len(routes)
    pages = {loaded.metrics_path: metrics}
    if loaded.dashboard and (path := path_of(loaded.metrics_path)) is not None:
        pages[path] = _dashboard
    for path, view in pages.items():
        if is_of_fastapi:
            in_schema = include_in_schema and view is metrics
            _add_api_routes(app, path, view, dependencies, in_schema, tags if view is metrics else None)
        else:
            routes.append(Route(path, view, methods=METHODS, include_in_schema=False))
    routes[:] = [*routes[before:], *routes[:before]]  # before all other routes: one of them may take every path


def _check(app: Starlette, is_of_fastapi: bool) -> None:
    """Raise what `instrument` says for an application that it cannot change."""
    if not isinstance(app, Starlette):
        raise TypeError(f"expected an application of Starlette or FastAPI, got {app!r}: pdc_flask is for Flask")
    added: list[Any] = [middleware.cls for middleware in app.user_middleware]
    if PrometheusMiddleware in added:
        raise RuntimeError(f"{app} has PrometheusMiddleware already: add it once per application")
    if is_of_fastapi and not hasattr(app.router, "add_api_route"):
        raise TypeError(
            f"dependencies, include_in_schema and tags need an application of FastAPI, got {app!r}: "
            "guard its page with metrics_decorator, or with metrics_token, metrics_basic_auth or metrics_networks"
        )


def _add_api_routes(
    app: Any,
    path: str,
    view: Callable[[Request], Any],
    dependencies: Sequence[Any] | None,
    include_in_schema: bool,
    tags: Sequence[str] | None,
) -> None:
    """Add routes of FastAPI for a page. Its schema has an operation for each method, and shows GET alone."""
    for method in METHODS:
        app.router.add_api_route(
            path,
            view,
            methods=[method],
            dependencies=dependencies,
            include_in_schema=include_in_schema and method == "GET",
            tags=None if tags is None else list(tags),
            description="The metrics, in the text format of Prometheus.",
            response_class=PlainTextResponse,
            response_model=None,
        )


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    return Headers(raw=[(name.lower(), value) for name, value in raw])  # applications of others may not write small letters


def _load(options: dict[str, Any]) -> Options:
    return Options.load({f"PDC_{name.upper()}": value for name, value in options.items()})


def _flushing(send: Send) -> Send:
    """Flush and deregister when the application shuts down: Uvicorn may end its process by a signal, without exit handlers."""

    async def flushing(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await run_in_threadpool(config.flush_before_end, deregister=True)
        await send(message)

    return flushing


def _leave_out(scope: Scope) -> None:
    if scope.get(TRACKER) is not None:
        scope[TRACKER].forget()


async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Fail the start of the application, or any request where the server has no lifespan."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": reason})
    raise OptionError(reason)
