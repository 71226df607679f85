"""The commands of docs/deployment.md: they run as written, and the numbers are exact once their processes have ended."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import block, run_block
from prometheus_client import CollectorRegistry

import pdc
import pdc.exposition
from pdc.options import Options

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
COMMANDS = [line for of in ("Gunicorn", "Uvicorn and Hypercorn", "uWSGI") for line in block(PAGE, "sh", of=of).splitlines()]
BIND = {"gunicorn": "--bind 127.0.0.1:{}", "hypercorn": "--bind 127.0.0.1:{}", "uvicorn": "--port {}", "uwsgi": ""}
SLOW = """
import asyncio, time

app.add_url_rule("/slow", "slow", lambda: time.sleep(5) or "slow")

@api.get("/slow")
async def slow() -> str:
    await asyncio.sleep(5)
    return "slow"
"""
Start = Callable[..., "Server"]


def test_the_settings_are_values_of_the_options() -> None:
    """Each value in the table of settings, and each variable of the page, is one that the options take."""
    names = re.findall(r"`(PDC_\w+)`", next(line for line in PAGE.splitlines() if line.startswith("| Program |")))
    for row in re.findall(r"^\| (?:web server|cron job|AWS Lambda).*$", PAGE, re.MULTILINE):
        for name, cell in zip(names, row.strip("|").split("|")[1:], strict=True):
            for value in re.findall(r"`(\w+)`", cell):
                Options.load({name: value})
    known = {f"PDC_{field.name.upper()}" for field in fields(Options)}
    assert set(re.findall(r"PDC_[A-Z_]+", PAGE)) <= known


class Server:
    """A server that a command of the page starts, at another port."""

    def __init__(self, command: str, folder: Path, options: str, environment: dict[str, str]) -> None:
        (folder / "shop.py").write_text(block(PAGE, "python", of="Settings") + SLOW)
        self.port = free_port()
        words = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}"))
        bind = BIND[words[0]].format(self.port)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PDC_")}
        self.environment = {**kept, "PYTHONPATH": f"{ROOT}:{folder}", "VIRTUAL_ENV": sys.prefix, **environment}
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name(words[0]), *words[1:], *shlex.split(f"{bind} {options}")],
                cwd=folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def get(self, path: str = "/") -> bool:
        """Send a request on a connection of its own; False without an answer of status 200."""
        with suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).ok
        return False

    def get_slowly(self) -> tuple[threading.Thread, list[bool]]:
        """Begin a request of five seconds."""
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(self.get("/slow")))
        thread.start()
        time.sleep(0.7)
        return thread, answers

    def stop(self) -> float:
        """Send SIGTERM, and return the seconds until the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it with its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def listens(self) -> bool:
        """True where it takes connections."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port), timeout=30):
            return True
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers, which keep what they count in SQLite, and nothing in a journal, unless variables differ."""
    started: list[Server] = []

    def start(command: str, options: str = "", **variables: str) -> Server:
        environment = {"PDC_SQLITE_PATH": "metrics.db", "PDC_FLUSH_INTERVAL": "600", "PDC_JOURNAL": "false", **variables}
        environment = {name: value for name, value in environment.items() if value}
        started.append(Server(command, tmp_path, options, environment))
        wait_until(started[-1].listens, 60)
        return started[-1]

    yield start
    for server in started:
        server.kill()


def counted(**storage: Any) -> dict[str, float]:
    """The requests in the storage by route, with those of journals."""
    pdc.setup(**storage)
    pdc.Counter("started", "Starts, so that journals are sent.", registry=CollectorRegistry()).inc()
    pdc.flush()
    samples = [sample for family in pdc.exposition.collect() for sample in family.samples]
    return {sample.labels["route"]: sample.value for sample in samples if sample.name == "http_requests_total"}


def send(server: Server, number: int = 40) -> int:
    """Send so many requests, and return how many were answered."""
    return sum(server.get() for _ in range(number))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_counts_every_request(start: Start, tmp_path: Path, command: str) -> None:
    """Workers that send nothing before their end, and have no journal, have counted every request once the server ended."""
    server = start(command.replace("1000", "10").replace("100", "5"))
    time.sleep(3)  # workers that are still starting do not notice the signal to stop
    answered = send(server)
    assert answered >= 36  # Hypercorn drops connections of workers that end
    server.stop()
    assert answered <= counted(sqlite=tmp_path / "metrics.db")["/"] <= 40


@pytest.mark.long
@pytest.mark.parametrize("command", [COMMANDS[0], "uvicorn --workers 2 shop:api", COMMANDS[-1]])
def test_requests_in_progress_are_answered_and_counted(start: Start, tmp_path: Path, command: str) -> None:
    """Gunicorn, Uvicorn and uWSGI with its hook finish a request in progress, and count it."""
    server = start(command)
    answered = send(server, 10)
    thread, answers = server.get_slowly()
    server.stop()
    thread.join()
    assert (answered, answers) == (10, [True])
    assert counted(sqlite=tmp_path / "metrics.db") == {"/": 10, "/slow": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "options"), [(COMMANDS[0], "--graceful-timeout 1"), ("hypercorn --workers 2 shop:api", "")]
)
def test_workers_that_the_server_kills_leave_a_journal(start: Start, tmp_path: Path, command: str, options: str) -> None:
    """Gunicorn kills a worker whose request takes longer than its time, Hypercorn any busy one; nothing counted is lost."""
    server = start(command, options, PDC_JOURNAL=str(tmp_path / "journal"))
    time.sleep(3)
    answered = send(server, 10)
    thread, answers = server.get_slowly()
    server.stop()
    thread.join()
    assert (answered, answers) == (10, [False])
    assert counted(sqlite=tmp_path / "metrics.db", journal=tmp_path / "journal") == {"/": 10}


