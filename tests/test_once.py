"""Functions that run once per process."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from helpers import in_threads

import pdc
from pdc.process import log, once
from pdc.process.log import logger


def test_a_function_runs_once_for_its_arguments_until_all_is_forgotten() -> None:
    """A declaration is made once for each set of arguments, and again after `forget`, as in a new process."""

    @once.once
    def hits(namespace: str) -> pdc.Counter:
        return pdc.Counter("hits", "Hits.", namespace=namespace, registry=None)

    first, other = hits("shop"), hits("bank")
    assert first is hits("shop")
    assert first is not other
    once.forget()
    assert hits("shop") is not first


def test_threads_that_call_it_at_once_get_the_same_result() -> None:
    """A declaration that several threads make first is made once: two gauges of one name would hide each other's value."""
    made = []

    @once.once
    def declare() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    found: list[object] = []
    in_threads(4, lambda: found.append(declare()))
    assert found == made * 4
    declare.cache_clear()
    assert declare() is made[1]


def test_a_fork_amid_a_first_call_does_not_wait_for_ever() -> None:
    """A child runs the function itself where another thread of its parent was running it."""
    parent, entered, release = os.getpid(), threading.Event(), threading.Event()

    @once.once
    def declare() -> int:
        if os.getpid() == parent:
            entered.set()
            release.wait(10)
        return os.getpid()

    thread = threading.Thread(target=declare)
    thread.start()
    entered.wait(10)
    if (child := os.fork()) == 0:
        os._exit(declare() != os.getpid())
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    thread.join()
    assert declare() == parent


def test_a_warning_is_logged_once_for_each_of_the_last_arguments(caplog: pytest.LogCaptureFixture) -> None:
    """Endless arguments take no endless memory: a warning returns after as many others."""

    @once.once_each(2)
    def warn(name: str) -> None:
        log.write(logging.WARNING, name)

    with caplog.at_level(logging.WARNING, logger.name):
        for name in ("a", "a", "b", "a", "c", "b"):
            warn(name)
    assert caplog.messages == ["a", "b", "c", "b"]
