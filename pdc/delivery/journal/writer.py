"""The writer of a journal: this process's numbers, in a file that is mapped into memory."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import threading
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import TypeAlias

from ...cells import FREE_THREADED, SUM_ROWS, Journaled, wait_for_threads
from ...family import Family
from ...process import log
from ...process.files import Descriptor, close_mappings, life, longest_file, own_folder
from ...process.interruption import let_through, tolerate
from .layout import (
    ALIGNMENT,
    CLOCK,
    COUNT,
    HEADER,
    IN_FLIGHT,
    LAST,
    MAGIC,
    MOST_BYTES,
    OWNER,
    PLACE,
    RECORD,
    REPLAYED,
    SENDING,
    SENT_AT,
    SINCE,
    SIZE,
    STORAGE,
    WRITER,
    WRITTEN,
    text_field,
)

TOUCH_SECONDS = 60.0
"""The least time between two renewals of the file's time, which keep cleaners from taking it for an old file."""
FIRST_BYTES = 4 * 1024 * 1024
"""The length of a file at first, and of its first mapping. Room on the disk is reserved later, in small steps."""
GROWTH = 4
"""Each further mapping is so many times as long as all before it: there are a handful, whatever the number of series."""
MAPPING_UNIT = mmap.ALLOCATIONGRANULARITY
"""The length of a mapping is a multiple of this."""
MOST_RESERVED = 1024 * 1024
"""The longest of the steps in which room on the disk is reserved; the first is a page, then they double."""
VIEW_BYTES = 0 if FREE_THREADED else 2048
"""Bytes of a mapping after which a new view begins: CPython caches the small integers that are offsets in so short a view.

The first row of a record, which updates change, is in the view of its first byte.

Without the GIL each record has a view of its own: threads cannot safely share one.
"""
MOST_RELEASED = 16 if FREE_THREADED else 0
"""The most released records that are not used again yet."""

Place: TypeAlias = "tuple[memoryview[float], int]"
"""A view of a mapping, and the index in it of the first number of a record.

The two numbers before it are the head of the record: `memory[offset + SIZE]` and `memory[offset + COUNT]`.
"""


