"""The names and labels of the HTTP metrics: those of pdc, and those that dashboards of other exporters ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..metrics import Counter, Gauge, Histogram, StoredMetric, Summary
from ..options import OptionError, Options, OptionsT

UNMATCHED = "<unmatched>"
"""The route of a request that no route of the application matches."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
OTHER_METHOD = "<other>"
"""The method of a request whose method HTTP does not have."""
SCHEME = "<scheme>"
"""The label of an application that has the scheme of its requests, which no label of a user can be."""
MEASURED = ("requests", "duration", "received", "sent", "start")
"""The measurements of an answered request, in the order in which a tracker has them."""

_ANSWER = {"method": "method", "route": "route", "status": "status"}
_PATH = {"method": "method", "path": "route", "app_name": "app_name"}
_HANDLER = {"method": "method", "handler": "route"}
_OTEL = {
    "http_request_method": "method",
    "http_route": "route",
    "http_response_status_code": "status",
    "error_type": "error",
    "url_scheme": "scheme",
}


class Named(NamedTuple):
    """A family under one of several names."""

    measures: str
    """One of `MEASURED`, ``exceptions``, ``in_progress``; ``info`` is 1 in each process."""
    kind: type[StoredMetric]
    name: str
    documentation: str
    labels: Mapping[str, str]
    """The facts that are the values, by label: ``method``, ``route``, ``status``, ``error``, ``scheme``, ``exception``."""
    buckets: tuple[float, ...] = ()
    """Unless options have others."""


class Names(NamedTuple):
    """The families of requests, under the names of one exporter, and what else is particular to it.

    A measurement that is not there keeps the name of pdc.
    """

    families: tuple[Named, ...]
    namespace: str = ""
    """Where PDC_NAMESPACE is not set."""
    constants: Mapping[str, str] = {}
    """Further facts; a label of the application that has the name of one replaces it."""
    unmatched: str = UNMATCHED
    other_method: str = OTHER_METHOD
    without: tuple[str, ...] = ()
    """Measurements that have no name."""
    sizes: bool = False
    """True if sizes are there whatever PDC_SIZES is."""
    group_status: bool | None = None
    """The only value of PDC_GROUP_STATUS, if there is only one."""
    has_views: bool = False
    """True if the route is the name of the view, where the framework has such names."""
    counts_handled: bool = True
    """False if exceptions that a handler of the application answers do not count, where the framework has such handlers."""

    @property
    def scheme_label(self) -> str:
        """The label that has the scheme of a request; empty where there is none."""
        labels = [label for named in self.families for label, fact in named.labels.items() if fact == "scheme"]
        return labels[0] if labels else ""

    def of(self, measures: str) -> tuple[Named, ...]:
        """The families of a measurement."""
        found = tuple(named for named in self.families if named.measures == measures)
        return found if found or measures in self.without or self is PDC else PDC.of(measures)


PDC = Names(
    (
        Named("requests", Counter, "http_requests", "Requests that were answered.", _ANSWER),
        Named(
            "duration",
            Histogram,
            "http_request_duration_seconds",
            "Time from the start of a request to the last byte of its answer.",
            _ANSWER,
        ),
        Named("in_progress", Gauge, "http_requests_in_progress", "Requests in progress.", {"method": "method"}),
        Named(
            "exceptions",
            Counter,
            "http_exceptions",
            "Exceptions that left a view.",
            {"method": "method", "route": "route", "exception": "exception"},
        ),
        Named("received", Histogram, "http_request_size_bytes", "Bytes of request bodies.", _ANSWER),
        Named("sent", Histogram, "http_response_size_bytes", "Bytes of response bodies.", _ANSWER),
        Named(
            "start",
            Histogram,
            "http_response_start_seconds",
            "Time from the start of a request to the start of its answer.",
            _ANSWER,
        ),
    ),
    without=("info",),
)

