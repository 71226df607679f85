"""`example_apps/demo.py`, the main job, over every framework and storage."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT, RedisServer
from helpers import mainly

RECYCLED, PRELOADED, THREADED = ["--max-requests", "50"], ["--preload"], ["--threads", "4"]


@mainly("redis")
@pytest.mark.parametrize(
    ("app", "options"),
    [
        pytest.param("flask_app", [], marks=pytest.mark.long),
        pytest.param("flask_app", RECYCLED, marks=pytest.mark.long),
        pytest.param("flask_app", PRELOADED + THREADED, marks=pytest.mark.long),
        pytest.param("django_app", [], marks=pytest.mark.long),
        ("django_app", PRELOADED + THREADED + RECYCLED),
        pytest.param("starlette_app", [], marks=pytest.mark.long),
        ("starlette_app", PRELOADED),
    ],
)
def test_the_demo_counts_every_request(
    storage: dict[str, Any], redis_server: RedisServer, app: str, options: list[str]
) -> None:
    """Under Gunicorn with four workers, also recycled, preloaded or threaded, any worker shows exactly the sent requests."""
    environment = {"PDC_REDIS_URL": redis_server.url} if "redis" in storage else {}
    demo = [sys.executable, str(ROOT / "example_apps" / "demo.py"), "--app", app, "--once", "--port", "0", "--requests", "300"]
    done = subprocess.run(
        [*demo, "--", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every worker counts what was sent: yes" in done.stdout
