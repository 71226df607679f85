"""The HTTP metrics of one application: the choice of requests to track, and the answer to scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.registry import CollectorRegistry

from .. import dashboard
from ..exposition import OtherCollectors, Port, Response, Scrape, respond, scrape_from_wsgi
from ..options import Options
from .access import Access, warn_of_port
from .families import RequestSeries
from .hooks import Hooks, ObservedTracker
from .labels import RequestLabels
from .names import NAMES, implied
from .tracker import Connection, FindRoute, Tracker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

_EXCLUDED = "pdc_excluded"
"""The attribute of a view whose requests are not counted."""


def exclude(view: ViewT = None) -> ViewT:  # type: ignore[assignment]  # without a view, the error has the remedy
    """Do not count the requests of this view, class of views, or method of one: a decorator, below the one of the route."""
    if view is None:
        raise TypeError("expected a view, got none: write @exclude, without parentheses")
    setattr(view, _EXCLUDED, True)
    return view


def is_excluded(view: object) -> bool:
    """Return True if `exclude` decorates the view."""
    return getattr(view, _EXCLUDED, False)


def excludes_method(owner: object, method: str, names: Mapping[str, str] | None = None) -> bool:
    """Return True if `exclude` decorates the class of a view, or its function for this HTTP method.

    `names` has the names of functions that are not those of their methods, in lower case.
    """
    if is_excluded(owner):
        return True
    names, verb = names or {}, method.lower()
    function = getattr(owner, names.get(verb, verb), None)
    if function is None and verb == "head":
        function = getattr(owner, names.get("get", "get"), None)
    return is_excluded(function)


class HTTPMetrics:
    """Counts and times the requests of an application, and answers its scrapes.

    After the families of the storage come the collectors of the framework's registry, and of that of the options.
    `make_headers` makes a mapping, in which case does not matter, of the headers of an answer for which the framework has no
    object. Raises OptionError.
    """

    def __init__(
        self,
        options: Options,
        registry: CollectorRegistry | None = None,
        *,
        hooks: Hooks | None = None,
        make_headers: Callable[[Any], Any] = dict,
    ) -> None:
        self.options = options = implied(options)
        self._access = Access(options)
        self._others = OtherCollectors(*[each for each in (registry, options.found("registry")) if each is not None])
        self._decorator = options.found("metrics_decorator")
        self._decorated: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._hooks = Hooks() if hooks is None else hooks
        self.labels = RequestLabels(options, make_headers)
        options.setup()
        self.series = RequestSeries(options)
        exact = [pattern for pattern in options.exclude_paths if isinstance(pattern, str)]
        self.dashboard_path = dashboard.path_of(options.metrics_path) if options.dashboard else None
        """The path of the page of PDC_DASHBOARD; None where there is none."""
        self._excluded = frozenset([*exact, options.metrics_path, self.dashboard_path])
        self._patterns = [pattern for pattern in options.exclude_paths if not isinstance(pattern, str)]
        self._counts_unmatched = options.count_unmatched
        self._has_rules = bool(self._patterns or options.exclude_methods)
        """True if there is more to do for a request than to look its path up."""
        self._port: Port | None = None
        self.has_views = NAMES[options.names].has_views
        """True if routes are to be the names of views, where the framework has such names."""
        self._is_observed = options.first_byte or not options.count_unmatched

    def track(self, method: str, path: str, find_route: FindRoute | None = None, source: Any = None) -> Tracker | None:
        """Begin to track a request; None for an excluded one. `Tracker` explains `find_route` and `source`."""
        if (self._has_rules and not self.is_counted(method, path)) or path in self._excluded:
            return None
        is_observed = self._is_observed or self._hooks.functions
        tracker = ObservedTracker(self._hooks, self._counts_unmatched) if is_observed else Tracker()
        tracker.begin(self.series, self.labels, method, find_route, source)
        return tracker

    def is_counted(self, method: str, path: str) -> bool:
        """Return True if requests of this method and path are counted, here or by an application around this one."""
        if self._port is not None:
            self._port.open()
        return method not in self.options.exclude_methods and not self._excludes(path)

    def connect(self, path: str, find_route: FindRoute, source: Any) -> Connection | None:
        """Begin to track a WebSocket connection that a client asks for; None for an excluded path."""
        if self._excludes(path):
            return None
        return Connection(self.series, self.labels, find_route, source, self._counts_unmatched)

    def _excludes(self, path: str) -> bool:
        return path in self._excluded or any(pattern.fullmatch(path) for pattern in self._patterns)

    def begin_serving(self) -> None:
        """Declare the metrics of requests; serve scrapes on PDC_METRICS_PORT, and show this process, if options ask for it.

        Processes that serve requests call this when they begin to.
        """
        _ = self.series.families
        self.options.report_process()
        if self._decorator is not None:
            warn_of_port(self.options, "PDC_METRICS_DECORATOR")
        if self.options.metrics_port is not None:
            self._port, self._has_rules = Port.of(self.options.metrics_port, self._serve), True
            self._port.open()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_for_people = self.options.dashboard and environ.get("PATH_INFO", "").endswith(dashboard.PATH)
        answer = self.answer_browser if is_for_people else self.answer
        return respond(answer(scrape_from_wsgi(environ)), start_response)

    def answer(self, scrape: Scrape) -> Response:
        """Answer a scrape; 401 or 403 where the client may not read metrics."""
        refusal = self._access.refusal(scrape)
        if refusal is not None:
            return scrape.sent(refusal)
        self.series.inform()
        return scrape.answer(self._others)

    def answer_browser(self, scrape: Scrape) -> Response:
        """Answer a request for the page of PDC_DASHBOARD, behind the same guards."""
        refusal = self._access.refusal(scrape, by_browser=True)
        if refusal is not None:
            return scrape.sent(refusal)
        self.series.inform()
        return dashboard.answer(scrape)

    def decorated(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """The view of the page with the decorator of the options, which decorates each view once."""
        if self._decorator is None:
            return view
        if view not in self._decorated:
            self._decorated[view] = self._decorator(view)
        return self._decorated[view]
