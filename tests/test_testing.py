"""Helpers for tests of applications: values and their changes, and a storage for each process of parallel tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers import INTERVALS, Run
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


def test_values_of_labels_are_texts_as_in_metrics(registry: CollectorRegistry) -> None:
    """A number finds the series that `labels()` makes of it, and a bound its bucket."""
    with own_storage():
        orders = pdc.Counter("orders", "Orders.", ["status"], registry=registry)
        wait = pdc.Histogram("wait", "Wait.", buckets=[0.5, 1], registry=registry)
        unchanged = assert_change("orders_total", 0, status=500)
        with pytest.raises(AssertionError, match="should change by 0, but changed by 1"), unchanged:
            orders.labels(500).inc()
        wait.observe(0.7)
        assert (value_of("wait_bucket", le=0.5), value_of("wait_bucket", le=1)) == (0, 1)


def test_shutdown_ends_no_storage_of_its_own(registry: CollectorRegistry) -> None:
    """As `setup` does, `shutdown` leaves the metrics of tests where they are: the next test counts on."""
    with own_storage():
        visits = pdc.Counter("visits", "Visits.", registry=registry)
        visits.inc()
        pdc.shutdown()
        visits.inc()
        assert value_of("visits_total") == 2


def test_a_storage_in_another_one_begins_at_zero(registry: CollectorRegistry) -> None:
    """A block in a block has no counts from outside, and leaves none there; after it, the outer one goes on."""
    count = pdc.Counter("visits", "Visits.", registry=registry)
    with own_storage():
        count.inc()
        with own_storage():
            assert value_of("visits_total") == 0
            count.inc(5)
        count.inc()
        assert value_of("visits_total") == 2
    with pytest.raises(pdc.NotConfigured):
        value_of("visits_total")


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


@pytest.fixture
def requests(storage: dict[str, Any], registry: CollectorRegistry) -> pdc.Counter:
    """A counter with three series."""
    pdc.setup(**storage, flush_interval=3600)
    counter = pdc.Counter("requests", "Requests.", ["route", "status"], registry=registry)
    for count, values in enumerate((("/", "200"), ("/", "500"), ("/items", "200")), 1):
        counter.labels(*values).inc(count)
    return counter


@pytest.mark.parametrize(
    ("sample", "labels", "value"),
    [
        ("requests_total", {}, 6.0),
        ("requests_total", {"route": "/"}, 3.0),
        ("requests_total", {"status": "200"}, 4.0),
        ("requests_total", {"route": "/", "status": "500"}, 2.0),
        ("requests_total", {"route": "/unknown"}, 0.0),
        ("requests_total", {"method": "GET"}, 0.0),
        ("requests", {}, 0.0),
        ("unknown", {}, 0.0),
    ],
)
@pytest.mark.usefixtures("requests")
def test_a_value_is_the_sum_of_the_samples_with_these_labels(sample: str, labels: dict[str, str], value: float) -> None:
    """Labels that the caller does not name may have any value; without such a sample the sum is 0."""
    assert value_of(sample, **labels) == value


def test_a_value_has_the_updates_of_all_processes(
    storage: dict[str, Any], registry: CollectorRegistry, run_script: Run
) -> None:
    """Pending updates of this process count, and so do those of others."""
    run_script("setup(); pdc.Counter('requests', 'Requests.').inc(5)", storage=storage)
    pdc.setup(**storage, flush_interval=3600)
    pdc.Counter("requests", "Requests.", registry=registry).inc(2)
    assert value_of("requests_total") == 7.0


@INTERVALS
def test_a_change_is_that_of_the_block_alone(storage: dict[str, Any], registry: CollectorRegistry, interval: float) -> None:
    """The change is 1, or the given one, whatever was counted before; labels choose the samples."""
    pdc.setup(**storage, flush_interval=interval)
    counter = pdc.Counter("requests", "Requests.", ["route"], registry=registry)
    gauge = pdc.Gauge("level", "Level.", registry=registry)
    counter.labels("/").inc(7)
    with assert_change("requests_total"), assert_change("requests_total", route="/items"), assert_change("level", -2.5):
        counter.labels("/items").inc()
        gauge.dec(2.5)
    with assert_change("requests_total", 0, route="/"), assert_change("requests_total", 3):
        counter.labels("/items").inc(3)


CLOSE = "there is no sample request_total, did you mean requests_total?"
THERE = (
    'there are requests_total{route="/",status="200"} 3, requests_total{route="/",status="500"} 2, '
    'requests_total{route="/items",status="200"} 3'
)


@pytest.mark.parametrize(
    ("sample", "change", "labels", "message"),
    [
        ("requests_total", 1, {}, f"requests_total should change by 1, but changed by 2, from 6; {THERE}"),
        (
            "requests_total",
            2.5,
            {"route": "/"},
            f'requests_total{{route="/"}} should change by 2.5, but changed by 2, from 3; {THERE}',
        ),
        (
            "request_total",
            1,
            {"change": "a", "sample": "b"},
            f'request_total{{change="a",sample="b"}} should change by 1, but changed by 0, from 0; {CLOSE}',
        ),
        ("x", 1, {}, "x should change by 1, but changed by 0, from 0; there is no sample x"),
        ("level", 1, {}, "level should change by 1, but changed by 0, from 0; there is level 0"),
    ],
)
def test_another_change_is_an_error(
    requests: pdc.Counter, registry: CollectorRegistry, sample: str, change: float, labels: dict[str, str], message: str
) -> None:
    """The error has the sample, the expected change, the actual one, the value before, and the samples that there are."""
    pdc.Gauge("level", "Level.", registry=registry)
    with pytest.raises(AssertionError) as raised, assert_change(sample, change, **labels):
        requests.labels("/", "200").inc(2)
    assert str(raised.value) == message


def test_an_error_shows_some_samples_of_many(requests: pdc.Counter) -> None:
    """Of many samples the error shows ten."""
    for number in range(20):
        requests.labels("/", str(number)).inc()
    with pytest.raises(AssertionError, match=r"there are (requests_total\S+ 1, ){10}\.\.\.$"), assert_change("requests_total"):
        pass


def test_a_change_is_compared_as_doubles_can_be(registry: CollectorRegistry) -> None:
    """A sum of seconds changes by 0.1 where it goes from 0.2 to 0.3, whose difference is another double."""
    with own_storage():
        summary = pdc.Summary("wait_seconds", "Wait.", registry=registry)
        summary.observe(0.2)
        with assert_change("wait_seconds_sum", 0.1):
            summary.observe(0.1)


@pytest.mark.usefixtures("requests")
def test_an_exception_of_the_block_is_not_replaced() -> None:
    """An exception of the block reaches the test, though the value did not change."""
    with pytest.raises(ZeroDivisionError), assert_change("requests_total"):
        raise ZeroDivisionError


def test_without_setup_the_error_names_the_remedy() -> None:
    """Where no storage is set up, both are NotConfigured, before the block runs."""
    with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup"):
        value_of("requests_total")
    with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup"), assert_change("requests_total"):
        raise ZeroDivisionError


def test_a_storage_that_cannot_be_read_is_no_zero(tmp_path: Path) -> None:
    """A storage that is down is a StorageError, and not a value of 0."""
    (tmp_path / "metrics.db").write_bytes(b"this is no database" * 100)
    pdc.setup(sqlite=tmp_path / "metrics.db")
    with pytest.raises(pdc.StorageError, match=r"metrics\.db"):
        value_of("requests_total")
