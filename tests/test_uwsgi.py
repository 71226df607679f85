"""A real uWSGI: workers that are forked without Python's hooks count exactly, with and without threads."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, free_port, wait_until
from helpers import listens, mainly

SHOP = """
import os
import pdc
from flask import Flask
from pdc_flask import PrometheusMetrics

app = Flask(__name__)
hits = pdc.Counter("hits", "Requests.", ["pid"])
total = pdc.Counter("all_hits", "Requests.")
starts = pdc.Gauge("starts", "Workers.", multiprocess_mode="sum")
idle = pdc.Counter("idle", "Nothing.")

import uwsgi
if "NO_THREADS" in os.environ:
    uwsgi.has_threads = 0  # as without --enable-threads, the default of newer uWSGIs
uwsgi.post_fork_hook = lambda: starts.inc()
PrometheusMetrics(app)

@app.get("/")
def index():
    hits.labels(os.getpid()).inc()
    total.inc()
    return str(os.getpid())
"""
MODES = {
    "forked": ([], "0.1"),
    "no threads": ([], "0.1"),
    "hooks": (["--py-call-osafterfork", "--threads", "2"], "0"),
    "lazy": (["--lazy-apps"], "0.1"),
}
"""Options of uWSGI, and the seconds between two flushes. The master loads the application, except with the last options."""
OPTIONS = [
    *("--master", "--processes", "4", "--die-on-term", "--need-app", "--module", "shop:app", "--disable-logging"),
    *("--max-requests", "25", "--min-worker-lifetime", "0", "--worker-reload-mercy", "2", "--reload-mercy", "2"),
]
VARIABLES = {"sqlite": "PDC_SQLITE_PATH", "redis": "PDC_REDIS_URL", "redis_prefix": "PDC_REDIS_PREFIX"}


class Uwsgi:
    """A uWSGI with four workers that end after some requests."""

    def __init__(self, folder: Path, storage: dict[str, Any], *options: str, **settings: str) -> None:
        (folder / "shop.py").write_text(SHOP)
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", f"127.0.0.1:{self.port}", *OPTIONS]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PDC_")}
        environ |= {"PYTHONPATH": f"{ROOT}:{folder}", "VIRTUAL_ENV": sys.prefix}
        environ |= {VARIABLES[name]: value for name, value in storage.items()}
        self.log = folder / "uwsgi.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *options], cwd=folder, env={**environ, **settings}, stdout=log, stderr=log
            )
        wait_until(self._listens, 20)

    def stop(self) -> None:
        """Signal uWSGI to stop, and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def get(self, path: str = "/", port: int | None = None) -> str:
        """The body of the answer to a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
            assert answer.status == 200, body
            return body
        finally:
            connection.close()

    def counted(self, port: int | None = None) -> dict[str, float]:
        """The samples of a scrape, by series."""
        lines = self.get("/metrics", port).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def _listens(self) -> bool:
        return listens(self.port)


@pytest.fixture
def start(tmp_path: Path, storage: dict[str, Any]) -> Iterator[Any]:
    """Start a uWSGI and stop it at the end."""
    servers: list[Uwsgi] = []

    def started(*options: str, **settings: str) -> Uwsgi:
        servers.append(Uwsgi(tmp_path, storage, *options, **settings))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


@mainly("redis")
@pytest.mark.parametrize("mode", MODES)
def test_workers_count_exactly(start: Any, mode: str) -> None:
    """Workers that come and go count every request once, also without threads between requests; the user's hook runs.

    One of them serves the port, where threads run. The metrics that only the master declared are shown.
    """
    options, interval = MODES[mode]
    port = free_port()
    threads = {"NO_THREADS": "1"} if mode == "no threads" else {}
    server = start(*options, PDC_FLUSH_INTERVAL=interval, PDC_METRICS_PORT=str(port), **threads)
    with ThreadPoolExecutor(4) as pool:
        pids = list(pool.map(lambda _: server.get(), range(120)))
    expected = {f'hits_total{{pid="{pid}"}}': float(pids.count(pid)) for pid in set(pids)}
    assert len(expected) > 4

    def counted() -> bool:
        found = server.counted()
        return {name: found[name] for name in found if name.startswith("hits_total")} == expected

    wait_until(counted, 5)
    found = server.counted()
    assert (found["all_hits_total"], found["idle_total"]) == (120, 0)
    assert mode == "lazy" or found["starts"] >= len(expected)  # where the hook is there before the fork

    def serves() -> bool:
        try:
            return bool(server.counted(port)["all_hits_total"] == 120)
        except ConnectionError:  # the worker that had the port has ended, and another one will take it
            return False

    if not threads:
        wait_until(serves, 10)
    else:
        assert "start uWSGI with --enable-threads" in server.log.read_text()
