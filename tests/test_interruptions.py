"""Exceptions that a handler raises in the middle of anything: they reach the application, and nothing is lost or stuck."""

from __future__ import annotations

import dis
import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import pdc
import pdc.exposition
from pdc.storage import Storage
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

POINTS = int(os.environ.get("PDC_POINTS", "30"))
"""At how many points of the work an exception is raised, evenly spread; the long proof takes all."""
Run = Callable[..., subprocess.CompletedProcess[str]]
INTERVALS = pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])


class TimeLimit(Exception):  # noqa: N818 - Celery's is one too
    """Raised by a handler, as a soft time limit is."""


@cache
def switch_points(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which Python may run a handler: after calls, and where it jumps back or begins.

    An exception of a handler belongs to the instruction before that point. Where another block of `try` or `with` begins or
    ends there, none can be raised in its place.
    """
    switches = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")
    instructions = list(dis.get_instructions(code))
    pairs = [pair for pair in pairwise(instructions) if pair[0].opname.startswith(switches)]
    found = {after.offset for before, after in pairs if _blocks(code, before.offset) == _blocks(code, after.offset)}
    return frozenset({instructions[0].offset, *found})


def _blocks(code: CodeType, offset: int) -> list[int]:
    entries: Any = getattr(
        dis.Bytecode(code), "exception_entries", ()
    )  # before Python 3.11 blocks begin and end by instructions
    return [entry.target for entry in entries if entry.start <= offset < entry.end]


def raise_at(point: int, work: Callable[[], object]) -> TimeLimit | None:
    """Work, and raise an exception at that point of Python code; return it as the caller got it, None where it ended before."""
    left, before, raised = point, "call", ""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left, before, raised
        returning, before = before == "return", event  # from a function in Python, after which no handler runs
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not returning and frame.f_lasti in switch_points(frame.f_code):
            left -= 1
            if left < 0 and not drops(frame):
                raised = "".join(traceback.format_stack(frame)[-6:])
                interrupt(0, frame)
        return trace

    tracer = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks only when tracing begins whether any frame wants them
    sys.settrace(trace)
    try:
        work()
    except TimeLimit as error:
        return error
    finally:
        sys.settrace(tracer)
    assert not raised, f"the exception at point {point} did not reach the application: {raised}"
    return None


def number_of_points(work: Callable[[], object]) -> int:
    """How many points there are at which `raise_at` raises."""
    counted = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = frame.f_code.co_filename != __file__
        if event == "opcode" and frame.f_lasti in switch_points(frame.f_code):
            counted += 1
        return count

    tracer = sys.gettrace()
    sys._getframe().f_trace_opcodes = True
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(tracer)
    return counted


def drops(frame: FrameType | None) -> bool:
    """Whether exceptions go no further than some caller: Python's finalizers, and telemetry of redis-py for connections."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__", "").startswith("redis.observability"):
            return True
        frame = frame.f_back
    return False


def interrupt(_number: int, _frame: FrameType) -> None:
    """Raise, as a handler of a signal does."""
    raise TimeLimit


class Program:
    """A program with some metrics in a storage, which is looked at from outside."""

    def __init__(self, options: dict[str, Any], registry: CollectorRegistry) -> None:
        self._options = options
        pdc.setup(**options)
        self.hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
        self.wait = pdc.Histogram("wait", "Wait.", buckets=[1], registry=registry)
        self.level = pdc.Gauge("level", "Level.", registry=registry)
        self.mine = pdc.Gauge("mine", "Mine.", registry=registry, multiprocess_mode="sum")
        self.about = pdc.Info("about", "About.", registry=registry)
        self.child = self.hits.labels("/")
        self.numbers = 0
        pdc.flush()

    def update(self) -> None:
        """Update each metric once, one of them for the first time."""
        self.numbers += 1
        self.hits.labels(str(self.numbers % 8)).inc()
        self.child.inc()
        self.wait.observe(0.5)
        self.level.inc()
        self.mine.set(self.numbers)
        self.about.info({"number": str(self.numbers)})

    def outside(self) -> Storage:
        """The storage as another process has it."""
        if "redis" in self._options:
            return RedisStorage(self._options["redis"], self._options["redis_prefix"])
        return SqliteStorage(self._options["sqlite"])

    def stored(self) -> tuple[float, float, float, float]:
        """Totals in the storage: of one series, of the others, of observations, and the level."""
        storage = self.outside()
        hits, wait, level = (storage.read().metrics.get(name, {}) for name in ("hits", "wait", "level"))
        storage.close()
        counts = {field: float(value) for field, value in hits.items() if field.startswith("_total")}
        one = counts.pop('_total:{"path":"/"}', 0.0)
        observed = sum(float(value) for field, value in wait.items() if field.startswith("_bucket"))
        return one, sum(counts.values()), observed, float(level.get(":{}", 0.0))

    def check_that_nothing_is_held(self) -> None:
        """Another process can write the storage, and another thread can flush."""
        if "sqlite" in self._options:
            with sqlite3.connect(self._options["sqlite"], timeout=0, isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            other.close()
        thread = threading.Thread(target=pdc.flush, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "a lock is held"


def interrupted_everywhere(program: Program, work: Callable[[], object], check: Callable[[int], None]) -> None:
    """Raise at one point after the other."""
    number = number_of_points(work)
    program.check_that_nothing_is_held()
    check(-1)
    assert number > 100
    for point in range(0, number, max(1, number // POINTS)):
        error = raise_at(point, work)
        try:
            program.check_that_nothing_is_held()  # while the application has the exception, and all that its frames hold
            check(point)
        except Exception as fault:
            raise AssertionError(f"at point {point}: {''.join(traceback.format_exception(error))}") from fault


@INTERVALS
def test_an_update_is_in_or_out(storage: dict[str, Any], interval: float, registry: CollectorRegistry) -> None:
    """An exception at any point of updates reaches the application; each counts once or, where it did not end, not at all."""
    program = Program({**storage, "flush_interval": interval}, registry)
    before = program.stored()

    def check(point: int) -> None:
        nonlocal before
        after = program.stored()
        gained = [new - old for new, old in zip(after, before, strict=True)]
        assert point >= 0 or gained == [1.0] * 4
        assert all(each in (0.0, 1.0) for each in gained), (point, gained)
        in_order = [gained[1], gained[0], gained[2], gained[3]]
        assert in_order == sorted(in_order, reverse=True), (point, gained)  # those before the exception ended
        before = after

    interrupted_everywhere(program, program.update, check)
    program.update()
    pdc.flush()
    assert program.stored() == tuple(number + 1 for number in before)


@pytest.mark.parametrize("work", ["flush", "scrape", "setup", "clear", "collect", "shutdown"])
@INTERVALS
def test_what_is_pending_stays(storage: dict[str, Any], interval: float, registry: CollectorRegistry, work: str) -> None:
    """An exception at any point of what sends or reads reaches the application, and loses or doubles nothing."""
    options = {**storage, "flush_interval": interval}
    program = Program(options, registry)
    works: dict[str, Callable[[], object]] = {
        "flush": pdc.flush,
        "scrape": pdc.exposition.Scrape().answer,
        "collect": lambda: list(program.wait.collect()),
        "setup": lambda: pdc.setup(**options),
        "clear": pdc.clear,
        "shutdown": pdc.shutdown,
    }
    works["scrape"]()
    program.update()
    expected = (1.0,) * 4

    def check(point: int) -> None:
        nonlocal expected
        if work == "shutdown":
            pdc.setup(**options)
        found = program.stored()
        if work == "clear" and found[0] == 0.0:
            expected = found
        else:
            assert found == expected, point
        program.update()
        expected = (expected[0] + 1, expected[1] + 1, expected[2] + 1, expected[3] + 1)

    interrupted_everywhere(program, works[work], check)


LIMITS = """
import os, random, signal, sys, warnings
warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)  # redis-py leaves one where it is interrupted
sys.unraisablehook = lambda _: None  # Python drops what is raised into finalizers, as of those

class TimeLimit(Exception): ...

interrupts, armed = 0, False

def interrupt(*_):
    global armed, interrupts
    if armed:
        armed = False
        interrupts += 1
        raise TimeLimit

def other():
    mine = pdc.Counter("other", "Of another process.")
    setup(flush_interval=0)
    for _ in range(200):
        mine.inc()

child = os.fork()
if child == 0:
    other()
    sys.exit()
signal.signal(signal.SIGALRM, interrupt)
hits = pdc.Counter("hits", "Hits.", ["path"])
wait = pdc.Histogram("wait", "Wait.", buckets=[1])
level = pdc.Gauge("level", "Level.")
setup(flush_interval={interval})
ended = swallowed = 0
works = [hits.labels("/").inc] * 6 + [lambda: wait.observe(1), level.inc, pdc.flush, pdc.generate_latest]
counts = dict.fromkeys(works, 0)
while interrupts < {limits}:
    work, before = random.choice(works), interrupts
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, {longest}))
    try:
        armed = True
        work()
        armed = False
        counts[work] += 1
        swallowed += interrupts > before
    except TimeLimit:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
assert os.waitpid(child, 0)[1] == 0
pdc.flush()
cells = [metric._cell for metric in (hits.labels("/"), wait)]
print(swallowed, *counts.values(), *(cell.rows[cell.at] for cell in cells))
"""


@INTERVALS
def test_time_limits_at_random_times(storage: dict[str, Any], interval: float, run_script: Run) -> None:
    """However often a handler raises into updates, flushes and scrapes, it is heard, and what was counted is stored once."""
    limits = POINTS * 10
    longest = 0.0003 if interval else 0.002
    result = run_script(LIMITS.format(interval=interval and 0.01, limits=limits, longest=longest), storage=storage, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    swallowed, hits, observations, level, _, _, counted, observed = map(float, result.stdout.split())
    assert swallowed <= (limits / 50 if "redis" in storage else 0)  # redis-py drops some while it connects, again and again
    pdc.setup(**storage)
    text = dict(line.rsplit(" ", 1) for line in pdc.generate_latest().decode().splitlines() if not line.startswith("#"))
    assert float(text['hits_total{path="/"}']) == counted
    assert float(text["wait_sum"]) == float(text["wait_count"]) == observed
    assert hits <= counted <= hits + limits
    assert observations <= observed <= observations + limits
    assert level <= float(text["level"]) <= level + limits
    assert float(text["other_total"]) == 200
