"""Journals: what a killed process had not sent, the next process of the host sends, once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from array import array
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import ROOT, RedisServer, wait_until
from prometheus_client import CollectorRegistry

import pdc
import pdc.exposition
from pdc.delivery import Buffer
from pdc.delivery.journal import Journals, batches, written
from pdc.delivery.journal.layout import CLOCK, OWNER, SENT_AT, SINCE
from pdc.storage import REMOVALS, Batch, Kind, Operation, Outcome, Selectors, Snapshot, Stamped, StorageError, series_of

Run = Callable[..., subprocess.CompletedProcess[str]]

COUNT = """
import json, mmap, os, random, signal, struct, sys, time

ROUNDS, INTERVAL = {rounds}, {interval}
setup(flush_interval=INTERVAL, journal="journals")
counter = pdc.Counter("hits", "Hits.", ["by"])
wait = pdc.Histogram("wait", "Wait.", buckets=[1, 2])
size = pdc.Summary("size", "Size.")
level = pdc.Gauge("level", "Level.")
latest = pdc.Gauge("latest", "Latest.")
each = pdc.Gauge("each", "Of each.", multiprocess_mode="sum")
acknowledged = memoryview(mmap.mmap(-1, 8)).cast("Q")

def work():
    child = counter.labels("me")
    while True:
        child.inc()
        wait.observe(1.5)
        size.observe(3)
        level.inc()
        each.inc()
        latest.set(acknowledged[0] + 1)
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
    for name in ("hits_total", "wait_count", "wait_bucket2.0", "size_count", "level", "each"):
        assert acknowledged <= found[name] <= acknowledged + 50
    assert acknowledged <= found["latest"] <= acknowledged + 1
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


def test_who_starts_removes_journals_that_nobody_sends(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture, registry: CollectorRegistry
) -> None:
    """Journals of other storages older than 30 days go, with one line in the log; younger, locked and other files stay."""
    for _ in range(3):
        journal.leave('hits.labels("/").inc()', redis_prefix="gone" if "redis" in journal._storage else "")
    old, older, young = sorted(journal.folder.iterdir())
    for number, path in enumerate((old, older, young)):
        path.rename(path.with_name(f"{number:016x}{path.name[16:]}"))  # of a storage that nobody uses
    old, older, young = sorted(journal.folder.iterdir())
    older = older.rename(older.with_suffix(".damaged"))
    (locked := journal.folder / "locked.journal").touch()
    (foreign := journal.folder / "notes.txt").touch()
    for path in (old, older, locked, foreign):
        os.utime(path, (0, time.time() - 31 * 86400))
    with locked.open() as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        pdc.setup(sqlite=tmp_path / "another.db", journal=journal.folder)
        pdc.Counter("hits", "Hits.", registry=registry).inc()
        pdc.flush()
    assert sorted(journal.folder.iterdir()) == sorted([young, locked, foreign])
    message = f"2 journals of metrics are removed, since nobody has sent them for 30 days: {journal.folder}"
    assert caplog.messages == [message]


