"""Helpers of the tests of journals: processes that leave a journal, and storages in memory."""

from __future__ import annotations

import json
import re
import signal
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

from helpers import Run

import pdc
import pdc.exposition
from pdc.storage import REMOVALS, Batch, Kind, Operation, Outcome, Snapshot, Stamped, StorageError
from pdc.storage.labels import Selectors, series_of


class Journal:
    """The journals of a storage, and the processes that write and send them."""

    def __init__(self, run_script: Run, storage: dict[str, Any], folder: Path) -> None:
        self._run_script = run_script
        self.options = {**storage, "journal": str(folder)}
        self.folder = folder

    def leave(self, work: str, **options: Any) -> str:
        """Let a process do this work, have it killed, and return its log."""
        source = f"""
import logging, os, signal
logging.basicConfig(format="%(message)s")
setup(**{ ({"flush_interval": 600} | options)!r})
hits = pdc.Counter("hits", "Hits.", ["path"])
{textwrap.dedent(work)}
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = self._run_script(source, storage=self.options, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stderr

    def send(self) -> dict[tuple[str, ...], float]:
        """Send as the next process, and return the series of the counter."""
        pdc.setup(**self.options)
        pdc.flush()
        return {
            tuple(sample.labels.values()): sample.value
            for metric in pdc.exposition.collect()
            for sample in metric.samples
            if sample.name == "hits_total"
        }

    @property
    def files(self) -> list[str]:
        """The kinds of files in the folder."""
        return sorted(path.suffix for path in self.folder.iterdir())


class Model:
    """A storage in memory that can be copied."""

    identity = "model"

    def places(self) -> list[str]:
        """The same place for all."""
        return [""]

    def id(self) -> str:
        """No id."""
        return ""

    def set_deadline(self, deadline: float) -> None:
        """Always fast."""

    def __init__(self, values: dict[str, Any] | None = None, last: int = 0) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.last = last

    def copy(self) -> Model:
        """A copy with the same state."""
        return Model(self.values, self.last)

    def apply(self, batch: Batch) -> Outcome:
        """Apply a batch, once, in one step."""
        values = dict(self.values)
        if batch.sequence > self.last:
            for update in batch.updates:
                for _, operations in update.by_kind():
                    for operation in operations:
                        _do(values, update.name, operation)
        self.values, self.last = values, max(self.last, batch.sequence)
        return Outcome(set(), {}, {}, {})

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Return nothing: these tests do not read."""
        raise NotImplementedError(names)

    def remove(self, batch: Batch) -> None:
        """Do nothing: these tests do not remove."""
        raise NotImplementedError(batch)

    def delete(self, names: Collection[str] | None = None) -> None:
        """Do nothing: these tests do not delete."""
        raise NotImplementedError(names)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def state(self) -> dict[str, Any]:
        """The differences from an unused storage, except for times and pdc's own metrics."""
        untold = re.compile("pdc_|.* _created:")
        return {place: value for place, value in self.values.items() if value not in (0, "{}") and not untold.match(place)}


def _do(values: dict[str, Any], name: str, operation: Operation) -> None:
    kind, field, value = operation
    place = f"{name} {field}"
    if kind in REMOVALS:
        wanted = Selectors([json.loads(field)])
        for known in [known for known in values if known.startswith(f"{name} ")]:
            if wanted.match_text(series_of(known.removeprefix(f"{name} ")) or ""):
                del values[known]
    elif kind is Kind.ADD:
        values[place] = values.get(place, 0.0) + value
    elif kind is not Kind.INIT or place not in values:
        values[place] = value.number if isinstance(value, Stamped) else value


class OfSeveral(Model):
    """A model that distinguishes writers."""

    def __init__(self) -> None:
        super().__init__()
        self._sequences: dict[str, int] = {}

    def apply(self, batch: Batch) -> Outcome:
        """Apply a batch once for each writer."""
        self.last = self._sequences.get(batch.writer, 0)
        outcome = super().apply(batch)
        self._sequences[batch.writer] = self.last
        return outcome


def down(_: Batch) -> Outcome:
    """Apply nothing, as a storage that is down."""
    raise StorageError("the storage is down")
