"""`pdc.job`: the runs of jobs, by outcome, in threads, tasks and processes of any end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import in_threads, shown
from journals import Journal

import pdc

READY = pytest.mark.usefixtures("ready")


def counts(*, seconds: bool = False) -> dict[str, float]:
    """The samples of jobs that are no times and buckets, by the rest of their names and the values of their labels."""
    found = {}
    for sample, value in shown("job_").items():
        if "_bucket" not in sample and "timestamp" not in sample and (seconds or "_seconds" not in sample):
            name, _, labels = sample.removeprefix("job_").partition("{")
            values = [label.split('"')[1] for label in labels.split(",")]
            found[" ".join([name, *values])] = value
    return found


def last(event: str, job: str) -> float:
    """The time of the last start or success."""
    return shown()[f'job_last_{event}_timestamp_seconds{{job_name="{job}"}}']


@READY
def test_a_run_is_counted_and_timed() -> None:
    """While it runs it is in progress; then it has its outcome, its duration, its items, and the times of start and success."""
    before = time.time()
    with pdc.job("import") as job:
        started = time.time()
        assert counts() == {"runs_in_progress import": 1.0, "runs_total import success": 0.0, "runs_total import failure": 0.0}
        job.count()
        job.count(3)
        job.count(2, "rejected")
        time.sleep(0.05)
    assert before <= last("start", "import") <= started < last("success", "import") <= time.time()
    found = counts(seconds=True)
    assert 0.05 <= found.pop("duration_seconds_sum import success") < 1
    assert found == {
        "runs_in_progress import": 0.0,
        "runs_total import success": 1.0,
        "runs_total import failure": 0.0,
        "duration_seconds_count import success": 1.0,
        "items_total import processed": 4.0,
        "items_total import rejected": 2.0,
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("wrong"), "failure"),
        (SystemExit(), "success"),
        (SystemExit(0), "success"),
        (SystemExit(1), "failure"),
        (SystemExit("wrong"), "failure"),
        (KeyboardInterrupt(), "failure"),
        (GeneratorExit(), "failure"),
        (asyncio.CancelledError(), "failure"),
    ],
    ids=repr,
)
@READY
def test_an_exception_goes_through(error: BaseException, outcome: str) -> None:
    """The very exception leaves the block; an exit with status 0 is a success, all others are failures."""
    with pytest.raises(type(error)) as caught, pdc.job("import"):
        raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert counts()[f"runs_total import {outcome}"] == 1.0
    assert sum(counts().values()) == 1.0
    assert ('job_last_success_timestamp_seconds{job_name="import"}' in shown()) == (outcome == "success")


@READY
def test_decorated_functions_stay_themselves() -> None:
    """Each call is a run; names, signature, arguments, result and kind of the function are as before."""
    nightly = pdc.job("nightly")

    @nightly
    def double(number: int) -> int:
        """Double it."""
        nightly.count(number)
        return 2 * number

    @pdc.job("async")
    async def triple(number: int) -> int:
        await asyncio.sleep(0)
        return 3 * number

    class Callable:
        async def __call__(self) -> str:
            return "called"

    assert (double(2), double(number=3), asyncio.run(triple(2))) == (4, 6, 6)
    assert asyncio.run(pdc.job("object")(Callable())()) == "called"
    assert (double.__name__, double.__doc__, [*inspect.signature(double).parameters]) == ("double", "Double it.", ["number"])
    assert (inspect.iscoroutinefunction(double), inspect.iscoroutinefunction(triple)) == (False, True)
    found = counts()
    runs = [found[f"runs_total {name} success"] for name in ("nightly", "async", "object")]
    assert (runs, found["items_total nightly processed"]) == ([2.0, 1.0, 1.0], 5.0)


@READY
def test_a_coroutine_is_in_progress_until_it_ends() -> None:
    """A cancelled coroutine is a failure, and its duration includes the time in which it waits."""

    @pdc.job("async")
    async def wait() -> None:
        await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.05)
        assert counts()["runs_in_progress async"] == 1.0
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    found = counts(seconds=True)
    assert (found["runs_total async failure"], found["runs_in_progress async"]) == (1.0, 0.0)
    assert 0.05 <= found["duration_seconds_sum async failure"] < 5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pdc.job(""),
        lambda: pdc.job(len),  # type: ignore[arg-type] # tested
        lambda: pdc.job("a")(_yield),
        lambda: pdc.job("a")(property(len)),  # type: ignore[arg-type] # tested
        lambda: pdc.job("a").count("rejected"),  # type: ignore[arg-type] # tested
    ],
)
@READY
def test_mistakes_are_errors_that_name_the_remedy(wrong: Callable[[], object]) -> None:
    """No name, no function, a generator, which returns before it runs, and a text in place of a number are TypeErrors."""
    remedies = r"as in pdc.job\('nightly_import'\)|write `with` inside|below other decorators|a result is count\(result="
    with pytest.raises(TypeError, match=remedies):
        wrong()


def _yield() -> Iterator[int]:
    yield 1


@READY
def test_runs_in_runs_and_beside_each_other() -> None:
    """An object serves runs in each other, also of itself, and runs in threads; each has its own duration."""
    outer = pdc.job("outer")
    with outer, outer, pdc.job("inner"):
        assert counts()["runs_in_progress outer"] == 2.0

    shared, begun = pdc.job("shared"), threading.Barrier(2)

    def run(seconds: float) -> None:
        with shared:
            begun.wait()
            time.sleep(seconds)

    threads = [threading.Thread(target=run, args=[seconds]) for seconds in (0.02, 1.1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counts()
    assert [found[f"runs_total {name} success"] for name in ("outer", "inner", "shared")] == [2.0, 1.0, 2.0]
    assert [value for name, value in found.items() if "progress" in name] == [0.0, 0.0, 0.0]
    assert shown()['job_duration_seconds_bucket{job_name="shared",le="1.0",outcome="success"}'] == 1.0


@READY
def test_many_threads_count_exactly() -> None:
    """Twenty runs of one object in each of eight threads are 160, also where they declare the metrics at once."""
    pdc.Counter("warm_up", "Starts the background thread, of which several threads would start several.", registry=None).inc()
    job = pdc.job("import")

    def work() -> None:
        for _ in range(20):
            with job:
                job.count(2)

    in_threads(8, work)
    assert counts() == {
        "runs_in_progress import": 0.0,
        "runs_total import success": 160.0,
        "runs_total import failure": 0.0,
        "items_total import processed": 320.0,
    }


@READY
def test_a_run_may_end_in_another_context() -> None:
    """A block that another context leaves, as fixtures and generators do, is counted once, and later runs are outermost."""
    job = pdc.job("import")
    contextvars.copy_context().run(job.__enter__)
    job.__exit__(None, None, None)
    with job:
        assert counts()["runs_in_progress import"] == 1.0
    assert counts() == {"runs_in_progress import": 0.0, "runs_total import success": 2.0, "runs_total import failure": 0.0}


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The times that callers would wait for a flush."""
    waits: list[float | None] = []
    monkeypatch.setattr("pdc.config.flush_before_end", waits.append)
    return waits


