"""The storage that keeps nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import NoReturn

from . import USUAL, Batch, Outcome, Snapshot, Storage, StorageError


class Off(Storage):
    """Drops all updates and holds no metric: the storage where PDC_ENABLED is false."""

    identity = None

    def __str__(self) -> str:
        return "no storage, as PDC_ENABLED is false"

    def places(self) -> Sequence[str]:
        """None: no process finds it."""
        return ()

    def id(self) -> str:
        """Empty, as in a storage that holds nothing."""
        return ""

    def apply(self, batch: Batch) -> Outcome:  # noqa: ARG002 - of the contract
        """Drop the batch."""
        return USUAL

    def read(self, names: Collection[str] | None = None) -> Snapshot:  # noqa: ARG002 - of the contract
        """Find nothing."""
        return Snapshot(time.time(), {})

    def remove(self, batch: Batch) -> None:
        """There is nothing to remove."""

    def delete(self, names: Collection[str] | None = None) -> None:
        """There is nothing to delete."""

    def set_deadline(self, deadline: float) -> None:
        """No call takes time."""

    def close(self) -> None:
        """There is no connection."""

    @property
    def client(self) -> NoReturn:
        """Raises StorageError: there is no Redis."""
        raise StorageError(f"there is no Redis: metrics go to {self}")

    def connection(self) -> NoReturn:
        """Raise StorageError: there is no SQLite."""
        raise StorageError(f"there is no SQLite: metrics go to {self}")
