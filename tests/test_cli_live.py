"""The commands that stay: a server of scrapes, and a live view."""

from __future__ import annotations

import http.client
import math
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import commands
import flask
import pytest
from commands import COMMAND, ENVIRON, Pdc, Terminal, place
from conftest import RedisServer
from messages import PROTOBUF, rows
from prometheus_client import CollectorRegistry

import pdc
from pdc.cli.rates import Moment, Rates, in_progress
from pdc.cli.top import keep
from pdc.exposition import start_server, stop_server
from pdc.options import NAMES
from pdc_flask import PrometheusMetrics

command, shop, terminal = commands.command, commands.shop, commands.terminal


class Server:
    """A process of `pdc serve` on a free port."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", *arguments],
            env={**ENVIRON, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.first_line = self.process.stderr.readline()
        found = re.search(r"://127.0.0.1:(\d+)/", self.first_line)
        if found is None:
            self.close()
            pytest.fail(f"expected the address of the server, got {self.first_line!r}")
        self.port = int(found[1])

    def get(self, path: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, str]:
        """The status and the body of the answer."""
        if context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        status, body = response.status, response.read().decode()
        connection.close()
        return status, body

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; return the exit code, and what it wrote."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        return self.process.wait(20), self.process.stderr.read()

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers."""
    started: list[Server] = []

    def start(*arguments: str, **environ: str) -> Server:
        started.append(Server(*arguments, **environ))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_serve_shows_what_others_count(shop: dict[str, Any], serve: Callable[..., Server]) -> None:
    """A server without metrics of its own shows those of the storage, needs the token, and writes nothing; SIGTERM ends it."""
    storage = pdc.config.DEFAULT.required()
    pdc.config.DEFAULT._flusher._next_beat = math.inf  # this process renews nothing
    before = storage.read().metrics
    server = serve(*place(shop), PDC_METRICS_TOKEN="secret", PDC_ENABLED="false")  # which is for programs that count
    assert re.search(r"pdc: (SQLite|Redis) .* is on http://127.0.0.1:\d+/metrics\n", server.first_line)
    status, text = server.get("/metrics", Authorization="Bearer secret")
    assert (status, 'orders_total{till="2"} 40.0' in text) == (200, True)
    assert "pdc_storage_up 1.0" in text
    accepted = {"Accept": PROTOBUF, "Authorization": "Bearer secret"}
    with urlopen(Request(f"http://127.0.0.1:{server.port}/metrics", headers=accepted), timeout=20) as answer:
        assert ("orders_total", (("till", "2"),), "value", "40.0") in rows(answer.read())
    assert server.get("/metrics")[0] == server.get("/metrics", Authorization="Bearer sécret")[0] == 401
    assert server.get("/healthz") == (200, "# the storage can be read\n")
    assert server.get("/")[0] == 404
    assert server.end() == (0, "")
    assert storage.read().metrics == before


