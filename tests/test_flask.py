"""The Flask extension, driven with Flask's test client and under a real Gunicorn."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, request, send_file, stream_with_context
from flask.views import MethodView
from opentelemetry import trace
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import pdc
import pdc.exposition
from pdc.options import OptionError, from_header, from_response_header
from pdc.testing import value_of
from pdc_flask import PrometheusMetrics, RequestRecord

Make = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Any) -> Make:
    """Make an application with the extension; keywords are options."""

    def make(**options: Any) -> Flask:
        app = Flask("shop")
        app.config.update({"PDC_SQLITE_PATH": str(tmp_path / "metrics.db"), "PDC_FLUSH_INTERVAL": 0})
        app.config.update({f"PDC_{name.upper()}": value for name, value in options.items()})
        PrometheusMetrics(app)
        app.logger.setLevel(logging.CRITICAL)
        return app

    return make


def scraped(app: Flask, name: str) -> dict[tuple[str, ...], float]:
    """The samples of that name at ``/metrics``: label values, sorted by label name, to value."""
    page = app.test_client().get("/metrics")
    assert page.status_code == 200
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted_by_method_route_and_status(make_app: Make) -> None:
    """Every request is counted under the template of its route, also in blueprints; the others are unmatched."""
    app = make_app()
    shop = Blueprint("shop", __name__, url_prefix="/shop")
    shop.add_url_rule("/<int:number>", "item", lambda number: f"{number}", methods=["GET", "POST"])
    app.register_blueprint(shop)
    client = app.test_client()
    for path in ("/shop/1", "/shop/2", "/nowhere", "/elsewhere"):
        client.get(path)
    client.post("/shop/3")
    client.head("/shop/3")
    client.options("/shop/3")
    client.open("/shop/3", method="BREW")
    client.delete("/shop/3")
    assert scraped(app, "http_requests_total") == {
        ("GET", "/shop/<int:number>", "200"): 2.0,
        ("POST", "/shop/<int:number>", "200"): 1.0,
        ("HEAD", "/shop/<int:number>", "200"): 1.0,
        ("OPTIONS", "/shop/<int:number>", "200"): 1.0,
        ("GET", "<unmatched>", "404"): 2.0,
        ("<other>", "/shop/<int:number>", "405"): 1.0,
        ("DELETE", "/shop/<int:number>", "405"): 1.0,
    }
    assert set(scraped(app, "http_requests_in_progress").values()) == {0.0}


def test_the_duration_lasts_to_the_end_of_a_stream(make_app: Make) -> None:
    """A streamed body is in progress until its end, then in the histogram with the count of its requests."""
    app = make_app()
    seen: list[float] = []

    @app.get("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[str]:
            yield "a"
            seen.append(sum(sample.value for sample in pdc_samples("http_requests_in_progress")))
            yield "b"

        return Response(stream_with_context(chunks()))

    assert app.test_client().get("/stream").text == "ab"
    assert seen == [1.0]
    assert scraped(app, "http_request_duration_seconds_count") == {("GET", "/stream", "200"): 1.0}


def fail() -> str:
    """A view that raises."""
    raise KeyError("nothing")


def pdc_samples(name: str) -> list[Any]:
    """The samples of that name in the storage."""
    return [sample for metric in pdc.exposition.collect() for sample in metric.samples if sample.name == name]


@pytest.mark.parametrize("handled", [False, True])
def test_exceptions_are_counted_whether_handled_or_not(make_app: Make, handled: bool) -> None:
    """An exception that leaves a view counts once, with or without an error handler; the status is the one that was sent."""
    app = make_app()
    app.add_url_rule("/broken", view_func=fail)
    if handled:
        app.register_error_handler(KeyError, lambda _: ("sorry", 418))
    status = str(app.test_client().get("/broken").status_code)
    assert status == ("418" if handled else "500")
    assert scraped(app, "http_exceptions_total") == {("KeyError", "GET", "/broken"): 1.0}
    assert scraped(app, "http_requests_total") == {("GET", "/broken", status): 1.0}


@pytest.mark.parametrize(
    ("handled", "counted"), [(None, {("GET", "500"): 1.0}), (500, {("GET", "500"): 1.0}), (KeyError, {}), (Exception, {})]
)
def test_exceptions_that_a_handler_answers_do_not_count_in_the_exporter(
    make_app: Make, handled: Any, counted: dict[tuple[str, ...], float]
) -> None:
    """Under the names of prometheus-flask-exporter, exceptions count as there: those that became an error of the server."""
    app = make_app(names="prometheus-flask-exporter")
    app.add_url_rule("/broken", view_func=fail)
    if handled is not None:
        app.register_error_handler(handled, lambda _: ("sorry", 418))
    app.test_client().get("/broken")
    assert scraped(app, "flask_http_request_exceptions_total") == counted


def test_exceptions_that_propagate_are_counted_once(make_app: Make) -> None:
    """In testing mode, where exceptions reach the server, each counts once and as status 500."""
    app = make_app()
    app.testing = True
    app.add_url_rule("/broken", view_func=fail)
    with pytest.raises(KeyError):
        app.test_client().get("/broken")
    assert scraped(app, "http_exceptions_total") == {("KeyError", "GET", "/broken"): 1.0}
    assert scraped(app, "http_requests_total") == {("GET", "/broken", "500"): 1.0}


def test_an_abort_is_no_exception(make_app: Make) -> None:
    """`abort` in a view or in an earlier hook is a status, counted under the route."""
    app = make_app()
    app.before_request(lambda: abort(401))
    app.add_url_rule("/", view_func=lambda: "never")
    app.test_client().get("/")
    app.before_request_funcs.clear()
    assert scraped(app, "http_requests_total") == {("GET", "/", "401"): 1.0}
    assert scraped(app, "http_exceptions_total") == {}


def test_async_views_and_files_are_counted(make_app: Make) -> None:
    """Async views and files that Flask sends are requests like any other."""
    app = make_app()

    @app.get("/async")
    async def view() -> str:
        await asyncio.sleep(0)
        return "done"

    app.add_url_rule("/file", view_func=lambda: send_file(__file__))
    client = app.test_client()
    assert client.get("/async").text == "done"
    with client.get("/file") as page:
        assert b"Async views" in page.data
    assert scraped(app, "http_requests_total") == {("GET", "/async", "200"): 1.0, ("GET", "/file", "200"): 1.0}


def test_metrics_are_not_counted_and_can_be_moved(make_app: Make) -> None:
    """The metrics page is at the path of the option and never counts itself, whatever the method."""
    app = make_app(metrics_path="/internal/metrics")
    client = app.test_client()
    for method in ("GET", "HEAD", "OPTIONS"):
        assert client.open("/internal/metrics", method=method).status_code == 200
    assert b"http_requests_total{" not in client.get("/internal/metrics").data
    assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize(("path", "messages"), [("/metrics", 1), ("/metrics/", 0), ("/own", 0)])
def test_a_view_at_the_path_of_the_page_is_logged(
    make_app: Make, caplog: pytest.LogCaptureFixture, path: str, messages: int
) -> None:
    """A view that the application has at the path of the metrics page is logged, once, also if it came later."""
    app = make_app()
    app.add_url_rule(path, "old_page", lambda: "old")
    app.add_url_rule("/metrics", "push", lambda: "pushed", methods=["POST"])
    for _ in range(2):
        app.test_client().get("/metrics")
    expected = "the view old_page and the metrics page of pdc are both at /metrics: remove the view, or set PDC_METRICS_PATH"
    assert caplog.text.count(expected) == caplog.text.count("the metrics page of pdc") == messages


@pytest.mark.parametrize("matching", ["host", "subdomain"])
@pytest.mark.filterwarnings("ignore:Current server name")
def test_the_page_is_on_every_host(tmp_path: Any, matching: str) -> None:
    """Where an application routes by host or subdomain, each of them has the page, which does not count itself."""
    app = Flask("shop", host_matching=matching == "host", static_folder=None, subdomain_matching=matching == "subdomain")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_FLUSH_INTERVAL=0)
    if matching == "subdomain":
        app.config["SERVER_NAME"] = "shop.example"
    PrometheusMetrics(app)
    place: dict[str, Any] = {"host": "eu.shop.example"} if matching == "host" else {"subdomain": "eu"}
    app.add_url_rule("/", "index", lambda: "fine", **place)
    for host in ("shop.example", "eu.shop.example", "10.0.0.7:8000"):
        web = Client(app)
        status = 200 if host.startswith("eu.") else 404
        assert web.get("/", base_url=f"http://{host}/").status_code == status
        assert web.get("/metrics", base_url=f"http://{host}/").status_code == 200
    assert value_of("http_requests_total", route="/", status="200") == 1
    assert value_of("http_requests_total", route="<unmatched>", status="404") == 2
    assert value_of("http_requests_total") == 3


def test_the_page_negotiates_and_asks_for_the_token(make_app: Make) -> None:
    """The page answers in OpenMetrics when asked to, and with 401 without the token."""
    client = make_app(metrics_token="secret").test_client()
    assert client.get("/metrics").status_code == 401
    page = client.get("/metrics", headers={"Authorization": "Bearer secret", "Accept": "application/openmetrics-text"})
    assert page.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.text.endswith("# EOF\n")


def test_a_storage_that_cannot_be_read_is_a_503(make_app: Make) -> None:
    """Without its storage the application answers requests, and the metrics page gives the reason."""
    app = make_app(sqlite_path="/nonexistent/metrics.db")
    app.add_url_rule("/", view_func=lambda: "fine")
    client = app.test_client()
    assert client.get("/").text == "fine"
    page = client.get("/metrics")
    assert page.status_code == 503
    assert "/nonexistent/metrics.db" in page.text


def test_options_come_from_the_config_and_wrong_ones_are_refused(make_app: Make) -> None:
    """Options are keys of app.config; an unknown one is an error at start-up."""
    app = make_app(namespace="shop", group_status=True, exclude_paths=["/health"])
    app.add_url_rule("/", view_func=lambda: "fine")
    for path in ("/", "/health"):
        app.test_client().get(path)
    assert scraped(app, "shop_http_requests_total") == {("GET", "/", "2xx"): 1.0}
    with pytest.raises(OptionError, match="unknown option PDC_BUCKET"):
        make_app(bucket=[1])


def test_the_extension_can_be_switched_off(make_app: Make) -> None:
    """With PDC_ENABLED false nothing is mounted and nothing is counted."""
    client = make_app(enabled=False).test_client()
    assert client.get("/metrics").status_code == 404


def test_an_application_of_another_framework_is_refused() -> None:
    """The error names the object, and the extension of other frameworks."""
    application: Any = object()
    with pytest.raises(TypeError, match=r"expected an application of Flask, got <object .*>: pdc_starlette is for"):
        PrometheusMetrics(application)


def test_an_application_factory_may_be_called_twice(make_app: Make) -> None:
    """Two applications of one process count into the same metrics; the same application twice is an error."""
    first, second = make_app(), make_app()
    for app in (first, second):
        app.add_url_rule("/", view_func=lambda: "fine")
        app.test_client().get("/")
    assert scraped(first, "http_requests_total") == scraped(second, "http_requests_total") == {("GET", "/", "200"): 2.0}
    with pytest.raises(RuntimeError, match="already"):
        PrometheusMetrics().init_app(first)


def test_views_can_be_measured_by_decorators(make_app: Make) -> None:
    """Counter, gauge, histogram and summary measure a view, with labels from texts, the request and the response."""
    app = make_app()
    metrics = PrometheusMetrics()
    during: list[float] = []

    @app.get("/<name>")
    @metrics.counter(
        "visits", "Visits.", {"name": lambda: (request.view_args or {})["name"], "status": lambda r: r.status_code}
    )
    @metrics.gauge("visiting", "Visitors.", {"kind": "view"})
    @metrics.histogram("visit_seconds", "Time.", buckets=[1, 2])
    @metrics.summary("visit_summary", "Time.", {"broken": fail})
    def visit(name: str) -> Any:
        during.append(pdc_samples("visiting")[0].value)
        if name == "nobody":
            abort(404)
        if name == "nothing":
            fail()
        return name, 201

    for name in ("tea", "nobody", "nothing"):
        app.test_client().get(f"/{name}")
    assert scraped(app, "visits_total") == {("tea", "201"): 1.0, ("nobody", "404"): 1.0, ("nothing", "500"): 1.0}
    assert during == [1.0, 1.0, 1.0]
    assert scraped(app, "visiting") == {("view",): 0.0}
    assert scraped(app, "visit_seconds_count") == {(): 3.0}
    assert scraped(app, "visit_summary_count") == {("",): 3.0}


def test_an_async_view_can_be_measured(make_app: Make) -> None:
    """The decorators keep an async view async and count when it ends."""
    app = make_app()

    @app.get("/")
    @PrometheusMetrics().counter("answers", "Answers.")
    async def view() -> str:
        await asyncio.sleep(0)
        return "done"

    assert app.test_client().get("/").text == "done"
    assert scraped(app, "answers_total") == {(): 1.0}


@pytest.mark.parametrize("enabled", [False, True])
def test_decorators_break_no_view(make_app: Make, enabled: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A view answers where PDC_ENABLED is false, and after `shutdown`, when the log has the reason why nothing counts."""
    app, metrics = make_app(enabled=False), PrometheusMetrics()
    app.config["PDC_ENABLED"] = enabled
    metrics.init_app(app)
    labels: Any = {"status": lambda response: response.status_code}
    decorators = (metrics.counter("calls", "Calls.", labels), metrics.gauge("now", "Now."), metrics.summary("time", "Time."))

    async def waiting() -> str:
        return "done"

    for number, decorator in enumerate(decorators):
        app.add_url_rule(f"/{number}", f"view {number}", decorator(lambda: "done"))
    app.add_url_rule("/waiting", "waiting", decorators[0](waiting))
    pdc.shutdown()
    assert [app.test_client().get(path).text for path in ("/0", "/1", "/2", "/waiting")] == ["done"] * 4
    assert ("a call of a view could not be measured" in caplog.text) is enabled


