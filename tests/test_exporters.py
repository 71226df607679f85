"""Exporters of other packages under a real Gunicorn, unmodified: their pages show the requests of all workers."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, ENVIRON
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import SCRIPTS, block, listens, run_block

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
CONFIGURATION = block(PAGE, "python", of="Under Gunicorn")
RUN = block(PAGE, "sh", of="Without a change of the program")
HOOK = """
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

def child_exit(server, worker):
    GunicornInternalPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
"""
"""The configuration that the multiprocess classes of prometheus_flask_exporter have."""
REDIS_OPTIONS = "--redis redis://localhost:6379/0 --prefix shop"
BY_RUN, BY_CONFIGURATION = "pdc run", "configuration"
"""The ways in which the metrics come into the storage."""
COUNTED = {
    "wsgi": {
        "/flask": [
            'flask_http_request_total{method="GET",status="200"}',
            'flask_http_request_duration_seconds_count{method="GET",path="/hit",status="200"}',
            'shop_views_total{status="200"}',
        ],
        "": ['django_http_responses_total_by_status_view_method_total{method="GET",status="200",view="hit"}'],
    },
    "multiprocess": {
        "": ['flask_http_request_total{method="GET",status="200"}', 'shop_views_total{status="200"}'],
    },
    "asgi": {
        "/fastapi": [
            'http_requests_total{handler="/hit",method="GET",status="2xx"}',
            'http_request_duration_seconds_count{handler="/hit",method="GET"}',
        ],
        "": ['starlette_requests_total{app_name="shop",method="GET",path="/hit",status_code="200"}'],
    },
}
"""The samples that count requests, by the application and the place of each exporter in it."""
OF_THE_APPLICATION = {
    'llm_tokens_total{kind="prompt",model="small"}': 3,
    'llm_tokens_total{kind="completion",model="small"}': 5,
    "llm_latency_seconds_count": 1,
}
"""The samples of plain metrics, each with its value for one request."""
AT_REST = {'llm_requests_running{engine="0"}': 0.0, 'llm_config_info{block_size="16"}': 1.0}
"""Samples of plain metrics that have these values when no request runs."""


class Server:
    """A Gunicorn of four workers that serves the application of that name."""

    def __init__(self, folder: Path, name: str, *options: str, redis_url: str | None, by: str) -> None:
        for path in (ROOT / "tests" / "plain_metrics.py", SCRIPTS / f"exporters_{name}.py"):
            shutil.copy(path, folder)
        self._port = free_port()
        worker = ["--worker-class", "uvicorn_worker.UvicornWorker"] if name == "asgi" else []
        always = [*options, *worker, "--bind", f"127.0.0.1:{self._port}", "--log-level", "critical"]
        environment = {**ENVIRON, "PDC_FLUSH_INTERVAL": "0.1", "GUNICORN_CMD_ARGS": shlex.join(always)}
        if by == BY_RUN:
            place = "--sqlite metrics.db" if redis_url is None else f"--redis {redis_url}"
            words = shlex.split(RUN.replace(REDIS_OPTIONS, place))[1:]
            command = [*COMMAND, *(str(Path(sys.executable).with_name(word)) if word == "gunicorn" else word for word in words)]
        else:
            (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
            command = [sys.executable, "-m", "gunicorn", "shop:app"]
            environment |= {"PDC_SQLITE_PATH": "metrics.db"} if redis_url is None else {"PDC_REDIS_URL": redis_url}
            environment["PDC_INSTALL"] = "1"
        if name == "multiprocess":
            (folder / "files").mkdir()
            environment["PROMETHEUS_MULTIPROC_DIR"] = "files"
            with (folder / "gunicorn.conf.py").open("a") as configuration:
                configuration.write(HOOK)
        self._process = subprocess.Popen(
            [f"exporters_{name}:app" if word == "shop:app" else word for word in command],
            cwd=folder,
            start_new_session=True,
            env=environment,
        )
        wait_until(self._listens, 60)

    def get(self, path: str) -> str:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def samples(self, path: str) -> dict[str, float]:
        """The samples of a page."""
        lines = (line.rpartition(" ") for line in self.get(path).splitlines() if not line.startswith("#"))
        return {sample: float(value) for sample, _, value in lines}

    def stop(self) -> None:
        """Kill Gunicorn with its workers, which is faster than to stop it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _listens(self) -> bool:
        return listens(self._port)


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Start a server with a storage of that kind, and stop it at the end."""
    servers: list[Server] = []

    def start(name: str, storage: str, *options: str, by: str) -> Server:
        redis: RedisServer | None = request.getfixturevalue("redis_server") if storage == "redis" else None
        servers.append(Server(tmp_path, name, *options, redis_url=None if redis is None else redis.url, by=by))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_multiprocess_class_needs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable the class raises the error that the page quotes; its plain sister needs none."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):  # the middleware of Dramatiq sets one in its process
        monkeypatch.delenv(name, raising=False)
    program = """
import flask, pdc
from prometheus_flask_exporter import PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics
pdc.setup(sqlite="metrics.db")
pdc.install()
PrometheusMetrics(flask.Flask("shop"))
try:
    GunicornInternalPrometheusMetrics(flask.Flask("shop"))
except ValueError as error:
    print(error)
"""
    (quoted,) = re.findall(r"`ValueError: (.*) \.\.\.`", PAGE)
    (error,) = run_block(program, tmp_path)
    assert error.startswith(f"{quoted} ")


@pytest.mark.parametrize(
    ("name", "storage", "options", "by"),
    [
        ("wsgi", "sqlite", ["--preload"], BY_CONFIGURATION),
        ("wsgi", "sqlite", ["--preload"], BY_RUN),
        ("asgi", "redis", ["--preload"], BY_RUN),
        ("multiprocess", "sqlite", [], BY_CONFIGURATION),
        *(
            pytest.param(name, storage, [], by, marks=pytest.mark.long)
            for name in COUNTED
            for storage in ("sqlite", "redis")
            for by in (BY_CONFIGURATION, BY_RUN)
        ),
        pytest.param("wsgi", "redis", ["--preload"], BY_CONFIGURATION, marks=pytest.mark.long),
        pytest.param("asgi", "sqlite", ["--preload"], BY_CONFIGURATION, marks=pytest.mark.long),
    ],
)
def test_each_worker_shows_the_requests_of_all(start: Any, name: str, storage: str, options: list[str], by: str) -> None:
    """The page of each exporter has the exact totals, whatever worker answers, of the exporter and of plain metrics."""
    server: Server = start(name, storage, *options, by=by)
    workers: list[str] = []
    while len(set(workers)) < 4 or len(workers) < 40:
        workers += [server.get(f"{place}/hit") for place in COUNTED[name]]
    of_application = {sample: factor * len(workers) for sample, factor in OF_THE_APPLICATION.items()}
    for place, counted in COUNTED[name].items():
        expected = of_application | dict.fromkeys(counted, len(workers) // len(COUNTED[name])) | AT_REST

        def is_exact(path: str = f"{place}/metrics", expected: dict[str, float] = expected) -> bool:
            samples = server.samples(path)
            return {sample: samples.get(sample) for sample in expected} == expected

        wait_until(is_exact)  # some exporters count after the response
        for _ in range(8):
            assert is_exact()
