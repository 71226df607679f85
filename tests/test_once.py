"""Functions that run once per process."""

from __future__ import annotations

import logging

import pytest

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


def test_a_warning_is_logged_once_for_each_of_the_last_arguments(caplog: pytest.LogCaptureFixture) -> None:
    """Endless arguments take no endless memory: a warning returns after as many others."""

    @once.once_each(2)
    def warn(name: str) -> None:
        log.write(logging.WARNING, name)

    with caplog.at_level(logging.WARNING, logger.name):
        for name in ("a", "a", "b", "a", "c", "b"):
            warn(name)
    assert caplog.messages == ["a", "b", "c", "b"]
