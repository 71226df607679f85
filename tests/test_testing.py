"""Helpers for tests of applications: a storage for each process, so that parallel tests do not see each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from prometheus_client import CollectorRegistry

import pdc
from pdc.testing import assert_change, own_storage, value_of

MEET = """
import time
from pathlib import Path

def meet(me, other):
    "Wait until the other test counts, too."
    Path(me).touch()
    until = time.monotonic() + 30
    while not Path(other).exists():
        assert time.monotonic() < until
        time.sleep(0.01)
"""
"""A module of parallel tests."""


def run(folder: Path, *command: str) -> str:
    """Run Python with these arguments in the folder, and return its output, which must show no failure."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_storage_of_its_own_keeps_the_programs_untouched(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """In the block all metrics are in memory, whatever `setup` is called; nothing of it reaches the storage of the program."""
    pdc.setup(**storage)
    count = pdc.Counter("visits", "Visits.", registry=registry)
    count.inc()
    with own_storage():
        assert value_of("visits_total") == 0
        for _ in range(2):
            with assert_change("visits_total", 2):
                count.inc(2)
            with assert_change("others_total"):
                pdc.redis.Counter("others", "Others.", registry=None).inc()
            pdc.setup(**storage)
        with pytest.raises(pdc.NotConfigured, match="own storage"):
            pdc.get_redis_conn()
    with pytest.raises(pdc.NotConfigured):
        value_of("visits_total")
    pdc.setup(**storage)
    assert (value_of("visits_total"), value_of("others_total")) == (1, 0)


def test_a_fixture_gives_each_process_of_pytest_its_own(tmp_path: Path) -> None:
    """Under pytest-xdist, `pdc.fixtures` keeps apart tests that count at the same time, and writes no file of the program."""
    (tmp_path / "meeting.py").write_text(MEET)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["pdc.fixtures"]\n')
    for me, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"test_{me}.py").write_text(f"""
import pdc
from meeting import meet
from pdc.testing import assert_change

def test_visit():
    pdc.setup(sqlite="metrics.db")
    with assert_change("visits_total"):
        pdc.Counter("visits", "Visits.").inc()
        meet({me!r}, {other!r})
""")
    assert "2 passed" in run(tmp_path, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider")
    assert not (tmp_path / "metrics.db").exists()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_runner_gives_each_process_of_django_its_own(tmp_path: Path, start: str) -> None:
    """Under `manage.py test --parallel`, the runner keeps apart tests that count at the same time, and their counts unsaved."""
    (tmp_path / "meeting.py").write_text(MEET)
    (tmp_path / "urls.py").write_text("urlpatterns = []\n")
    (tmp_path / "settings.py").write_text("""
DATABASES = {}
INSTALLED_APPS = ["pdc_django"]
MIDDLEWARE = ["pdc_django.middleware.PrometheusMiddleware"]
PDC_SQLITE_PATH = "metrics.db"
PDC_FLUSH_INTERVAL = 0
ROOT_URLCONF = "urls"
SECRET_KEY = "of tests"
TEST_RUNNER = "pdc_django.testing.OwnStorageRunner"
USE_TZ = True
""")
    (tmp_path / "manage.py").write_text(f"""
import multiprocessing, os, sys
if __name__ == "__main__":
    multiprocessing.set_start_method({start!r})
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
""")
    (tmp_path / "tests.py").write_text("""
from django.test import SimpleTestCase, override_settings
from meeting import meet
from pdc_django.testing import assert_change

class Visits:
    def test_visit(self):
        with override_settings(PDC_MAX_SERIES=5), assert_change("http_requests_total", status="404"):
            self.client.get("/")
            meet(self.me, self.other)

class ATests(Visits, SimpleTestCase):
    me, other = "a", "b"

class BTests(Visits, SimpleTestCase):
    me, other = "b", "a"
""")
    output = run(tmp_path, "manage.py", "test", "--parallel", "2")
    assert "Ran 2 tests" in output
    pdc.setup(sqlite=tmp_path / "metrics.db")
    assert value_of("http_requests_total") == 0