@pytest.mark.long
def test_uvicorn_without_lifespan_leaves_a_journal(start: Start, tmp_path: Path) -> None:
    """With `--lifespan off` nothing is sent at the end, and the next process of the host sends it."""
    server = start("uvicorn shop:api", "--lifespan off", PDC_JOURNAL=str(tmp_path / "journal"))
    assert send(server, 10) == 10
    server.stop()
    assert len(list((tmp_path / "journal").iterdir())) == 1
    assert counted(sqlite=tmp_path / "metrics.db", journal=tmp_path / "journal") == {"/": 10}


@pytest.mark.long
@pytest.mark.parametrize("command", [COMMANDS[0], "uvicorn --workers 2 shop:api", "hypercorn --workers 2 shop:api"])
def test_a_storage_that_does_not_answer_delays_the_end_by_the_timeout(
    start: Start, tmp_path: Path, own_redis_server: RedisServer, command: str
) -> None:
    """While Redis is frozen, the server ends once exit_timeout has passed, twice under ASGI; the next start sends the rest."""
    journal = tmp_path / "journal"
    redis = {"PDC_SQLITE_PATH": "", "PDC_REDIS_URL": own_redis_server.url, "PDC_REDIS_PREFIX": "shop"}
    server = start(command, PDC_JOURNAL=str(journal), PDC_EXIT_TIMEOUT="3", **redis)
    time.sleep(3)
    assert send(server, 10) == 10
    own_redis_server.freeze()
    lasted = server.stop()
    own_redis_server.thaw()
    assert 3 <= lasted < 2 * 3 + 10
    assert counted(redis=own_redis_server.url, redis_prefix="shop", journal=journal) == {"/": 10}


def unit(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a unit of systemd, in this folder."""
    (text,) = (each for each in re.findall(r"^```ini\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if f"/{name}\n" in each)
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names of systemd have capital letters
    parser.read_string(text)
    service = dict(parser["Service"])
    assert service["StateDirectory"] == "shop"
    state = folder / "state"
    state.mkdir(exist_ok=True)
    environment = dict(word.split("=", 1) for word in service["Environment"].replace("/var/lib/shop", str(state)).split())
    name, *words = shlex.split(service["ExecStart"])
    assert Path(name).parent == Path(service["WorkingDirectory"], ".venv", "bin")
    return [str(Path(sys.executable).with_name(Path(name).name)), *words], environment


def test_the_service_of_the_timer_counts_in_its_state_directory(tmp_path: Path) -> None:
    """The unit's command and environment run the example of a job, whose metrics are in the state directory."""
    command, environment = unit("prices.service", tmp_path)
    example = ROOT / "example_apps" / "cron_job"
    for name in ("job.py", "prices.csv"):
        (tmp_path / name).write_text((example / name).read_text())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PDC_")}
    subprocess.run(command, cwd=tmp_path, env={**kept, "PYTHONPATH": str(ROOT), **environment}, check=True, timeout=60)
    pdc.setup(sqlite=tmp_path / "state" / "metrics.db")
    assert 'job_runs_total{job_name="prices",outcome="success"} 1.0' in pdc.generate_latest().decode()
    assert "OnCalendar=*-*-* 03:15" in PAGE


@pytest.mark.long
def test_the_service_of_the_server_counts_in_its_state_directory(start: Start, tmp_path: Path) -> None:
    """The unit's command and environment serve the shop; a killed service is sent by the next one."""
    (program, *words), environment = unit("shop.service", tmp_path)
    environment["PDC_FLUSH_INTERVAL"] = "600"
    command = shlex.join([Path(program).name, *words])
    server = start(command, **environment)
    assert send(server, 10) == 10
    server.kill()
    state = tmp_path / "state"
    wait_until(lambda: counted(sqlite=state / "metrics.db", journal=state / "journal") == {"/": 10}, 20)  # once they have ended


def test_the_function_of_the_page_counts_at_once(tmp_path: Path) -> None:
    """The block of serverless functions has written each call when it returns, without a journal."""
    source = block(PAGE, "python", of="Serverless")
    end = "handler({}, None)\nprint(pdc.generate_latest().decode(), flush=True)\nimport os; os._exit(0)"
    assert 'job_runs_total{job_name="prices",outcome="success"} 1.0' in run_block(source + end, tmp_path)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert 'job_runs_total{job_name="prices",outcome="success"} 1.0' in pdc.generate_latest().decode()


@pytest.mark.long
def test_a_worker_of_celery_starts_as_the_page_shows() -> None:
    """The command names the module of the example, and Celery knows its options."""
    words = shlex.split(block(PAGE, "sh", of="Celery"))
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PDC_SQLITE_PATH": os.devnull + ".db"}
    folder = ROOT / "example_apps" / "celery_worker"
    assert b"Usage: celery worker" in subprocess.check_output(command, cwd=folder, env=environment, timeout=60)
