"""The cells: what each one gathers, hands over, and keeps while it moves."""

from __future__ import annotations

import dis
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from helpers import in_threads, shown
from prometheus_client import CollectorRegistry
from recorder import Recorder

import pdc
from pdc import cells, exposition, http, metrics
from pdc.cells import JournaledOperation, Removal
from pdc.delivery import Buffer, health
from pdc.storage import Kind, Operation


def test_a_set_never_overtakes_an_earlier_addition(buffer: Buffer, recorder: Recorder, gauge: pdc.Gauge) -> None:
    """An update while a batch is made goes into the next batch, even where its series is queued twice."""

    class Meanwhile(Removal):
        def drain(self) -> list[Operation]:
            gauge.set(3)
            return []

    entry = Meanwhile(gauge._metric_cells, JournaledOperation(gauge._metric_cells.family, Operation(Kind.DELETE, "{}")))
    buffer.attach(recorder, 3600.0, None)
    buffer.flush()
    recorder.batches.clear()
    gauge.inc(2)
    for queued in (entry, gauge._cell):
        buffer.enqueue(queued)
    buffer.flush()
    buffer.flush()
    assert recorder.sent("") == [("add", 2.0), ("set", 3.0)]


def test_threads_that_end_leave_little_behind(tmp_path: Path, registry: CollectorRegistry) -> None:
    """A series that 100 threads updated, one after the other, has few cells."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600)
    hits = pdc.Counter("hits", "Help", registry=registry)
    for _ in range(100):
        in_threads(1, hits.inc)
    assert len(hits._metric_cells.cells) < 20
    assert shown()["hits_total"] == 100


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code and all code defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@pytest.mark.parametrize("module", [cells, metrics, health, http, exposition], ids=lambda module: module.__name__)
def test_no_handler_runs_in_a_turn(module: Any) -> None:
    """Between `alone` and `together` Python runs no handler, switches no thread, and does not end."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    turns = 0
    for code in codes(compile(source, module.__file__, "exec")):
        within = False
        for instruction in dis.get_instructions(code):
            if instruction.opname.startswith("LOAD_ATTR") and instruction.argval in ("alone", "together"):
                within = instruction.argval == "alone"
                turns += within
            elif within:
                assert not instruction.opname.startswith(
                    ("CALL", "PRECALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RETURN", "RESUME")
                )
                assert not instruction.opname.startswith(("YIELD", "RAISE", "SEND", "IMPORT", "FOR_ITER", "BEFORE_WITH"))
        assert not within
    assert turns == source.count("_ = TURN.alone")


def test_a_turn_is_one_threads_at_a_time() -> None:
    """Without the GIL another thread waits for its turn until the one before has ended; with it there are no turns."""
    order: list[str] = []

    def second() -> None:
        _ = cells.TURN.alone
        order.append("second")
        _ = cells.TURN.together

    _ = cells.TURN.alone
    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.05)
    order.append("first")
    _ = cells.TURN.together
    thread.join()
    assert order == (["first", "second"] if cells.FREE_THREADED else ["second", "first"])
