"""The application's own labels of a request, and its exemplar."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.validation import _validate_exemplar

from ..options import Label, OptionError, Options
from ..process import log
from ..process.interruption import interruption

ONLY_ASGI = "only ASGI awaits labels, so give a callable that is no coroutine function"


class RequestLabels:
    """Finds the values of the application's own labels, and exemplars. Callables that fail are logged once per application.

    Raises OptionError where exemplars need OpenTelemetry, which is not installed.
    """

    def __init__(self, options: Options) -> None:
        self._labels = options.labels
        self._current_exemplar = _exemplar_source(options)
        self._logged: set[str] = set()
        self.are_asked_for = bool(options.labels or options.exemplars)
        """True if requests have labels beside method, route and status, or exemplars."""
        self.may_wait = any(callable(label) for label in options.labels.values())
        """True if there are callables, which may return awaitables."""
        self.defaults = tuple(label if isinstance(label, str) else "" for label in options.labels.values())
        """The values of a request whose callables were not called."""

    def values(self, request: Any, *, is_left: bool = False) -> tuple[str, ...]:
        """The values of the labels for a request; a callable that fails, or returns None, leaves its value empty.

        So does one that returns an awaitable. It is refused, with a line in the log unless `is_left`: then the client left
        before ASGI could wait for it.
        """
        return tuple(self._text(name, self._value(name, label, request), is_left) for name, label in self._labels.items())

    async def awaited(self, request: Any) -> tuple[str, ...]:
        """The same values, where awaitables are awaited."""
        found = []
        for name, label in self._labels.items():
            value = self._value(name, label, request)
            try:
                found.append(self._text(name, await value if inspect.isawaitable(value) else value))
            except Exception as error:  # a label must not break a request
                self._failed(name, error)
                found.append("")
        return tuple(found)

    def exemplar(self) -> dict[str, str] | None:
        """The exemplar for the request that is being handled, if it has one."""
        if self._current_exemplar is None:
            return None
        try:
            found = self._current_exemplar()
            exemplar = None if found is None else {name: str(value) for name, value in found.items()}
            _validate_exemplar(exemplar or {})
        except Exception as error:  # an exemplar must not break a request
            self._log_once("the exemplar failed and is left out", error)
            return None
        return exemplar

    def _value(self, name: str, label: Label, request: Any) -> object:
        if isinstance(label, str):
            return label
        try:
            return None if request is None else label(request)
        except Exception as error:  # a label must not break a request
            self._failed(name, error)
            return None

    def _text(self, name: str, value: object, is_left: bool = False) -> str:
        if isinstance(value, str):
            return value
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()  # else Python warns that nobody awaited it
            if not is_left:
                self._failed(name, TypeError(f"expected the label {name!r} to return a text, got {value!r}: {ONLY_ASGI}"))
            return ""
        try:
            return "" if value is None else str(value)
        except Exception as error:  # a label must not break a request
            self._failed(name, error)
            return ""

    def _failed(self, name: str, error: Exception) -> None:
        self._log_once(f"the label {name!r} failed and is left empty", error)

    def _log_once(self, message: str, error: Exception) -> None:
        """Log an error of a callable, once per application; raise an exception that the application raised into it."""
        if (raised := interruption(error)) is not None:
            raise raised
        if message not in self._logged:
            self._logged.add(message)
            log.write(logging.WARNING, message, error=error)


def _exemplar_source(options: Options) -> Callable[[], Mapping[str, str] | None] | None:
    """The callable that returns the exemplar of the current request. Raises OptionError where OpenTelemetry is missing."""
    if callable(options.exemplars):
        return options.exemplars
    if not options.exemplars:
        return None
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
