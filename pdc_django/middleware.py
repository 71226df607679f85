"""The middleware that counts and times every request, and the hooks that show it exceptions others answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.core.exceptions import BadRequest, ImproperlyConfigured, PermissionDenied, SuspiciousOperation
from django.core.handlers.base import BaseHandler
from django.http import Http404, HttpRequest
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, resolve

from pdc.http import CLIENT_CLOSED_REQUEST, TRACKER, AsyncBody, Body, Tracker, content_length, is_excluded

from . import conf

ANSWERS = (Http404, PermissionDenied, BadRequest, SuspiciousOperation, MultiPartParserError)
"""Exceptions by which Django makes an answer of status 4xx."""


class PrometheusMiddleware:
    """Counts and times every request, under WSGI and ASGI. It belongs first in MIDDLEWARE."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        if not apps.is_installed("pdc_django"):
            raise ImproperlyConfigured("PrometheusMiddleware needs 'pdc_django' in INSTALLED_APPS")
        metrics = conf.http_metrics()  # wrong options are refused at start-up
        if metrics is not None:
            metrics.open_port()
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer the request; a coroutine does where Django runs asynchronously."""
        if self._is_async:
            return self._call_async(request)
        tracker = _track(request)
        if tracker is None:
            return self._get_response(request)  # type: ignore[no-any-return]
        try:
            return _answered(tracker, request, self._get_response(request))
        except BaseException as error:
            tracker.fail(error)
            raise

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        tracker = _track(request)
        if tracker is None:
            return await self._get_response(request)  # type: ignore[no-any-return]
        try:
            return _answered(tracker, request, await self._get_response(request))
        except asyncio.CancelledError:  # the client is gone
            tracker.status = CLIENT_CLOSED_REQUEST
            tracker.finish()
            raise
        except BaseException as error:
            tracker.fail(error)
            raise


def _track(request: HttpRequest) -> Tracker | None:
    """Begin to track a request; None for one that is excluded, and where nothing is counted."""
    metrics = conf.http_metrics()
    tracker = None if metrics is None else metrics.track(request.method or "", request.path_info, _look, request)
    if tracker is not None:
        request.META[TRACKER] = tracker
        tracker.received = content_length(request.META.get("CONTENT_LENGTH") or "")
    return tracker


def _look(request: HttpRequest, tracker: Tracker) -> None:
    tracker.request = request
    match = request.resolver_match or _resolved(request)
    if match is None:
        return
    mount = request.META.get("SCRIPT_NAME", "").rstrip("/")
    tracker.route = match.route if match.route.startswith("^") and not mount else f"{mount}/{match.route}"
    if is_excluded(match.func) or is_excluded(getattr(match.func, "view_class", None)):
        tracker.forget()


def _resolved(request: HttpRequest) -> ResolverMatch | None:
    """What the request would have been matched with, had not a middleware answered it."""
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Exception:  # noqa: BLE001 - no route matches, or it has a converter that fails
        return None


def _answered(tracker: Tracker, request: HttpRequest, response: Any) -> HttpResponseBase:
    """Finish a request whose response is complete, or watch the response's stream to its end."""
    tracker.started(response.status_code, response.items())
    if not response.streaming:
        tracker.sent = int(min(len(response.content), tracker.body_bytes()))
        tracker.finish()
    elif getattr(response, "file_to_stream", None) is not None and request.META.get("wsgi.file_wrapper"):
        response._resource_closers.append(tracker.all_sent)  # the server sends the file by itself
    else:
        body = (AsyncBody if response.is_async else Body)(tracker, response.streaming_content)
        response.streaming_content = body
    return response  # type: ignore[no-any-return]


def watch_views() -> None:
    """Note every exception that leaves a view, also one that a ``process_exception`` is about to answer.

    Django asks the middleware that comes last first, and nobody after an answer: the first middleware would not be asked.
    """
    handle = BaseHandler.process_exception_by_middleware

    @wraps(handle)
    def noting(self: BaseHandler, exception: Exception, request: HttpRequest) -> Any:
        _note(request, exception)
        return handle(self, exception, request)

    BaseHandler.process_exception_by_middleware = noting  # type: ignore[method-assign]


def note_unhandled(*, request: HttpRequest | None, **_: Any) -> None:
    """Receive the signal ``got_request_exception``: nobody answered, or a middleware raised."""
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        _note(request, error)


def _note(request: HttpRequest, error: BaseException) -> None:
    tracker = request.META.get(TRACKER)
    if tracker is not None and not isinstance(error, ANSWERS):
        tracker.raised(error)
