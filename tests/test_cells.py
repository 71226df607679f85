"""The cells: what each one gathers, hands over, and keeps while it moves."""

from __future__ import annotations

import dis
import gc
import inspect
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from types import CodeType, MappingProxyType
from typing import Any, NamedTuple

import pytest
from helpers import in_threads, shown
from prometheus_client import CollectorRegistry
from recorder import Recorder

import pdc
from pdc import cells, exposition, http, metrics
from pdc.cells import (
    CallbackGaugeCell,
    Cell,
    CounterCell,
    Entry,
    HistogramCell,
    Journaled,
    JournaledOperation,
    MetricCells,
    ProcessGaugeCell,
    Removal,
    SharedGaugeCell,
    SummaryCell,
    TextCell,
    unsent_shared_gauge,
    zeros,
)
from pdc.cells.gauge import SharedGaugeState
from pdc.cells.metric import MOST_REMOVALS
from pdc.cells.numeric import JOURNAL_PLACE, ThreadSumCell
from pdc.delivery import Buffer, health
from pdc.family import Family
from pdc.storage import Kind, Operation, Stamped, updated


class Queue:
    """A sender that only queues, and notes the parts that a journal would hold."""

    writer, write_through = "1-a", False
    limits: Mapping[str, float] = MappingProxyType({})

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.journaled: list[Journaled] = []

    def register(self, metric: MetricCells, /) -> None:
        """Do nothing: a test holds its metric."""

    def retire(self, metric: MetricCells, /) -> None:
        """Do nothing."""

    def last_declared(self, _: str, /) -> MetricCells | None:
        """No metric: the one that asks is the last one."""
        return None

    def enqueue(self, entry: Entry, /) -> None:
        """Queue the entry."""
        self.entries.append(entry)
        if isinstance(entry, Cell):
            entry.queued = entry.quiet = True

    def send(self, entry: Entry, /) -> None:
        """Queue the entry."""
        self.enqueue(entry)

    def send_queued(self) -> None:
        """Do nothing: tests drain."""

    def journal(self, entry: Entry | JournaledOperation, /) -> None:
        """Note the parts of the entry that are new."""
        self.journaled += [part for part in entry.journaled() if part not in self.journaled]

    def unjournal(self, journaled: Journaled, /) -> None:
        """Forget these numbers."""
        if journaled in self.journaled:
            self.journaled.remove(journaled)


class Example(NamedTuple):
    """A cell of one kind, an update of it, and the changes that the first update and one more make in a storage."""

    family: Family
    make: Callable[[MetricCells], Any]
    update: Callable[[Any], object]
    first: list[tuple[str, str, Any]]
    second: list[tuple[str, str, Any]]


def observe(cell: SummaryCell | HistogramCell) -> None:
    """Observe 2.5: in a histogram, in its second bucket."""
    cell.add(0, 2.5)
    cell.add(cell.width - 1, 1.0)


HITS = [("add", "_total:{}", 2.0)]
SIZES = [("add", "_count:{}", 1.0), ("add", "_sum:{}", 2.5)]
WAITS = [("add", "_sum:{}", 2.5), ("add", '_bucket:{"le":"+Inf"}', 1.0)]
SET = [("set", ":{}", 7.0)]
TEXT = [("set", "_info:{}", "a")]
KINDS = {
    "counter": Example(
        Family("m", "counter", "Help"),
        lambda metric: CounterCell(metric, ()),
        lambda cell: cell.add(0, 2.0),
        HITS,
        HITS,
    ),
    "summary": Example(Family("m", "summary", "Help"), lambda metric: SummaryCell(metric, ()), observe, SIZES, SIZES),
    "histogram": Example(
        Family("m", "histogram", "Help", bounds=("1.0", "+Inf")),
        lambda metric: HistogramCell(metric, ()),
        observe,
        WAITS,
        WAITS,
    ),
    "added": Example(
        Family("m", "gauge", "Help"),
        lambda metric: SharedGaugeCell(metric, ()),
        lambda cell: cell.add(3.0),
        [("add", ":{}", 3.0)],
        [("add", ":{}", 3.0)],
    ),
    "set": Example(
        Family("m", "gauge", "Help"), lambda metric: SharedGaugeCell(metric, ()), lambda cell: cell.set(7.0), SET, SET
    ),
    "process": Example(
        Family("m", "gauge", "Help", mode="livesum"),
        lambda metric: ProcessGaugeCell(metric, ()),
        lambda cell: cell.add(3.0),
        [("stamp", "#live:1-a:{}", Stamped.when_applied(3.0))],
        [("stamp", "#live:1-a:{}", Stamped.when_applied(6.0))],
    ),
    "info": Example(
        Family("m", "info", "Help"), lambda metric: TextCell(metric, (), "_info", "{}"), lambda cell: cell.set("a"), TEXT, TEXT
    ),
}
NUMERIC = [name for name in KINDS if name != "info"]