@pytest.mark.parametrize("interval", [0, 0.05])
def test_without_a_folder_for_temporary_files_all_is_in_memory(
    run_script: Run, redis_server: RedisServer, interval: float
) -> None:
    """Where nothing may be written, as on a read-only root, an application counts; the log says once why there is none."""
    source = f"""
import logging, tempfile, time

def gettempdir():
    raise FileNotFoundError("No usable temporary directory found")

tempfile.gettempdir = gettempdir
logging.getLogger("pdc").setLevel(logging.INFO)
setup(flush_interval={interval})
hits = pdc.Counter("hits", "Hits.")
hits.inc()
pdc.get_redis_conn().close()
for _ in range(3):
    time.sleep(0.06)
    hits.inc()
pdc.flush()
print(pdc.generate_latest().decode())
"""
    done = run_script(source, storage={"redis": redis_server.url, "redis_prefix": "shop"})
    assert "hits_total 4.0" in done.stdout
    warning = (
        "there is no journal, updates that are not sent yet go with the process when it is killed: [Errno 2] no folder for"
    )
    assert done.stderr.count(warning) == (1 if interval else 0)
    assert len(done.stderr.splitlines()) == (1 if interval else 0)


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
        size = 512 * sum(path.stat().st_blocks for path in __import__("pathlib").Path(os.environ["JOURNALS"]).iterdir())
        """.replace('os.environ["JOURNALS"]', repr(str(journal.folder)))
        + "assert size <= 4096, size"
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


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"pdcjrnl2" + content[8:], "expected a file that starts with"),
        (lambda content: content[:300], "bytes, got 300"),
        (lambda content: content[:8] + b"\xff" * 56 + content[64:], "expected 18446744073709551615 bytes"),
        (lambda content: content[: OWNER.stop] + b"\xff" * 64 + content[OWNER.stop + 64 :], "impossible size"),
        (lambda content: content.replace(b"path", b"pa\xff\xff"), "says"),
    ],
    ids=["later version", "truncated", "overwritten header", "overwritten", "no JSON"],
)
def test_a_journal_that_cannot_be_read_is_set_aside(
    journal: Journal, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], reason: str
) -> None:
    """A file that is no journal, or not all of one, is renamed and logged; nothing of it is sent, and others are."""
    journal.leave('hits.labels("/").inc(5)\nhits.labels("/b").inc(6)')
    (path,) = [path for path in journal.folder.iterdir() if b"hits" in path.read_bytes()]
    path.write_bytes(damage(path.read_bytes()))
    messages = journal.leave('hits.labels("/").inc(7)\npdc.flush()').splitlines()
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


EVERY_KIND = """
level = pdc.Gauge("level", "Shared.")
least = pdc.Gauge("least", "Of each process.", multiprocess_mode="min")
recent = pdc.Gauge("recent", "Of the last process.", multiprocess_mode="mostrecent")
busy = pdc.Gauge("busy", "Of living processes.", multiprocess_mode="livesum")
about = pdc.Info("about", "Versions.")
state = pdc.Enum("state", "What it does.", states=["idle", "working"])
starts = pdc.Counter("starts", "Starts.")
def begin():
    level.set(10)
    least.set(4)
    recent.set(5)
    busy.set(6)
    about.info({"version": "1"})
    starts.inc(7)
    hits.labels("/old").inc(8)
    hits.labels("/kept").inc(9)
begin()
pdc.flush()
level.inc(2.5)
level.dec(0.5)
least.set(3)
recent.set(1)
busy.set(2)
about.info({"version": "2"})
about.info({"version": "3"})
state.state("working")
starts.reset()
starts.inc(4)
hits.labels("/old").inc(50)
hits.remove("/old")
hits.labels("/old").inc()
"""


def test_metrics_of_every_kind_outlive_a_kill(journal: Journal) -> None:
    """Gauges, texts, resets and removals of the last interval are sent in their order; live values go with the process."""
    journal.leave(EVERY_KIND)
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


@pytest.mark.parametrize(
    ("longer_up", "earlier", "latest"), [(1e6, 0.0, "1.0"), (-1e6, 0.0, "1.0"), (0.0, 3600.0, "2.0"), (0.0, -3600.0, "2.0")]
)
def test_the_latest_value_is_shown_after_a_start_of_the_host(
    journal: Journal, longer_up: float, earlier: float, latest: str
) -> None:
    """A value in a journal was set when it was by the time of day, however long the host had been up; never in the future."""
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
    """A day after a kill the storage has counted the values of the process as it knew them: what is older stays out."""
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
def test_what_was_on_the_way_an_hour_ago_is_dropped(
    journal: Journal, caplog: pytest.LogCaptureFixture, stop: str, age: int, expected: float
) -> None:
    """Nobody knows any more whether the storage had that, so it cannot count twice; it is sent where sending had failed."""
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
    assert ("what was on the way" in caplog.text) == (expected == 10.0)


def _operations(batch: Batch) -> list[Operation]:
    return [operation for update in batch.updates for operation in update.operations]


class Model:
    """A storage in memory, that can be copied."""

    identity = "model"

    def places(self) -> list[str]:
        """Everywhere it is the same."""
        return [""]

    def id(self) -> str:
        """It has none."""
        return ""

    def hurry(self, until: float) -> None:
        """It is always fast."""

    def __init__(self, values: dict[str, Any] | None = None, last: int = 0) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.last = last

    def copy(self) -> Model:
        """One that has the same."""
        return Model(self.values, self.last)

    def apply(self, batch: Batch) -> Outcome:
        """Do what a batch says, once, and all of it in one step."""
        values = dict(self.values)
        if batch.sequence > self.last:
            for update in batch.updates:
                for _, operations in update.by_kind():
                    for operation in operations:
                        _do(values, update.name, operation)
        self.values, self.last = values, max(self.last, batch.sequence)
        return Outcome(set(), {}, {}, {})

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Nobody reads here."""
        raise NotImplementedError(names)

    def delete(self) -> None:
        """Nobody deletes here."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to close."""

    def state(self) -> dict[str, Any]:
        """What differs from what was never updated, but for times, and for what pdc tells of itself."""
        untold = re.compile("pdc_|.* _created:")
        return {place: value for place, value in self.values.items() if value not in (0, "{}") and not untold.match(place)}


