"""The numbers of this process that are not in the storage yet, in a file that outlives it.

The file is mapped into memory and an update is a store to that memory: it makes no system call, and the kernel keeps what
was stored when the process is killed. The numbers of each series say what it gathered, and what of that went into a batch;
what is to be removed, and texts, have a record each. The header says which batch is in flight. So whoever finds the file
knows, wherever its owner stopped, what the storage may have and what it cannot have, and sends the same batches again.

A lock on the file (`flock`) shows that its owner lives; it goes with the process, however that ends. Since others may close
its descriptor, the header also names the owner, and the storage, since another one may have the same name elsewhere.

Only files of this user are read, in folders that nobody else may write: what is in a journal is counted.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import logging
import mmap
import os
import struct
import sys
import threading
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import log
from .cells import (
    FREE_THREADED,
    CounterCell,
    HistogramCell,
    Journaled,
    JournaledOperation,
    NumericCell,
    ProcessGaugeCell,
    SharedGaugeCell,
    SummaryCell,
    wait_for_threads,
)
from .family import Family
from .files import Descriptor, close_mappings, expect_own_file, is_private, is_shared_safely, life, longest_file, own_folder
from .interruption import interruption
from .storage import (
    FORGET_VALUES_SECONDS,
    FORGET_WRITER_SECONDS,
    REMOVALS,
    Batch,
    Kind,
    Operation,
    Selectors,
    Stamped,
    Storage,
    StorageError,
    Update,
    series_of,
    updated,
)

MAGIC = b"pdcjrnl7"
SUFFIX, DAMAGED = ".journal", ".damaged"
BEGIN_SECONDS = 60.0
"""A file that nobody locks and nothing was written to is forgotten after that time: its owner may be about to."""
FOREIGN_SECONDS = 30 * 86400.0
"""A journal that cannot be sent is removed when nothing was written to it for that time, also one of another storage."""
TOUCH_SECONDS = 60.0
"""How often the time of a file is renewed at most, so that nobody takes it for an old one."""
LAST, IN_FLIGHT, SINCE, SENDING, SENT_AT, WRITTEN, REPLAYED = range(1, 8)
"""Which numbers of 8 bytes in the header are the last sequence that was used, the one in flight (0: none), when the last one
was begun (Unix seconds), the one that somebody, not only the owner, is sending right now (0: none), since when, the bytes
that are written, and whether anybody else has begun to send what is in the file."""
WRITER, STORAGE, PLACE, OWNER = slice(64, 96), slice(96, 128), slice(128, 160), slice(160, 248)
"""Where in the header the writer is, the id of the storage and the place of this process, as a number, and the owner."""
CLOCK = 248
"""Where in the header the time of day is that the owner had when its `time.monotonic` was 0: that starts anew with the host."""
HEADER = 256
"""How long it is."""
FIRST_BYTES = 4 * 1024 * 1024
"""How long a file is at first, and what is mapped of it: without room on the disk, which is reserved in small steps."""
MOST_BYTES = 256 * 1024 * 1024
"""How long a file may become: whoever sends it reads all of it. What finds no room is in memory."""
GROWTH = 4
"""Each further mapping is so many times as long as all before it: there are a handful, whatever the number of series."""
NO_FOLDER = "no folder for temporary files may be written; setup(journal=...) or PDC_JOURNAL names another"
UNIT = mmap.ALLOCATIONGRANULARITY
"""Of which mappings are made."""
MOST_RESERVED = 1024 * 1024
"""The longest of the steps in which room on the disk is reserved; the first is a page, then they double."""
VIEW = 0 if FREE_THREADED else 2048
"""Bytes of a mapping after which a new view begins: places in so short a one are integers that Python has ready. Without the
GIL each record has a view of its own: that would not be safe for threads that share one."""
MOST_RELEASED = 16 if FREE_THREADED else 0
"""How many records that were released are not used again yet."""
ALIGNMENT = 16
RECORD = struct.Struct("=dd")
"""How a record begins: its bytes in all, negative while it does not count, and how many numbers it has. The numbers follow,
then a text, then zeros."""
KINDS: dict[str, type[NumericCell]] = {"counter": CounterCell, "summary": SummaryCell}


_complaints: set[Path] = set()
"""The folders and journals that could not be used, of which the log knows."""


class DamagedJournal(Exception):  # noqa: N818 - the message says what is wrong with it
    """A file is no journal of this version, or not all of one."""


def default_folders() -> list[Path]:
    """Where journals are unless `setup` says otherwise: new ones in the first folder, others may have used the next ones.

    There may be none.
    """
    import tempfile  # only here, as it takes long to import

    chosen = [Path(os.environ.get(name, "")) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")]
    folders = [folder / "pdc" for folder in chosen if is_private(folder)]
    with suppress(FileNotFoundError):  # there is no folder for temporary files, as where all is read-only
        folders.append(Path(tempfile.gettempdir(), f"pdc-{os.geteuid()}"))
    return folders


class Journals:
    """The journals of one storage on this host: this process's own, and those that dead processes left.

    Without a folder they are in the default ones of the user that the process has at the time. The storage is called
    `identity` by all processes, and means the same to those that share one of the `places`, see `Storage.places`.
    """

    def __init__(self, folder: Path | None, identity: str, places: Callable[[], Sequence[str]] = lambda: [""]) -> None:
        self._chosen = folder
        self._places = places
        self._prefix = _number_of(identity)
        self._pattern = f"{self._prefix}-*{SUFFIX}"
        self._own: Journal | None = None
        self._storage = ""
        self._cleared: set[Path] = set()

    @contextmanager
    def _opened(self, folder: Path, *, make: bool = False) -> Iterator[Descriptor]:
        if self._chosen is None and not is_shared_safely(folder.parent):
            raise PermissionError(
                f"expected {folder.parent} to be sticky, or not for others to write; setup(journal=...) or PDC_JOURNAL names "
                "another folder"
            )
        with own_folder(folder, make=make) as opened:
            yield opened

    def _folders(self) -> list[Path]:
        return default_folders() if self._chosen is None else [self._chosen]

    @property
    def path(self) -> Path | None:
        """Where this process's own is, if it has one."""
        return None if self._own is None else self._own.path

    @property
    def is_open(self) -> bool:
        """Whether this process has one."""
        return self._own is not None

    def open(self, writer: str, sequence: int, in_flight: bool) -> None:
        """Begin this process's own, unless that is impossible: the log then says once that there is none."""
        folders = self._folders()
        if not folders:
            self._complain(Path(), FileNotFoundError(errno.ENOENT, NO_FOLDER))
            return
        folder = folders[0]
        try:
            name = f"{self._prefix}-{time.time_ns():016x}-{writer}{SUFFIX}"  # in the order in which they are sent one day
            with self._opened(folder, make=True) as opened:
                own = Journal(folder / name, writer, opened, next(map(_number_of, self._places()), ""))
            own.belongs_to(self._storage)
            own.begin(sequence)
            if not in_flight:
                own.end()
            self._own = own
        except OSError as error:
            self._complain(folder, error)

    def belongs_to(self, storage: str) -> None:
        """Note the id of the storage."""
        self._storage = storage
        if self._own is not None:
            self._own.belongs_to(storage)

    def adopt(self, journaled: Journaled) -> None:
        """Have these numbers in the own journal from now on, if there is one."""
        own = self._own
        if own is not None and not journaled.offset:
            try:
                own.adopt(journaled)
            except OSError as error:
                if not own.lost:  # or the next batch begins another one
                    self._complain(own.path.parent, error)

    def release(self, journaled: Journaled) -> None:
        """Take these numbers out of the own journal."""
        if self._own is not None and journaled.offset:
            self._own.release(*journaled.detach())

    def is_sound(self) -> bool:
        """Whether the next process would find all that is in the own journal, and no other one sends it before."""
        return self._own is None or self._own.is_sound()

    @property
    def is_replayed(self) -> bool:
        """Whether another process has begun to send what is in the own journal, taking this one for dead."""
        return self._own is not None and self._own.is_replayed

    def begin(self, sequence: int) -> None:
        """Note that this batch is in flight; the rows say what is in it."""
        if self._own is not None:
            self._own.begin(sequence)

    def failed(self) -> None:
        """Note that the batch in flight is not being sent for now."""
        if self._own is not None:
            self._own.failed()

    def end(self) -> None:
        """Note that no batch is in flight; the rows say what is in the storage."""
        if self._own is not None:
            self._own.end()

    def close(self, *, keep: bool) -> Path | None:
        """End the own journal; return its path where there is one to `keep` for the next process of this host."""
        own, self._own = self._own, None
        return None if own is None else own.close(keep=keep)

    def after_fork_in_child(self) -> None:
        """Leave the own journal to the parent."""
        if self._own is not None:
            self._own.detach()
            self._own = None

    def _complain(self, folder: Path, error: OSError) -> None:
        if folder not in _complaints:
            _complaints.add(folder)
            log.defer(
                logging.WARNING,
                "there is no journal, updates that are not sent yet go with the process when it is killed: %s",
                error,
            )

    def replay(self, storage: Storage) -> None:
        """Send what dead processes left, each file once. Raises StorageError, and keeps what was not sent.

        A file that cannot be read or sent for another reason is no business of the others, nor of this process's updates.
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
                    self._complain(folder, error)

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
        """Remove journals that nobody has sent for longer than they are kept, whatever storage they are for."""
        others = [name for name in names if name.endswith((SUFFIX, DAMAGED)) and not fnmatch.fnmatch(name, self._pattern)]
        removed = sum(LeftJournal(folder / name, opened).remove_if_old() for name in others)
        if removed:
            text = "%d journals of metrics are removed, since nobody has sent them for 30 days: %s"
            log.defer(logging.WARNING, text, removed, folder)


def _number_of(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}{zlib.adler32(text.encode()):08x}"


def _say_once(path: Path, message: str) -> None:
    if path not in _complaints:
        _complaints.add(path)
        log.defer(logging.WARNING, "%s", message)


class LeftJournal:
    """A file that looks like a journal, and that a dead process may have left."""

    def __init__(self, path: Path, folder: Descriptor) -> None:
        self._path = path
        self._folder = folder

    def replay(self, storage: Storage, places: Sequence[str]) -> None:
        """Send what is in it, unless its owner lives or it is of another storage."""
        file = Descriptor.open(self._path, os.O_RDWR, self._folder)
        try:
            if self._is_left(file):
                header = os.pread(file.number, HEADER, 0)
                if _is_of(header, storage, places):
                    self._send(file, storage, _text(header, STORAGE))
                elif self._is_older(file, FOREIGN_SECONDS):
                    self._remove()
                    text = "a journal of metrics is removed, since nobody has sent it for %d days: %s"
                    log.defer(logging.WARNING, text, 30, self._path)
        finally:
            file.close()

    def remove_if_old(self) -> bool:
        """Remove the file where nobody can be going to send it any more; return whether that was done."""
        try:
            status = os.stat(self._path.name, dir_fd=self._folder.required(), follow_symlinks=False)
            if status.st_mtime >= time.time() - FOREIGN_SECONDS:
                return False
            file = Descriptor.open(self._path, os.O_RDWR, self._folder)
        except OSError:  # somebody else has removed it, or it is not this user's
            return False
        try:
            expect_own_file(os.fstat(file.number))
            file.lock()
            self._remove()
        except OSError:  # its owner lives
            return False
        finally:
            file.close()
        return True

    def give_up(self, error: Exception) -> None:
        """Set the file aside, since it cannot be read, or leave it where it may be read one day."""
        if isinstance(error, FileNotFoundError):  # somebody else has finished with it
            return
        if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, None):
            _say_once(self._path, f"a journal of metrics cannot be sent for now: {self._path}: {error}")
        else:
            self._set_aside(error)

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_suffix(DAMAGED)
        try:
            folder = self._folder.required()
            os.rename(self._path.name, aside.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as failed:
            _say_once(self._path, f"a journal of metrics cannot be read ({error}) nor set aside as {aside}: {failed}")
        else:
            log.defer(logging.WARNING, "a journal of metrics cannot be read and is set aside as %s: %s", aside, error)

    def _is_left(self, file: Descriptor) -> bool:
        """Whether its owner is dead and nobody has sent it; it is locked then. Removes one that was never begun."""
        expect_own_file(os.fstat(file.number))
        try:
            file.lock()
        except BlockingIOError:
            return False
        header = os.pread(file.number, HEADER, 0)
        if os.fstat(file.number).st_nlink == 0 or _is_alive(_text(header, OWNER)):
            return False
        begun = any(header[: len(MAGIC)])
        if not begun and self._is_older(file, BEGIN_SECONDS):
            self._remove()
        return begun

    def _is_older(self, file: Descriptor, seconds: float) -> bool:
        return os.fstat(file.number).st_mtime < time.time() - seconds

    def _remove(self) -> None:
        os.unlink(self._path.name, dir_fd=self._folder.required())

    def _send(self, file: Descriptor, storage: Storage, storage_id: str) -> None:
        os.pwrite(file.number, struct.pack("=Q", 1), REPLAYED * 8)
        for batch in list(batches(written(file.number), time.time())):
            if batch.leaving:  # it takes along the marks by which the storage knows the others
                os.pwrite(file.required(), bytes(len(MAGIC)), 0)  # there is nothing to send, even where it cannot be removed
                with suppress(OSError):
                    self._remove()
            else:
                _note_sending(file, batch.sequence)
            try:
                storage.apply(batch._replace(storage=storage_id))
            except StorageError:
                if not batch.leaving:
                    _note_sending(file, 0)
                raise


def _is_of(header: bytes, storage: Storage, places: Sequence[str]) -> bool:
    """Whether a journal is of this storage: by the id, or by the place of its owner where either has no id."""
    written_for = _text(header, STORAGE)
    found = storage.id() if written_for else ""
    return written_for == found if found else _text(header, PLACE) in map(_number_of, places)


def _text(header: bytes, place: slice) -> str:
    return header[place].rstrip(b"\0").decode("ascii", "replace")


def _is_alive(named: str) -> bool:
    """Whether the owner of a journal lives, as far as this process can see: others may have closed its lock."""
    pid = named.partition(" ")[0]
    return pid.isdecimal() and life(int(pid)) == named


def _note_sending(file: Descriptor, sequence: int) -> None:
    os.pwrite(file.required(), struct.pack("=QQ", sequence, int(time.time())), SENDING * 8)


class Claim:
    """What a thread has that adopts numbers, until it has adopted all that wait."""

    __slots__ = ("is_used", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.is_used = False


class Journal:
    """The journal that this process writes: records, each a family or the rows of one series, one after the other.

    Addresses are counted within the last mapping, in which all that is new goes.
    """

    def __init__(self, path: Path, writer: str, folder: Descriptor, place: str) -> None:
        self.path = path
        self._file = Descriptor.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, folder)
        self._start = self._end = self._reserved = self._next = self._view_at = 0
        self._families: dict[Family, int] = {}
        self._free: defaultdict[tuple[float, float], list[tuple[memoryview[float], int]]] = defaultdict(list)
        self._released: deque[tuple[memoryview[float], int]] = deque()
        self._serial = 0
        self._waiting: deque[Journaled] = deque()
        self._claim: dict[str, Claim] = {}
        """That of the thread which adopts. Unlike a lock, it is not lost where an exception keeps the thread from going on."""
        self.lost = False
        """Whether there are numbers that could not go in, since others closed the file."""
        self._touched = time.monotonic()
        try:
            self._file.lock()
            self._grow(HEADER)
            self._reserve(HEADER)
        except OSError:
            self._remove()
            self.detach()
            raise
        self._first = self._mapping
        self._header = memoryview(self._first)[: WRITER.start].cast("Q")
        self._mapping[WRITER] = _field(writer, WRITER)
        self._mapping[PLACE] = _field(place, PLACE)
        self._mapping[OWNER] = _field(life(os.getpid()), OWNER)
        self._note_clock()
        self._header[WRITTEN] = self._next = HEADER
        self._mapping[: len(MAGIC)] = MAGIC

    def belongs_to(self, storage: str) -> None:
        """Note the id of the storage; empty where nobody knows it yet."""
        self._first[STORAGE] = _field(storage, STORAGE)

    def adopt(self, journaled: Journaled) -> None:
        """Keep these numbers from now on. Never waits for another thread. Raises OSError where the disk is full."""
        self._waiting.append(journaled)
        me = threading.get_ident()
        while self._waiting:
            claim = self._claim.setdefault("claim", Claim(me))
            if claim.thread != me or claim.is_used:  # another thread's, or that of a call which this one interrupts
                return
            try:
                claim.is_used = True
                if self._claim.get("claim") is claim:  # no handler has used it a moment ago
                    self._adopt_waiting()
            finally:
                claim.is_used = False
                if self._claim.get("claim") is claim:
                    self._claim.clear()

    def _adopt_waiting(self) -> None:
        while self._waiting:
            journaled = self._waiting.popleft()
            if not journaled.offset and not journaled.dropped:
                family = journaled.family
                if family not in self._families:
                    _set_valid(*self._write(family.meta, 0), counts=True)
                    self._families[family] = len(self._families)
                self._serial += 1
                memory, offset = self._write(f"[{self._families[family]},{self._serial},{journaled.key}]", journaled.size)
                journaled.move(memory, offset)
                _set_valid(memory, offset, counts=True)

    def _write(self, text: str, count: int) -> tuple[memoryview[float], int]:
        """Write a record that does not count yet; return where its numbers are, which are 0."""
        content = bytes(count * 8) + text.encode()
        size = -(-(RECORD.size + len(content)) // ALIGNMENT) * ALIGNMENT
        memory, offset = self._room(size, count)
        mapping: mmap.mmap = memory.obj  # type: ignore[assignment]
        start = len(mapping) - memory.nbytes + offset * 8  # a view ends where its mapping does
        mapping[start : start + size - RECORD.size] = content.ljust(size - RECORD.size, b"\0")
        memory[offset - 1], memory[offset - 2] = count, -size
        return memory, offset

    def _room(self, size: int, count: int) -> tuple[memoryview[float], int]:
        if free := self._free[size, count]:
            return free.pop()
        left = len(self._mapping) - self._next
        if left < size:
            if left:
                self._reserve(RECORD.size)
            mapping, start = self._mapping, self._next
            self._grow(size)
            if left:
                RECORD.pack_into(mapping, start, -left, 0)
        self._reserve(size)
        if self._next - self._view_at >= VIEW:
            self._view()
        offset = (self._next - self._view_at + RECORD.size) // 8
        self._next += size
        self._header[WRITTEN] = self._start + self._next
        return self._rows, offset

    def _grow(self, least: int) -> None:
        """Go on in a new mapping of at least so many bytes; a shorter one where files or memory are limited. Raises OSError."""
        longest = min(longest_file(), MOST_BYTES)
        least, room = -(-least // UNIT), (longest - self._end) // UNIT
        units = min(max((GROWTH - 1) * self._end // UNIT, FIRST_BYTES // UNIT, least), room)
        if units < least:
            raise OSError(errno.EFBIG, f"a journal of this process may not be longer than {longest} bytes")
        while True:
            try:
                return self._map(units * UNIT)
            except OSError:
                if units == least:
                    raise
            units = max(units // 2, least)

    def _map(self, size: int) -> None:
        os.ftruncate(self._required(), self._end + size)
        self._mapping = self._file.map(self.path, self._end, self._end + size)
        self._start, self._end = self._end, self._end + size
        self._reserved = self._next = 0
        self._view()

    def _reserve(self, size: int) -> None:
        """See that the next bytes have room on the disk. Raises OSError."""
        least = self._next + size
        if least > self._reserved:
            step = min(max(self._start + self._reserved, mmap.PAGESIZE), MOST_RESERVED)
            end = min(max(self._reserved + step, least), len(self._mapping))
            end = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
            self._required()
            self._file.reserve(self._start + self._reserved, self._start + end)
            self._reserved = end

    def _required(self) -> int:
        status = self._file.status()
        self.lost |= status is None or status.st_size < self._end
        if self.lost:
            raise OSError(
                errno.EBADF, f"expected descriptor {self._file.number} to be all of {self.path}, others closed or cut it"
            )
        return self._file.number

    def _view(self) -> None:
        """Begin a view of the mapping, at the next record."""
        self._view_at = self._next
        self._rows = memoryview(self._mapping)[self._next :].cast("d")

    def release(self, memory: memoryview[float], offset: int) -> None:
        """Forget numbers that have been let go of."""
        _set_valid(memory, offset, counts=False)
        if not MOST_RELEASED:
            self._free[-memory[offset - 2], memory[offset - 1]].append((memory, offset))
            return
        self._released.append((memory, offset))
        if len(self._released) > MOST_RELEASED:
            self._make_free()

    def _make_free(self) -> None:
        """Let records be used again that were released, once no thread is in the middle of an update there."""
        released = []
        while self._released:
            try:
                released.append(self._released.popleft())
            except IndexError:  # another thread is at it, too
                break
        wait_for_threads()
        for memory, offset in released:
            self._free[-memory[offset - 2], memory[offset - 1]].append((memory, offset))

    def begin(self, sequence: int) -> None:
        """Note that this batch is in flight; the rows say what is in it."""
        self._note_clock()
        self._header[LAST] = sequence
        self._header[SINCE] = self._header[SENT_AT] = int(time.time())
        self._header[SENDING] = sequence
        self._header[IN_FLIGHT] = sequence

    def _note_clock(self) -> None:
        struct.pack_into("=d", self._first, CLOCK, time.time() - time.monotonic())

    def failed(self) -> None:
        """Note that the batch in flight is not being sent for now."""
        self._header[SENDING] = 0

    def end(self) -> None:
        """Note that no batch is in flight; the rows say what is in the storage."""
        self._header[IN_FLIGHT] = 0
        self._header[SENDING] = 0

    @property
    def is_replayed(self) -> bool:
        """Whether another process has begun to send it."""
        return bool(self._header[REPLAYED])

    def is_sound(self) -> bool:
        """Whether it is where the next process finds it, as this user's, and nobody sent it. Takes a lost lock again."""
        status = self._file.status() or self._lock_again()
        if status is None or self._is_truncated(status):
            return False
        if self.lost or not status.st_nlink or status.st_uid != os.geteuid() or self.is_replayed:
            return False
        if time.monotonic() >= self._touched + TOUCH_SECONDS and self._file.status() is not None:
            self._touched = time.monotonic()
            os.utime(self._file.number)
        return True

    def _is_truncated(self, status: os.stat_result) -> bool:
        """Whether others made the file shorter; it is given its length again, or a look at the mapping would be a SIGBUS."""
        if status.st_size >= self._end:
            return False
        os.truncate(self.path if self._file.status() is None else self._file.number, self._end)
        _say_once(self.path, f"a journal of metrics was truncated by another program, what it held is lost: {self.path}")
        return True

    def _lock_again(self) -> os.stat_result | None:
        """Open and lock the file once more, since others closed it; return its status, None where it is gone."""
        try:
            again = Descriptor.open(self.path, os.O_RDWR)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            return None
        status = os.fstat(again.number)
        if not self._file.same(status):
            again.close()
            return None
        try:
            again.lock()
        except OSError:  # somebody is just looking whether this process lives: next time, then
            again.close()
        else:
            self._file = again
        return status

    def close(self, *, keep: bool) -> Path | None:
        """Let go of the file; `keep` it for the next process of this host, and return where, or make it void."""
        status = self._file.status()
        if keep:
            self._first[OWNER] = bytes(OWNER.stop - OWNER.start)  # nobody must wait for the end of this process
        else:
            self._header[0] = 0  # whoever finds it, where it cannot be removed, has nothing to send
            self._remove()
        self.detach()
        return self.path if keep and status is not None and status.st_nlink else None

    def _remove(self) -> None:
        """Remove the file, if that is still this user's to do."""
        with suppress(OSError), own_folder(self.path.parent) as folder:
            if self._file.same(os.stat(self.path.name, dir_fd=folder.required(), follow_symlinks=False)):
                os.unlink(self.path.name, dir_fd=folder.required())

    def detach(self) -> None:
        """Close the file; the mapping goes with the last cell that has its numbers there."""
        self._file.close()
        close_mappings()


