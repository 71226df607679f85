"""For tests of Django projects: assert how a value in the storage changes, and give each process a storage of its own."""

from __future__ import annotations

from typing import Any

from django.test.runner import DiscoverRunner, ParallelTestSuite

from pdc import config
from pdc.testing import assert_change, own_storage, value_of

__all__ = ["OwnStorageRunner", "assert_change", "own_storage", "value_of"]


def _init_worker(*args: Any, **kwargs: Any) -> None:
    ParallelTestSuite.init_worker(*args, **kwargs)
    config.use_own_storage()


class _OwnStorageSuite(ParallelTestSuite):
    init_worker = _init_worker


class OwnStorageRunner(DiscoverRunner):
    """Gives each process of ``manage.py test``, also with ``--parallel``, a storage of its own, in its memory.

    TEST_RUNNER = "pdc_django.testing.OwnStorageRunner"
    """

    parallel_test_suite = _OwnStorageSuite

    def setup_test_environment(self, **kwargs: Any) -> None:
        """Leave the storage of the project alone from now on."""
        super().setup_test_environment(**kwargs)
        config.use_own_storage()

    def teardown_test_environment(self, **kwargs: Any) -> None:
        """Forget the metrics of the tests."""
        super().teardown_test_environment(**kwargs)
        config.leave_own_storage()
