"""Journals: what a killed process had not sent, the next process of the host sends, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pdc
import pdc.exposition

Run = Callable[..., subprocess.CompletedProcess[str]]

COUNT = """
import json, mmap, os, random, signal, struct, sys, time

ROUNDS, INTERVAL = {rounds}, {interval}
setup(flush_interval=INTERVAL, journal="journals")
counter = pdc.Counter("hits", "Hits.", ["by"])
wait = pdc.Histogram("wait", "Wait.", buckets=[1, 2])
size = pdc.Summary("size", "Size.")
acknowledged = memoryview(mmap.mmap(-1, 8)).cast("Q")

def work():
    child = counter.labels("me")
    while True:
        child.inc()
        wait.observe(1.5)
        size.observe(3)
        acknowledged[0] += 1

for _ in range(ROUNDS):
    pid = os.fork()
    if pid == 0:
        work()
    time.sleep(random.uniform(0, 0.08))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
setup(journal="journals")
pdc.flush()
found = {{}}
import pdc.exposition
for metric in pdc.exposition.collect():
    for sample in metric.samples:
        found[sample.name + sample.labels.get("le", "")] = sample.value
print(json.dumps([acknowledged[0], found]))
"""


@pytest.mark.parametrize("interval", [0.01, 600])
def test_what_was_acknowledged_before_a_kill_is_counted(
    storage: dict[str, Any], run_script: Run, tmp_path: Path, interval: float
) -> None:
    """Fifty processes that are killed at any moment lose nothing: what is in flight at that moment is in or out."""
    acknowledged, found = json.loads(run_script(COUNT.format(rounds=50, interval=interval), storage=storage).stdout)
    assert acknowledged > 1000
    for name in ("hits_total", "wait_count", "wait_bucket2.0", "size_count"):
        assert acknowledged <= found[name] <= acknowledged + 50
    assert found["wait_sum"] == pytest.approx(1.5 * found["wait_count"], abs=1.5 * 50)
    assert not any(any(path.read_bytes()[:8]) for path in (tmp_path / "journals").iterdir())  # but for some just begun


class Journal:
    """The journals of a storage, and the processes that write and send them."""

    def __init__(self, run_script: Run, storage: dict[str, Any], folder: Path) -> None:
        self._run_script = run_script
        self._storage = {**storage, "journal": str(folder)}
        self.folder = folder

    def leave(self, work: str, **options: Any) -> str:
        """Let a process do this work, have it killed, and return what it logged."""
        source = f"""