@READY
def test_only_the_end_of_the_outermost_run_sends(flushes: list[float | None]) -> None:
    """A run in another one sends nothing; a coroutine does not wait for the storage."""

    @pdc.job("async")
    async def run() -> None:
        with pdc.job("inner"):
            await asyncio.sleep(0)

    with pdc.job("outer"):
        for _ in range(3):
            with pdc.job("inner"):
                pass
    assert flushes == [None]
    asyncio.run(run())
    assert flushes == [None, 0.0]


@READY
def test_an_error_of_ours_hides_no_exception(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where a run cannot be counted, the log has the reason, and the exception of the block goes on."""

    def fail(_: float | None) -> None:
        raise RuntimeError("no thread")

    monkeypatch.setattr("pdc.config.flush_before_end", fail)
    with caplog.at_level(logging.ERROR, "pdc"):
        with pytest.raises(ValueError, match="wrong"), pdc.job("import"):
            raise ValueError("wrong")
        with pdc.job("import"):
            pass
    assert [record.getMessage() for record in caplog.records] == ["a run of pdc.job('import') could not be counted"] * 2
    assert counts()["runs_in_progress import"] == 0.0


ENDS_AT_ONCE = """
import os
setup(flush_interval=3600, journal=False)
with pdc.job("import") as job:
    job.count(7)
os._exit(0)
"""


def test_a_process_that_ends_at_once_loses_nothing(run_script: Any, storage: dict[str, Any]) -> None:
    """After the block everything is in the storage, without a journal and without exit handlers."""
    run_script(ENDS_AT_ONCE, storage=storage)
    pdc.setup(**storage)
    assert {"runs_total import success": 1.0, "items_total import processed": 7.0}.items() <= counts().items()


FROZEN = """
import os, signal, sys, time
setup(flush_interval=3600, exit_timeout=0.2)
begun = time.monotonic()
with pdc.job("import"):
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
print(time.monotonic() - begun)
os.kill(int(sys.argv[1]), signal.SIGCONT)
"""


def test_the_end_of_a_run_waits_for_a_storage_no_longer_than_exit_timeout(run_script: Any, own_redis_server: Any) -> None:
    """A frozen Redis holds a run up for `exit_timeout` seconds."""
    process = own_redis_server._process
    done = run_script(FROZEN, process.pid, storage={"redis": own_redis_server.url})
    assert 0.2 <= float(done.stdout) < 2


KILLED = """
with pdc.job("import"):
    pass
job = pdc.job("import")
job.__enter__()
job.count(7)
"""


def test_a_killed_run_is_neither_success_nor_failure(journal: Journal) -> None:
    """The next process sends the items and the start of a killed run, which is in progress no more."""
    journal.leave(KILLED)
    pdc.setup(**{**journal.options, "journal": False})
    assert "items_total import processed" not in counts()
    journal.send()
    assert counts() == {
        "runs_total import success": 1.0,
        "runs_total import failure": 0.0,
        "items_total import processed": 7.0,
    }
    assert last("start", "import") > last("success", "import")


def test_without_a_storage_a_job_does_not_begin() -> None:
    """The block is not run where there is no `setup`, and the error names it."""
    pdc.shutdown()
    with pytest.raises(pdc.NotConfigured, match="setup"), pdc.job("import"):
        pytest.fail("it ran")
