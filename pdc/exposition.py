"""Rendering what the storage holds, and serving it: one scrape behind WSGI, ASGI, an HTTP server and the frameworks."""

from __future__ import annotations

import errno
import gzip
import http.client
import logging
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, MutableMapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import exposition as text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry, RestrictedRegistry

from . import config, log, servers
from .cells import in_one_scrape
from .delivery import NotConfigured, health
from .family import Page, families
from .forks import FORKS
from .metrics import StoredMetric
from .rendering import Encoder, Renderer
from .storage import Snapshot, StorageError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]
Format = tuple[Encoder, str]
"""An encoder and its content type."""

TEXT_0_0_4 = text.CONTENT_TYPE_PLAIN_0_0_4
TEXT_1_0_0 = text.CONTENT_TYPE_PLAIN_1_0_0
OPENMETRICS_1_0_0 = openmetrics.CONTENT_TYPE_LATEST
ESCAPINGS = (openmetrics.ALLOWUTF8, openmetrics.UNDERSCORES, openmetrics.DOTS, openmetrics.VALUES)
RENDERER = Renderer()
METHODS = "GET, HEAD, OPTIONS"
CLIENT_SECONDS = 30.0
"""How long a connection to the HTTP server may last, whatever its client does."""
MOST_CLIENTS = 32
"""How many connections it has; for one more it closes the one that has waited longest for its request, or that one."""
MOST_REQUEST = 65_536
"""How many bytes of a request it reads."""
MOST_HEADER = 8_192
"""How many characters of a header like Accept are looked at."""
TAKE_OVER_SECONDS = 1.0
"""How often a process looks whether it can serve a port that another one serves."""
PROBE_SECONDS = 2.0
"""How long whoever has a port may take to say who it is."""
IDENTITY = "X-PDC-Storage"
"""The header by which servers of metrics know those of the same storage."""


def generate_latest(registry: Collector | None = None, escaping: str = openmetrics.UNDERSCORES) -> bytes:
    """Render all that the storage holds in the text format 0.0.4, also what this process never declared.

    With a registry, its target info and its other collectors come after. A `restricted_registry` leaves only the samples of
    its names; of another object with a `collect` method, all that it collects is rendered and nothing else. `escaping` is one
    of the schemes of prometheus_client. Raises ValueError for another one, NotConfigured and StorageError.
    """
    if escaping not in ESCAPINGS:
        raise ValueError(f"escaping must be one of {', '.join(ESCAPINGS)}, got {escaping!r}")
    return _render(Encoder(escaping=escaping), registry)


def collect(
    registry: Collector | None = None,
    names: Collection[str] | None = None,
    *,
    own: bool = False,
    escaping: str = openmetrics.ALLOWUTF8,
) -> list[Metric]:
    """The families of the storage, from one read, then those of the registry's other collectors.

    `names` leaves only the samples with these names, as the query ``?name[]=`` does. A family that shares the name of a
    sample with one before it, as `escaping` spells them, is left out. With `own`, what pdc tells of itself is among them.
    Raises NotConfigured and StorageError.
    """
    if isinstance(registry, RestrictedRegistry):
        restricted = registry._name_set
        return collect(registry._registry, restricted.intersection(names or restricted), own=own, escaping=escaping)
    wanted = None if names is None else frozenset(names)  # there may be thousands
    metrics = in_one_scrape(_collect, registry, Page(escaping), own, wanted)
    if wanted is not None:
        metrics = [chosen for metric in metrics if (chosen := _restricted(metric, wanted)).samples]
    return metrics


def _collect(registry: Collector | None, page: Page, own: bool, names: frozenset[str] | None) -> list[Metric]:
    if registry is not None and not isinstance(registry, CollectorRegistry):
        return list(page.admitted(registry.collect()))
    snapshot = _read(own=own)
    return [*families(snapshot.metrics, snapshot.now, page, names), *_others(registry, page)]


def _render(encoder: Encoder, registry: Collector | None, names: Collection[str] | None = None, *, own: bool = False) -> bytes:
    """What `collect` collects, as text."""
    if names is None and (registry is None or isinstance(registry, CollectorRegistry)):
        return in_one_scrape(_render_all, encoder, registry, own)
    return encoder.encode(collect(registry, names, own=own, escaping=encoder.escaping)) + encoder.end


def _render_all(encoder: Encoder, registry: CollectorRegistry | None, own: bool) -> bytes:
    return RENDERER.render(_read(own=own), encoder, partial(_others, registry))


