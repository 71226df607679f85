"""PDC_NAMES in every framework: the same requests under the names and labels of other exporters."""

# ruff: noqa: E501 - a sample is one line, as on the page

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import http_applications
import pytest
import test_http_contract
from conftest import ROOT
from http_applications import FRAMEWORKS, ITEMS, NOTICING, Application, Said, over_asgi
from prometheus_client.parser import text_string_to_metric_families

import pdc
from pdc.http import HTTPMetrics
from pdc.http.names import NAMES
from pdc.options import NAMES as ALLOWED
from pdc.options import OptionError, Options

make = test_http_contract.make
Make = Callable[..., Application]

EXPECTED = {
    "otel": """
http_exceptions_total{exception="KeyError",method="GET",route="/broken"} 1
http_server_active_requests{http_request_method="GET"} 0
http_server_active_requests{http_request_method="POST"} 0
http_server_active_requests{http_request_method="_OTHER"} 0
http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="200",http_route="/items/{name}",url_scheme="http"} 2
http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="404",http_route="",url_scheme="http"} 1
http_server_request_duration_seconds_count{error_type="",http_request_method="POST",http_response_status_code="201",http_route="/orders",url_scheme="http"} 1
http_server_request_duration_seconds_count{error_type="",http_request_method="_OTHER",http_response_status_code="404",http_route="",url_scheme="http"} 1
http_server_request_duration_seconds_count{error_type="500",http_request_method="GET",http_response_status_code="500",http_route="/broken",url_scheme="http"} 1
""",
    "django-prometheus": """
django_http_exceptions_total_by_type_total{type="KeyError"} 1
django_http_exceptions_total_by_view_total{view="/broken"} 1
django_http_requests_before_middlewares_total{} 6
django_http_requests_body_total_bytes_count{} 6
django_http_requests_body_total_bytes_sum{} 3
django_http_requests_latency_including_middlewares_seconds_count{} 6
django_http_requests_latency_seconds_by_view_method_count{method="<invalid method>",view="<unnamed view>"} 1
django_http_requests_latency_seconds_by_view_method_count{method="GET",view="/broken"} 1
django_http_requests_latency_seconds_by_view_method_count{method="GET",view="/items/{name}"} 2
django_http_requests_latency_seconds_by_view_method_count{method="GET",view="<unnamed view>"} 1
django_http_requests_latency_seconds_by_view_method_count{method="POST",view="/orders"} 1
django_http_requests_total_by_method_total{method="<invalid method>"} 1
django_http_requests_total_by_method_total{method="GET"} 4
django_http_requests_total_by_method_total{method="POST"} 1
django_http_requests_total_by_transport_total{transport="http"} 6
django_http_requests_total_by_view_transport_method_total{method="<invalid method>",transport="http",view="<unnamed view>"} 1
django_http_requests_total_by_view_transport_method_total{method="GET",transport="http",view="/broken"} 1
django_http_requests_total_by_view_transport_method_total{method="GET",transport="http",view="/items/{name}"} 2
django_http_requests_total_by_view_transport_method_total{method="GET",transport="http",view="<unnamed view>"} 1
django_http_requests_total_by_view_transport_method_total{method="POST",transport="http",view="/orders"} 1
django_http_responses_before_middlewares_total{} 6
django_http_responses_body_total_bytes_count{} 6
django_http_responses_total_by_status_total{status="200"} 2
django_http_responses_total_by_status_total{status="201"} 1
django_http_responses_total_by_status_total{status="404"} 2
django_http_responses_total_by_status_total{status="500"} 1
django_http_responses_total_by_status_view_method_total{method="<invalid method>",status="404",view="<unnamed view>"} 1
django_http_responses_total_by_status_view_method_total{method="GET",status="200",view="/items/{name}"} 2
django_http_responses_total_by_status_view_method_total{method="GET",status="404",view="<unnamed view>"} 1
django_http_responses_total_by_status_view_method_total{method="GET",status="500",view="/broken"} 1
django_http_responses_total_by_status_view_method_total{method="POST",status="201",view="/orders"} 1
http_requests_in_progress{method="<invalid method>"} 0
http_requests_in_progress{method="GET"} 0
http_requests_in_progress{method="POST"} 0
""",
    "prometheus-flask-exporter": """
flask_exporter_info{version="pdc"} 1
flask_http_request_duration_seconds_count{method="<other>",path="<unmatched>",status="404"} 1
flask_http_request_duration_seconds_count{method="GET",path="/broken",status="500"} 1
flask_http_request_duration_seconds_count{method="GET",path="/items/{name}",status="200"} 2
flask_http_request_duration_seconds_count{method="GET",path="<unmatched>",status="404"} 1
flask_http_request_duration_seconds_count{method="POST",path="/orders",status="201"} 1
flask_http_request_exceptions_total{method="GET",status="500"} 1
flask_http_request_total{method="<other>",status="404"} 1
flask_http_request_total{method="GET",status="200"} 2
flask_http_request_total{method="GET",status="404"} 1
flask_http_request_total{method="GET",status="500"} 1
flask_http_request_total{method="POST",status="201"} 1
http_requests_in_progress{method="<other>"} 0
http_requests_in_progress{method="GET"} 0
http_requests_in_progress{method="POST"} 0
""",
    "starlette-exporter": """
http_exceptions_total{exception="KeyError",method="GET",route="/broken"} 1
starlette_request_duration_seconds_count{app_name="starlette",method="<other>",path="__unknown__",status_code="404"} 1
starlette_request_duration_seconds_count{app_name="starlette",method="GET",path="/broken",status_code="500"} 1
starlette_request_duration_seconds_count{app_name="starlette",method="GET",path="/items/{name}",status_code="200"} 2
starlette_request_duration_seconds_count{app_name="starlette",method="GET",path="__unknown__",status_code="404"} 1
starlette_request_duration_seconds_count{app_name="starlette",method="POST",path="/orders",status_code="201"} 1
starlette_requests_in_progress{app_name="starlette",method="<other>"} 0
starlette_requests_in_progress{app_name="starlette",method="GET"} 0
starlette_requests_in_progress{app_name="starlette",method="POST"} 0
starlette_requests_total{app_name="starlette",method="<other>",path="__unknown__",status_code="404"} 1
starlette_requests_total{app_name="starlette",method="GET",path="/broken",status_code="500"} 1
starlette_requests_total{app_name="starlette",method="GET",path="/items/{name}",status_code="200"} 2
starlette_requests_total{app_name="starlette",method="GET",path="__unknown__",status_code="404"} 1
starlette_requests_total{app_name="starlette",method="POST",path="/orders",status_code="201"} 1
""",
    "fastapi-instrumentator": """
http_exceptions_total{exception="KeyError",method="GET",route="/broken"} 1
http_request_duration_highr_seconds_count{} 6
http_request_duration_seconds_count{handler="/broken",method="GET"} 1
http_request_duration_seconds_count{handler="/items/{name}",method="GET"} 2
http_request_duration_seconds_count{handler="/orders",method="POST"} 1
http_request_duration_seconds_count{handler="none",method="<other>"} 1
http_request_duration_seconds_count{handler="none",method="GET"} 1
http_request_size_bytes_count{handler="/broken"} 1
http_request_size_bytes_count{handler="/items/{name}"} 2
http_request_size_bytes_count{handler="/orders"} 1
http_request_size_bytes_count{handler="none"} 2
http_request_size_bytes_sum{handler="/broken"} 0
http_request_size_bytes_sum{handler="/items/{name}"} 0
http_request_size_bytes_sum{handler="/orders"} 3
http_request_size_bytes_sum{handler="none"} 0
http_requests_inprogress{} 0
http_requests_total{handler="/broken",method="GET",status="5xx"} 1
http_requests_total{handler="/items/{name}",method="GET",status="2xx"} 2
http_requests_total{handler="/orders",method="POST",status="2xx"} 1
http_requests_total{handler="none",method="<other>",status="4xx"} 1
http_requests_total{handler="none",method="GET",status="4xx"} 1
http_response_size_bytes_count{handler="/broken"} 1
http_response_size_bytes_count{handler="/items/{name}"} 2
http_response_size_bytes_count{handler="/orders"} 1
http_response_size_bytes_count{handler="none"} 2
""",
    "fastapi-observability": """
fastapi_app_info{app_name="fastapi-app"} 1
fastapi_exceptions_total{app_name="fastapi-app",exception_type="KeyError",method="GET",path="/broken"} 1
fastapi_requests_duration_seconds_count{app_name="fastapi-app",method="<other>",path="<unmatched>"} 1
fastapi_requests_duration_seconds_count{app_name="fastapi-app",method="GET",path="/broken"} 1
fastapi_requests_duration_seconds_count{app_name="fastapi-app",method="GET",path="/items/{name}"} 2
fastapi_requests_duration_seconds_count{app_name="fastapi-app",method="GET",path="<unmatched>"} 1
fastapi_requests_duration_seconds_count{app_name="fastapi-app",method="POST",path="/orders"} 1
fastapi_requests_in_progress{app_name="fastapi-app",method="<other>"} 0
fastapi_requests_in_progress{app_name="fastapi-app",method="GET"} 0
fastapi_requests_in_progress{app_name="fastapi-app",method="POST"} 0
fastapi_requests_total{app_name="fastapi-app",method="<other>",path="<unmatched>"} 1
fastapi_requests_total{app_name="fastapi-app",method="GET",path="/broken"} 1
fastapi_requests_total{app_name="fastapi-app",method="GET",path="/items/{name}"} 2
fastapi_requests_total{app_name="fastapi-app",method="GET",path="<unmatched>"} 1
fastapi_requests_total{app_name="fastapi-app",method="POST",path="/orders"} 1
fastapi_responses_total{app_name="fastapi-app",method="<other>",path="<unmatched>",status_code="404"} 1
fastapi_responses_total{app_name="fastapi-app",method="GET",path="/broken",status_code="500"} 1
fastapi_responses_total{app_name="fastapi-app",method="GET",path="/items/{name}",status_code="200"} 2
fastapi_responses_total{app_name="fastapi-app",method="GET",path="<unmatched>",status_code="404"} 1
fastapi_responses_total{app_name="fastapi-app",method="POST",path="/orders",status_code="201"} 1
""",
}
"""The samples after the requests of `use`, but for times, buckets, and sizes of error pages."""


