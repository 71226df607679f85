"""The application's own labels of a request, and its exemplar."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from prometheus_client.validation import _validate_exemplar

from ..options import OptionError, Options
from ..process.log import log_once_or_raise
from .names import scheme

ONLY_ASGI = "only ASGI awaits labels, so give a callable that is no coroutine function"


class RequestLabels:
    """Finds the values of the application's own labels, and exemplars. Callables that fail are logged once per application.

    Raises OptionError for a callable that takes other arguments, and where exemplars need OpenTelemetry, which is missing.
    """

    _run: Callable[..., Awaitable[Any]]

    def __init__(self, options: Options, make_headers: Callable[[Any], Any] = dict) -> None:
        self.make_headers = make_headers
        self._labels = [label if isinstance(label, str) else _own(name, label) for name, label in options.labels.items()]
        self._exemplar_of, self._exemplar_takes_request = _exemplar_source(options)
        self._logged: set[str] = set()
        self._needs_thread: tuple[type[Exception], ...] = ()
        self._in_thread: set[str] = set()
        """The labels whose callables raised such an exception: they run in a thread."""
        callables = [label for label in self._labels if not isinstance(label, str)]
        self.are_asked_for = bool(options.labels or options.exemplars)
        """True if requests have labels beside method, route and status, or exemplars."""
        self.may_wait = any(label.function is not scheme for label in callables)
        """True if there are callables, which may return awaitables."""
        self.take_request = bool(callables) or self._exemplar_takes_request
        """True if a label or the exemplar takes the request."""
        self.take_response = any(label.takes_response for label in callables)
        """True if a label takes the response."""
        self.defaults = tuple(label if isinstance(label, str) else "" for label in self._labels)
        """The values of a request whose callables were not called."""

    def run_in_thread(self, needed_for: tuple[type[Exception], ...], run: Callable[..., Awaitable[Any]]) -> None:
        """Let `run` call, in a thread, each callable that once raised one of these exceptions in the event loop."""
        self._needs_thread = needed_for
        self._run = run

    def values(self, request: Any, response: Any = None, *, is_left: bool = False) -> tuple[str, ...]:
        """The values of the labels for a request; a callable that fails, or returns None, leaves its value empty.

        So does one that takes a response where there is none, and one that needs ASGI to wait. That is refused, with a line
        in the log unless `is_left`: then the client left before ASGI could wait for it.
        """
        return tuple(
            [label if isinstance(label, str) else self._value(label, request, response, is_left) for label in self._labels]
        )

    async def awaited(self, request: Any, response: Any = None) -> tuple[str, ...]:
        """The same values, where awaitables are awaited."""
        found = []
        for label in self._labels:
            if isinstance(label, str):
                found.append(label)
                continue
            value = self._called(label, request, response)
            found.append(value if isinstance(value, str) else await self._awaited(label, value))
        return tuple(found)

    def exemplar(self, request: Any) -> dict[str, str] | None:
        """The exemplar for the request that is being handled, if it has one."""
        if self._exemplar_of is None or (request is None and self._exemplar_takes_request):
            return None
        try:
            found = self._exemplar_of(request) if self._exemplar_takes_request else self._exemplar_of()
            exemplar = None if found is None else {name: str(value) for name, value in found.items()}
            _validate_exemplar(exemplar or {})
        except Exception as error:  # an exemplar must not break a request
            failure = error
        else:
            return exemplar
        log_once_or_raise(self._logged, failure, "the exemplar failed and is left out")
        return None

    def _value(self, label: _Own, request: Any, response: Any, is_left: bool) -> str:
        failure: Exception
        try:
            value = label.called(request, response)
        except Exception as error:  # a label must not break a request
            failure = error
            is_left = is_left and (isinstance(error, self._needs_thread) or label.name in self._in_thread)
        else:
            if isinstance(value, str):
                return value
            failure = TypeError(f"expected the label {label.name!r} to return a text, got {value!r}: {ONLY_ASGI}")
            if inspect.iscoroutine(value):
                value.close()  # else Python warns that nobody awaited it
        if not is_left:
            self._failed(label, failure)
        return ""

    def _called(self, label: _Own, request: Any, response: Any) -> str | Awaitable[Any]:
        """The text of a label, or an awaitable of it: of its callable, or of the thread that runs it."""
        if not self._in_thread or label.name not in self._in_thread:
            try:
                return label.called(request, response)
            except Exception as error:  # a label must not break a request
                failure = error
            if not isinstance(failure, self._needs_thread):
                self._failed(label, failure)
                return ""
            self._in_thread.add(label.name)
        return self._run(label.called, request, response)

    async def _awaited(self, label: _Own, value: Awaitable[Any]) -> str:
        try:
            found = await value
            return _text(await found if inspect.isawaitable(found) else found)
        except Exception as error:  # a label must not break a request
            failure = error
        self._failed(label, failure)
        return ""

    def _failed(self, label: _Own, error: Exception) -> None:
        log_once_or_raise(self._logged, error, f"the label {label.name!r} failed and is left empty")


class _Own(NamedTuple):
    """A label of the application whose value a callable returns."""

    name: str
    function: Callable[..., object]
    takes_response: bool

    def called(self, request: Any, response: Any) -> str | Awaitable[Any]:
        """A text, or an awaitable of a value; empty where the callable takes what is not there."""
        if request is None or (response is None and self.takes_response):
            return ""
        value = self.function(request, response) if self.takes_response else self.function(request)
        return value if isinstance(value, str) or inspect.isawaitable(value) else _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _own(name: str, function: Callable[..., object]) -> _Own:
    """The label of a callable. Raises OptionError for one that takes other arguments."""
    takes_request = takes(function, 1)
    if not takes_request and not takes(function, 2):
        raise OptionError(
            f"PDC_LABELS: expected the callable of {name!r} to take the request, or the request and the response, got "
            f"{_shown(function)}: give it one or two parameters without defaults"
        )
    return _Own(name, function, not takes_request)


def takes(function: Callable[..., object], count: int) -> bool:
    """True if so many positional arguments suit the function, and for functions of C that do not show theirs."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def _shown(function: Callable[..., object]) -> str:
    return f"{getattr(function, '__qualname__', function)}{inspect.signature(function)}"


def _exemplar_source(options: Options) -> tuple[Callable[..., Mapping[str, str] | None] | None, bool]:
    """The callable that returns the exemplar of a request, and True if it takes that. Raises OptionError."""
    exemplars = options.exemplars
    if not callable(exemplars):
        return (_trace_source() if exemplars else None), False
    if not takes(exemplars, 0) and not takes(exemplars, 1):
        raise OptionError(
            f"PDC_EXEMPLARS: expected a callable that takes nothing or the request, got {_shown(exemplars)}: "
            "give it one parameter without a default, or none"
        )
    return exemplars, not takes(exemplars, 0)


def _trace_source() -> Callable[[], dict[str, str] | None]:
    try:
        trace = importlib.import_module("opentelemetry.trace")
    except ImportError as error:
        raise OptionError(
            "PDC_EXEMPLARS=True needs OpenTelemetry: pip install opentelemetry-api, or give a callable"
        ) from error

    def current() -> dict[str, str] | None:
        span = trace.get_current_span().get_span_context()
        return {"trace_id": trace.format_trace_id(span.trace_id)} if span.is_valid and span.trace_flags.sampled else None

    return current
