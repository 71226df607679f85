"""The time between two tries of a storage that is down."""

from __future__ import annotations

import logging
import random
import time
import weakref

from ..process import log
from ..storage import Storage, StorageError

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 15.0
SCRAPE_RETRY_SECONDS = 1.0
"""The time between two tries by scrapes. A scrape waits for the answer; the application does not."""


_ALL: list[weakref.ref[Backoff]] = []
"""The backoffs of this process. Several buffers may send to one storage, whose outage is logged once."""


class Backoff:
    """The time of the next try: after each failure the wait doubles. It has a jitter, which keeps processes apart."""

    def __init__(self) -> None:
        _ALL.append(weakref.ref(self, _ALL.remove))
        self.reset()

    def reset(self) -> None:
        """Start as with a storage that works."""
        self.error: Exception | None = None
        """The error of the last try; None where it went well."""
        self.storage: Storage | None = None
        """The storage that the error is about."""
        self.has_logged = False
        """True where the log has this outage, and not yet its end."""
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

    def failed(self, error: Exception, storage: Storage | None) -> None:
        """Wait longer than before. The first failure of a storage is logged."""
        if self.error is None:
            self.storage = storage
            self.has_logged = not self._loggers()
            if self.has_logged:
                log.defer(logging.WARNING, f"metrics cannot be sent and are kept in memory until they can: {error}")
        self.error = error
        now = time.monotonic()
        self._retry_at = now + self._seconds * random.uniform(0.5, 1.0)
        self._scrape_at = min(self._retry_at, now + SCRAPE_RETRY_SECONDS)
        self._seconds = min(self._seconds * 2, LAST_RETRY_SECONDS)

    def recovered(self) -> None:
        """Note that the storage works. The end of an outage is logged."""
        if self.error is not None:
            if loggers := self._loggers():
                log.defer(logging.WARNING, "metrics can be sent again; those kept in memory were")
            for logger in loggers:
                logger.has_logged = False
            self.reset()

    def _loggers(self) -> list[Backoff]:
        """The backoffs that logged the outage of this storage, whose end is not logged yet."""
        backoffs = [backoff for ref in list(_ALL) if (backoff := ref()) is not None]
        return [each for each in backoffs if each.has_logged and each.storage is self.storage]
