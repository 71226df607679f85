"""Exceptions, streams, sizes and clients that go away, in Starlette and FastAPI."""

# ruff: noqa: ARG001 - views, handlers and applications accept the arguments of the framework

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import starlette_applications
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette_applications import (
    Make,
    Message,
    ScopeCopy,
    add,
    client,
    fail,
    failed,
    fine,
    ignore,
    never,
    requests,
    scope,
    sorry,
    sorry_async,
    stored,
)

from pdc_starlette import PrometheusMiddleware, instrument

# pytest finds these fixtures by their names here.
framework = starlette_applications.framework
options = starlette_applications.options
make_app = starlette_applications.make_app


class Swallow(BaseHTTPMiddleware):
    """A middleware that turns exceptions into answers."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        """Answer."""
        try:
            return await call_next(request)  # type: ignore[no-any-return]  # call_next is Any
        except KeyError:
            return PlainTextResponse("sorry", 418)


@pytest.mark.parametrize("reading", [{}, {"labels": {"a": lambda _, answer: answer.headers["x-a"]}}, {"first_byte": True}])
def test_the_server_gets_headers_that_can_be_read_once(options: dict[str, Any], reading: dict[str, Any]) -> None:
    """The headers of an application may be any iterable, which the server must be able to read after us."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        headers = (pair for pair in [(b"x-a", b"1"), (b"content-length", b"4")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"done"})

    answer = client(PrometheusMiddleware(app, **options, **reading)).get("/")
    assert (answer.text, dict(answer.headers)) == ("done", {"x-a": "1", "content-length": "4"})


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("handled", "status"), [(None, "500"), (sorry, "418"), (sorry_async, "418"), (Swallow, "418"), (Exception, "500")]
)
def test_exceptions_are_counted_whether_handled_or_not(make_app: Make, handled: Any, status: str, copied: bool) -> None:
    """An exception that leaves a view counts once, whichever handler answers it."""
    inner = [Middleware(ScopeCopy)] if copied else []
    app = make_app({"/broken/{id}": fail}, inner + ([Middleware(Swallow)] if handled is Swallow else []))
    if handled in (sorry, sorry_async):
        app.add_exception_handler(LookupError, handled)
    elif handled is Exception:
        app.add_exception_handler(Exception, failed)
    assert str(client(app).get("/broken/1").status_code) == status
    assert stored("http_exceptions_total") == {("KeyError", "GET", "/broken/{id}"): 1.0}
    assert requests() == {("GET", "/broken/{id}", status): 1.0}


def test_exceptions_of_mounted_applications_are_counted(make_app: Make) -> None:
    """An exception that a mounted application handles counts under the whole template, once wherever it is mounted."""
    part = Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry})
    app = make_app()
    app.mount("/a", part)
    app.mount("/b", CORSMiddleware(part))
    for path in ("/a/broken", "/b/broken"):
        assert client(app).get(path).status_code == 418
    assert stored("http_exceptions_total") == {("KeyError", "GET", f"/{prefix}/broken"): 1.0 for prefix in "ab"}


def test_exceptions_of_applications_that_are_mounted_late_are_counted(make_app: Make) -> None:
    """An exception that a mounted application handles counts, also where it was mounted after the first request."""
    app, outer = make_app({"/": fine}), Starlette()
    app.mount("/outer", outer)
    web = client(app)
    web.get("/")
    for number, parent in enumerate((app, outer)):
        parent.mount(f"/{number}", Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry}))
    for path in ("/0/broken", "/outer/1/broken"):
        assert web.get(path).status_code == 418
    app.routes[-1] = Mount("/2", Starlette(routes=[Route("/broken", fail)], exception_handlers={KeyError: sorry}))
    assert web.get("/2/broken").status_code == 418
    assert {route for _, _, route in stored("http_exceptions_total")} == {"/0/broken", "/outer/1/broken", "/2/broken"}


@pytest.mark.parametrize("handler", [sorry, sorry_async])
def test_the_handler_of_every_exception_makes_the_answer(make_app: Make, handler: Any) -> None:
    """A request counts with the status, the size and the labels of the answer of the application's handler of `Exception`."""

    async def kind(_: Request, response: Response) -> str:
        return response.headers.get("Content-Type", "?").partition(";")[0]

    app = make_app({"/broken": fail, "/stream": broken_stream}, sizes=True, labels={"kind": kind})
    app.add_exception_handler(Exception, handler)
    web = client(app)
    answer = web.get("/broken")
    assert answer.status_code == 418
    web.get("/stream")
    assert requests() == {("text/plain", "GET", "/broken", "418"): 1.0, ("?", "GET", "/stream", "200"): 1.0}
    assert stored("http_response_size_bytes_sum")["text/plain", "GET", "/broken", "418"] == len(answer.content)
    assert stored("http_exceptions_total")["KeyError", "text/plain", "GET", "/broken"] == 1.0


def test_a_handler_of_every_exception_may_fail(make_app: Make) -> None:
    """Where the application's handler of `Exception` raises, the request counts as status 500."""
    app = make_app({"/broken": fail})
    app.add_exception_handler(Exception, failed)
    assert client(app).get("/broken").status_code == 500
    assert requests() == {("GET", "/broken", "500"): 1.0}