def test_a_decorator_refuses_labels_that_wait(make_app: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A label that is a coroutine function is an error at once; one that returns an awaitable is empty, and logged once."""
    app, metrics = make_app(), PrometheusMetrics()

    async def name(*_: Any) -> str:
        return "tea"

    for refused in (name, functools.partial(name, "tea")):
        with pytest.raises(ValueError, match=r"got them for \['name'\]: views do not await labels"):
            metrics.counter("refused", "Refused.", {"name": refused})
    labels: Any = {"name": lambda: name("tea"), "answer": lambda response: name(response, "tea"), "kind": "view"}
    app.add_url_rule("/", view_func=metrics.counter("answers", "Answers.", labels)(lambda: "done"))
    assert [app.test_client().get("/").text for _ in range(3)] == ["done"] * 3
    assert scraped(app, "answers_total") == {("", "view", ""): 3.0}
    logged = [record.getMessage() for record in caplog.records if "left empty" in record.getMessage()]
    assert [re.findall(r"the label (\w+) of counter:answers is left empty: expected a text, got", line) for line in logged] == [
        ["name"],
        ["answer"],
    ]


def test_a_decorator_returns_the_object_of_the_view(make_app: Make) -> None:
    """Decorators above see the object that the view returns; a label of the response waits for that of the application."""
    app = make_app()
    metrics = PrometheusMetrics()
    returned: list[Any] = []

    def created(view: Callable[..., Any]) -> Callable[..., Any]:
        def marshalled() -> Any:
            returned.append(view())
            return {"names": sorted(returned[-1])}, 201

        return marshalled

    def visit() -> Any:
        return helper()

    labels: dict[str, Any] = {"status": lambda r: r.status_code}

    def pair() -> Any:
        return [1, "a"]

    def names() -> Any:
        return {"tea", "milk"}

    helper = metrics.counter("helped", "Calls.", labels)(names)
    measured = metrics.histogram("visit_seconds", "Time.", labels)(metrics.counter("visits", "Visits.", labels)(visit))
    app.add_url_rule("/", "visit", created(measured))
    app.add_url_rule("/broken", "broken", created(metrics.counter("broken", "Calls.", labels)(pair)))
    assert app.test_client().get("/").json == {"names": ["milk", "tea"]}
    assert app.test_client().get("/broken").status_code == 500
    assert returned == [{"tea", "milk"}, [1, "a"]]
    for name in ("visits_total", "visit_seconds_count", "helped_total"):
        assert scraped(app, name) == {("201",): 1.0}
    assert scraped(app, "broken_total") == {("500",): 1.0}


def test_a_metric_with_texts_as_labels_begins_at_zero(make_app: Make) -> None:
    """A metric of a view shows 0 before the first call where its labels are known; labels that are no dict are an error."""
    metrics, texts = PrometheusMetrics(), {"zone": "eu"}
    unknown: Any = {"zone": "eu", "path": lambda: request.path}
    for kind in ("counter", "gauge", "histogram", "summary"):
        getattr(metrics, kind)(f"my_{kind}", "Calls.", texts)
        getattr(metrics, kind)(f"other_{kind}", "Calls.", unknown)
        with pytest.raises(TypeError, match=r"expected a dict of label names and texts or callables, got \['zone'\]"):
            getattr(metrics, kind)("wrong", "Calls.", ["zone"])
    app = make_app()
    names = ("my_counter_total", "my_gauge", "my_histogram_count", "my_summary_count")
    assert [scraped(app, name) for name in names] == [{("eu",): 0.0}] * 4
    assert not any(scraped(app, name.replace("my", "other")) for name in names)


def test_a_function_can_be_measured_outside_of_requests(make_app: Make) -> None:
    """The decorators measure any function; outside of a request its label of the response is empty."""
    app = make_app()
    metrics = PrometheusMetrics()
    labels: dict[str, Any] = {"status": lambda r: r.status_code, "zone": "eu"}
    assert metrics.counter("helped", "Calls.", labels)(lambda: 5)() == 5
    assert scraped(app, "helped_total") == {("", "eu"): 1.0}


@pytest.mark.parametrize("testing", [False, True])
def test_the_response_to_an_exception_gives_labels(make_app: Make, testing: bool) -> None:
    """A label of the response has that of the application's handler; without one, or where the view is called, status 500."""
    app = make_app()
    app.testing = testing
    app.register_error_handler(KeyError, lambda _: ("no such tea", 404))
    app.register_error_handler(409, lambda error: (str(error.code), 410))
    count = PrometheusMetrics().counter("calls", "Calls.", {"status": lambda r: r.status_code, "path": lambda: request.path})

    @count
    def helper() -> None:
        raise KeyError

    def helped() -> str:
        with suppress(KeyError):
            helper()
        return "fine"

    views: dict[str, Any] = {
        "/key": helper,
        "/abort": count(lambda: abort(409)),
        "/broken": count(lambda: 1 / 0),
        "/helped": helped,
    }
    for path, view in views.items():
        app.add_url_rule(path, path, view)
    for path in views:
        with suppress(ZeroDivisionError):
            app.test_client().get(path)
    assert scraped(app, "calls_total") == {
        ("/key", "404"): 1.0,
        ("/abort", "410"): 1.0,
        ("/broken", "500"): 1.0,
        ("/helped", "200"): 1.0,
    }
    with Flask("other").test_request_context("/other"), suppress(KeyError):
        helper()
    assert scraped(app, "calls_total")["/other", "500"] == 1.0


def test_the_response_of_an_abort_gives_labels(make_app: Make) -> None:
    """An abort with a response of its own counts under the status of that."""
    app = make_app()
    count = PrometheusMetrics().counter("visits", "Visits.", {"status": lambda r: r.status_code})
    app.add_url_rule("/", view_func=count(lambda: abort(Response("no", 409))))
    assert app.test_client().get("/").status_code == 409
    assert scraped(app, "visits_total") == {("409",): 1.0}


@pytest.mark.parametrize("place", ["application", "blueprint", "factory"])
def test_a_decorator_above_the_route_is_reported(make_app: Make, place: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log names a view that a decorator above its route measures: at the start, or with the first request."""
    app, metrics = make_app(enabled=place == "blueprint"), PrometheusMetrics()
    shop = Blueprint("shop", __name__)
    if place == "application":
        app.config["PDC_ENABLED"] = True
        metrics.init_app(app)

    @metrics.counter("visits", "Visits.")
    @(shop if place == "blueprint" else app).get("/")
    @metrics.counter("answers", "Answers.")
    def visit() -> str:
        return "fine"

    @app.get("/other")
    @metrics.counter("others", "Others.")
    def other() -> str:
        return "fine"

    if place == "factory":
        app.config["PDC_ENABLED"] = True
        metrics.init_app(app)
    app.register_blueprint(shop)
    expected = "visit is not measured: write the decorator of its metric below the one of its route, not above"
    assert caplog.text.count(expected) == (0 if place == "blueprint" else 1)
    for _ in range(2):
        assert app.test_client().get("/").text == "fine"
    assert caplog.text.count(expected) == caplog.text.count("is not measured") == 1
    assert scraped(app, "answers_total") == {(): 2.0}


def test_a_gauge_cannot_have_a_label_of_the_response() -> None:
    """A gauge counts before the response, so a label that needs the response is refused at the decorator."""
    with pytest.raises(ValueError, match=r"labels \['status'\] must be callables of no argument"):
        PrometheusMetrics().gauge("visiting", "Visitors.", {"status": lambda response: response.status_code})


def test_a_label_of_a_view_takes_nothing_or_the_response() -> None:
    """A callable of other arguments is refused at the decorator, which names the label; one with defaults is not."""
    metrics = PrometheusMetrics()
    labels: Any = {"a": lambda a, b: a + b, "b": lambda *, a: a, "c": lambda a, b=1: a + b, "d": time.time}
    for decorator in (metrics.counter, metrics.histogram, metrics.summary):
        with pytest.raises(
            ValueError, match=r"no argument or of the response as labels of \w+:\w+, got others for \['a', 'b'\]"
        ):
            decorator(f"shown_{decorator.__name__}", "Shown.", labels)


@pytest.mark.parametrize(
    ("keyword", "remedy"),
    [
        ("names", "set app.config['PDC_NAMES'], or the environment variable"),
        ("path", "set app.config['PDC_METRICS_PATH'], or the environment variable"),
        ("defaults_prefix", "set app.config['PDC_NAMESPACE'], or the environment variable"),
        ("default_labels", "set app.config['PDC_LABELS'], or the environment variable"),
        ("static_labels", "set app.config['PDC_LABELS'], or the environment variable"),
        ("excluded_paths", "set app.config['PDC_EXCLUDE_PATHS'], or the environment variable"),
        ("group_by", "options are PDC_... in app.config; docs/moving.md has those"),
    ],
)
def test_a_keyword_is_refused_with_its_option(keyword: str, remedy: str) -> None:
    """Options are in `app.config`, so a keyword is a TypeError that names the option, also for one of the exporter."""
    keywords: Any = {keyword: "given"}
    with pytest.raises(TypeError, match=re.escape(f"PrometheusMetrics got the keyword {keyword!r}: {remedy}")):
        PrometheusMetrics(Flask("shop"), **keywords)


def test_exclude_has_no_parentheses() -> None:
    """`@metrics.exclude()` is an error that shows how to write it."""
    with pytest.raises(TypeError, match="expected a view, got none: write @exclude, without parentheses"):
        PrometheusMetrics().exclude()


def test_a_view_can_be_excluded(make_app: Make) -> None:
    """The requests of an excluded view are not counted."""
    app = make_app()
    app.add_url_rule("/health", view_func=PrometheusMetrics().exclude(lambda: "fine"))
    assert app.test_client().get("/health").text == "fine"
    assert scraped(app, "http_requests_total") == {}
    assert scraped(app, "http_requests_in_progress") == {("GET",): 0.0}


@pytest.mark.parametrize("whole", [True, False])
def test_a_class_of_views_can_be_excluded(make_app: Make, whole: bool) -> None:
    """`exclude` works on a class of views, and on one of its methods; HEAD goes with GET."""
    app, exclude = make_app(), PrometheusMetrics.exclude

    class Health(MethodView):
        def get(self) -> str:
            return "fine"

        def post(self) -> str:
            return "fine"

    if whole:
        exclude(Health)
    else:
        exclude(Health.get)
    app.add_url_rule("/health", view_func=Health.as_view("health"))
    for method in ("GET", "HEAD", "POST"):
        assert app.test_client().open("/health", method=method).status_code == 200
    assert scraped(app, "http_requests_total") == ({} if whole else {("POST", "/health", "200"): 1.0})
    assert set(scraped(app, "http_requests_in_progress").values()) == {0.0}


def test_an_info_metric_may_be_declared_before_the_application(make_app: Make) -> None:
    """`info` shows its labels, before or after `init_app`."""
    metrics = PrometheusMetrics()
    first = metrics.info("shop_build", "The build.", version="1.2")
    app = make_app(enabled=False)
    app.config["PDC_ENABLED"] = True
    metrics.init_app(app)
    second = metrics.info("shop_place", "The place.", region="eu")
    assert scraped(app, "shop_build_info") == {("1.2",): 1.0}
    assert scraped(app, "shop_place_info") == {("eu",): 1.0}
    assert [str(info) for info in (first, second)] == ["info:shop_build", "info:shop_place"]


@pytest.mark.parametrize("name", ["app", "app_info"])
def test_an_info_metric_has_its_suffix_once(make_app: Make, name: str) -> None:
    """The sample is `app_info` for a name with and without the suffix."""
    app = make_app()
    PrometheusMetrics().info(name, "The application.", version="1.2")
    assert scraped(app, "app_info") == {("1.2",): 1.0}
    assert "app_info_info" not in app.test_client().get("/metrics").text


def test_labels_of_the_application(make_app: Make) -> None:
    """Labels are static, callables of the request, or headers with allowed values; without a value or on failure, empty."""
    labels = {
        "env": "test",
        "agent": from_header("X-Agent", allowed={"app", "web"}, default="other"),
        "none": lambda _: None,
        "broken": lambda _: fail(),
    }
    app = make_app(labels=labels)
    app.add_url_rule("/", view_func=lambda: "fine")
    for agent in ("app", "spider"):
        app.test_client().get("/", headers={"X-Agent": agent})
    assert scraped(app, "http_requests_total") == {
        (agent, "", "test", "GET", "", "/", "200"): 1.0 for agent in ("app", "other")
    }


def test_sizes_and_exemplars(make_app: Make) -> None:
    """With the options on, sizes of bodies are observed, and the counter and the histogram have exemplars."""
    app = make_app(sizes=True, exemplars=lambda: {"trace_id": "abc"})
    app.add_url_rule("/", view_func=lambda: "seven b", methods=["POST"])
    assert app.test_client().post("/", data=b"four").text == "seven b"
    assert scraped(app, "http_request_size_bytes_sum") == {("POST", "/", "200"): 4.0}
    assert scraped(app, "http_response_size_bytes_sum") == {("POST", "/", "200"): 7.0}
    page = app.test_client().get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    assert len(re.findall(r'^http_(?:requests_total|request_duration_seconds_bucket){.* # {trace_id="abc"}', page, re.M)) == 2


@pytest.mark.parametrize("exemplar", [{"trace_id": "x" * 200}, {"trace_id": None, "__id": 1}, 5])
def test_an_exemplar_that_is_wrong_is_left_out(make_app: Make, exemplar: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A request counts without an exemplar that prometheus_client would refuse; the fault is logged once."""
    app = make_app(exemplars=lambda: exemplar)
    app.add_url_rule("/", view_func=lambda: "fine")
    for _ in range(2):
        app.test_client().get("/")
    assert scraped(app, "http_requests_total") == {("GET", "/", "200"): 2.0}
    assert caplog.text.count("the exemplar failed and is left out") == 1


def test_answers_of_other_wsgi_applications_have_status_and_headers(make_app: Make) -> None:
    """Where a WSGI middleware answers before Flask, labels and hooks have its status and headers, and no request."""
    app = Flask("shop")
    app.config.update(make_app().config, PDC_LABELS={"brand": from_response_header("x-brand"), "path": lambda _: "x"})
    app.wsgi_app = Response("busy", 503, {"X-Brand": "tea"})  # type: ignore[method-assign]  # Flask documents it
    metrics = PrometheusMetrics()
    records: list[RequestRecord] = []

    @metrics.add
    def note(record: RequestRecord) -> None:
        records.append(record)

    metrics.init_app(app)
    assert app.test_client().get("/").status_code == 503
    ((request, response, *rest),) = records
    assert (request, response.status_code, response.headers["x-BRAND"], rest[1:3]) == (None, 503, "tea", ["<unmatched>", 503])
    assert note.__name__ == "note"
    page = pdc.generate_latest().decode()
    assert 'http_requests_total{brand="",method="GET",path="",route="<unmatched>",status="503"} 1.0' in page


def test_series_are_bounded(make_app: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Series over PDC_MAX_SERIES go to one series, logged once a metric."""
    app = make_app(max_series=2, labels={"n": lambda r: r.args["n"]})
    app.add_url_rule("/", view_func=lambda: "fine")
    for number in range(10):
        app.test_client().get(f"/?n={number}")
    counted = scraped(app, "http_requests_total")
    assert sorted(counted.values()) == [1.0, 1.0, 8.0]
    assert counted[("<overflow>",) * 4] == 8.0
    assert caplog.text.count("http_requests has as many series as it may have (max_series, PDC_MAX_SERIES)") == 1


def test_opentelemetry_gives_exemplars(make_app: Make) -> None:
    """With PDC_EXEMPLARS true the trace of the current sampled span is the exemplar."""
    trace_id = 0xABC
    span = trace.NonRecordingSpan(trace.SpanContext(trace_id, 1, False, trace.TraceFlags(trace.TraceFlags.SAMPLED)))
    app = make_app(exemplars=True)

    @app.get("/")
    def view() -> str:
        return "fine"

    with trace.use_span(span):
        app.test_client().get("/")
    page = app.test_client().get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    assert f'# {{trace_id="{trace_id:032x}"}}' in page


def test_two_applications_of_a_process_do_not_mix(make_app: Make) -> None:
    """Below one dispatcher each application counts under its own prefix, with its own labels and excludes."""
    first, second = make_app(labels={"zone": "eu"}), make_app(exclude_paths=["/health"])
    for app in (first, second):
        app.add_url_rule("/health", "health", lambda: "fine")
    client = Client(DispatcherMiddleware(NotFound(), {"/first": first.wsgi_app, "/second": second.wsgi_app}))
    for path in ("/first/health", "/first/health", "/second/health", "/second/nowhere"):
        client.get(path)
    expected = {("GET", "/first/health", "200", "eu"): 2.0, ("GET", "<unmatched>", "404"): 1.0}
    assert scraped(first, "http_requests_total") == expected
    assert scraped(second, "http_requests_total") == expected
