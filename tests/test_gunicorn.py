"""pdc in a real Gunicorn, with workers of every class."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, free_port, wait_until
from helpers import SCRIPTS, listens

import pdc
import pdc.exposition

WORKERS = {
    "sync": ("sync", "wsgi"),
    "gthread": ("gthread", "wsgi"),
    "gevent": ("gevent", "wsgi"),
    "asgi": ("asgi", "asgi"),
    "uvicorn": ("uvicorn_worker.UvicornWorker", "asgi"),
}


class Gunicorn:
    """A Gunicorn, with two workers by default, whose metrics are sent at their end only."""

    def __init__(self, folder: Path, worker_class: str, *options: str, workers: int | None = 2) -> None:
        shutil.copy(SCRIPTS / "shop.py", folder)
        self.port = free_port()
        name, app = WORKERS[worker_class]
        command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{self.port}", *([f"--workers={workers}"] if workers else [])]
        self._process = subprocess.Popen(
            [sys.executable, *command, "--worker-class", name, "--log-level", "critical", *options, f"shop:{app}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        wait_until(self._listens, 30)

    def stop(self) -> None:
        """Signal Gunicorn to stop, and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def get(self, path: str = "/") -> bytes | None:
        """Send a request on a connection of its own; None without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (ConnectionError, http.client.BadStatusLine):
            return None
        finally:
            connection.close()

    def _listens(self) -> bool:
        return listens(self.port)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Start a Gunicorn and stop it at the end."""
    servers: list[Gunicorn] = []

    def start(worker_class: str, *options: str, workers: int | None = 2) -> Gunicorn:
        servers.append(Gunicorn(tmp_path, worker_class, *options, workers=workers))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def counted(folder: Path) -> dict[tuple[str, str], float]:
    """The requests in the storage: route and status to number."""
    pdc.setup(sqlite=folder / "metrics.db")
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for metric in pdc.exposition.collect()
        for sample in metric.samples
        if sample.name == "http_requests_total"
    }


@pytest.mark.parametrize("options", [(), pytest.param(("--preload",), marks=pytest.mark.long)])
@pytest.mark.parametrize("worker_class", WORKERS)
def test_workers_send_what_is_pending_when_they_stop(
    started: Any, tmp_path: Path, worker_class: str, options: tuple[str, ...]
) -> None:
    """Workers of every class, preloaded or not, have counted every request once Gunicorn has stopped."""
    server = started(worker_class, *options)
    workers: list[bytes | None] = []
    while len(set(workers)) < 2 or len(workers) < 20:  # a worker that is still starting does not notice the signal to stop
        workers.append(server.get())
    assert None not in workers
    server.stop()
    assert counted(tmp_path) == {("/", "200"): len(workers)}


@pytest.mark.parametrize(("worker_class", "path"), [("sync", "/stuck"), ("asgi", "/stuck-async"), ("uvicorn", "/stuck-async")])
def test_a_worker_that_hangs_sends_what_is_pending(started: Any, tmp_path: Path, worker_class: str, path: str) -> None:
    """When Gunicorn stops a hanging worker, its earlier answers are counted, however the worker handles the signal."""
    server = started(worker_class, "--timeout", "1", "--workers", "1")
    server.get()
    server.get(path)
    wait_until(lambda: counted(tmp_path).get(("/", "200")), 20)


CONFIGURATION = """
import signal
from pathlib import Path

workers = 3

def post_worker_init(worker):
    before = signal.getsignal(signal.SIGABRT)

    def abort(number, frame):
        Path("aborted").touch()
        worker.handle_abort(number, frame)

    signal.signal(signal.SIGABRT, abort)
    Path(f"begun-{worker.pid}").touch()
"""


@pytest.mark.parametrize("worker_class", ["sync", "uvicorn"])
@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_the_configuration_of_the_application_stays(
    started: Any, tmp_path: Path, worker_class: str, options: tuple[str, ...]
) -> None:
    """Gunicorn reads its configuration unchanged: the number of workers and a hook that handles a signal are the user's."""
    (tmp_path / "gunicorn.conf.py").write_text(CONFIGURATION)
    server = started(worker_class, "--timeout", "1", *options, workers=None)
    wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 3, 30)
    server.get()
    server.get("/stuck-async" if worker_class == "uvicorn" else "/stuck")
    wait_until((tmp_path / "aborted").exists, 20)
    server.stop()
    assert counted(tmp_path)["/", "200"] == 1


def test_workers_of_another_user_make_the_files() -> None:
    """A master that loads the application makes no files: its workers may be another user's, without rights on them."""
    is_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())  # every user can reach this folder
    folder.chmod(0o777)
    server = Gunicorn(folder, "sync", "--preload", *(["--user", "nobody"] if is_root else []))
    try:
        assert not list(folder.glob("metrics.db*"))
        for _ in range(20):
            assert server.get() is not None
    finally:
        server.stop()
    assert counted(folder) == {("/", "200"): 20}
    assert (folder / "metrics.db").stat().st_uid == (pwd.getpwnam("nobody").pw_uid if is_root else os.geteuid())
