"""Fixtures: a Redis server for the test run, storages to run a contract over, scripts in their own processes, buffers."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
from typing import Any

import hypothesis
import prometheus_client
import pytest
import redis
from journals import Journal
from prometheus_client import CollectorRegistry
from recorder import Recorder

import pdc
from pdc.cells import FREE_THREADED, TURN_LOCK, MetricCells
from pdc.delivery import Buffer
from pdc.exposition import Port
from pdc.process import once

pytest.register_assert_rewrite("django_project", "http_applications", "starlette_applications")  # their failures show values

ROOT = Path(__file__).parent.parent
AS_PYTHON_BEGINS = """import signal
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""
"""An interpreter that is a part of another program may not ignore these signals by itself."""
exec(AS_PYTHON_BEGINS)
FORKS_WITH_THREADS = "ignore:This process (pid:DeprecationWarning"
"""The warning of Python 3.15 about a fork amid threads, such as the one that sends metrics."""
TEMPORARY = tempfile.mkdtemp(prefix="pdc-tests-")
"""The folder of journals and other temporary files of tests and their programs."""
Path(TEMPORARY).chmod(0o1777)
os.environ["TMPDIR"] = tempfile.tempdir = TEMPORARY
for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the connections to stopped servers that redis-py 5.0 leaves open."""
    if redis.__version__.startswith("5.0."):
        config.addinivalue_line("filterwarnings", "ignore:unclosed <socket:ResourceWarning")


def _is_missing(item: pytest.Item) -> bool:
    marks = item.iter_markers("package")
    without_release = (mark for mark in marks if FREE_THREADED or sys.version_info < mark.kwargs.get("since", ()))
    return any(find_spec(mark.args[0]) is None for mark in without_release)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of packages without a release for this Python; where there is one, a missing package fails them."""
    missing = [item for item in items if _is_missing(item)]
    config.hook.pytest_deselected(items=missing)
    items[:] = [item for item in items if item not in missing]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report packages that are not installed."""
    if FREE_THREADED and find_spec("gevent") is None:
        terminalreporter.write_line("Deselected: tests of greenlets. gevent has no release for Python without the GIL.")


def free_port() -> int:
    """A free port of the loopback interface, of those that the system gives to no connection by itself."""
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Return the first true value of `condition`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{condition} was not true within {seconds} s")


class RedisServer:
    """A `redis-server` on a free port of the loopback interface, without persistence."""

    def __init__(self, folder: Path, *options: str, settings: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            "redis-server",
            *([str(settings)] if settings else []),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(folder),
            *options,
        ]
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def stop(self) -> None:
        """Kill the server; it loses its data, except for what its options persist."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop the server's process, but keep its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the server after `freeze`."""
        self._process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A client of the server."""
        return redis.Redis.from_url(self.url, **options)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the whole run."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """The server of the run, emptied."""
    with shared_redis_server.client() as client:
        client.flushall()
    return shared_redis_server


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test, which may stop, start and break it."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments of `pdc.setup` for a new storage of each kind."""
    if request.param == "sqlite":
        return {"sqlite": str(tmp_path / "metrics.db")}
    server: RedisServer = request.getfixturevalue("redis_server")
    return {"redis": server.url, "redis_prefix": "test"}


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry for one test, so that its metrics end with it."""
    return CollectorRegistry()


def _close_ports() -> None:
    while Port._ports:
        server = Port._ports.popitem()[1]._server
        if server is not None:
            server.shutdown()
            server.server_close()
    _wait_for_threads("pdc-port")


def _wait_for_threads(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(10)


def pytest_collection_finish() -> None:
    """Keep what the modules of tests have imported out of garbage collections: each test has one, and would look at it all.

    Hypothesis looks for the objects that refer to its random numbers, and finds no frozen ones: it makes the numbers before.
    """
    hypothesis.find(hypothesis.strategies.none(), lambda _: True, settings=hypothesis.settings(database=None))
    gc.collect()
    gc.freeze()
    _OF_MODULES.update(_metrics())


_OF_MODULES: set[MetricCells] = set()
"""The metrics that the modules of tests declare."""


def _collect_garbage() -> None:
    """Collect young garbage, and all of it where metrics of a test are left.

    pytest keeps objects of each test: to look at all of them before each test took a quarter of the time of the run.
    """
    gc.collect(1)
    if not _OF_MODULES.issuperset(_metrics()):
        gc.collect()


def _metrics() -> set[MetricCells]:
    return {metric for buffer in pdc.config.BUFFERS for metric in buffer._work.metrics.all()}


@pytest.fixture(autouse=True)
def _turn_is_free() -> Iterator[None]:
    """Without the GIL, no test leaves a lock behind that updates of gauges wait for."""
    yield
    if FREE_THREADED:
        with ThreadPoolExecutor(1) as other:
            assert other.submit(TURN_LOCK.acquire, timeout=10).result(), "the turn is held"
            other.submit(TURN_LOCK.release).result()


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no storage, metrics, server and journal behind: a later `setup` would declare the metrics, and send the journal."""
    tmp_path_factory.getbasetemp()  # pytest's own files stay
    folder = tempfile.mkdtemp(dir=TEMPORARY)
    Path(folder).chmod(0o1777)
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    _close_ports()
    pdc.shutdown()  # modules of tests that set a project up were imported just now
    once.forget()
    _collect_garbage()  # at the end, not before: pytest drops the values of fixtures only after their teardown
    yield
    pdc.shutdown()
    for name in ("pdc-flush", "pdc-log"):  # otherwise their last log messages come into a later test
        _wait_for_threads(name)


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python source in its own process, in an empty folder, and return its output.

    The arguments of `pdc.setup` come as keywords; the source calls `setup(**options)` to change some of them. It finds
    other arguments in `sys.argv`. A file, whose source `script` returns, imports `setup` from `__main__`.
    """

    def run(
        source: str, *arguments: object, storage: dict[str, Any] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        head = AS_PYTHON_BEGINS + f"import pdc\ndef setup(**options): pdc.setup(**{{**{storage!r}, **options}})\n"
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-W",
                FORKS_WITH_THREADS,
                "-c",
                head + textwrap.dedent(source),
                *map(str, arguments),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def journal(run_script: Callable[..., subprocess.CompletedProcess[str]], storage: dict[str, Any], tmp_path: Path) -> Journal:
    """A folder for one test, for each storage."""
    return Journal(run_script, storage, tmp_path / "journals")


@pytest.fixture(params=[0, 3600], ids=["write-through", "buffered"])
def ready(request: pytest.FixtureRequest, storage: dict[str, Any]) -> None:
    """A storage that is set up, with and without a buffer."""
    pdc.setup(**storage, flush_interval=request.param)


@pytest.fixture
def without_created() -> Iterator[None]:
    """Disable `_created` series."""
    prometheus_client.disable_created_metrics()
    yield
    prometheus_client.enable_created_metrics()


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script that lives until it gets a line, or is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, storage: dict[str, Any]) -> subprocess.Popen[str]:
        code = f"import pdc\npdc.setup(**{storage!r})\n{textwrap.dedent(source)}\nprint('ready', flush=True)\ninput()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def recorder() -> Recorder:
    """A storage that is up."""
    return Recorder()


@pytest.fixture
def buffer(recorder: Recorder) -> Iterator[Buffer]:
    """A buffer that writes through to the recorder."""
    buffer = Buffer()
    buffer.attach(recorder, 0.0, None)
    yield buffer
    recorder.during = lambda: None
    buffer.detach()


@pytest.fixture
def counter(buffer: Buffer, registry: CollectorRegistry) -> pdc.Counter:
    """A counter of the buffer."""
    metric: type[pdc.Counter] = type("Counter", (pdc.Counter,), {"buffer": buffer})
    return metric("hits", "Hits.", registry=registry)


@pytest.fixture
def gauge(buffer: Buffer, registry: CollectorRegistry) -> pdc.Gauge:
    """A gauge of the buffer."""
    metric: type[pdc.Gauge] = type("Gauge", (pdc.Gauge,), {"buffer": buffer})
    return metric("level", "Level.", registry=registry)


class Peer:
    """Another process that counts, and runs the statements it gets."""

    def __init__(self, storage: dict[str, Any], folder: Path, **options: Any) -> None:
        source = f"""