_OTEL_NAMES = Names(
    (
        Named("duration", Histogram, "http_server_request_duration_seconds", "Duration of HTTP server requests.", _OTEL),
        Named(
            "in_progress",
            Gauge,
            "http_server_active_requests",
            "Number of active HTTP server requests.",
            {"http_request_method": "method"},
        ),
        Named("received", Histogram, "http_server_request_body_size_bytes", "Size of HTTP server request bodies.", _OTEL),
        Named("sent", Histogram, "http_server_response_body_size_bytes", "Size of HTTP server response bodies.", _OTEL),
    ),
    unmatched="",
    other_method="_OTHER",
    without=("requests", "info"),
    group_status=False,
)

_DJANGO_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 25.0, 50.0, 75.0)
_DJANGO_BYTES = (0.0, *(2.0**power for power in range(30)))
_VIEW = {"view": "route", "method": "method"}
_DJANGO_NAMES = Names(
    (
        Named(
            "requests",
            Counter,
            "django_http_responses_total_by_status_view_method",
            "Responses by status, view and method.",
            {"status": "status", **_VIEW},
        ),
        Named(
            "requests",
            Counter,
            "django_http_requests_total_by_view_transport_method",
            "Requests by view, transport and method.",
            {"view": "route", "transport": "scheme", "method": "method"},
        ),
        Named("requests", Counter, "django_http_responses_total_by_status", "Responses by status.", {"status": "status"}),
        Named("requests", Counter, "django_http_requests_total_by_method", "Requests by method.", {"method": "method"}),
        Named(
            "requests", Counter, "django_http_requests_total_by_transport", "Requests by transport.", {"transport": "scheme"}
        ),
        Named("requests", Counter, "django_http_requests_before_middlewares", "All requests.", {}),
        Named("requests", Counter, "django_http_responses_before_middlewares", "All responses.", {}),
        Named(
            "duration",
            Histogram,
            "django_http_requests_latency_seconds_by_view_method",
            "Time of requests by view and method, with all middlewares.",
            _VIEW,
            _DJANGO_SECONDS,
        ),
        Named(
            "duration",
            Histogram,
            "django_http_requests_latency_including_middlewares_seconds",
            "Time of requests, with all middlewares.",
            {},
            _DJANGO_SECONDS,
        ),
        Named("exceptions", Counter, "django_http_exceptions_total_by_type", "Exceptions by type.", {"type": "exception"}),
        Named("exceptions", Counter, "django_http_exceptions_total_by_view", "Exceptions by view.", {"view": "route"}),
        Named("received", Histogram, "django_http_requests_body_total_bytes", "Bytes of request bodies.", {}, _DJANGO_BYTES),
        Named("sent", Histogram, "django_http_responses_body_total_bytes", "Bytes of response bodies.", {}, _DJANGO_BYTES),
    ),
    unmatched="<unnamed view>",
    other_method="<invalid method>",
    sizes=True,
    has_views=True,
)

_FLASK_NAMES = Names(
    (
        Named("requests", Counter, "http_request", "HTTP requests.", {"method": "method", "status": "status"}),
        Named(
            "duration",
            Histogram,
            "http_request_duration_seconds",
            "Time of HTTP requests.",
            {"method": "method", "path": "route", "status": "status"},
        ),
        Named(
            "exceptions",
            Counter,
            "http_request_exceptions",
            "HTTP requests that raised an exception.",
            {"method": "method", "status": "failed"},
        ),
        Named("info", Gauge, "exporter_info", "The exporter.", {"version": "version"}),
    ),
    namespace="flask",
    constants={"version": "pdc", "failed": "500"},
    counts_handled=False,
)

_STARLETTE_ANSWER = {"method": "method", "path": "route", "status_code": "status", "app_name": "app_name"}
_STARLETTE_NAMES = Names(
    (
        Named("requests", Counter, "requests", "HTTP requests.", _STARLETTE_ANSWER),
        Named("duration", Histogram, "request_duration_seconds", "Time of HTTP requests.", _STARLETTE_ANSWER),
        Named(
            "in_progress",
            Gauge,
            "requests_in_progress",
            "HTTP requests in progress.",
            {"method": "method", "app_name": "app_name"},
        ),
        Named("received", Counter, "request_body_bytes", "Bytes of request bodies.", _STARLETTE_ANSWER),
        Named("sent", Counter, "response_body_bytes", "Bytes of response bodies.", _STARLETTE_ANSWER),
    ),
    namespace="starlette",
    constants={"app_name": "starlette"},
    unmatched="__unknown__",
)

