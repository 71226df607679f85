"""docs/own_storage.md: its storage passes the tests that all storages pass, and counts."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from flask import Flask
from helpers import Tally, block, run_block
from prometheus_client import CollectorRegistry

import pdc
import pdc.storage
import pdc_flask
from pdc.storage import Storage
from pdc.testing import StorageContract, value_of

PAGE = (ROOT / "docs" / "own_storage.md").read_text(encoding="utf-8")


@pytest.fixture
def module(tmp_path: Path) -> Any:
    """The module of the page."""
    path = tmp_path / "json_storage.py"
    path.write_text(block(PAGE, "python", of="A complete one"))
    spec = importlib.util.spec_from_file_location("json_storage", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class TestOfThePage(StorageContract):
    """The storage of the page passes the tests that all storages pass."""

    @pytest.fixture(autouse=True)
    def _choose(self, module: Any, tmp_path: Path) -> None:
        self._store: Storage = module.JsonStorage(tmp_path / "metrics.json")

    def make(self) -> Storage:
        """The storage of the page, empty."""
        return self._store


def test_its_tests_run_as_shown(tmp_path: Path, module: Any) -> None:  # noqa: ARG001 - it writes the module
    """The test file of the page passes under pytest, in a few seconds, without a plugin."""
    (tmp_path / "test_json_storage.py").write_text(block(PAGE, "python", of="Its tests"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "operations or ids or forks"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("interval", [0, 3600])
def test_metrics_of_every_kind_are_exact(module: Any, tmp_path: Path, registry: CollectorRegistry, interval: float) -> None:
    """Over a storage of your own all metrics count, and a missing member, a prefix and other errors are named."""
    pdc.setup(storage=module.JsonStorage(tmp_path / "metrics.json"), flush_interval=interval)
    tally = Tally(registry)
    for _ in range(3):
        tally.update()
    tally.check()
    with pytest.raises(pdc.NotConfigured):
        pdc.get_sqlite_conn()
    pdc.clear()
    assert value_of("hits_total") == 0


def test_an_extension_keeps_it(module: Any, tmp_path: Path) -> None:
    """An extension whose options name no storage counts in the one that `setup` was given."""
    pdc.setup(storage=module.JsonStorage(tmp_path / "metrics.json"))
    app = Flask("shop")
    pdc_flask.PrometheusMetrics(app)
    app.test_client().get("/nowhere")
    assert 'route="<unmatched>",status="404"} 1.0' in app.test_client().get("/metrics").text
    assert "http_requests" in (tmp_path / "metrics.json").read_text()


def test_the_program_counts_in_all_processes(module: Any, tmp_path: Path) -> None:  # noqa: ARG001 - it writes the module
    """The program of the page adds up over its runs, also over a killed one, whose journal the next one sends."""
    program = block(PAGE, "python", of="Use it")
    assert "orders_total 1.0" in run_block(program, tmp_path)
    source = """
import os, pdc
from json_storage import JsonStorage
pdc.setup(storage=JsonStorage("metrics.json"), flush_interval=60)
orders = pdc.Counter("orders", "Orders.")
orders.inc(5)
if child := os.fork():
    os.waitpid(child, 0)
else:
    orders.inc(7)
os.kill(os.getpid(), 9)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, env=environ, timeout=60, check=False)
    assert "orders_total 14.0" in run_block(program, tmp_path)


def test_the_table_has_the_members_of_the_contract() -> None:
    """The table of the page has each member of `Storage`, and each name of the page is there."""
    rows = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \|", PAGE, re.MULTILINE)
    members = {name for name in vars(Storage) if not name.startswith("_")}
    assert (set(rows), len(rows)) == (members, 9)
    assert all(hasattr(pdc.storage, name) for name in pdc.storage.__all__)


def test_a_storage_without_a_method_to_make_it_names_it() -> None:
    """A contract without a storage is an error that names the method to write."""
    with pytest.raises(NotImplementedError, match=r"StorageContract needs a method make\(\)"):
        StorageContract().test_ids()
