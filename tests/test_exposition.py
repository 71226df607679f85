"""Scrapes: their content, their format, and the servers."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import inspect
import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import prometheus_client
import pytest
import trio
from conftest import ROOT, RedisServer, free_port, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

import pdc
import pdc.sqlite
from pdc.exposition import Port, Scrape, server
from pdc.exposition import collect as pdc_collect
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

TEXT = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8; escaping="
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping="
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "text/plain;version=1.0.0;escaping=underscores;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.2"
)
ALLOWED = "GET, HEAD, OPTIONS"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


class Answer(NamedTuple):
    """The answer that a client got."""

    status: int
    headers: dict[str, str]
    body: bytes


Client = Callable[..., Answer]
"""Sends a method, a query and headers to `/metrics` of an app that serves the registry."""


def over_wsgi(registry: Collector, method: str, query: str, headers: Mapping[str, str]) -> Answer:
    """Ask the WSGI app, through the validator of the standard library."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": "/metrics", "QUERY_STRING": query}
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], object]:
        started.append((int(status.split()[0]), {name.lower(): value for name, value in headers}))
        return lambda _: None

    chunks = validator(pdc.make_wsgi_app(registry))(environ, start_response)
    body = b"".join(chunks)
    chunks.close()  # type: ignore[attr-defined]  # WSGI types have no close
    ((status, answered),) = started
    return Answer(status, answered, body)


def over_asgi(registry: Collector, method: str, query: str, headers: Mapping[str, str]) -> Answer:
    """Ask the ASGI app."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/metrics", "query_string": query.encode(), "headers": raw}
    start, *bodies = run_asgi(registry, scope, [{"type": "http.request", "body": b"", "more_body": False}])
    assert [start["type"], *(body["type"] for body in bodies)] == ["http.response.start", "http.response.body"]
    answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], answered, bodies[0]["body"])


def run_asgi(registry: Collector, scope: dict[str, Any], events: list[dict[str, Any]]) -> list[Any]:
    """Call the ASGI app with these events, and return its messages."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(pdc.make_asgi_app(registry)(scope, receive, send))  # type: ignore[arg-type]  # a scope is any mapping
    return sent


def over_http(registry: Collector, method: str, query: str, headers: Mapping[str, str]) -> Answer:
    """Ask the HTTP server."""
    with serving(registry=registry) as port:
        return ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), method, query, headers)


