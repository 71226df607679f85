"""The runs of a job: a program that cron starts, a scheduled function, a management command."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from numbers import Real
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from .. import config
from ..metrics import Counter, Gauge, Histogram, declared_once
from ..process import log
from ..process.interruption import interruption, let_through
from .native import native_histograms

P = ParamSpec("P")
T = TypeVar("T")

BUCKETS = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 3 * 3600.0, 6 * 3600.0, 12 * 3600.0, 24 * 3600.0)
"""A tenth of a second to a day."""
OUTCOMES = ("success", "failure")


class _Families(NamedTuple):
    runs: Counter
    duration: Histogram
    last_start: Gauge
    last_success: Gauge
    in_progress: Gauge
    items: Counter


@declared_once
def _families() -> _Families:
    """Declare the families. No label is called ``job``: Prometheus gives that name to the target that it scrapes."""
    return _Families(
        Counter("job_runs", "Runs of the job that ended.", ["job_name", "outcome"], registry=None),
        Histogram(
            "job_duration_seconds",
            "Time per run.",
            ["job_name", "outcome"],
            registry=None,
            buckets=BUCKETS,
            native=native_histograms(),
        ),
        Gauge(
            "job_last_start_timestamp_seconds",
            "When a run last started.",
            ["job_name"],
            registry=None,
            multiprocess_mode="mostrecent",
        ),
        Gauge(
            "job_last_success_timestamp_seconds",
            "When a run last ended with success.",
            ["job_name"],
            registry=None,
            multiprocess_mode="mostrecent",
        ),
        Gauge("job_runs_in_progress", "Runs in progress.", ["job_name"], registry=None, multiprocess_mode="livesum"),
        Counter("job_items", "Items that runs of the job have processed.", ["job_name", "result"], registry=None),
    )


class _Run:
    """A run in progress."""

    __slots__ = ("has_ended", "job", "start")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.has_ended = False
        self.start = time.perf_counter()


_RUNS: ContextVar[tuple[_Run, ...]] = ContextVar("pdc_runs", default=())
"""The runs in progress of this thread or task, the outermost first."""


class Job:
    """Counts and times the runs of a job: each ``with`` block, each call of a decorated function.

    An object serves any number of runs, also at the same time in threads and tasks, and one in another.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"a job needs its name, as in pdc.job('nightly_import'), got {name!r}")
        self.name = name
        self._open: list[_Run] = []

    def __repr__(self) -> str:
        return f"pdc.job({self.name!r})"

    def count(self, items: float = 1, result: str = "processed") -> None:
        """Count items, by a result such as ``rejected``: a word of few, as each makes a series.

        Raises ValueError for a negative number, and TypeError for no number.
        """
        given: object = items
        if not isinstance(given, Real):
            raise TypeError(f"{self!r} counts a number of items, got {items!r}: a result is count(result=...)")
        _families().items.labels(self.name, result).inc(items)

    def __enter__(self) -> Job:
        """Start a run. Raises NotConfigured without a storage."""
        families = _families()
        families.last_start.labels(self.name).set_to_current_time()
        for outcome in OUTCOMES:
            families.runs.labels(self.name, outcome)  # shown as 0 before the first: an increase needs a value before it
        run = _Run(self)
        self._open.append(run)
        _RUNS.set((*_RUNS.get(), run))
        families.in_progress.labels(self.name).inc()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End the run. An exception goes on; SystemExit of status 0 is a success, every other one a failure."""
        run = self._last_run()
        try:
            self._record(time.perf_counter() - run.start, "success" if _is_success(error) else "failure")
            if not _RUNS.get():
                config.flush_before_end(0.0 if _is_in_event_loop() else None)
        except Exception as failure:
            if (raised := interruption(failure, error)) is not None:
                raise raised from None
            log.write(logging.ERROR, "a run of %s could not be counted", self, error=failure)

    def _last_run(self) -> _Run:
        """The last run that began here, in this thread or task if it did, which ends now."""
        mine = [run for run in _RUNS.get() if run.job is self and not run.has_ended] or self._open
        run = mine[-1]
        run.has_ended = True
        self._open.remove(run)
        _RUNS.set(tuple(each for each in _RUNS.get() if not each.has_ended))
        return run

    def _record(self, seconds: float, outcome: str) -> None:
        families = _families()
        families.in_progress.labels(self.name).dec()
        families.runs.labels(self.name, outcome).inc()
        families.duration.labels(self.name, outcome).observe(seconds)
        if outcome == "success":
            families.last_success.labels(self.name).set_to_current_time()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Decorate a function or a coroutine function: each call is a run. Raises TypeError for generators and no functions."""
        if not callable(function):
            raise TypeError(f"{self!r} cannot decorate {function!r}, which is no function: put it below other decorators")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{self!r} cannot decorate {function!r}, which returns before it runs: write `with` inside")
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

            @wraps(function)
            async def run_and_wait(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await cast("Callable[P, Any]", function)(*args, **kwargs)

            return cast("Callable[P, T]", run_and_wait)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return run


def job(name: str) -> Job:
    """Count and time a job, as a context manager or as a decorator of a function or coroutine function.

    ::

        with pdc.job("nightly_import") as job:
            for row in rows:
                job.count()

        @pdc.job("nightly_import")
        def import_rows(): ...

    ``job_runs_total`` and ``job_duration_seconds`` have runs by ``outcome``, which is ``success`` or ``failure``,
    ``job_last_success_timestamp_seconds`` and ``job_last_start_timestamp_seconds`` the times of the last ones,
    ``job_runs_in_progress`` those that run now, and ``job_items_total`` what `count` counted. At the end of a run that is in
    no other one, pending updates are sent, within ``exit_timeout``. Exceptions go through: SystemExit of status 0 is a success.
    In Redis, metrics go an hour after the last process that has them, unless ``redis_expire`` is None.
    """
    return Job(name)


def _is_success(error: BaseException | None) -> bool:
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def _is_in_event_loop() -> bool:
    """True in a coroutine of asyncio: waiting for a storage would hold all others up."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        let_through(error)
        return False
    return True