def test_an_http_exception_is_an_answer(make_app: Make) -> None:
    """HTTPException is a status, also where the application has a handler for it."""

    async def missing(request: Request) -> Response:
        raise HTTPException(404)

    app = make_app({"/missing": missing})
    app.add_exception_handler(404, sorry)
    assert client(app).get("/missing").status_code == 418
    assert stored("http_exceptions_total") == {}
    assert requests() == {("GET", "/missing", "418"): 1.0}


def test_input_that_fastapi_refuses_is_no_exception(options: dict[str, Any]) -> None:
    """A request that does not validate is a status 422; an answer that does not is an exception."""
    app = FastAPI()
    instrument(app, **options)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return "no number"  # type: ignore[return-value]  # the tested value

    for path in ("/number/x", "/number/1"):
        client(app).get(path)
    assert stored("http_exceptions_total") == {("ResponseValidationError", "GET", "/number/{number}"): 1.0}
    assert requests() == {("GET", "/number/{number}", status): 1.0 for status in ("422", "500")}


def test_a_stream_is_in_progress_until_its_last_byte(make_app: Make) -> None:
    """A streamed body is in progress until its end; then it is counted, before background tasks run."""
    seen: list[tuple[float, int]] = []

    def look() -> None:
        seen.append((stored("http_requests_in_progress")[("GET",)], len(stored("http_requests_total"))))

    async def stream(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "a"
            look()
            yield "b"

        return StreamingResponse(chunks(), background=BackgroundTask(look))

    assert client(make_app({"/stream": stream})).get("/stream").text == "ab"
    assert seen == [(1.0, 0), (0.0, 1)]
    assert requests() == {("GET", "/stream", "200"): 1.0}


async def broken_stream(request: Request) -> Response:
    """Fail in mid-stream."""

    async def chunks() -> AsyncIterator[str]:
        yield "a"
        raise KeyError("b")

    return StreamingResponse(chunks())


def test_a_failure_in_mid_stream_is_an_exception(make_app: Make) -> None:
    """A stream that breaks keeps the status that was sent already; the exception is counted."""
    client(make_app({"/stream": broken_stream})).get("/stream")
    assert stored("http_exceptions_total") == {("KeyError", "GET", "/stream"): 1.0}
    assert requests() == {("GET", "/stream", "200"): 1.0}


async def endless(request: Request) -> Response:
    """Stream until the client disconnects."""

    async def chunks() -> AsyncIterator[str]:
        while True:
            yield "more"
            await asyncio.sleep(0)

    return StreamingResponse(chunks())


async def upload(request: Request) -> Response:
    """Wait for the body."""
    return PlainTextResponse(await request.body())


@pytest.mark.parametrize("path", ["/endless", "/upload"])
@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])
@pytest.mark.parametrize("inner", [[], [Middleware(Swallow)]])
def test_a_client_that_goes_away_is_a_499(make_app: Make, path: str, spec_version: str, inner: list[Middleware]) -> None:
    """A client that disconnects while it sends or receives a body is status 499, and causes no exception."""
    app = make_app({"/endless": endless}, inner)
    add(app, "/upload", upload, ["GET"])
    sent: list[Message] = []

    async def receive() -> Message:
        while path == "/endless" and len(sent) < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 3:
            raise OSError("the client is gone")

    async def run() -> None:
        asgi = {"version": "3.0", "spec_version": spec_version}
        try:
            await app(scope(path, asgi=asgi), receive, send)
        except Exception as error:  # noqa: BLE001 - the exception that reaches the server differs between versions
            assert isinstance(error, (OSError, ClientDisconnect)), error  # noqa: PT017

    asyncio.run(run())
    assert requests() == {("GET", path, "499"): 1.0}
    assert stored("http_exceptions_total") == {}


def test_a_request_that_is_cancelled_is_a_499(make_app: Make) -> None:
    """A server that cancels a request leaves it counted as 499."""

    async def run() -> None:
        entered = asyncio.Event()

        async def wait(request: Request) -> Response:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

        task = asyncio.create_task(make_app({"/wait": wait})(scope("/wait"), never, ignore))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert requests() == {("GET", "/wait", "499"): 1.0}


@pytest.mark.parametrize("length", [b"many", b"-1", "²".encode("latin-1")])
def test_a_malformed_length_is_no_matter(make_app: Make, length: bytes) -> None:
    """A Content-Length that is no number, in request or response, breaks nothing; the passing bodies are measured."""

    async def odd(request: Request) -> Response:
        response = Response(await request.body())
        response.raw_headers = [(b"content-length", length)]
        return response

    app, messages = make_app({"/odd": odd}, sizes=True), [{"type": "http.request", "body": b"12345"}]

    async def receive() -> Message:
        return messages.pop()

    asyncio.run(app(scope("/odd", headers=[(b"content-length", length)]), receive, ignore))
    assert requests() == {("GET", "/odd", "200"): 1.0}
    for size in ("http_request_size_bytes_sum", "http_response_size_bytes_sum"):
        assert stored(size) == {("GET", "/odd", "200"): 5.0}


def test_a_file_that_the_server_sends_is_counted(make_app: Make) -> None:
    """With the extension http.response.pathsend the message that names the file ends the answer."""

    async def sendfile(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.pathsend", "path": "/some/file"})
        assert requests() == {("GET", "/files", "200"): 1.0}

    app = make_app(sizes=True)
    app.mount("/files", sendfile)
    asyncio.run(app(scope("/files/a"), never, ignore))
    assert stored("http_response_size_bytes_sum") == {("GET", "/files", "200"): 7.0}
