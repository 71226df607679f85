"""WebSockets of Starlette and FastAPI."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import pytest
import starlette_applications
from starlette.exceptions import WebSocketException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from starlette_applications import ASGI, Make, Message, ScopeCopy, client, fine, requests, stored

from pdc_starlette import exclude

# pytest finds these fixtures by their names here.
framework = starlette_applications.framework
options = starlette_applications.options
make_app = starlette_applications.make_app


def test_websockets_are_counted_apart(make_app: Make) -> None:
    """A WebSocket counts once accepted, is in progress until it ends, and is never a request; a refused one is not counted."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(stored("websocket_connections_in_progress")[()]))

    async def refuse(websocket: WebSocket) -> None:
        await websocket.close()

    async def broken(websocket: WebSocket) -> None:
        await websocket.accept()
        raise KeyError(websocket.url.path)

    app = make_app({"/rooms/{room}": fine}, exclude_paths=["/quiet"])
    for path, endpoint in {"/rooms/{room}": echo, "/refused": refuse, "/broken": broken, "/quiet": echo}.items():
        app.router.routes.append(WebSocketRoute(path, endpoint))
    web = client(app)
    with web.websocket_connect("/rooms/1") as websocket:
        assert websocket.receive_text() == "1.0"
    for path, error in {"/refused": WebSocketDisconnect, "/nowhere": WebSocketDisconnect, "/broken": KeyError}.items():
        with pytest.raises(error), web.websocket_connect(path):
            pass
    with web.websocket_connect("/quiet") as websocket:
        assert websocket.receive_text() == "0.0"
    assert stored("websocket_connections_total") == {("/rooms/{room}",): 1.0, ("/broken",): 1.0}
    assert stored("websocket_duration_seconds_count") == {("/rooms/{room}",): 1.0, ("/broken",): 1.0}
    assert stored("websocket_connections_in_progress") == {(): 0.0}
    assert requests() == {}


def test_a_connection_that_is_accepted_twice_counts_once(make_app: Make) -> None:
    """A second acceptance, which servers refuse, leaves no connection in progress."""

    async def twice(websocket: WebSocket) -> None:
        for _ in range(2):
            await websocket._send({"type": "websocket.accept"})  # as an application without Starlette's class may do

    app = make_app({})
    app.router.routes.append(WebSocketRoute("/", twice))
    with client(app).websocket_connect("/"):
        pass
    assert stored("websocket_connections_total") == {("/",): 1.0}
    assert stored("websocket_connections_in_progress") == {(): 0.0}


async def _fail_socket(websocket: WebSocket) -> None:
    if websocket.url.path == "/refused":
        raise WebSocketException(1008)
    if websocket.url.path == "/early":
        raise LookupError
    await websocket.accept()
    if websocket.url.path == "/left":
        await websocket.receive_text()
    raise ZeroDivisionError if websocket.url.path == "/handled" else KeyError


async def _close(websocket: WebSocket, _: Exception) -> None:
    await websocket.close()


@pytest.mark.parametrize("inner", [[], [Middleware(ScopeCopy)]])
def test_exceptions_in_websockets_are_counted(make_app: Make, inner: list[Middleware]) -> None:
    """An exception that leaves the view of a WebSocket counts once, handled or not; refusals and clients that leave do not."""

    async def zone(connection: HTTPConnection) -> str:
        await asyncio.sleep(0)
        return connection.headers["x-zone"]

    app = make_app({"/": fine}, inner, labels={"zone": zone}, exclude_paths=["/quiet"])
    app.add_exception_handler(ZeroDivisionError, _close)
    for path in ("/broken/{id}", "/early", "/handled", "/refused", "/left", "/quiet"):
        app.router.routes.append(WebSocketRoute(path, _fail_socket))
    app.router.routes.append(WebSocketRoute("/unseen", exclude(partial(_fail_socket))))
    web = client(app)
    for path in ("/broken/1", "/early", "/handled", "/refused", "/left", "/quiet", "/unseen"):
        with (
            suppress(LookupError, TypeError, WebSocketDisconnect),
            web.websocket_connect(path, headers={"X-Zone": "eu"}) as websocket,
        ):
            if path != "/left":
                websocket.receive_text()
    assert stored("websocket_exceptions_total") == {
        ("KeyError", "/broken/{id}", "eu"): 1.0,
        ("LookupError", "/early", "eu"): 1.0,
        ("ZeroDivisionError", "/handled", "eu"): 1.0,
    }
    assert stored("websocket_connections_in_progress") == {(): 0.0}


class AcceptAll:
    """A middleware that accepts the WebSockets which no route matches."""

    def __init__(self, app: ASGI) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: ASGI, send: ASGI) -> None:
        """Answer, or pass on."""
        if scope["type"] == "websocket" and scope["path"] == "/nowhere":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        else:
            await self.app(scope, receive, send)


def test_websockets_have_no_response_and_may_be_unmatched(make_app: Make) -> None:
    """A label of the response is empty; with count_unmatched=False a WebSocket that no route matches is not counted."""

    async def fine_socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    labels = {"code": lambda _, response: response.status_code, "zone": lambda connection: connection.url.path}
    app = make_app({}, [Middleware(AcceptAll)], labels=labels, count_unmatched=False)
    app.router.routes.append(WebSocketRoute("/rooms/{room}", fine_socket))
    for path in ("/rooms/1", "/nowhere"):
        with client(app).websocket_connect(path) as socket, pytest.raises(WebSocketDisconnect):
            socket.receive_text()
    assert stored("websocket_connections_total") == {("", "/rooms/{room}", "/rooms/1"): 1.0}
    assert stored("websocket_duration_seconds_count") == {("", "/rooms/{room}", "/rooms/1"): 1.0}


def test_excluded_websockets_are_not_counted(make_app: Make) -> None:
    """A WebSocket whose endpoint is excluded works and is not counted."""

    @exclude
    async def quiet(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app = make_app()
    app.router.routes.append(WebSocketRoute("/quiet", quiet))
    with client(app).websocket_connect("/quiet") as socket, pytest.raises(WebSocketDisconnect):
        socket.receive_text()
    assert not stored("websocket_connections_total")
    assert not any(stored("websocket_duration_seconds_count").values())


def test_open_websockets_are_shown_by_route(make_app: Make) -> None:
    """With in_progress_by_route the open connections have their route; names with a scheme have that of a connection."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(stored("websocket_connections_in_progress")))

    app = make_app(in_progress_by_route=True, names="otel")
    app.router.routes.append(WebSocketRoute("/rooms/{room}", echo))
    with client(app).websocket_connect("/rooms/1") as websocket:
        assert websocket.receive_text() == str({("/rooms/{room}",): 1.0})
    assert stored("websocket_connections_in_progress") == {("/rooms/{room}",): 0.0}
    assert stored("websocket_connections_total") == {("/rooms/{room}", "http"): 1.0}
