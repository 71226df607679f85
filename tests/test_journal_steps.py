"""Journals over a storage in memory: processes are killed, or lose their lease, at any step."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from journals import Model, OfSeveral, down
from prometheus_client import CollectorRegistry

import pdc
from pdc.delivery import Buffer
from pdc.delivery.journal import Journals, batches, written
from pdc.delivery.journal.layout import OWNER, SENT_AT
from pdc.storage import MOST_ENTRIES, Batch, Kind, Outcome, StorageError


def test_a_kill_between_any_two_steps_leaves_an_update_whole_or_out(tmp_path: Path, registry: CollectorRegistry) -> None:
    """After each bytecode of updates and flushes, storage and journal together hold all updates that ended.

    The update in progress is in or out; a batch that is sent again does not count again.
    """
    buffer, model, journals = Buffer(), Model(), Journals(tmp_path, "model")
    modules = {
        name: type(name, (getattr(pdc, name),), {"buffer": buffer}) for name in ("Counter", "Gauge", "Histogram", "Info")
    }
    hits = modules["Counter"]("hits", "Hits.", ["path"], registry=registry)
    wait = modules["Histogram"]("wait", "Wait.", buckets=[1], registry=registry)
    size = modules["Histogram"]("size", "Size.", buckets=(), native=True, registry=registry)
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
        lambda: size.observe(4.0),  # the cell of each of these gets a successor
        lambda: level.inc(4),
        lambda: level.set(20),
        lambda: wait.observe(0),  # of another value, a kill may leave the sum without the count
        lambda: total.set(7),
        lambda: total.inc(1),
        lambda: about.info({"version": "1"}),
        lambda: about.info({"version": "2"}),
        buffer.flush,
        lambda: size.observe(4000.0),
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
    buffer.flush()  # the journal exists from here on
    (path,) = tmp_path.iterdir()

    def left() -> dict[str, Any]:
        storage = model.copy()
        for batch in batches(_content(path), time.time()):
            storage.apply(batch)
        return counts_of(storage)

    def counts_of(storage: Model) -> dict[str, Any]:
        return {place: value for place, value in storage.state().items() if place != "size _sum:{}"}

    for step, update in enumerate(program):
        before, seen = left(), _states_during(update, path, model)
        after = left()
        found = []
        for content, storage in seen:
            for batch in batches(content, time.time()):
                storage.apply(batch)
            found.append(counts_of(storage))
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
        'size _native:{"le":"3p16"}': 1.0,
        'size _native:{"le":"3p96"}': 1.0,
        "size _sum:{}": 4004.0,
        "level :{}": 22.0,
        "total #sum:me:{}": 8.0,
        "about _info:{}": '{"version":"3"}',
    }


def _content(path: Path) -> bytes:
    with path.open("rb") as opened:
        return written(opened.fileno())


def _states_during(update: Callable[[], Any], path: Path, model: Model) -> list[tuple[bytes, Model]]:
    """The distinct states of the journal and the storage after each bytecode of pdc in an update."""
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
    """Of processes that died one after the other, the last one sets the value, whatever their ids."""
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


def test_the_sender_of_a_journal_may_be_killed_too(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A batch sent before its sender was killed is not sent again, also when the storage has forgotten it by then."""
    buffer, model = Buffer(), Model()
    hits = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", registry=registry)
    buffer.attach(model, 3600.0, None, thread=threading.get_ident(), journals=Journals(tmp_path / "own", "model"))
    hits.inc(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "apply", model.read)
        with pytest.raises(StorageError):
            buffer.flush()  # in flight from here on
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


def test_a_journal_of_many_series_is_sent_in_batches(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Batches are as small as those of a living process; after an outage amid them, no batch is sent twice."""
    buffer, model = Buffer(), Model()
    hits = type("Counter", (pdc.Counter,), {"buffer": buffer})("hits", "Hits.", ["n"], registry=registry)
    buffer.attach(model, 3600.0, None, thread=threading.get_ident(), journals=Journals(tmp_path / "own", "model"))
    for number in range(4 * MOST_ENTRIES):
        hits.labels(number).inc()
    (path,) = (tmp_path / "own").iterdir()
    content = path.read_bytes()
    left = tmp_path / path.name
    left.write_bytes(content[: OWNER.start] + bytes(OWNER.stop - OWNER.start) + content[OWNER.stop :])  # as if killed now
    sizes: list[int] = []

    class Fails(Model):
        def apply(self, batch: Batch) -> Outcome:
            if len(sizes) == 2:
                raise StorageError("the storage is down")
            sizes.append(sum(operation.kind is Kind.ADD for update in batch.updates for operation in update.operations))
            return model.apply(batch)

    with pytest.raises(StorageError):
        Journals(tmp_path, "model").replay(Fails())
    assert sizes == [MOST_ENTRIES, MOST_ENTRIES]
    model.last = 0
    Journals(tmp_path, "model").replay(model)
    totals = {place: value for place, value in model.state().items() if "_total" in place}
    assert totals == {f'hits _total:{{"n":"{number}"}}': 1.0 for number in range(4 * MOST_ENTRIES)}
    buffer.detach()


@pytest.mark.parametrize(("storage_fails", "expected"), [(False, 6.0), (True, 13.0)])
def test_a_process_that_counted_as_dead_goes_on(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, storage_fails: bool, expected: float
) -> None:
    """A process that lost its lock to another namespace, whose sender sends its journal, does not send that, too."""
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
            patch.setattr(model, "apply", down)
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
    """Close this process's descriptors of the file, as a daemon does."""
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 - Path("/dev/fd") iterates while it is open
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), path.stat()):
                os.close(number)
