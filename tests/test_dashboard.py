"""The page of PDC_DASHBOARD in every framework: its headers, its guards, its counts."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import flask
import http_applications
import pytest
from conftest import free_port, wait_until
from fastapi import Depends, FastAPI, HTTPException
from http_applications import ITEMS, Make, over_asgi

import pdc
from pdc import dashboard
from pdc.cli import serve as serving
from pdc.dashboard import counts
from pdc.exposition import Scrape
from pdc.http import HTTPMetrics
from pdc.options import NAMES, Options
from pdc_flask import PrometheusMetrics
from pdc_starlette import instrument

make = http_applications.make  # pytest finds the fixture by its name here

PAGE = "/metrics/dashboard"
COUNTS = f"{PAGE}?counts="
SAFE = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
FORBIDDEN = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "</script", "http://", "https://")
"""Texts that the script may not have: with them a label could become a part of the page, or the page ask others."""


OUTSIDE = re.compile(r"""\b(src|style|on\w+|action)=|href=(?!"data:|"\.\./)|url\(""")
"""Attributes of scripts and styles, which the policy does not allow, and addresses of others."""


def basic(password: str, user: str = "ann") -> dict[str, str]:
    """The header that a browser sends once somebody has typed a user and a password."""
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


def assert_safe(headers: Mapping[str, str]) -> None:
    """Assert that an answer has all headers that keep it to its page. A framework may forbid caches more than that."""
    assert SAFE.items() <= headers.items()
    assert "no-store" in headers["cache-control"]


def counts_of(scrape: Scrape | None = None) -> Any:
    """The counts that the page gets."""
    response = dashboard.answer(scrape or Scrape(query="counts="))
    assert response.status == 200
    return json.loads(response.body)


def test_the_page_is_below_the_metrics_and_safe(make: Make) -> None:
    """The page has one script and one style, which its policy names by their hashes, and headers that keep it to itself."""
    app = make(dashboard=True)
    app.mount("/outer")
    page = app.answer("GET", f"/outer{PAGE}")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert_safe(page.headers)
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert "unsafe" not in str(policy)
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert policy.pop(f"{tag}-src") == f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"
    assert policy == {
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"), "'none'"),
        "connect-src": "'self'",
        "img-src": "data:",
        "require-trusted-types-for": "'script'",
    }
    assert OUTSIDE.search(page.text.partition("<script>")[0]) is None
    assert app.answer("HEAD", f"/outer{PAGE}").text == ""
    assert [app.request(method, f"/outer{PAGE}") for method in ("HEAD", "OPTIONS", "POST")] == [200, 200, 405]


def test_without_the_option_there_is_no_page(make: Make) -> None:
    """The path is one like others then: a request to it is a 404 that counts."""
    app = make()
    assert (app.get(PAGE), app.answer("GET", COUNTS).status) == (404, 404)
    assert 'http_requests_total{method="GET",route="<unmatched>",status="404"} 2.0' in app.scrape().text
    assert make(dashboard=True, enabled=False).get(PAGE) == 404


def test_the_counts_are_those_of_the_storage_and_the_page_is_not_counted(make: Make) -> None:
    """The counts have every request of the application but those of the page itself, wherever it is mounted."""
    app = make(dashboard=True)
    assert (app.get("/items/tea", 3), app.get("/broken"), app.get(PAGE)) == (200, 500, 200)
    app.mount("/outer")
    assert {app.get(f"/outer{PAGE}"), app.get(f"/outer{COUNTS}", 2)} == {200}
    answer = app.answer("GET", f"/outer{COUNTS}")
    assert answer.headers["content-type"] == "application/json"
    assert_safe(answer.headers)
    found = json.loads(answer.text)
    routes = [(re.sub(r"<(?:str:)?(\w+)>", r"{\1}", f"/{route.lstrip('/')}"), *rest) for _, route, *rest in found["requests"]]
    assert sorted(routes) == [("/broken", True, 1.0), (ITEMS, False, 3.0)]
    assert sorted(buckets["+Inf"] for _, _, buckets in found["durations"]) == [1.0, 3.0]
    assert [(exception, place.lstrip("/"), count) for _, exception, place, count in found["exceptions"]] == [
        ("KeyError", "broken", 1.0)
    ]
    assert (found["in_progress"], found["workers"], found["own"]["pdc_storage_up"]) == (0.0, 1, 1.0)
    assert found["storage"].startswith("SQLite ")


def test_the_guards_of_the_metrics_guard_the_page(make: Make) -> None:
    """Nobody sees page or counts without credentials; a browser asks for a password, and the token is that of any user."""
    app = make(dashboard=True, metrics_token="töken", metrics_basic_auth="ann:secret")
    bearer = {"Authorization": "Bearer töken".encode().decode("latin-1")}
    for path in (PAGE, COUNTS):
        for headers in (bearer, basic("secret"), basic("töken"), basic("töken", "bob")):
            assert app.answer("GET", path, headers).status == 200
        wrong: tuple[dict[str, str], ...] = (
            {},
            basic(""),
            basic("secret", "bob"),
            basic("tok"),
            {"Authorization": "Basic t"},
            {"Authorization": "Basic ö"},
        )
        for headers in (*wrong, {"Authorization": "Digest dMO2a2Vu"}):
            refusal = app.answer("GET", path, headers)
            assert (refusal.status, refusal.headers["www-authenticate"]) == (401, 'Basic realm="metrics", charset="UTF-8"')
            assert "metrics.db" not in refusal.text
    assert app.answer("GET", "/metrics", basic("töken")).status == 401


def test_the_networks_of_the_metrics_guard_the_page(make: Make) -> None:
    """Clients elsewhere get 403 from page and counts."""
    app = make(dashboard=True, metrics_networks="192.0.2.0/24", metrics_basic_auth="ann:secret")
    bare = app.app
    for address, statuses in (("192.0.2.7", [200, 401]), ("198.51.100.7", [403, 403])):
        app.move_clients(address)
        for path in (PAGE, COUNTS):
            assert [app.answer("GET", path, basic(password)).status for password in ("secret", "")] == statuses
        app.app = bare


def test_the_decorator_of_the_metrics_decorates_the_page(make: Make) -> None:
    """The decorator answers instead of the page, as instead of the metrics."""
    app = make(dashboard=True, metrics_decorator="http_applications.guard")
    for path in (PAGE, COUNTS):
        assert [app.answer("GET", path, headers).status for headers in ({}, {"X-Guard": "1"})] == [200, 418]


def test_a_storage_that_cannot_be_read_is_a_503_of_the_counts(make: Make, tmp_path: Path) -> None:
    """The page is there; the counts are a 503 with the reason."""
    app = make(dashboard=True, sqlite_path=str(tmp_path / "later" / "metrics.db"))
    page, answer = app.answer("GET", PAGE), app.answer("GET", COUNTS)
    assert (page.status, answer.status) == (200, 503)
    assert str(tmp_path / "later") in answer.text


def test_dependencies_of_fastapi_run_before_the_page(tmp_path: Path) -> None:
    """Dependencies of the metrics refuse clients of the page, which the schema does not have."""

    def refuse() -> None:
        raise HTTPException(403)

    app = FastAPI()
    instrument(
        app, dependencies=[Depends(refuse)], include_in_schema=True, dashboard=True, sqlite_path=str(tmp_path / "metrics.db")
    )
    for path in (PAGE, COUNTS):
        assert over_asgi(app, "GET", path, {}, b"").status == 403
    app.dependency_overrides[refuse] = lambda: None
    assert over_asgi(app, "GET", PAGE, {}, b"").status == 200
    assert [*app.openapi()["paths"]] == ["/metrics"]


def test_the_port_of_the_metrics_has_the_page(tmp_path: Path) -> None:
    """PDC_METRICS_PORT serves the page behind the same guards, also where no application mounts the metrics."""
    port = free_port()
    options = {"PDC_DASHBOARD": "1", "PDC_METRICS_PATH": "none", "PDC_METRICS_PORT": f"127.0.0.1:{port}"}
    place = {"PDC_METRICS_TOKEN": "token", "PDC_SQLITE_PATH": str(tmp_path / "metrics.db"), "PDC_FLUSH_INTERVAL": "0"}
    HTTPMetrics(Options.load({}, options | place)).begin_serving()

    def ask(path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()[:9]
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()

    assert wait_until(lambda: ask(PAGE, {})) == (401, "# this pa")
    assert ask(PAGE, basic("token")) == (200, "<!DOCTYPE")
    status, text = ask(COUNTS, basic("token")) or (0, "")
    assert (status, text[:7]) == (200, '{"at": ')


def test_serve_has_the_page_if_asked(tmp_path: Path) -> None:
    """`pdc serve --dashboard` shows a storage that others write, behind its guards; without it the path is a 404."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Counter("http_requests", "Requests.", ["route", "status"], registry=None).labels("/", "200").inc()
    storage = pdc.config.DEFAULT.required()

    def ask(path: str, headers: dict[str, str], **options: Any) -> tuple[int, str]:
        app = serving._app(storage, Options(metrics_token="token", **options))
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            **{f"HTTP_{name}".upper(): text for name, text in headers.items()},
        }
        started: list[str] = []
        (body,) = app(environ, lambda status, *_: started.append(status))  # type: ignore[arg-type] # no server
        return int(started[0][:3]), body.decode()

    assert ask(PAGE, basic("token"))[0] == 404
    assert [ask(PAGE, headers, dashboard=True)[0] for headers in ({}, basic("token"))] == [401, 200]
    status, text = ask(f"/m{PAGE[8:]}", basic("token"), dashboard=True, metrics_path="/m")
    assert (status, text[:9]) == (200, "<!DOCTYPE")


