"""docs/dashboard.md: its blocks of code run, and its pictures are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, free_port
from helpers import block, run_block

PAGE = (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")


def test_the_block_of_an_application_has_the_page(tmp_path: Path) -> None:
    """The application shows the page to the user of the block alone."""
    ask = """
client = app.test_client()
for auth in (None, ("ann", "change me")):
    answer = client.get("/metrics/dashboard", auth=auth)
    print(answer.status_code, "<title>" in answer.text)
"""
    assert run_block(block(PAGE, "python", of="In an application") + ask, tmp_path) == ["401 False", "200 True"]


def test_the_block_of_a_server_serves_the_page(tmp_path: Path) -> None:
    """The commands of the shell get the page and the counts of a storage, and stop the server."""
    program = "import pdc; pdc.setup(sqlite='metrics.db'); pdc.Counter('hits', 'Hits.').inc()"
    run_block(program, tmp_path)
    port = free_port()
    commands = block(PAGE, "sh", of="In a process of its own").replace("9100", str(port))
    assert commands.count(str(port)) == 3
    source = f'set -m; pdc() {{ exec {sys.executable} -m pdc "$@"; }}\n{commands}'
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", source], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    title, counts = done.stdout.splitlines()
    assert title == "<title>Metrics, live</title>"
    assert '"requests": []' in counts
    assert f"the dashboard is on http://127.0.0.1:{port}/metrics/dashboard" in done.stderr


def test_the_pictures_of_the_page_are_pictures() -> None:
    """Each picture that the page shows or links to is a PNG of less than 100 KB."""
    pictures = re.findall(r"\]\((images/[^)]+)\)", PAGE)
    assert len(pictures) == 3
    for name in pictures:
        data = (ROOT / "docs" / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 100_000