def changes(operations: Iterable[Operation]) -> list[tuple[str, str, Any]]:
    """The operations that change a series which the storage has: no first values, no times of creation, no additions of 0."""
    return [
        (kind.value, field, value)
        for kind, field, value in operations
        if kind is not Kind.INIT and not (kind is Kind.ADD and value == 0)
    ]


def cell_of(name: str) -> tuple[Any, Example, Queue]:
    """A cell of that kind, and its queue."""
    kind, queue = KINDS[name], Queue()
    metric = MetricCells(queue, kind.family)
    return metric.add(kind.make(metric)), kind, queue


@pytest.mark.parametrize("name", KINDS)
def test_each_update_is_handed_over_once(name: str) -> None:
    """A batch drains the updates before it. Those meanwhile are unsent until the next one, and then nothing is left."""
    cell, kind, _ = cell_of(name)
    assert not cell.has_unsent
    kind.update(cell)
    assert cell.has_unsent
    assert changes(cell.drain()) == kind.first
    assert not cell.has_unsent
    kind.update(cell)
    assert cell.has_unsent
    cell.acknowledge()
    assert changes(cell.drain()) == kind.second
    cell.acknowledge()
    assert not cell.has_unsent
    assert changes(cell.drain()) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_drain_that_became_no_batch_is_repeated(name: str) -> None:
    """A second drain without an acknowledgement hands over the same."""
    cell, kind, _ = cell_of(name)
    kind.update(cell)
    assert changes(cell.drain()) == changes(cell.drain()) == kind.first


@pytest.mark.parametrize("name", KINDS)
def test_a_dropped_cell_hands_over_nothing(name: str) -> None:
    """A removed series sends neither earlier nor later updates, and no journal holds it."""
    cell, kind, queue = cell_of(name)
    queue.journal(cell)
    kind.update(cell)
    cell.metric.drop([cell])
    kind.update(cell)
    assert cell.drain() == []
    assert cell not in queue.journaled
    assert cell not in cell.metric.cells
    assert not cell.was_missed


@pytest.mark.parametrize("name", ["added", "set", "process"])
def test_a_cell_is_queued_once_until_it_is_drained(name: str) -> None:
    """The first update queues the cell, the next ones find it quiet; a drain makes it loud again."""
    cell, kind, queue = cell_of(name)
    for drains in (1, 2):
        for _ in range(3):
            kind.update(cell)
        assert queue.entries == [cell] * drains
        assert cell.quiet
        cell.drain()
        assert not cell.quiet


STEPS: dict[str, Callable[[SharedGaugeCell], object]] = {
    "start": lambda _: None,
    "inc(1)": lambda cell: cell.add(1.0),
    "set(5)": lambda cell: cell.set(5.0),
    "a batch drains it": lambda cell: cell.drain(),
    "set(7)": lambda cell: cell.set(7.0),
    "the storage has it": lambda cell: cell.acknowledge(),
}
"""The events of the table of `SharedGaugeCell`."""


