"""The time between two tries of a storage that is down."""

from __future__ import annotations

import logging
import random
import time

from ..process import log
from ..storage import StorageError

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 15.0
SCRAPE_RETRY_SECONDS = 1.0
"""The time between two tries by scrapes. A scrape waits for the answer; the application does not."""


class Backoff:
    """The time of the next try: after each failure the wait doubles. It has a jitter, which keeps processes apart."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start as with a storage that works."""
        self.error: Exception | None = None
        """The error of the last try; None where it went well."""
        self._seconds = FIRST_RETRY_SECONDS
        self.try_now()

    def try_now(self) -> None:
        """Wait no longer."""
        self._retry_at = self._scrape_at = 0.0

    @property
    def may_try(self) -> bool:
        """True when the wait is over."""
        return time.monotonic() >= self._retry_at

    def expect_scrape(self) -> None:
        """Raise StorageError, with the error of the last try, where a scrape has to wait."""
        if self.error is not None and time.monotonic() < self._scrape_at:
            raise StorageError(str(self.error)) from self.error

    def failed(self, error: Exception) -> None:
        """Wait longer than before. The first failure is logged."""
        if self.error is None:
            log.defer(logging.WARNING, f"metrics cannot be sent and are kept in memory until they can: {error}")
        self.error = error
        now = time.monotonic()
        self._retry_at = now + self._seconds * random.uniform(0.5, 1.0)
        self._scrape_at = min(self._retry_at, now + SCRAPE_RETRY_SECONDS)
        self._seconds = min(self._seconds * 2, LAST_RETRY_SECONDS)

    def recovered(self) -> None:
        """Note that the storage works. The end of an outage is logged."""
        if self.error is not None:
            log.defer(logging.WARNING, "metrics can be sent again; those kept in memory were")
            self.reset()
