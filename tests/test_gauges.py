"""Gauges: their modes, and functions that are their value."""

from __future__ import annotations

import gc
import re
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import prometheus_client
import pytest
from conftest import wait_until
from helpers import Run, shown
from kinds import make
from prometheus_client import CollectorRegistry
from recorder import Recorder, in_another_thread

import pdc
import pdc.family
from pdc import config
from pdc.delivery import Buffer

MODES = ("all", "min", "max", "sum", "mostrecent", "liveall", "livemin", "livemax", "livesum", "livemostrecent", "shared")
SET_ALL = f"""
gauges = [pdc.Gauge("g_" + mode, "Help", ["path"], multiprocess_mode=mode) for mode in {MODES}]
for gauge in gauges:
    gauge.labels("/").set(VALUE)
"""


def test_gauge_modes_over_processes(
    storage: dict[str, Any],
    run_script: Run,
    start_script: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each mode merges the values of processes as prometheus_client does; the live modes count living ones.

    A process that exits goes at once, a killed one when its lease is over.
    """
    pdc.setup(**storage)

    def modes() -> dict[str, float | list[float]]:
        found: dict[str, Any] = {}
        for sample, value in shown("g_").items():
            mode = sample.removeprefix("g_").partition("{")[0]
            if mode.endswith("all"):
                assert re.search(r'path="/",pid="\d+-[0-9a-f]+"', sample)
                found[mode] = sorted([*found.get(mode, []), value])
            else:
                assert sample.endswith('{path="/"}')
                found[mode] = value
        return found

    def of(values: list[float], last: float) -> list[Any]:
        return [sorted(values), min(values), max(values), sum(values), last]

    run_script("setup()\n" + SET_ALL.replace("VALUE", "9"), storage=storage)
    leaving = start_script(SET_ALL.replace("VALUE", "7"), storage)
    killed = start_script(SET_ALL.replace("VALUE", "5"), storage)
    run_script("setup()\n" + SET_ALL.replace("VALUE", "1"), storage=storage)
    everyone = of([9, 7, 5, 1], 1)
    assert modes() == dict(zip(MODES, [*everyone, *of([7, 5], 5), 1], strict=True))
    leaving.communicate("\n")
    assert leaving.returncode == 0
    assert modes() == dict(zip(MODES, [*everyone, *of([5], 5), 1], strict=True))
    killed.kill()
    killed.wait()
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.0)
    assert modes() == dict(zip((*MODES[:5], "shared"), [*everyone, 1], strict=True))


@pytest.mark.parametrize("mode", ["shared", "all", "livesum", "max"])
def test_a_function_is_the_value_of_a_gauge(
    mode: Any, storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The function is called for every scrape and flush; other updates do nothing; on an error the value stays."""
    pdc.setup(**storage, flush_interval=3600)
    gauge = pdc.Gauge("m", "Help", ["path"], registry=registry, multiprocess_mode=mode)
    values: list[Any] = [2, 3]
    gauge.labels("/").set(9)
    gauge.labels("/").set_function(lambda: values[0])
    gauge.labels("/").inc(5)
    gauge.labels("/").set(5)
    assert list(shown().values()) == [2.0]
    values.pop(0)
    pdc.flush()
    assert list(shown().values()) == [3.0]
    values.clear()
    assert list(shown().values()) == [3.0]
    assert "the function of the gauge m failed" in caplog.text
    gauge.remove("/")
    values.append(4)
    assert shown() == {}


def test_functions_of_processes_are_merged(
    storage: dict[str, Any], registry: CollectorRegistry, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    """In a mode with a value for each process the functions of all living processes count."""
    pdc.setup(**storage)
    pdc.Gauge("m", "Help", registry=registry, multiprocess_mode="livesum").set_function(lambda: 2)
    other = start_script("pdc.Gauge('m', 'Help', multiprocess_mode='livesum').set_function(lambda: 40)", storage)
    assert shown() == {"m": 42.0}
    other.communicate("\n")
    assert shown() == {"m": 2.0}


def test_sets_and_incs_of_a_gauge_keep_their_order(
    storage: dict[str, Any], registry: CollectorRegistry, run_script: Run
) -> None:
    """`inc` adds to the last `set` of any process, and `set` forgets earlier additions."""
    pdc.setup(**storage, flush_interval=3600)
    gauge = make("Gauge", registry=registry)
    for expected in (12.0, 1.5):
        gauge.inc(100)
        gauge.set(10)
        gauge.inc(3)
        gauge.dec()
        assert shown() == {"m": 12.0}
        run_script("setup()\ngauge = pdc.Gauge('m', 'Help')\ngauge.set(2)\ngauge.dec(0.5)", storage=storage)
        assert shown() == {"m": 1.5}
        gauge.inc(-1.5 + expected)
        assert shown() == {"m": expected}


def test_a_gauge_may_change_its_mode(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A gauge with a value for each process shows nothing from the time when all shared one."""
    pdc.setup(**storage)
    make("Gauge", ["path"], registry=None).labels("/").set(5)
    pdc.shutdown()
    gc.collect()
    pdc.setup(**storage)
    make("Gauge", ["path"], registry=registry, multiprocess_mode="sum").labels("?").set(2)
    assert shown() == {'m{path="?"}': 2.0}


@pytest.mark.usefixtures("ready")
def test_a_gauge_that_was_unregistered_leaves_its_value_to_its_successor(registry: CollectorRegistry) -> None:
    """The function of a replaced gauge that is still held does not overwrite a value of its successor of the same name."""
    held = make("Gauge", registry=registry)
    held.set_function(lambda: 1)
    assert shown() == {"m": 1.0}
    registry.unregister(held)
    successor = make("Gauge", registry=registry)
    successor.set(5)
    for _ in range(2):
        pdc.flush()
        assert shown() == {"m": 5.0}


@pytest.mark.usefixtures("ready")
def test_each_function_is_called_once_per_scrape(registry: CollectorRegistry) -> None:
    """A scrape calls each function once, however it is made and however many metrics a registry has."""
    calls: list[str] = []

    def call(name: str) -> float:
        calls.append(name)
        return 1.0

    for name in ("a", "b"):
        gauge = pdc.Gauge(name, "Help", registry=registry)
        gauge.set_function(partial(call, name))
    for number in range(20):
        pdc.Counter(f"c{number}", "Help", registry=registry)
    scrapes: list[Callable[[], object]] = [
        pdc.generate_latest,
        pdc.flush,
        lambda: pdc.generate_latest(registry),
        lambda: prometheus_client.generate_latest(registry),
        lambda: pdc.generate_latest(registry.restricted_registry(["a", "b"])),
    ]
    for scrape in scrapes:
        calls.clear()
        scrape()
        assert sorted(calls) == ["a", "b"]


@pytest.mark.usefixtures("ready")
def test_functions_read_and_update_any_metric(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Functions may read each other, themselves and all metrics, and update any metric; the scrape ends."""
    counter = pdc.Counter("reads", "Help", registry=registry)
    calls: list[str] = []

    def add(name: str, others: tuple[str, ...]) -> None:
        def function() -> float:
            calls.append(name)
            counter.inc()
            pdc.generate_latest()
            pdc.generate_latest(registry)
            list(registry.collect())
            pdc.flush()
            return 1 + sum(registry.get_sample_value(other) or 0.0 for other in others)

        pdc.Gauge(name, "Help", registry=registry).set_function(function)

    for name, others in (("a", ("a", "b")), ("b", ("c",)), ("c", ("missing",))):
        add(name, others)
    calls.clear()
    pdc.generate_latest(registry)
    assert sorted(calls) == ["a", "b", "c"]
    assert (shown("b"), shown("c")) == ({"b": 2.0}, {"c": 1.0})
    assert shown("a")["a"] >= 3.0
    assert shown("reads")["reads_total"] >= len(calls)
    assert caplog.text == ""


@pytest.mark.usefixtures("ready")
def test_the_error_of_a_function_is_no_outage(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A function that fails, also with an error of a storage, is in the log by itself; the storage counts as up."""

    def fail() -> float:
        raise pdc.StorageError("that of the function")

    def recurse() -> float:
        return recurse()

    for name, function in (("f", fail), ("r", recurse)):
        pdc.Gauge(name, "Help", registry=registry).set_function(function)
    caplog.clear()
    assert set(shown().values()) <= {0.0}
    assert {record.getMessage() for record in caplog.records} == {
        f"the function of the gauge {name} failed; its value stays as it was" for name in ("f", "r")
    }
    assert not config.DEFAULT.down


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_functions_end_the_application_but_not_the_background_thread(
    error: type[BaseException], storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BaseException reaches the caller of a scrape; in the background thread it is logged, and the thread sends on."""
    monkeypatch.setattr("pdc.delivery.flusher.BEAT_SECONDS", 0.05)
    pdc.setup(**storage, flush_interval=0.05)
    background: list[str] = []

    def leave() -> float:
        if threading.current_thread() is not threading.main_thread():
            background.append(threading.current_thread().name)
        raise error

    counter = pdc.Counter("c", "Help", registry=registry)
    counter.inc()  # the thread begins with the first update
    gauge = make("Gauge", registry=registry)
    with pytest.raises(error):
        gauge.set_function(leave)
    wait_until(lambda: len(background) >= 2)
    with pytest.raises(error):
        pdc.generate_latest()
    counter.inc()
    stored = config.DEFAULT.required()
    wait_until(lambda: float(stored.read(["c"]).metrics.get("c", {}).get("_total:{}", 0)) == 2.0)
    assert set(background) == {"pdc-flush"}


def test_functions_of_gauges_may_wait_for_threads_that_update(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """A function that takes any lock, or updates metrics itself, never blocks the buffer that calls it."""

    def function() -> float:
        in_another_thread(counter.inc)
        counter.inc()
        return 42

    gauge.set_function(function)
    for call in (buffer.flush, buffer.send_pending, buffer.read, buffer.clear):
        call()
    assert set(recorder.sent("")[1:]) == {("set", 42.0)}
    assert recorder.total() == 8


def test_a_function_that_fails_leaves_the_value(
    buffer: Buffer, recorder: Recorder, gauge: pdc.Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of a function is logged with the name of the gauge, and the last value stays."""
    values = [1.0]
    gauge.set_function(values.pop)
    buffer.flush()
    assert set(recorder.sent("")[1:]) == {("set", 1.0)}
    assert "the function of the gauge level failed" in caplog.text


@pytest.mark.parametrize(
    ("times", "alive"), [(["1000.0", "99.0", "999.9"], 2), (["1000.0", "1000.1"], 2), (["1020.0", "1000.0"], 1)]
)
def test_times_of_several_lengths(times: list[str], alive: int) -> None:
    """A process counts as alive by the time of its value as a number, however many digits that has."""
    family = pdc.family.Family("m", "gauge", "", mode="livesum")
    fields = {f"#live:{number}:{{}}": f"1 {time}" for number, time in enumerate(times)}
    assert [sample.value for sample in family.metric(fields, 1000.0).samples] == [alive]
