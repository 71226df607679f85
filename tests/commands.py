"""The command line in tests: in this process, in a process of its own, and on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from prometheus_client import CollectorRegistry

import pdc
from pdc.cli import main

COMMAND = [sys.executable, "-W", "error", "-m", "pdc"]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("PDC_", "COLUMNS", "LINES"))} | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "TERM": "xterm-256color",
}


class Done(NamedTuple):
    """The end of a command."""

    code: int
    output: str
    errors: str

    def rows(self) -> list[list[str]]:
        """The rows of the tables in the output, without their heads."""
        return [line.split("\t") for line in self.output.splitlines() if "\t" in line][1:]


Pdc = Callable[..., Done]
"""The fixture `command`."""


def place(storage: dict[str, Any]) -> list[str]:
    """The options of a command for the arguments of `pdc.setup`."""
    if "sqlite" in storage:
        return ["--sqlite", storage["sqlite"]]
    return ["--redis", storage["redis"], "--prefix", storage["redis_prefix"]]


@pytest.fixture
def command(
    storage: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Pdc:
    """Run a command on the storage in this process, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("PDC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, at: dict[str, Any] | None = storage) -> Done:
        capsys.readouterr()
        code = main([*arguments, *([] if at is None else place(at))])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def shop(storage: dict[str, Any], registry: CollectorRegistry) -> dict[str, Any]:
    """A storage with some metrics of this process, which stays alive."""
    pdc.setup(**storage)
    orders = pdc.Counter("orders", "Orders by till.", ["till"], registry=registry)
    orders.labels("1").inc(2)
    orders.labels("2").inc(40)
    wait = pdc.Histogram("wait_seconds", "Time in the queue.", buckets=(1, 2), registry=registry)
    for seconds in (0.5, 0.5, 1.5, 3.5):
        wait.observe(seconds)
    pdc.Gauge("busy", "Busy tills.", multiprocess_mode="livesum", registry=registry).set(3)
    pdc.Info("build", "Version.", registry=registry).info({"version": "1"})
    pdc.Enum("door", "The door.", states=["open", "shut"], registry=registry).state("shut")
    return storage


def _take_terminal() -> None:
    """Take the terminal, and its signals, which a shell lets a command in the background ignore."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a terminal with so many columns and lines."""

    def __init__(self, *arguments: str, columns: int = 100, lines: int = 30, **environ: str) -> None:
        main_end, other_end = pty.openpty()
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._end, self.seen = main_end, ""
        self.settings = termios.tcgetattr(other_end)
        self._other_end = other_end
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            env={**ENVIRON, **environ},
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - else Ctrl-C reaches nobody
        )

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Read until the text is there, and return all that came, without the codes of the terminal."""
        until = time.monotonic() + seconds
        while text not in self.plain and time.monotonic() < until:
            self._read(0.1)
        assert text in self.plain, f"expected {text!r} on the terminal, got {self.plain[-2000:]!r}"
        return self.plain

    @property
    def plain(self) -> str:
        """The text so far, without codes."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen).replace("\r\n", "\n")

    def forget(self) -> None:
        """Forget the text so far."""
        self._read(0.0)
        self.seen = ""

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self._end, keys.encode())

    def interrupt(self) -> int:
        """Press Ctrl-C until the command ends; return its exit code. A signal just before a read does not break it off."""
        for _ in range(20):
            if self.process.poll() is None:
                self.type("\x03")
                self._wait(1.0)
        return self.end()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self._read(0.05)

    def end(self, seconds: float = 20.0) -> int:
        """Wait for the end of the command, and return its exit code."""
        self._wait(seconds)
        self._read(0.0)
        assert self.process.poll() is not None, f"expected the end of the command, got {self.seen!r}"
        return self.process.wait()

    def is_as_before(self) -> bool:
        """True if the terminal has the settings that it had before the command."""
        return termios.tcgetattr(self._other_end) == self.settings

    def _read(self, seconds: float) -> None:
        while select.select([self._end], [], [], seconds)[0]:
            self.seen += os.read(self._end, 65536).decode()
            seconds = 0.0

    def close(self) -> None:
        """End the command and the terminal."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for end in (self._end, self._other_end):
            os.close(end)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start commands on terminals."""
    started: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        started.append(Terminal(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()
