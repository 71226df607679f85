"""Journals: the next process of the host sends the unsent updates of a killed one, once."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RedisServer
from helpers import Run, mainly, script, shown
from journals import Journal

import pdc
import pdc.exposition
from pdc.delivery.journal import batches
from pdc.delivery.journal.layout import CLOCK, SENT_AT, SINCE
from pdc.storage import Batch, Kind, Operation


@mainly("sqlite")
@pytest.mark.parametrize("interval", [0.01, 600])
def test_updates_acknowledged_before_a_kill_are_counted(
    storage: dict[str, Any], run_script: Run, tmp_path: Path, interval: float
) -> None:
    """Fifty processes, killed at any moment, lose no acknowledged update; an update in flight is in or out."""
    acknowledged, found = json.loads(run_script(script("kills.py"), 50, interval, storage=storage).stdout)
    assert acknowledged > 1000
    for name in ("hits_total", "wait_count", "wait_bucket2.0", "size_count", "level", "each"):
        assert acknowledged <= found[name] <= acknowledged + 50
    assert acknowledged <= found["latest"] <= acknowledged + 1
    assert found["wait_sum"] == pytest.approx(1.5 * found["wait_count"], abs=1.5 * 50)
    assert not any(any(path.read_bytes()[:8]) for path in (tmp_path / "journals").iterdir())  # except some that had just begun


@pytest.mark.parametrize("reply", ["lost", "never sent"])
def test_a_batch_in_flight_counts_once(journal: Journal, reply: str) -> None:
    """A batch in flight and later updates count once, whether the process was killed before or after the storage applied it."""
    journal.leave(f"""
        storage = pdc.config.DEFAULT.storage
        apply = storage.apply
        hits.labels("/").inc(3)
        pdc.flush()
        def killed(batch):
            hits.labels("/").inc(100)
            hits.labels("/new").inc(1000)
            if {reply == "lost"}:
                apply(batch)
            os.kill(os.getpid(), signal.SIGKILL)
        storage.apply = killed
        hits.labels("/").inc(20)
        pdc.flush()
        """)
    assert journal.send() == {("/",): 123.0, ("/new",): 1000.0}
    assert journal.files == []
    assert journal.send() == {("/",): 123.0, ("/new",): 1000.0}


def test_the_next_process_sends_the_updates_of_an_outage(run_script: Run, tmp_path: Path) -> None:
    """A script that ends in an outage, written through, leaves its updates to a later one."""
    options = {"sqlite": str(tmp_path / "later" / "metrics.db"), "journal": str(tmp_path / "journals")}
    source = "setup()\nhits = pdc.Counter('hits', 'Hits.')\nfor _ in range(3): hits.inc()"
    assert "metrics that could not be sent wait in" in run_script(source, storage=options).stderr
    (tmp_path / "later").mkdir()
    assert run_script(source, storage=options).stderr == ""
    shown = run_script("setup()\nprint(pdc.generate_latest().decode())", storage=options).stdout
    assert "hits_total 6.0" in shown
    assert list((tmp_path / "journals").iterdir()) == []


def test_a_living_process_keeps_its_journal(journal: Journal) -> None:
    """No process sends the journal of a living one, even a stopped one; after a kill it is sent, though a child lives on."""
    source = f"""
import os, pdc, signal, time
pdc.setup(**{ {**journal.options, "flush_interval": 600}!r})
hits = pdc.Counter("hits", "Hits.", ["path"]).labels("/")
hits.inc(5)
pdc.flush()
time.sleep(0.5)  # the thread that flushes has begun to wait
hits.inc(7)
if os.fork() == 0:
    print(os.getpid(), flush=True)  # by now it has let go of the journal
    time.sleep(60)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        child = int(process.stdout.readline())
    try:
        assert journal.send() == {("/",): 5.0}
        process.kill()
        process.wait()
        assert journal.send() == {("/",): 12.0}
    finally:
        os.kill(child, signal.SIGKILL)


def test_metrics_of_every_kind_outlive_a_kill(journal: Journal) -> None:
    """Gauges, texts, resets and removals of the last interval are sent in their order; live values end with the process."""
    journal.leave(script("every_kind.py"))
    (path,) = journal.folder.glob("*.journal")
    sent = {
        update.name: update.created
        for batch in batches(path.read_bytes(), time.time())
        for update in batch.updates
        if update.meta
    }
    assert {name for name, created in sent.items() if created} == {"hits", "starts"}
    assert journal.send() == {("/old",): 1.0, ("/kept",): 9.0}
    shown = set(pdc.generate_latest().decode().splitlines())
    assert shown >= {
        "level 12.0",
        "least 3.0",
        "recent 1.0",
        'about_info{version="3"} 1.0',
        'state{state="working"} 1.0',
        "starts_total 4.0",
    }
    assert not any(line.startswith("busy ") for line in shown)
    journal.leave("level = pdc.Gauge('level', 'Shared.')\nlevel.set(1)\npdc.flush()\nlevel.inc(5)")
    journal.leave("level = pdc.Gauge('level', 'Shared.')\nlevel.inc(0.5)")
    journal.send()
    assert "level 6.5" in pdc.generate_latest().decode().splitlines()


