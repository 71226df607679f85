"""Exceptions that a handler raises amid any code: they reach the application, and no update is lost or stuck."""

from __future__ import annotations

import ctypes
import dis
import operator
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest
import redis
from conftest import RedisServer, wait_until
from helpers import INTERVALS, Run, script
from prometheus_client import CollectorRegistry

import pdc
import pdc.exposition
from pdc.cells import HistogramCell, Window
from pdc.delivery import call_storage
from pdc.delivery.journal import default_folders
from pdc.http import TRACKER, HTTPMetrics, track_wsgi
from pdc.options import Options
from pdc.process.forks import FORKS
from pdc.process.interruption import is_own, locked_within, tolerate
from pdc.storage import Batch, Kind, Operation, Stamped, Storage, Update, marks_of
from pdc.storage.ordered import Parts
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

POINTS = int(os.environ.get("PDC_POINTS", "4"))
"""The number of points of the work at which an exception is raised, evenly spread; the long proof takes all."""
pytestmark = pytest.mark.filterwarnings(  # from an interruption between the opening of one and its note
    "ignore:unclosed <socket:ResourceWarning", "ignore:unclosed database:ResourceWarning"
)

DROPPING = ("redis.observability", "importlib.metadata", "_weakrefset", "weakref", "hypothesis")
"""Modules that let no exception pass, or are called where Python lets none: telemetry and versions for connections, and
callbacks of the garbage collector."""


class TimeLimit(TimeoutError, ValueError, RuntimeError):  # noqa: N818 - Celery's name has no Error, too
    """A handler raises it, as a soft time limit does. It is of several classes after which our code may go on.

    Python itself goes on after a KeyError, an IndexError and a TypeError: in `Mapping.get`, in iterators of a `Sequence`, and
    where it asks for the length of an iterable.
    """


