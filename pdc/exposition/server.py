"""The HTTP server of metrics, and the port that the processes of an application serve in turn."""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client.registry import Collector

from .. import config
from ..process import log, servers
from ..process.forks import FORKS
from ..process.interruption import tolerate
from .scrape import make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CLIENT_SECONDS = 30.0
"""Longest time of a connection, whatever its client does."""
MOST_CLIENTS = 32
"""Most open connections; for one more the server closes an old one that has sent no request so far, or the new one."""
MOST_REQUEST = 65_536
"""Bytes of a request that the server reads."""
TAKE_OVER_SECONDS = 1.0
"""Time between two tries to serve a port that another process serves."""
PROBE_SECONDS = 2.0
"""Time in which the program that has a port must identify itself."""
IDENTITY = "X-PDC-Storage"
"""The header by which servers of metrics recognise servers of the same storage."""


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

    prometheus_client explains the arguments. Stop it with `server.shutdown()` and `server.server_close()`. Raises OSError
    where the address cannot be used.
    """
    context = None
    if certfile is not None:
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(certfile, keyfile)
        _trust_clients(context, client_cafile, client_capath, required=client_auth_required)
        context.minimum_version = tls_min_version or context.minimum_version
        context.maximum_version = tls_max_version or context.maximum_version
    return start_server(make_wsgi_app(registry), port, addr, context)


def start_server(
    app: WSGIApplication, port: int, addr: str, context: ssl.SSLContext | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Serve an application from a daemon thread, over TLS where there is a context. Raises OSError."""
    server = _server(addr, port, app)
    if context is not None:
        # The thread of the connection does the handshake: a silent client would hold up all others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, name="pdc-http", daemon=True)
    thread.start()
    return server, thread


def stop_server(server: WSGIServer, seconds: float) -> None:
    """Accept no more connections, and wait so long until the requests of the others are answered."""
    server.shutdown()
    server.server_close()
    until = time.monotonic() + seconds
    while isinstance(server, _ThreadingServer) and server.is_answering and time.monotonic() < until:
        time.sleep(0.02)


def _trust_clients(context: ssl.SSLContext, cafile: str | None, capath: str | None, *, required: bool) -> None:
    if cafile is not None or capath is not None:
        context.load_verify_locations(cafile, capath)
    else:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if required:
        context.verify_mode = ssl.CERT_REQUIRED


def _server(addr: str, port: int, app: WSGIApplication) -> WSGIServer:
    """A server that listens. Raises OSError where the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server_class = type("MetricsServer", (_ThreadingServer,), {"address_family": family})
        return make_server(str(address[0]), port, _identified(app), server_class, handler_class=_SilentHandler)
    except OSError as error:
        raise OSError(error.errno, f"metrics cannot be served on {addr}:{port}: {error.strerror}") from error


def _identified(app: WSGIApplication) -> WSGIApplication:
    """Add the header with the identity of the storage to the answers of the application."""

    def identified(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            return start_response(status, [*headers, (IDENTITY, _identity())], *exc_info)

        return app(environ, start)

    return identified


def _identity() -> str:
    """A number that the servers of one storage share and that reveals nothing else."""
    storage = config.DEFAULT.storage
    return f"{zlib.crc32(str(storage and storage.identity).encode()):08x}"


def _is_served_by_us(addr: str, port: int) -> bool:
    """Return True if another process serves metrics of the same storage there."""
    with tolerate(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(addr, port, timeout=PROBE_SECONDS)
        try:
            connection.request("OPTIONS", "/")
            return connection.getresponse().getheader(IDENTITY) == _identity()
        finally:
            connection.close()
    return False


class Port:
    """A port on which one process at a time serves metrics; when that process ends, another one takes over.

    All processes show the same metrics, so any of them may answer.
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
        """Return the port of that address, with the application that first asked for it in this process."""
        return cls._ports.setdefault(address, cls(address, app))

    def open(self) -> None:
        """Serve from a daemon thread as soon as no other process does; only the first call in a process has an effect.

        The workers of a master that loads the application serve it, not the master.
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
                if others == 2:  # a process that is ending may fail to answer once
                    text = "%s by another program, or for another storage; name another PDC_METRICS_PORT"
                    log.write(logging.ERROR, text, error.strerror)
                time.sleep(TAKE_OVER_SECONDS)
        self._server.serve_forever()

    @classmethod
    def after_fork_in_child(cls) -> None:
        """Let every port of this process begin anew."""
        for port in cls._ports.values():
            port.begin_anew()

    def begin_anew(self) -> None:
        """Close the socket, which would block the port when the parent ends. Workers of a master open its ports."""
        if self._server is not None:
            self._server.server_close()
        self._server, self._opened = None, threading.Lock()
        self.open_in_worker()

    def open_in_worker(self) -> None:
        """Open the port that the master did not, once the server has made the worker ready."""
        if self._waits_for_workers:
            self.open()

    @classmethod
    def as_worker_starts(cls) -> None:
        """Open every port that waits for a worker."""
        for port in cls._ports.values():
            port.open_in_worker()


FORKS.register(after_in_child=Port.after_fork_in_child)
servers.WORKER_STARTS.append(Port.as_worker_starts)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """A server with bounded numbers of connections and threads: the application needs descriptors, too."""

    daemon_threads = True
    request_queue_size = 4 * MOST_CLIENTS
    """Connections that the kernel queues until they are accepted; one more than socketserver's 5 would wait for seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._since: dict[Any, float] = {}
        """The connections that have a thread, each with the time at which it got one."""
        self._waiting: dict[Any, None] = {}
        """Connections that have sent no request so far, the oldest first."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread; where too many are open, hang up on an old one."""
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

    @property
    def is_answering(self) -> bool:
        """True while a connection that has sent a request is open."""
        return len(self._since) > len(self._waiting)

    def has_request(self, request: Any) -> None:
        """Note that the client has sent its request."""
        self._waiting.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        self.has_request(request)
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on clients that take too long; `serve_forever` calls this twice a second."""
        for request, since in list(self._since.items()):
            if time.monotonic() > since + CLIENT_SECONDS:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, except of clients that hang up or fail at TLS."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _hang_up(request: socket.socket) -> None:
    """Close the connection for threads that read from it or write to it."""
    with tolerate(OSError):
        socket.socket.shutdown(request, socket.SHUT_RDWR)  # the method of a TLS connection would wait for the client


class _ShortRequest:
    """The first bytes of a request, as many as the server reads."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MOST_REQUEST

    def readline(self, most: int) -> bytes:
        """The next line, or a part of it; empty where the request is too long."""
        line: bytes = self._file.readline(min(most, self._left))
        self._left -= len(line)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Answer:
    """The answer to a client that may be gone, which over TLS is an error that `wsgiref` reports at length."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> Any:
        """Send these bytes. Raises ConnectionAbortedError where that fails, which is no error of the server."""
        try:
            return self._file.write(data)
        except OSError as error:
            raise ConnectionAbortedError(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _SilentHandler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def setup(self) -> None:
        """Read no more of the request than a scrape needs."""
        super().setup()
        self.rfile: Any = _ShortRequest(self.rfile)
        self.wfile: Any = _Answer(self.wfile)

    def parse_request(self) -> bool:
        """Parse the request, and report it to the server."""
        is_sound = super().parse_request()
        if isinstance(self.server, _ThreadingServer):
            self.server.has_request(self.request)
        return is_sound

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests: a scrape comes every few seconds."""
