"""Workers of queues in processes of their own, and the metrics of their tasks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import ROOT, RedisServer
from helpers import SCRIPTS, shown


def counts(name: str, *labels: str) -> dict[str, float]:
    """The samples of a metric that are not 0, by the values of these labels, or of all."""
    found = {}
    for sample, value in shown(f"{name}{{").items():
        values = dict(re.findall(r'(\w+)="([^"]*)"', sample))
        if value:
            found[" ".join(values[label] for label in labels or sorted(values))] = value
    return found


def environment(storage: dict[str, Any], redis_server: RedisServer) -> dict[str, str]:
    """The environment of a worker."""
    broker = {"BROKER": redis_server.url.removesuffix("/0") + "/2", "PDC_FLUSH_INTERVAL": "0.1"}
    if "sqlite" in storage:
        return {"PDC_SQLITE_PATH": storage["sqlite"], **broker}
    return {"PDC_REDIS_URL": storage["redis"], "PDC_REDIS_PREFIX": storage["redis_prefix"], **broker}


@contextmanager
def started_worker(module: list[str], variables: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, by the arguments of ``python -m``. Its output is in `worker.log`."""
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{SCRIPTS}", **variables},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
