"""A scrape: the request, the response to it, and the WSGI and ASGI applications that give it."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from prometheus_client.registry import Collector

from .. import config
from ..delivery import NotConfigured
from ..process.interruption import let_through
from ..storage import StorageError
from .collection import render
from .negotiation import accepts_gzip, negotiate
from .others import OtherCollectors

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

METHODS = "GET, HEAD, OPTIONS"


class Response(NamedTuple):
    """The response to a scrape, for any kind of server; a view of Flask may return it as it is."""

    body: bytes
    status: int
    headers: dict[str, str]


class Scrape(NamedTuple):
    """A request for metrics."""

    method: str = "GET"
    query: str = ""
    accept: str = ""
    accept_encoding: str = ""
    authorization: str = ""
    client: str = ""
    """The address of the client; empty where the server has none, as on a Unix socket."""

    def answer(self, registry: Collector | OtherCollectors | None = None, *, compress: bool = True) -> Response:
        """Read the storage once and render it as the client asked; 503 with the reason where it cannot be read."""
        encoder, content_type = negotiate(self.accept)
        page = partial(render, encoder, registry, parse_qs(self.query).get("name[]"), own=True)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        return self.answer_with(page, headers, compress=compress)

    def answer_with(self, make: Callable[[], bytes], headers: Mapping[str, str], *, compress: bool = True) -> Response:
        """Answer with the body that `make` returns and these headers; 503 with the reason where it cannot read the storage."""
        if self.method == "OPTIONS":
            return plain(HTTPStatus.OK, METHODS, ("Allow", METHODS))
        if self.method not in ("GET", "HEAD"):
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.method} is not one of {METHODS}", ("Allow", METHODS))
        try:
            body = make()
        except (StorageError, NotConfigured) as error:
            waiting = config.waiting_series()
            message = f"{error}\n# {waiting} series of this process wait in memory" if waiting else str(error)
            return self.sent(plain(HTTPStatus.SERVICE_UNAVAILABLE, message))
        headers = dict(headers)
        if compress and accepts_gzip(self.accept_encoding):
            body = gzip.compress(body, compresslevel=6, mtime=0)
            headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(body))
        return self.sent(Response(body, HTTPStatus.OK, headers))

    def sent(self, response: Response) -> Response:
        """The response as the method of the scrape allows it: without a body for HEAD."""
        return response._replace(body=b"") if self.method == "HEAD" else response


def plain(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Response:
    """A short response in plain text."""
    body = f"# {message}\n".encode()
    ours = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
    return Response(body, status, {**dict(headers), **ours})


def scrape_response(request: Any, registry: Collector | None = None) -> Response:
    """Answer the scrape of a view, as the extensions do: body, status and headers.

    The request is one of Flask, Django or Starlette, a WSGI environment or an ASGI scope. It decides about the format and
    the compression. A storage that cannot be read is a 503 with the reason. The collectors of a registry come after the
    metrics of the storage. This reads the storage: call it in a thread, not in a coroutine.

        return scrape_response(request)  # Flask
        return Response(*scrape_response(request))  # Starlette, FastAPI
        body, status, headers = scrape_response(request)
        return HttpResponse(body, status=status, headers=headers)  # Django

    Raises TypeError for other requests.
    """
    source: Any = (
        request if isinstance(request, Mapping) else getattr(request, "META", None) or getattr(request, "environ", None)
    )
    if source is None:
        expected = "a request of Flask, Django or Starlette, a WSGI environment or an ASGI scope"
        raise TypeError(f"request must be {expected}, got {request!r}")
    return (scrape_from_wsgi if "REQUEST_METHOD" in source else scrape_from_asgi)(source).answer(registry)


def make_wsgi_app(registry: Collector | None = None, disable_compression: bool = False) -> WSGIApplication:
    """A WSGI app that serves the text of `generate_latest` on any path but that of an icon, which browsers ask for, too."""

    def metrics_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/favicon.ico":
            return respond(Response(b"", HTTPStatus.OK, {"Content-Length": "0"}), start_response)
        return respond(scrape_from_wsgi(environ).answer(registry, compress=not disable_compression), start_response)

    return metrics_app


def respond(response: Response, start_response: StartResponse) -> Iterable[bytes]:
    """Give the response to a WSGI server."""
    start_response(f"{response.status} {HTTPStatus(response.status).phrase}", [*response.headers.items()])
    return [response.body]


def scrape_from_wsgi(environ: WSGIEnvironment) -> Scrape:
    """The scrape that a WSGI environment asks for."""
    return Scrape(
        method=environ["REQUEST_METHOD"],
        query=environ.get("QUERY_STRING", ""),
        accept=environ.get("HTTP_ACCEPT", ""),
        accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        authorization=environ.get("HTTP_AUTHORIZATION", ""),
        client=environ.get("REMOTE_ADDR", ""),
    )


def make_asgi_app(registry: Collector | None = None, disable_compression: bool = False) -> ASGIApplication:
    """An ASGI app, for asyncio and trio, that serves the same as `make_wsgi_app`; it reads the storage in a thread."""

    async def metrics_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"metrics are served over HTTP, got a connection of type {scope['type']!r}")
        answer = partial(scrape_from_asgi(scope).answer, registry, compress=not disable_compression)
        response = await in_thread(answer)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    return metrics_app


def scrape_from_asgi(scope: Mapping[str, Any]) -> Scrape:
    """The scrape that an ASGI scope asks for."""

    def header(wanted: bytes) -> str:
        return ",".join(value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == wanted)

    return Scrape(
        method=scope["method"],
        query=scope.get("query_string", b"").decode("latin-1"),
        accept=header(b"accept"),
        accept_encoding=header(b"accept-encoding"),
        authorization=header(b"authorization"),
        client=(scope.get("client") or ("",))[0],
    )


async def _live(receive: Receive, send: Send) -> None:
    """Complete each event of the lifespan protocol: the app has nothing to start or stop."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def in_thread(answer: Callable[[], Response]) -> Response:
    """Answer in a thread of asyncio or trio. The first thread of anyio would keep the event loop waiting for its imports."""
    trio = sys.modules.get("trio")
    if trio is not None and _is_in_trio(trio):
        response: Response = await trio.to_thread.run_sync(answer)
        return response
    import asyncio  # only here: it takes longer to import than all of pdc

    return await asyncio.to_thread(answer)


def _is_in_trio(trio: Any) -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError as error:
        let_through(error)
        return False
    return True
