"""A TCP proxy before a redis-server that drops replies, cuts connections, freezes, delays and refuses, on command."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

BATCH = b"EVALSHA"
"""Text that every request with a batch contains, and no other request."""
CHUNK = 1 << 16
"""Bytes; a request that is to be late must not be longer."""
SLOW_SECONDS = 0.001
"""The pause between two pieces of a slow reply."""


class Fault(Enum):
    """The fault of a request; except for `LATE` the server has applied it."""

    LOSE = auto()
    """The connection is closed instead of the reply."""
    CUT = auto()
    """Half of the reply comes, then the connection is closed."""
    FREEZE = auto()
    """No reply comes until the client gives up."""
    SLOW = auto()
    """The reply comes in small pieces."""
    LATE = auto()
    """The connection is closed, and the request reaches the server with `release`, as in a network that healed."""


class FaultProxy:
    """Connects clients with the server on that port; its methods apply to all connections.

    It counts the requests that write batches, which a client sends one by one on each connection.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.requests = 0
        self.injected: Counter[Fault] = Counter()
        self.late: list[bytes] = []
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._plan: Iterator[Fault | None] = itertools.repeat(None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self.accept()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The server's URL through the proxy, for clients that soon find it frozen."""
        return f"redis://127.0.0.1:{self.port}/0?socket_timeout=0.2"

    def every(self, number: int, *faults: Fault) -> None:
        """Let every request of that number fail from here on, with each of these faults in turn; without any, all succeed."""
        healthy: list[Fault | None] = [None] * (number - 1)
        self._plan = itertools.chain.from_iterable([*healthy, fault] for fault in itertools.cycle(faults or (None,)))

    def heal(self) -> None:
        """Let all requests succeed from here on."""
        self.every(1)

    def refuse(self) -> None:
        """Close all connections, and accept no others."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Accept connections."""
        self._do(self._accept())

    def release(self) -> None:
        """Forward the late requests to the server, and wait for its answers."""
        self._do(self._release())

    def next_fault(self) -> Fault | None:
        """The fault of the next request."""
        self.requests += 1
        fault = next(self._plan)
        if fault is not None:
            self.injected[fault] += 1
        return fault

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _accept(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        with suppress(BlockingIOError):
            client, _ = self._listener.accept()
            task = self._loop.create_task(self._connect(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refuse(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        while self._tasks:
            for connection in self._connections:
                connection.close()
            await asyncio.sleep(0.001)

    async def _release(self) -> None:
        while self.late:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server_port)
            writer.write(self.late.pop(0))
            assert await reader.read(1 << 16)
            writer.close()
            await writer.wait_closed()

    async def _connect(self, client: socket.socket) -> None:
        ends = await asyncio.open_connection(sock=client), await asyncio.open_connection("127.0.0.1", self.server_port)
        connection = _Connection(self, *ends)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _Connection:
    """The two halves of a connection, and the fault of the request on its way."""

    def __init__(self, proxy: FaultProxy, client: Streams, server: Streams) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._request = b""
        self._replying = True
        self._fault: Fault | None = None

    async def run(self) -> None:
        """Carry requests and replies until one of the sides has closed, or must be closed."""
        pumps = [
            asyncio.ensure_future(self._pump(self._from_client, self._carry_request)),
            asyncio.ensure_future(self._pump(self._from_server, self._carry_reply)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self.close()
        await asyncio.gather(*pumps)
        for writer in (self._to_client, self._to_server):
            with suppress(ConnectionError):
                await writer.wait_closed()

    def close(self) -> None:
        """Close both sides."""
        self._to_client.close()
        self._to_server.close()

    async def _pump(self, reader: asyncio.StreamReader, carry: Callable[[bytes], Awaitable[bool]]) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                if not await carry(data):
                    break

    async def _carry_request(self, data: bytes) -> bool:
        if self._replying:
            self._request, self._replying, self._fault = b"", False, None
        before, self._request = self._request, self._request + data
        if BATCH in self._request and BATCH not in before:
            self._fault = self._proxy.next_fault()
        if self._fault is Fault.LATE:
            self._proxy.late.append(self._request)
            return False
        self._to_server.write(data)
        await self._to_server.drain()
        return True

    async def _carry_reply(self, data: bytes) -> bool:
        self._replying = True
        if self._fault is Fault.CUT:
            data = data[: len(data) // 2]
        elif self._fault in (Fault.LOSE, Fault.FREEZE):
            data = b""
        step = 8 if self._fault is Fault.SLOW else CHUNK
        for first in range(0, len(data), step):
            self._to_client.write(data[first : first + step])
            await self._to_client.drain()
            await asyncio.sleep(SLOW_SECONDS if self._fault is Fault.SLOW else 0)
        return self._fault not in (Fault.LOSE, Fault.CUT)
