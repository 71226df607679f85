"""``pdc serve``: a process of its own for scrapes."""

from __future__ import annotations

import dataclasses
import signal
import ssl
import threading
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import click

from .. import config
from ..dashboard import answer as answer_browser
from ..dashboard import path_of
from ..exposition import Response, plain, respond, scrape_from_wsgi, start_server, stop_server
from ..http import Access, warn_of_port
from ..options import Options
from ..options.values import EVERY_ADDRESS
from ..storage import Storage, StorageError
from .places import Place, with_place
from .terminal import examples

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEFAULT_PORT = 9100
FINISH_SECONDS = 5.0
"""How long a server that stops goes on with the requests that it has."""
HEALTH_PATH, DEFAULT_PATH = "/healthz", "/metrics"


class Port(click.IntRange):
    """A port, whose errors name the least and the most."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises BadParameter."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected a whole number from {self.min} to {self.max}, got {value!r}", param, ctx)


@click.command(epilog=examples("PDC_METRICS_TOKEN=secret pdc serve --redis redis://localhost:6379/0 --port 9100"))
@with_place
@click.option("--host", metavar="ADDRESS", help=f"The address to listen on (else of PDC_METRICS_PORT, {EVERY_ADDRESS}).")
@click.option("--port", type=Port(0, 65535), metavar="PORT", help=f"The port (else PDC_METRICS_PORT, {DEFAULT_PORT}; 0: any).")
@click.option("--token", metavar="TEXT", help="The bearer token of scrapes (else PDC_METRICS_TOKEN).")
@click.option("--dashboard", is_flag=True, help="Serve a page for browsers, too (else PDC_DASHBOARD).")
@click.option("--certfile", metavar="FILE", type=click.Path(), help="The certificate: serve over TLS.")
@click.option("--keyfile", metavar="FILE", type=click.Path(), help="Its key, unless the same file has it.")
def serve(
    place: Place,
    host: str | None,
    port: int | None,
    token: str | None,
    dashboard: bool,
    certfile: str | None,
    keyfile: str | None,
) -> None:
    """Serve /metrics in a process of its own.

    It is the one scrape target for all programs that share a storage. It counts nothing and writes nothing. /healthz answers
    200 where the storage can be read, and 503 with the reason otherwise. SIGTERM and Ctrl-C stop it once the requests that it
    has are answered.
    """
    options = place.options if token is None else dataclasses.replace(place.options, metrics_token=token)
    options = dataclasses.replace(options, dashboard=dashboard or options.dashboard)
    known_host, known_port = options.metrics_port or (EVERY_ADDRESS, DEFAULT_PORT)
    host, port = known_host if host is None else host, known_port if port is None else port
    if keyfile is not None and certfile is None:
        raise click.UsageError("--keyfile needs --certfile, which is not given", click.get_current_context())
    if token is not None and not token.strip():
        raise click.UsageError("--token must not be empty", click.get_current_context())
    context = _context(certfile, keyfile)
    storage = place.set_up()
    ended = _ending()
    try:
        server, _ = start_server(_app(storage, options), port, host, context)
    except OSError as error:
        raise click.ClickException(f"{error.strerror}; choose another --host or --port") from error
    address = f"{'http' if context is None else 'https'}://{f'[{host}]' if ':' in host else host}:{server.server_port}"
    _announce(address, storage, place, options)
    if options.metrics_decorator is not None:
        warn_of_port(dataclasses.replace(options, metrics_port=(host, port)), "PDC_METRICS_DECORATOR")
    ended.wait()
    stop_server(server, FINISH_SECONDS)
    config.shutdown()


def _announce(address: str, storage: Storage, place: Place, options: Options) -> None:
    """Report where the pages are, and a file that is not there yet: its path may be mistyped."""
    page = options.metrics_path or DEFAULT_PATH
    click.echo(f"pdc: {config.described(storage)} is on {address}{page}", err=True)
    if place.path is not None and not place.path.exists():
        click.echo(f"pdc: there is no file {place.path.absolute()} yet: pages are a 503 until a program counts there", err=True)
    if options.dashboard:
        click.echo(f"pdc: the dashboard is on {address}{path_of(page)}", err=True)


def _context(certfile: str | None, keyfile: str | None) -> ssl.SSLContext | None:
    """The context for TLS; None without a certificate."""
    if certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:
        files = certfile if keyfile is None else f"{certfile} and {keyfile}"
        raise click.ClickException(f"expected a certificate and its key in {files}, got: {error}") from error
    return context


def _ending() -> threading.Event:
    """The event that the first signal to end sets."""
    ended = threading.Event()

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ended


def _app(storage: Storage, options: Options) -> WSGIApplication:
    """The application: metrics at their path, and the health of the storage. The guards of the options guard the metrics."""
    access, path = Access(options), options.metrics_path or DEFAULT_PATH
    for_people = path_of(path) if options.dashboard else None
    known = [path, HEALTH_PATH, for_people]

    def answer(environ: WSGIEnvironment) -> Response:
        scrape, asked = scrape_from_wsgi(environ), environ.get("PATH_INFO", "")
        if asked not in known:
            return plain(HTTPStatus.NOT_FOUND, f"metrics are at {path}, the health of the storage is at {HEALTH_PATH}")
        refusal = access.refusal(scrape, by_browser=asked == for_people)
        if asked == HEALTH_PATH:
            return scrape.sent(_health(storage, shows_reason=refusal is None))
        if refusal is not None:
            return scrape.sent(refusal)
        return answer_browser(scrape) if asked == for_people else scrape.answer()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return respond(answer(environ), start_response)

    return app


def _health(storage: Storage, *, shows_reason: bool) -> Response:
    """The health of a storage. Only clients that may read metrics see the reason, which names the storage."""
    try:
        storage.id()
    except StorageError as error:
        return plain(HTTPStatus.SERVICE_UNAVAILABLE, str(error) if shows_reason else "the storage cannot be read")
    return plain(HTTPStatus.OK, "the storage can be read")
