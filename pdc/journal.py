"""The numbers of this process that are not in the storage yet, in a file that outlives it.

The file is mapped into memory and an update is a store to that memory: it makes no system call, and the kernel keeps what
was stored when the process is killed. The numbers of each series say what it gathered, and what of that went into a batch;
what is to be removed, and texts, have a record each. The header says which batch is in flight. So whoever finds the file
knows, wherever its owner stopped, what the storage may have and what it cannot have, and sends the same batches again.

A lock on the file (`flock`) shows that its owner lives; it goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import stat
import struct
import threading
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .cells import Buckets, Kept, Note, Number, Numbers, Observations, ProcessNumber, Total
from .family import Family
from .storage import FORGET_VALUES_SECONDS, FORGET_WRITER_SECONDS, Batch, Kind, Operation, Storage, StorageError, Update

logger = logging.getLogger("pdc")

MAGIC = b"pdcjrnl4"
SUFFIX = ".journal"
BEGIN_SECONDS = 60.0
"""A file that nobody locks and nothing was written to is forgotten after that time: its owner may be about to."""
LAST, IN_FLIGHT, SINCE, SENDING, SENT_AT = 1, 2, 3, 4, 5
"""Which numbers of 8 bytes in the header are the last sequence that was used, the one in flight (0: none), when the last one
was begun (Unix seconds), the one that somebody, not only the owner, is sending right now (0: none), and since when."""
WRITER = slice(48, 112)
CHUNK = 64 * 1024
"""Bytes by which a file grows; a record lies in one chunk."""
VIEW = 2048
"""Bytes of a chunk after which a new view begins: places in so short a one are integers that Python has ready."""
ALIGNMENT = 16
RECORD = struct.Struct("<IIII")
"""How a record begins: its bytes in all, how many numbers it has, bytes of text, and whether it counts. The numbers follow,
then the text."""
KINDS: dict[str, type[Numbers]] = {"counter": Total, "summary": Observations}


_dumps = json.JSONEncoder(separators=(",", ":")).encode
_complaints: set[Path] = set()
"""The folders that could not be used, of which the log knows."""


class DamagedJournal(Exception):  # noqa: N818 - the message says what is wrong with it
    """A file is no journal of this version, or not all of one."""


def default_folder() -> Path:
    """Where journals are unless `setup` says otherwise: a folder of the user's own beside other temporary files."""
    import tempfile  # only here, as it takes long to import

    return Path(tempfile.gettempdir()) / f"pdc-{os.geteuid()}"


class Journals:
    """The journals of one storage on this host: this process's own, and those that dead processes left."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._prefix = f"{zlib.crc32(identity.encode()):08x}{zlib.adler32(identity.encode()):08x}"
        self._own: Journal | None = None

    @property
    def is_open(self) -> bool:
        """Whether this process has one."""
        return self._own is not None

    def open(self, writer: str, sequence: int, in_flight: bool) -> None:
        """Begin this process's own, unless that is impossible: the log then says once that there is none."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise PermissionError(f"expected a folder that only its owner may write (chmod 700), got {self._folder}")
            name = f"{self._prefix}-{time.time_ns():016x}-{writer}{SUFFIX}"  # in the order in which they are sent one day
            self._own = Journal(self._folder / name, writer)
            self._own.begin(sequence)
            if not in_flight:
                self._own.end()
        except OSError as error:
            self._complain(error)

    def keep(self, kept: Kept) -> None:
        """Have these numbers in the own journal from now on, if there is one."""
        own = self._own
        if own is not None and not kept.at:
            try:
                own.adopt(kept)
            except OSError as error:
                self._complain(error)

    def forget(self, kept: Kept) -> None:
        """Take these numbers out of the own journal."""
        if self._own is not None and kept.at:
            self._own.release(*kept.let_go())

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
        """End the own journal; return its path where there was one to `keep` for the next process of this host."""
        own, self._own = self._own, None
        if own is None:
            return None
        own.close(keep=keep)
        return own.path if keep else None

    def after_fork_in_child(self) -> None:
        """Leave the own journal to the parent."""
        if self._own is not None:
            self._own.let_go()
            self._own = None

    def _complain(self, error: OSError) -> None:
        if self._folder not in _complaints:
            _complaints.add(self._folder)
            logger.warning(
                "there is no journal, updates that are not sent yet go with the process when it is killed: %s", error
            )

    def replay(self, storage: Storage) -> None:
        """Send what dead processes left, each file once. Raises StorageError, and keeps what was not sent."""
        for path in sorted(self._folder.glob(f"{self._prefix}-*{SUFFIX}")):
            try:
                file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:  # somebody else has finished with it, or it is none of ours
                continue
            try:
                self._replay(path, file, storage)
            finally:
                os.close(file)

    def _replay(self, path: Path, file: int, storage: Storage) -> None:
        if not _is_left(path, file):
            return
        try:
            left = list(batches(_content(file), time.time()))
        except DamagedJournal as error:
            aside = path.rename(path.with_suffix(".damaged"))
            logger.warning("a journal of metrics cannot be read and is set aside as %s: %s", aside, error)
            return
        for batch in left:
            if batch.leaving:  # it takes along the marks by which the storage knows the others
                path.unlink()
            _note_sending(file, batch.sequence)
            try:
                storage.apply(batch)
            except StorageError:
                _note_sending(file, 0)
                raise


