"""Helpers of several test modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pdc
from pdc.storage import Storage

Run = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture `run_script`."""
INTERVALS = pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])
"""Values of `flush_interval`. With the second one, only `flush` and the end of the process send."""
SHORT_INTERVALS = pytest.mark.parametrize("interval", [0, 0.01], ids=["write-through", "buffered"])
"""The same. With the second one, the background thread sends again and again."""
DOWN = "metrics cannot be sent and are kept in memory until they can: "
"""The first line of the log of an outage, before the reason."""
UP = "metrics can be sent again; those kept in memory were"
"""The last line."""

SMALL_PIECES = {"MOST_FIELDS": 20, "MOST_FOUND": 20, "MOST_FOLDED": 20, "MOST_NAMED": 20}
"""Constants with which pieces have few fields."""


def shown(name: str = "") -> dict[str, float]:
    """The samples of the storage whose names have this prefix, without times of creation."""
    lines = (line for line in pdc.generate_latest().decode().splitlines() if line.startswith(name) and not line.startswith("#"))
    samples = (line.rpartition(" ") for line in lines if "_created" not in line)
    return {sample: float(value) for sample, _, value in samples}


def block(page: str, language: str, *, of: str, number: int = 0) -> str:
    """The code block with that language and number in the section of that title."""
    (section,) = re.findall(rf"^## {re.escape(of)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return blocks[number]


def run_block(source: str, folder: Path) -> list[str]:
    """Run Python source with warnings as errors, and return its lines of output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"expected the block to run, got\n{done.stderr}\nfrom\n{source}"
    return done.stdout.splitlines()


def set_constants(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Let the modules of all storages have other times and sizes."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[:2] == ["pdc", "storage"]]
    for name, value in values.items():
        owners = [module for module in modules if hasattr(module, name)]
        assert owners, f"no storage has a constant {name}"
        for owner in owners:
            monkeypatch.setattr(owner, name, value)


def driver_call(storage: Storage) -> tuple[Any, str]:
    """The object and the name of the method through which all calls of a storage go."""
    found: Any = storage
    return (found.server, "run") if hasattr(found, "server") else (found.database, "use")