def _do(values: dict[str, Any], name: str, operation: Operation) -> None:
    kind, field, value = operation
    place = f"{name} {field}"
    if kind in REMOVALS:
        wanted = Selectors([json.loads(field)])
        for known in [known for known in values if known.startswith(f"{name} ")]:
            if wanted.match_text(series_of(known.removeprefix(f"{name} ")) or ""):
                del values[known]
    elif kind is Kind.ADD:
        values[place] = values.get(place, 0.0) + value
    elif kind is not Kind.INIT or place not in values:
        values[place] = value.number if isinstance(value, Stamped) else value


def test_a_kill_between_any_two_steps_leaves_an_update_whole_or_out(tmp_path: Path, registry: CollectorRegistry) -> None:
    """After each bytecode of updates and flushes, storage and journal together hold all updates that ended.

    That in progress is in or out; what is sent again does not count again.
    """
    buffer, model, journals = Buffer(), Model(), Journals(tmp_path, "model")
    modules = {
        name: type(name, (getattr(pdc, name),), {"buffer": buffer}) for name in ("Counter", "Gauge", "Histogram", "Info")
    }
    hits = modules["Counter"]("hits", "Hits.", ["path"], registry=registry)
    wait = modules["Histogram"]("wait", "Wait.", buckets=[1], registry=registry)
    level = modules["Gauge"]("level", "Level.", registry=registry)
    total = modules["Gauge"]("total", "Total.", registry=registry, multiprocess_mode="sum")
    about = modules["Info"]("about", "About.", registry=registry)
    buffer.attach(model, 3600.0, None, thread=threading.get_ident(), journals=journals)
    child = hits.labels("/a")
    program: list[Callable[[], Any]] = [
        lambda: child.inc(1),
        lambda: level.set(10),
        lambda: level.inc(2),
        buffer.flush,
        lambda: level.inc(4),
        lambda: level.set(20),
        lambda: wait.observe(0),  # of another value, a kill may leave the sum without the count
        lambda: total.set(7),
        lambda: total.inc(1),
        lambda: about.info({"version": "1"}),
        lambda: about.info({"version": "2"}),
        buffer.flush,
        lambda: child.inc(5),
        lambda: hits.labels("/b").inc(6),
        lambda: level.inc(3),
        lambda: about.info({"version": "3"}),
        lambda: hits.remove("/a"),
        lambda: hits.labels("/a").inc(8),
        buffer.flush,
        lambda: level.dec(1),
        lambda: hits.labels("/a").inc(1),
        lambda: hits.labels("/b").inc(7),
        lambda: hits.labels("/b").reset(),
        lambda: hits.labels("/b").inc(1),
        lambda: hits.labels("/b").reset(),
        lambda: hits.labels("/b").inc(2),
        lambda: hits.labels("/c").inc(math.inf),
        buffer.flush,
    ]
    buffer.flush()  # from here on there is a journal
    (path,) = tmp_path.iterdir()

    def left() -> dict[str, Any]:
        storage = model.copy()
        for batch in batches(_content(path), time.time()):
            storage.apply(batch)
        return storage.state()

    for step, update in enumerate(program):
        before, seen = left(), _states_during(update, path, model)
        after = left()
        found = []
        for content, storage in seen:
            for batch in batches(content, time.time()):
                storage.apply(batch)
            found.append(storage.state())
        assert len(found) > 1, step
        assert [state for state in found if state not in (before, after)] == [], (step, before, after)
        assert (before == after) == (update == buffer.flush), step
    writer = buffer.writer
    buffer.detach()
    values = {place.replace(writer, "me"): value for place, value in model.state().items()}
    assert values == {
        'hits _total:{"path":"/a"}': 9.0,
        'hits _total:{"path":"/b"}': 2.0,
        'hits _total:{"path":"/c"}': math.inf,
        'wait _bucket:{"le":"1.0"}': 1.0,
        "level :{}": 22.0,
        "total #sum:me:{}": 8.0,
        "about _info:{}": '{"version":"3"}',
    }