import logging, os, signal
logging.basicConfig(format="%(message)s")
setup(**{ ({"flush_interval": 600} | options)!r})
hits = pdc.Counter("hits", "Hits.", ["path"])
{textwrap.dedent(work)}
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = self._run_script(source, storage=self._storage, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stderr

    def send(self) -> dict[tuple[str, ...], float]:
        """Be the next process, and return the series of the counter."""
        pdc.setup(**self._storage)
        pdc.flush()
        return {
            tuple(sample.labels.values()): sample.value
            for metric in pdc.exposition.collect()
            for sample in metric.samples
            if sample.name == "hits_total"
        }

    @property
    def files(self) -> list[str]:
        """The kinds of files in the folder."""
        return sorted(path.suffix for path in self.folder.iterdir())


@pytest.fixture
def journal(run_script: Run, storage: dict[str, Any], tmp_path: Path) -> Journal:
    """A folder of the test's own, for each storage."""
    return Journal(run_script, storage, tmp_path / "journals")


@pytest.mark.parametrize("reply", ["lost", "never sent"])
def test_a_batch_in_flight_counts_once(journal: Journal, reply: str) -> None:
    """Killed after the storage applied a batch, or before, and with more that came since: all count once."""
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


def test_what_an_outage_left_is_sent_by_the_next_process(run_script: Run, tmp_path: Path) -> None:
    """A script that ends while the storage is away, written through, leaves its updates to one that runs later."""
    options = {"sqlite": str(tmp_path / "later" / "metrics.db"), "journal": str(tmp_path / "journals")}
    source = "setup()\nhits = pdc.Counter('hits', 'Hits.')\nfor _ in range(3): hits.inc()"
    assert "metrics that could not be sent wait in" in run_script(source, storage=options).stderr
    (tmp_path / "later").mkdir()
    assert run_script(source, storage=options).stderr == ""
    shown = run_script("setup()\nprint(pdc.generate_latest().decode())", storage=options).stdout
    assert "hits_total 6.0" in shown
    assert list((tmp_path / "journals").iterdir()) == []


def test_a_journal_grows_with_its_series(journal: Journal) -> None:
    """Thousands of series and labels longer than a page of memory are all in the journal."""
    journal.leave("""
        for number in range(3000):
            hits.labels(str(number)).inc(number)
        hits.labels("x" * 200_000).inc(7)
        """)
    found = journal.send()
    assert found.pop(("x" * 200_000,)) == 7.0
    found.pop(("0",), None)  # it counted nothing
    assert found == {(str(number),): float(number) for number in range(1, 3000)}


def test_series_that_are_removed_leave_the_journal(journal: Journal) -> None:
    """What was removed is not sent, its room is used again, and whoever still holds it counts in vain."""
    journal.leave(
        """
        for number in range(20000):
            child = hits.labels("/")
            child.inc()
            hits.remove("/")
            child.inc()
        pdc.flush()
        hits.labels("/a").inc(2)
        child.inc()
        size = sum(path.stat().st_size for path in __import__("pathlib").Path(os.environ["JOURNALS"]).iterdir())
        """.replace('os.environ["JOURNALS"]', repr(str(journal.folder)))
        + "assert size <= 2 * 65536, size"
    )
    assert journal.send() == {("/a",): 2.0}


def test_a_living_process_keeps_its_journal(journal: Journal) -> None:
    """Nobody sends what a process has that lives, even a stopped one; killed, it has left that, though a child lives on."""
    source = f"""
import os, pdc, signal, time
pdc.setup(**{ {**journal._storage, "flush_interval": 600}!r})
hits = pdc.Counter("hits", "Hits.", ["path"]).labels("/")
hits.inc(5)
pdc.flush()
time.sleep(0.5)  # the thread that flushes has begun to wait
hits.inc(7)
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
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


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"pdcjrnl2" + content[8:], "expected a file that starts with"),
        (lambda content: content[:200], "impossible size"),
        (lambda content: content[:96] + b"\xff" * 64 + content[160:], "impossible size"),
        (lambda content: content.replace(b"path", b"pa\xff\xff"), "says"),
    ],
    ids=["later version", "truncated", "overwritten", "no JSON"],
)
def test_a_journal_that_cannot_be_read_is_set_aside(
    journal: Journal, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], reason: str
) -> None:
    """A file that is no journal, or not all of one, is renamed and logged; nothing of it is sent, and others are."""
    journal.leave('hits.labels("/").inc(5)\nhits.labels("/b").inc(6)')
    (path,) = [path for path in journal.folder.iterdir() if b"hits" in path.read_bytes()]
    path.write_bytes(damage(path.read_bytes()))
    messages = journal.leave('hits.labels("/").inc(7)').splitlines()
    assert journal.send() == {("/",): 7.0}
    assert journal.files == [".damaged"]
    (message,) = [message for message in messages + caplog.messages if "set aside" in message]
    assert reason in message


def test_without_a_folder_updates_are_in_memory(journal: Journal) -> None:
    """Where the folder cannot be made or is not the user's own, the log says so once, and updates are sent as ever."""
    journal.folder.write_text("no folder")
    messages = journal.leave('hits.labels("/").inc(5)\npdc.flush()')
    assert messages.count("there is no journal") == 1
    journal.folder.unlink()
    journal.folder.mkdir()
    journal.folder.chmod(0o777)
    assert "only its owner may write" in journal.leave('hits.labels("/").inc(5)\npdc.flush()')
    assert journal.send() == {("/",): 10.0}
