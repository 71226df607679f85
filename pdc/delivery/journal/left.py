"""Journals that dead processes left."""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from ...process import log
from ...process.files import Descriptor, expect_own_file, life
from ...process.interruption import let_through, tolerate
from ...storage import Storage, StorageError
from .layout import HEADER, MAGIC, OWNER, PLACE, REPLAYED, SENDING, STORAGE, fingerprint, text_of, written
from .reader import batches

DAMAGED = ".damaged"
"""The end of the names of files that are set aside."""
BEGIN_SECONDS = 60.0
"""A file without a header and without a lock is removed when it is that old: until then its owner may be about to begin it."""
FOREIGN_SECONDS = 30 * 86400.0
"""A journal that cannot be sent is removed when nothing was written to it for that time, also one of another storage."""


class LeftJournal:
    """A file that looks like a journal, and that a dead process may have left."""

    def __init__(self, path: Path, folder: Descriptor) -> None:
        self._path = path
        self._folder = folder

    def replay(self, storage: Storage, places: Sequence[str]) -> None:
        """Send the unsent part of it, unless its owner lives or it is of another storage."""
        file = Descriptor.open(self._path, os.O_RDWR, self._folder)
        try:
            if self._is_left(file):
                header = os.pread(file.number, HEADER, 0)
                if _is_of(header, storage, places):
                    self._send(file, storage, text_of(header, STORAGE))
                elif self._is_older(file, FOREIGN_SECONDS):
                    self._remove()
                    text = "a journal of metrics is removed, since nobody has sent it for %d days: %s"
                    log.defer(logging.WARNING, text, 30, self._path)
        finally:
            file.close()

    def remove_if_old(self) -> bool:
        """Remove the file where nobody can be going to send it any more; return True where that was done."""
        try:
            status = os.stat(self._path.name, dir_fd=self._folder.required(), follow_symlinks=False)
            if status.st_mtime >= time.time() - FOREIGN_SECONDS:
                return False
            file = Descriptor.open(self._path, os.O_RDWR, self._folder)
        except OSError as error:  # somebody else has removed it, or it is not this user's
            let_through(error)
            return False
        try:
            expect_own_file(os.fstat(file.number))
            file.lock()
            self._remove()
        except OSError as error:  # its owner lives
            let_through(error)
            return False
        finally:
            file.close()
        return True

    def give_up(self, error: Exception) -> None:
        """Set the file aside, since it cannot be read, or keep it where it may be read one day."""
        if isinstance(error, FileNotFoundError):  # somebody else has finished with it
            return
        if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, None):
            self._warn_once("a journal of metrics cannot be sent for now: %s: %s", self._path, str(error))
        else:
            self._set_aside(error)

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_suffix(DAMAGED)
        try:
            folder = self._folder.required()
            os.rename(self._path.name, aside.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as failed:
            let_through(failed)
            self._warn_once("a journal of metrics cannot be read (%s) nor set aside as %s: %s", str(error), aside, str(failed))
        else:
            log.defer(logging.WARNING, "a journal of metrics cannot be read and is set aside as %s: %s", aside, error)

    def _warn_once(self, text: str, *values: object) -> None:
        log.defer_once(self._path, logging.WARNING, text, *values)

    def _is_left(self, file: Descriptor) -> bool:
        """True where its owner is dead and nobody has sent it; it is locked then. Removes one that was never begun."""
        expect_own_file(os.fstat(file.number))
        if not _is_begun(file) and not self._is_older(file, BEGIN_SECONDS):  # its owner may be about to lock it
            return False
        try:
            file.lock()
        except BlockingIOError:
            return False
        if os.fstat(file.number).st_nlink == 0 or _is_alive(text_of(os.pread(file.number, HEADER, 0), OWNER)):
            return False
        is_begun = _is_begun(file)
        if not is_begun:
            self._remove()
        return is_begun

    def _is_older(self, file: Descriptor, seconds: float) -> bool:
        return os.fstat(file.number).st_mtime < time.time() - seconds

    def _remove(self) -> None:
        os.unlink(self._path.name, dir_fd=self._folder.required())

    def _send(self, file: Descriptor, storage: Storage, storage_id: str) -> None:
        content = written(file.number)
        if not any(content[REPLAYED * 8 : REPLAYED * 8 + 8]):
            _note_replayed(file, 1)
        for batch in list(batches(content, time.time())):
            if batch.final:  # it takes along the marks by which the storage knows the others
                os.pwrite(file.required(), bytes(len(MAGIC)), 0)  # there is nothing to send, even where it cannot be removed
                with tolerate(OSError):
                    self._remove()
            else:
                _note_sending(file, batch.sequence)
            try:
                outcome = storage.apply(batch._replace(storage=storage_id))
            except StorageError:
                if not batch.final:
                    _note_sending(file, 0)
                raise
            if not batch.final:
                _note_replayed(file, batch.sequence + 1)
                for name, reason in outcome.refused.items():
                    text = "counts of a killed process are lost: metric %r is refused: %s"
                    log.defer(logging.ERROR, text, name, reason)


def _is_of(header: bytes, storage: Storage, places: Sequence[str]) -> bool:
    """True for a journal of this storage: by the id, or by the place of its owner where either has no id."""
    written_for = text_of(header, STORAGE)
    found = storage.id() if written_for else ""
    return written_for == found if found else text_of(header, PLACE) in map(fingerprint, places)


def _is_begun(file: Descriptor) -> bool:
    return any(os.pread(file.number, len(MAGIC), 0))


def _is_alive(named: str) -> bool:
    """True where the owner of a journal lives, as far as this process can see: others may have closed its lock."""
    pid = named.partition(" ")[0]
    return pid.isdecimal() and life(int(pid)) == named


def _note_replayed(file: Descriptor, sequence: int) -> None:
    os.pwrite(file.required(), struct.pack("=Q", sequence), REPLAYED * 8)


def _note_sending(file: Descriptor, sequence: int) -> None:
    os.pwrite(file.required(), struct.pack("=QQ", sequence, int(time.time())), SENDING * 8)