def _content(path: Path) -> bytes:
    with path.open("rb") as opened:
        return written(opened.fileno())


def _states_during(update: Callable[[], Any], path: Path, model: Model) -> list[tuple[bytes, Model]]:
    """The different states of the journal and the storage after each bytecode of pdc that an update runs."""
    states: dict[tuple[bytes, int], Model] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/pdc/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            content = _content(path)
            if (content, model.last) not in states:
                states[content, model.last] = model.copy()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks only when tracing begins whether any frame wants them
    sys.settrace(trace)
    try:
        update()
    finally:
        sys.settrace(before)
    return [(content, storage) for (content, _), storage in states.items()]


def test_journals_are_sent_in_the_order_in_which_they_were_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of processes that died one after the other, the last one has the last word, whatever their ids."""
    journals, model, sent = Journals(tmp_path, "model"), Model(), []
    for writer in ("20-b", "100-c", "3-a"):
        journals.open(writer, 0, in_flight=False)
        journals.close(keep=True)

    def apply(batch: Batch) -> Outcome:
        sent.append(batch.writer)
        return Outcome(set(), {}, {}, {})

    monkeypatch.setattr(model, "apply", apply)
    journals.replay(model)
    assert sent == ["20-b", "100-c", "3-a"]


def test_who_sends_a_journal_may_be_killed_too(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Killed after a batch of it, that is not sent again by the next one, also when the storage has forgotten it by then."""
    buffer, model = Buffer(), Model()
    hits = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", registry=registry)
    buffer.attach(model, 3600.0, None, thread=threading.get_ident(), journals=Journals(tmp_path / "own", "model"))
    hits.inc(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "apply", model.read)
        with pytest.raises(StorageError):
            buffer.flush()  # in flight from now on
    hits.inc(7)
    (path,) = (tmp_path / "own").iterdir()
    left = tmp_path / path.name
    content = path.read_bytes()
    left.write_bytes(
        content[: OWNER.start] + bytes(OWNER.stop - OWNER.start) + content[OWNER.stop :]
    )  # as if it was killed now

    class Killed(BaseException):
        pass

    class Last(Model):
        def apply(self, batch: Batch) -> Outcome:
            model.apply(batch)
            if model.last == 2:
                raise Killed
            return Outcome(set(), {}, {}, {})

    with pytest.raises(Killed):
        Journals(tmp_path, "model").replay(Last())
    model.last = 0
    aged = bytearray(left.read_bytes())
    struct.pack_into("=Q", aged, 8 * SENT_AT, int(time.time()) - 7200)
    left.write_bytes(aged)
    Journals(tmp_path, "model").replay(model)
    assert not left.exists()
    assert model.state() == {"hits _total:{}": 12.0}
    buffer.detach()


def test_a_journal_takes_few_descriptors_and_little_room(journal: Journal) -> None:
    """Thousands of histograms take a handful of descriptors; a journal of one series takes two pages on the disk at most."""
    journal.leave(
        """
        hits.labels("/").inc()
        pdc.flush()
        def used():
            return len(os.listdir("/dev/fd"))
        before, room = used(), sum(entry.stat().st_blocks for entry in os.scandir(FOLDER))
        wait = pdc.Histogram("wait", "Wait.", ["path"], buckets=range(500))
        for number in range(500):
            wait.labels(number).observe(number)
        assert room * 512 <= 8192, room
        assert used() <= before + 3, (before, used())
        """.replace("FOLDER", repr(str(journal.folder)))
    )
    journal.send()
    assert 'wait_count{path="499"} 1.0' in pdc.generate_latest().decode()


