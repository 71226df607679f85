"""A storage under the control of a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pdc.delivery.health import NAMES
from pdc.storage import Batch, Operation, Outcome, Snapshot, StorageError


class Recorder:
    """A storage that keeps the batches it received, after the test's action in `during`."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.during: Callable[[], object] = lambda: None
        self.outcomes: list[Outcome] = []

    identity = None

    def places(self) -> list[str]:
        """The same place for all."""
        return [""]

    def id(self) -> str:
        """No id."""
        return ""

    def apply(self, batch: Batch) -> Outcome:
        """Keep the batch."""
        self.batches.append(batch)
        self.during()
        return self.outcomes.pop(0) if self.outcomes else Outcome(set(), {}, {}, {})

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Return all metrics that were sent."""
        known = {update.name for batch in self.batches for update in batch.updates}
        return Snapshot(time.time(), {name: {} for name in known if names is None or name in names})

    def remove(self, batch: Batch) -> None:
        """Keep the batch."""
        self.batches.append(batch)

    def delete(self, names: Collection[str] | None = None) -> None:  # noqa: ARG002 - the contract has it
        """Run the test's action."""
        self.during()

    def set_deadline(self, deadline: float) -> None:
        """Always fast."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def sent(self, suffix: str) -> list[tuple[str, Any]]:
        """Kind and value of every operation that was sent for the fields of a suffix."""
        return [(kind.value, value) for kind, field, value in self.operations() if field.startswith(f"{suffix}:")]

    def total(self) -> float:
        """The sum of all additions to counters."""
        total: float = sum(value for _, value in self.sent("_total"))
        return total

    def operations(self) -> Iterator[Operation]:
        """Every operation, once even if it was sent again, in the order in which it counts, without pdc's own metrics."""
        for batch in {batch.sequence: batch for batch in self.batches}.values():
            for update in [update for update in batch.updates if update.name not in NAMES]:
                for _, operations in update.by_kind():
                    yield from operations


def fail() -> None:
    """Raise the error of a storage that is down."""
    raise StorageError("the storage is down")


def in_another_thread(function: Callable[[], Any]) -> None:
    """Call the function in another thread, and wait for its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the thread is stuck"