class Claim:
    """A thread's claim to adopt numbers, until it has adopted all that wait."""

    __slots__ = ("is_used", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.is_used = False


class Journal:
    """The journal that this process writes: a header, then records, as `layout` has them.

    New records go to the last mapping; offsets of bytes count from its start.
    """

    def __init__(self, path: Path, writer: str, folder: Descriptor, place: str) -> None:
        self.path = path
        self._file = Descriptor.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, folder)
        self._mappings: list[mmap.mmap] = []
        self._start = self._end = 0
        """The bytes of the file that are the last mapping."""
        self._reserved = self._next = self._view_at = 0
        """Offsets in it: the end of the room on the disk, the place of the next record, and the start of the view."""
        self._families: dict[Family, int] = {}
        self._free: defaultdict[tuple[float, float], list[Place]] = defaultdict(list)
        """Records to use again, by their size and their count of numbers."""
        self._released: deque[Place] = deque()
        """Records that will be free once no thread is in the middle of an update there."""
        self._serial = 0
        self._waiting: deque[Journaled] = deque()
        self._claim: dict[str, Claim] = {}
        """The claim of the thread that adopts. Unlike a lock, it is not lost where an exception stops the thread."""
        self.lost = False
        """True once numbers could not go in, since others closed the file."""
        self._touched = time.monotonic()
        try:
            self._file.lock()
            self._grow(HEADER)
            self._reserve(HEADER)
        except OSError:
            self._remove(folder)
            self.detach()
            raise
        self._begin_header(writer, place)

    def _begin_header(self, writer: str, place: str) -> None:
        """Fill the header in. The magic comes last: until then there is nothing to send."""
        self._first = self._mapping
        self._header = memoryview(self._first)[: WRITER.start].cast("Q")
        self._mapping[WRITER] = text_field(writer, WRITER)
        self._mapping[PLACE] = text_field(place, PLACE)
        self._mapping[OWNER] = text_field(life(os.getpid()), OWNER)
        self._note_clock()
        self._header[WRITTEN] = self._next = HEADER
        self._mapping[: len(MAGIC)] = MAGIC

    def belongs_to(self, storage: str) -> None:
        """Note the id of the storage; empty where nobody knows it yet."""
        self._first[STORAGE] = text_field(storage, STORAGE)

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

    def forget_waiting(self) -> None:
        """Adopt nothing of what other threads left to one that found no room."""
        self._waiting.clear()

    def _adopt_waiting(self) -> None:
        while self._waiting:
            journaled = self._waiting.popleft()
            if not journaled.offset and not journaled.dropped:
                number = self._families.get(journaled.family)
                if number is None:
                    memory, offset = self._write(journaled.family.meta, 0)
                    memory[offset + SIZE] = -memory[offset + SIZE]
                    number = self._families[journaled.family] = len(self._families)
                self._serial += 1
                memory, offset = self._write(f"[{number},{self._serial},{journaled.key}]", journaled.size)
                journaled.move(memory, offset)
                memory[offset + SIZE] = -memory[offset + SIZE]  # now the record counts

    def _write(self, text: str, count: int) -> Place:
        """Write a record that does not count yet; return the place of its numbers, which are 0."""
        content = bytes(count * 8) + text.encode()
        size = -(-(RECORD.size + len(content)) // ALIGNMENT) * ALIGNMENT
        memory, offset = self._room(size, count)
        mapping: mmap.mmap = memory.obj  # type: ignore[assignment]  # views here are of mappings only
        start = len(mapping) - memory.nbytes + offset * 8  # a view ends where its mapping does
        mapping[start : start + size - RECORD.size] = content.ljust(size - RECORD.size, b"\0")
        memory[offset + COUNT], memory[offset + SIZE] = count, -size
        return memory, offset

    def _room(self, size: int, count: int) -> Place:
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
        if self._next + size > self._reserved:
            self._reserve(size)
        if self._next - self._view_at + size // SUM_ROWS >= VIEW_BYTES:
            self._begin_view()
        offset = (self._next - self._view_at + RECORD.size) // 8
        self._next += size
        self._header[WRITTEN] = self._start + self._next
        return self._view, offset

    def _grow(self, least: int) -> None:
        """Go on in a new mapping of at least so many bytes; a shorter one where files or memory are limited. Raises OSError."""
        longest = min(longest_file(), MOST_BYTES)
        least, room = -(-least // MAPPING_UNIT), (longest - self._end) // MAPPING_UNIT
        units = min(max((GROWTH - 1) * self._end // MAPPING_UNIT, FIRST_BYTES // MAPPING_UNIT, least), room)
        if units < least:
            raise OSError(errno.EFBIG, f"a journal of this process may not be longer than {longest} bytes")
        while True:
            try:
                return self._map(units * MAPPING_UNIT)
            except OSError as error:
                let_through(error)
                if units == least:
                    raise
            units = max(units // 2, least)

    def _map(self, size: int) -> None:
        """Continue in a new mapping of that size, at most half of the memory that is free. Raises OSError."""
        os.ftruncate(self._required(), self._end + size)
        mmap.mmap(-1, 2 * size).close()  # where memory is limited, as much stays free for the application
        self._mapping = self._file.map(self.path, self._end, self._end + size)
        self._mappings.append(self._mapping)
        self._start, self._end = self._end, self._end + size
        self._reserved = self._next = 0
        self._begin_view()

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

    def _begin_view(self) -> None:
        """Begin a view of the mapping, at the next record."""
        self._view_at = self._next
        self._view = memoryview(self._mapping)[self._next :].cast("d")

    def release(self, memory: memoryview[float], offset: int) -> None:
        """Free the record whose numbers were detached from that place, unless that is in a journal before this one."""
        if not any(memory.obj is mapping for mapping in self._mappings):
            return
        size = abs(memory[offset + SIZE])  # it is negative where the record does not count yet
        memory[offset + SIZE] = -size
        if not MOST_RELEASED:
            self._free[size, memory[offset + COUNT]].append((memory, offset))
            return
        self._released.append((memory, offset))
        if len(self._released) > MOST_RELEASED:
            self._make_free()

    def _make_free(self) -> None:
        """Free the released records, once no thread is in the middle of an update there."""
        released = []
        while self._released:
            try:
                released.append(self._released.popleft())
            except IndexError as error:  # another thread is at it, too
                let_through(error)
                break
        wait_for_threads()
        for memory, offset in released:
            self._free[-memory[offset + SIZE], memory[offset + COUNT]].append((memory, offset))

    def begin(self, sequence: int) -> None:
        """Note that this batch is in flight; the numbers of the series say which part of them is in it."""
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
        """Note that no batch is in flight; the numbers of the series say which part of them is in the storage."""
        self._header[IN_FLIGHT] = 0
        self._header[SENDING] = 0

    @property
    def is_replayed(self) -> bool:
        """True once another process has begun to send it."""
        return bool(self._header[REPLAYED])

    def is_sound(self) -> bool:
        """True while it is this user's, the next process would find it, and nobody sent it. Takes a lost lock again."""
        status = self._file.status() or self._lock_again()
        if status is None or self._is_truncated(status):
            return False
        if self.lost or not status.st_nlink or status.st_uid != os.geteuid() or self.is_replayed:
            return False
        if time.monotonic() >= self._touched + TOUCH_SECONDS and self._file.status() is not None:
            self._touched = time.monotonic()
            with tolerate(OSError):  # the file system may be read-only by now: what the mapping has, the next process finds
                os.utime(self._file.number)
        return True

    def _is_truncated(self, status: os.stat_result) -> bool:
        """True where others made the file shorter. Makes it as long as before, or reading the mapping would be a SIGBUS."""
        if status.st_size >= self._end:
            return False
        os.truncate(self.path if self._file.status() is None else self._file.number, self._end)
        text = "a journal of metrics was truncated by another program, what it held is lost: %s"
        log.defer_once(self.path, logging.WARNING, text, self.path)
        return True

    def _lock_again(self) -> os.stat_result | None:
        """Open and lock the file once more, since others closed it; return its status, None where it cannot be opened."""
        try:
            again = Descriptor.open(self.path, os.O_RDWR)
        except OSError as error:
            let_through(error)
            return None
        status = os.fstat(again.number)
        if not self._file.same(status):
            again.close()
            return None
        try:
            again.lock()
        except OSError as error:  # somebody is just looking whether this process lives: next time, then
            again.close()
            let_through(error)
        else:
            self._file = again
        return status

    def close(self, *, keep: bool) -> Path | None:
        """Close the file; `keep` it for the next process of this host, and return its path, or make it void."""
        status = self._file.status()
        if keep:
            self._first[OWNER] = text_field("", OWNER)  # nobody must wait for the end of this process
        else:
            self._header[0] = 0  # whoever finds it, where it cannot be removed, has nothing to send
            with tolerate(OSError), own_folder(self.path.parent) as folder:
                self._remove(folder)
        self.detach()
        return self.path if keep and status is not None and status.st_nlink else None

    def _remove(self, folder: Descriptor) -> None:
        """Remove the file from its folder, if it is still this one and this user's to remove."""
        with tolerate(OSError):
            if self._file.same(os.stat(self.path.name, dir_fd=folder.required(), follow_symlinks=False)):
                os.unlink(self.path.name, dir_fd=folder.required())

    def detach(self) -> None:
        """Close the file; the mapping goes with the last cell that has its numbers there."""
        self._file.close()
        close_mappings()