def _field(text: str, place: slice) -> bytes:
    return text.encode().ljust(place.stop - place.start, b"\0")


def _set_valid(memory: memoryview[float], offset: int, *, counts: bool) -> None:
    """Say whether the record with its numbers there counts."""
    size = abs(memory[offset - 2])
    memory[offset - 2] = size if counts else -size


def written(file: int) -> bytes:
    """The bytes of a journal that are written: the rest of the file may be long, and has nothing in it."""
    header = os.pread(file, HEADER, 0)
    if len(header) < HEADER:
        return header
    length = min(struct.unpack_from("=Q", header, WRITTEN * 8)[0], MOST_BYTES)
    with os.fdopen(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read(min(length, os.fstat(file).st_size))


def batches(content: bytes, now: float) -> Iterator[Batch]:
    """What a journal of that content has to send, in batches as its owner would have. Raises DamagedJournal.

    `now` is the time in Unix seconds: by when the storage has counted the values of a dead process as they were last sent,
    they are not sent any more. Neither is a batch whose sender was killed in the middle of it, once the storage may have
    forgotten whether it has that: what nobody can know shall not count twice.
    """
    if len(content) < HEADER or content[: len(MAGIC)] != MAGIC:
        raise DamagedJournal(f"expected a file that starts with {MAGIC!r}, got {content[: len(MAGIC)]!r}")
    header = memoryview(content)[: WRITER.start].cast("Q")
    if header[WRITTEN] > len(content):
        raise DamagedJournal(f"expected {header[WRITTEN]} bytes, got {len(content)}")
    last, in_flight = header[LAST], header[IN_FLIGHT]
    writer = content[WRITER].rstrip(b"\0").decode("ascii", "replace")
    counted = header[SINCE] < now - FORGET_VALUES_SECONDS
    clock = struct.unpack_from("=d", content, CLOCK)[0] - (now - time.monotonic())
    families, entries = _entries(content, writer, in_flight=bool(in_flight))
    sending, forgotten = header[SENDING], not 0 <= now - header[SENT_AT] <= FORGET_WRITER_SECONDS
    for sequence, operations in ((in_flight, 0), (last + 1, 1)):
        if sequence < sending:  # who found the file before, and was killed too, had sent this one
            continue
        updates: dict[str, Update] = {}
        for family, *left in entries:
            update = updates.setdefault(family.name, Update(family.name, family.meta, [], limits=family.limits))
            update.operations.extend(
                _timed(each, clock) for each in left[operations] if not counted or each.kind is not Kind.STAMP
            )
            update.operations.extend(_notes_of_updates(family, left[operations]))
        found = [update for update in updates.values() if update.operations]
        if found and sequence == sending and forgotten:
            log.defer(
                logging.WARNING,
                "a process was killed so long ago that the storage cannot tell whether it has what was on the way; that is "
                "dropped, so that nothing counts twice: %s",
                ", ".join(update.name for update in found),
            )
        elif found:
            yield Batch(writer, sequence, found)
    ended = {family.name: Update(family.name, "", [], limits=family.limits) for family in families}
    yield Batch(writer, last + 2, [ended[name] for name in sorted(ended)], leaving=True)


_Left = tuple[Family, list[Operation], list[Operation]]
"""A family, what was in the batch in flight, and the rest."""


def _entries(content: bytes, writer: str, *, in_flight: bool) -> tuple[list[Family], list[_Left]]:
    """The families of a journal, and what its entries have to send, in the order in which they were written."""
    families: list[Family] = []
    written: dict[int, JournaledOperation | NumericCell] = {}
    for offset, text, memory in sorted(_records(content), key=lambda record: len(record[2]) > 0):  # families first
        try:
            if len(memory):
                number, serial, *key = json.loads(text)
                written[int(serial)] = _journaled(families[number], writer, key, memory)
            else:
                families.append(Family.from_meta(text.decode()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedJournal(f"the record at byte {offset} says {text[:80]!r}") from error
    try:
        entries = _without_removed([written[serial] for serial in sorted(written)])
        return families, [(each.family, *each.unsent(in_flight)) for each in entries]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedJournal(f"a record has impossible numbers or labels: {error}") from error


def _timed(operation: Operation, clock: float) -> Operation:
    """The operation with the time at which a value was set by our clock, whose 0 was so long after that of the owner's.

    A time that has not come yet is none: the time of day was put back since.
    """
    value = operation.value
    if not isinstance(value, Stamped) or value.set_at is None:
        return operation
    set_at = value.set_at + clock
    return operation._replace(value=value._replace(set_at=set_at if set_at <= time.monotonic() else None))


def _notes_of_updates(family: Family, operations: Iterable[Operation]) -> list[Operation]:
    """Where idle series go: that these series are updated, but for values of one process, which may be as they were."""
    if not family.expire_series:
        return []
    changes = (each.field for each in operations if each.kind not in (*REMOVALS, Kind.STAMP))
    return [updated(labels) for labels in {series_of(field) for field in changes} if labels is not None]


def _records(content: bytes) -> Iterator[tuple[int, bytes, memoryview[float]]]:
    """Where the records that count are, their texts, and their numbers."""
    offset, end = HEADER, struct.unpack_from("=Q", content, WRITTEN * 8)[0]
    while offset + RECORD.size <= end:
        marked, count = RECORD.unpack_from(content, offset)
        if marked == 0:
            return
        size, text_at = abs(marked), offset + RECORD.size + count * 8
        if not (size % ALIGNMENT == 0 and count >= 0 and count == count // 1 and text_at <= offset + size <= end):
            raise DamagedJournal(f"the record at byte {offset} has an impossible size ({size:g} bytes, {count:g} numbers)")
        if marked > 0:
            memory = memoryview(bytearray(content[offset + RECORD.size : int(text_at)])).cast("d")
            yield offset, content[int(text_at) : offset + int(size)].rstrip(b"\0"), memory
        offset += int(size)


def _journaled(family: Family, writer: str, key: list[Any], memory: memoryview[float]) -> JournaledOperation | NumericCell:
    """What the record is of."""
    journaled: JournaledOperation | NumericCell
    if len(key) == 3:
        journaled = JournaledOperation(family, _operation(*key))
    else:
        values, created = key
        journaled = _cell(family, writer, tuple(map(str, values)))
        journaled.created = None if created is None else float(created)
    if journaled.size != len(memory):
        raise ValueError(f"expected {journaled.size} numbers, got {len(memory)}")
    journaled.memory = memory
    return journaled


def _operation(kind: str, field: str, value: Any) -> Operation:
    """An operation that a storage can apply. Raises ValueError."""
    found = Operation(Kind(kind), field, value)
    labels = json.loads(field[0 if found.kind in REMOVALS else field.index("{") :])
    if found.kind not in (*REMOVALS, Kind.SET) or not isinstance(labels, dict) or not isinstance(value, (float, int, str)):
        raise ValueError(f"expected to remove a series or set a field with labels, got {found}")
    return found


def _cell(family: Family, writer: str, values: tuple[str, ...]) -> NumericCell:
    metric: Any = SimpleNamespace(sender=SimpleNamespace(writer=writer), family=family, lock=threading.RLock())
    if family.type == "histogram":
        return HistogramCell(metric, values, tuple(map(float, family.bounds)))
    if family.type == "gauge":
        return (SharedGaugeCell if family.mode == "shared" else ProcessGaugeCell)(metric, values)
    return KINDS[family.type](metric, values)


def _without_removed(written: list[JournaledOperation | NumericCell]) -> list[JournaledOperation | NumericCell]:
    """What was written, in this order, without what a later removal or reset puts an end to: that may not have ended."""
    left: list[JournaledOperation | NumericCell] = []
    removed: defaultdict[str, Selectors] = defaultdict(Selectors)
    reset: defaultdict[str, Selectors] = defaultdict(Selectors)
    for each in reversed(written):
        name = each.family.name
        if isinstance(each, NumericCell):
            labels = dict(zip(each.family.labelnames, each.values, strict=True))
            ended = removed[name].match(labels) or reset[name].match(labels)
        else:
            kind, field, _ = each.operation
            labels = dict(json.loads(field[field.index("{") :]))
            ended = kind not in REMOVALS and removed[name].match(labels)
            if kind in REMOVALS or each.family.type == "counter":
                (removed if kind in REMOVALS else reset)[name].add(labels)
        if not ended:
            left.append(each)
    return left[::-1]
