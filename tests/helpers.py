"""Helpers of several test modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def block(page: str, language: str, *, of: str, number: int = 0) -> str:
    """The code block with that language and number in the section of that title."""
    (section,) = re.findall(rf"^## {re.escape(of)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return blocks[number]


def run_block(source: str, folder: Path) -> list[str]:
    """Run Python source with warnings as errors, and return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"expected the block to run, got\n{done.stderr}\nfrom\n{source}"
    return done.stdout.splitlines()