@pytest.mark.parametrize("limit", ["FSIZE, (300_000, 300_000)", "AS, (size() + 3_000_000,) * 2"])
def test_limits_of_files_and_memory_make_a_smaller_journal(journal: Journal, limit: str) -> None:
    """Where a file or the memory of a process may not be that long, the journal is shorter; what finds no room is in memory."""
    messages = journal.leave(f"""
        import resource
        def size():
            return 4096 * int(open("/proc/self/statm").read().split()[0])
        pdc.shutdown()
        resource.setrlimit(resource.RLIMIT_{limit})
        setup(flush_interval=600)
        for number in range(1000):
            hits.labels(str(number)).inc()
        """)
    assert len(journal.send()) == 1000
    assert "no journal" not in messages


def test_a_full_disk_leaves_updates_in_memory(journal: Journal) -> None:
    """What finds no room in the journal is sent as ever."""
    messages = journal.leave("""
        import errno
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")
        hits.labels("/").inc()
        os.posix_fallocate = full
        for number in range(1000):
            hits.labels(str(number)).inc()
        pdc.flush()
        """)
    assert len(journal.send()) == 1001
    assert messages.count("No space left") == 1


def test_file_systems_that_cannot_reserve_room_are_written_to(journal: Journal) -> None:
    """Where `posix_fallocate` does not exist or is not supported, zeros are written."""
    for missing in ("del os.posix_fallocate", "os.posix_fallocate = unsupported"):
        journal.leave(f"""
            import errno
            def unsupported(*_):
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            {missing}
            for number in range(100):
                hits.labels(str(number)).inc()
            """)
    assert set(journal.send().values()) == {2.0}


def test_descriptors_that_others_close_are_theirs(journal: Journal) -> None:
    """A program that closes all descriptors keeps the files that get their numbers, and nobody counts its updates twice."""
    journal.leave(f"""
        import gc, subprocess, sys, time
        pdc.flush()
        time.sleep(0.3)  # the thread that flushes has begun to wait
        hits.labels("/").inc(5)
        os.closerange(3, 64)
        os.close(0)
        files = [open(f"mine{{number}}", "w+") for number in range(40)]
        for number, file in enumerate(files):
            print(number, file=file, flush=True)
        other = "import pdc; pdc.setup(**{journal._storage!r}); pdc.flush()"
        subprocess.run([sys.executable, "-c", other], check=True)
        for number in range(2000):
            hits.labels(str(number)).inc(7)
        if os.fork() == 0:
            hits.labels("child").inc(7)
            pdc.shutdown()
            os._exit(0)
        assert os.wait()[1] == 0
        setup(flush_interval=600)
        gc.collect()
        hits.labels("/").inc(2)
        subprocess.run([sys.executable, "-c", other], check=True)
        for number, file in enumerate(files):
            print("end", file=file, flush=True)
            file.seek(0)
            assert file.read() == f"{{number}}\\nend\\n", number
        """)
    found = journal.send()
    assert found.pop(("/",)) == 7.0
    assert found == {(name,): 7.0 for name in [*map(str, range(2000)), "child"]}


