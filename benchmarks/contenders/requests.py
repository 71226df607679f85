"""Requests without a server: the worker calls the application directly, and reads its answer to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from wsgiref.util import setup_testing_defaults

from benchmarks.worker import Operation

HEADERS = {"host": "shop.example", "user-agent": "benchmark/1.0", "accept": "*/*", "accept-encoding": "gzip, deflate"}
BODY = "an item"


def wsgi(app: Callable[..., Any], path: str) -> Operation:
    """GET requests to a WSGI application."""
    prepared: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in HEADERS.items()}
    prepared |= {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "REMOTE_ADDR": "127.0.0.1"}
    setup_testing_defaults(prepared)
    statuses: list[str] = []

    def start_response(status: str, _: list[tuple[str, str]], __: Any = None) -> Callable[[bytes], object]:
        statuses.append(status)
        return statuses.append  # type: ignore[return-value]  # nothing writes

    def request(times: int) -> None:
        statuses.clear()
        for _ in range(times):
            body = app(prepared.copy(), start_response)
            for _ in body:
                pass
            if hasattr(body, "close"):
                body.close()
        _check(statuses, "200 OK", times)

    return request


def asgi(app: Callable[..., Awaitable[None]], path: str) -> Operation:
    """GET requests to an ASGI application, one after the other in one event loop."""
    loop = asyncio.new_event_loop()
    prepared: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in HEADERS.items()],
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 80),
    }
    statuses: list[int] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def request() -> None:
        received = False

        async def receive() -> dict[str, Any]:
            nonlocal received
            if received:  # the body has ended, and the client stays connected
                await loop.create_future()
            received = True
            return {"type": "http.request", "body": b"", "more_body": False}

        await app(prepared.copy(), receive, send)

    async def requests(times: int) -> None:
        statuses.clear()
        for _ in range(times):
            await request()
        _check(statuses, 200, times)

    return lambda times: loop.run_until_complete(requests(times))


def _check(statuses: list[Any], expected: Any, times: int) -> None:
    if statuses != [expected] * times:
        raise RuntimeError(f"expected {times} answers {expected!r}, got {set(statuses)}, {len(statuses)} in all")
