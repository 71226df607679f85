"""Functions of the application that are called with each request, once it is counted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from ..process.log import log_once_or_raise
from .labels import takes
from .names import UNMATCHED
from .tracker import CLIENT_CLOSED_REQUEST, Header, Tracker, content_length


class RequestRecord(NamedTuple):
    """One request that was counted."""

    request: Any
    """The request object of the framework; None where another application or a middleware answered before the framework."""
    response: Any
    """The response object of the framework, otherwise one with `status_code` and `headers`; None where no answer began."""
    method: str
    route: str
    """The template of the route, or ``<unmatched>``."""
    status: int
    duration: float
    """Seconds from the start of the request to the last byte of its answer."""
    request_size: int
    """The announced bytes of the request's body. With PDC_SIZES, ASGI counts the bytes that it reads of one not announced."""
    response_size: int
    """The bytes of the response's body that were sent."""
    exception: Exception | None
    """The exception that left the view, also where the application answered it."""


Hook = Callable[[RequestRecord], object]
HookT = TypeVar("HookT", bound=Hook)


class Hooks:
    """The hooks of an application, or of all applications of a framework in this process."""

    def __init__(self) -> None:
        self.functions: tuple[Hook, ...] = ()
        self._logged: set[str] = set()

    def add(self, hook: HookT) -> HookT:
        """Call the function with the `RequestRecord` of each request, once it is counted; also a decorator.

        Its errors never reach the request: the first of each function is logged. Requests that are not counted call no hook. A
        function that is added twice is called once. Raises TypeError for a coroutine function, and for other parameters.
        """
        if inspect.iscoroutinefunction(hook) or not takes(hook, 1):
            raise TypeError(
                f"expected a function of one parameter, the record of a request, got {hook!r}: nothing awaits hooks"
            )
        if hook not in self.functions:
            self.functions = (*self.functions, hook)
        return hook

    def clear(self) -> None:
        """Forget all functions: for tests, each of which begins like a new process."""
        self.functions = ()
        self._logged.clear()

    def call(self, record: RequestRecord) -> None:
        """Call all functions with the record."""
        for hook in self.functions:
            failure = None
            try:
                hook(record)
            except Exception as error:  # a hook must not break a request
                failure = error
            if failure is not None:
                log_once_or_raise(self._logged, failure, f"the hook {hook!r} failed; later errors of it are not logged")


class ObservedTracker(Tracker):
    """The tracker of an application that has hooks, leaves requests out which no route matches, or times starts of answers."""

    reads_answer = True

    def __init__(self, hooks: Hooks, counts_unmatched: bool) -> None:
        self._hooks = hooks
        self._counts_unmatched = counts_unmatched

    def started(self, status: int, headers: Iterable[Header]) -> None:
        """Note the start of the answer, while the request is being handled."""
        if not self.gone:
            self.until_start = perf_counter() - self._start
        super().started(status, headers)
        if not self.finished:
            self._answer()  # a client may leave before the end

    def finish(self, sent: int = 0) -> None:
        """Count and time the request, and call the hooks with it; only the first call has an effect."""
        duration = perf_counter() - self._start
        if not self._known:
            self._learn()
        if self.route == UNMATCHED and not self._counts_unmatched:
            self.forget()
        if self.finished:
            return
        record = RequestRecord(
            self.request,
            self.response,
            self._method,
            self.route,
            int(self._status),
            duration,
            self._request_size(),
            self._response_size(sent),
            self._exception,
        )
        super().finish(sent)
        self._hooks.call(record)

    def _count_exceptions(self) -> None:
        if self.route == UNMATCHED and not self._counts_unmatched:
            self._uncounted = ()
        super()._count_exceptions()

    def _request_size(self) -> int:
        if self._received or self.request is None:
            return self._received
        return content_length(self.request.headers.get("Content-Length", ""))

    def _response_size(self, sent: int) -> int:
        """The sent bytes; those that the headers announce for a body that nobody watched."""
        if not sent and self.is_buffered and self._status != CLIENT_CLOSED_REQUEST:
            announced = self.body_bytes()
            return int(announced) if math.isfinite(announced) else 0
        return sent
