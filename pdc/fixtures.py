"""A plugin of pytest: ``pytest_plugins = ["pdc.fixtures"]`` in the ``conftest.py`` of a program, or ``-p pdc.fixtures``.

It begins before pytest imports the modules of tests, which may make applications. With ``-p`` it also begins before
``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import config

__all__ = ["pdc_own_storage"]


@pytest.fixture(scope="session", autouse=True)
def pdc_own_storage() -> Iterator[None]:
    """Each process of the tests, also those of pytest-xdist, has a storage of its own."""
    _begin()  # a conftest.py may have imported this fixture alone
    yield
    config.leave_own_storage()


def pytest_addoption() -> None:
    """Begin at once: with ``-p``, pytest calls this before other plugins set a project up, and before ``conftest.py``."""
    _begin()


def pytest_configure() -> None:
    """Begin before the modules of tests."""
    _begin()


def _begin() -> None:
    if not config.has_own_storage():
        config.use_own_storage()