@cache
def switch_points(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which Python may run a handler: after calls, at backward jumps and at the start.

    An exception of a handler belongs to the instruction before that point. Where another block of `try` or `with` begins or
    ends there, no other exception can be raised in its place.
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
        returning, before = before == "return", event  # no handler runs after the return of a Python function
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not returning and frame.f_lasti in switch_points(frame.f_code):
            left -= 1
            if left < 0 and not drops(frame):
                raised = stack_of(frame)
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


def stack_of(frame: FrameType) -> str:
    """The place of the frame, and of the last ones that called it; no line of source, which some interpreters do not have."""
    frames = [f"{each.f_code.co_filename}:{line} in {each.f_code.co_name}" for each, line in traceback.walk_stack(frame)]
    return ", called at ".join(frames[:6])


def number_of_points(work: Callable[[], object]) -> int:
    """The number of points at which `raise_at` raises."""
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
    """True where exceptions go no further: in finalizers, callbacks of weak references, and telemetry of redis-py.

    The code that closes a generator is such a place, too, and belongs to no line.
    """
    if frame is not None and frame.f_lineno is None:
        return True
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        of_finalizer = frame.f_code.co_name == "__del__" or (module, frame.f_code.co_name) == ("socket", "__repr__")
        if of_finalizer or module.startswith(DROPPING):  # that of a socket warns that it is open
            return True
        frame = frame.f_back
    return False


def interrupt(_number: int, _frame: FrameType) -> None:
    """Raise, as a handler of a signal does."""
    raise TimeLimit


class Program:
    """A program with some metrics in a storage, inspected from outside."""

    def __init__(self, options: dict[str, Any], registry: CollectorRegistry) -> None:
        self._options = options
        pdc.setup(**options)
        self.hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
        self.wait = pdc.Histogram("wait", "Wait.", buckets=[1], native=True, registry=registry)
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
        self.wait.observe(2.0 ** -(4 * self.numbers % 1000))  # often in no bucket of the cell so far
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
        observed, native = (
            sum(float(value) for field, value in wait.items() if field.startswith(kind)) for kind in ("_bucket", "_native")
        )
        assert observed == native
        return one, sum(counts.values()), observed, float(level.get(":{}", 0.0))

    def check_that_nothing_is_held(self) -> None:
        """Another process can write the storage, and another thread can flush."""
        if "sqlite" in self._options:
            with sqlite3.connect(self._options["sqlite"], timeout=2, isolation_level=None) as other:
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
    assert number > 50
    for point in range(0, number, max(1, number // POINTS)):
        error = raise_at(point, work)
        try:
            program.check_that_nothing_is_held()  # while the application has the exception and the objects of its frames
            check(point)
        except Exception as fault:
            raise AssertionError(f"at point {point}: {''.join(traceback.format_exception(error))}") from fault


@INTERVALS
def test_an_update_is_in_or_out(storage: dict[str, Any], interval: float, registry: CollectorRegistry) -> None:
    """An exception at any point of updates reaches the application. A finished update counts once, another one not at all."""
    program = Program({**storage, "flush_interval": interval}, registry)
    before = program.stored()

    def check(point: int) -> None:
        nonlocal before
        after = program.stored()
        gained = [new - old for new, old in zip(after, before, strict=True)]
        assert point >= 0 or gained == [1.0] * 4
        assert all(each in (0.0, 1.0) for each in gained), (point, gained)
        in_order = [gained[1], gained[0], gained[2], gained[3]]
        assert in_order == sorted(in_order, reverse=True), (point, gained)  # the updates before the exception ended
        before = after

    interrupted_everywhere(program, program.update, check)
    program.update()
    pdc.flush()
    assert program.stored() == tuple(number + 1 for number in before)


def fork_of_a_parent() -> None:
    """Call Python's hooks at a fork: if one raises, it calls the others."""
    try:
        FORKS.before()
    finally:
        try:
            FORKS.after_in_parent()
        finally:
            FORKS.after_in_parent()


@pytest.mark.parametrize("work", ["flush", "scrape", "setup", "clear", "collect", "shutdown", "fork"])
@INTERVALS
def test_pending_updates_stay(storage: dict[str, Any], interval: float, registry: CollectorRegistry, work: str) -> None:
    """An exception at any point of a send or read reaches the application, and no update is lost or doubled."""
    options = {**storage, "flush_interval": interval}
    program = Program(options, registry)
    works: dict[str, Callable[[], object]] = {
        "flush": pdc.flush,
        "scrape": pdc.exposition.Scrape().answer,
        "collect": lambda: list(program.wait.collect()),
        "setup": lambda: pdc.setup(**options),
        "clear": pdc.clear,
        "shutdown": pdc.shutdown,
        "fork": fork_of_a_parent,
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


class LateReplyError(redis.ResponseError):
    """An exception of the application that is also one of redis-py."""


@pytest.mark.parametrize("kind", ["url", "client"])
def test_a_limit_amid_a_connect_is_no_reply(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """An exception of a handler that is a ResponseError, too, reaches the application, and later replies are in their order."""
    storage = RedisStorage(redis_server.url if kind == "url" else redis_server.client())

    def connect() -> None:
        storage.close()
        call_storage(storage.read)

    connect()
    number = number_of_points(connect)
    monkeypatch.setattr(sys.modules[__name__], "TimeLimit", LateReplyError)
    for point in range(0, number, max(1, number // (8 * POINTS))):
        raise_at(point, connect)
        assert storage.read().metrics == {}, point
    storage.close()


def test_an_interrupted_constructor_leaves_no_error_of_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of a large metric that a handler kept from being made are dropped without a message."""
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    assert raise_at(0, lambda: Parts([{}])) is not None
    assert errors == []


def test_the_folder_of_the_journal_needs_no_lock_of_tempfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update finds the folder of `tempfile` without its lock, which a handler that raises would leave held."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    with vars(tempfile)["_once_lock"]:
        thread = threading.Thread(target=default_folders, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert default_folders()[-1].parent == Path(tempfile.gettempdir())


def test_a_lock_that_is_held_for_a_limited_time_is_free_again() -> None:
    """A handler that raises anywhere, also while the lock is released, leaves it to other threads."""
    lock = threading.RLock()
    work = partial(locked_within, 1.0, lock, list)
    number = number_of_points(work)
    assert number > 3
    for point in range(number):
        raise_at(point, work)
        assert not is_own(lock), point


def test_a_lock_that_is_held_for_a_limited_time_by_its_owner_stays_its_own_once() -> None:
    """A handler that raises while its thread has the lock already leaves it to be released once."""
    lock = threading.RLock()
    work = partial(locked_within, 1.0, lock, list)
    with lock:
        number = number_of_points(work)
    for point in range(number):
        with lock:
            raise_at(point, work)
        assert not is_own(lock), point


def test_an_interrupted_change_of_cells_leaves_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises where a native histogram needs another cell leaves only cells of the series, later one alone."""
    pdc.setup(sqlite=str(tmp_path / "metrics.db"), flush_interval=3600)
    monkeypatch.setattr(Window, "widened", lambda *_: (Window(3, ((1, 8),)), frozenset()))
    waits = [pdc.Histogram("wait", "Wait.", buckets=(), native=True, registry=None) for _ in range(200)]
    works: list[Callable[[], HistogramCell]] = [partial(wait._cell.begin_successor, 2.0) for wait in waits]
    pdc.flush()
    works.pop()()  # the others find its buckets made
    number = number_of_points(works.pop())
    assert 20 < number < len(works)
    for point, (wait, work) in enumerate(zip(waits[:number], works, strict=False)):
        first, cells = wait._cell, wait._metric_cells.cells
        raise_at(point, work)
        assert cells.keys() <= {first, *first.successors()}, point
        wait.observe(2.0)
        assert [*cells] == [wait._cell], point


def test_a_limit_amid_a_read_of_marks_is_raised(storage: dict[str, Any]) -> None:
    """A scrape reads the marks of writers after the storage was read; an exception of a handler reaches the application."""
    with closing(RedisStorage(storage["redis"], "") if "redis" in storage else SqliteStorage(storage["sqlite"])) as opened:
        for writer in map("{}-a".format, range(60)):
            opened.apply(
                Batch(writer, 1, [Update("m", "{}", [Operation(Kind.STAMP, f"#live:{writer}:{{}}", Stamped(1.0, 0.0))])])
            )
        opened.read()
        fields = opened.read().metrics["m"]  # the storage knows which fields to read
        number = number_of_points(lambda: marks_of(fields, ["1-a"]))
        for point in range(0, number, max(number // POINTS, 1)):
            raise_at(point, lambda: marks_of(fields, ["1-a"]))
            assert marks_of(fields, ["1-a"])["1-a"].startswith("1 "), point


def test_code_goes_on_only_after_errors_of_its_own(tmp_path: Path) -> None:
    """After an error that may come, code goes on; where a handler raised one of the same class, the application gets it."""
    with tolerate(OSError):
        (tmp_path / "missing").stat()
    with pytest.raises(TimeLimit), tolerate(OSError):
        interrupt(0, sys._getframe())


@INTERVALS
def test_time_limits_at_random_times(storage: dict[str, Any], interval: float, run_script: Run) -> None:
    """Exceptions of a handler amid updates, flushes and scrapes all reach the program, and each update is stored once."""
    limits = POINTS * 10
    longest = 0.0003 if interval else 0.002
    arguments = (interval and 0.01, limits, longest)
    result = run_script(script("time_limits.py"), *arguments, storage=storage, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    swallowed, hits, observations, level, _, _, counted, observed = map(float, result.stdout.split())
    assert swallowed <= (limits / 10 if "redis" in storage else 0)  # redis-py drops some while it connects, again and again
    pdc.setup(**storage)
    text = dict(line.rsplit(" ", 1) for line in pdc.generate_latest().decode().splitlines() if not line.startswith("#"))
    assert float(text['hits_total{path="/"}']) == counted
    assert float(text["wait_sum"]) == float(text["wait_count"]) == observed
    assert hits <= counted <= hits + limits
    assert observations <= observed <= observations + limits
    assert level <= float(text["level"]) <= level + limits
    assert float(text["other_total"]) == 200


def test_a_time_limit_reaches_its_request(tmp_path: Path) -> None:
    """An exception at any point of the count of a request reaches the caller of the application."""
    metrics = HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0, labels={"a": lambda _: "b"}))

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ[TRACKER].route = "/"
        start_response("200 OK", [])
        return [b"done"]

    app = track_wsgi(metrics, answer)

    def request() -> None:
        body: Any = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: lambda _: None)
        for _ in body:
            pass
        body.close()

    request()
    number = number_of_points(request)
    for point in range(0, number, max(1, number // POINTS)):
        raise_at(point, request)
    pdc.flush()


class Limits:
    """Handlers of signals that raise: what Python, linters and libraries make of one."""

    def __init__(self, limit: type[Exception]) -> None:
        self.limit = limit

    def keep(self, *_: object) -> None:
        """Keep the frame that was interrupted."""
        raise self.limit("time is up")

    def delete(self, signum: int, frame: object) -> None:
        """Keep nothing."""
        del signum, frame
        raise self.limit("time is up")

    def replace(self, _: int, frame: object) -> None:
        """Keep no frame."""
        frame = None
        raise self.limit(f"time is up{frame or ''}")

    def with_seconds(self, seconds: float, *_: object) -> None:
        """Have another argument."""
        del _
        raise self.limit(f"{seconds} s are over")

    def __call__(self, signum: int, frame: object) -> None:
        """Be no function."""
        del signum, frame
        raise self.limit("time is up")


HANDLERS: dict[str, Callable[[Limits], Any]] = {
    **{name: operator.attrgetter(name) for name in ("keep", "delete", "replace")},
    "partial": lambda limits: partial(limits.with_seconds, 0.2),
    "object": lambda limits: limits,
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("limit", [TimeLimit, TimeoutError, ConnectionError])
def test_a_limit_ends_the_wait_for_a_frozen_server(
    own_redis_server: RedisServer, registry: CollectorRegistry, limit: type[Exception], handler: str
) -> None:
    """An exception of a handler while an update waits leaves the update, whatever the driver makes of its class."""
    pdc.setup(redis=own_redis_server.url)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    hits.inc()

    before = signal.signal(signal.SIGALRM, HANDLERS[handler](Limits(limit)))
    own_redis_server.freeze()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(limit) as raised:
            hits.inc(10)
    finally:
        signal.signal(signal.SIGALRM, before)
        own_redis_server.thaw()
    assert raised.type is limit
    pdc.flush()
    assert "hits_total 11.0" in pdc.generate_latest().decode()


def test_an_exception_from_another_thread_is_raised(tmp_path: Path, registry: CollectorRegistry) -> None:
    """An exception of `PyThreadState_SetAsyncExc` in a waiting update reaches the application, also one of Python's own."""
    pdc.setup(sqlite=str(tmp_path / "metrics.db"))
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    heard: list[BaseException] = []
    started = threading.Event()

    def work() -> None:
        try:
            started.set()
            while True:
                hits.inc()
        except RuntimeError as error:
            heard.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait()
    time.sleep(0.05)
    raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in_thread(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(RuntimeError)) == 1
    thread.join(10)
    assert not thread.is_alive()
    assert [error.args for error in heard] == [()]


def test_an_exception_that_is_being_handled_is_not_raised_again(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """An update in the handling of time limits while the storage is down does not raise the exception again."""
    pdc.setup(sqlite=str(tmp_path / "missing" / "metrics.db"))
    limits = pdc.Counter("limits", "Limits.", registry=registry)

    def work() -> None:
        interrupt(0, sys._getframe())

    try:
        work()
    except TimeLimit:
        pdc.config.DEFAULT._work.backoff._retry_at = 0.0
        limits.inc()
    wait_until(lambda: "cannot be sent" in caplog.text)  # the background thread may have been the first to find it down


@pytest.mark.package("gevent")
def test_a_gevent_timeout_ends_an_update(own_redis_server: RedisServer, run_script: Run) -> None:
    """A timeout of gevent leaves the update that it interrupts, and the update counts once."""
    source = """
import os, signal
from gevent import monkey; monkey.patch_all()
import gevent
hits = pdc.Counter("hits", "Hits.")
setup()
hits.inc()
server = int(pdc.get_redis_conn().info()["process_id"])
raised = 0
for number in range(5):
    os.kill(server, signal.SIGSTOP)
    gevent.spawn_later(0.1, os.kill, server, signal.SIGCONT)
    try:
        with gevent.Timeout(0.03):
            hits.inc()
    except gevent.Timeout:
        raised += 1
    gevent.sleep(0.1)
pdc.flush()
print(raised)
"""
    result = run_script(source, storage={"redis": own_redis_server.url}, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "5"), result.stderr
    pdc.setup(redis=own_redis_server.url)
    assert "hits_total 6.0" in pdc.generate_latest().decode()


@pytest.mark.parametrize("runner", ["asyncio", "trio"])
def test_a_scrape_that_is_cancelled_loses_nothing(storage: dict[str, Any], registry: CollectorRegistry, runner: str) -> None:
    """Scrapes that asyncio or trio cancel hold no lock, and pending updates count once."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    app = pdc.make_asgi_app()

    async def scrape() -> None:
        async def receive() -> Any:
            raise AssertionError

        async def send(_: Any) -> None:
            return

        await app({"type": "http", "method": "GET", "headers": []}, receive, send)

    async def cancelled() -> None:
        for number in range(20):
            hits.inc()
            with anyio.move_on_after(number / 5000):
                await scrape()

    anyio.run(cancelled, backend=runner)
    pdc.flush()
    assert "hits_total 20.0" in pdc.generate_latest().decode()


def with_any_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function."""

    def wrapper(*arguments: object) -> Any:
        return function(*arguments)

    return wrapper


def with_those_of_a_handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that may be a handler, too."""

    def wrapper(signum: int | None = None, frame: object = None) -> Any:
        return function() if signum is None else function(signum, frame)

    return wrapper


@pytest.mark.parametrize("logged", [with_any_arguments, with_those_of_a_handler])
def test_functions_of_one_decorator_are_no_handlers(
    tmp_path: Path, registry: CollectorRegistry, logged: Callable[..., Any]
) -> None:
    """A handler of a signal has the decorator of the function of a gauge: errors of that function are not the handler's."""

    @logged
    def level() -> float:
        raise OSError("no queue")

    before = signal.signal(signal.SIGALRM, logged(lambda *_: None))
    try:
        pdc.setup(sqlite=tmp_path / "metrics.db")
        pdc.Gauge("level", "Level.", registry=registry).set_function(level)
        assert b"level 0.0" in pdc.generate_latest()
    finally:
        signal.signal(signal.SIGALRM, before)