def _is_left(path: Path, file: int) -> bool:
    """Whether its owner is dead and nobody has sent it; it is locked then. Removes one that was never begun."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    found = os.fstat(file)
    if found.st_nlink == 0:
        return False
    begun = any(os.pread(file, len(MAGIC), 0))
    if not begun and found.st_mtime < time.time() - BEGIN_SECONDS:
        path.unlink()
    return begun


def _note_sending(file: int, sequence: int) -> None:
    os.pwrite(file, struct.pack("=QQ", sequence, int(time.time())), SENDING * 8)


class Journal:
    """The journal that this process writes: records, each a family or the rows of one series, one after the other."""

    def __init__(self, path: Path, writer: str) -> None:
        self.path = path
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        # The mapping keeps a file of its own open, which a child inherits: the lock must not be on that.
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size = 0
        self._families: dict[Family, int] = {}
        self._free: defaultdict[tuple[int, int], list[tuple[memoryview[float], int]]] = defaultdict(list)
        self._written = 0
        self._waiting: deque[Kept] = deque()
        self._adopting = threading.Lock()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._grow(CHUNK)
        except OSError:
            self.close(keep=False)
            raise
        self._header = self._chunk[: WRITER.stop].cast("Q")
        self._chunk[WRITER] = writer.encode().ljust(WRITER.stop - WRITER.start, b"\0")
        self._chunk[: len(MAGIC)] = MAGIC
        self._next = WRITER.stop

    def adopt(self, kept: Kept) -> None:
        """Keep these numbers from now on. Never waits for another thread. Raises OSError where the disk is full."""
        self._waiting.append(kept)
        while self._waiting and self._adopting.acquire(blocking=False):
            try:
                self._adopt_waiting()
            finally:
                self._adopting.release()

    def _adopt_waiting(self) -> None:
        while self._waiting:
            kept = self._waiting.popleft()
            if not kept.at and not kept.dropped:
                family = kept.family
                if family not in self._families:
                    _let_count(*self._write(family.meta, 0), counts=True)
                    self._families[family] = len(self._families)
                self._written += 1
                rows, at = self._write(_dumps([self._families[family], self._written, *kept.about]), kept.size)
                kept.move(rows, at)
                _let_count(rows, at, counts=True)

    def _write(self, text: str, count: int) -> tuple[memoryview[float], int]:
        """Write a record that does not count yet; return where its numbers are, which are 0."""
        content = text.encode()
        size = -(-(RECORD.size + count * 8 + len(content)) // ALIGNMENT) * ALIGNMENT
        rows, at = self._room(size, count)
        record = _record(rows, at)
        text_at = RECORD.size + count * 8
        record[RECORD.size : text_at] = bytes(count * 8)
        record[text_at : text_at + len(content)] = content
        RECORD.pack_into(record, 0, size, count, len(content), 0)
        return rows, at

    def _room(self, size: int, count: int) -> tuple[memoryview[float], int]:
        if free := self._free[size, count]:
            return free.pop()
        left = len(self._chunk) - self._next
        if left < size:
            before = self._chunk[self._next :]
            self._grow(size)
            if left:
                RECORD.pack_into(before, 0, left, 0, 0, 0)
        if self._next - self._view_at >= VIEW:
            self._view()
        at = (self._next - self._view_at + RECORD.size) // 8
        self._next += size
        return self._rows, at

    def _grow(self, least: int) -> None:
        """Begin a chunk with at least so many bytes."""
        size = -(-least // CHUNK) * CHUNK
        if hasattr(os, "posix_fallocate"):  # where the disk is full, a mapping would crash the process
            os.posix_fallocate(self._file, self._size, size)
        else:
            os.pwrite(self._file, bytes(size), self._size)
        self._chunk = memoryview(mmap.mmap(self._file, size, offset=self._size))
        self._next = 0
        self._size += size
        self._view()

    def _view(self) -> None:
        """Begin a view of the chunk, at the next record."""
        self._view_at = self._next
        self._rows = self._chunk[self._next :].cast("d")

    def release(self, rows: memoryview[float], at: int) -> None:
        """Forget numbers that have been let go of."""
        size, count = _let_count(rows, at, counts=False)
        self._free[size, count].append((rows, at))

    def begin(self, sequence: int) -> None:
        """Note that this batch is in flight; the rows say what is in it."""
        self._header[LAST] = sequence
        self._header[SINCE] = self._header[SENT_AT] = int(time.time())
        self._header[SENDING] = sequence
        self._header[IN_FLIGHT] = sequence

    def failed(self) -> None:
        """Note that the batch in flight is not being sent for now."""
        self._header[SENDING] = 0

    def end(self) -> None:
        """Note that no batch is in flight; the rows say what is in the storage."""
        self._header[IN_FLIGHT] = 0
        self._header[SENDING] = 0

    def close(self, *, keep: bool) -> None:
        """Let go of the file, and leave it to the next process of this host if there is anything to `keep`."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Close the file; the mapping goes with the last cell that has its numbers there."""
        os.close(self._lock)
        os.close(self._file)


