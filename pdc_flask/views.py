"""Metrics of single views, as decorators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar, cast

from flask import Response, current_app
from werkzeug.exceptions import HTTPException

from pdc.metrics import Counter, Gauge, Histogram, StoredMetric, Summary
from pdc.process.log import log_or_raise
from pdc.process.once import once

ViewT = TypeVar("ViewT", bound=Callable[..., Any])
MetricT = TypeVar("MetricT", bound=StoredMetric)

Labels = Mapping[str, str | Callable[[], object] | Callable[[Response], object]]
"""The values of labels by name: texts, or callables of no argument (ask `flask.request`) or of the response."""


class ViewMetrics:
    """Decorators that measure a view, to be written below ``@app.route``.

    An exception passes through them as it is, and counts as the response that Flask makes of an HTTPException, or as
    status 500. A label whose callable fails is empty, and the error is logged. The same metric may be declared again, as
    in an application factory that is called twice.
    """

    def counter(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Count the calls of the view."""
        series = _Series(_metric(Counter, name, documentation, tuple(labels or ())), labels)
        return _decorator(lambda call: call.after(lambda: series.child(call).inc()))

    def summary(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Observe the seconds that the view takes."""
        series = _Series(_metric(Summary, name, documentation, tuple(labels or ())), labels)
        return _decorator(lambda call: call.after(lambda: series.child(call).observe(call.seconds)))

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Labels | None = None,
        buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS,
    ) -> Callable[[ViewT], ViewT]:
        """Observe the seconds that the view takes, in these buckets."""
        series = _Series(_metric(Histogram, name, documentation, tuple(labels or ()), buckets=tuple(buckets)), labels)
        return _decorator(lambda call: call.after(lambda: series.child(call).observe(call.seconds)))

    def gauge(self, name: str, documentation: str, labels: Labels | None = None) -> Callable[[ViewT], ViewT]:
        """Show how many calls of the view are in progress; its labels cannot depend on the response."""
        if late := [label for label, value in (labels or {}).items() if _takes_response(value)]:
            raise ValueError(
                f"the gauge {name!r} is there before the response: its labels {late} must be callables of no argument"
            )
        series = _Series(_metric(Gauge, name, documentation, tuple(labels or ()), multiprocess_mode="livesum"), labels)

        def begin(call: _Call) -> None:
            child = series.child(call)
            child.inc()
            call.after(child.dec)

        return _decorator(begin)


class _Call:
    """A call of a view: the functions to call at its end, and its response and duration."""

    def __init__(self) -> None:
        self.response = Response(status=500)
        self.seconds = 0.0
        self._endings: list[Callable[[], None]] = []
        self._start = perf_counter()

    def after(self, ending: Callable[[], None]) -> None:
        self._endings.append(ending)

    def returned(self, value: Any) -> Response:
        self.response = current_app.make_response(value)
        return self.response

    @contextmanager
    def measured(self) -> Iterator[_Call]:
        try:
            yield self
        except HTTPException as error:
            self.response = Response(status=error.code)
            raise
        finally:
            self.seconds = perf_counter() - self._start
            for ending in self._endings:
                ending()


class _Series:
    """The series of a metric that a call belongs to."""

    def __init__(self, metric: Any, labels: Labels | None) -> None:
        self._metric = metric
        self._labels = dict(labels or {})

    def child(self, call: _Call) -> Any:
        if not self._labels:
            return self._metric
        return self._metric.labels(**{name: self._value(name, value, call) for name, value in self._labels.items()})

    def _value(self, name: str, value: Any, call: _Call) -> str:
        if not callable(value):
            return str(value)
        try:
            return str(value(call.response) if _takes_response(value) else value())
        except Exception as error:
            log_or_raise(error, "the label %s of %s failed and is left empty", name, self._metric)
            return ""


def _takes_response(value: Any) -> bool:
    return callable(value) and bool(inspect.signature(value).parameters)


def _decorator(begin: Callable[[_Call], None]) -> Callable[[ViewT], ViewT]:
    def decorate(view: ViewT) -> ViewT:
        @wraps(view)
        def measured(*args: Any, **kwargs: Any) -> Response:
            call = _Call()
            begin(call)
            with call.measured():
                return call.returned(view(*args, **kwargs))

        @wraps(view)
        async def measured_async(*args: Any, **kwargs: Any) -> Response:
            call = _Call()
            begin(call)
            with call.measured():
                return call.returned(await view(*args, **kwargs))

        return cast(ViewT, measured_async if inspect.iscoroutinefunction(view) else measured)

    return decorate


@once
def _metric(kind: type[MetricT], name: str, documentation: str, labels: tuple[str, ...], **options: Any) -> MetricT:
    """The metric of that declaration, once per process."""
    return kind(name, documentation, labels, registry=None, **options)
