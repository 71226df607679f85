"""Journals: what a killed process had not sent, the next process of the host sends, once."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import ROOT
from prometheus_client import CollectorRegistry

import pdc
import pdc.exposition
from pdc.buffer import Buffer
from pdc.journal import SENT_AT, SINCE, Journals, batches
from pdc.storage import Batch, Kind, Operation, Outcome, Snapshot, Stamped, StorageError, has_labels

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
        (lambda content: content[:200], "impossible size"),
        (lambda content: content[:112] + b"\xff" * 64 + content[176:], "impossible size"),
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
        return Outcome(set(), {}, {})

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
    if kind is Kind.DELETE:
        wanted = json.loads(field)
        for known in [known for known in values if known.startswith(f"{name} ") and has_labels(known, wanted)]:
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
    buffer.attach(model, 3600.0, None, threaded=False, journals=journals)
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
    (path,) = tmp_path.iterdir()

    def left() -> dict[str, Any]:
        storage = model.copy()
        for batch in batches(path.read_bytes(), time.time()):
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


def _states_during(update: Callable[[], Any], path: Path, model: Model) -> list[tuple[bytes, Model]]:
    """The different states of the journal and the storage after each bytecode of pdc that an update runs."""
    states: dict[tuple[bytes, int], Model] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/pdc/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            content = path.read_bytes()
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
        return Outcome(set(), {}, {})

    monkeypatch.setattr(model, "apply", apply)
    journals.replay(model)
    assert sent == ["20-b", "100-c", "3-a"]


def test_who_sends_a_journal_may_be_killed_too(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Killed after a batch of it, that is not sent again by the next one, also when the storage has forgotten it by then."""
    buffer, model = Buffer(), Model()
    hits = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", registry=registry)
    buffer.attach(model, 3600.0, None, threaded=False, journals=Journals(tmp_path / "own", "model"))
    hits.inc(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "apply", model.read)
        with pytest.raises(StorageError):
            buffer.flush()  # in flight from now on
    hits.inc(7)
    (path,) = (tmp_path / "own").iterdir()
    left = tmp_path / path.name
    left.write_bytes(path.read_bytes())  # as of a process that was killed now

    class Killed(BaseException):
        pass

    class Last(Model):
        def apply(self, batch: Batch) -> Outcome:
            model.apply(batch)
            if model.last == 2:
                raise Killed
            return Outcome(set(), {}, {})

    with pytest.raises(Killed):
        Journals(tmp_path, "model").replay(Last())
    model.last = 0
    content = bytearray(left.read_bytes())
    struct.pack_into("=Q", content, 8 * SENT_AT, int(time.time()) - 7200)
    left.write_bytes(content)
    Journals(tmp_path, "model").replay(model)
    assert not left.exists()
    assert model.state() == {"hits _total:{}": 12.0}
    buffer.detach()
