"""A plugin of pytest for the tests of a peer.

Each test has a storage of its own, and fails where pdc logs an error. Known differences are expected to fail.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from pdc import testing
from pdc.exposition import collect
from pdc.process import once

ERRORS: list[str] = []
"""The errors that pdc logged in this test: of its own, and of functions of the application, which break no request."""
REASONS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file of known differences."""
    parser.addoption("--differences", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Read the known differences: each line that begins with # is the reason for the tests and files on the lines below it."""
    reasons, reason = config.stash.setdefault(REASONS, {}), ""
    for line in config.getoption("differences").read_text().splitlines():
        if line.startswith("#"):
            reason = line.lstrip("# ")
        elif line:
            reasons[line] = reason


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a file that is a known difference as a whole."""
    return collection_path.relative_to(config.rootpath).as_posix() in config.stash[REASONS] or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expect the known differences to fail: one that passes, or does not exist, is an error."""
    tests = {item.nodeid: item for item in items}
    reasons = {test: reason for test, reason in config.stash[REASONS].items() if "::" in test}
    if unknown := reasons.keys() - tests:
        raise pytest.UsageError(f"{config.getoption('differences')} has tests that do not exist: {sorted(unknown)}")
    for test, reason in reasons.items():
        tests[test].add_marker(pytest.mark.xfail(reason=reason, strict=True))


class Errors(logging.Handler):
    """Keeps the errors that pdc logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.exc_info:
            ERRORS.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


logging.getLogger("pdc").addHandler(Errors())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Fail a test that passed where pdc logged an error."""
    ERRORS.clear()
    yield
    if ERRORS:
        pytest.fail("\n".join(["pdc logged errors:", *ERRORS]))


@pytest.fixture(autouse=True)
def own_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a storage of its own, whose metrics show in the registry where peers have theirs."""
    once.forget()
    gc.collect()  # the metrics of the tests before
    monkeypatch.setattr(REGISTRY, "collect", partial(collect, REGISTRY))
    with testing.own_storage():
        yield