def test_a_shared_gauge_goes_through_the_states_of_its_table() -> None:
    """Each event in the docstring of `SharedGaugeCell` leads to the parts and the number of its row."""
    rows = re.findall(r"^ {4}(\S.*?) {2,}(\d) +(\d) +(\d) +(\d) +(\d+)\b", inspect.getdoc(SharedGaugeCell) or "", re.MULTILINE)
    assert [event for event, *_ in rows] == [*STEPS]
    cell, _, _ = cell_of("added")
    for event, *parts, state in rows:
        STEPS[event](cell)
        assert (event, cell.memory[cell.offset]) == (event, float(state))
        assert (event, *SharedGaugeState.parse(float(state))) == (event, *map(int, parts))


@pytest.mark.parametrize("number", [0.0, 15.0, 18.0, 36.0, 64.0, -16.0])
def test_an_impossible_state_is_refused(number: float) -> None:
    """A slot other than 1 to 3, or one that takes updates while it is in flight, is a ValueError that quotes the number."""
    with pytest.raises(ValueError, match=f"expected the state of a gauge, got {number}"):
        SharedGaugeState.parse(number)


def applied(value: float, operations: Iterable[Operation]) -> float:
    """The value of a gauge in a storage after these operations."""
    for kind, _, number in operations:
        assert isinstance(number, float)
        value = number if kind is Kind.SET else value + number
    return value


@pytest.mark.parametrize("first", ["add", "set", "drain", "acknowledge"])
def test_a_shared_gauge_has_its_value_after_any_events(first: str) -> None:
    """After any six events, the numbers in memory bring a storage to the value, with the batch in flight or all at once."""
    for events in product(("add", "set", "drain", "acknowledge"), repeat=5):
        cell, _, _ = cell_of("added")
        value = stored = 0.0
        batch: list[Operation] = []
        for number, event in enumerate((first, *events), 1):
            if event == "add":
                cell.add(float(number))
                value += number
            elif event == "set":
                cell.set(value := -float(number))
            elif event == "drain":
                assert not batch or cell.drain() == batch
                batch = batch or cell.drain()
            else:
                stored, batch = applied(stored, batch), []
                cell.acknowledge()
            for in_flight in (True, False):
                unsent = unsent_shared_gauge(cell.family, (), cell.memory[cell.offset : cell.offset + cell.size], in_flight)
                assert applied(stored, [*unsent.drained, *unsent.gathered]) == value


@pytest.mark.parametrize("name", NUMERIC)
def test_a_cell_that_moves_amid_a_batch_goes_on(name: str) -> None:
    """The new memory has the numbers of the old one, and only the new one changes from then on."""
    cell, kind, _ = cell_of(name)
    kind.update(cell)
    cell.drain()
    before, old = cell.memory.tolist(), cell.memory
    memory = zeros(cell.size + JOURNAL_PLACE)
    cell.move(memory, JOURNAL_PLACE)
    assert (cell.memory, cell.offset) == (memory, JOURNAL_PLACE)
    assert memory.tolist() == [0.0] * JOURNAL_PLACE + before[: cell.size]
    kind.update(cell)
    cell.acknowledge()
    assert changes(cell.drain()) == kind.second
    assert old.tolist() == before


@pytest.mark.parametrize("name", ["counter", "added"])
@pytest.mark.usefixtures("_switching")
def test_moves_and_batches_amid_updates_lose_nothing(name: str) -> None:
    """While a thread adds, its cell moves and is drained all the time: all additions are handed over, each once."""
    made, total = threading.Event(), 0.0
    cells_made: list[Any] = []

    def update() -> None:
        cell, kind, _ = cell_of(name)
        cells_made.append((cell, kind))
        made.set()
        for _ in range(10_000):
            kind.update(cell)

    thread = threading.Thread(target=update)
    thread.start()
    made.wait()
    ((cell, kind),) = cells_made
    going_on = True
    while going_on:
        going_on = thread.is_alive()
        cell.move(zeros(cell.size + JOURNAL_PLACE), JOURNAL_PLACE)
        total += sum(value for _, _, value in changes(cell.drain()))
        cell.acknowledge()
    thread.join()
    assert total == 10_000 * kind.first[0][2]


