"""Prometheus metrics of a Flask application, shared by all of its processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any, NoReturn

try:
    import flask  # noqa: F401 - without it, the error names the extra to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} needs Flask: pip install 'prometheus-distributed-client[flask]'") from error

from flask import Flask, Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Rule

from pdc import Info, config
from pdc.exposition import Response as Answer
from pdc.exposition import Scrape, scrape_from_wsgi
from pdc.http import (
    TRACKER,
    UNMATCHED,
    Hooks,
    HTTPMetrics,
    RequestRecord,
    Tracker,
    exclude,
    excludes_method,
    is_excluded,
    track_wsgi,
)
from pdc.http.hooks import HookT
from pdc.http.names import NAMES
from pdc.options import Options
from pdc.process import log

from .views import ViewMetrics, end_unanswered, warn_of_misplaced

__all__ = ["PrometheusMetrics", "RequestRecord"]

ENDPOINT, DASHBOARD = "pdc_metrics", "pdc_dashboard"
_OF_EXPORTER = {
    "path": "metrics_path",
    "defaults_prefix": "namespace",
    "default_labels": "labels",
    "static_labels": "labels",
    "excluded_paths": "exclude_paths",
}
"""Keywords of prometheus-flask-exporter whose options have other names."""


class PrometheusMetrics(ViewMetrics):
    """Counts and times every request of an application, and serves ``/metrics``.

    Options come from ``app.config``, or from an environment variable of the same name: ``PDC_REDIS_URL`` or
    ``PDC_SQLITE_PATH`` (neither: the file ``metrics.db``), and more that `pdc.options.Options` has. Requests of a view, a class
    of views, or a method of one that ``@metrics.exclude`` decorates, below ``@app.route``, are not counted.
    """

    exclude = staticmethod(exclude)

    def __init__(self, app: Flask | None = None, **keywords: NoReturn) -> None:
        """Instrument the application, unless `init_app` will. Raises TypeError for any other argument."""
        if keywords:
            name = next(iter(keywords))
            raise TypeError(f"PrometheusMetrics got the keyword {name!r}: {_remedy(name)}")
        super().__init__()
        self._hooks = Hooks()
        self._infos: list[tuple[Info, dict[str, str]]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Instrument the application, before its first request.

        Raises OptionError for a wrong or unknown option, RuntimeError for an application that has this already, TypeError for
        another object.
        """
        if not isinstance(app, Flask):
            raise TypeError(f"expected an application of Flask, got {app!r}: pdc_starlette is for Starlette and FastAPI")
        if "pdc" in app.extensions:
            raise RuntimeError(
                f"{app} has PrometheusMetrics already: call init_app() or PrometheusMetrics(app) once per application"
            )
        options = Options.load(app.config)
        self.is_off = not (options.enabled or self._apps)
        if not options.enabled:
            options.setup()
            return
        metrics = app.extensions["pdc"] = HTTPMetrics(options, hooks=self._hooks, make_headers=Headers)
        for info, labels in self._infos:
            info.info(labels)
        if options.metrics_path is not None:
            _mount(app, metrics, options.metrics_path, ENDPOINT, metrics.answer)
        if metrics.dashboard_path is not None:
            _mount(app, metrics, metrics.dashboard_path, DASHBOARD, metrics.answer_browser)
        app.full_dispatch_request = _watch_requests(app)  # type: ignore[method-assign]  # Flask has no hook there
        app.wsgi_app = track_wsgi(metrics, app.wsgi_app)  # type: ignore[assignment,method-assign]  # Flask documents it
        metrics.begin_serving()
        self._apps.add(app)
        warn_of_misplaced(app)

    def add(self, hook: HookT) -> HookT:
        """Call the function with the `RequestRecord` of each request that was counted, as `pdc.http.Hooks.add` describes."""
        return self._hooks.add(hook)

    def info(self, name: str, documentation: str, **labels: str) -> Info:
        """Declare an info metric with these labels, for example the version of the application, and return it.

        Its sample ends in ``_info``, whether the name does or not.
        """
        info = Info(name.removesuffix("_info"), documentation, registry=None)
        self._infos.append((info, labels))
        if config.DEFAULT.storage is not None:
            info.info(labels)
        return info


def _remedy(keyword: str) -> str:
    """The place of an option that somebody gave as a keyword, as prometheus-flask-exporter has it."""
    option = _OF_EXPORTER.get(keyword, keyword)
    if option in Options.__dataclass_fields__:
        return f"set app.config['PDC_{option.upper()}'], or the environment variable"
    return "options are PDC_... in app.config; docs/moving.md has those in place of the keywords of prometheus-flask-exporter"


def _mount(app: Flask, metrics: HTTPMetrics, path: str, endpoint: str, answer: Callable[[Scrape], Answer]) -> None:
    def page(**_: str) -> Response:
        return Response(*answer(scrape_from_wsgi(request.environ)))

    guarded = app.ensure_sync(metrics.decorated(page))

    def serve(**values: str) -> Any:
        return guarded(**values)

    methods = ["GET", "HEAD", "OPTIONS"]
    hosts: list[dict[str, str]] = [{}]
    if app.url_map.host_matching:  # a rule without a host matches none
        hosts = [{"host": "<pdc_host>"}]
    elif app.subdomain_matching:  # Prometheus asks processes by their address, which is in no domain
        hosts = [{}, {"subdomain": "<pdc_host>"}]
    view = exclude(serve)
    for host in hosts:
        app.add_url_rule(path, endpoint, view, methods=methods, provide_automatic_options=False, **host)