def use(app: Application) -> None:
    """Send requests of all kinds."""
    app.get("/items/tea", 2)
    app.get("/nowhere")
    app.get("/broken")
    app.request("POST", "/orders", body=b"tea")
    app.request("BREW", "/nowhere")


def samples(page: str) -> dict[str, float]:
    """The samples of a page but those, and of pdc itself, with routes as Starlette writes them."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if re.search(
                r"^pdc_|_created$|_bucket$|_seconds\w*_sum$|_respon\w+_bytes_sum$|_response_size_bytes_sum$", sample.name
            ):
                continue
            labels = (f'{label}="{_as_starlette(value)}"' for label, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{','.join(labels)}}}"] = sample.value
    return found


def _as_starlette(route: str) -> str:
    return re.sub(r"(?<=/)<(?:str:)?(\w+)>", r"{\1}", route)


def expected(name: str) -> dict[str, float]:
    """The expected samples."""
    parts = (line.rpartition(" ") for line in EXPECTED[name].strip().splitlines())
    return {series: float(value) for series, _, value in parts}


def test_each_value_of_the_option_has_names() -> None:
    """The allowed values are those that have a table, and each table has all families that a request changes."""
    assert tuple(NAMES) == ALLOWED
    assert {*EXPECTED, "pdc"} == set(ALLOWED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_document_has_the_names(name: str) -> None:
    """docs/http.md has a table of the names of each other exporter: names, types, labels and measurements."""
    names = NAMES[name]
    rows = [
        f"| `{'_'.join(filter(None, (names.namespace, family.name)))}{'_total' if family.kind is pdc.Counter else ''}` "
        f"| {family.kind.__name__.lower()} | {', '.join(f'`{label}`' for label in family.labels)} "
        f"| {family.measures.replace('_', ' ')} |"
        for family in names.families
    ]
    table = "\n".join(["| Metric | Type | Labels | Measures |", "|---|---|---|---|", *rows])
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    assert f"\n{table}\n" in page.partition(f"### {name}")[2]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_requests_count_under_other_names(framework: str, tmp_path: Path) -> None:
    """With PDC_NAMES the same requests have the names, labels and values of another exporter, in every framework."""
    # Only scheme, sizes and names of views depend on the framework: two of the exporters show them all.
    for name in EXPECTED if framework in ("flask", "fastapi") else ("otel", "django-prometheus"):
        app = FRAMEWORKS[framework](names=name, sqlite_path=str(tmp_path / "metrics.db"), flush_interval=60)
        with closing(app):
            use(app)
            found = samples(app.scrape().text)
            assert {series: value for series, value in found.items() if value or series in expected(name)} == expected(name)
            pdc.clear()


@pytest.mark.parametrize("make", ["flask", "django"], indirect=True)
def test_the_first_page_has_what_no_request_changes(make: Make) -> None:
    """The info about the exporter is there before the first request, and the start of the application writes nothing."""
    app = make(names="prometheus-flask-exporter")
    assert not samples(pdc.generate_latest().decode())
    assert samples(app.scrape().text) == {'flask_exporter_info{version="pdc"}': 1.0}


@pytest.mark.parametrize("make", ["flask", "fastapi"], indirect=True)
def test_labels_of_the_application_come_along(make: Make) -> None:
    """Labels of the application are on each family of requests, and replace constants of the names: `app_name`."""
    app = make(names="starlette-exporter", labels={"zone": "eu", "app_name": "shop", "user": lambda _: "me"}, sizes=True)
    app.request("POST", "/orders", body=b"tea")
    series = 'app_name="shop",method="POST",path="/orders",status_code="201",user="me",zone="eu"'
    assert samples(app.scrape().text) == {
        f"starlette_requests_total{{{series}}}": 1.0,
        f"starlette_request_duration_seconds_count{{{series}}}": 1.0,
        f"starlette_request_body_bytes_total{{{series}}}": 3.0,
        f"starlette_response_body_bytes_total{{{series}}}": 11.0,
        'starlette_requests_in_progress{app_name="shop",method="POST"}': 0.0,
    }


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"names": "otel", "group_status": True},
            "PDC_GROUP_STATUS=True contradicts PDC_NAMES=otel, whose statuses are numbers",
        ),
        (
            {"names": "otel", "labels": {"url_scheme": "x", "http_route": "y"}},
            r"PDC_LABELS has \['http_route', 'url_scheme'\], which are labels of PDC_NAMES=otel themselves: rename them",
        ),
        ({"names": "django-prometheus", "labels": {"view": "x"}}, r"PDC_LABELS has \['view'\], which are labels"),
        ({"names": "fastapi-instrumentator", "labels": {"quantile": "x"}}, r"PDC_LABELS has \['quantile'\], which are labels"),
    ],
)
def test_options_that_contradict_the_names_are_refused(options: dict[str, Any], error: str, tmp_path: Path) -> None:
    """A label that the names have already, and grouped statuses where names have numbers, are errors at start-up."""
    with pytest.raises(OptionError, match=error):
        HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), **options))


def bounds(page: str, name: str) -> list[str]:
    """The bounds of the buckets of a histogram with one series."""
    return re.findall(rf'^{name}_bucket{{(?:.*,)?le="([^"]+)"', page, re.MULTILINE)


@pytest.mark.parametrize("make", ["flask"], indirect=True)
def test_namespace_and_buckets_are_those_of_the_options(make: Make) -> None:
    """PDC_NAMESPACE begins the names, in place of `flask`; PDC_BUCKETS and PDC_SIZE_BUCKETS replace those of the names."""
    app = make(names="prometheus-flask-exporter", namespace="shop", buckets=[0.5, 30], sizes=True, size_buckets=[10])
    app.get("/items/tea")
    page = app.scrape().text
    assert bounds(page, "shop_http_request_duration_seconds") == ["0.5", "30.0", "+Inf"]
    assert bounds(page, "shop_http_response_size_bytes") == ["10.0", "+Inf"]
    assert "flask" not in page


@pytest.mark.parametrize("make", ["fastapi"], indirect=True)
def test_buckets_are_those_of_the_names(make: Make) -> None:
    """Without options, histograms have the buckets of the exporter."""
    app = make(names="fastapi-instrumentator")
    app.get("/items/tea")
    page = app.scrape().text
    assert bounds(page, "http_request_duration_seconds") == ["0.1", "0.5", "1.0", "+Inf"]
    assert [len(bounds(page, "http_request_duration_highr_seconds")), len(bounds(page, "http_request_size_bytes"))] == [22, 0]


@pytest.mark.parametrize("make", ["django"], indirect=True)
def test_exemplars_and_limits_hold_for_other_names(make: Make) -> None:
    """Exemplars are on the first counter and the first histogram; max_series bounds each family."""
    app = make(names="django-prometheus", exemplars=lambda: {"trace_id": "abc"}, max_series=2, flush_interval=60)
    for path in ("/items/tea", "/stream", "/health", "/items/cake"):
        app.get(path)
    page = app.scrape(Accept="application/openmetrics-text").text
    assert {line.partition("{")[0] for line in page.splitlines() if " # " in line} == {
        "django_http_responses_total_by_status_view_method_total",
        "django_http_requests_latency_seconds_by_view_method_bucket",
    }
    found = samples(app.scrape().text)
    counted = {series: value for series, value in found.items() if "_by_view_transport_method_total{" in series}
    assert counted == {
        f'django_http_requests_total_by_view_transport_method_total{{method="{method}",transport="{scheme}",view="{view}"}}': n
        for method, scheme, view, n in (
            ("GET", "http", ITEMS, 2),
            ("GET", "http", "/stream", 1),
            ("<overflow>", "<overflow>", "<overflow>", 1),
        )
    }
    assert found["django_http_requests_before_middlewares_total{}"] == 4


@pytest.mark.parametrize("make", ["flask", "django", "starlette"], indirect=True)
def test_the_scheme_is_that_of_the_request(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request over TLS has the scheme https, and no label waits for it."""
    scope_of = http_applications.asgi_scope
    monkeypatch.setattr(http_applications, "asgi_scope", lambda *args: {**scope_of(*args), "scheme": "https"})
    monkeypatch.setattr("wsgiref.util.guess_scheme", lambda _: "https")
    app = make(names="otel", labels={"zone": "eu"})
    app.get("/items/tea")
    (series,) = [series for series in samples(app.scrape().text) if "duration_seconds_count" in series]
    assert 'url_scheme="https",zone="eu"' in series
    assert not HTTPMetrics(Options(names="otel")).labels.may_wait


