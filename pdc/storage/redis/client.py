"""Clients of redis-py with the timeouts and options that a storage needs."""

from __future__ import annotations

import copy
import os
import re
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, HiredisRespSerializer, parse_url
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from ...process.interruption import let_through, tolerate
from ..redaction import is_address
from .bulk import Packer, read_in_bulk
from .commands import Repeated

if HIREDIS_AVAILABLE:
    import hiredis

    _pack: Any = hiredis.pack_command  # its annotation has one argument

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 5.0
"""How long a call may last; a URL may name other timeouts (``?socket_timeout=1``), a client of the application shorter ones."""
EXAMPLES = "redis://:password@localhost:6379/0, redis+cluster://host:6379,other:6379 or redis+sentinel://host:26379,other:26379/mymaster/0"
PORTS = {"cluster": 6379, "sentinel": 26379}
"""The port of a host that names none."""
OF_SENTINELS = "sentinel_"
"""The start of the names of options in a URL that are those of the sentinels."""

_RETRY = Retry(NoBackoff(), 0, (redis.ConnectionError,))
"""No retries: the server sends once more by itself."""
_CLUSTER_TRIES: dict[str, Any] = (
    {"cluster_error_retry_attempts": 1} if redis.__version__.startswith("5.") else {"retry": Retry(NoBackoff(), 1)}
)
"""One more try, for which the client asks for the nodes again."""
_POOLS = (redis.ConnectionPool, redis.BlockingConnectionPool, SentinelConnectionPool)
"""The pools that do nothing but connect, so that a pool of our own can take their place."""


class Cluster(NamedTuple):
    """A cluster that a URL names. Its client connects as it is made, so it is made late: with the first update or scrape."""

    nodes: list[tuple[str, int]]
    options: dict[str, Any]

    def connect(self) -> Any:
        """Make the client. Raises RedisError and RedisClusterException."""
        nodes = [ClusterNode(host, port) for host, port in self.nodes]
        return redis.RedisCluster(startup_nodes=nodes, **_CLUSTER_TRIES, **self.options)


def client_from_url(url: str) -> Any:
    """A client for the URL, or the cluster that it names. Raises ValueError, without the password, for an unusable URL."""
    try:
        return _made(url)
    except _URLError as error:
        reason = str(error)
    except ValueError as error:  # which may quote a part of the password
        let_through(error)
        reason = f"did you mean redis://{url}?" if is_address(url) else f"expected one like {EXAMPLES}"
    except (TypeError, RedisError) as error:
        let_through(error)
        unknown = re.search("unexpected keyword argument ('.*')", str(error))
        reason = f"redis-py has no option {unknown[1]}" if unknown else str(error)
    raise ValueError(f"cannot use the URL {_shown(url)!r}: {reason}")


class _URLError(ValueError):
    """The reason why a URL cannot be used, without parts of it."""


def _made(url: str) -> Any:
    several = _SEVERAL.fullmatch(url)
    if several is None:
        _refuse_stray_at(url)
        return _one(url)
    scheme, kind, user, hosts, path, options = several.groups("")
    nodes = [_address(f"{scheme}://{host}", PORTS[kind]) for host in hosts.split(",")]
    first = f"{scheme}://{user}{hosts.partition(',')[0]}"
    _refuse_stray_at(f"{first}{path}{options}")
    return (_cluster if kind == "cluster" else _sentinel)(first, nodes, path, options)


def _one(url: str) -> redis.Redis:
    """A client of one server."""
    client = redis.Redis.from_url(url, **_timeouts(SOCKET_SECONDS))
    pool = client.connection_pool
    pool.connection_class(**pool.connection_kwargs)  # it does not connect, but knows which options there are
    _refuse_other_database(url)
    return client