_HIGH_RESOLUTION = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
_INSTRUMENTATOR_NAMES = Names(
    (
        Named(
            "requests",
            Counter,
            "http_requests",
            "Requests by method, status and handler.",
            {"method": "method", "status": "status", "handler": "route"},
        ),
        Named(
            "duration",
            Histogram,
            "http_request_duration_seconds",
            "Time of requests by handler, in few buckets.",
            _HANDLER,
            (0.1, 0.5, 1.0),
        ),
        Named(
            "duration",
            Histogram,
            "http_request_duration_highr_seconds",
            "Time of all requests, in many buckets.",
            {},
            _HIGH_RESOLUTION,
        ),
        Named("in_progress", Gauge, "http_requests_inprogress", "Requests in progress.", {}),
        Named("received", Summary, "http_request_size_bytes", "Bytes of request bodies.", {"handler": "route"}),
        Named("sent", Summary, "http_response_size_bytes", "Bytes of response bodies.", {"handler": "route"}),
    ),
    unmatched="none",
    sizes=True,
    group_status=True,
)

_OBSERVABILITY_NAMES = Names(
    (
        Named("requests", Counter, "responses", "Responses by method, path and status.", _STARLETTE_ANSWER),
        Named("requests", Counter, "requests", "Requests by method and path.", _PATH),
        Named("duration", Histogram, "requests_duration_seconds", "Time of requests.", _PATH),
        Named(
            "in_progress", Gauge, "requests_in_progress", "Requests in progress.", {"method": "method", "app_name": "app_name"}
        ),
        Named(
            "exceptions",
            Counter,
            "exceptions",
            "Exceptions by type.",
            {**_PATH, "exception_type": "exception"},
        ),
        Named("info", Gauge, "app_info", "The application.", {"app_name": "app_name"}),
    ),
    namespace="fastapi",
    constants={"app_name": "fastapi-app"},
)

NAMES: dict[str, Names] = {
    "pdc": PDC,
    "otel": _OTEL_NAMES,
    "django-prometheus": _DJANGO_NAMES,
    "prometheus-flask-exporter": _FLASK_NAMES,
    "starlette-exporter": _STARLETTE_NAMES,
    "fastapi-instrumentator": _INSTRUMENTATOR_NAMES,
    "fastapi-observability": _OBSERVABILITY_NAMES,
}
"""By the value of PDC_NAMES."""


def implied(options: OptionsT) -> OptionsT:
    """The options with what their names imply. Raises OptionError for options that the names contradict."""
    names = NAMES[options.names]
    if names is PDC:
        return options
    if options.group_status and names.group_status is False:
        raise OptionError(
            f"PDC_GROUP_STATUS=True contradicts PDC_NAMES={options.names}, whose statuses are numbers: remove one"
        )
    labels = {SCHEME: scheme, **options.labels} if names.scheme_label else options.labels
    return replace(
        options,
        labels=labels,
        sizes=options.sizes or names.sizes,
        group_status=options.group_status or bool(names.group_status),
    )


def check_labels(options: Options, families: Sequence[Named]) -> None:
    """Raise OptionError for a label of the application that a family has already."""
    constants = NAMES[options.names].constants
    used = {label for named in families for label, fact in named.labels.items() if fact not in constants}
    used |= {"quantile" for named in families if named.kind is Summary}
    if doubled := sorted(used & options.labels.keys()):
        raise OptionError(f"PDC_LABELS has {doubled}, which are labels of PDC_NAMES={options.names} themselves: rename them")


def scheme(request: Any) -> str:
    """The scheme of a request of Django or Flask, or of one that has a scope: ``http`` or ``https``."""
    found = getattr(request, "scheme", None) or request.scope.get("scheme")
    return "https" if found in ("https", "wss") else "http"