def peeking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages of the storage while each view runs, from now on."""
    pages: list[str] = []
    say = http_applications.say

    def saying(route: str, body: bytes) -> Said:
        pages.append(pdc.generate_latest().decode())
        return say(route, body)

    monkeypatch.setattr(http_applications, "say", saying)
    return pages


def in_progress(page: str, name: str = "http_requests_in_progress") -> list[str]:
    """The requests in progress of a page, with routes as Starlette writes them."""
    return [_as_starlette(line) for line in page.splitlines() if line.startswith(name + "{")]


def test_requests_are_in_progress_by_route(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With in_progress_by_route the route is known while a view runs; excluded views and the page are not shown."""
    app = make(in_progress_by_route=True)
    pages = peeking(monkeypatch)
    for path in ("/items/tea", "/nowhere", "/broken", "/quiet/a"):
        app.get(path)
    tea, nowhere, broken = (
        f'http_requests_in_progress{{method="GET",route="{route}"}}' for route in (ITEMS, "<unmatched>", "/broken")
    )
    shown = [in_progress(page) for page in pages]
    assert shown == [[f"{tea} 1.0"], *[sorted([f"{broken} {n}", f"{tea} 0.0", f"{nowhere} 0.0"]) for n in (1.0, 0.0)]]
    assert in_progress(app.scrape().text) == shown[-1]
    app.mount("/outer")
    app.get("/outer/items/tea")
    assert f'http_requests_in_progress{{method="GET",route="/outer{ITEMS}"}} 1.0' in in_progress(pages[-1])


