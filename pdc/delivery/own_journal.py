"""The journal of this process, as its sender uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..cells import Cell, Entry, Journaled, JournaledOperation, zeros
from ..storage import Storage
from .health import NAMES

if TYPE_CHECKING:
    from .journal import Journals


class OwnJournal:
    """The journal of this process; without one nothing is done here.

    `entries` gives what belongs in it: all that has unsent updates, in the order in which they apply.
    """

    def __init__(self, entries: Callable[[], Iterable[Entry]]) -> None:
        self._entries = entries
        self._journals: Journals | None = None
        self._next_try = 0.0
        """The time of `time.monotonic` from which a journal without room is tried again."""

    def use(self, journals: Journals | None) -> None:
        """Use these from now on; None for no journal."""
        self._journals = journals

    @property
    def is_used(self) -> bool:
        """True where this process may have a journal."""
        return self._journals is not None

    @property
    def is_open(self) -> bool:
        """True while this process has a journal."""
        return self._journals is not None and self._journals.own is not None

    @property
    def is_complete(self) -> bool:
        """True while this process has a journal in which everything had room."""
        return self._journals is not None and self._journals.own is not None and self._journals.has_room

    @property
    def path(self) -> Path | None:
        """The path of the journal, if it is open."""
        return self._journals.own.path if self._journals is not None and self._journals.own is not None else None

    def adopt(self, entry: Entry | JournaledOperation) -> None:
        """Put the entry into the journal."""
        if self._journals is not None and self._journals.own is not None:
            for journaled in entry.journaled():
                self._journals.adopt(journaled)

    def release(self, journaled: Journaled) -> None:
        """Take these numbers out of the journal."""
        if self._journals is not None:
            self._journals.release(journaled)

    def open(self, writer: str, sequence: int, in_flight: bool, *, at_once: bool = False) -> None:
        """Begin the journal, with everything that is unsent; one that had no room for something takes that now, if it has.

        All of it is looked at then. So unless it must be `at_once`, tries without success take a hundredth of the time at most.
        """
        journals, now = self._journals, time.monotonic()
        if journals is None or self.is_complete or (journals.own is not None and now < self._next_try and not at_once):
            return
        journals.has_room = False  # for others, until all of this is in: a removal must come before later counts
        if journals.own is None:
            journals.open(writer, sequence, in_flight)
        if all(map(journals.take, self._journaled())):
            journals.has_room = True
            try:
                for journaled in self._journaled():  # some may have come meanwhile
                    journals.adopt(journaled)
            except BaseException:  # of a handler: the next try goes on
                journals.has_room = False
                raise
        else:
            self._next_try = now + (time.monotonic() - now) * 100

    def without_room(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of the entries that belong in the open journal, and are not, or not wholly, in it."""
        if not self.is_open:
            return []
        alive = [entry for entry in dict.fromkeys(entries) if not (isinstance(entry, Cell) and entry.dropped)]
        belonging = [entry for entry in alive if not entry.metric.family.live and entry.metric.family.name not in NAMES]
        return [entry for entry in belonging if any(not part.offset for part in entry.journaled())]

    def is_sound(self) -> bool:
        """True where the next process would find everything that is in the journal."""
        return self._journals is None or self._journals.own is None or self._journals.own.is_sound()

    @property
    def is_replayed(self) -> bool:
        """True where another process sends the journal, since it took this one for dead."""
        return self._journals is not None and self._journals.own is not None and self._journals.own.is_replayed

    def close(self, *, keep: bool) -> Path | None:
        """Continue in memory without the journal. Return its path where it is kept for the next process."""
        if self._journals is None:
            return None
        if not keep:  # first: the next journal takes nothing that is still in this one when an exception comes
            self._move_to_memory()
        path = self._journals.close(keep=keep)
        self._move_to_memory()
        return path

    def _move_to_memory(self) -> None:
        for journaled in self._journaled():
            if journaled.offset:
                journaled.move(zeros(journaled.size), 0)

    def _journaled(self) -> list[Journaled]:
        return [journaled for entry in self._entries() for journaled in entry.journaled()]

    def begin(self, sequence: int) -> None:
        """Note that this batch is in flight."""
        if self._journals is not None and self._journals.own is not None:
            self._journals.own.begin(sequence)

    def failed(self) -> None:
        """Note that the batch in flight is not being sent for now."""
        if self._journals is not None and self._journals.own is not None:
            self._journals.own.failed()

    def end(self) -> None:
        """Note that no batch is in flight."""
        if self._journals is not None and self._journals.own is not None:
            self._journals.own.end()

    def belongs_to(self, storage: str) -> None:
        """Note the id of the storage, where it is known."""
        if self._journals is not None and storage:
            self._journals.belongs_to(storage)

    def replay(self, storage: Storage) -> None:
        """Send what dead processes of this host left. Raises StorageError."""
        if self._journals is not None:
            self._journals.replay(storage)

    def after_fork_in_child(self) -> None:
        """Leave the journal to the parent."""
        if self._journals is not None:
            self._journals.after_fork_in_child()
