"""docs/testing.md: its tests pass, in processes of their own, and leave no file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers import block
from prometheus_client import CollectorRegistry

import pdc
from pdc.testing import own_storage, value_of

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
EARLY = """
import pdc, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    pdc.setup(sqlite="early.db")  # as pytest-django does, which sets the project up here
    pdc.Counter("early", "Early.").inc()
"""


def run(folder: Path, *command: str) -> str:
    """Run Python with warnings as errors in the folder, and return its output."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    """The tests pass together under the plugin, and leave no file, also where a plugin has made an application early."""
    (tmp_path / "pyproject.toml").write_text(block(PAGE, "toml", of="pytest"))
    files = {"test_shop.py": "Values", "test_api.py": "FastAPI and Starlette", "test_visits.py": "Others"}
    for name, title in files.items():
        (tmp_path / name).write_text(block(PAGE, "python", of=title))
    (tmp_path / "conftest.py").write_text(block(PAGE, "python", of="Values", number=1))
    (tmp_path / "early.py").write_text(EARLY)
    wrong = "import test_shop\nfrom pdc.testing import assert_change\n"
    for number, name in enumerate(('"orders_total", item="tee"', '"order_total"')):
        wrong += f"def test_{number}():\n    with assert_change({name}): test_shop.order('tea')\n"
    (tmp_path / "test_wrong.py").write_text(wrong)
    output = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "early", "-W", "error")
    assert "2 failed, 3 passed" in output
    for line in block(PAGE, "text", of="Values").splitlines():
        assert line in output
    assert {path.name for path in tmp_path.iterdir()} == {*files, "conftest.py", "early.py", "pyproject.toml", "test_wrong.py"}


def test_the_test_of_processes_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of two processes passes without the plugin."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, Any] = {}
    exec(block(PAGE, "python", of="Servers and other processes"), names)
    names["test_two_processes_add_up"](tmp_path, monkeypatch)


def test_the_test_of_django_passes(tmp_path: Path) -> None:
    """The test passes under the runner of the page, and counts nothing in the storage of the project."""
    (tmp_path / "urls.py").write_text("urlpatterns = []\n")
    (tmp_path / "settings.py").write_text(f"""
DATABASES = {{}}
INSTALLED_APPS = ["pdc_django"]
MIDDLEWARE = ["pdc_django.middleware.PrometheusMiddleware"]
PDC_SQLITE_PATH = "metrics.db"
ROOT_URLCONF = "urls"
SECRET_KEY = "of tests"
USE_TZ = True
{block(PAGE, "python", of="Django")}
""")
    (tmp_path / "tests.py").write_text(block(PAGE, "python", of="Django", number=1))
    output = run(tmp_path, "-m", "django", "test", "--settings", "settings")
    assert "Ran 1 test" in output
    assert "OK" in output
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert value_of("http_requests_total") == 0


def test_the_table_of_values_has_calls_that_work(registry: CollectorRegistry) -> None:
    """Each call of the table has the value of that metric."""
    calls = re.findall(r"`(value_of\(.*?\)(?: == 1)?)`", PAGE.partition("| Value | Call |")[2].partition("\n\n")[0])
    with own_storage():
        orders = pdc.Counter("orders", "Orders.", ["item"], registry=registry)
        orders.labels("tea").inc(2)
        orders.labels("cake").inc(3)
        pdc.Gauge("http_requests_in_progress", "Requests.", registry=registry).set(4)
        wait = pdc.Histogram("wait_seconds", "Wait.", registry=registry, buckets=(0.5, 1))
        wait.observe(0.25)
        wait.observe(0.75)
        pdc.Enum("door", "Door.", states=["open", "shut"], registry=registry).state("open")
        pdc.Info("version", "Version.", registry=registry).info({"number": "3.1"})
        found = [eval(call, {"value_of": value_of}) for call in calls]
    assert found == [2.0, 5.0, 4.0, 2.0, 1.0, 1.0, 1.0, True]


def test_an_update_without_a_storage_is_an_error(registry: CollectorRegistry) -> None:
    """Where nobody has called `setup`, an update raises NotConfigured."""
    with pytest.raises(pdc.NotConfigured):
        pdc.Counter("visits", "Visits.", registry=registry).inc()
