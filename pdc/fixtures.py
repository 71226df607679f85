"""A plugin of pytest: ``pytest_plugins = ["pdc.fixtures"]`` in the ``conftest.py`` of a program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import config

__all__ = ["pdc_own_storage"]


@pytest.fixture(scope="session", autouse=True)
def pdc_own_storage() -> Iterator[None]:
    """Each process of the tests, also those of pytest-xdist, has a storage of its own."""
    config.use_own_storage()
    yield
    config.leave_own_storage()
