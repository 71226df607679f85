"""The log: its handlers may raise, wait, and update metrics."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import wait_until
from recorder import Recorder, fail, in_another_thread

import pdc
from pdc.delivery import Buffer
from pdc.process import log


def test_handlers_of_the_log_may_wait_for_threads_that_update(
    recorder: Recorder, counter: pdc.Counter, gauge: pdc.Gauge
) -> None:
    """A handler of the log that counts lines, and any lock it takes, never blocks the buffer that logs."""

    def count() -> None:
        in_another_thread(counter.inc)
        counter.inc()

    with reacting(count):
        recorder.during = fail
        gauge.inc()
        recorder.during = lambda: None
        counter.buffer.flush()
    counter.buffer.flush()
    assert recorder.total() == 4


class Reacting(logging.Handler):
    """A handler of pdc's log that calls a function for each message, and passes on its exceptions."""

    def __init__(self, react: Callable[[], object]) -> None:
        super().__init__()
        self._react = react

    def emit(self, _: logging.LogRecord) -> None:
        """Call the function."""
        self._react()


@contextmanager
def reacting(react: Callable[[], object]) -> Iterator[None]:
    """Call the function for each message of pdc."""
    handler = Reacting(react)
    logging.getLogger("pdc").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("pdc").removeHandler(handler)


@pytest.fixture
def failures() -> Iterator[list[object]]:
    """An item for each message that could not be logged."""
    found: list[object] = []

    def note() -> None:
        found.append(1)

    log.FAILURES.append(note)
    yield found
    log.FAILURES.remove(note)


def leave() -> None:
    """An exception that no function of an application should raise."""
    raise SystemExit


def fail_to_log() -> None:
    """Raise as a filter that needs a request where there is none."""
    raise RuntimeError("working outside of request context")


@pytest.mark.parametrize("fault", [leave, fail_to_log])
def test_the_thread_goes_on_whatever_the_log_raises(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, failures: list[object], fault: Callable[[], None]
) -> None:
    """The background thread sends after an outage though a handler of the log raised at it."""
    buffer.attach(recorder, 0.01, None)
    with reacting(fault):
        recorder.during = fail
        counter.inc(5)
        wait_until(lambda: failures)
        recorder.during = lambda: None
        wait_until(lambda: recorder.total() == 5)


def test_the_thread_goes_on_whatever_the_storage_raises(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of a client that is no error, such as an exit at a password prompt, ends no background thread."""
    buffer.attach(recorder, 0.01, None)
    recorder.during = leave
    counter.inc(5)
    wait_until(lambda: "the thread that sends metrics goes on after an error" in caplog.text)
    recorder.during = lambda: None
    wait_until(lambda: recorder.total() == 5)
    assert caplog.text.count("goes on after an error") == 1


def test_a_handler_that_does_not_return_holds_nothing_up(
    buffer: Buffer, recorder: Recorder, counter: pdc.Counter, failures: list[object]
) -> None:
    """The background thread sends after an outage though a handler of the log blocks at it; lost messages are counted."""
    entered, release = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        release.wait(10)

    buffer.attach(recorder, 0.01, None)
    try:
        with reacting(block):
            recorder.during = fail
            counter.inc(5)
            assert entered.wait(10)
            recorder.during = lambda: None
            wait_until(lambda: recorder.total() == 5)
            for _ in range(log.MOST_DEFERRED + 5):
                log.defer(logging.ERROR, "too much")
            assert 4 <= len(failures) <= 5
    finally:
        release.set()


def test_an_update_never_raises_what_the_log_raises(recorder: Recorder, counter: pdc.Counter, failures: list[object]) -> None:
    """Written through, an update that finds the storage down returns though a filter raises; lost messages are counted."""
    with reacting(fail_to_log):
        recorder.during = fail
        counter.inc(5)
        recorder.during = lambda: None
        counter.buffer.flush()
    assert recorder.total() == 5
    assert len(failures) == 2


def test_a_time_limit_amid_the_log_reaches_the_application(recorder: Recorder, counter: pdc.Counter) -> None:
    """An exception of a signal handler in a handler of the log reaches the application, and no update is lost."""

    class Limit(Exception): ...  # noqa: N818 - named as time limits are

    def expire(_: int, __: Any) -> None:
        raise Limit

    with reacting(lambda: expire(14, sys._getframe())):
        recorder.during = fail
        with pytest.raises(Limit):
            counter.inc(5)
    recorder.during = lambda: None
    counter.buffer.flush()
    assert recorder.total() == 5
