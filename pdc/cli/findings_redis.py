"""Findings about Redis: reach, version, rights, clock, memory, and the keys beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis
from redis.exceptions import NoPermissionError
from redis.utils import HIREDIS_AVAILABLE

from ..process.forks import FREE_THREADED
from ..storage import StorageError
from ..storage.redis import RedisStorage
from ..storage.redis.commands import Command, Script, text_of, writer_rights
from ..storage.redis.keys import Keys
from ..storage.redis.server import Server
from .findings import ERROR, OK, WARNING, Finding

MOST_CLOCK_SECONDS = 5.0
"""The difference of clocks that is a warning: the times of series and exemplars are of either clock."""
SLOW_ANSWER_SECONDS = 0.05
FULL = 0.9
"""The part of its memory with which a server that evicts nothing is nearly full."""
MOST_KEYS = 200_000
"""How many keys are looked through for those that are not ours."""
SCAN_COUNT = 1000
MOST_NAMED = 3
SLOTS = 16384
"""Of a cluster."""


def of_redis(storage: RedisStorage) -> Iterator[Finding]:
    """All findings about the driver, and about the server of a storage, or the primaries of its cluster."""
    yield _of_driver()
    try:
        servers = storage.server.primaries()
        for server in servers:
            server.run([Command("TIME", has_key=False)])  # connects
    except StorageError as error:
        yield Finding(ERROR, "reach", str(error), "nothing else can be checked")
        return
    for server in servers:
        for finding in _of_server(server, storage):
            is_named = server is storage.server or finding.text.startswith(str(server))
            yield finding if is_named else finding._replace(text=f"{server}: {finding.text}")
    yield from _of_cluster(servers[0]) if storage.server.is_cluster else _of_sentinels(storage.server)
    yield from _of_rights(storage, servers[0])
    yield from _of_keys(storage, servers)
    for server in servers:
        if server is not storage.server:
            server.close()


def _of_driver() -> Finding:
    """State whether replies are parsed by hiredis. Without the GIL nothing else would keep it off."""
    if HIREDIS_AVAILABLE:
        return Finding(OK, "driver", f"redis-py {redis.__version__} with hiredis")
    remedy = "" if FREE_THREADED else "install the extra: pip install 'prometheus-distributed-client[redis]'"
    return Finding(OK, "driver", f"redis-py {redis.__version__} without hiredis: a large scrape takes longer", remedy)


def _of_server(server: Server, storage: RedisStorage) -> Iterator[Finding]:
    yield from _of_reach(server)
    info = _pairs(_ask(server, "INFO"))
    if info:
        yield from _of_version(info)
        yield from _of_memory(info, storage)
    else:
        yield Finding(OK, "server", "version, memory and role are unknown: this user may not call INFO")


def _of_reach(server: Server) -> Iterator[Finding]:
    before = time.time()
    ((seconds, microseconds),) = server.run([Command("TIME", has_key=False)])
    took = time.time() - before
    level = WARNING if took > SLOW_ANSWER_SECONDS else OK
    remedy = "check the load of the server and the network" if level == WARNING else ""
    yield Finding(level, "reach", f"{server} answers in {took * 1000:.1f} ms", remedy)
    difference = int(seconds) + int(microseconds) / 1e6 - (before + took / 2)
    level = WARNING if abs(difference) > MOST_CLOCK_SECONDS else OK
    remedy = "synchronise both clocks (NTP)" if level == WARNING else ""
    direction = "ahead of" if difference > 0 else "behind"
    yield Finding(level, "clock", f"the clock of the server is {abs(difference):.1f} s {direction} that of this host", remedy)


def _ask(server: Server, *words: str) -> Any:
    """The reply to a command without a key; None where this user may not call it."""
    try:
        (reply,) = server.run([Command(words[0], words[1:], has_key=False)])
    except StorageError:
        return None
    return reply


def _pairs(reply: Any) -> dict[str, str]:
    """The lines of a reply such as that of INFO; nothing where there is none."""
    lines = text_of(reply).splitlines() if isinstance(reply, (bytes, str)) else []
    return {name: value for name, _, value in (line.partition(":") for line in lines if ":" in line)}


def _of_cluster(server: Server) -> Iterator[Finding]:
    info = _pairs(_ask(server, "CLUSTER", "INFO"))
    if not info:
        yield Finding(OK, "cluster", "its state is unknown: this user may not call CLUSTER INFO")
        return
    text = (
        f"state {info.get('cluster_state')}, {info.get('cluster_size')} of {info.get('cluster_known_nodes')} nodes have slots"
    )
    if info.get("cluster_state") == "ok":
        yield Finding(OK, "cluster", text)
    else:
        missing = f"{text}, {info.get('cluster_slots_ok')} of {SLOTS} slots have a primary"
        yield Finding(ERROR, "cluster", missing, "`redis-cli --cluster check` names the nodes and slots that are missing")


def _of_sentinels(server: Server) -> Iterator[Finding]:
    """Ask each sentinel that the client knows whether enough of them could agree on a failover."""
    for sentinel in server.sentinels():
        try:
            (reply,) = sentinel.run([Command("SENTINEL", ("CKQUORUM", server.service), has_key=False)])
        except StorageError as error:
            if isinstance(error.__cause__, NoPermissionError):
                yield Finding(OK, "sentinel", f"{sentinel}: unknown, as this user may not call SENTINEL CKQUORUM")
            else:
                needed = "a failover needs a majority of the sentinels: start those that are missing"
                yield Finding(WARNING, "sentinel", str(error), needed)
        else:
            yield Finding(OK, "sentinel", f"{sentinel}: {text_of(reply)}")
        finally:
            sentinel.close()


def _of_version(info: dict[str, str]) -> Iterator[Finding]:
    version = info.get("redis_version", "?")
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < 5:
        yield Finding(WARNING, "version", f"Redis {version}", "pdc is tested with Redis 6 and later: upgrade it")
    else:
        yield Finding(OK, "version", f"Redis {version}")
    if info.get("role") == "slave":
        yield Finding(WARNING, "role", "this is a replica", "programs that count need the primary; this one is for scrapes")


def _of_memory(info: dict[str, str], storage: RedisStorage) -> Iterator[Finding]:
    policy, most, used = info.get("maxmemory_policy", ""), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and policy == "noeviction" and used > FULL * most:
        text = f"{used:,} bytes are used, of {most:,} bytes: updates wait while it is full"
        yield Finding(ERROR if used >= most else WARNING, "memory", text, "raise maxmemory")
    elif not most or policy == "noeviction":
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


def _of_rights(storage: RedisStorage, server: Server) -> Iterator[Finding]:
    """Try the commands of a scrape, and a script that changes nothing; ask for the rights to the other commands."""
    missing = f"a user that counts needs {writer_rights()}"
    try:
        keys = storage.keys
        storage.server.run([Script("delete", [keys.of("pdc_check#")], (keys.prefix, keys.index, "pdc_check#"))])
    except StorageError:
        yield Finding(WARNING, "rights", "this user may read, but not count", missing)
        return
    user = _ask(server, "ACL", "WHOAMI")
    refused = [] if user is None else [*_refused(server, storage.keys.of("pdc_check"), text_of(user))]
    if refused:
        yield Finding(WARNING, "rights", f"this user may not call {', '.join(refused)}, so it cannot count", missing)
    else:
        yield Finding(OK, "rights", "this user may read and call scripts")


def _refused(server: Server, key: str, user: str) -> Iterator[str]:
    """The commands that count, and that the user may not call; nothing where the server does not tell."""
    for words in (("HSET", key, "f", "v"), ("HDEL", key, "f"), ("PEXPIRE", key, "1"), ("UNLINK", key), ("PERSIST", key)):
        reply = _ask(server, "ACL", "DRYRUN", user, *words)
        if reply is not None and text_of(reply) != "OK":
            yield words[0]


def _of_keys(storage: RedisStorage, servers: list[Server]) -> Iterator[Finding]:
    """Look for keys that begin as ours do, and belong to others."""
    keys = storage.keys
    if not keys.prefix:
        remedy = "give each program PDC_REDIS_PREFIX, where several share this database"
        yield Finding(
            WARNING, "prefix", "no prefix: metrics of other programs without one, and of the same name, add up", remedy
        )
    try:
        foreign, others, is_all = _beside(storage.keys, servers)
    except StorageError:
        yield Finding(OK, "keys", "unknown: this user may not call SCAN and HGET")
        return
    if others:
        yield Finding(OK, "prefix", f"other prefixes of this database: {', '.join(map(repr, sorted(others)))}")
        yield from _of_alike(storage.keys.prefix, others)
    if foreign:
        named = ", ".join(foreign[:MOST_NAMED]) + (", ..." if len(foreign) > MOST_NAMED else "")
        text = f"keys that begin as ours do hold something else: {named}"
        yield Finding(WARNING, "keys", text, "delete them, or choose another prefix: a metric of such a name is refused")
    else:
        looked = "" if is_all else f" of the {MOST_KEYS:,} that were looked at"
        yield Finding(OK, "keys", f"no key{looked} of others begins as ours do")


def _of_alike(prefix: str, others: set[str]) -> Iterator[Finding]:
    """Name the prefixes with which one key may be that of two metrics."""
    for other in sorted(others):
        short, long = sorted((prefix, other), key=len)
        if short and long.startswith(f"{short}_"):
            name = f"{long.removeprefix(f'{short}_')}_hits"
            text = f"with the prefix {other!r} some metrics share a key: {name!r} of {short!r} and 'hits' of {long!r}"
            remedy = f"the later one is refused: choose a prefix such as {long.replace('_', '-')!r}"
            yield Finding(WARNING, "prefix", text, remedy)


def _beside(keys: Keys, servers: list[Server]) -> tuple[list[str], set[str], bool]:
    """Keys that begin as ours do and are no metrics; other prefixes; and whether all keys were looked at."""
    foreign: list[str] = []
    others: set[str] = set()
    looked, pending = 0, [(server, "0") for server in servers]
    while pending and looked < MOST_KEYS:
        server, cursor = pending.pop()
        arguments = cursor, "MATCH", "prometheus[_#]*", "COUNT", str(SCAN_COUNT)
        ((following, found),) = server.run([Command("SCAN", arguments, has_key=False)])
        looked += SCAN_COUNT
        if (next_cursor := text_of(following)) != "0":
            pending.append((server, next_cursor))
        names = [*map(text_of, found)]
        others.update(name.removeprefix("prometheus#") for name in names if name.startswith("prometheus#"))
        ours = [name for name in names if name.startswith(keys.start)]
        owners = server.run([Command("HGET", (name, "#prefix")) for name in ours]) if ours else []
        foreign += [name for name, owner in zip(ours, owners, strict=True) if owner is None or isinstance(owner, Exception)]
    return sorted(foreign), others - {keys.prefix}, not pending
