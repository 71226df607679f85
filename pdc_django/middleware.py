"""The middleware that counts and times every request, and the hooks that report exceptions to it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.core.exceptions import BadRequest, ImproperlyConfigured, PermissionDenied, SuspiciousOperation
from django.core.handlers.base import BaseHandler
from django.http import Http404, HttpRequest
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, resolve

from pdc.http import (
    AROUND,
    TRACKER,
    AsyncBody,
    Body,
    Match,
    ResponseStart,
    Tracker,
    content_length,
    excludes_method,
    expect_wsgi,
    is_excluded,
    join,
    outer_of,
)
from pdc.process.interruption import let_through
from pdc.process.once import once_each

from . import conf, templates
from .routes import readable

MOST_ROUTES = 1000
"""The most routes whose facts are kept."""
ANSWERS = (Http404, PermissionDenied, BadRequest, SuspiciousOperation, MultiPartParserError)
"""Exceptions that Django turns into an answer of status 4xx."""


class PrometheusMiddleware:
    """Counts and times every request, under WSGI and ASGI. It belongs first in MIDDLEWARE."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        if not apps.is_installed("pdc_django"):
            raise ImproperlyConfigured("PrometheusMiddleware needs 'pdc_django' in INSTALLED_APPS")
        metrics = conf.http_metrics()  # raises for wrong options, at start-up
        if metrics is not None:
            expect_wsgi()
            metrics.begin_serving()
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        if metrics is not None and conf.options().has_peer_names:
            self.process_template_response = self._count_template_async if self._is_async else self._count_template

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer the request, with a coroutine where Django runs asynchronously."""
        if self._is_async:
            return self._call_async(request)
        tracker = _track(request)
        if tracker is None:
            return self._get_response(request)  # type: ignore[no-any-return]  # it is of the sync kind here
        try:
            tracker.response = response = self._get_response(request)
            if tracker.may_wait:
                async_to_sync(tracker.learn)(response.status_code, response.items())
            return _answered(tracker, request, response)
        except asyncio.CancelledError:  # under ASGI, of a coroutine that this thread waited for
            tracker.abandon()
            raise
        except BaseException as error:
            tracker.fail(error)
            raise

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        tracker = _track(request)
        if tracker is None:
            return await self._get_response(request)  # type: ignore[no-any-return]  # it is of the async kind here
        try:
            tracker.response = response = await self._get_response(request)
            if tracker.may_wait:
                await tracker.learn(response.status_code, response.items())
            return _answered(tracker, request, response)
        except asyncio.CancelledError:  # the client is gone
            tracker.abandon()
            raise
        except BaseException as error:
            tracker.fail(error)
            raise

    def _count_template(self, request: HttpRequest, response: Any) -> HttpResponseBase:
        templates.count(request, response)
        return response  # type: ignore[no-any-return]  # each template engine has a class of its own

    async def _count_template_async(self, request: HttpRequest, response: Any) -> HttpResponseBase:
        return self._count_template(request, response)


def _track(request: HttpRequest) -> Tracker | None:
    """Begin to track a request.

    None for an excluded path, where PDC_ENABLED is false, and where an application around this project counts the request.
    """
    metrics = conf.http_metrics()
    if metrics is None:
        return None
    find_route = _find_view if metrics.has_views else _find_route
    environ, scope = request.META, getattr(request, "scope", None)
    if TRACKER in environ or scope is not None or AROUND.get() is not None:
        outer = outer_of(environ, scope)
        if outer is not None:
            environ[TRACKER] = outer.tracker
            join(metrics, outer, request.method or "", request.path_info, lambda _: find_route(request))
            return None
    tracker = environ[TRACKER] = metrics.track(request.method or "", request.path_info, find_route, request)
    if tracker is not None:
        tracker.request = request
        if metrics.labels.may_wait:
            tracker.may_wait = scope is not None  # ASGI can await
        if length := environ.get("CONTENT_LENGTH"):
            tracker.read(content_length(length))
    return tracker


def _find_route(request: HttpRequest) -> Match:
    match = request.resolver_match or _resolved(request)
    if match is None:
        return Match()
    facts = match.route, match.func, request.META.get("SCRIPT_NAME", ""), conf.options().django_readable_routes
    try:
        known, owner = _known(*facts)
    except TypeError as error:  # the view cannot be hashed
        let_through(error)
        known, owner = _known.__wrapped__(*facts)
    if owner is not None and _excludes_method(owner, match.func, request):
        return known._replace(excluded=True)
    return known


def _find_view(request: HttpRequest) -> Match:
    """Find the name of the view in place of the template of its route."""
    match = request.resolver_match or _resolved(request)
    if match is None:
        return Match()
    owner = _owner(match.func)
    excluded = is_excluded(match.func) or (owner is not None and _excludes_method(owner, match.func, request))
    return Match(match.view_name, excluded=excluded)


@once_each(MOST_ROUTES)
def _known(route: str, view: Any, mount: str, is_readable: bool) -> tuple[Match, Any]:
    """The match of each request of a route, and the class of its view, which may exclude methods."""
    mount = mount.rstrip("/")
    if is_readable:
        route = readable(route)
    template = f"{mount}/{route}" if mount or not route.startswith("^") else route
    return Match(template, excluded=is_excluded(view)), _owner(view)


def _owner(view: Any) -> Any:
    return getattr(view, "view_class", None) or getattr(view, "cls", None)  # the latter is that of Django REST framework


def _excludes_method(owner: Any, view: Any, request: HttpRequest) -> bool:
    return excludes_method(owner, request.method or "", getattr(view, "actions", None))


def _resolved(request: HttpRequest) -> ResolverMatch | None:
    """The match of a request that a middleware answered before Django resolved it."""
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Exception as error:  # noqa: BLE001 - no route matches, or it has a converter that fails
        let_through(error)
        return None


def _answered(tracker: Tracker, request: HttpRequest, response: Any) -> HttpResponseBase:
    """Finish a request whose response is complete, or watch the response's stream to its end."""
    if not response.streaming and not tracker.reads_answer and not conf.options().sizes:
        tracker.started(response.status_code, ())
        tracker.finish()
        return response  # type: ignore[no-any-return]  # as below
    tracker.started(response.status_code, response.items())
    if not response.streaming:
        tracker.answered(response.status_code, len(response.content))
    elif getattr(response, "file_to_stream", None) is not None and request.META.get("wsgi.file_wrapper"):
        closers = response._resource_closers  # noqa: SLF001 - Django has no public way to hear of the end
        closers.append(tracker.all_sent)  # the server sends the file by itself
    elif response.is_async:
        response.streaming_content = AsyncBody(tracker, response.streaming_content)
        tracker.response = ResponseStart(response.status_code, response.headers)  # Django may drop, not close, the response
    else:
        response.streaming_content = Body(tracker, response.streaming_content)
    return response  # type: ignore[no-any-return]  # Django does not type the body of a stream


def watch_views() -> None:
    """Report every exception that leaves a view, also one that a ``process_exception`` is about to answer.

    Django asks the last middleware first, and stops at the first answer: the first middleware might never be asked.
    """
    handle = BaseHandler.process_exception_by_middleware

    @wraps(handle)
    def noting(self: BaseHandler, exception: Exception, request: HttpRequest) -> Any:
        _note(request, exception)
        return handle(self, exception, request)

    BaseHandler.process_exception_by_middleware = noting  # type: ignore[method-assign]  # Django has no hook there


def note_unhandled(*, request: HttpRequest | None, **_: Any) -> None:
    """Receive the signal ``got_request_exception``: no handler answered an exception, or a middleware raised one."""
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        _note(request, error)


def _note(request: HttpRequest, error: BaseException) -> None:
    tracker = request.META.get(TRACKER)
    if tracker is not None and not isinstance(error, ANSWERS):
        tracker.raised(error)