def _record(rows: memoryview[float], at: int) -> memoryview:
    """The bytes of a chunk from the beginning of the record that has its numbers there."""
    return rows.cast("B")[at * 8 - RECORD.size :]


def _let_count(rows: memoryview[float], at: int, *, counts: bool) -> tuple[int, int]:
    """Say whether the record with its numbers there counts; return its bytes, and how many numbers it has."""
    record = _record(rows, at)
    size, count, length, _ = RECORD.unpack_from(record)
    RECORD.pack_into(record, 0, size, count, length, counts)
    return size, count


def _content(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read()


def batches(content: bytes, now: float) -> Iterator[Batch]:
    """What a journal of that content has to send, in batches as its owner would have. Raises DamagedJournal.

    `now` is the time in Unix seconds: by when the storage has counted the values of a dead process as they were last sent,
    they are not sent any more. Neither is a batch whose sender was killed in the middle of it, once the storage may have
    forgotten whether it has that: what nobody can know shall not count twice.
    """
    if len(content) < WRITER.stop or content[: len(MAGIC)] != MAGIC:
        raise DamagedJournal(f"expected a file that starts with {MAGIC!r}, got {content[: len(MAGIC)]!r}")
    header = memoryview(content)[: WRITER.stop].cast("Q")
    last, in_flight = header[LAST], header[IN_FLIGHT]
    writer = content[WRITER].rstrip(b"\0").decode("ascii", "replace")
    counted = header[SINCE] < now - FORGET_VALUES_SECONDS
    families, entries = _entries(content, writer, in_flight=bool(in_flight))
    sending, forgotten = header[SENDING], not 0 <= now - header[SENT_AT] <= FORGET_WRITER_SECONDS
    for sequence, operations in ((in_flight, 0), (last + 1, 1)):
        if sequence < sending:  # who found the file before, and was killed too, had sent this one
            continue
        updates: dict[str, Update] = {}
        for family, *left in entries:
            update = updates.setdefault(family.name, Update(family.name, family.meta, []))
            update.operations.extend(each for each in left[operations] if not (counted and each.kind is Kind.STAMP))
        found = [update for update in updates.values() if update.operations]
        if found and sequence == sending and forgotten:
            logger.warning(
                "a process was killed so long ago that the storage cannot tell whether it has what was on the way; that is "
                "dropped, so that nothing counts twice: %s",
                ", ".join(update.name for update in found),
            )
        elif found:
            yield Batch(writer, sequence, found)
    yield Batch(writer, last + 2, [Update(name, "", []) for name in sorted({family.name for family in families})], leaving=True)


_Left = tuple[Family, list[Operation], list[Operation]]
"""A family, what was in the batch in flight, and the rest."""


def _entries(content: bytes, writer: str, *, in_flight: bool) -> tuple[list[Family], list[_Left]]:
    """The families of a journal, and what its entries have to send, in the order in which they were written."""
    families: list[Family] = []
    written: dict[int, Note | Numbers] = {}
    for at, text, rows in sorted(_records(content), key=lambda record: len(record[2]) > 0):  # families first
        try:
            if len(rows):
                number, serial, *about = json.loads(text)
                written[int(serial)] = _kept(families[number], writer, about, rows)
            else:
                families.append(Family.from_meta(text.decode()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedJournal(f"the record at byte {at} says {text[:80]!r}") from error
    try:
        entries = _without_removed([written[serial] for serial in sorted(written)])
        return families, [(each.family, *each.left(in_flight)) for each in entries]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedJournal(f"a record has impossible numbers or labels: {error}") from error


def _records(content: bytes) -> Iterator[tuple[int, bytes, memoryview[float]]]:
    """Where the records that count are, their texts, and their numbers."""
    at = WRITER.stop
    while at + RECORD.size <= len(content):
        size, count, length, counts = RECORD.unpack_from(content, at)
        if size == 0:
            return
        text_at = at + RECORD.size + count * 8
        if size % ALIGNMENT or text_at + length > at + size or at + size > len(content):
            raise DamagedJournal(f"the record at byte {at} has an impossible size ({size} bytes, {count} numbers)")
        if counts:
            rows = memoryview(bytearray(content[at + RECORD.size : text_at])).cast("d")
            yield at, content[text_at : text_at + length], rows
        at += size


def _kept(family: Family, writer: str, about: list[Any], rows: memoryview[float]) -> Note | Numbers:
    """What the record is of."""
    kept: Note | Numbers
    if len(about) == 3:
        kept = Note(family, Operation(Kind(about[0]), str(about[1]), about[2]))
    else:
        values, created = about
        kept = _cell(family, writer, tuple(map(str, values)))
        kept.created = None if created is None else float(created)
    if kept.size != len(rows):
        raise ValueError(f"expected {kept.size} numbers, got {len(rows)}")
    kept.rows = rows
    return kept


def _cell(family: Family, writer: str, values: tuple[str, ...]) -> Numbers:
    pending: Any = SimpleNamespace(buffer=SimpleNamespace(writer=writer), family=family, lock=threading.RLock())
    if family.type == "histogram":
        return Buckets(pending, values, tuple(map(float, family.bounds)))
    if family.type == "gauge":
        return (Number if family.mode == "shared" else ProcessNumber)(pending, values)
    return KINDS[family.type](pending, values)


def _without_removed(written: list[Note | Numbers]) -> list[Note | Numbers]:
    """What was written, in this order, without what a later removal or reset puts an end to: that may not have ended."""
    left: list[Note | Numbers] = []
    removed: defaultdict[str, _Selectors] = defaultdict(_Selectors)
    reset: defaultdict[str, _Selectors] = defaultdict(_Selectors)
    for each in reversed(written):
        name = each.family.name
        if isinstance(each, Numbers):
            labels = dict(zip(each.family.labelnames, each.values, strict=True))
            ended = removed[name].match(labels) or reset[name].match(labels)
        else:
            kind, field, _ = each.operation
            labels = dict(json.loads(field[field.index("{") :]))
            ended = kind is not Kind.DELETE and removed[name].match(labels)
            if kind is Kind.DELETE or each.family.type == "counter":
                (removed if kind is Kind.DELETE else reset)[name].add(labels)
        if not ended:
            left.append(each)
    return left[::-1]


class _Selectors:
    """Labels of which a series must have all of one set, found without looking at each: there may be thousands."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, ...], set[tuple[Any, ...]]] = defaultdict(set)

    def add(self, wanted: dict[str, Any]) -> None:
        """Look for these too."""
        names = tuple(sorted(wanted))
        self._values[names].add(tuple(wanted[name] for name in names))

    def match(self, labels: dict[str, Any]) -> bool:
        """Whether a series with these labels is looked for."""
        return any(tuple(labels.get(name) for name in names) in values for names, values in self._values.items())