@pytest.mark.parametrize("name", ["counter", "summary", "histogram"])
def test_a_sum_that_became_infinite_restarts(name: str) -> None:
    """The storage adds infinity once; what comes then is added to it, and is no NaN."""
    cell, kind, _ = cell_of(name)
    cell.add(0, math.inf)
    kind.update(cell)
    assert math.inf in [value for _, _, value in changes(cell.drain())]
    cell.acknowledge()
    kind.update(cell)
    assert changes(cell.drain()) == kind.first


def test_a_reset_counter_continues_in_another_cell() -> None:
    """The new cell sets the total to 0 once, adds what came then, and a journal holds the reset until the storage has it."""
    cell, kind, queue = cell_of("counter")
    kind.update(cell)
    new = cell.reset_now()
    cell.metric.drop([cell])
    resets = [part for part in queue.journaled if isinstance(part, JournaledOperation)]
    kind.update(new)
    assert cell.drain() == []
    set_to_zero, created, added = changes(new.drain())
    assert (set_to_zero, added) == (("set", "_total:{}", 0.0), kind.first[0])
    assert created[:2] == ("set", "_created:{}")
    assert [reset.is_drained for reset in resets] == [True, True]
    new.acknowledge()
    assert queue.journaled == [new]
    assert changes(new.drain()) == []


def test_a_function_is_called_to_compute_and_not_to_drain() -> None:
    """A drain hands over the value that the last call gave, and nothing before the first call."""
    values = iter((3, 4, 5))
    metric = MetricCells(Queue(), Family("m", "gauge", "Help"))
    cell = metric.add(CallbackGaugeCell(metric, (), lambda: next(values)))
    assert cell.drain() == []
    for expected in (3.0, 4.0):
        cell.compute()
        assert [cell.drain(), cell.drain()] == [[Operation(Kind.SET, ":{}", expected)]] * 2
    assert metric.unprompted(beat=True) == [cell]
    assert cell.drain() == [Operation(Kind.SET, ":{}", 5.0)]


def test_a_drain_after_an_exception_marks_the_update_again() -> None:
    """An exception between drain and batch keeps the mark of an update: the next drain has it, and only that one."""
    metric = MetricCells(Queue(), Family("hits", "counter", "Hits.", labelnames=("page",), expire_series=1000.0))
    cell = metric.add(CounterCell(metric, ("a",)))
    cell.enqueue()
    cell.add(0, 1.0)
    told = updated('{"page":"a"}')
    assert [told in cell.drain() for _ in range(2)] == [True, True]
    cell.acknowledge()
    assert told not in cell.drain()


REMOVED = Family("m", "counter", "Help", labelnames=("n",))


def removal(queue: Queue, number: int) -> JournaledOperation:
    """A removal of the series with that number, which a journal holds."""
    operation = JournaledOperation(REMOVED, Operation(Kind.DELETE, f'{{"n":"{number}"}}'))
    queue.journal(operation)
    return operation


def test_a_removal_accepts_more_until_it_is_drained() -> None:
    """Removals go together, each once. A drained one accepts no more, and a journal holds it until the storage has it."""
    queue = Queue()
    operations = [removal(queue, number) for number in (1, 2, 1)]
    entry = Removal(MetricCells(queue, REMOVED), operations[0])
    assert [entry.accepts(operation) for operation in operations] == [True, True, True]
    assert queue.journaled == operations[:2]
    drained = entry.drain()
    assert drained == entry.drain() == [operation.operation for operation in operations[:2]]
    late = removal(queue, 3)
    assert not entry.accepts(late)
    entry.acknowledge()
    assert queue.journaled == [late]


