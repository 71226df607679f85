"""The flushes that a Redis server carries, or the busiest node of a cluster: those of one process, in the names of others."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import random
import re
import select
import socket
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import urlsplit

from benchmarks.redis_server import RedisServer, cluster
from benchmarks.worker import Operation

from .by_hand import ByHand
from .flushes import answer_requests
from .libraries import PDC

CONNECTIONS = 50
"""So many flushes wait for the server at once; more wait in the driver."""
FLUSHES = 100
"""The flushes of one operation at full load."""
CALIBRATIONS = 3
"""So often the full load is measured before a part of it; the fastest counts, since other programs only slow it down."""
SECONDS = 0.5
"""The time of a measurement at a part of the full load."""
SCRAPE_PAUSE_SECONDS = 0.02


def make(nodes: int, routes: int, writers: int, measured: str, prefix: str = "", share: float = 1.0) -> Operation:
    """Flushes of so many routes to one server, or to the busiest of so many nodes of a cluster.

    `FLUSHES` of them come as fast as they are answered (``full load``), and the operation may return the ``processor`` seconds
    of the server. At a `share` of that rate, it returns the ``median`` or the ``worst`` (99 of 100) of the seconds until the
    answer, or the seconds of a ``scrape`` of all servers. The prefix decides which metrics share a node.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    url = stack.enter_context(cluster(Path(), nodes)) if nodes > 1 else stack.enter_context(RedisServer(Path())).new_database()
    library = PDC(3600.0, redis=url, redis_prefix=prefix)
    drivers = [Driver(messages, urlsplit(url).path[1:], writers) for messages in by_server(recorded(library, routes))]
    for driver in drivers:
        driver.flush(-(-writers // FLUSHES))
    busiest = drivers[-1]
    if measured in AT_FULL_LOAD:
        return partial(AT_FULL_LOAD[measured], busiest)
    return lambda _: AT_A_SHARE[measured](library, busiest, share * busiest.full_rate())


class Message(NamedTuple):
    """Bytes that a client sends before it waits for answers, of a writer whose name and sequence are replaced by marks."""

    port: int
    template: bytes
    answers: int


WRITER, SEQUENCE = b"0" * 8, b"0" * 14
"""The last part of the name of a writer, and the start of a sequence, in the templates."""


def recorded(library: PDC, routes: int) -> list[Message]:
    """The messages of a flush after a request to each of so many routes, while another one is in progress."""
    from redis.connection import Connection

    import pdc.config

    storage: Any = pdc.config.DEFAULT.required()
    connections: Any = Connection
    apply, send = storage.apply, connections.send_packed_command
    batches: list[Any] = []
    sent: list[tuple[int, bytes]] = []

    def record_and_apply(batch: Any) -> Any:
        batches.append(batch)
        return apply(batch)

    def record_and_send(connection: Any, command: Any, **how: Any) -> None:
        sent.append((connection.port, command if isinstance(command, bytes) else b"".join(command)))
        send(connection, command, **how)

    metrics = ByHand(library.metrics, registry=None, multiprocess_mode="livesum")
    for _ in range(3):  # the first flushes of a process also declare its metrics
        metrics.begin("GET")
        answer_requests(metrics, routes)
        sent.clear()
        with (
            patch.object(storage, "apply", record_and_apply),
            patch.object(connections, "send_packed_command", record_and_send),
        ):
            library.settle()
    return [_message(port, message, batches[-1]) for port, message in sent]


def _message(port: int, message: bytes, last: Any) -> Message:
    """The message with marks in place of the name and the sequence, which becomes longer."""
    writer = last.writer.encode()
    name = writer[: -len(WRITER)] + WRITER

    def marked(found: re.Match[bytes]) -> bytes:
        return b"%b\r\n$16\r\n%b%02d\r\n" % (name, SEQUENCE, 99 + int(found[1]) - last.sequence)

    longer = re.sub(re.escape(writer) + rb"\r\n\$\d+\r\n(\d+)\r\n", marked, message)
    return Message(port, longer.replace(writer, name), len(_answers(message)))


def _answers(data: bytes) -> list[Any]:
    """The commands, or the answers, in these bytes."""
    import hiredis

    reader = hiredis.Reader()
    reader.feed(data)
    return [*iter(reader.gets, False)]


def by_server(messages: list[Message]) -> list[list[Message]]:
    """The messages to each server; last those to the one that gets the most bytes, which is the busiest."""
    servers = [[each for each in messages if each.port == port] for port in {each.port for each in messages}]
    return sorted(servers, key=lambda found: sum(len(each.template) for each in found))


class Driver:
    """Sends flushes in the names of so many writers, in turns."""

    def __init__(self, messages: list[Message], database: str, writers: int) -> None:
        from redis import Redis

        self._messages = messages
        self._server: Any = Redis("127.0.0.1", messages[0].port, db=int(database or 0))
        self._idle = [_Connection(messages[0].port, database) for _ in range(CONNECTIONS)]
        self._names = [b"%08x" % number for number in range(writers)]
        self._numbers = count()
        self._chance = random.Random(0)

    def close(self) -> None:
        """Close all connections."""
        for each in (self._server, *self._idle):
            each.close()

    def flush(self, times: int) -> None:
        """Send `FLUSHES` so many times, as fast as they are answered."""
        for _ in self._waits(time.perf_counter() for _ in range(times * FLUSHES)):
            pass

    def processor(self, times: int) -> float:
        """The processor seconds of the server for the same."""
        before = self._spent()
        self.flush(times)
        return self._spent() - before

    def full_rate(self) -> float:
        """The flushes per second at full load."""
        return FLUSHES / min(timeit.repeat(lambda: self.flush(1), number=1, repeat=CALIBRATIONS))

    def flush_at(self, rate: float) -> list[float]:
        """The seconds until the answers of flushes that begin at random moments, so many per second."""
        return [*self._waits(self._moments(rate))]

    def _moments(self, rate: float) -> Iterator[float]:
        moment = time.perf_counter()
        end = moment + SECONDS
        while rate and (moment := moment + self._chance.expovariate(rate)) < end:
            yield moment

    def _waits(self, moments: Iterator[float]) -> Iterator[float]:
        """Send a flush at each of these moments; yields how long after that its last answer arrived."""
        waiting: dict[_Connection, float] = {}
        moment = next(moments, math.inf)
        while waiting or moment < math.inf:
            while self._idle and moment <= time.perf_counter():
                connection = self._idle.pop()
                connection.begin(self._flush())
                waiting[connection] = moment
                moment = next(moments, math.inf)
            is_due = self._idle and moment < math.inf
            timeout = max(moment - time.perf_counter(), 0.0) if is_due else None
            for connection in select.select(waiting, (), (), timeout)[0]:
                if connection.has_ended():
                    self._idle.append(connection)
                    yield time.perf_counter() - waiting.pop(connection)

    def _flush(self) -> Iterator[tuple[bytes, int]]:
        """The messages of the next writer, and the numbers of their answers."""
        name = self._names[next(self._numbers) % len(self._names)]
        sequence = b"%014d" % (time.perf_counter_ns() // 1000)
        return ((each.template.replace(SEQUENCE, sequence).replace(WRITER, name), each.answers) for each in self._messages)

    def _spent(self) -> float:
        info = self._server.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])


class _Connection:
    """The connection of one writer at a time."""

    def __init__(self, port: int, database: str) -> None:
        import hiredis

        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self.begin(iter([(f"SELECT {database or 0}\r\n".encode(), 1)]))
        while not self.has_ended():
            pass

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for `select`."""
        return self._socket.fileno()

    def begin(self, messages: Iterator[tuple[bytes, int]]) -> None:
        """Send the first of these messages."""
        self._messages = messages
        self._send()

    def has_ended(self) -> bool:
        """Read, and send the next message after the last answer. True once no message is left."""
        self._reader.feed(self._socket.recv(1 << 16))
        while self._answers and (answer := self._reader.gets()) is not False:
            errors = [each for each in (answer if isinstance(answer, list) else [answer]) if isinstance(each, Exception)]
            if errors:
                raise RuntimeError(f"Redis answered: {errors}")
            self._answers -= 1
        return not self._answers and not self._send()

    def _send(self) -> bool:
        message, self._answers = next(self._messages, (b"", 0))
        self._socket.sendall(message)
        return bool(message)


def _median(_: PDC, driver: Driver, rate: float) -> float:
    return median(driver.flush_at(rate))


def _worst(_: PDC, driver: Driver, rate: float) -> float:
    return quantiles(driver.flush_at(rate), n=100)[-1]


def _scrape(library: PDC, driver: Driver, rate: float) -> float:
    """The median time of scrapes while another process flushes."""
    other = multiprocessing.get_context("fork").Process(target=driver.flush_at, args=(rate,))
    other.start()
    found = []
    end = time.perf_counter() + 0.8 * SECONDS
    while (start := time.perf_counter()) < end:
        if b"http_requests_total" not in library.render():
            raise RuntimeError("the scrape lacks the flushes")
        found.append(time.perf_counter() - start)
        time.sleep(SCRAPE_PAUSE_SECONDS)
    other.join()
    return median(found)


AT_FULL_LOAD: dict[str, Callable[[Driver, int], float | None]] = {"full load": Driver.flush, "processor": Driver.processor}
AT_A_SHARE = {"median": _median, "worst": _worst, "scrape": _scrape}