import os, signal
import pdc
pdc.setup(**{{**{storage!r}, **{options!r}}})

def send():
    try:
        pdc.flush()
    except pdc.StorageError:
        return False
    return True

while command := input():
    exec(command)
    print("done", flush=True)
"""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def tell(self, *commands: str) -> None:
        """Let it run these statements, and wait for its answer."""
        for command in commands:
            self.begin(command)
            self.end()

    def begin(self, command: str) -> None:
        """Let it run a statement."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for its answer."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n", self.stop()

    def freeze(self) -> None:
        """Stop the process between two batches: amid one it would keep others from the file of SQLite."""
        self.begin("with pdc.config.DEFAULT._lock: os.kill(os.getpid(), signal.SIGSTOP)")
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Resume it after `freeze`."""
        self._process.send_signal(signal.SIGCONT)
        self.end()

    def stop(self) -> str:
        """Let it end, and return its log."""
        return self._process.communicate("\n", timeout=20)[1]

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Start another process that counts."""
    peers: list[Peer] = []

    def start(storage: dict[str, Any], **options: Any) -> Peer:
        peers.append(Peer(storage, tmp_path, **options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.kill()


@pytest.fixture
def counted(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Count in a counter and a gauge in SQLite."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Counter("sales", "Help", ["path"], registry=registry).labels("/").inc(2)
    pdc.Gauge("stock", "Help", registry=registry).set(7)


@pytest.fixture
def _switching() -> Iterator[None]:
    """Switch between threads as often as possible, where there is a GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
