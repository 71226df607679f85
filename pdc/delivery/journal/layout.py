"""The bytes of a journal: a header, then records, one after the other.

Numbers have the byte order of the host, since a journal never leaves it: `Q` is an unsigned integer, `d` a double.

    byte   type   the header
       0   8s     `MAGIC`; zeros before the journal is begun and after it was sent
       8   Q      `LAST`: the last sequence that was used
      16   Q      `IN_FLIGHT`: the sequence of the batch in flight; 0: no batch is in flight
      24   Q      `SINCE`: when the last batch was begun, in Unix seconds
      32   Q      `SENDING`: the sequence that any process is sending right now; 0: no process is sending
      40   Q      `SENT_AT`: when that began, in Unix seconds
      48   Q      `WRITTEN`: the bytes that are written, header included
      56   Q      `REPLAYED`: the sequence from which on another process sends the journal; 0 until one does
      64   32s    `WRITER`: the id of the writer, as batches have it
      96   32s    `STORAGE`: the id of the storage; empty while nobody knows it
     128   32s    `PLACE`: the `fingerprint` of the closest place of the storage
     160   88s    `OWNER`: the `life` of the process that writes; empty once it let go of the journal
     248   d      `CLOCK`: the time of day at which `time.monotonic` of the owner was 0; that starts anew with the host
     256          `HEADER`: the first record

    byte     type   a record that begins at byte 0
       0     d      `SIZE`: its size in bytes, a multiple of `ALIGNMENT`; negative while it does not count; 0: no record follows
       8     d      `COUNT`: how many numbers it has
      16     d...   the numbers
      16 + 8 * COUNT   a text of JSON in UTF-8, then zeros

    numbers     text                                             the record of
       0        `Family.meta`                                    a family; the first such record has number 0, the next one 1
       1        [family, serial, kind, field, value]             an operation: a removal, a text or a reset; 1.0 once drained
       3        [family, serial, [label value, ...], created]    a series of a counter: its total, drained, stored
       6                                                         a summary: sum and count, three times as a counter
    3 + 3 * buckets                                              a histogram: sum and buckets, three times as well
    3 + 3 * intervals   [..., created, window]                   a native histogram; `Window` and `Buckets` say which intervals
       4                                                         a gauge in mode `shared`: see `SharedGaugeState`
       5                                                         a gauge in another mode: which pair counts, two pairs

`family` is the number of a family. Serials rise from entry to entry: a released record has a later entry at its old place.
A record that does not fit in the rest of a mapping goes to the next one, and a record that does not count fills the rest.
"""

from __future__ import annotations

import os
import struct
import zlib

MAGIC = b"pdcjrnl7"
LAST, IN_FLIGHT, SINCE, SENDING, SENT_AT, WRITTEN, REPLAYED = range(1, 8)
"""Indices of the integers in the header, in units of 8 bytes."""
WRITER, STORAGE, PLACE, OWNER = slice(64, 96), slice(96, 128), slice(128, 160), slice(160, 248)
CLOCK = 248
HEADER = 256
ALIGNMENT = 16
RECORD = struct.Struct("=dd")
"""The head of a record: its size and its count of numbers."""
SIZE, COUNT = -2, -1
"""The same two, as indices from the first number of the record."""
MOST_BYTES = 256 * 1024 * 1024
"""The longest file: the process that sends it reads all of it. Numbers that find no room stay in memory."""


class DamagedJournal(Exception):  # noqa: N818 - the message says what is wrong with it
    """A file is no journal of this version, or not all of one."""


def fingerprint(text: str) -> str:
    """16 hexadecimal digits that stand for a name or a place, which may be long or have secrets."""
    return f"{zlib.crc32(text.encode()):08x}{zlib.adler32(text.encode()):08x}"


def text_field(text: str, field: slice) -> bytes:
    """The text as the bytes of that field of a header."""
    return text.encode().ljust(field.stop - field.start, b"\0")


def text_of(header: bytes, field: slice) -> str:
    """The text in that field of a header."""
    return header[field].rstrip(b"\0").decode("ascii", "replace")


def integer_of(header: bytes, index: int) -> int:
    """The integer of that index in a header."""
    found: int = struct.unpack_from("=Q", header, index * 8)[0]
    return found


def written(file: int) -> bytes:
    """The bytes of a journal that are written: the rest of the file may be long, and has nothing in it."""
    header = os.pread(file, HEADER, 0)
    if len(header) < HEADER:
        return header
    length = min(integer_of(header, WRITTEN), MOST_BYTES)
    with os.fdopen(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read(min(length, os.fstat(file).st_size))
