"""The page of PDC_DASHBOARD in a real browser: its numbers, its safety, and that everybody can use it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flask
import http_applications
import pytest
from browser import Browser, Clock
from conftest import RedisServer
from http_applications import Make, over_wsgi, uvicorn_server
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import WSGIRequestHandler, make_server

import pdc
from pdc.cli import serve as serving
from pdc.cli.words import quantile
from pdc.dashboard import counts
from pdc.http import HTTPMetrics
from pdc.options import Options
from pdc_flask import PrometheusMetrics

pytestmark = pytest.mark.long
make = http_applications.make  # pytest finds the fixture by its name here

HOSTILE = (
    """</td></script><img src=x onerror="window.broken=1"><svg onload='window.broken=1'>"'&amp;\u202e"""
    "<script>window.broken=1</script>"
)
CONTRAST = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map((part) => linear(part / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${walker.currentNode.data.trim()} ${ratio}`);
  }
  return poor;
})()
"""
"""The texts of the page whose contrast is below that of level AA."""
OUTLINED = """
[document.activeElement, document.activeElement.closest("label")]
  .some((each) => each && getComputedStyle(each).outlineWidth === "3px")
"""
"""True where the focus can be seen."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of this module."""
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def browser(opened: Browser) -> Browser:
    """The browser, of which nothing has happened yet."""
    opened.open("about:blank")
    opened.prefer()
    opened.params()
    opened.events.clear()
    return opened


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the storage."""
    clock = Clock()
    monkeypatch.setattr(counts, "read_storage", clock.read)
    return clock


class Silent(WSGIRequestHandler):
    """A handler that logs no requests."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - Werkzeug's name
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve an application from a thread, and return its address."""
    servers = []

    def serving(app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serving
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def shop(tmp_path: Path) -> flask.Flask:
    """An application with the page."""
    app = flask.Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_FLUSH_INTERVAL=0, PDC_DASHBOARD=True)
    app.add_url_rule("/items/<name>", "items", lambda name: name)
    app.add_url_rule("/orders", "orders", lambda: ("", 500))
    PrometheusMetrics(app)
    return app


def poll(browser: Browser, clock: Clock, seconds: float = 10.0) -> None:
    """Let the clock advance, and let the page ask once more by its own button."""
    clock.now += seconds
    browser.run("$('pause').click()")
    browser.wait_for(f"before?.at === {clock.now}")
    browser.run("$('pause').click()")


def opened_page(browser: Browser, address: str) -> None:
    """Open the page, and pause it once it has the first counts."""
    browser.open(address)
    browser.wait_for("document.readyState === 'complete' && typeof before !== 'undefined' && before !== null")
    browser.run("$('pause').click()")


def row(browser: Browser, route: str) -> list[str]:
    """The texts of the row of a route."""
    found: list[str] = browser.run(
        f"[...document.querySelectorAll('#routes tr')].filter((row) => row.dataset.key === {json.dumps(route)})"
        ".flatMap((row) => [...row.children].map((cell) => cell.textContent))"
    )
    return found


def growth(before: dict[str, float], route: str) -> list[tuple[float, float]]:
    """The growth of the buckets of a route."""
    return [
        (float(bound), value - before.get(bound, 0.0))
        for _, shown, buckets in json.loads(counts.counts())["durations"]
        for bound, value in buckets.items()
        if shown == route
    ]


def test_rates_and_quantiles_are_those_of_the_requests(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask
) -> None:
    """After 40 requests within 10 s, of which ten failed, the page has these numbers, and the quantiles of `pdc top`."""
    client = shop.test_client()
    for _ in range(7):
        client.get("/items/tea").close()
    before = {bound: value for _, _, buckets in json.loads(counts.counts())["durations"] for bound, value in buckets.items()}
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    for path in ["/items/tea"] * 30 + ["/orders"] * 10:
        client.get(path).close()
    poll(browser, clock)
    assert (browser.text("#rate"), browser.text("#errors"), browser.text("#exceptions")) == ("4.00", "25.0%", "0")
    assert row(browser, "/items/<name>")[2:4] == ["3.00", "0%"]
    assert row(browser, "/orders")[2:4] == ["1.00", "100.0%"]
    for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        expected = quantile(part, growth(before, "/items/<name>"))
        shown = browser.run(f"rowOf(sum(steps).routes.get('/items/<name>'), 10).{name}")
        assert shown == pytest.approx(expected)
        assert browser.run(f"time({expected})") in row(browser, "/items/<name>")
    poll(browser, clock)
    assert browser.text("#rate") == "2.00"  # of 20 s
    poll(browser, clock, 300)
    assert browser.text("#rate") == "0"
    assert browser.text("#routes-note") == "No requests in this time."
    assert browser.complaints() == []
    asked = {each["request"]["url"].partition("?")[0] for each in browser.params("Network.requestWillBeSent")}
    assert {url.partition("/metrics/dashboard")[2] for url in asked if not url.startswith("data:")} == {""}


def test_a_counter_that_begins_again_is_no_leap(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask
) -> None:
    """Series that go take nothing from others, and one that begins again counts from 0."""
    metric = pdc.Counter("cart_requests", "Requests.", ["route", "status"], registry=None)
    for status, count in (("200", 1000), ("404", 50)):
        metric.labels("/cart", status).inc(count)
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    metric.remove("/cart", "404")
    metric.remove("/cart", "200")
    metric.labels("/cart", "200").inc(20)
    poll(browser, clock)
    assert row(browser, "/cart")[2] == "2.00"


def test_a_step_longer_than_the_time_is_left_out_of_it(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask
) -> None:
    """After hours in a hidden tab the next numbers are of the chosen time, and no step of a clock that was set back stays."""
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    shop.test_client().get("/items/tea").close()
    poll(browser, clock, 7200)
    assert browser.text("#routes-caption").startswith("Requests of the last 2 h by route")
    poll(browser, clock)
    assert browser.text("#routes-caption").startswith("Requests of the last 10 s by route")
    poll(browser, clock, -3600)
    assert browser.run("steps.length") == 0
    poll(browser, clock)
    assert browser.run("steps.map((step) => step.seconds)") == [10]


def test_histograms_with_other_bounds_add_up(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask
) -> None:
    """Programs that share a storage may have other buckets: the quantiles of all requests stay within those."""
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    for name, bounds, seconds in (("cart", (0.1, 0.5), 0.05), ("shop", (1, 2.5, 5, 10), 4)):
        metric = pdc.Histogram(f"{name}_request_duration_seconds", "Durations.", ["route"], buckets=bounds, registry=None)
        for _ in range(100):
            metric.labels("/").observe(seconds)
    poll(browser, clock)
    assert browser.run("['p50', 'p90'].map((name) => rowOfAll(sum(steps))[name])") == [0.1, 4.5]


def test_new_bounds_of_native_histograms_have_no_older_observations(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask
) -> None:
    """A native histogram may show new bounds between older ones: quantiles are in the bucket of what was observed since."""
    metric = pdc.Histogram("cart_request_duration_seconds", "Durations.", ["route"], buckets=(), native=True, registry=None)
    for _ in range(100):
        metric.labels("/").observe(0.05)
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    metric.labels("/").observe(0.4)
    poll(browser, clock)
    low, high = 2 ** (-11 / 8), 2 ** (-10 / 8)
    found = browser.run("['p50', 'p90'].map((name) => rowOfAll(sum(steps))[name])")
    assert found == pytest.approx([low + each * (high - low) for each in (0.5, 0.9)])


def test_a_path_with_two_slashes_leads_nowhere_else(browser: Browser, serve: Callable[[Any], str], tmp_path: Path) -> None:
    """An address of this server whose path looks like another server gets its counts, and no link to that server."""
    metrics = HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), dashboard=True))
    address = serve(metrics._serve)
    opened_page(browser, f"{address}//other.invalid/dashboard")
    assert browser.run("$('metrics').href") == f"{address}//other.invalid"
    assert browser.complaints() == []


def test_hostile_labels_are_texts(browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask) -> None:
    """Routes and exceptions that are HTML are shown as they are, and nothing of them runs."""
    requests = pdc.Counter("cart_requests", "Requests.", ["route", "status"], registry=None)
    raised = pdc.Counter("cart_exceptions", "Exceptions.", ["route", "exception"], registry=None)
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    for route in (HOSTILE, "__proto__", "constructor", ""):
        requests.labels(route, "200").inc(10)
        raised.labels(route, HOSTILE).inc()
    poll(browser, clock)
    routes = browser.run("[...document.querySelectorAll('#routes th')].map((cell) => cell.textContent)")
    assert sorted(routes) == sorted([HOSTILE, "__proto__", "constructor", "(no route)"])
    assert browser.run("[...document.querySelectorAll('#raised th')].map((cell) => cell.textContent)") == [HOSTILE] * 4
    assert browser.run("[window.broken, document.images.length, document.scripts.length]") == [None, 0, 1]
    assert browser.complaints() == []


def test_the_policy_of_the_page_holds(browser: Browser, serve: Callable[[Any], str], shop: flask.Flask) -> None:
    """The browser runs no other script, turns no text into HTML, and asks no other server, whatever a script wants."""
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    attempts = {
        "document.body.innerHTML = '<b>'": "TrustedHTML",
        "eval('1')": "Evaluating a string|unsafe-eval|TrustedScript",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.broken = 1'}))": "TrustedScript",
    }
    for attempt, reason in attempts.items():
        told = browser.run(f"(() => {{ try {{ {attempt} }} catch (error) {{ return String(error) }} return 'done' }})()")
        assert any(each in told for each in reason.split("|")), told
    refused = browser.run("fetch('http://127.0.0.1:9/').then(() => 'answered', (error) => String(error))")
    assert "Failed to fetch" in refused
    assert browser.run("window.broken") is None
    assert any("Content Security Policy" in each for each in browser.complaints())


def test_an_outage_is_shown_and_ends(browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask) -> None:
    """A 503 shows its reason as text and keeps the numbers; the next answer goes on."""
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    shop.test_client().get("/items/tea").close()
    poll(browser, clock)
    clock.is_down = True
    browser.run("$('pause').click()")
    browser.wait_for("$('state').parentElement.className === 'status down'")
    told = browser.text("#state")
    assert told == "The storage cannot be read: reading SQLite failed: <b>disk</b> on fire; trying again"
    assert (browser.text("#reached"), browser.text("#rate")) == ("failed", "0.100")
    clock.is_down, clock.now = False, clock.now + 10
    browser.run("poll()")
    browser.wait_for("$('state').textContent === 'Live'")
    assert browser.text("#rate") == "0.0500"


def test_a_password_and_a_prefix_are_no_obstacle(browser: Browser, serve: Callable[[Any], str], tmp_path: Path) -> None:
    """Below a prefix, with a token as the password in the address, the page gets its counts."""
    app = flask.Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "m.db"), PDC_FLUSH_INTERVAL=0, PDC_DASHBOARD=True, PDC_METRICS_TOKEN="t")
    PrometheusMetrics(app)
    address = serve(DispatcherMiddleware(flask.Flask("outer"), {"/outer": app}))
    opened_page(browser, f"{address.replace('//', '//ann:t@')}/outer/metrics/dashboard?theirs=1")
    assert browser.run("$('metrics').href").endswith("/outer/metrics")
    urls = [each["request"]["url"] for each in browser.params("Network.requestWillBeSent")]
    assert f"{address}/outer/metrics/dashboard?theirs=1&counts=" in urls


def test_everybody_can_use_the_page(browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask) -> None:
    """Keys reach and work all controls, tables have names and sorted columns, and only a new state is announced."""
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    client = shop.test_client()
    for path in ("/items/tea", "/items/tea", "/orders"):
        client.get(path).close()
    poll(browser, clock)
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(11):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(
            browser.run("document.activeElement.name || document.activeElement.id || document.activeElement.textContent")
        )
        assert browser.run(OUTLINED)
    assert reached == ["window", "pause", "filter", "Route", "Req/s", "Errors", "p50", "p90", "p99", "metrics", reached[-1]]
    browser.run("document.querySelector('[data-sort=key]').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert browser.run("[...document.querySelectorAll('#routes tr')].map((row) => row.dataset.key)") == [
        "/items/<name>",
        "/orders",
    ]
    assert browser.run("[...document.querySelectorAll('[aria-sort]')].map((head) => head.ariaSort + head.innerText)") == [
        "ascendingRoute"
    ]
    assert browser.run("[...document.querySelectorAll('[aria-live], [role=status]')].map((each) => each.id)") == ["state"]
    browser.run("$('filter').value = 'ORD'; $('filter').dispatchEvent(new Event('input'))")
    assert browser.run("[...document.querySelectorAll('#routes tr')].map((row) => row.dataset.key)") == ["/orders"]
    for width in (1280, 390):
        browser.prefer(width=width)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        tables = [node["name"]["value"] for node in nodes if node["role"]["value"] == "table" and not node["ignored"]]
        assert [name.partition(" of the last")[0] for name in tables] == ["Requests", "Exceptions"]
        heads = [node["name"]["value"] for node in nodes if node["role"]["value"] == "columnheader" and not node["ignored"]]
        assert [name.strip(" ↕↑↓") for name in heads if name != "Trend"][:6] == [
            "Route",
            "Req/s",
            "Errors",
            "p50",
            "p90",
            "p99",
        ]
        assert [node["name"]["value"] for node in nodes if node["role"]["value"] == "rowheader"] == ["/orders"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable(
    browser: Browser, clock: Clock, serve: Callable[[Any], str], shop: flask.Flask, scheme: str
) -> None:
    """All texts have the contrast of level AA, nothing moves by itself, and 320 pixels are wide enough."""
    browser.prefer(scheme)
    opened_page(browser, f"{serve(shop)}/metrics/dashboard")
    pdc.Counter("cart_requests", "Requests.", ["route", "status"], registry=None).labels("/" + "long" * 50, "500").inc()
    pdc.Counter("cart_exceptions", "Exceptions.", ["route", "exception"], registry=None).labels(
        "/" + "long" * 50, "E" * 99
    ).inc()
    poll(browser, clock)
    assert browser.run(CONTRAST) == []
    clock.is_down = True
    browser.run("$('pause').click()")
    browser.wait_for("$('state').parentElement.className === 'status down'")
    assert browser.run(CONTRAST) == []
    assert browser.run("document.getAnimations().length") == 0
    for width in (1280, 390, 320):
        browser.prefer(scheme, width)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_hidden_tab_asks_nothing(browser: Browser, serve: Callable[[Any], str], shop: flask.Flask) -> None:
    """A tab that nobody sees sends no requests, and asks at once when it is seen again."""
    browser.open(f"{serve(shop)}/metrics/dashboard")
    browser.wait_for("typeof before !== 'undefined' && before !== null")
    hide = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    browser.run("globalThis.asked = 0; const ask = fetch; fetch = (...all) => { asked += 1; return ask(...all); }; 0")
    browser.run(hide % "true")
    assert browser.run("new Promise((done) => setTimeout(() => done(asked), 2500))") == 0
    browser.run(hide % "false")
    browser.wait_for("asked === 1")


def test_a_login_that_has_ended_is_shown(browser: Browser, serve: Callable[[Any], str], tmp_path: Path) -> None:
    """Where a decorator sends the browser to its login, the page follows nowhere and asks for a reload."""
    ended: list[bool] = []

    def for_staff(view: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **values: flask.redirect("/login") if ended else view(**values)

    app = flask.Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "m.db"), PDC_DASHBOARD=True, PDC_METRICS_DECORATOR=for_staff)
    asked: list[str] = []

    @app.get("/login")
    def login() -> str:
        asked.append("login")
        return "log in"

    PrometheusMetrics(app)
    opened_page(browser, f"{serve(app)}/metrics/dashboard")
    ended.append(True)
    browser.run("$('pause').click()")
    browser.wait_for("$('state').parentElement.className === 'status down'")
    assert browser.text("#state") == "The server no longer shows you metrics, reload the page; trying again"
    assert asked == []


def test_the_page_lives_in_every_framework(browser: Browser, serve: Callable[[Any], str], make: Make) -> None:
    """Below a prefix of a real server, the page of each framework gets counts, and the browser complains about nothing."""
    app = make(dashboard=True)
    assert app.get("/items/tea", 3) == 200
    app.mount("/outer")
    with ExitStack() as stack:
        is_wsgi = type(app).send is over_wsgi
        address = serve(app.app) if is_wsgi else f"http://127.0.0.1:{stack.enter_context(uvicorn_server(app.app))}"
        opened_page(browser, f"{address}/outer/metrics/dashboard")
        assert browser.run("[...before.requests.values()].map(([, , count]) => count)") == [3]
        assert browser.text("#state") == "Paused"
        browser.open("about:blank")
    assert browser.complaints() == []


def test_serve_shows_an_outage_of_redis(browser: Browser, serve: Callable[[Any], str], own_redis_server: RedisServer) -> None:
    """The page of `pdc serve` gives the reason while Redis is down, and is live again afterwards."""
    pdc.setup(redis=own_redis_server.url)
    metric = pdc.Counter("cart_requests", "Requests.", ["route", "status"], registry=None)
    metric.labels("/cart", "200").inc()
    opened_page(browser, serve(serving._app(pdc.config.DEFAULT.required(), Options(dashboard=True))) + "/metrics/dashboard")
    own_redis_server.stop()
    browser.run("$('pause').click()")
    browser.wait_for("$('state').parentElement.className === 'status down'")
    assert re.match("The storage cannot be read: .*ConnectionError.*; trying again", browser.text("#state"), re.DOTALL)
    own_redis_server.start()
    metric.labels("/cart", "200").inc()
    browser.wait_for("$('state').textContent === 'Live'")