def test_a_series_that_was_removed_elsewhere_is_created_anew(journal: Journal) -> None:
    """A series that another process removed, and that goes on in a journal, gets the time at which the storage begins it."""
    journal.leave("""
        from pdc.storage import Batch, Kind, Operation, Update
        hits.labels("/").inc()
        pdc.flush()
        remove = Update("hits", "{}", [Operation(Kind.DELETE, '{"path":"/"}')])
        pdc.config.DEFAULT.storage.apply(Batch("9-z", 1, [remove]))
        hits.labels("/").inc(2)
        """)
    left = time.time()
    assert journal.send() == {("/",): 2.0}
    (created,) = [
        sample.value for metric in pdc.exposition.collect() for sample in metric.samples if sample.name == "hits_created"
    ]
    assert created >= left


@pytest.mark.parametrize(
    ("longer_up", "earlier", "latest"), [(1e6, 0.0, "1.0"), (-1e6, 0.0, "1.0"), (0.0, 3600.0, "2.0"), (0.0, -3600.0, "2.0")]
)
def test_the_latest_value_is_shown_after_a_start_of_the_host(
    journal: Journal, longer_up: float, earlier: float, latest: str
) -> None:
    """A value in a journal has the time of day when it was set, for any uptime of the host; never a time in the future."""
    declared = "recent = pdc.Gauge('recent', 'Latest.', multiprocess_mode='mostrecent')\n"
    journal.leave(f"{declared}recent.set(2)\npdc.shutdown()")
    began = time.monotonic()
    journal.leave(f"{declared}recent.set(1)")
    (path,) = journal.folder.glob("*.journal")
    numbers = array("d", path.read_bytes())
    for index, number in enumerate(numbers):
        if began <= number <= time.monotonic():
            numbers[index] = number + longer_up
    numbers[CLOCK // 8] -= longer_up + earlier
    path.write_bytes(numbers.tobytes())
    journal.send()
    assert f"recent {latest}" in pdc.generate_latest().decode().splitlines()


def test_values_that_were_counted_since_are_not_sent_again(journal: Journal) -> None:
    """A day after a kill the storage has folded the values it knew of the process: the journal's older ones are not sent."""
    journal.leave("""
        total = pdc.Gauge("total", "Of all processes.", multiprocess_mode="sum")
        total.set(5)
        hits.labels("/").inc(2)
        """)
    (path,) = journal.folder.iterdir()
    content = path.read_bytes()
    ages = (0, 90_000)
    kinds = [{each.kind for batch in batches(content, time.time() + age) for each in _operations(batch)} for age in ages]
    assert [Kind.STAMP in found for found in kinds] == [True, False]
    assert all(Kind.ADD in found for found in kinds)


@pytest.mark.parametrize(
    ("stop", "age", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 60, 15.0),
        ("os.kill(os.getpid(), signal.SIGKILL)", 7200, 10.0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -60, 10.0),
        ("raise pdc.StorageError('the storage is down')", 7200, 15.0),
    ],
    ids=["killed while it sent", "an hour ago", "before the clock was put back", "killed after that had failed"],
)
def test_a_batch_in_flight_an_hour_ago_is_dropped(
    journal: Journal, caplog: pytest.LogCaptureFixture, stop: str, age: int, expected: float
) -> None:
    """A batch in flight an hour ago could count twice, as marks are forgotten: it is dropped; a failed one is sent."""
    journal.leave(f"""
        hits.labels("/").inc(1)
        pdc.flush()
        def stopped(batch):
            hits.labels("/").inc(9)
            {stop}
        pdc.config.DEFAULT.storage.apply = stopped
        hits.labels("/").inc(5)
        try:
            pdc.flush()
        except pdc.StorageError:
            pass
        """)
    (path,) = journal.folder.iterdir()
    content = bytearray(path.read_bytes())
    for place in (SINCE, SENT_AT):
        struct.pack_into("=Q", content, 8 * place, int(time.time()) - age)
    path.write_bytes(content)
    assert journal.send() == {("/",): expected}
    assert ("was on the way" in caplog.text) == (expected == 10.0)


def _operations(batch: Batch) -> list[Operation]:
    return [operation for update in batch.updates for operation in update.operations]


def test_a_journal_of_a_refused_metric_is_no_silent_loss(
    redis_server: RedisServer, run_script: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other metrics of the journal are sent, and the log names the refused one, whose counts are lost."""
    journal = Journal(run_script, {"redis": redis_server.url, "redis_prefix": "test"}, tmp_path / "journals")
    journal.leave("hits.labels('/').inc()\npdc.Counter('more', 'More.').inc(2)")
    with redis_server.client() as client:
        client.set("prometheus_test_hits", "no metric")
        pdc.setup(**journal.options)
        pdc.flush()
        client.delete("prometheus_test_hits")
    assert shown() == {"more_total": 2.0}
    lost = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lost) == 1
    assert lost[0].startswith("counts of a killed process are lost: metric 'hits' is refused: the key ")
    assert journal.files == []