@pytest.mark.parametrize("names", NAMES)
def test_requests_are_found_under_the_names_of_other_exporters(names: str, tmp_path: Path) -> None:
    """The counts have each request and exception once, and no body is taken for a request, whatever names metrics have."""
    app = flask.Flask(__name__)
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_FLUSH_INTERVAL=0, PDC_NAMES=names, PDC_SIZES=True)
    app.add_url_rule("/hello", view_func=lambda: flask.Response(str(1 // int(flask.request.args["by"]))))
    PrometheusMetrics(app)
    client = app.test_client()
    for by in (1, 1, 0):
        client.get(f"/hello?by={by}").close()
    found = counts_of()
    requests = [(failed, count) for _, route, failed, count in found["requests"] if "hello" in route]
    assert sorted(requests) == [(False, 2.0), (True, 1.0)]
    assert len(found["requests"]) == 2
    assert sum(buckets["+Inf"] for _, route, buckets in found["durations"] if "hello" in route) == 3.0
    assert sum(count for *_, count in found["exceptions"]) == 1.0
    assert {exception for _, exception, *_ in found["exceptions"]} <= {"ZeroDivisionError", ""}


def test_numbers_that_json_lacks_are_zero(tmp_path: Path) -> None:
    """Infinite counts and those that are no number do not break the page."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    counter = pdc.Counter("http_requests", "Requests.", ["route", "status"], registry=None)
    counter.labels("/", "200").inc(float("inf"))
    gauge = pdc.Gauge("http_requests_in_progress", "Requests.", ["worker"], registry=None)
    for worker in "ab":
        gauge.labels(worker).set(1e308)
    found = counts_of()
    assert [row[1:] for row in found["requests"]] == [["/", False, 0.0]]
    assert found["in_progress"] == 0.0


def test_pages_share_an_answer_that_is_costly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that occupied a processor for long is that of all open pages for a while, unless the storage is another one."""
    monkeypatch.setattr(counts, "COSTLY_SECONDS", 0.0)
    monkeypatch.setattr(counts, "SHARED", 1e6)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    counter = pdc.Counter("http_requests", "Requests.", ["route", "status"], registry=None)
    found = []
    for _ in range(2):
        counter.labels("/", "200").inc()
        found.append(counts_of())
    assert found[0] == found[1]
    pdc.setup(sqlite=tmp_path / "other.db")
    assert counts_of()["storage"].endswith("other.db")


def test_the_page_makes_no_html_of_texts() -> None:
    """The script has no means to turn the text of a label into HTML, and names no other server."""
    script = (Path(dashboard.__file__).parent / "browser" / "script.js").read_text(encoding="utf-8")
    script = script.replace('"http://www.w3.org/2000/svg"', "")
    assert [each for each in FORBIDDEN if each in script] == []
