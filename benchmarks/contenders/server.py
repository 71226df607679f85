"""A Flask application under Gunicorn, bare and instrumented: its requests at full load, and the work of Redis."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.redis_server import RedisServer
from benchmarks.worker import Operation

from . import flask_app
from .requests import BODY

PATH = "/items0/apple"
CONNECTIONS = 8
PER_SECOND = 500
"""Requests per second during the measurement of Redis, unless a contender sets another rate."""

Address = tuple[str, int]


def application(instrument: str) -> Any:
    """The application that Gunicorn runs."""
    return flask_app.application(instrument)


def make(instrument: str, workers: int, measured: str, seconds: int, per_second: int = PER_SECOND) -> Operation:
    """Requests over HTTP for so many seconds to that many workers."""
    if measured == "full load":
        return _full_load(instrument, workers, seconds)
    return _work_of_redis(instrument, workers, measured, seconds * per_second, per_second)


def _full_load(instrument: str, workers: int, seconds: int) -> Operation:
    """As many requests as possible; the operation returns the seconds of the server for one."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("the command wrk is missing: `make bench` installs the Debian package of that name")
    host, port = _serve(instrument, workers)
    command = [wrk, "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]

    def requests(_: int) -> float:
        said = subprocess.run([*command, f"http://{host}:{port}{PATH}"], capture_output=True, text=True, check=True).stdout
        rate = re.search(r"^Requests/sec: +([0-9.]+)$", said, re.MULTILINE)
        if rate is None or "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"wrk said: {said}")
        return 1 / float(rate[1])

    return requests


def _work_of_redis(instrument: str, workers: int, count: str, number: int, per_second: int) -> Operation:
    """The work that the contender's own Redis server counted, per 1,000 requests of a steady flow of so many."""
    from redis import Redis

    redis = RedisServer(Path())
    redis.__enter__()
    atexit.register(redis.__exit__, None, None, None)
    os.environ["REDIS_URL"] = redis.new_database()
    address = _serve(instrument, workers)

    def requests(_: int) -> float:
        with Redis.from_url(os.environ["REDIS_URL"]) as client:
            _send_evenly(address, per_second, per_second)  # the batches of every second flow from here on
            client.config_resetstat()
            _send_evenly(address, number, per_second)
            return _counted(client.info("commandstats"), count) * 1000 / number

    return requests


def _counted(stats: Any, count: str) -> float:
    """The calls or microseconds of all commands; the time of scripts contains that of the commands they call."""
    if count == "usec" and "cmdstat_evalsha" in stats:
        stats = {name: stats[name] for name in ("cmdstat_evalsha", "cmdstat_exists") if name in stats}
    return float(sum(each[count] for name, each in stats.items() if not name.startswith("cmdstat_config")))


def _send_evenly(address: Address, number: int, per_second: int) -> None:
    """Send requests one by one."""
    start = time.monotonic()
    for sent in range(number):
        time.sleep(max(0.0, start + sent / per_second - time.monotonic()))
        _get(address)


def _serve(instrument: str, workers: int) -> Address:
    """Start Gunicorn, which ends with this process, and return its address once it answers."""
    command = [sys.executable, "-m", "gunicorn", f"{__name__}:application({instrument!r})", f"--workers={workers}"]
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address: Address = listener.getsockname()
        bind = [f"--bind=fd://{listener.fileno()}", "--log-level=warning"]
        server = subprocess.Popen([*command, *bind], pass_fds=[listener.fileno()])

    def stop() -> None:
        server.terminate()
        server.wait()

    atexit.register(stop)
    for _ in range(50 * workers):  # so that every worker has imported its modules
        _get(address)
    return address


def _get(address: Address) -> None:
    connection = HTTPConnection(*address, timeout=30)
    connection.request("GET", PATH)
    response = connection.getresponse()
    if response.read() != BODY.encode():
        raise RuntimeError(f"the server answered {response.status}")
    connection.close()
