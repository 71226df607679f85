"""The development servers of the frameworks, which restart their process when the code changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from conftest import ROOT, free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

COMMANDS = {
    "flask_app": ["-m", "flask", "--app", "app", "run", "--debug", "--port"],
    "django_app": ["manage.py", "runserver"],
    "starlette_app": ["-m", "uvicorn", "app:app", "--reload", "--port"],
}
CODE = {"flask_app": "app.py", "django_app": "shop.py", "starlette_app": "app.py"}


class Client:
    """A client of a shop, which counts the answers."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers = 0
        self.cut = 0
        """Answers that were cut short by the end of their process."""

    def process(self) -> str | None:
        """The process that answers a request; None without an answer."""
        try:
            answer = requests.get(self.url, timeout=10)
        except requests.ConnectionError:
            return None
        answer.raise_for_status()
        process = answer.headers.get("X-Worker")
        if process is None:
            self.cut += 1
        else:
            self.answers += 1
        return process

    def check_counted(self) -> None:
        """The page shows all answered requests, and may include those whose answers were cut."""
        page = requests.get(f"{self.url}/metrics", timeout=10).text
        families = text_string_to_metric_families(page)
        counted = sum(sample.value for family in families for sample in family.samples if sample.name == "http_requests_total")
        assert self.answers <= counted <= self.answers + self.cut


@pytest.mark.parametrize("name", COMMANDS)
def test_metrics_outlive_the_reloader(name: str, tmp_path: Path) -> None:
    """The reloader serves the page, and the new process continues the counts of the one before a change of code."""
    folder = tmp_path / name
    shutil.copytree(ROOT / "example_apps" / name, folder)
    port = free_port()
    client = Client(port)
    server = subprocess.Popen(
        [sys.executable, *COMMANDS[name], str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PDC_SQLITE_PATH": str(tmp_path / "metrics.db")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        before = wait_until(client.process, 30)
        client.check_counted()
        while (process := client.process()) in (None, before):
            if process is not None:  # it may not have begun to watch its files
                (folder / CODE[name]).touch()
            time.sleep(0.2)
        client.check_counted()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
