"""One contract of the HTTP metrics: the same requests give the same exposition text in every framework."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any

import http_applications
import prometheus_client
import pytest
import requests
from conftest import free_port, wait_until
from http_applications import (
    DENY,
    ELSEWHERE,
    FRAMEWORKS,
    ITEMS,
    NOTICING,
    SERVERS,
    Make,
    Serve,
    guarded,
    over_asgi,
)
from messages import PROTOBUF, rows
from prometheus_client.core import GaugeMetricFamily

import pdc
from pdc.http import RequestRecord
from pdc.options import OptionError, from_header, from_response_header

make = http_applications.make  # pytest finds the fixture by its name here


def lines(page: str) -> list[str]:
    """The samples of requests on a page, with routes as Starlette writes them, without times."""
    samples = [line for line in page.splitlines() if re.match(r"(shop_)?http_\w+(?<!_created)\{", line)]
    timeless = [re.sub(r"(_seconds_(?:sum|bucket)\{.*\}) .*", r"\1", line) for line in samples]
    return sorted(re.sub(r"(?<=/)<(?:str:)?(\w+)>", r"{\1}", line) for line in timeless)


def without_durations(page: str) -> list[str]:
    """The same, without the many lines of which only the names are certain."""
    return [line for line in lines(page) if "_seconds_sum" not in line and "_seconds_bucket" not in line]


def counted(*answers: str, more: tuple[str, ...] = (), labels: str = "", prefix: str = "") -> list[str]:
    """The lines for answers, such as ``"GET /items/{name} 200 = 3"``, when nothing is in progress, and more lines."""
    found = [prefix + line for line in more]
    for answer in answers:
        what, _, count = answer.partition(" = ")
        method, route, status = what.split(" ")
        series = f'{{method="{method}",route="{route}",status="{status}"{labels}}} {float(count or 1)}'
        series = _sorted_labels(series)
        found += [f"{prefix}http_requests_total{series}", f"{prefix}http_request_duration_seconds_count{series}"]
    methods = {answer.split(" ")[0] for answer in answers} - {"<overflow>"}
    found += [f'{prefix}http_requests_in_progress{{method="{method}"}} 0.0' for method in methods]
    return sorted(found)


def _sorted_labels(series: str) -> str:
    labels, _, value = series[1:].rpartition("} ")
    return "{" + ",".join(sorted(re.findall(r'\w+="[^"]*"', labels))) + "} " + value


def raised(exception: str, route: str, times: float = 1.0) -> str:
    """The line for an exception that left the view of a route."""
    return f'http_exceptions_total{{exception="{exception}",method="GET",route="{route}"}} {times}'


def test_answers_count_by_method_route_and_status(make: Make) -> None:
    """Every answer of a view counts once under its route, also one of status 201 and one of 404."""
    app = make()
    assert [app.get("/items/tea", 2), app.get("/items/cake"), app.get("/missing/tea")] == [200, 200, 404]
    assert app.request("POST", "/orders", body=b"tea") == 201
    assert without_durations(app.scrape().text) == counted(
        f"GET {ITEMS} 200 = 3", "GET /missing/{name} 404", "POST /orders 201"
    )


def test_a_process_shows_itself_when_asked_for(make: Make) -> None:
    """With PDC_PROCESS_METRICS the page has the metrics of its process, by host and pid; without it, it has none of them."""
    pattern = rf'^process_open_fds{{host="[^"]+",pid="{os.getpid()}-\w+"}} \d+'
    assert "process_" not in make().scrape().text
    assert re.search(pattern, make(process_metrics=True).scrape().text, re.MULTILINE)


def test_unknown_paths_are_one_series(make: Make) -> None:
    """Five hundred paths without a route are one series."""
    app = make(flush_interval=60)
    assert {app.get(f"/nowhere/{number}") for number in range(500)} == {404}
    assert without_durations(app.scrape().text) == counted("GET <unmatched> 404 = 500")


def test_methods_of_no_route_count_under_the_path(make: Make) -> None:
    """A method that the route of a path does not accept is status 405, and made-up methods are one series."""
    app = make()
    assert {app.request("DELETE", "/items/tea"), app.get("/orders")} == {405}
    assert {app.request(f"BREW{number}", "/items/tea") for number in range(50)} == {405}
    assert app.request("BREW", "/nowhere") == 404
    assert without_durations(app.scrape().text) == counted(
        f"DELETE {ITEMS} 405", "GET /orders 405", f"<other> {ITEMS} 405 = 50", "<other> <unmatched> 404"
    )


def test_head_and_options_count_as_the_framework_answers_them(make: Make) -> None:
    """HEAD and OPTIONS count under the route, with the status of the framework."""
    app = make(sizes=True)
    assert (app.request("HEAD", "/items/tea"), app.request("OPTIONS", "/items/tea")) == (app.head, app.options)
    found = [line for line in without_durations(app.scrape().text) if "_size_" not in line]
    assert found == counted(f"HEAD {ITEMS} {app.head}", f"OPTIONS {ITEMS} {app.options}")


def test_exceptions_of_views_count_handled_or_not(make: Make) -> None:
    """An exception that leaves a view counts once; the request counts with the status that was sent."""
    app = make()
    assert (app.get("/broken", 2), app.get("/handled")) == (500, 418)
    assert without_durations(app.scrape().text) == counted(
        "GET /broken 500 = 2",
        "GET /handled 418",
        more=(raised("KeyError", "/broken", 2.0), raised("Handled", "/handled")),
    )


def test_an_answer_before_the_view_counts_under_the_route(make: Make) -> None:
    """A request that a hook or an inner middleware denies counts under its route."""
    app = make()
    for method, path in [("GET", "/items/tea"), ("POST", "/orders"), ("GET", "/nowhere")]:
        assert app.request(method, path, {DENY: "1"}) == 401
    assert without_durations(app.scrape().text) == counted(f"GET {ITEMS} 401", "POST /orders 401", "GET <unmatched> 401")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_streams_count_at_their_end(make: Make) -> None:
    """A stream counts as one request. One that fails midway counts with its exception and the status that was sent."""
    app = make()
    assert {app.get("/stream", 2), app.get("/broken-stream")} == {200}
    assert without_durations(app.scrape().text) == counted(
        "GET /stream 200 = 2", "GET /broken-stream 200", more=(raised("LookupError", "/broken-stream"),)
    )
    gc.collect()  # under ASGI, Django leaves the file of a request's body open where a stream fails


NOTICING_ASGI = [name for name in NOTICING if FRAMEWORKS[name].send is over_asgi]


@pytest.mark.parametrize("make", NOTICING_ASGI, indirect=True)
def test_a_client_that_leaves_before_the_answer_is_a_499(make: Make) -> None:
    """A client that leaves while a view waits counts as 499, whether the view is cancelled or answers nobody."""
    app = make()
    type(app).leave(app.app, "/wait")
    assert without_durations(app.scrape().text) == counted("GET /wait 499")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("make", NOTICING_ASGI, indirect=True)
def test_a_client_that_leaves_a_stream_of_a_server_is_a_499(make: Make, server: Serve) -> None:
    """The same under real servers, which tell an application in different ways that its client is gone."""
    app = make()
    with server(app.app) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: shop\r\n\r\n")
        received = b""
        while b"abcde" not in received:
            received += client.recv(4096)
        client.close()
        wait_until(lambda: 'status="499"' in app.scrape().text)
        assert without_durations(app.scrape().text) == counted("GET /endless 499")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("make", NOTICING_ASGI, indirect=True)
def test_a_client_that_leaves_a_server_before_the_answer_is_a_499(make: Make, server: Serve) -> None:
    """The same under real servers."""
    app = make()
    with server(app.app) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /wait HTTP/1.1\r\nHost: shop\r\n\r\n")
            wait_until(lambda: 'in_progress{method="GET"} 1.0' in app.scrape().text)
        wait_until(lambda: 'status="499"' in app.scrape().text)
        assert without_durations(app.scrape().text) == counted("GET /wait 499")


@pytest.mark.parametrize("make", NOTICING, indirect=True)
def test_a_client_that_leaves_a_stream_is_a_499(make: Make) -> None:
    """A client that leaves in the middle of a stream counts as 499, and with the bytes that it was sent."""
    app = make(sizes=True)
    type(app).leave(app.app, "/endless")
    found = without_durations(app.scrape().text)
    assert [line for line in found if "_size_" not in line] == counted("GET /endless 499")
    assert 'http_response_size_bytes_count{method="GET",route="/endless",status="499"} 1.0' in found


def test_a_malformed_content_length_is_no_size(make: Make) -> None:
    """A request whose Content-Length is no length, or an absurd one, is counted, without a size."""
    app = make(sizes=True)
    for length in ("", "tea", "-1", "1.5", "\xb2", "9" * 5000):
        assert app.request("GET", "/items/tea", {"Content-Length": length}) == 200
    found = without_durations(app.scrape().text)
    assert [line for line in found if "_size_" not in line] == counted(f"GET {ITEMS} 200 = 6")
    assert f'http_request_size_bytes_sum{{method="GET",route="{ITEMS}",status="200"}} 0.0' in found


def test_excluded_paths_are_not_counted(make: Make) -> None:
    """Excluded paths are answered and not counted: single paths, and paths that a pattern matches fully."""
    app = make(exclude_paths=["/health", re.compile("/static/.*")])
    assert {app.get(path) for path in ("/health", "/static/a", "/static/b", "/items/static")} == {200}
    assert app.get("/health/not") == 404
    assert without_durations(app.scrape().text) == counted(f"GET {ITEMS} 200", "GET <unmatched> 404")


def test_excluded_views_are_not_counted(make: Make) -> None:
    """The requests of an excluded view are answered and not counted, also where a hook denies them."""
    app = make(sizes=True)
    assert (app.get("/quiet/a", 2), app.request("GET", "/quiet/a", {DENY: "1"})) == (200, 401)
    assert [line for line in lines(app.scrape().text) if "in_progress" not in line] == []
    app.get("/items/tea")
    found = [line for line in without_durations(app.scrape().text) if "_size_" not in line]
    assert found == counted(f"GET {ITEMS} 200")


def test_routes_have_the_prefix_of_the_mount(make: Make) -> None:
    """Below a prefix of another application, routes begin with that prefix, and the page is not counted either."""
    app = make()
    app.mount("/outer")
    assert (app.get("/outer/items/tea"), app.get("/outer/nowhere"), app.get("/outer/broken")) == (200, 404, 500)
    app.scrape()
    assert without_durations(app.scrape().text) == counted(
        f"GET /outer{ITEMS} 200", "GET <unmatched> 404", "GET /outer/broken 500", more=(raised("KeyError", "/outer/broken"),)
    )


def test_the_metrics_have_a_port_of_their_own(make: Make) -> None:
    """With metrics_port the metrics are served there, to clients of the networks with the token."""
    port = free_port()
    app = make(metrics_port=f"127.0.0.1:{port}", metrics_token="secret", metrics_networks="127.0.0.0/8")
    app.get("/items/tea")
    session = requests.Session()
    assert wait_until(lambda: _status(session, port)) == 401
    session.headers["Authorization"] = "Bearer secret"
    page = session.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert without_durations(page.text) == counted(f"GET {ITEMS} 200")


def test_pages_are_there_in_protobuf(make: Make) -> None:
    """The page and the port answer in the format that Prometheus prefers."""
    port = free_port()
    app = make(metrics_port=f"127.0.0.1:{port}")
    app.get("/items/tea")
    assert app.answer("HEAD", "/metrics", {"Accept": PROTOBUF}).headers["content-type"].startswith(PROTOBUF)
    wait_until(lambda: _status(requests.Session(), port))
    page = requests.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": PROTOBUF}, timeout=10)
    assert page.headers["Content-Type"].startswith(PROTOBUF)
    assert [row[3] for row in rows(page.content) if row[0] == "http_requests_total" and row[2] == "value"] == ["1.0"]


def _status(session: requests.Session, port: int) -> int | None:
    try:
        return session.get(f"http://127.0.0.1:{port}/metrics", timeout=10).status_code
    except requests.ConnectionError:
        return None


def test_statuses_may_be_grouped(make: Make) -> None:
    """With group_status, the label has the class of the status."""
    app = make(group_status=True)
    for path in ("/items/tea", "/missing/tea", "/nowhere", "/handled", "/broken"):
        app.get(path)
    assert without_durations(app.scrape().text) == counted(
        f"GET {ITEMS} 2xx",
        "GET /missing/{name} 4xx",
        "GET <unmatched> 4xx",
        "GET /handled 4xx",
        "GET /broken 5xx",
        more=(raised("KeyError", "/broken"), raised("Handled", "/handled")),
    )


def test_names_have_the_namespace(make: Make) -> None:
    """With a namespace, the names of all metrics begin with it."""
    app = make(namespace="shop")
    app.get("/broken")
    assert without_durations(app.scrape().text) == counted(
        "GET /broken 500", more=(raised("KeyError", "/broken"),), prefix="shop_"
    )


def test_buckets_are_those_of_the_option(make: Make) -> None:
    """The duration has exactly these buckets, a sum and a count."""
    app = make(buckets=[0.5, 30])
    app.get("/items/tea")
    series = f'method="GET",route="{ITEMS}",status="200"'
    more = [f'http_request_duration_seconds_bucket{{le="{bound}",{series}}}' for bound in ("0.5", "30.0", "+Inf")]
    more.append(f"http_request_duration_seconds_sum{{{series}}}")
    assert lines(app.scrape().text) == counted(f"GET {ITEMS} 200", more=tuple(more))


def test_labels_of_the_application(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Labels are static, from a header with one of these values, or empty where a callable raises, which is logged once."""
    app = make(labels={"zone": "eu", "tenant": from_header("X-Tenant", allowed={"a"}, default="?"), "user": lambda _: 1 / 0})
    for tenant in ("a", "a", "made up", "invented"):
        assert app.request("GET", "/items/tea", {"X-Tenant": tenant}) == 200
    app.get("/nowhere")
    app.get("/broken")
    one, other = ',tenant="a",user="",zone="eu"', ',tenant="?",user="",zone="eu"'
    expected = {
        *counted(f"GET {ITEMS} 200 = 2", labels=one),
        *counted(f"GET {ITEMS} 200 = 2", "GET <unmatched> 404", "GET /broken 500", labels=other),
        'http_exceptions_total{exception="KeyError",method="GET",route="/broken"' + other + "} 1.0",
    }
    assert without_durations(app.scrape().text) == sorted(expected)
    assert len([record for record in caplog.records if "the label 'user' failed" in record.message]) == 1