@pytest.mark.parametrize("detach", [True, False])
def test_a_daemon_counts_exactly(journal: Journal, tmp_path: Path, detach: bool) -> None:
    """python-daemon closes all that is open, again and again other processes look for journals, and each update counts once."""
    source = f"""
import os, pathlib, time, daemon, pdc
pdc.setup(**{ {**journal._storage, "flush_interval": 0.05}!r})
hits = pdc.Counter("hits", "Hits.", ["path"]).labels("/")
for _ in range(100):
    hits.inc()
pdc.flush()
time.sleep(0.2)  # nothing is being sent: what that uses must not be closed meanwhile
log = open("log", "w")
with daemon.DaemonContext(detach_process={detach}, working_directory={str(tmp_path)!r}, stderr=log, stdout=log):
    mine = open("mine", "w")
    for number in range(1000):
        hits.inc()
        print(number, file=mine)
        if number % 100 == 0:
            mine.flush()
            time.sleep(0.02)
    pdc.shutdown()
    mine.close()
    pathlib.Path("done").touch()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )

    def done() -> bool:
        pdc.config.DEFAULT._work.replay_due = True
        pdc.flush()
        return (tmp_path / "done").exists()

    pdc.setup(**journal._storage)
    wait_until(done)
    _, errors = process.communicate()
    assert errors == b""
    assert (tmp_path / "mine").read_text().split() == list(map(str, range(1000)))
    lost = "SQLite would write to the files that have their numbers now"
    assert (lost in (tmp_path / "log").read_text()) == ("sqlite" in journal._storage and not detach)
    assert journal.send() == {("/",): 1100.0}
    assert journal.files == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_journal_that_is_deleted_is_begun_anew(journal: Journal, what: str) -> None:
    """What a cleaner deleted while its process lives is there again with the next batch, with all that is pending."""
    delete = f"""
        import pathlib, shutil
        def delete():
            for path in pathlib.Path({str(journal.folder)!r}).iterdir():
                path.unlink()
            if {what == "folder"}:
                shutil.rmtree(path.parent)
        """
    journal.leave(f"""{delete}
        hits.labels("/").inc(5)
        delete()
        pdc.flush()
        hits.labels("/").inc(7)
        hits.labels("/new").inc(8)
        """)
    assert journal.send() == {("/",): 12.0, ("/new",): 8.0}
    messages = journal.leave(f"""{delete}
        def fail(batch):
            raise pdc.StorageError("the storage is down")
        pdc.config.DEFAULT.storage.apply = fail
        hits.labels("/").inc(1)
        delete()
        pdc.shutdown()
        """)
    (path,) = journal.folder.iterdir()
    assert f"wait in {path} for the next process" in messages
    assert journal.send() == {("/",): 13.0, ("/new",): 8.0}


def test_a_journal_stays_young(journal: Journal) -> None:
    """The time of a file that is in use is renewed, so that those who delete old files spare it."""
    journal.leave(f"""
        hits.labels("/").inc(5)
        (entry,) = os.scandir({str(journal.folder)!r})
        os.utime(entry, (0, 0))
        pdc.delivery.journal.writer.TOUCH_SECONDS = 0
        pdc.flush()
        assert os.stat(entry).st_mtime > 0
        """)


def test_locks_that_fail_stop_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a journal of a dead process cannot be locked for now, it waits, and all else is sent."""
    journal.leave('hits.labels("/").inc(5)')

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", fail)
        assert journal.send() == {}
        pdc.Counter("other", "Other.", registry=CollectorRegistry()).inc()
        assert "other_total 1.0" in pdc.generate_latest().decode()
    assert caplog.text.count("cannot be sent for now") == 1
    assert journal.send() == {("/",): 5.0}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_process_that_drops_its_privileges_has_a_journal_of_the_new_user(
    run_script: Run, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its former journal, which it cannot remove any more, has nothing to send and goes with the next process of that user."""
    folder = Path(tempfile.gettempdir())
    database = folder / "data" / "metrics.db"
    database.parent.mkdir()
    database.parent.chmod(0o777)
    database.touch()
    database.chmod(0o666)
    options: dict[str, Any] = {"sqlite": {"sqlite": str(database)}, "redis": {"redis": redis_server.url}}[kind]
    source = """
import os, pathlib, signal, tempfile
setup(flush_interval=600)
hits = pdc.Counter("hits", "Hits.")
hits.inc(5)
pdc.flush()
hits.inc(6)
pathlib.Path(tempfile.gettempdir(), f"pdc-{os.geteuid()}").chmod(0o500)
if os.geteuid() == 0:
    os.setuid(65534)
hits.inc(7)
pdc.flush()
hits.inc(8)
"""
    end = "pdc.shutdown()\nprint('ended')"
    assert run_script(source + end, storage=options).stdout == "ended\n"
    former = folder / f"pdc-{os.geteuid()}"
    assert former.stat().st_mode & 0o777 == 0o500
    former.chmod(0o700)
    assert run_script(source + "os.kill(os.getpid(), signal.SIGKILL)", storage=options, check=False).stderr == ""
    send = """
import os
setup()
pdc.generate_latest()  # all modules are imported: the interpreter may be root's only
if os.geteuid() == 0:
    os.setuid(65534)
setup()
pdc.flush()
print(pdc.generate_latest().decode())
"""
    assert "hits_total 52.0" in run_script(send, storage=options).stdout
    former.chmod(0o700)
    monkeypatch.setattr("pdc.delivery.journal.left.BEGIN_SECONDS", -60)
    pdc.setup(**options)
    pdc.flush()
    assert [path for place in folder.glob("pdc-*") for path in place.iterdir()] == []
    assert "hits_total 52.0" in pdc.generate_latest().decode()


@pytest.mark.parametrize(("storage_fails", "expected"), [(False, 6.0), (True, 13.0)])
def test_who_was_taken_for_dead_goes_on(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, storage_fails: bool, expected: float
) -> None:
    """A process that lost its lock to another namespace, which sends its journal, does not send that, too."""
    monkeypatch.setattr("pdc.delivery.journal.writer.life", lambda _: "")
    buffer, model = Buffer(), OfSeveral()
    kinds = {name: type(name, (getattr(pdc, name),), {"buffer": buffer}) for name in ("Counter", "Gauge", "Info")}
    hits = kinds["Counter"]("hits", "Hits.", ["path"], registry=registry)
    level = kinds["Gauge"]("level", "Level.", registry=registry)
    total = kinds["Gauge"]("total", "Total.", registry=registry, multiprocess_mode="sum")
    buffer.attach(model, 3600.0, None, thread=threading.get_ident(), journals=Journals(tmp_path, "model"))
    hits.labels("/a").inc(1)
    hits.labels("/b").inc(1)
    buffer.flush()
    hits.labels("/a").inc(5)
    hits.remove("/b")
    level.inc(2)
    total.set(3)
    (path,) = tmp_path.iterdir()
    _close_descriptors_of(path)
    other = Journals(tmp_path, "model")
    if storage_fails:
        with monkeypatch.context() as patch:
            patch.setattr(model, "apply", _down)
            with pytest.raises(StorageError):
                other.replay(model)
    else:
        other.replay(model)
    hits.labels("/a").inc(7)
    buffer.flush()
    level.inc(4)
    other.replay(model)
    buffer.detach()
    values = {place.replace(buffer.writer, "me"): value for place, value in model.state().items() if "#sum:" not in place}
    assert values == {'hits _total:{"path":"/a"}': expected, "level :{}": 6.0}
    assert [value for place, value in model.state().items() if "#sum:" in place][-1] == 3.0
    assert list(tmp_path.iterdir()) == []


def _close_descriptors_of(path: Path) -> None:
    """Close what this process has open of the file, as a daemon does."""
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 - Path("/dev/fd") iterates while it is open
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), path.stat()):
                os.close(number)


class OfSeveral(Model):
    """A model that knows writers."""

    def __init__(self) -> None:
        super().__init__()
        self._sequences: dict[str, int] = {}

    def apply(self, batch: Batch) -> Outcome:
        """Do what a batch says, once for each writer."""
        self.last = self._sequences.get(batch.writer, 0)
        outcome = super().apply(batch)
        self._sequences[batch.writer] = self.last
        return outcome


def _down(_: Batch) -> Outcome:
    raise StorageError("the storage is down")


def test_what_journals_log_holds_nothing_up(storage: dict[str, Any], registry: CollectorRegistry, tmp_path: Path) -> None:
    """A handler of the log may wait for threads that update and send while a journal cannot be begun."""
    (tmp_path / "file").touch()
    pdc.setup(**storage, flush_interval=3600, journal=tmp_path / "file" / "journals")
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    ended: list[bool] = []

    class Waiting(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            threads = [threading.Thread(target=work, daemon=True) for work in (hits.inc, pdc.flush)]
            for thread in threads:
                thread.start()
                thread.join(5)
            ended.append(not any(thread.is_alive() for thread in threads))

    handler = Waiting()
    logging.getLogger("pdc").addHandler(handler)
    try:
        hits.inc()
        pdc.flush()
        wait_until(lambda: ended)
    finally:
        logging.getLogger("pdc").removeHandler(handler)
    assert all(ended)
