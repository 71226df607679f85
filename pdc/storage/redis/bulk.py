"""Packs commands and reads replies in bulk where hiredis is missing: redis-py calls functions of Python for each text.

Each string of a reply has a line with its length before it. So the lines that have arrived are split at once, and where each
length is that of the next line, these lines are the strings.
"""

from __future__ import annotations

from typing import Any

import redis.connection

LEAST = 32
"""The least length of an array that is read in bulk."""
_END = b"\r\n"
_NULL = b"\0"
"""Stands for a value that is missing."""
_MISSING = _END + b"$1" + _END + _NULL + _END


class Packer:
    """Packs commands of texts."""

    def pack(self, *words: Any) -> list[bytes]:
        """The command as bytes."""
        name, *arguments = words
        texts = list(map(_encoded, (*str(name).split(), *arguments)))
        return [b"*%d\r\n" % len(texts) + b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])]


def _encoded(word: Any) -> bytes:
    """The word as bytes; one of an enum by its value."""
    if isinstance(word, bytes):
        return word
    return word.encode() if isinstance(word, str) else str(word).encode()


class _InBulk:
    """Reads strings in bulk, and other parts of a reply by the parser of redis-py that this is mixed into."""

    missing: bytes
    """The line of a value that is missing."""
    _buffer: Any

    def _read_response(self, **options: Any) -> Any:
        start = self._buffer.get_pos()
        line: bytes = self._buffer.readline()
        length = int(line[1:]) if line[:1] in (b"*", b"%") else 0
        if length < LEAST:
            self._buffer.rewind(start)
            return super()._read_response(**options)  # type: ignore[misc]  # it is a method of that parser
        if line[:1] == b"*":
            return self._elements(length, options)
        pairs = self._elements(2 * length, options)
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    def _elements(self, count: int, options: dict[str, Any]) -> list[Any]:
        elements: list[Any] = []
        while left := count - len(elements):
            start, size = self._buffer.get_pos(), self._buffer.unread_bytes()
            arrived = self._buffer.read(size - len(_END)) if size > len(_END) else b""  # it reads a line end behind them
            strings, size, are_strings = _strings(arrived, left, self.missing)
            elements += strings
            self._buffer.rewind(start + size)
            for _ in range(min(left - len(strings), 1) if are_strings else left):
                elements.append(self._read_response(**options))  # waits until it has arrived
        return elements


def _strings(arrived: bytes, most: int, missing: bytes) -> tuple[list[bytes | None], int, bool]:
    """The strings that have arrived, so many at most, their size in bytes, and False where there is something else."""
    if _NULL in arrived:
        return [], 0, False
    lines, line = _END + arrived, _END + missing + _END
    if line in lines:  # twice: a line shares its end with the one before
        lines = lines.replace(line, _MISSING).replace(line, _MISSING)
    parts = lines[len(_END) :].split(_END, 2 * most)
    parts = parts[: (len(parts) - 1) // 2 * 2]
    strings: list[bytes | None] = [*parts[1::2]]
    if parts[::2] != list(map(b"$%d".__mod__, map(len, parts[1::2]))):
        return [], 0, False
    size = sum(map(len, parts)) + len(_END) * len(parts)
    if count := strings.count(_NULL):
        strings = [None if each == _NULL else each for each in strings]
    return strings, size - count * (len(_MISSING) - len(line)), True


PARSERS: dict[type, Any] = {
    parser: type("Parser", (_InBulk, parser), {"missing": missing})
    for name, missing in (("_RESP2Parser", b"$-1"), ("_RESP3Parser", b"_"))
    if (parser := getattr(redis.connection, name, None)) is not None
}
"""The parsers of redis-py, each with the one that reads in bulk."""


def read_in_bulk(connection: Any) -> None:
    """Let a connection of ours read long replies in bulk, unless hiredis does it."""
    parser = PARSERS.get(type(connection._parser))  # noqa: SLF001 - it has no public name
    if parser is not None:
        connection.set_parser(parser)