def _read(*, own: bool) -> Snapshot:
    """All that the storage holds, and with `own`, what pdc tells of itself.

    Raises StorageError where that would be all: zeros of a storage that nobody writes look as if all were well.
    """
    now, stored = config.read(config.DEFAULT)
    if own and not stored and not config.is_declared():
        where = config.described(config.DEFAULT.required())
        raise StorageError(
            f"nobody writes to {where}, or all of it has expired, and this process declares no metric: "
            "check that the programs which count use the same"
        )
    about = health.fields(stored, waiting=config.waiting_series(), is_up=config.is_up()) if own else {}
    for name in health.NAMES:
        stored.pop(name, None)
    return Snapshot(now, stored | about)


class Response(NamedTuple):
    """The answer to a scrape, for any kind of server."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""


class Scrape(NamedTuple):
    """A request for metrics."""

    method: str = "GET"
    query: str = ""
    accept: str = ""
    accept_encoding: str = ""

    def answer(self, registry: Collector | None = None, *, compress: bool = True) -> Response:
        """Read the storage once and render it as the client asked; 503 with the reason where it cannot be read."""
        if self.method == "OPTIONS":
            return plain(HTTPStatus.OK, METHODS, ("Allow", METHODS))
        if self.method not in ("GET", "HEAD"):
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.method} is not one of {METHODS}", ("Allow", METHODS))
        encoder, content_type = negotiate(self.accept)
        try:
            body = _render(encoder, registry, parse_qs(self.query).get("name[]"), own=True)
        except (StorageError, NotConfigured) as error:
            waiting = config.waiting_series()
            message = f"{error}\n# {waiting} series of this process wait in memory" if waiting else str(error)
            return self._without_body_of_head(plain(HTTPStatus.SERVICE_UNAVAILABLE, message))
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if compress and accepts_gzip(self.accept_encoding):
            body = gzip.compress(body, compresslevel=6, mtime=0)
            headers.append(("Content-Encoding", "gzip"))
        headers.append(("Content-Length", str(len(body))))
        return self._without_body_of_head(Response(HTTPStatus.OK, headers, body))

    def _without_body_of_head(self, response: Response) -> Response:
        return response._replace(body=b"") if self.method == "HEAD" else response


def negotiate(accept: str) -> Format:
    """The encoder and the content type that an Accept header prefers; text 0.0.4 where it names nothing we know."""
    chosen: Format = (Encoder(), TEXT_0_0_4)
    best = 0.0
    for media_type, parameters in _clauses(accept):
        quality = _quality(parameters)
        if quality > best and (found := _format(media_type, parameters)):
            chosen, best = found, quality
    return chosen


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header allows gzip, by name or by ``*``."""
    qualities = {name: _quality(parameters) for name, parameters in _clauses(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def make_wsgi_app(registry: Collector | None = None, disable_compression: bool = False) -> WSGIApplication:
    """A WSGI app that serves what `generate_latest` renders, on any path."""

    def metrics_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return respond(scrape_from_wsgi(environ).answer(registry, compress=not disable_compression), start_response)

    return metrics_app


def respond(response: Response, start_response: StartResponse) -> Iterable[bytes]:
    """Give the response to a WSGI server."""
    start_response(f"{response.status} {HTTPStatus(response.status).phrase}", response.headers)
    return [response.body]


def scrape_from_wsgi(environ: WSGIEnvironment) -> Scrape:
    """The scrape that a WSGI environment asks for."""
    return Scrape(
        method=environ["REQUEST_METHOD"],
        query=environ.get("QUERY_STRING", ""),
        accept=environ.get("HTTP_ACCEPT", ""),
        accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
    )


def make_asgi_app(registry: Collector | None = None, disable_compression: bool = False) -> ASGIApplication:
    """An ASGI app, for asyncio and trio, that serves what `make_wsgi_app` does; it reads the storage in a thread."""

    async def metrics_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"metrics are served over HTTP, got a connection of type {scope['type']!r}")
        answer = partial(scrape_from_asgi(scope).answer, registry, compress=not disable_compression)
        response = await _in_thread(answer)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    return metrics_app


async def _in_thread(answer: Callable[[], Response]) -> Response:
    trio = sys.modules.get("trio")
    if trio is not None and _is_in_trio(trio):
        response: Response = await trio.to_thread.run_sync(answer)
        return response
    import asyncio  # only here: it takes longer to import than all of pdc

    return await asyncio.to_thread(answer)


def _is_in_trio(trio: Any) -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def scrape_from_asgi(scope: Scope) -> Scrape:
    """The scrape that an ASGI scope asks for."""

    def header(wanted: bytes) -> str:
        return ",".join(value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == wanted)

    return Scrape(
        method=scope["method"],
        query=scope.get("query_string", b"").decode("latin-1"),
        accept=header(b"accept"),
        accept_encoding=header(b"accept-encoding"),
    )


def start_http_server(
    port: int,
    addr: str = "0.0.0.0",
    registry: Collector | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    client_cafile: str | None = None,
    client_capath: str | None = None,
    protocol: int = ssl.PROTOCOL_TLS_SERVER,
    client_auth_required: bool = False,
    tls_min_version: ssl.TLSVersion | None = None,
    tls_max_version: ssl.TLSVersion | None = None,
) -> tuple[WSGIServer, threading.Thread]:
    """Serve metrics from a daemon thread, over TLS where a certificate is given; return the server and the thread.

    The arguments are those of prometheus_client. Stop it with `server.shutdown()` and `server.server_close()`. Raises OSError
    where the address cannot be used.
    """
    server = _server(addr, port, make_wsgi_app(registry))
    if certfile is not None:
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(certfile, keyfile)
        _trust_clients(context, client_cafile, client_capath, required=client_auth_required)
        context.minimum_version = tls_min_version or context.minimum_version
        context.maximum_version = tls_max_version or context.maximum_version
        # The handshake is for the thread of the connection, lest a client that says nothing hold up all others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, name="pdc-http", daemon=True)
    thread.start()
    return server, thread


def _server(addr: str, port: int, app: WSGIApplication) -> WSGIServer:
    """A server that listens. Raises OSError where the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server_class = type("MetricsServer", (_ThreadingServer,), {"address_family": family})
        return make_server(str(address[0]), port, _identified(app), server_class, handler_class=_SilentHandler)
    except OSError as error:
        raise OSError(error.errno, f"metrics cannot be served on {addr}:{port}: {error.strerror}") from error


def _identified(app: WSGIApplication) -> WSGIApplication:
    """The application, whose answers say of which storage they are."""

    def identified(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            return start_response(status, [*headers, (IDENTITY, _identity())], *exc_info)

        return app(environ, start)

    return identified


def _identity() -> str:
    """A number that the servers of one storage have in common, and which tells nothing else."""
    storage = config.DEFAULT.storage
    return f"{zlib.crc32(str(storage and storage.identity).encode()):08x}"


def _is_served_by_us(addr: str, port: int) -> bool:
    """Whether metrics of the same storage are served there already."""
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(addr, port, timeout=PROBE_SECONDS)
        try:
            connection.request("OPTIONS", "/")
            return connection.getresponse().getheader(IDENTITY) == _identity()
        finally:
            connection.close()
    return False


class Port:
    """A port that one process at a time serves metrics on; when that ends, another one takes over.

    All processes show the same metrics, so it matters to nobody which of them answers.
    """

    _ports: ClassVar[dict[tuple[str, int], Port]] = {}

    def __init__(self, address: tuple[str, int], app: WSGIApplication) -> None:
        self._address = address
        self._app = app
        self._server: WSGIServer | None = None
        self._opened = threading.Lock()
        self._waits_for_workers = False

    @classmethod
    def of(cls, address: tuple[str, int], app: WSGIApplication) -> Port:
        """The port of that address, with the application that first asked for it in this process."""
        return cls._ports.setdefault(address, cls(address, app))

    def open(self) -> None:
        """Serve from a daemon thread, as soon as no other process does; only the first call in a process does anything.

        A master that loads the application for its workers leaves that to them.
        """
        if not self._opened.locked():
            self._waits_for_workers = servers.is_master()
            if not self._waits_for_workers:
                self._open()

    def _open(self) -> None:
        if self._opened.acquire(blocking=False):
            if servers.threads_run():
                threading.Thread(target=self._run, name="pdc-port", daemon=True).start()
            else:
                log.write(logging.WARNING, "metrics are not served on %s:%d: %s", *self._address, servers.NO_THREADS)

    def _run(self) -> None:
        others = 0
        while self._server is None:
            try:
                self._server = _server(*self._address, self._app)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    log.write(logging.ERROR, "%s", error.strerror)
                    return
                others = 0 if _is_served_by_us(*self._address) else others + 1
                if others == 2:  # one that ends at the moment may not answer
                    text = "%s by another program, or for another storage; name another PDC_METRICS_PORT"
                    log.write(logging.ERROR, text, error.strerror)
                time.sleep(TAKE_OVER_SECONDS)
        self._server.serve_forever()

    @classmethod
    def after_fork_in_child(cls) -> None:
        """Let go of the sockets, which would keep the ports from others when the parent ends; workers of a master open them."""
        for port in cls._ports.values():
            if port._server is not None:
                port._server.server_close()
            port._server, port._opened = None, threading.Lock()
            if port._waits_for_workers:
                port._waits_for_workers = False
                port._open()


FORKS.register(after_in_child=Port.after_fork_in_child)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """A server with bounded numbers of connections and threads: the application needs descriptors, too."""

    daemon_threads = True
    request_queue_size = 4 * MOST_CLIENTS
    """How many connections the kernel keeps until they are accepted: with the 5 of socketserver, one more waits for seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since: dict[Any, float] = {}
        """The connections that have a thread, and since when."""
        self._waiting: dict[Any, None] = {}
        """Those of them without a request so far, that which has waited longest first."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a thread have the connection, and hang up on another one where there are too many."""
        if len(self._since) >= MOST_CLIENTS:
            longest = list(self._waiting)[:1]
            for each in longest:
                self.has_request(each)
                _hang_up(each)
            if not longest or len(self._since) >= 2 * MOST_CLIENTS:
                self.shutdown_request(request)
                return
        self._since[request] = time.monotonic()
        self._waiting[request] = None
        super().process_request(request, client_address)

    def has_request(self, request: Any) -> None:
        """Note that the client does not keep us waiting any more."""
        self._waiting.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        self.has_request(request)
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on clients that take too long; called twice a second."""
        for request, since in list(self._since.items()):
            if time.monotonic() > since + CLIENT_SECONDS:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, but not of clients that hang up, or whose TLS fails."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _hang_up(request: socket.socket) -> None:
    """Let whoever reads from the connection, or writes to it, find it closed."""
    with suppress(OSError):
        socket.socket.shutdown(request, socket.SHUT_RDWR)  # also of a TLS connection, which its own method would wait for


class _ShortRequest:
    """What a client sends, as far as it is read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MOST_REQUEST

    def readline(self, most: int) -> bytes:
        """The next line, or a part of it; nothing where the request is too long."""
        line: bytes = self._file.readline(min(most, self._left))
        self._left -= len(line)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _SilentHandler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def setup(self) -> None:
        """Read no more than a request for metrics needs."""
        super().setup()
        self.rfile: Any = _ShortRequest(self.rfile)

    def parse_request(self) -> bool:
        """Parse the request, which the server waits for no more."""
        is_sound = super().parse_request()
        if isinstance(self.server, _ThreadingServer):
            self.server.has_request(self.request)
        return is_sound

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape every few seconds is no news."""


def _others(registry: CollectorRegistry | None, page: Page) -> Iterator[Metric]:
    """What the registry has beside the metrics of the default storage, which are on the page."""
    return page.admitted(_all_others(registry)) if registry is not None else iter(())


def _all_others(registry: CollectorRegistry) -> Iterator[Metric]:
    if target := registry.get_target_info():
        metric = Metric("target", "Target metadata", "info")
        metric.add_sample("target_info", target, 1)
        yield metric
    with registry._lock:
        collectors = list(registry._collector_to_names)
    for collector in collectors:
        if not isinstance(collector, StoredMetric) or collector.buffer.storage is not config.DEFAULT.storage:
            yield from collector.collect()


def _restricted(metric: Metric, names: frozenset[str]) -> Metric:
    restricted = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    restricted.samples = [sample for sample in metric.samples if sample.name in names]
    return restricted


def plain(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Response:
    """A short answer in plain text."""
    body = f"# {message}\n".encode()
    return Response(status, [*headers, ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))], body)


def _clauses(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the values of a header like Accept in lower case, each with its parameters."""
    for clause in header[:MOST_HEADER].split(","):
        value, *parameters = (part.strip() for part in clause.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        yield value.lower(), {name.strip().lower(): content.strip().strip('"') for name, _, content in pairs}


def _quality(parameters: dict[str, str]) -> float:
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0


def _format(media_type: str, parameters: dict[str, str]) -> Format | None:
    version, wanted = parameters.get("version", ""), parameters.get("escaping", "")
    escaping = wanted if wanted in ESCAPINGS else openmetrics.UNDERSCORES
    if media_type == "application/openmetrics-text" and version in ("", "1.0.0"):
        return Encoder(openmetrics=True, escaping=escaping), f"{OPENMETRICS_1_0_0}; escaping={escaping}"
    if media_type == "text/plain" and version == "1.0.0":
        return Encoder(escaping=escaping), f"{TEXT_1_0_0}; escaping={escaping}"
    if media_type in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
        return Encoder(), TEXT_0_0_4
    return None


async def _live(receive: Receive, send: Send) -> None:
    """Answer the lifespan protocol: there is nothing to start or stop."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


def _trust_clients(context: ssl.SSLContext, cafile: str | None, capath: str | None, *, required: bool) -> None:
    if cafile is not None or capath is not None:
        context.load_verify_locations(cafile, capath)
    else:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if required:
        context.verify_mode = ssl.CERT_REQUIRED
