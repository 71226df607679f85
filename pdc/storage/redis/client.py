"""Clients of redis-py with the timeouts and options that a storage needs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, HiredisRespSerializer
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool
from redis.utils import HIREDIS_AVAILABLE

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 5.0
"""How long a call may last; a URL may name other timeouts (``?socket_timeout=1``), a client of the application shorter ones."""
MOST_MIXED = 16
"""The most arguments of redis-py's own commands, which may be numbers."""

_RETRY = Retry(NoBackoff(), 0, (redis.ConnectionError,))
"""No retries: the server sends once more by itself."""
_POOLS = (redis.ConnectionPool, redis.BlockingConnectionPool, SentinelConnectionPool)
"""The pools that do nothing but connect, so that a pool of our own can take their place."""


def client_from_url(url: str) -> Any:
    """A client for the URL. Raises ValueError, without the password, for one that redis-py cannot use."""
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=SOCKET_SECONDS, retry=_RETRY)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # it does not connect, but knows which options there are
    except ValueError:  # which may quote a part of the password
        reason = "expected one like redis://:password@localhost:6379/0"
    except (TypeError, RedisError) as error:
        reason = str(error)
    else:
        if not _has_stray_at(url):
            return client
        reason = "in a password, @ / ? # and % are written as %40 %2F %3F %23 and %25, and so is @ elsewhere"
    raise ValueError(f"setup(redis={_shown(url)!r}) cannot use this URL: {reason}")


def _has_stray_at(url: str) -> bool:
    """True if an @ is where no password can end: then the host, or another part that messages show, may belong to one."""
    parts = urlsplit(url)
    return "@" in parts.path + parts.fragment or ("@" in parts.query and "@" not in parts.netloc)


_PLAIN_URL = re.compile(r"(\w+://)([^/?#]*@)?((?:[\w.-]*|\[[\w:.]*\])(?::\d*)?(?:/\d*)?)(?:\?([^@#]*))?")


def _shown(url: str) -> str:
    """The URL without parts that may be a password, however it is misspelt.

    An option shows its value only if redis-py parses it.
    """
    plain = _PLAIN_URL.fullmatch(url)
    if plain is None:
        return re.sub(r"^(rediss?://|unix://)?.*", r"\1***", url, flags=re.DOTALL)
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
    seconds = SOCKET_SECONDS if seconds is None else seconds
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class, "retry": _RETRY}
    options |= {"retry_on_error": [], "retry_on_timeout": False}
    for name, longest in (("socket_timeout", seconds), ("socket_connect_timeout", min(seconds, CONNECT_SECONDS))):
        given = options.get(name)
        options[name] = longest if given is None else min(given, longest)
    if not isinstance(pool, SentinelConnectionPool):
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    options |= {"is_master": pool.is_master, "check_connection": pool.check_connection}
    manager = _sentinel_with_timeouts(pool.sentinel_manager)
    return redis.Redis(connection_pool=SentinelConnectionPool(pool.service_name, manager, **options))


def _sentinel_with_timeouts(sentinel: Sentinel) -> Sentinel:
    """The sentinel with the time of a connect for each of its servers."""
    limited = copy.copy(sentinel)
    limited.sentinels = [with_timeouts(server, CONNECT_SECONDS) for server in sentinel.sentinels]
    return limited


def pools_of(client: Any) -> Iterator[Any]:
    """The pool of a client, and the pools of the sentinels that it asks for the server."""
    yield client.connection_pool
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for server in () if manager is None else manager.sentinels:
        yield server.connection_pool


def connection_for(client: Any) -> Any:
    """A connection with the options of the client's pool, but outside of it; its replies are bytes."""
    pool = client.connection_pool
    options = {**_PACKER, **_UNNAMED, **pool.connection_kwargs, "decode_responses": False}  # a reply may be no text
    return pool.connection_class(**options)


def limit_timeouts(connection: Any, seconds: float) -> None:
    """Limit the next call of a connection to so many seconds."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        setattr(connection, name, min(getattr(connection, name) or seconds, seconds))
    if (opened := socket_of(connection)) is not None:
        opened.settimeout(connection.socket_timeout)


def socket_of(connection: Any) -> Any:
    """The socket of a connection; None where it has none."""
    return getattr(connection, "_sock", None)


def detach(connection: Any) -> None:
    """Drop the socket of a connection, if it has one, without closing its descriptor."""
    if (opened := socket_of(connection)) is not None:
        opened.detach()
        connection._sock = None


class _TextPacker(HiredisRespSerializer):
    """Packs commands with texts only: hiredis 3 crashes where a handler raises while it makes a text of a number."""

    def pack(self, *args: Any) -> Any:
        """The command as bytes."""
        if len(args) > MOST_MIXED:  # a command of ours, which has texts only
            return super().pack(*args)
        texts: list[Any] = [str(each) if isinstance(each, (int, float)) else each for each in args]
        return super().pack(*texts)


_UNNAMED: dict[str, Any] = {"lib_name": None, "lib_version": None} if redis.__version__.startswith("5.") else {}
"""Options that keep the name of redis-py 5 from a Redis before 7.2, which refuses it. The error would keep the frames that it
came through, and the application's objects in them, until the garbage collector runs."""
_PACKER = {"command_packer": _TextPacker()} if HIREDIS_AVAILABLE else {}
