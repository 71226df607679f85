"""Findings about Redis: reach, version, rights, clock, memory, and the keys beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..storage import StorageError
from ..storage.redis import RedisStorage
from ..storage.redis.commands import Command, Script, text_of, writer_rights
from .findings import ERROR, OK, WARNING, Finding

MOST_CLOCK_SECONDS = 5.0
"""The difference of clocks that is a warning: the times of series and exemplars are of either clock."""
SLOW_ANSWER_SECONDS = 0.05
MOST_KEYS = 200_000
"""How many keys are looked through for those that are not ours."""
SCAN_COUNT = 1000
MOST_NAMED = 3


def of_redis(storage: RedisStorage) -> Iterator[Finding]:
    """All findings about the server of a storage."""
    try:
        yield from _of_reach(storage)
    except StorageError as error:
        yield Finding(ERROR, "reach", str(error), "nothing else can be checked")
        return
    info = _info(storage)
    if info is None:
        yield Finding(OK, "server", "version, memory and role are unknown: this user may not call INFO")
    else:
        yield from _of_server(info)
        yield from _of_memory(info, storage)
    yield from _of_rights(storage)
    yield from _of_keys(storage)


def _of_reach(storage: RedisStorage) -> Iterator[Finding]:
    storage.server.run([Command("TIME", has_key=False)])  # connects
    before = time.time()
    ((seconds, microseconds),) = storage.server.run([Command("TIME", has_key=False)])
    took = time.time() - before
    level = WARNING if took > SLOW_ANSWER_SECONDS else OK
    remedy = "check the load of the server and the network" if level == WARNING else ""
    yield Finding(level, "reach", f"{storage} answers in {took * 1000:.1f} ms", remedy)
    difference = int(seconds) + int(microseconds) / 1e6 - (before + took / 2)
    level = WARNING if abs(difference) > MOST_CLOCK_SECONDS else OK
    remedy = "synchronise both clocks (NTP)" if level == WARNING else ""
    direction = "ahead of" if difference > 0 else "behind"
    yield Finding(level, "clock", f"the clock of the server is {abs(difference):.1f} s {direction} that of this host", remedy)


def _ask(storage: RedisStorage, *words: str) -> Any:
    """The reply to a command without a key; None where this user may not call it."""
    try:
        (reply,) = storage.server.run([Command(words[0], words[1:], has_key=False)])
    except StorageError:
        return None
    return reply


def _info(storage: RedisStorage) -> dict[str, str] | None:
    reply = _ask(storage, "INFO")
    if not isinstance(reply, (bytes, str)):
        return None
    pairs = (line.partition(":") for line in text_of(reply).splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _of_server(info: dict[str, str]) -> Iterator[Finding]:
    version = info.get("redis_version", "?")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < 5:
        yield Finding(WARNING, "version", f"Redis {version}", "pdc is tested with Redis 6 and later: upgrade it")
    else:
        yield Finding(OK, "version", f"Redis {version}")
    if info.get("role") == "slave":
        yield Finding(WARNING, "role", "this is a replica", "programs that count need the primary; this one is for scrapes")


def _of_memory(info: dict[str, str], storage: RedisStorage) -> Iterator[Finding]:
    policy, most, used = info.get("maxmemory_policy", ""), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if not most or policy == "noeviction":
        limit = f"of {most:,} bytes, and updates wait when it is full" if most else "without a limit"
        yield Finding(OK, "memory", f"{used:,} bytes are used, {limit}")
    elif policy.startswith("volatile") and not _has_expiring(storage):
        yield Finding(OK, "memory", f"maxmemory-policy is {policy}, and no metric expires")
    else:
        remedy = "use noeviction, volatile-* with PDC_REDIS_EXPIRE=never, or a Redis of its own"
        yield Finding(ERROR, "memory", f"maxmemory-policy {policy} may evict metrics, which then start from 0", remedy)
    if int(info.get("evicted_keys", 0)):
        remedy = "raise maxmemory" if policy != "noeviction" else "they were evicted under an earlier policy"
        yield Finding(WARNING, "memory", f"{info['evicted_keys']} keys were evicted since the server started", remedy)


def _has_expiring(storage: RedisStorage) -> bool:
    return any(at < float("inf") for at in storage.keys.expiries().values())


def _of_rights(storage: RedisStorage) -> Iterator[Finding]:
    """Try the commands of a scrape, and a script that changes nothing; ask for the rights to the other commands."""
    missing = f"a user that counts needs {writer_rights()}"
    try:
        keys = storage.keys
        storage.server.run([Script("delete", [keys.of("pdc_check#")], (keys.prefix, keys.index, "pdc_check#"))])
    except StorageError:
        yield Finding(WARNING, "rights", "this user may read, but not count", missing)
        return
    user = _ask(storage, "ACL", "WHOAMI")
    refused = [] if user is None else [*_refused(storage, text_of(user))]
    if refused:
        yield Finding(WARNING, "rights", f"this user may not call {', '.join(refused)}, so it cannot count", missing)
    else:
        yield Finding(OK, "rights", "this user may read and call scripts")


def _refused(storage: RedisStorage, user: str) -> Iterator[str]:
    """The commands that count, and that the user may not call; nothing where the server does not tell."""
    key = storage.keys.of("pdc_check")
    for words in (("HSET", key, "f", "v"), ("HDEL", key, "f"), ("PEXPIRE", key, "1"), ("UNLINK", key), ("PERSIST", key)):
        reply = _ask(storage, "ACL", "DRYRUN", user, *words)
        if reply is not None and text_of(reply) != "OK":
            yield words[0]


def _of_keys(storage: RedisStorage) -> Iterator[Finding]:
    """Look for keys that begin as ours do, and belong to others."""
    keys = storage.keys
    if not keys.has_given_prefix:
        remedy = "give each program PDC_REDIS_PREFIX, where several share this database"
        yield Finding(
            WARNING, "prefix", "no prefix: metrics of other programs without one, and of the same name, add up", remedy
        )
    try:
        foreign, others, is_all = _beside(storage)
    except StorageError:
        yield Finding(OK, "keys", "unknown: this user may not call SCAN and HGET")
        return
    if others:
        yield Finding(OK, "prefix", f"other prefixes of this database: {', '.join(map(repr, sorted(others)))}")
    if foreign:
        named = ", ".join(foreign[:MOST_NAMED]) + (", ..." if len(foreign) > MOST_NAMED else "")
        text = f"keys that begin as ours do hold something else: {named}"
        yield Finding(WARNING, "keys", text, "delete them, or choose another prefix: a metric of such a name is refused")
    else:
        looked = "" if is_all else f" of the {MOST_KEYS:,} that were looked at"
        yield Finding(OK, "keys", f"no key{looked} of others begins as ours do")


def _beside(storage: RedisStorage) -> tuple[list[str], set[str], bool]:
    """Keys that begin as ours do and are no metrics; other prefixes; and whether all keys were looked at."""
    foreign: list[str] = []
    others: set[str] = set()
    cursor, looked = "0", 0
    while (cursor != "0" or not looked) and looked < MOST_KEYS:
        arguments = cursor, "MATCH", "prometheus[_#]*", "COUNT", str(SCAN_COUNT)
        ((following, found),) = storage.server.run([Command("SCAN", arguments, has_key=False)])
        cursor, looked = text_of(following), looked + SCAN_COUNT
        names = [*map(text_of, found)]
        others.update(name.removeprefix("prometheus#") for name in names if name.startswith("prometheus#"))
        ours = [name for name in names if name.startswith(storage.keys.start)]
        owners = storage.server.run([Command("HGET", (name, "#prefix")) for name in ours]) if ours else []
        foreign += [name for name, owner in zip(ours, owners, strict=True) if owner is None or isinstance(owner, Exception)]
    return sorted(foreign), others - {storage.keys.prefix}, cursor == "0"
