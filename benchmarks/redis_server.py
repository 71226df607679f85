"""A Redis server for one run."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

START_SECONDS = 10.0
DATABASES = 1000


class RedisServer:
    """A `redis-server` on a free port of the loopback interface, without persistence, while the context lasts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address: tuple[str, int] = probe.getsockname()
        options = {"port": self._address[1], "bind": "127.0.0.1", "save": "", "dir": folder, "databases": DATABASES}
        self._command = ["redis-server", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
        self._used = 0

    def __enter__(self) -> RedisServer:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(self._address, timeout=START_SECONDS).close()
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
        return f"redis://{self._address[0]}:{self._address[1]}/{self._used % DATABASES}"