async def _asked_for(request: Any) -> str:
    await asyncio.sleep(0)
    return str(request.headers["X-Tenant"])


async def _failing(_: Any) -> str:
    raise LookupError


def _hidden(label: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A callable that no one can tell from others before its first call."""

    def call(request: Any) -> Any:
        return label(request)

    return call


def test_callables_of_labels_may_return_awaitables(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Under ASGI a label waits for the awaitable of its callable; WSGI refuses it, with one line in the log."""
    app = make(labels={"tenant": _hidden(_asked_for), "failing": _hidden(_failing), "zone": "eu"})
    for path in ("/items/tea", "/items/cake", "/broken", "/handled", "/nowhere", "/stream"):
        app.request("GET", path, {"X-Tenant": "a"})
    app.request("GET", "/items/tea", {"X-Tenant": "a", DENY: "1"})
    tenant = "a" if type(app).send is over_asgi else ""
    labels = f',failing="",tenant="{tenant}",zone="eu"'
    answers = counted(
        *(f"GET {ITEMS} 200 = 2", "GET /broken 500", "GET /handled 418", "GET <unmatched> 404", "GET /stream 200"),
        f"GET {ITEMS} 401",
        labels=labels,
    )
    exceptions = [
        f'http_exceptions_total{{exception="{name}",failing="",method="GET",route="{route}",tenant="{tenant}",zone="eu"}} 1.0'
        for name, route in (("KeyError", "/broken"), ("Handled", "/handled"))
    ]
    assert without_durations(app.scrape().text) == sorted([*answers, *exceptions])
    told = [record.message for record in caplog.records if "the label 'tenant' failed" in record.message]
    assert len(told) == (0 if tenant else 1)


@pytest.mark.parametrize("make", NOTICING_ASGI, indirect=True)
def test_a_label_does_not_wait_for_a_client_that_left(make: Make) -> None:
    """A request whose client left counts though its label has nothing to wait for any more."""
    app = make(labels={"tenant": _asked_for})
    type(app).leave(app.app, "/wait")
    (line,) = [line for line in lines(app.scrape().text) if line.startswith("http_requests_total")]
    assert 'route="/wait",status="499"' in line
    assert "coroutine" not in line


async def _later(text: str) -> str:
    await asyncio.sleep(0)
    return text


def _brand(request: Any, response: Any) -> Any:
    """A label that ASGI awaits."""
    brand = from_response_header("x-bRand", allowed={"tea"}, default="?")(request, response)
    return _later(brand) if hasattr(request, "scope") else brand


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_labels_of_the_response(make: Make) -> None:
    """A callable of two parameters gets the request and the response, whose status and headers every framework has."""
    app = make(
        labels={
            "brand": _brand,
            "code": lambda request, response: f"{request.method}{response.status_code}",
            "zone": lambda _, zone="eu": zone,
        }
    )
    for path in ("/items/tea", "/stream", "/broken-stream", "/nowhere", "/handled", "/broken"):
        app.get(path)
    app.request("GET", "/items/tea", {DENY: "1"})
    failed = 'brand="?",code="GET500"' if app.sees_error_pages else 'brand="",code=""'
    good = ',brand="tea",code="GET200",zone="eu"'
    expected = {
        *counted(f"GET {ITEMS} 200", "GET /stream 200", "GET /broken-stream 200", labels=good),
        *counted("GET <unmatched> 404", labels=',brand="?",code="GET404",zone="eu"'),
        *counted("GET /handled 418", labels=',brand="?",code="GET418",zone="eu"'),
        *counted(f"GET {ITEMS} 401", labels=',brand="?",code="GET401",zone="eu"'),
        *counted("GET /broken 500", labels=f',{failed},zone="eu"'),
    }
    for exception, route, own in [
        ("LookupError", "/broken-stream", good[1:]),
        ("Handled", "/handled", 'brand="?",code="GET418",zone="eu"'),
        ("KeyError", "/broken", f'{failed},zone="eu"'),
    ]:
        series = _sorted_labels(f'{{exception="{exception}",method="GET",route="{route}",{own}}} 1.0')
        expected.add(f"http_exceptions_total{series}")
    assert without_durations(app.scrape().text) == sorted(expected)
    gc.collect()


@pytest.mark.parametrize("make", ["flask"], indirect=True)
def test_wsgi_refuses_coroutine_functions_at_start(make: Make) -> None:
    """An application that cannot await its labels does not start with them."""
    with pytest.raises(
        OptionError, match="PDC_LABELS: expected no coroutine functions under WSGI, got them for \\['tenant'\\]"
    ):
        make(labels={"tenant": _asked_for})


def test_sizes_are_of_the_bodies(make: Make) -> None:
    """Sizes are those of the sent and answered bodies, also of unread ones and of a stream."""
    app = make(sizes=True)
    app.request("POST", "/orders", body=b"a cup of tea")
    app.request("GET", "/items/tea", body=b"unasked for")
    app.request("GET", "/stream", {DENY: "1"}, b"unread")
    app.get("/stream")
    sums = [line for line in lines(app.scrape().text) if "_bytes_sum" in line or "_bytes_count" in line]
    expected = []
    for series, asked, answered in [
        ('method="POST",route="/orders",status="201"', 12, 20),
        (f'method="GET",route="{ITEMS}",status="200"', 11, 7),
        ('method="GET",route="/stream",status="200"', 0, 5),
    ]:
        for name, size in (("request", asked), ("response", answered)):
            expected += [f"http_{name}_size_bytes_sum{{{series}}} {float(size)}"]
            expected += [f"http_{name}_size_bytes_count{{{series}}} 1.0"]
    assert [line for line in sums if "401" not in line] == sorted(expected)
    assert 'http_request_size_bytes_sum{method="GET",route="/stream",status="401"} 6.0' in sums


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hooks_get_a_record_of_each_request(make: Make) -> None:
    """A hook gets one record of each request that is counted, when it is counted, and may update a metric."""
    app = make(exclude_paths=["/health"])
    records: list[RequestRecord] = []
    app.add(records.append)
    app.add(records.append)
    bytes_sent = pdc.Counter("sent_bytes", "Bytes of answers by media type.", ["type"], registry=None)
    app.add(lambda record: bytes_sent.labels(record.route).inc(record.response_size))
    assert app.request("POST", "/orders", body=b"a cup of tea") == 201
    for path in ("/items/tea", "/stream", "/broken-stream", "/handled", "/broken", "/nowhere", "/health", "/quiet/a"):
        app.get(path)
    page = app.scrape().text
    found = [
        (*record[2:5], *record[6:8], type(record.exception).__name__, getattr(record.response, "status_code", None))
        for record in records
    ]
    items = next(record.route for record in records if record.route.startswith("/items"))
    failed = 500 if app.sees_error_pages else None
    assert (
        found[:-3]
        == [
            ("POST", "/orders", 201, 12, 20, "NoneType", 201),
            ("GET", items, 200, 0, 7, "NoneType", 200),
            ("GET", "/stream", 200, 0, 5, "NoneType", 200),
            ("GET", "/broken-stream", 200, 0, 3, "LookupError", 200),
            ("GET", "/handled", 418, 0, 5, "Handled", 418),
        ][: len(found) - 3]
    )
    sizes = [size for *_, size, _, _ in found[-2:]]
    assert found[-2:] == [
        ("GET", "/broken", 500, 0, sizes[0], "KeyError", failed),
        ("GET", "<unmatched>", 404, 0, sizes[1], "NoneType", 404),
    ]
    assert {record.request.method for record in records} == {"GET", "POST"}
    assert all(0 < record.duration < 10 for record in records)
    assert records[0].response.headers["x-brand"] == "tea"
    assert 'sent_bytes_total{type="/stream"} 5.0' in page
    records.clear()
    gc.collect()  # Django does not close the body of a request whose answer breaks: that warns here, not in the next test


@pytest.mark.parametrize("make", NOTICING, indirect=True)
def test_labels_and_hooks_see_clients_that_leave(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves a stream had a response; one that left before the answer had none, whatever a callable raises."""
    app = make(labels={"code": lambda _, response: str(response.status_code), "failing": lambda _: 1 / 0})
    records: list[RequestRecord] = []
    app.add(records.append)
    type(app).leave(app.app, "/endless")
    expected = {*counted("GET /endless 499", labels=',code="200",failing=""')}
    if type(app).send is over_asgi:
        type(app).leave(app.app, "/wait")
        expected |= {*counted("GET /wait 499", labels=',code="",failing=""')}
    assert without_durations(app.scrape().text) == sorted(expected)
    first, *others = [(record.status, record.response and record.response.status_code) for record in records]
    assert (first, others) == ((499, 200), [(499, None)] if type(app).send is over_asgi else [])
    assert records[0].response.headers["X-Brand"] == "tea"
    assert records[0].response_size >= 8
    assert [record.message for record in caplog.records if "the label 'code'" in record.message] == []


def test_a_hook_that_fails_breaks_no_request(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The errors of a hook reach neither the request nor other hooks, and are logged once per hook."""

    def failing(record: RequestRecord) -> None:
        raise LookupError(record.route)

    app = make()
    later: list[RequestRecord] = []
    app.add(failing)
    app.add(lambda _: 1 / 0)
    app.add(later.append)
    assert (app.get("/items/tea", 2), app.get("/broken"), len(later)) == (200, 500, 3)
    assert without_durations(app.scrape().text) == counted(
        f"GET {ITEMS} 200 = 2", "GET /broken 500", more=(raised("KeyError", "/broken"),)
    )
    told = [record.message for record in caplog.records if record.message.startswith("the hook")]
    assert [("failing" in message, "<lambda>" in message) for message in told] == [(True, False), (False, True)]


def _too_late(*_: Any) -> Any:
    """Fail as the library does that an application asks for something: with a bare exception of its own."""
    return Future[str]().result(timeout=0)


async def _too_late_async(_: Any) -> Any:
    return await asyncio.wait_for(asyncio.Event().wait(), 0.001)


class Late:
    """A collector that fails so."""

    def collect(self) -> Any:
        """Fail."""
        return _too_late()


def test_errors_of_libraries_in_callables_break_no_request(make: Make) -> None:
    """Labels, exemplars, hooks and collectors may fail amid a library: by its own exception, and by a time limit of theirs."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(Late())
    app = make(labels={"one": _too_late, "other": _hidden(_too_late_async)}, exemplars=_too_late, registry=registry)
    app.add(_too_late)
    assert app.get("/items/tea") == 200
    page = app.scrape().text
    assert without_durations(page) == counted(f"GET {ITEMS} 200", labels=',one="",other=""')
    assert "\npdc_collectors_failed 1.0\n" in page


def test_exemplars_come_from_the_callable(make: Make) -> None:
    """In OpenMetrics the exemplar of the counter and of a bucket of the duration is what the callable finds in the request."""
    app = make(exemplars=lambda request: {"trace_id": request.headers["X-Trace"]}, buckets=[60])
    app.request("GET", "/items/tea", {"X-Trace": "abc"})
    page = app.scrape(Accept="application/openmetrics-text").text
    exemplars = [line.partition(" # ") for line in page.splitlines() if " # " in line]
    assert sorted((name.partition("{")[0], exemplar[:18]) for name, _, exemplar in exemplars) == [
        ("http_request_duration_seconds_bucket", '{trace_id="abc"} 0'),
        ("http_requests_total", '{trace_id="abc"} 1'),
    ]


def test_unmatched_requests_and_methods_may_be_left_out(make: Make) -> None:
    """Requests that no route matches, and those of some methods, are then in no family, not in progress, and in no hook."""
    app = make(
        count_unmatched=False, exclude_methods="HEAD, options,BREW", labels={"code": lambda _, answer: answer.status_code}
    )
    records: list[RequestRecord] = []
    app.add(records.append)
    assert (app.get("/nowhere", 3), app.request("GET", "/nowhere", {DENY: "1"}), app.get("/items/tea")) == (404, 401, 200)
    statuses = [app.request(method, "/items/tea") for method in ("HEAD", "OPTIONS", "BREW", "DELETE")]
    assert statuses == [app.head, app.options, 405, 405]
    expected = {*counted(f"GET {ITEMS} 200", labels=',code="200"'), *counted(f"DELETE {ITEMS} 405", labels=',code="405"')}
    assert without_durations(app.scrape().text) == sorted(expected)
    assert [record.status for record in records] == [200, 405]


def test_new_series_over_the_limit_are_one(make: Make) -> None:
    """From max_series on, new series of a metric are counted as one, and the old ones continue."""
    app = make(max_series=2)
    for path in ("/items/tea", "/stream", "/health", "/nowhere", "/items/cake"):
        app.get(path)
    assert without_durations(app.scrape().text) == counted(
        f"GET {ITEMS} 200 = 2", "GET /stream 200", "<overflow> <overflow> <overflow> = 2"
    )
    assert "\npdc_series_refused_total 4.0\n" in app.scrape().text  # the counter and the duration of two requests


def test_the_page_has_the_metrics_of_pdc(make: Make) -> None:
    """The page has the metrics of pdc itself, in any namespace."""
    page = make(namespace="shop", flush_interval=60).scrape().text
    told = dict(re.findall(r"\n(pdc_\w+) (\S+)", page))
    zero = ("pdc_batches_retried_total", "pdc_series_pending", "pdc_series_refused_total")
    assert {told[name] for name in zero} == {"0.0"}
    assert told["pdc_storage_up"] == "1.0"
    assert {"pdc_flush_duration_seconds_count", "pdc_last_flush_timestamp_seconds"} <= told.keys()


def test_the_page_asks_for_the_token(make: Make) -> None:
    """The metrics page answers only clients with the token, and counts no request."""
    app = make(metrics_token="secret")
    app.get("/items/tea")
    assert [app.scrape().status, app.scrape(Authorization="Bearer wrong").status] == [401, 401]
    page = app.scrape(Authorization="Bearer secret")
    assert page.status == 200
    assert without_durations(page.text) == counted(f"GET {ITEMS} 200")


def test_only_clients_with_the_token_get_the_reason(make: Make, tmp_path: Path) -> None:
    """While the storage cannot be read, clients with the token get the reason and the remedy; others do not."""
    app = make(metrics_token="secret", sqlite_path=str(tmp_path / "gone" / "metrics.db"))
    app.get("/items/tea")
    for authorization in ("", "Bearer wrong", "Basic c2VjcmV0"):
        page = app.scrape(Authorization=authorization)
        assert (page.status, page.text) == (401, "# metrics need the header Authorization: Bearer <token>\n")
    page = app.scrape(Authorization="Bearer secret")
    assert page.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert str(tmp_path / "gone") in page.text
    assert "secret" not in page.text


METHODS = ("GET", "HEAD", "OPTIONS", "POST")


def basic(credentials: str) -> dict[str, str]:
    """The header of these credentials."""
    return {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


def test_the_page_takes_either_of_two_credentials(make: Make) -> None:
    """With a token and a password, a client needs one of them, whatever its method; both guard the page elsewhere, too."""
    app = make(metrics_token="secret", metrics_basic_auth="ann:pass:wörd")
    accepted = [basic("ann:pass:wörd"), {"Authorization": "Bearer secret"}]
    refused = [{}, basic("ann:pass"), basic("secret"), basic("eve:pass:wörd"), {"Authorization": "Bearer ann:pass:wörd"}]
    for path in ("/metrics", ELSEWHERE):
        assert {app.request("GET", path, headers) for headers in accepted} == {200}
        assert {app.request("GET", path, headers) for headers in refused} == {401}
    assert {app.request(method, "/metrics") for method in METHODS[:3]} == {401}
    assert [app.request(method, "/metrics", accepted[0]) for method in METHODS] == [200, 200, 200, 405]


def test_clients_of_the_networks_get_the_page(make: Make, tmp_path: Path) -> None:
    """Clients of the networks may read, also by IPv4 in IPv6; others, and those without an address, get 403 and no reason."""
    gone = str(tmp_path / "gone" / "metrics.db")
    app = make(metrics_networks=["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"], metrics_token="secret", sqlite_path=gone)
    bare = app.app
    sent = {"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3", "Authorization": "Bearer secret"}
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "2001:db8::1"):
        app.move_clients(address)
        assert [app.request("GET", path, headers) for path in ("/metrics", ELSEWHERE) for headers in (sent, {})] == [
            503,
            401,
        ] * 2
        app.app = bare
    for elsewhere in ("192.0.2.8", "::1", "unix:", "", None):
        app.move_clients(elsewhere)
        assert {app.request(method, "/metrics", sent) for method in METHODS} <= {403, 405}
        assert app.request("GET", ELSEWHERE, sent) == 403
        text = app.scrape(**sent).text
        needs = (
            "metrics are not for clients at" if elsewhere in ("192.0.2.8", "::1") else "PDC_METRICS_NETWORKS needs the address"
        )
        assert text.startswith(f"# {needs}")
        assert "gone" not in text
        app.app = bare


def test_the_page_has_the_decorator_of_the_option(make: Make) -> None:
    """The decorator at that path decorates the page once, wherever the page is; its exceptions are answered."""
    guarded.clear()
    app = make(metrics_decorator="http_applications.guard")
    for path in ("/metrics", ELSEWHERE):
        assert app.get(path, 2) == 200
        assert app.request("GET", path, {"X-Guard": "1"}) == 418
    assert {app.request(method, "/metrics", {"X-Guard": "1"}) for method in ("HEAD", "OPTIONS")} == {418}
    assert len(guarded) == 1
    assert [line for line in lines(app.scrape().text) if "in_progress" not in line] == []


@pytest.fixture
def local() -> Iterator[prometheus_client.Counter]:
    """A metric of prometheus_client in its default registry."""
    metric = prometheus_client.Counter("local", "Of one process.")
    yield metric
    prometheus_client.REGISTRY.unregister(metric)


def test_the_page_shows_metrics_of_prometheus_client(
    make: Make, local: prometheus_client.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """Its default registry is on the page without its own collectors, and one line of the log names metrics of one process."""
    local.inc(3)
    app = make()
    app.get("/items/tea")
    page = app.scrape().text
    assert "\nlocal_total 3.0\n" in page
    assert "\npdc_collectors_failed 0.0\n" in page
    assert not re.search("^(process_|python_)", page, re.MULTILINE)
    assert without_durations(page) == counted(f"GET {ITEMS} 200")
    app.scrape()
    told = [each for each in caplog.messages if "metrics of prometheus_client" in each]
    assert len(told) == 1
    assert "which each process has for itself: local." in told[0]
    assert "pdc.Counter" in told[0]


class Elsewhere:
    """A collector of another registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A family, and then an error where `fails` is set."""
        yield GaugeMetricFamily("elsewhere", "A number.", 7)
        if fails:
            raise LookupError("out of order")


fails: list[bool] = []
OTHER = prometheus_client.CollectorRegistry()
OTHER.register(Elsewhere())


@pytest.mark.usefixtures("local")
def test_the_page_shows_the_registry_of_the_option(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The registry at that path is on the page in place of the default one."""
    page = make(registry=f"{__name__}.OTHER").scrape().text
    assert "\nelsewhere 7.0\n" in page
    assert "local" not in page
    assert caplog.messages == []


def test_a_collector_that_fails_takes_nothing_else_with_it(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The page has all metrics but those of a collector that raises, counts it, and the log has its error once."""
    app = make(registry=OTHER)
    app.get("/items/tea")
    fails.append(True)
    try:
        pages = [app.scrape() for _ in range(2)]
    finally:
        fails.clear()
    for page in pages:
        assert page.status == 200
        assert without_durations(page.text) == counted(f"GET {ITEMS} 200")
        assert "elsewhere" not in page.text
        assert "\npdc_collectors_failed 1.0\n" in page.text
    (told,) = [record for record in caplog.records if "the collector Elsewhere failed" in record.message]
    assert told.exc_info
    assert "\nelsewhere 7.0\n" in app.scrape().text


def test_an_outage_of_the_storage_loses_nothing(make: Make, tmp_path: Path) -> None:
    """Without its storage the application answers and the page is a 503; the requests meanwhile are counted later."""
    app = make(sqlite_path=str(tmp_path / "later" / "metrics.db"))
    assert (app.get("/items/tea", 2), app.get("/broken")) == (200, 500)
    page = app.scrape()
    assert page.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert str(tmp_path / "later") in page.text
    (tmp_path / "later").mkdir()
    app.get("/items/tea")
    expected = counted(f"GET {ITEMS} 200 = 3", "GET /broken 500", more=(raised("KeyError", "/broken"),))
    wait_until(lambda: without_durations(app.scrape().text) == expected)


def test_the_page_is_not_counted(make: Make) -> None:
    """The metrics page never counts itself, whatever the method."""
    app = make()
    statuses = [app.request(method, "/metrics") for method in ("GET", "HEAD", "OPTIONS", "POST")]
    assert statuses == [200, 200, 200, 405]
    assert lines(app.scrape().text) == []


@pytest.mark.parametrize("labels", [{}, {"user": lambda _: "me"}])
def test_the_page_is_not_counted_elsewhere(make: Make, labels: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The metrics page at another path than metrics_path, also below a mount, is no request and no error."""
    app = make(labels=labels)
    assert app.get(ELSEWHERE, 2) == 200
    app.mount("/outer")
    assert app.get(f"/outer{ELSEWHERE}", 2) == 200
    found = app.scrape()
    assert [line for line in lines(found.text) if "in_progress" not in line] == []
    assert 'http_requests_in_progress{method="GET"} 0.0' in found.text
    assert [record for record in caplog.records if record.name.startswith("pdc")] == []


def test_nothing_is_counted_when_switched_off(make: Make, tmp_path: Path) -> None:
    """With enabled=False the application is unchanged: no page, no storage, the same answers. Its own metrics go nowhere."""
    app = make(enabled=False)
    assert [app.get("/items/tea"), app.get("/nowhere"), app.get("/broken"), app.scrape().status] == [200, 404, 500, 404]
    pdc.Counter("own", "Of the application.", registry=None).inc()
    assert not (tmp_path / "metrics.db").exists()


def test_another_storage_shows_only_its_own_counts(make: Make, tmp_path: Path) -> None:
    """An application with another storage shows nothing of one before; back in the first storage, its counts go on."""
    places = [{"sqlite_path": str(tmp_path / f"{name}.db"), "flush_interval": 60} for name in "ab"]
    first = make(**places[0])
    assert (first.get("/items/tea"), first.request("POST", "/orders"), first.get("/broken")) == (200, 201, 500)
    second = make(**places[1])
    assert second.get("/nowhere") == 404
    assert without_durations(second.scrape().text) == counted("GET <unmatched> 404")
    third = make(**places[0])
    assert third.get("/items/tea") == 200
    expected = counted(f"GET {ITEMS} 200 = 2", "POST /orders 201", "GET /broken 500", more=(raised("KeyError", "/broken"),))
    found = without_durations(third.scrape().text)
    assert found == [line for line in expected if line != 'http_requests_in_progress{method="POST"} 0.0']