class serving:  # noqa: N801  a context manager, used as a function
    """Run `start_http_server` on a free port, which `with` gives."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def __enter__(self) -> int:
        self._server, self._thread = pdc.start_http_server(0, "127.0.0.1", **self._options)
        return int(self._server.server_port)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def ask(
    connection: http.client.HTTPConnection, method: str = "GET", query: str = "", headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request and close the connection."""
    try:
        connection.request(method, f"/metrics?{query}", headers={"Accept-Encoding": "identity", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


@pytest.fixture(params=[over_wsgi, over_asgi, over_http])
def client(request: pytest.FixtureRequest, registry: CollectorRegistry) -> Client:
    """A client of each kind of server."""

    def scrape(method: str = "GET", query: str = "", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer: Answer = request.param(registry, method, query, named)
        return answer

    return scrape


@pytest.fixture
def counted(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Count in a counter and a gauge in SQLite."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Counter("sales", "Help", ["path"], registry=registry).labels("/").inc(2)
    pdc.Gauge("stock", "Help", registry=registry).set(7)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        ("text/plain", TEXT),
        ("text/plain; version=0.0.4", TEXT),
        (BROWSER, TEXT),
        ("image/png", TEXT),
        (",;,=;q", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        (PROMETHEUS_2, OPENMETRICS + "underscores"),
        (PROMETHEUS_3, OPENMETRICS + "allow-utf-8"),
        (PROMETHEUS_3_PROTOBUF, TEXT_1 + "underscores"),
        ("application/openmetrics-text", OPENMETRICS + "underscores"),
        ('Application/OpenMetrics-Text; Version="1.0.0"; Escaping=dots', OPENMETRICS + "dots"),
        ("application/openmetrics-text;q=0.4, text/plain;version=1.0.0;q=0.5", TEXT_1 + "underscores"),
        ("text/plain;q=0.3, application/openmetrics-text;version=1.0.0;q=0.5", OPENMETRICS + "underscores"),
        ("text/plain;version=1.0.0;escaping=values", TEXT_1 + "values"),
        ("text/plain;version=1.0.0;escaping=unknown", TEXT_1 + "underscores"),
        ("*/*, application/openmetrics-text;q=0.9", TEXT),
    ],
)
def test_accept_chooses_format_and_escaping(
    tmp_path: Path, registry: CollectorRegistry, accept: str, content_type: str
) -> None:
    """The best format that the client accepts is served, as prometheus_client renders it; else text 0.0.4."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Gauge("dotted.name", "Help", ["é"], registry=registry).labels("\n").set(1)
    answer = Scrape(accept=accept).answer()
    assert dict(answer.headers)["Content-Type"] == content_type
    encode = openmetrics if "openmetrics" in content_type else prometheus_client.generate_latest
    options = {"escaping": content_type.rpartition("escaping=")[2]} if "escaping" in content_type else {}
    (rendered,) = (family for family in encode(registry, **options).split(b"# HELP ") if family)
    assert rendered.removesuffix(b"# EOF\n") in answer.body
    assert answer.body.endswith(b"# EOF\n") == ("openmetrics" in content_type)


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [
        ("gzip", True),
        ("GZIP;q=0.5, identity", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("br, zstd", False),
        ("gzip;q=x", False),
    ],
)
@pytest.mark.usefixtures("counted")
def test_accept_encoding_chooses_gzip(accept_encoding: str, compressed: bool) -> None:
    """Metrics are compressed for clients that accept gzip, and `Vary` names the header that decided."""
    answer = Scrape(accept_encoding=accept_encoding).answer()
    headers = dict(answer.headers)
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert headers["Content-Length"] == str(len(answer.body))
    assert (headers.get("Content-Encoding") == "gzip") is compressed
    assert b'sales_total{path="/"} 2.0\n' in (gzip.decompress(answer.body) if compressed else answer.body)


@pytest.mark.usefixtures("counted")
def test_every_server_answers_what_the_client_asks(client: Client) -> None:
    """Servers pass on the client's Accept headers and sample names, and every header of the answer."""
    answer = client(query="name[]=stock", Accept=PROMETHEUS_2, Accept_Encoding="gzip")
    assert answer.status == 200
    assert gzip.decompress(answer.body) == b"# HELP stock Help\n# TYPE stock gauge\nstock 7.0\n# EOF\n"
    expected = {"content-type": OPENMETRICS + "underscores", "content-encoding": "gzip", "vary": "Accept, Accept-Encoding"}
    assert expected.items() <= answer.headers.items()
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.usefixtures("counted")
def test_compression_can_be_disabled(registry: CollectorRegistry) -> None:
    """`disable_compression` sends plain text also to clients that accept gzip."""
    environ: dict[str, Any] = {"HTTP_ACCEPT_ENCODING": "gzip"}
    setup_testing_defaults(environ)
    app = pdc.make_wsgi_app(registry, disable_compression=True)
    assert b"sales_total" in b"".join(app(environ, lambda *_: lambda _: None))


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {"sales_total", "sales_created", "stock"}),
        ("name[]=", {"sales_total", "sales_created", "stock"}),
        ("name[]=stock", {"stock"}),
        ("name%5B%5D=sales_total&name[]=stock&name[]=unknown", {"sales_total", "stock"}),
        ("name[]=unknown", set()),
        ("name[]=sales", set()),
    ],
)
@pytest.mark.usefixtures("counted")
def test_names_choose_samples(query: str, shown: set[str]) -> None:
    """With `name[]` only the samples of these names are shown, and no family without such samples."""
    answer = Scrape(query=query, accept="application/openmetrics-text").answer()
    families = [family for family in text_string_to_metric_families(answer.body.decode()) if not family.name.startswith("pdc")]
    assert all(family.samples for family in families)
    assert {sample.name for family in families for sample in family.samples} == shown


