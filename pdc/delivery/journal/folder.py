"""The journals of a storage on this host: this process's own, and the journals of dead processes."""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...cells import Journaled
from ...process import log
from ...process.files import Descriptor, is_private, is_shared_safely, own_folder, temporary_folder
from ...process.interruption import interruption, let_through
from ...storage import Storage, StorageError
from .layout import fingerprint
from .left import DAMAGED, LeftJournal
from .writer import Journal

SUFFIX = ".journal"
"""The end of the names of journals."""
NO_FOLDER = "no folder for temporary files may be written"


def default_folders() -> list[Path]:
    """The folders of journals unless `setup` names one; an empty list where there is no such folder.

    New journals go to the first folder. Others may have used the next ones.
    """
    chosen = [Path(os.environ.get(name, "")) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")]
    folders = [folder / "pdc" for folder in chosen if is_private(folder)]
    temporary = temporary_folder()
    return folders if temporary is None else [*folders, temporary / f"pdc-{os.geteuid()}"]


class Journals:
    """The journals of one storage on this host: this process's own, and the journals of dead processes.

    Without a folder they are in the default folders of the user that the process has at the time. All processes call the
    storage `identity`. It is one storage for processes that share one of the `places`, see `Storage.places`.
    """

    def __init__(self, folder: Path | None, identity: str, places: Callable[[], Sequence[str]] = lambda: [""]) -> None:
        self._chosen = folder
        self._places = places
        self._prefix = fingerprint(identity)
        self._pattern = f"{self._prefix}-*{SUFFIX}"
        self.own: Journal | None = None
        """The journal of this process, while it has one."""
        self.has_room = True
        """False once something had no room in it: later numbers wait, too, since a removal must come before them."""
        self._storage = ""
        self._cleared: set[Path] = set()

    @contextmanager
    def _opened(self, folder: Path, *, make: bool = False) -> Iterator[Descriptor]:
        if self._chosen is None and not is_shared_safely(folder.parent):
            raise PermissionError(f"expected {folder.parent} to be sticky, or not for others to write")
        with own_folder(folder, make=make) as opened:
            yield opened

    def _folders(self) -> list[Path]:
        return default_folders() if self._chosen is None else [self._chosen]

    def open(self, writer: str, sequence: int, in_flight: bool) -> None:
        """Begin this process's own. Where that is impossible, log once that there is no journal."""
        folders = self._folders()
        if not folders:
            self._log_missing(Path(), FileNotFoundError(errno.ENOENT, NO_FOLDER))
            return
        folder = folders[0]
        try:
            name = f"{self._prefix}-{time.time_ns():016x}-{writer}{SUFFIX}"  # in the order in which they are sent one day
            with self._opened(folder, make=True) as opened:
                own = Journal(folder / name, writer, opened, next(map(fingerprint, self._places()), ""))
            own.belongs_to(self._storage)
            own.begin(sequence)
            if not in_flight:
                own.end()
            self.own = own
        except OSError as error:
            let_through(error)
            self._log_missing(folder, error)

    def belongs_to(self, storage: str) -> None:
        """Note the id of the storage."""
        self._storage = storage
        if self.own is not None:
            self.own.belongs_to(storage)

    def adopt(self, journaled: Journaled) -> None:
        """Keep these numbers in the own journal from now on, if there is one in which all had room so far."""
        if self.has_room:
            self.take(journaled)

    def take(self, journaled: Journaled) -> bool:
        """The same, whatever had room so far; return whether these had."""
        own = self.own
        if own is None or journaled.offset:
            return own is not None
        try:
            own.adopt(journaled)
        except OSError as error:
            let_through(error)
            self.has_room = False
            own.forget_waiting()
            if not own.lost:  # or the next batch begins another one
                self._log_missing(own.path.parent, error)
            return False
        return True

    def release(self, journaled: Journaled) -> None:
        """Take these numbers out of the own journal."""
        if self.own is not None and journaled.offset:
            self.own.release(*journaled.detach())

    def close(self, *, keep: bool) -> Path | None:
        """End the own journal; return its path where there is one to `keep` for the next process of this host."""
        own, self.own = self.own, None
        return None if own is None else own.close(keep=keep)

    def after_fork_in_child(self) -> None:
        """Close the own journal, which stays the parent's."""
        if self.own is not None:
            self.own.detach()
            self.own = None

    def _log_missing(self, folder: Path, error: OSError) -> None:
        text = (
            "there is no journal, updates that are not sent yet go with the process when it is killed: %s; "
            "setup(journal=...) or PDC_JOURNAL names another folder"
        )
        log.defer_once(folder, logging.WARNING, text, error)

    def replay(self, storage: Storage) -> None:
        """Send the journals of dead processes, each once. Raises StorageError, and keeps the unsent rest.

        A file that cannot be read or sent for another reason holds up neither the others nor this process's updates.
        """
        handled = sys.exc_info()[1]
        for folder in self._folders():
            try:
                with self._opened(folder) as opened:
                    self._replay_all(folder, opened, storage, handled)
            except OSError as error:
                if interruption(error, handled) is not None:
                    raise
                if not isinstance(error, FileNotFoundError):
                    self._log_missing(folder, error)

    def _replay_all(self, folder: Path, opened: Descriptor, storage: Storage, handled: BaseException | None) -> None:
        names = sorted(os.listdir(opened.required()))  # noqa: PTH208 (a path may lead to another folder by now)
        if folder not in self._cleared:
            self._cleared.add(folder)
            self._clear(folder, opened, names)
        for name in fnmatch.filter(names, self._pattern):
            left = LeftJournal(folder / name, opened)
            try:
                left.replay(storage, self._places())
            except Exception as error:
                if isinstance(error, StorageError) or interruption(error, handled) is not None:
                    raise
                left.give_up(error)

    def _clear(self, folder: Path, opened: Descriptor, names: Sequence[str]) -> None:
        """Remove journals of other storages that nobody has sent for longer than they are kept."""
        others = [name for name in names if name.endswith((SUFFIX, DAMAGED)) and not fnmatch.fnmatch(name, self._pattern)]
        removed = sum(LeftJournal(folder / name, opened).remove_if_old() for name in others)
        if removed:
            text = "%d journals of metrics are removed, since nobody has sent them for 30 days: %s"
            log.defer(logging.WARNING, text, removed, folder)
