"""Redis servers for one run."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 10.0
DATABASES = 1000
SLOTS = 16384
"""The slots of a cluster."""


class RedisServer:
    """A `redis-server` on a free port of the loopback interface, without persistence, while the context lasts."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.port = _free_port()
        own = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": folder, "databases": DATABASES, **options}
        self._command = ["redis-server", *(str(word) for name, value in own.items() for word in (f"--{name}", value))]
        self._used = 0

    def __enter__(self) -> RedisServer:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS).close()
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()

    def new_database(self) -> str:
        """The URL of an unused database."""
        self._used += 1
        return f"redis://127.0.0.1:{self.port}/{self._used % DATABASES}"


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[str]:
    """The URL of a cluster of so many primaries, each with as many slots, while the context lasts."""
    from redis import Redis

    with ExitStack() as stack:
        clients: list[Any] = []
        for number in range(nodes):
            own = {"cluster-enabled": "yes", "cluster-port": _free_port(), "cluster-config-file": f"nodes-{number}.conf"}
            server = stack.enter_context(RedisServer(folder, **own))
            clients.append(stack.enter_context(Redis("127.0.0.1", server.port)))
            slots = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
            clients[-1].execute_command("CLUSTER ADDSLOTSRANGE", *slots)
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, own["cluster-port"])
        deadline = time.monotonic() + START_SECONDS
        while not all(client.cluster("info")["cluster_state"] == "ok" for client in clients):
            if time.monotonic() > deadline:
                raise TimeoutError("the nodes of the cluster did not find each other")
            time.sleep(0.02)
        yield f"redis+cluster://127.0.0.1:{server.port}"


def _free_port() -> int:
    """A free port below those that Linux gives to clients: one of these could have it before the server does."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