def _timeouts(seconds: float) -> dict[str, Any]:
    return {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": seconds, "retry": _RETRY}


def _address(url: str, port: int) -> tuple[str, int]:
    options = parse_url(url)
    if "host" not in options:
        raise ValueError(url)
    return options["host"], options.get("port", port)


def _options(url: str, seconds: float) -> dict[str, Any]:
    """The options of a connection that the URL of one server names, and our timeouts."""
    _one(url)
    options = {**_timeouts(seconds), **parse_url(url)}
    is_secure = options.pop("connection_class", None) is not None
    for name in ("host", "port"):
        options.pop(name, None)
    return {**options, "ssl": True} if is_secure else options


def _cluster(first: str, nodes: list[tuple[str, int]], path: str, query: str) -> Cluster:
    options = _options(f"{first}{path}{query}", SOCKET_SECONDS)
    if options.pop("db", 0):
        raise _URLError("a cluster has the database 0 only: remove the other one")
    del options["retry"]
    return Cluster(nodes, options)


def _sentinel(first: str, nodes: list[tuple[str, int]], path: str, query: str) -> Any:
    """A client that asks these sentinels for the primary. Those options of the query whose names begin so are theirs."""
    named = re.fullmatch(r"/([^/]+)(/.*)?", path)
    if named is None:
        raise _URLError(f"expected the name of the primary after the sentinels, as in {EXAMPLES.rpartition(' ')[2]}")
    pairs = parse_qsl(query.removeprefix("?"))
    own = [pair for pair in pairs if not pair[0].startswith(OF_SENTINELS)]
    theirs = [(name.removeprefix(OF_SENTINELS), value) for name, value in pairs if name.startswith((OF_SENTINELS, "ssl_"))]
    scheme = first.partition("://")[0]
    options = _options(f"{first}{named[2] or ''}?{urlencode(own)}", SOCKET_SECONDS)
    sentinel_options = _options(f"{scheme}://sentinel?{urlencode(theirs)}", CONNECT_SECONDS)
    return Sentinel(nodes, sentinel_kwargs=sentinel_options, **options).master_for(unquote(named[1]))


def _refuse_stray_at(url: str) -> None:
    """Raise where an @ is at the end of no password: then the host, or another part that messages show, may belong to one."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.fragment or ("@" in parts.query and "@" not in parts.netloc):
        raise _URLError("in a password, @ / ? # and % are written as %40 %2F %3F %23 and %25, and so is @ elsewhere")


def _refuse_other_database(url: str) -> None:
    """Raise where the path of a server is no number: redis-py would use the database 0, or the number that its digits make."""
    scheme, _, path, *_ = urlsplit(url)
    if scheme != "unix" and not re.fullmatch(r"/*\d*/*", path):
        got = repr(path[1:]) if re.fullmatch(r"[\w./-]+", path) else "another text"
        raise _URLError(
            f"expected the number of a database after the port, got {got}: a prefix is redis_prefix or PDC_REDIS_PREFIX"
        )


_SEVERAL = re.compile(r"(rediss?)\+(cluster|sentinel)://([^/?#]*@)?([^/?#]*)(/[^?#]*)?(\?[^#]*)?")
"""A URL with several hosts, separated by commas."""
_HOST = r"(?:[\w.-]*|\[[\w:.]*\])(?::\d*)?"
_END = r"(?:\?([^@#]*))?"
_PLAIN_URL = re.compile(rf"(\w+(?:\+cluster)?://)([^/?#]*@)?({_HOST}(?:,{_HOST})*(?:/\d*)?){_END}")
_PLAIN_SENTINEL_URL = re.compile(rf"(\w+\+sentinel://)([^/?#]*@)?({_HOST}(?:,{_HOST})*(?:/[\w.-]*)?(?:/\d*)?){_END}")


def _shown(url: str) -> str:
    """The URL without parts that may be a password, however it is misspelt.

    An option shows its value only if redis-py parses it.
    """
    if is_address(url):
        return url
    plain = _PLAIN_URL.fullmatch(url) or _PLAIN_SENTINEL_URL.fullmatch(url)
    if plain is None:
        return re.sub(r"^(rediss?(?:\+cluster|\+sentinel)?://|unix://)?.*", r"\1***", url, flags=re.DOTALL)
    scheme, user, place, options = plain.groups()
    shown = [f"{name}={value if name in URL_QUERY_ARGUMENT_PARSERS else '***'}" for name, value in parse_qsl(options or "")]
    return f"{scheme}{'***@' if user else ''}{place}{'?' if shown else ''}{'&'.join(shown)}"


def with_timeouts(client: redis.Redis, seconds: float | None = None) -> redis.Redis:
    """A client with the options of this one and connections of its own, which gives up after so many seconds.

    redis-py's defaults try for a minute (version 8) or wait for ever (before). A client or pool of another class than
    redis-py's own may do more than connect: that client is returned as it is.
    """
    pool = client.connection_pool
    if type(client) is not redis.Redis or type(pool) not in _POOLS:
        return client
    of_sentinels = CONNECT_SECONDS if seconds is None else seconds / (len(sentinels_of(client)) + 1)
    seconds = SOCKET_SECONDS if seconds is None else seconds
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class, "retry": _RETRY}
    options |= {"retry_on_error": [], "retry_on_timeout": False}
    for name, longest in (("socket_timeout", seconds), ("socket_connect_timeout", min(seconds, CONNECT_SECONDS))):
        given = options.get(name)
        options[name] = longest if given is None else min(given, longest)
    if not isinstance(pool, SentinelConnectionPool):
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    options |= {"is_master": pool.is_master, "check_connection": pool.check_connection}
    manager = _sentinel_with_timeouts(pool.sentinel_manager, of_sentinels)
    return redis.Redis(connection_pool=SentinelConnectionPool(pool.service_name, manager, **options))


def _sentinel_with_timeouts(sentinel: Sentinel, seconds: float) -> Sentinel:
    """The sentinel with so many seconds for each of its servers."""
    limited = copy.copy(sentinel)
    limited.sentinels = [with_timeouts(server, seconds) for server in sentinel.sentinels]
    return limited


def sentinels_of(user: Any) -> list[Any]:
    """The clients of the sentinels that a client, or a connection, asks for the server."""
    manager = getattr(getattr(user, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else manager.sentinels


def disconnect_sentinels(*users: Any) -> None:
    """Close the connections to the sentinels of these clients and connections."""
    for user in users:
        for sentinel in sentinels_of(user):
            sentinel.connection_pool.disconnect()


def pools_of(client: Any) -> Iterator[Any]:
    """The pool of a client, and the pools of the sentinels that it asks for the server."""
    yield client.connection_pool
    for server in sentinels_of(client):
        yield server.connection_pool


def connection_for(client: Any) -> Any:
    """A connection with the options of the client's pool, but outside of it; its replies are bytes.

    Its attribute `awaits_replies` is true while replies may come: after an exception of a handler, nobody has read them.
    """
    pool = client.connection_pool
    options = {**_PACKER, **pool.connection_kwargs, **_UNNAMED, "decode_responses": False}  # a reply may be no text
    if getattr(options.get(_MAINTENANCE), "enabled", "") == "auto":
        options[_MAINTENANCE] = None
    connection = pool.connection_class(**options)
    read_in_bulk(connection)
    connection.awaits_replies = False
    return connection


def limit_timeouts(connection: Any, client: Any, seconds: float) -> None:
    """Limit the next call of a connection of that client to so many seconds; it may have to ask the sentinels first."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        setattr(connection, name, min(getattr(connection, name) or seconds, seconds))
    if (opened := socket_of(connection)) is not None:
        opened.settimeout(connection.socket_timeout)
    elif sentinels_of(client):
        disconnect_sentinels(connection)
        connection.connection_pool = with_timeouts(client, seconds).connection_pool


def socket_of(connection: Any) -> Any:
    """The socket of a connection; None where it has none."""
    return getattr(connection, "_sock", None)


def break_off(connection: Any) -> None:
    """Let the call that waits for a reply on a connection fail at once."""
    if (opened := socket_of(connection)) is not None:
        kind = socket.socket if isinstance(opened, socket.socket) else type(opened)  # the method of TLS would end that first
        with tolerate(OSError):  # the server, or the thread that waits for it, has closed it
            kind.shutdown(opened, socket.SHUT_RDWR)


def detach(connection: Any) -> None:
    """Drop the socket of a connection, if it has one, without closing its descriptor."""
    if (opened := socket_of(connection)) is not None:
        opened.detach()
        connection._sock = None


def packed(connection: Any, commands: Sequence[tuple[str | bytes, ...]]) -> list[bytes]:
    """The commands as bytes. All of their arguments are texts or bytes, which redis-py would look through for other ones."""
    if any(isinstance(each, Repeated) for each in commands):
        return [b"".join(map(partial(_kept, connection), commands))]
    return [b"".join(map(_pack, commands) if HIREDIS_AVAILABLE else connection.pack_commands(commands))]


def _kept(connection: Any, command: tuple[str | bytes, ...]) -> bytes:
    """A command as bytes, which one that is sent again and again keeps."""
    if not isinstance(command, Repeated):
        return b"".join(packed(connection, [command]))
    command.packed = command.packed or b"".join(packed(connection, [tuple(command)]))
    return command.packed


def sends(connection: Any, command: tuple[str | bytes, ...]) -> bool:
    """Send the command, of texts or bytes, on a connection that this process has open; return False without one."""
    if getattr(connection, "_sock", None) is None or connection.pid != os.getpid():
        return False
    connection.send_packed_command((_pack(command),) if HIREDIS_AVAILABLE else connection.pack_command(*command))
    return True


class _TextPacker(HiredisRespSerializer):
    """Packs commands of redis-py with texts only: hiredis 3 crashes where a handler raises while it makes one of a number."""

    def pack(self, *args: Any) -> Any:
        """The command as bytes."""
        texts: list[Any] = [str(each) if isinstance(each, (int, float)) else each for each in args]
        return super().pack(*texts)


_UNNAMED: dict[str, Any] = dict.fromkeys(["driver_info"] if find_spec("redis.driver_info") else ["lib_name", "lib_version"])
"""Options that keep the name of redis-py from the server. A Redis before 7.2 refuses it, and redis-py takes each ResponseError
for that, also one of a handler: then a reply is still to come, and each command would get the one before. With redis-py 5 the
refusal keeps the frames that it came through, and the application's objects in them, until the garbage collector runs."""
_MAINTENANCE = "maint_notifications_config"
"""The option by which redis-py asks each server for notices of its maintenance, with a round trip more for each connection.

A Redis server that anybody can install knows no such command. An application whose server does may ask for it.
"""
_PACKER = {"command_packer": _TextPacker() if HIREDIS_AVAILABLE else Packer()}