@pytest.mark.parametrize("make", ["flask", "fastapi"], indirect=True)
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("otel", 'http_server_active_requests{http_request_method="GET",http_route="/items/{name}"}'),
        ("fastapi-instrumentator", 'http_requests_inprogress{handler="/items/{name}",method="GET"}'),
    ],
)
def test_routes_in_progress_have_the_label_of_the_names(make: Make, name: str, labels: str) -> None:
    """With other names, the label of the route in progress is that of finished requests."""
    app = make(names=name, in_progress_by_route=True)
    app.get("/items/tea")
    assert [_as_starlette(line) for line in app.scrape().text.splitlines() if line.startswith(labels[:20])][
        -1
    ] == f"{labels} 0.0"


def test_the_start_of_the_answer_is_timed(make: Make) -> None:
    """With first_byte a second histogram has the time until the answer starts, before the end of a stream."""
    app = make(first_byte=True, sizes=True)
    for path in ("/items/tea", "/stream", "/nowhere", "/quiet/a"):
        app.get(path)
    found = samples(page := app.scrape().text)
    counts = {series: value for series, value in found.items() if series.startswith("http_response_start_seconds_count")}
    assert counts == {
        f'http_response_start_seconds_count{{method="GET",route="{route}",status="{status}"}}': 1.0
        for route, status in ((ITEMS, 200), ("/stream", 200), ("<unmatched>", 404))
    }
    start, end = (
        float(re.findall(rf'^http_{name}_seconds_sum{{method="GET",route="/stream",status="200"}} (.*)', page, re.MULTILINE)[0])
        for name in ("response_start", "request_duration")
    )
    assert 0 < start < end


@pytest.mark.parametrize("make", [name for name in NOTICING if FRAMEWORKS[name].send is over_asgi], indirect=True)
def test_an_answer_that_never_starts_is_not_timed(make: Make) -> None:
    """A client that leaves before the answer starts has a duration, and no time until the start."""
    app = make(first_byte=True)
    type(app).leave(app.app, "/wait")
    found, labels = samples(app.scrape().text), '{method="GET",route="/wait",status="499"}'
    assert found[f"http_request_duration_seconds_count{labels}"] == 1
    assert found[f"http_response_start_seconds_count{labels}"] == 0