def _tracker() -> Tracker | None:
    return request.environ.get(TRACKER)


def _watch_requests(app: Flask) -> Callable[..., Response]:
    """Watch the start of requests. Flask's signal ``request_started`` would cost a microsecond and a half each."""
    dispatch = app.full_dispatch_request
    by_route = app.extensions["pdc"].options.in_progress_by_route
    counted: set[str] = set()
    """The endpoints whose views nothing excludes."""

    def dispatching(*args: Any) -> Response:
        # Once: every use of the proxy costs. Flask documents the method.
        current: Any = request._get_current_object()  # type: ignore[attr-defined] # noqa: SLF001 - see above
        tracker = current.environ.get(TRACKER)
        if tracker is None:
            return dispatch(*args)
        tracker.request = current
        rule = current.url_rule or _rule(app)
        if rule is None:
            tracker.route = UNMATCHED  # a view of another application, which called this one, may have a route
        else:
            tracker.route = current.root_path + rule.rule
            if rule.endpoint not in counted and _excludes(app, rule.endpoint, current.method, counted):
                tracker.forget()
        if by_route:
            tracker.enter()
        tracker.response = response = dispatch(*args)
        body = getattr(response, "response", None)
        if isinstance(body, list) and len(body) <= 1:  # no client can be seen to disconnect in the middle of it
            tracker.is_buffered = True
        return response

    return _first(app, dispatching)


def _first(app: Flask, dispatching: Callable[..., Response]) -> Callable[..., Response]:
    """Complete the application at its first request, when all of its views and extensions are there."""
    incomplete = [app]
    lock = Lock()

    def first(*args: Any) -> Response:
        with lock:
            if incomplete:
                _complete(incomplete.pop())
                if app.full_dispatch_request is first:
                    app.full_dispatch_request = dispatching  # type: ignore[method-assign]  # later requests need no lock
        return dispatching(*args)

    return first


def _complete(app: Flask) -> None:
    """Watch all handlers of exceptions: extensions such as Flask-RESTX put theirs before those of Flask."""
    methods: Any = app  # Flask has no hook there, and its signal is also sent for exceptions that become an answer
    if NAMES[app.extensions["pdc"].options.names].counts_handled:
        methods.handle_user_exception = _watch_exceptions(app.handle_user_exception, (HTTPException,))
    methods.handle_exception = _note_answers(_watch_exceptions(app.handle_exception))
    warn_of_misplaced(app)
    _warn_of_other_page(app)


def _warn_of_other_page(app: Flask) -> None:
    """Log a view of the application at the path of the metrics page: Flask calls the first one of the two."""
    path = app.extensions["pdc"].options.metrics_path
    for rule in app.url_map.iter_rules():
        if rule.rule == path and rule.endpoint != ENDPOINT and "GET" in (rule.methods or ["GET"]):
            text = "the view %s and the metrics page of pdc are both at %s: remove the view, or set PDC_METRICS_PATH"
            log.write(logging.WARNING, text, rule.endpoint, path)


def _excludes(app: Flask, endpoint: str, method: str, counted: set[str]) -> bool:
    """Return True if the view of the endpoint is excluded for this method. One that nothing excludes becomes a counted one."""
    view = app.view_functions.get(endpoint)
    if is_excluded(view):
        return True
    if (owner := getattr(view, "view_class", None)) is not None:
        return excludes_method(owner, method)
    counted.add(endpoint)
    return False


def _rule(app: Flask) -> Rule | None:
    """The rule that matches the path of the request, also one that does not take its method."""
    error = request.routing_exception
    if not isinstance(error, MethodNotAllowed) or not error.valid_methods:
        return request.url_rule
    adapter = app.create_url_adapter(request)
    if adapter is None:
        return None
    try:
        return adapter.match(method=min(error.valid_methods), return_rule=True)[0]
    except HTTPException:  # the rule redirects
        return None


def _watch_exceptions(
    handle: Callable[[Exception], Any], answers: tuple[type[Exception], ...] = ()
) -> Callable[[Exception], Any]:
    """Watch the exceptions that Flask gives to the handler, but for those that are `answers`."""

    def handling(error: Exception) -> Any:
        tracker = _tracker()
        if tracker is not None and not isinstance(error, answers):
            tracker.raised(error)
        return handle(error)

    return handling


def _note_answers(handle: Callable[[Exception], Response]) -> Callable[[Exception], Response]:
    """Let the tracker have the response that Flask makes of an exception, or end calls of views where it makes none."""

    def handling(error: Exception) -> Response:
        try:
            response = handle(error)
        except BaseException:  # in tests and in debug mode
            end_unanswered()
            raise
        tracker = _tracker()
        if tracker is not None:
            tracker.response = response
        return response

    return handling
