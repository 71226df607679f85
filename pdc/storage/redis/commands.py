"""The commands that a server gets: commands of Redis, and calls of the Lua scripts of `pdc/storage/lua`.

All arguments are texts or bytes: hiredis 3 crashes where the handler of a signal raises while it makes a text of a number.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, NamedTuple, TypeAlias


class Command(NamedTuple):
    """A command of Redis."""

    name: str
    arguments: tuple[str, ...] = ()
    has_key: bool = True
    """True for a command with a key, by which a cluster finds the node; a command without one goes to any node."""


class Script(NamedTuple):
    """A call of a Lua script."""

    name: str
    """The name of its file, without ``.lua``."""
    keys: list[str]
    arguments: tuple[str | bytes, ...] = ()


class Repeated(tuple[str, ...]):  # noqa: SLOT001 - a tuple has no room for slots
    """The words of a command that is sent again and again: a connection of ours packs them once."""

    packed = b""


Request: TypeAlias = Command | Script | Repeated


SCRIPTS = {
    file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
    for file in resources.files(__package__.rpartition(".")[0]).joinpath("lua").iterdir()
    if file.name.endswith(".lua")
}
"""The texts of the scripts by name, of the same version as this code: others may replace the files while the process runs."""
NUMBERS, COMMON, CHANGE = "numbers", "common", "change"
"""The functions that all scripts share, those that most share, and the one that needs no more than the first."""


def source(script: Script) -> str:
    """The text that the server gets for a script."""
    names = (NUMBERS, CHANGE) if script.name == CHANGE else (NUMBERS, COMMON, script.name)
    return "".join(SCRIPTS[name] for name in names)


class Count(str):
    """A number as text, which the cluster client of redis-py 5 adds to an index."""

    __slots__ = ()

    def __radd__(self, other: int) -> int:
        return other + int(self)


def text_of(value: Any) -> str:
    """A reply as text, whatever bytes it is of."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def number_text(value: float) -> str:
    """A number as text, an integer as such."""
    return repr(value).removesuffix(".0")


_READ = {"hgetall", "hlen", "hmget", "hscan", "time", "zrange"}
"""The commands that a scrape sends."""
_WRITE = {"evalsha", "exists", "script|load", "zrem"}
"""The commands that updates send, too, beside the commands that scripts call."""


def reader_rights() -> str:
    """The rights that ``ACL SETUSER`` must give to a user that only scrapes."""
    return f"%R~prometheus_* %R~prometheus#* {_spelled(_READ)}"


def writer_rights() -> str:
    """The rights of a user that counts."""
    called = re.findall(r"redis\.p?call\('(\w+)'", "".join(SCRIPTS.values()))
    return f"~prometheus_* ~prometheus#* {_spelled(_READ | _WRITE | {name.lower() for name in called})}"


def _spelled(commands: set[str]) -> str:
    return " ".join(sorted(f"+{command}" for command in commands))