def headers_of(*words: str) -> st.SearchStrategy[str]:
    """Headers of these words, of punctuation, and of any bytes that a client may send."""
    pieces = st.sampled_from([*words, ",", ";", "=", '"', " ", "q=", "0.5", "-1", "nan", "1e999", "*/*", "\x00", "\xff", "\t"])
    return st.lists(pieces | st.text(st.characters(max_codepoint=255), max_size=3), max_size=12).map("".join)


@given(
    accept=headers_of("text/plain", "application/openmetrics-text", "version=", "1.0.0", "0.0.4", "escaping=", "dots"),
    accept_encoding=headers_of("gzip", "identity", "*"),
    query=headers_of("name[]=", "name%5B%5D=", "stock", "sales_total", "&", "%", "%FF", "+"),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@pytest.mark.usefixtures("counted")
def test_broken_requests_get_metrics(accept: str, accept_encoding: str, query: str) -> None:
    """For any bytes as headers and query, a client gets a valid answer in the format that the answer names."""
    answer = Scrape(accept=accept, accept_encoding=accept_encoding, query=query).answer()
    headers = dict(answer.headers)
    assert answer.status == 200
    assert headers["Content-Length"] == str(len(answer.body))
    body = (gzip.decompress(answer.body) if "Content-Encoding" in headers else answer.body).decode()
    parse = text_string_to_metric_families if "openmetrics" in headers["Content-Type"] else parse_text
    shown = {sample.name for family in parse(body) for sample in family.samples}
    names = parse_qs(query).get("name[]", ["sales_total", "stock"])
    assert shown.issuperset({"sales_total", "stock"}.intersection(names))


@pytest.mark.usefixtures("counted")
def test_head_is_a_get_without_body(client: Client) -> None:
    """HEAD answers the headers of GET, with the length of the body that it omits."""
    head, get = client("HEAD"), client("GET")
    assert (head.status, head.body) == (200, b"")
    unsteady = ("date", "content-length")
    assert [item for item in head.headers.items() if item[0] not in unsteady] == [
        item for item in get.headers.items() if item[0] not in unsteady
    ]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 200), ("POST", 405), ("DELETE", 405), ("TRACE", 405)])
def test_other_methods_get_the_allowed_ones(client: Client, method: str, status: int) -> None:
    """OPTIONS and disallowed methods get the list of the allowed ones, without a read of the storage."""
    answer = client(method)
    assert (answer.status, answer.headers["allow"]) == (status, ALLOWED)
    assert answer.body == (f"# {ALLOWED}\n".encode() if status == 200 else f"# {method} is not one of {ALLOWED}\n".encode())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_with_nothing_set_up_a_scrape_names_setup(client: Client, method: str) -> None:
    """Before `setup` a scrape is a 503 that names it."""
    answer = client(method)
    assert answer.status == 503
    assert (b"pdc.setup" in answer.body) is (method == "GET")


