"""The servers of scrapes: WSGI, ASGI, and HTTP."""

from __future__ import annotations

import asyncio
import gzip
import http.client
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
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import prometheus_client
import pytest
import trio
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import OPENMETRICS, PROMETHEUS_2, Temperature
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

import pdc
from pdc.exposition import Port, server
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

ALLOWED = "GET, HEAD, OPTIONS"


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


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_that_leaves_amid_its_answer_is_no_error(
    certificate: tuple[str, str], tls: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server writes no traceback, and goes on: Prometheus leaves where a scrape takes too long."""
    ended = threading.Event()

    def app(_: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while not ended.is_set():
                yield bytes(100_000)
        finally:
            ended.set()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    running, thread = server.start_server(app, 0, "127.0.0.1", context if tls else None)
    trusting = ssl.create_default_context(cafile=certificate[0])
    with socket.create_connection(("127.0.0.1", running.server_port), timeout=10) as connection:
        client = trusting.wrap_socket(connection, server_hostname="127.0.0.1") if tls else connection
        with client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(1)
    assert ended.wait(10)
    server.stop_server(running, 5)
    thread.join()
    assert capfd.readouterr().err == ""


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
        assert ask(connect(*address, timeout=0.8 * server.CLIENT_SECONDS)).status == 200
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