def test_serve_says_that_there_is_no_file_yet(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """A mistyped path is named at the start: a program that counts may also begin later."""
    server = serve("--sqlite", str(tmp_path / "mistyped.db"))
    assert server.get("/metrics")[0] == 503
    assert f"there is no file {tmp_path}/mistyped.db yet: pages are a 503" in server.end()[1]


def test_serve_reports_a_storage_that_is_gone(own_redis_server: RedisServer, serve: Callable[..., Server]) -> None:
    """While the storage cannot be read, health and metrics are 503 with the reason; then they are back. Ctrl-C ends it."""
    pdc.setup(redis=own_redis_server.url)
    counter = pdc.Counter("orders", "Orders.", registry=None)
    counter.inc()
    own_redis_server.stop()
    server = serve("--redis", own_redis_server.url, PDC_METRICS_TOKEN="secret")
    for path in ("/healthz", "/metrics"):
        status, text = server.get(path, Authorization="Bearer secret")
        assert status == 503
        assert "Connection refused" in text
    assert server.get("/healthz") == (503, "# the storage cannot be read\n")
    own_redis_server.start()
    assert server.get("/healthz")[0] == 200
    pdc.flush()
    counter.inc()
    assert "orders_total" in server.get("/metrics", Authorization="Bearer secret")[1]
    code, errors = server.end(signal.SIGINT)
    assert (code, "Traceback" in errors) == (0, False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    about = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    subprocess.run([*request, *about], check=True, capture_output=True)
    return files


def test_serve_speaks_tls(tmp_path: Path, certificate: tuple[str, str], serve: Callable[..., Server]) -> None:
    """With a certificate the server speaks TLS. A line of the log names a guard that it does not have."""
    certfile, keyfile = certificate
    files = "--certfile", certfile, "--keyfile", keyfile
    server = serve("--sqlite", str(tmp_path / "m.db"), *files, PDC_METRICS_DECORATOR="shop.login_required")
    assert "https://" in server.first_line
    assert server.get("/healthz", context=ssl.create_default_context(cafile=certfile))[0] == 200
    assert "every client may read the metrics on PDC_METRICS_PORT: PDC_METRICS_DECORATOR guards only" in server.end()[1]


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_serve_refuses_what_it_cannot_use(command: Pdc, tmp_path: Path) -> None:
    """A port in use, with its remedy, files without a certificate and an empty token are one line each."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("serve", "--host", "127.0.0.1", "--port", port)
        assert done.errors.startswith(f"pdc: metrics cannot be served on 127.0.0.1:{port}: Address already in use; choose")
        assert (done.code, "another --host or --port" in done.errors) == (1, True)
    (tmp_path / "no.pem").write_text("no certificate")
    done = command("serve", "--certfile", "no.pem")
    assert (done.code, "expected a certificate and its key in no.pem" in done.errors) == (1, True)
    assert command("serve", "--keyfile", "no.pem").code == command("serve", "--token", " ").code == 2


def test_a_server_that_stops_answers_first() -> None:
    """A server that stops refuses new connections, and waits for the answer to a request that it has."""
    begun, may_end = threading.Event(), threading.Event()

    def slow(_: Any, start_response: Any) -> list[bytes]:
        begun.set()
        may_end.wait(10)
        start_response("200 OK", [])
        return [b"done"]

    server, _ = start_server(slow, 0, "127.0.0.1")
    idle = socket.create_connection(("127.0.0.1", server.server_port))
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", "/")
    assert begun.wait(10)
    stopping = threading.Thread(target=stop_server, args=(server, 10.0))
    stopping.start()
    time.sleep(0.1)
    assert stopping.is_alive()
    may_end.set()
    assert connection.getresponse().read() == b"done"
    stopping.join(10)
    assert not stopping.is_alive()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.server_port))
    connection.close()
    idle.close()


def requests(registry: CollectorRegistry) -> Callable[[str, str, float], None]:
    """A function that counts a request with that route, status and duration."""
    labels = ["method", "route", "status"]
    count = pdc.Counter("http_requests", "Requests.", labels, namespace="shop", registry=registry)
    times = pdc.Histogram("http_request_duration_seconds", "Time.", labels, namespace="shop", buckets=(1, 2), registry=registry)

    def answer(route: str, status: str, seconds: float) -> None:
        count.labels("GET", route, status).inc()
        times.labels("GET", route, status).observe(seconds)

    return answer


def test_rates_are_of_the_time_between_two_reads(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Each route has its rate, its part of errors and its quantiles, of that time alone; other counters have rates, too."""
    pdc.setup(**storage)
    answer = requests(registry)
    jobs = pdc.Summary("jobs", "Jobs.", ["queue"], registry=registry)
    answer("/", "200", 9.0)
    read = pdc.config.DEFAULT.required().read
    before = Moment.of(read())
    for status in ("200", "200", "200", "500"):
        answer("/", status, 0.5)
    answer("/new", "200", 1.5)
    jobs.labels("mail").observe(4)
    now = Moment.of(read())
    rates = Rates(before._replace(at=now.at - 2), now)
    first, second = rates.routes()
    assert first == ("/", 2.0, 0.25, (0.5, 0.95, 0.99))
    assert (second.route, second.rate, second.errors) == ("/new", 0.5, 0.0)
    assert rates.others() == [('jobs{queue="mail"}', 0.5, 4.0)]


def test_moments_are_kept_for_the_window() -> None:
    """Those that are too old go, and all that are later by a clock that was set back."""
    moments: deque[Moment] = deque()
    found = []
    for at in (100.0, 108.0, 116.0, 124.0, 50.0, 52.0):
        keep(moments, Moment(at, {}, {}))
        found.append([each.at for each in moments])
    assert found[-3:] == [[108.0, 116.0, 124.0], [50.0], [50.0, 52.0]]


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_quantiles_are_of_histograms_with_other_bounds(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Programs that share a storage may have other buckets: the quantiles of a route of both stay within these."""
    pdc.setup(**storage)
    read = pdc.config.DEFAULT.required().read
    before = Moment.of(read())
    pdc.Counter("cart_requests", "Requests.", ["route", "status"], registry=registry).labels("/", "200").inc()
    for name, bounds, seconds in (("cart", (0.1, 0.5), 0.05), ("shop", (1, 2.5, 5, 10), 4)):
        metric = pdc.Histogram(f"{name}_request_duration_seconds", "Durations.", ["route"], buckets=bounds, registry=registry)
        for _ in range(100):
            metric.labels("/").observe(seconds)
    (row,) = Rates(before, Moment.of(read())).routes()
    assert row.quantiles == pytest.approx((0.1, 4.75, 4.95))


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_quantiles_are_of_native_buckets_of_that_time(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A native histogram may show new bounds between older ones: quantiles are in the bucket of what was observed since."""
    pdc.setup(**storage)
    read = pdc.config.DEFAULT.required().read
    requests = pdc.Counter("requests", "Requests.", ["route", "status"], registry=registry)
    times = pdc.Histogram("request_seconds_duration", "Durations.", ["route"], buckets=(), native=True, registry=registry)
    for _ in range(100):
        times.labels("/").observe(0.05)
    before = Moment.of(read())
    requests.labels("/", "200").inc()
    times.labels("/").observe(0.4)
    (row,) = Rates(before, Moment.of(read())).routes()
    low, high = 2 ** (-11 / 8), 2 ** (-10 / 8)
    assert row.quantiles == pytest.approx([low + each * (high - low) for each in (0.5, 0.95, 0.99)])


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_rates_are_found_under_the_names_of_other_exporters(storage: dict[str, Any], names: str) -> None:
    """An application has its routes, errors, latencies and requests in progress whatever names its metrics have."""
    app = flask.Flask(__name__)
    app.config.update(PDC_SQLITE_PATH=storage["sqlite"], PDC_FLUSH_INTERVAL=0, PDC_NAMES=names)
    app.add_url_rule("/hello", view_func=lambda: ("", 500))
    PrometheusMetrics(app)
    client = app.test_client()
    read = pdc.config.DEFAULT.required().read
    client.get("/hello").close()
    before = Moment.of(read())
    client.get("/hello").close()
    now = Moment.of(read())
    (row,) = Rates(before._replace(at=now.at - 1), now).routes()
    assert (row.rate, row.errors, row.quantiles[0] > 0) == (1.0, 1.0, True)
    assert "hello" in row.route
    assert in_progress(now) in (0.0, None)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_top_shows_rates_until_q(
    storage: dict[str, Any], registry: CollectorRegistry, terminal: Callable[..., Terminal]
) -> None:
    """The view shows routes and processes, and its width is that of the terminal; q gives the terminal back as it was."""
    pdc.setup(**storage)
    answer = requests(registry)
    answer("/", "200", 0.5)
    watched = terminal("top", "--interval", "0.1", *place(storage), columns=60, lines=12)
    watched.wait_for("1 process alive")
    for _ in range(20):
        answer("/", "500", 0.5)
    text = watched.wait_for("100.0%")
    assert re.search(r"Route +Requests/s +Errors +p50 +p95 +p99", text)
    watched.type("xq")
    assert watched.end() == 0
    assert watched.is_as_before()
    assert "Traceback" not in watched.plain


def test_top_goes_on_while_marks_cannot_be_read(tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """A failure to read the marks of writers, which are read after the rest, is shown with its reason, too."""
    path = tmp_path / "metrics.db"
    pdc.setup(sqlite=path)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    watched = terminal("top", "--interval", "0.1", "--sqlite", str(path))
    watched.wait_for("1 process alive")
    change = "INSERT INTO pdc_metrics VALUES ('orders', '#mark:' || CAST(x'ff' AS TEXT), '')"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    watched.wait_for("metric 'orders'")
    pdc.clear()
    pdc.Counter("more_orders", "Orders.", registry=None).inc()
    watched.forget()
    watched.wait_for("1 process alive")
    watched.type("q")
    assert watched.end() == 0


def test_top_goes_on_while_the_storage_is_down(own_redis_server: RedisServer, terminal: Callable[..., Terminal]) -> None:
    """An outage is shown with its reason, and the view goes on after it; Ctrl-C ends it, too, and SIGTERM."""
    pdc.setup(redis=own_redis_server.url)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    watched = terminal("top", "--interval", "0.1", "--redis", own_redis_server.url)
    watched.wait_for("read in")
    own_redis_server.stop()
    watched.wait_for("failed: ConnectionError")
    own_redis_server.start()
    watched.forget()
    watched.wait_for("read in")
    assert watched.interrupt() == 130
    assert watched.is_as_before()
    watched = terminal("top", "--redis", own_redis_server.url)
    watched.wait_for("read in")
    watched.process.terminate()
    assert watched.end() == 128 + signal.SIGTERM
    assert watched.is_as_before()
