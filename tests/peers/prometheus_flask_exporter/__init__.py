"""In place of prometheus_flask_exporter: its names, by `pdc_flask`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Flask, Response, request
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

import pdc
import pdc_flask

__all__ = ["NO_PREFIX", "PrometheusMetrics", "RESTfulPrometheusMetrics"]

NO_PREFIX = ""
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _measuring(kind: str) -> Callable[..., Decorator]:
    """The method that declares a metric of a view."""

    def declare(
        self: PrometheusMetrics,
        name: str,
        description: str,
        labels: Any = None,
        initial_value_when_only_static_labels: bool = True,  # noqa: ARG001 - they always have one
        **arguments: Any,
    ) -> Decorator:
        if self.default_labels:
            labels = {**(labels or {}), **self.default_labels}
        decorator: Decorator = getattr(self.metrics, kind)(name, description, labels, **arguments)
        return decorator

    return declare


class PrometheusMetrics:
    """Takes the arguments of the peer. Paths are always templates, and latencies always histograms."""

    version = "pdc"
    counter = _measuring("counter")
    gauge = _measuring("gauge")
    histogram = _measuring("histogram")
    summary = _measuring("summary")

    def __init__(
        self,
        app: Flask | None,
        path: str | None = "/metrics",
        export_defaults: bool = True,
        defaults_prefix: str = "flask",
        buckets: Sequence[float] | None = None,
        default_labels: Mapping[str, Any] | None = None,
        static_labels: Mapping[str, Any] | None = None,
        excluded_paths: str | Sequence[str] = (),
        metrics_decorator: Decorator | None = None,
        **_: Any,
    ) -> None:
        self.metrics = pdc_flask.PrometheusMetrics()
        self.default_labels = {**(static_labels or {}), **(default_labels or {})}
        patterns = [excluded_paths] if isinstance(excluded_paths, str) else excluded_paths
        options = {
            "PDC_NAMES": "prometheus-flask-exporter",
            "PDC_NAMESPACE": defaults_prefix,
            "PDC_EXCLUDE_PATHS": [re.compile(rf"(?:{pattern}).*") for pattern in patterns] if export_defaults else [ANY],
            "PDC_LABELS": {name: _label(value) for name, value in self.default_labels.items()},
            "PDC_BUCKETS": buckets,
            "PDC_METRICS_DECORATOR": metrics_decorator,
        }
        self._options = {"PDC_METRICS_PATH": path, **{name: value for name, value in options.items() if value is not None}}
        self._app = app
        if app is not None:
            self.init_app(app)

    @classmethod
    def for_app_factory(cls, **arguments: Any) -> PrometheusMetrics:
        """The metrics of an application that `init_app` gets."""
        return cls(None, **arguments)

    def init_app(self, app: Flask) -> None:
        """Instrument the application."""
        app.config.update(self._options)
        self.metrics.init_app(app)

    def info(self, name: str, description: str, labelnames: Any = (), labelvalues: Any = (), **labels: Any) -> Any:
        """Declare an info metric."""
        labels |= dict(zip(labelnames, labelvalues, strict=True))
        return self.metrics.info(name, description, **{label: str(value) for label, value in labels.items()})

    def do_not_track(self) -> Decorator:
        """Do not count the requests of the view."""
        return self.metrics.exclude

    def register_default(self, *decorators: Decorator) -> None:
        """Decorate all views that there are."""
        views = {} if self._app is None else self._app.view_functions
        for endpoint in views:
            for decorator in decorators:
                views[endpoint] = decorator(views[endpoint])

    def register_endpoint(self, path: str) -> None:
        """Serve the metrics at a further path."""
        if self._app is not None:
            self._app.add_url_rule(path, "more", self.metrics.exclude(lambda: Response(*pdc.scrape_response(request))))

    def generate_metrics(self, _: str | None = None, names: Sequence[str] | None = None) -> tuple[str, str]:
        """The text of the metrics, and its type."""
        registry = None if names is None else REGISTRY.restricted_registry(names)
        return pdc.generate_latest(registry).decode(), CONTENT_TYPE_PLAIN_0_0_4

    def start_http_server(self, port: int, host: str = "127.0.0.1", **_: Any) -> None:
        """Serve the metrics on a port of their own, at any path."""
        pdc.start_http_server(port, host)


class RESTfulPrometheusMetrics(PrometheusMetrics):
    """Flask-RESTful needs nothing of its own."""

    def __init__(self, app: Flask | None, api: object, **arguments: Any) -> None:  # noqa: ARG002 - as the class explains
        super().__init__(app, **arguments)


ANY = re.compile(".*", re.DOTALL)


def _label(value: Any) -> Any:
    """A label as PDC_LABELS has it, whose callables take the request first."""
    if not callable(value):
        return str(value)
    if inspect.signature(value).parameters:
        return lambda _, response: value(response)
    return lambda _: value()