def test_a_removal_has_a_bounded_length() -> None:
    """More removals than a batch may have are entries of their own, in their order."""
    queue = Queue()
    metric = MetricCells(queue, REMOVED)
    for number in range(MOST_REMOVALS + 1):
        metric.remove(Kind.DELETE, f'{{"n":"{number}"}}')
    assert [len(entry.drain()) for entry in queue.entries] == [MOST_REMOVALS, 1]


def test_threads_add_in_cells_of_their_own() -> None:
    """The cells of one series add up, whichever threads updated them, and whichever of them are drained first."""
    kind, queue = KINDS["counter"], Queue()
    metric = MetricCells(queue, kind.family)
    made: list[Any] = []

    def update() -> None:
        cell = metric.add(kind.make(metric))
        made.append(cell)
        for _ in range(100):
            kind.update(cell)

    in_threads(3, update)
    totals = [changes(cell.drain()) for cell in reversed(made)]
    assert totals == [[("add", "_total:{}", 200.0)]] * 3


def test_a_set_never_overtakes_an_earlier_addition(buffer: Buffer, recorder: Recorder) -> None:
    """An update while a batch is made goes into the next batch, even where its series is queued twice."""

    class Meanwhile(Removal):
        def drain(self) -> list[Operation]:
            gauge.set(3.0)
            return []

    metric = MetricCells(buffer, Family("level", "gauge", "Level."))
    gauge = metric.add(SharedGaugeCell(metric, ()))
    entry = Meanwhile(metric, JournaledOperation(metric.family, Operation(Kind.DELETE, "{}")))
    buffer.attach(recorder, 3600.0, None)
    buffer.flush()
    recorder.batches.clear()
    gauge.add(2.0)
    for queued in (entry, gauge):
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
    gc.collect()  # cells of other tests
    living = [each for each in gc.get_objects() if type(each) is CounterCell]
    assert 0 < sum(cell.metric.family.name == "hits" for cell in living) < 20
    assert shown()["hits_total"] == 100


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code and all code defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def files(module: Any) -> list[Path]:
    """The file of a module, or all files of a package."""
    path = Path(module.__file__)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def count_turns(code: CodeType) -> int:
    """The count of turns in a function, after a check that each one ends there and calls, jumps back and raises nothing."""
    turns, within = 0, False
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("LOAD_ATTR") and instruction.argval in ("alone", "together"):
            within = instruction.argval == "alone"
            turns += within
        elif within:
            assert not instruction.opname.startswith(("CALL", "PRECALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RETURN", "RESUME"))
            assert not instruction.opname.startswith(("YIELD", "RAISE", "SEND", "IMPORT", "FOR_ITER", "BEFORE_WITH"))
    assert not within
    return turns


@pytest.mark.parametrize("module", [cells, metrics, health, http, exposition], ids=lambda module: module.__name__)
def test_no_handler_runs_in_a_turn(module: Any) -> None:
    """Between `alone` and `together` Python runs no handler, switches no thread, and does not end."""
    sources = {path: path.read_text(encoding="utf-8") for path in files(module)}
    turns = sum(count_turns(code) for path, source in sources.items() for code in codes(compile(source, path, "exec")))
    assert turns == sum(source.count("_ = TURN.alone") for source in sources.values())
    assert bool(turns) == (module is cells)


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


class Meanwhile(Queue):
    """A sender that drains a cell in another thread while an update asks it whether it writes through."""

    cell: Cell | None = None

    @property
    def write_through(self) -> bool:  # type: ignore[override]  # of the base, a plain attribute
        """True."""
        if self.cell is not None:
            self.cell.queued = False
        return True


class Sums(ThreadSumCell):
    """One sum, which is never sent."""

    width = 1


def test_a_cell_that_is_drained_amid_an_update_is_queued_again() -> None:
    """Without the GIL, an update that is written through does not take back that its cell left the queue."""
    sender = Meanwhile()
    cell = Sums(MetricCells(sender, Family("hits", "counter", "Hits.")), ())
    cell.enqueue()
    assert sender.entries == [cell]
    sender.cell = cell
    cell.enqueue()
    assert sender.entries == [cell, cell]