def test_a_storage_that_cannot_be_read_is_a_503(client: Client, tmp_path: Path, own_redis_server: RedisServer) -> None:
    """A scrape that cannot read the storage is a 503 with the reason, never an empty or partial 200."""
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    pdc.setup(sqlite=tmp_path / "broken.db")
    answer = client()
    assert (answer.status, answer.headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert b"broken.db" in answer.body
    pdc.setup(redis=own_redis_server.url)
    pdc.Counter("sales", "Help", registry=None).inc()
    assert client().status == 200
    own_redis_server.stop()
    answer = client()
    assert answer.status == 503
    assert str(own_redis_server.port).encode() in answer.body


def test_a_scrape_reads_the_storage_once(storage: dict[str, Any], client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape of any number of metrics is one read; a wrong method reads nothing."""
    pdc.setup(**storage)
    counters = [pdc.Counter(f"sales{number}", "Help", registry=None) for number in range(3)]
    reads: list[object] = []
    for kind in (RedisStorage, SqliteStorage):

        def read(self: Any, names: Any = None, original: Callable[..., Any] = kind.read) -> Any:
            reads.append(names)
            return original(self, names)

        monkeypatch.setattr(kind, "read", read)
    assert len(re.findall(rb"\nsales\d_total 0.0", client().body)) == len(counters)
    assert reads == [None]
    client("POST")
    client("OPTIONS")
    assert reads == [None]


def test_the_asgi_app_takes_part_in_the_lifespan(registry: CollectorRegistry) -> None:
    """Start-up and shutdown are completed, so that servers can mount the app alone; other protocols are refused."""
    sent = run_asgi(registry, {"type": "lifespan"}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    with pytest.raises(ValueError, match="websocket"):
        run_asgi(registry, {"type": "websocket"}, [])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return paths


@pytest.mark.usefixtures("counted")
def test_the_server_speaks_tls(certificate: tuple[str, str]) -> None:
    """With a certificate metrics are served over TLS, and a client that connects but sends nothing delays no other."""
    certfile, keyfile = certificate
    trusting = ssl.create_default_context(cafile=certfile)
    with serving(certfile=certfile, keyfile=keyfile) as port, socket.create_connection(("127.0.0.1", port)):
        answer = ask(http.client.HTTPSConnection("127.0.0.1", port, context=trusting, timeout=10))
        assert answer.status == 200
        assert b'sales_total{path="/"} 2.0\n' in answer.body
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=10))


@pytest.mark.usefixtures("counted")
def test_the_server_closes_silent_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends no request is closed after a while."""
    monkeypatch.setattr(server._SilentHandler, "timeout", 0.1)
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        assert connection.recv(1) == b""


def descriptors() -> int:
    """The number of open files of this process."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_server_bounds_its_connections(certificate: tuple[str, str], tls: bool) -> None:
    """A scrape is answered amid any number of silent clients, and the application keeps its descriptors."""
    files = dict(zip(("certfile", "keyfile"), certificate, strict=True)) if tls else {}
    trusting = ssl.create_default_context(cafile=certificate[0])
    before = descriptors()
    with serving(**files) as port, ExitStack() as stack:
        for _ in range(4 * server.MOST_CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)).sendall(b"GET")
        address = "127.0.0.1", port
        connect = partial(http.client.HTTPSConnection, context=trusting) if tls else http.client.HTTPConnection
        assert ask(connect(*address, timeout=10)).status == 200
        ours = 4 * server.MOST_CLIENTS
        wait_until(lambda: descriptors() - before - ours <= server.MOST_CLIENTS + 5)


@pytest.mark.usefixtures("counted")
def test_the_server_ends_slow_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then, or reads nothing, loses its connection."""
    monkeypatch.setattr(server, "CLIENT_SECONDS", 0.2)
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:

        def is_closed() -> bool:
            try:
                connection.sendall(b"G")
            except OSError:
                return True
            return False

        wait_until(is_closed, 5)


@pytest.mark.usefixtures("counted")
def test_the_server_reads_no_long_request() -> None:
    """A request of a client takes little memory: headers beyond 64 KiB are not read."""
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n")
        with suppress(OSError):
            for number in range(90):
                connection.sendall(b"X-%d: %b\r\n" % (number, b"x" * 60_000))
        with suppress(ConnectionResetError):  # for the unread part
            assert connection.recv(15) in (b"HTTP/1.0 200 OK", b"")


@pytest.mark.usefixtures("counted")
def test_the_server_can_demand_certificates_of_clients(certificate: tuple[str, str]) -> None:
    """With `client_auth_required` only clients with a certificate of `client_cafile` get metrics."""
    certfile, keyfile = certificate
    trusting, known = ssl.create_default_context(cafile=certfile), ssl.create_default_context(cafile=certfile)
    known.load_cert_chain(certfile, keyfile)
    with serving(certfile=certfile, keyfile=keyfile, client_cafile=certfile, client_auth_required=True) as port:
        assert ask(http.client.HTTPSConnection("127.0.0.1", port, context=known, timeout=10)).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(http.client.HTTPSConnection("127.0.0.1", port, context=trusting, timeout=10))


@pytest.mark.usefixtures("counted")
def test_a_port_in_use_is_an_error() -> None:
    """The server raises where it cannot listen, and names the address."""
    with (
        serving() as port,
        pytest.raises(OSError, match=rf"metrics cannot be served on 127\.0\.0\.1:{port}: Address already in use"),
    ):
        pdc.start_http_server(port, "127.0.0.1")


class _Silent(BaseHTTPRequestHandler):
    """Another program, which only knows GET."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.parametrize("other", ["program", "storage", "same"])
def test_a_port_that_another_program_has_is_logged_once(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the port of another program, or one with another storage; a port of this program is no error."""
    monkeypatch.setattr("pdc.exposition.server.TAKE_OVER_SECONDS", 0.02)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    if other == "program":
        server: Any = HTTPServer(("127.0.0.1", 0), _Silent)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server, _ = pdc.start_http_server(0, "127.0.0.1")
    port = server.server_address[1]
    storages = itertools.cycle(["1", "2"] if other == "storage" else ["1"])
    monkeypatch.setattr("pdc.exposition.server._identity", lambda: next(storages))
    try:
        Port.of(("127.0.0.1", port), lambda _, __: []).open()
        if other == "same":
            time.sleep(0.2)
        else:
            wait_until(lambda: caplog.records)
    finally:
        server.shutdown()
        server.server_close()
    wait_until(lambda: Port._ports["127.0.0.1", port]._server)
    message = f"metrics cannot be served on 127.0.0.1:{port}: Address already in use by another program, or for another storage"
    expected = [] if other == "same" else [f"{message}; name another PDC_METRICS_PORT"]
    assert [record.getMessage() for record in caplog.records] == expected


def test_a_port_is_served_by_one_process_then_by_another() -> None:
    """One of two processes serves the port. When it is killed the other one takes over, though a child of the first."""
    number = free_port()
    source = f"""
import os, sys, time
from pdc.exposition import Port

def app(environ, start_response):
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

port = Port.of(("127.0.0.1", {number}), app)
port.open()
while port._server is None:
    time.sleep(0.01)
child = os.fork()
port.open()
if child:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        parent, child = map(int, process.stdout.readline().split())
    try:
        assert {_who_serves(number) for _ in range(5)} == {parent}
    finally:
        process.kill()
        process.wait()
    try:
        wait_until(lambda: _who_serves(number) == child)
    finally:
        os.kill(child, signal.SIGKILL)


def _who_serves(port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return int(connection.getresponse().read())
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()


def test_a_port_that_cannot_be_served_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An address that is not of this host is an error in the log, and nothing else."""
    Port.of(("192.0.2.1", 9100), lambda _, __: []).open()
    wait_until(lambda: "metrics cannot be served on 192.0.2.1:9100" in caplog.text)


def test_a_process_that_declared_nothing_shows_everything(
    storage: dict[str, Any], run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The storage has name, type, help, unit and series of all metrics: any process renders the same."""
    declare = """
        setup()
        pdc.Counter("sales", "Sold things", ["path"], unit="bytes").labels("/").inc()
        pdc.Gauge("stock", "Help\\nwith lines")
        pdc.Summary("basket", "", unit="bytes").observe(3)
        pdc.Histogram("wait", "Help", buckets=[1, 2]).observe(1.5)
        pdc.Info("build", "Help").info({"version": "1"})
        pdc.Enum("state", "Help", states=["on", "off"]).state("off")
        pdc.Counter("idle", "A parent with no child yet", ["path"])
        """
    show = """
        from pdc.exposition import Scrape
        print(pdc.generate_latest().decode() + Scrape(accept="application/openmetrics-text").answer().body.decode(), end="")
        """
    first = run_script(f"{declare}\n{show}", storage=storage).stdout
    assert run_script(f"        setup()\n{show}", storage=storage).stdout == first
    for line in (
        *("# HELP sales_bytes_total Sold things", "# TYPE sales_bytes_total counter", 'sales_bytes_total{path="/"} 1.0'),
        *(
            "# UNIT sales_bytes bytes",
            "# HELP stock Help\\nwith lines",
            "# TYPE stock gauge",
            "stock 0.0",
            "basket_bytes_sum 3.0",
        ),
        *('wait_bucket{le="2.0"} 1.0', 'build_info{version="1"} 1.0', 'state{state="off"} 1.0', "# TYPE idle_total counter"),
        "# TYPE state stateset",
    ):
        assert f"{line}\n" in first


class Temperature:
    """A collector of the application."""

    def collect(self) -> Iterator[Metric]:
        """One gauge of its own, and one that the storage also has."""
        yield GaugeMetricFamily("temperature", "Help", 21)
        yield GaugeMetricFamily("stock", "Another help", 99)


@pytest.mark.usefixtures("counted")
def test_a_registry_adds_its_other_collectors(registry: CollectorRegistry) -> None:
    """`generate_latest(registry)` adds collectors, metrics in memory and target info; it shows no family twice."""
    alone = pdc.generate_latest()
    assert pdc.generate_latest(registry) == alone
    registry.set_target_info({"env": "test"})
    registry.register(Temperature())
    prometheus_client.Counter("local", "In memory", registry=registry).inc()
    shown = pdc.generate_latest(registry)
    assert shown.startswith(alone)
    for line in (b'target_info{env="test"} 1.0\n', b"temperature 21.0\n", b"local_total 1.0\n", b"stock 7.0\n"):
        assert shown.count(line) == 1
    assert b"stock 99" not in shown
    names = [line.split()[2] for line in shown.splitlines() if line.startswith(b"# TYPE")]
    assert len(names) == len(set(names))


def test_metrics_of_the_other_storage_come_from_the_registry(
    registry: CollectorRegistry, tmp_path: Path, redis_server: RedisServer
) -> None:
    """A registry with metrics of both storages shows both, whichever `setup` chose last."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.sqlite.Counter("in_sqlite", "Help", registry=registry).inc(2)
    pdc.setup(redis=redis_server.url)
    pdc.Counter("in_redis", "Help", registry=registry).inc(3)
    assert b"in_sqlite" not in pdc.generate_latest()
    shown = pdc.generate_latest(registry)
    assert b"in_sqlite_total 2.0\n" in shown
    assert b"in_redis_total 3.0\n" in shown


OTHERS: list[tuple[str, Callable[[], object], str]] = [
    *(
        (kept, declare, dropped)
        for kept, declare in (
            ("jobs", lambda: pdc.Counter("jobs", "Help", registry=None).inc()),
            ("lat", lambda: pdc.Summary("lat", "Help", registry=None).observe(1)),
            ("size", lambda: pdc.Histogram("size", "Help", buckets=[1], registry=None).observe(1)),
            ("build", lambda: pdc.Info("build", "Help", registry=None).info({"version": "1"})),
        )
        for dropped in {
            "jobs": ("jobs_total", "jobs_created"),
            "lat": ("lat_sum", "lat_count", "lat_created"),
            "size": ("size_bucket", "size_sum", "size_count", "size_created"),
            "build": ("build_info",),
        }[kept]
    )
]
"""Metrics whose samples have the name of a gauge, which is another metric of the storage."""


def valid(*registries: CollectorRegistry) -> dict[str, set[str]]:
    """Check the page in every format, cold and warm, with and without names; return sample names by family name."""
    pages = []
    registry = registries[0] if registries else None
    for accept in ("application/openmetrics-text", "text/plain"):
        for query in (
            "",
            "",
            urlencode([("name[]", sample.name) for family in pdc_collect(registry) for sample in family.samples]),
        ):
            body = Scrape(accept=accept, query=query).answer(registry).body
            parse = text_string_to_metric_families if "openmetrics" in accept else parse_text
            found = {family.name: {sample.name for sample in family.samples} for family in parse(body.decode())}
            lines = [line.rpartition(" ")[0] for line in body.decode().splitlines() if not line.startswith("#")]
            assert len(lines) == len(set(lines))
            assert (helps := re.findall("(?m)^# HELP (\\S+)", body.decode())) == list(dict.fromkeys(helps))
            if "openmetrics" in accept:
                pages.append({name: samples for name, samples in found.items() if not name.startswith("pdc_") and samples})
    lint = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert b"error" not in lint.stderr, lint.stderr
    assert all(page == pages[0] for page in pages)
    return pages[0]


def test_families_that_share_names_of_samples_are_shown_once(
    storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A scrape is valid in every format: of two clashing families it shows the first by name, and logs the other once."""
    pdc.setup(**storage, flush_interval=3600)
    pdc.Gauge("innocent", "Help", registry=registry).set(1)
    for _, declare, dropped in OTHERS:
        pdc.Gauge(dropped, "Help", ["path"], registry=None).labels("/").set(7)
        declare()
    found = valid()
    assert set(found) == {"innocent", "jobs", "lat", "size", "build"}
    assert found["jobs"] == {"jobs_total", "jobs_created"}
    assert b"7.0" not in pdc.generate_latest()
    logged = [record.getMessage() for record in caplog.records if "is not shown" in record.getMessage()]
    assert sorted(logged) == sorted(
        f"metric {dropped} is not shown: {dropped} is a name of metric {kept}, too; rename one of them"
        for kept, _, dropped in OTHERS
    )


def test_names_that_a_format_escapes_alike_are_shown_once(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Names that a format escapes to the same one are shown once there, and both where the format can express them."""
    pdc.setup(**storage)
    for name, value in (("a.b", 1), ("a_b", 2)):
        pdc.Gauge(name, "Help", registry=registry).set(value)
    assert pdc.generate_latest() == b"# HELP a_b Help\n# TYPE a_b gauge\na_b 1.0\n"
    assert pdc.generate_latest(registry.restricted_registry(["a.b", "a_b"])) == pdc.generate_latest()
    both = pdc.generate_latest(escaping="allow-utf-8")
    assert both.count(b"# TYPE") == 2
    assert both == prometheus_client.generate_latest(registry, escaping="allow-utf-8")


class Clashing:
    """A collector whose families have taken names, each in another way."""

    def collect(self) -> Iterator[Metric]:
        """Families that share names with those of the storage, with the target info, and with each other."""
        yield GaugeMetricFamily("sales_created", "Help", 99)
        yield GaugeMetricFamily("sales_total", "Help", 99)
        yield GaugeMetricFamily("target_info", "Help", 99)
        odd = Metric("odd", "Help", "unknown")
        odd.add_sample("stock", {}, 99)
        yield odd
        yield SummaryMetricFamily("times", "Help", 3, 4)
        yield CounterMetricFamily("times_sum", "Help", 99)


@pytest.mark.usefixtures("counted")
def test_collectors_that_clash_with_stored_families_are_left_out(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A registry's other collectors show families without a name clash; the rest is in the log once."""
    registry.set_target_info({"env": "test"})
    registry.register(Clashing())
    found = valid(registry)
    assert set(found) == {"sales", "stock", "target", "times"}
    assert b" 99.0\n" not in pdc.generate_latest(registry)
    assert sum("is not shown" in record.getMessage() for record in caplog.records) == 5


@pytest.mark.usefixtures("counted")
def test_any_collector_is_a_registry(registry: CollectorRegistry) -> None:
    """Restricted registries and objects that collect are rendered as by prometheus_client, in every function and server."""
    restricted = registry.restricted_registry(["stock", "missing", "pdc_storage_up"])
    expected = b"# HELP stock Help\n# TYPE stock gauge\nstock 7.0\n"
    assert pdc.generate_latest(restricted) == expected == prometheus_client.generate_latest(restricted)
    own = Temperature()
    assert pdc.generate_latest(own) == prometheus_client.generate_latest(own)
    for each in (restricted, own):
        for query in ("", "name[]=stock"):
            answers = [serve(each, "GET", query, {}) for serve in (over_wsgi, over_asgi, over_http)]
            assert len({answer.body for answer in answers}) == 1
            assert answers[0].body.count(b"# TYPE stock gauge") == 1
            assert (b"temperature" in answers[0].body) is (each is own and not query)
            assert (b"pdc_storage_up 1.0" in answers[0].body) is (each is restricted and not query)


@pytest.mark.usefixtures("counted")
def test_a_registry_may_be_restricted_to_what_others_declared(registry: CollectorRegistry, storage: dict[str, Any]) -> None:
    """A restricted registry shows metrics that another process declared, with one read of the storage."""
    pdc.setup(**storage)
    pdc.Gauge("elsewhere", "Help", registry=None).set(3)
    assert pdc.generate_latest(registry.restricted_registry(["elsewhere"])).endswith(b"\nelsewhere 3.0\n")


@pytest.mark.usefixtures("counted")
def test_escaping_is_chosen_as_in_prometheus_client(registry: CollectorRegistry) -> None:
    """`escaping` spells names as prometheus_client does; an unknown scheme is refused."""
    pdc.Gauge("dotted.name", "Help", ["é"], registry=registry).labels("\n").set(1)
    lines = [*pdc.generate_latest().splitlines()]
    for escaping in ("allow-utf-8", "underscores", "dots", "values"):
        shown = pdc.generate_latest(registry, escaping).splitlines()
        assert sorted(shown) == sorted(prometheus_client.generate_latest(registry, escaping).splitlines())
        assert (shown == lines) is (escaping == "underscores")
    with pytest.raises(ValueError, match="'utf-8'"):
        pdc.generate_latest(escaping="utf-8")


def test_functions_take_the_arguments_of_prometheus_client() -> None:
    """All arguments of the installed prometheus_client exist, with the same names and in the same order."""
    for name in ("generate_latest", "make_wsgi_app", "make_asgi_app", "start_http_server"):
        wanted = list(inspect.signature(getattr(prometheus_client, name)).parameters)
        assert list(inspect.signature(getattr(pdc, name)).parameters)[: len(wanted)] == wanted


@pytest.mark.usefixtures("counted")
def test_the_asgi_app_runs_on_trio(registry: CollectorRegistry) -> None:
    """The app answers on trio as on asyncio, and asyncio works unchanged while trio is imported."""
    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"name[]=stock", "headers": []}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    trio.run(pdc.make_asgi_app(registry), scope, receive, send)
    assert sent[1]["body"] == b"# HELP stock Help\n# TYPE stock gauge\nstock 7.0\n"
    assert run_asgi(registry, scope, []) == sent


def test_importing_pdc_imports_little(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`import pdc` is for every program: drivers, frameworks and rare functions are imported at their first use.

    Logging of Python 3.14 brings dataclasses.
    """
    unwanted = (
        *("redis", "sqlite3", "flask", "werkzeug", "django", "starlette", "fastapi", "gunicorn", "celery"),
        *("asyncio", "dataclasses", "difflib", "pdc.exposition", "pdc.options", "pdc.http"),
    )
    source = f"import sys\nprint([name for name in {unwanted} if name in sys.modules])"
    least = [sys.executable, "-c", f"import logging, prometheus_client\n{source}"]
    assert run_script(source).stdout == subprocess.run(least, capture_output=True, text=True, check=True).stdout


def test_many_names_cost_no_more_than_one(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A query of thousands of names takes time for its length and for the samples, not for one times the other."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["n"], registry=registry)
    for number in range(1000):
        hits.labels(number).inc()
    names = [f"name[]=other_{number}" for number in range(7000)]

    def seconds(query: str) -> float:
        began = time.thread_time()
        assert Scrape(query=query).answer().body.count(b"hits_total{") == 1000
        return time.thread_time() - began

    few = min(seconds("name[]=hits_total") for _ in range(3))
    assert min(seconds("&".join([*names, "name[]=hits_total"])) for _ in range(3)) < 3 * few + 0.05
