"""Metrics of single views, as decorators."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar, cast
from weakref import WeakSet

from flask import Flask, Response, after_this_request, current_app, has_request_context, request
from werkzeug.exceptions import HTTPException

from pdc.http.labels import takes
from pdc.metrics import Counter, Gauge, Histogram, StoredMetric, Summary, declared_once
from pdc.process import log
from pdc.process.interruption import tolerate
from pdc.process.log import log_once_or_raise, log_or_raise

ViewT = TypeVar("ViewT", bound=Callable[..., Any])
MetricT = TypeVar("MetricT", bound=StoredMetric)

REMEDY = "views do not await labels, so give a callable that is no coroutine function"
UNANSWERED = "pdc.unanswered"
"""The key of a WSGI environment that has the calls which raised an exception."""

Labels = Mapping[str, str | Callable[[], object] | Callable[[Response], object]]
"""The values of labels by name: texts, or callables of no argument (ask `flask.request`) or of the response."""


class ViewMetrics:
    """Decorators that measure a view, to be written below ``@app.route``, or any other function.

    They return the same object as the view, so that decorators above them see it. A label of the response waits for the
    response that the application sends, also for an exception: outside of a request it is empty. Where the application lets
    an exception through, it counts as status 500. A label whose callable fails is empty, and the error is logged. Nobody
    awaits labels: coroutine functions are a ValueError, as are callables of other arguments, and other awaitables empty, with
    one line in the log. A metric whose labels are all texts is 0 before the first call. The same metric may be declared again,
    as in an application factory that is called twice.
    """

    def __init__(self) -> None:
        self._apps: WeakSet[Flask] = WeakSet()
        self.is_off = False
        """True where PDC_ENABLED is false in the only applications: nothing is measured then."""

    def counter(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Count the calls of the view."""
        series = _Series(_metric(Counter, name, documentation, _names(labels)), labels)
        return self._decorator(lambda call: call.after(lambda: series.child(call).inc(), series.takes_response))

    def summary(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Observe the seconds that the view takes."""
        series = _Series(_metric(Summary, name, documentation, _names(labels)), labels)
        return self._observing(series)

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Labels | None = None,
        buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS,
    ) -> Callable[[ViewT], ViewT]:
        """Observe the seconds that the view takes, in these buckets."""
        series = _Series(_metric(Histogram, name, documentation, _names(labels), buckets=tuple(buckets)), labels)
        return self._observing(series)

    def gauge(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Show how many calls of the view are in progress; its labels cannot depend on the response."""
        names = _names(labels)
        if late := [label for label, value in (labels or {}).items() if _takes_response(value)]:
            raise ValueError(
                f"the gauge {name!r} is there before the response: its labels {late} must be callables of no argument"
            )
        series = _Series(_metric(Gauge, name, documentation, names, multiprocess_mode="livesum"), labels)

        def begin(call: _Call) -> None:
            child = series.child(call)
            child.inc()
            call.after(child.dec)

        return self._decorator(begin)

    def _observing(self, series: _Series) -> Callable[[ViewT], ViewT]:
        return self._decorator(lambda call: call.after(lambda: series.child(call).observe(call.seconds), series.takes_response))

    def _decorator(self, begin: Callable[[_Call], None]) -> Callable[[ViewT], ViewT]:
        def decorate(view: ViewT) -> ViewT:
            below = list(_chain(view))
            with tolerate(TypeError):  # nothing can refer weakly to some objects of C
                _MEASURED.update(below)
            for app in self._apps:
                if any(function in app.view_functions.values() for function in below):
                    warn_of_misplaced(app)
            return _measured(view, begin, self)

        return decorate


class _Call:
    """A call of a view: the functions to call at its end or with the response, and its response and duration."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.seconds = 0.0
        self._endings: list[tuple[Callable[[], None], bool]] = []
        self._start = perf_counter()

    def after(self, ending: Callable[[], None], takes_response: bool = False) -> None:
        self._endings.append((ending, takes_response))

    def update(self, change: Callable[..., None], *arguments: object) -> None:
        """Change a metric. An error of ours, which must not break the view, is logged."""
        try:
            change(*arguments)
        except Exception as error:
            log_or_raise(error, "a call of a view could not be measured")

    @contextmanager
    def measured(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._raised(error)
            raise
        finally:
            self.seconds = perf_counter() - self._start
            for ending, takes_response in self._endings:
                if takes_response and self.response is None and has_request_context():
                    after_this_request(self._answered(ending))
                else:
                    self.update(ending)

    def _raised(self, error: BaseException) -> None:
        """Let the response of the application count, if it may answer the exception, or else the one that it stands for."""
        if isinstance(error, Exception) and has_request_context() and "pdc" in current_app.extensions:
            request.environ.setdefault(UNANSWERED, []).append(self)
        elif isinstance(error, HTTPException):
            answer = error.get_response()
            self.response = Response(status=answer.status, headers=answer.headers)
        else:
            self.response = Response(status=500)

    def unanswered(self) -> None:
        """End the call as status 500: its request gets no response."""
        if self.response is None:
            self.response = Response(status=500)
            for ending, takes_response in self._endings:
                if takes_response:
                    ending()

    def _answered(self, ending: Callable[[], None]) -> Callable[[Response], Response]:
        def answered(response: Response) -> Response:
            self.response = response
            self.update(ending)
            return response

        return answered


def end_unanswered() -> None:
    """End the calls of the current request that raised an exception, which the application lets through."""
    for call in request.environ.pop(UNANSWERED, ()):
        call.unanswered()


class _Series:
    """The series of a metric that a call belongs to."""

    def __init__(self, metric: Any, labels: Labels | None) -> None:
        self._metric = metric
        self._labels = {name: (value, _takes_response(value)) for name, value in (labels or {}).items()}
        self._awaitable: set[str] = set()
        """The labels that were found to be awaitables, which is logged."""
        self._failed: set[str] = set()
        """The messages about labels that failed: one of each is enough."""
        if names := [name for name, (value, _) in self._labels.items() if inspect.iscoroutinefunction(value)]:
            raise ValueError(f"expected no coroutine functions as labels of {metric}, got them for {names}: {REMEDY}")
        if names := [name for name, each in self._labels.items() if not _is_suited(*each)]:
            raise ValueError(
                f"expected callables of no argument or of the response as labels of {metric}, got others for {names}"
            )
        self.takes_response = any(takes_response for _, takes_response in self._labels.values())
        if labels and not any(callable(value) for value in labels.values()):
            metric.labels(**{name: str(value) for name, value in labels.items()})  # which is 0 from now on

    def child(self, call: _Call) -> Any:
        if not self._labels:
            return self._metric
        return self._metric.labels(**{name: self._value(name, *each, call) for name, each in self._labels.items()})

    def _value(self, name: str, value: Any, takes_response: bool, call: _Call) -> str:
        if not callable(value):
            return str(value)
        if takes_response and call.response is None:
            return ""  # no request, no response
        try:
            found = value(call.response) if takes_response else value()
            return self._refused(name, found) if inspect.isawaitable(found) else str(found)
        except Exception as error:  # a label must not break a view
            failure = error
        log_once_or_raise(self._failed, failure, f"the label {name} of {self._metric} failed and is left empty")
        return ""

    def _refused(self, name: str, found: object) -> str:
        if inspect.iscoroutine(found):
            found.close()  # else Python warns that nobody awaited it
        if name not in self._awaitable:
            self._awaitable.add(name)
            text = "the label %s of %s is left empty: expected a text, got %r: " + REMEDY
            log.write(logging.WARNING, text, name, self._metric, found)
        return ""


def _names(labels: Labels | None) -> tuple[str, ...]:
    if labels is not None and not isinstance(labels, Mapping):
        raise TypeError(f"expected a dict of label names and texts or callables, got {labels!r}")
    return tuple(labels or ())


def _takes_response(value: Any) -> bool:
    try:
        return callable(value) and bool(inspect.signature(value).parameters)
    except ValueError:  # some functions of C, such as `time.time`, do not show theirs
        return False


def _is_suited(value: Any, takes_response: bool) -> bool:
    """True for a text, and for a callable of so many arguments."""
    return not callable(value) or takes(value, int(takes_response))


def _measured(view: ViewT, begin: Callable[[_Call], None], metrics: ViewMetrics) -> ViewT:
    @wraps(view)
    def measured(*args: Any, **kwargs: Any) -> Any:
        if metrics.is_off:
            return view(*args, **kwargs)
        call = _Call()
        call.update(begin, call)
        with call.measured():
            return view(*args, **kwargs)

    @wraps(view)
    async def measured_async(*args: Any, **kwargs: Any) -> Any:
        if metrics.is_off:
            return await view(*args, **kwargs)
        call = _Call()
        call.update(begin, call)
        with call.measured():
            return await view(*args, **kwargs)

    return cast(ViewT, measured_async if inspect.iscoroutinefunction(view) else measured)


_MEASURED: WeakSet[Any] = WeakSet()
"""The functions below a decorator: those that it decorates, and those that they wrap."""


def _chain(view: Any) -> Iterator[Any]:
    while view is not None:
        yield view
        view = getattr(view, "__wrapped__", None)


def warn_of_misplaced(app: Flask) -> None:
    """Log the views of the application that a decorator above their route measures: Flask does not call it."""
    views = list(app.view_functions.values())
    inner = [id(function) for view in views for function in list(_chain(view))[1:]]
    for view in views:
        if view in _MEASURED and id(view) not in inner:
            _MEASURED.discard(view)
            text = "the view %s is not measured: write the decorator of its metric below the one of its route, not above"
            log.write(logging.WARNING, text, getattr(view, "__qualname__", view))


@declared_once
def _metric(kind: type[MetricT], name: str, documentation: str, labels: tuple[str, ...], **options: Any) -> MetricT:
    """The metric of that declaration, once per process."""
    return kind(name, documentation, labels, registry=None, **options)
