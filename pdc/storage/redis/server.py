"""Sends commands to a Redis server or a cluster, and turns the errors of the driver into errors that name the remedy."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import redis
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.sentinel import MasterNotFoundError

from ...process.files import Descriptor
from ...process.interruption import interruption, is_own, locked, locked_within
from .. import ForkSafe, StorageError
from ..redaction import without_secrets
from . import client as clients
from .commands import Command, Count, Repeated, Request, Script, reader_rights, source, text_of, writer_rights

P = ParamSpec("P")
T = TypeVar("T")

_RAW = {NEVER_DECODE: True}
"""Options of commands whose replies may be no text."""
_PLAIN = {bytes, int, list, type(None)}
"""The types of most replies, which may be thousands."""
_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
_REPR_OF_CLIENT = re.compile(r"<?(?:redis\.client\.)?Redis[<(].*?[>)]{3,} - ")
_REMEDIES: list[tuple[Any, str]] = [
    (AuthenticationError, "Check the user, the password and what they may do."),
    (ReadOnlyError, "This is a replica: give setup() the primary."),
    (OutOfMemoryError, "Raise maxmemory; what is pending is kept in memory until then."),
    (redis.TimeoutError, "It did not answer in time: check its load and the network."),
    ((redis.ConnectionError, RedisClusterException, OSError), "Check that it runs and can be reached at this address."),
]
_REMEDIES_BY_TEXT = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "Name its authority with ?ssl_ca_certs=FILE in the URL, and the host as its certificate does.",
    ),
    ("Protocol error", "No Redis is at this port: check the port."),
    ("unknown command 'SENTINEL'", "No sentinel is at this port: name one at 26379, or use redis:// for one server."),
    ("Cluster mode is not enabled", "This is one server: use redis:// in place of redis+cluster://."),
    (
        "DB index is out of range",
        "The server has fewer databases: use a lower number after the port, or raise its `databases`.",
    ),
)
_OF_WRONG_PORTS = {
    True: (re.compile("Timeout connecting|closed by server|reset by peer|SSL|EOF"), "rediss:// is for ports with TLS only."),
    False: (re.compile("closed by server|reset by peer"), "A port with TLS needs rediss://."),
}
"""By the use of TLS: how drivers report a port that may use the other one, and the remedy."""
_REFUSALS = ("executing the script can't run", "ACL failure in script")
"""How Redis 7.0, and later ones and Valkey, refuse a command of a script."""


class Server(ForkSafe):
    """The server of a client, or its cluster."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        made = clients.client_from_url(client) if isinstance(client, str) else client
        self._cluster = made if isinstance(made, clients.Cluster) else None
        """The cluster that a URL names; its client is made late."""
        self.is_cluster = isinstance(made, (clients.Cluster, redis.RedisCluster))
        self._given: Any = None if self._cluster is not None else made
        is_used = self.is_cluster or isinstance(client, str)
        self._client: Any = self._given if is_used else clients.with_timeouts(client)
        self._has_own = not self.is_cluster and (isinstance(client, str) or self._client is not client)
        """True if it has a connection of its own, beside the connections of the application's client."""
        self._connection: Any = None
        """The own connection. It is outside the client's pool: parts of a pool swallow exceptions of signal handlers."""
        self._is_limited = False
        """True if its timeouts are those of a deadline."""
        self._sentinel: Descriptor | None = None
        self._shas: dict[str, str] = {}
        """By script, the digest by which the server knows it."""
        self._nodes: dict[str, Any] = {}

    @property
    def client(self) -> Any:
        """The client for the application. One of a cluster that a URL names connects as it is made: then, at the first use."""
        if self._given is None and self._cluster is not None:
            with self.lock:
                self._given = self._client = self._given or self._cluster.connect()
        return self._given

    def __str__(self) -> str:
        if self.is_cluster:
            return "Redis cluster"
        pool = self.client.connection_pool
        options = pool.connection_kwargs
        where = options.get("path") or self.service
        return f"Redis {where}" if where else f"Redis {options.get('host', 'localhost')}:{options.get('port', 6379)}"

    @property
    def identity(self) -> str:
        """The name of the database for all its users."""
        if self._cluster is not None:
            return f"{self} {' '.join(sorted(f'{host}:{port}' for host, port in self._cluster.nodes))}"
        if self.is_cluster:
            return f"{self} {' '.join(sorted(self._client.nodes_manager.startup_nodes))}"
        database = self._given.connection_pool.connection_kwargs.get("db") or 0
        return " ".join([f"{self} {database}", *map(_address, clients.sentinels_of(self._given))])

    def primaries(self) -> list[Server]:
        """Each primary of a cluster, on a connection of its own; elsewhere this server alone. Raises StorageError."""
        if not self.is_cluster:
            return [self]
        try:
            client = self.client
            return [Server(client.get_redis_connection(node)) for node in client.get_primaries()]
        except (RedisError, RedisClusterException, OSError) as error:
            raise self.failure(error) from self._without_secrets(error)

    def sentinels(self) -> list[Server]:
        """The sentinels that are asked for the server, each on a connection of its own."""
        return [] if self.is_cluster else [Server(client) for client in clients.sentinels_of(self._client)]

    @property
    def service(self) -> str:
        """The name of the primary that sentinels know; empty without them."""
        return "" if self.is_cluster else getattr(self.client.connection_pool, "service_name", "")

    def run(self, requests: list[Request]) -> list[Any]:
        """Send these in one round trip, and return their replies.

        Raises StorageError for every error but one: that a key is not ours to use stands among the replies.
        """
        send = self._send_apart if is_own(self.lock) else self._send
        self._await_turn()
        try:
            replies = locked(self.lock, send, requests) if self._has_own else locked(self.lock, self._guarded, send, requests)
        except (RedisError, RedisClusterException, OSError) as error:
            self._fail(error)
        for reply in replies:
            several = reply if isinstance(reply, list) else [reply]
            for each in several if {*map(type, several)} - _PLAIN else ():
                if isinstance(each, Exception) and not str(each).startswith(("PDC", "WRONGTYPE")):
                    raise self.failure(each) from self._without_secrets(each)
        return replies

    def call(self, name: str, keys: list[str], arguments: list[str]) -> Any:
        """Call a script as `run` does; in few steps where the own connection is as the last call left it."""
        lock = self.lock
        is_nested = is_own(lock)
        self._await_turn()
        try:
            with lock:
                if not is_nested and (reply := self._call_at_once(name, keys, arguments)) is not None:
                    return reply
        except (ResponseError, redis.ConnectionError) as error:  # the script is lost, or the connection died while it was idle
            if interruption(error) is not None or time.monotonic() >= self.deadline:
                self._fail(error)
        except (RedisError, OSError) as error:
            self._fail(error)
        finally:
            if not is_nested and is_own(lock):
                lock.release()
        (reply,) = self.run([Script(name, keys, tuple(arguments))])
        return reply

    def _call_at_once(self, name: str, keys: list[str], arguments: list[str]) -> Any:
        """Call a script on the own connection; return None where that is not as the last call left it."""
        is_limited = self._is_limited or self.deadline < math.inf
        if name not in self._shas or is_limited or self._sentinel is None or self._sentinel.status() is None:
            return None
        connection = self._connection
        if connection is None or connection.awaits_replies:
            return None
        connection.awaits_replies = True
        if not clients.sends(connection, ("EVALSHA", self._shas[name], str(len(keys)), *keys, *arguments)):
            return None
        try:
            reply = connection.read_response()
        except ResponseError as error:
            connection.awaits_replies = interruption(error) is not None
            raise
        connection.awaits_replies = False
        return reply

    def _guarded(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work on a client's own pool: where a handler's exception breaks it off, nobody finds unread replies there.

        A handler may have raised an exception of a class of the driver, too. The caller holds the lock.
        """
        try:
            return work(*args, **kwargs)
        except BaseException as error:
            if not isinstance(error, (RedisError, RedisClusterException, OSError)) or interruption(error) is not None:
                self._drop_connections()
            raise

    def _fail(self, error: Exception) -> NoReturn:
        """Raise the failure for an error."""
        raise self.failure(error) from self._without_secrets(error)

    def failure(self, error: Exception) -> StorageError:
        """The error to raise for one of the driver or the server."""
        text, remedy = str(error), _remedy(error, uses_tls=_uses_tls(self._cluster or self._client))
        if isinstance(error, MasterNotFoundError):
            text = _REPR_OF_CLIENT.sub("", text)  # pages about each sentinel
            asked = ", ".join(map(_address, clients.sentinels_of(self._client)))
            remedy = f"Check that these sentinels can be reached, accept the password, and know it by that name: {asked}."
        reason = without_secrets(text, self._secrets()).rstrip(".")
        return StorageError(f"{self} failed: {type(error).__name__}: {reason}{'. ' if remedy else ''}{remedy}")

    def set_deadline(self, deadline: float) -> None:
        super().set_deadline(deadline)
        if time.monotonic() >= deadline:
            clients.break_off(self._connection)

    def _await_turn(self) -> None:
        """Break off the call of another thread that lasts until the deadline: it may have begun when there was none."""
        if self.deadline < math.inf and not locked_within(self._left(), self.lock, lambda: None):
            clients.break_off(self._connection)

    def _left(self) -> float:
        """The seconds until the deadline; without one, the longest wait for a lock."""
        return min(max(self.deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)

    def before_fork(self) -> None:
        self._abandon_lost()

    def inherit(self, *, idle: bool) -> None:
        """Make the locks of a cluster's client anew: a thread of the parent may have held them while it asked for the nodes."""
        if not idle and self.is_cluster and self._client is not None:
            for owner in (self._client, self._client.nodes_manager):
                for name, lock in list(vars(owner).items()):
                    if type(lock) in _LOCKS:
                        setattr(owner, name, _LOCKS[type(lock)]())

    def close(self) -> None:
        """Close the own connection, once no other thread uses it; the next call opens a new one.

        A client without an own connection stays open where another thread uses it after the deadline.
        """
        if self._has_own:
            self._await_turn()
            locked(self.lock, self._close)
        else:  # the call of another thread cannot be broken off
            locked_within(self._left(), self.lock, self._close)

    def _close(self) -> None:
        self._abandon_lost()
        sentinel, self._sentinel = self._sentinel, None  # an interrupted close must not look like that of a daemon
        if self._connection is not None:
            self._connection.disconnect()
        if self._cluster is not None and self._client is not None:
            self._client.close()
        if self._has_own:
            clients.disconnect_sentinels(self._client, self._connection)
        if sentinel is not None:
            sentinel.close()

    def _disconnect(self, connection: Any) -> None:
        """Close an own connection. Where a call on it was broken off, that may have been while it asked for the address."""
        if connection.awaits_replies or self._is_limited:  # a deadline has connections of its own to sentinels
            clients.disconnect_sentinels(self._client, connection)
        connection.disconnect()

    def _send_apart(self, requests: list[Request]) -> list[Any]:
        """Send on another connection: a handler has interrupted a call of this thread, which has still to read its replies."""
        interrupted, self._connection = self._connection, None
        try:
            return self._send(requests)
        finally:
            used, self._connection = self._connection, interrupted
            if used is not None:
                self._disconnect(used)

    def _send(self, requests: list[Request]) -> list[Any]:
        if self._sentinel is None or self._sentinel.status() is None:
            self._abandon_lost()
            self._sentinel = Descriptor.sentinel()
        replies = self._send_once(requests)
        if NoScriptError in map(type, replies):
            self._shas.clear()
            replies = self._send_once(requests)
        return replies

    def _send_once(self, requests: list[Request]) -> list[Any]:
        if self.is_cluster:
            self._find_nodes_again(self.client.nodes_manager.startup_nodes)
            return [self._send_to_node(request) for request in requests]
        commands = [self._words(request) for request in requests]
        if self._has_own:
            return self._exchange(commands)
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command, **_RAW)
            return [_reply(each) for each in pipeline.execute(raise_on_error=False)]

    def _words(self, request: Request) -> tuple[str | bytes, ...]:
        """The command as redis-py takes it."""
        if isinstance(request, Repeated):
            return request
        if isinstance(request, Command):
            return request.name, *request.arguments
        name, keys, arguments = request
        if name not in self._shas:  # the digest by which the server knows the script
            self._shas[name] = self._load(source(request))
        return "EVALSHA", self._shas[name], Count(len(keys)), *keys, *arguments

    def _load(self, text: str) -> str:
        if not self._has_own:
            return text_of(self._client.script_load(text))
        (reply,) = self._exchange([("SCRIPT", "LOAD", text)])
        if isinstance(reply, ResponseError):
            raise reply
        return text_of(reply)

    def _exchange(self, commands: list[tuple[str | bytes, ...]]) -> list[Any]:
        """Send the commands on the own connection; once more where it died while it was idle. The buffer does the rest."""
        connection = self._connected()
        try:
            return _replies(connection, commands)
        except redis.ConnectionError as error:
            has_asked = isinstance(error, MasterNotFoundError)  # sentinels, just now
            if has_asked or interruption(error) is not None or time.monotonic() >= self.deadline:
                raise
            return _replies(connection, commands)

    def _connected(self) -> Any:
        """The own connection; one that was made before a fork is the parent's."""
        if self._is_limited and self.deadline == math.inf and self._connection is not None:
            self._disconnect(self._connection)  # its timeouts are those of the deadline that has ended
            self._connection = None
        if self._connection is None or self._connection.pid != os.getpid():
            self._connection = clients.connection_for(self._client)
        if self._connection.awaits_replies:
            self._disconnect(self._connection)
        self._is_limited = self.deadline < math.inf
        if self._is_limited:
            clients.limit_timeouts(self._connection, self._client, max(self.deadline - time.monotonic(), 0.001))
        return self._connection

    def _send_to_node(self, request: Request) -> Any:
        """Send to the node of a cluster that has the key."""
        words = self._words(request)
        is_anywhere = isinstance(request, Command) and not request.has_key
        options = {"target_nodes": redis.RedisCluster.RANDOM} if is_anywhere else {}
        try:
            return self._client.execute_command(*words, **options, **_RAW)
        except ResponseError as error:
            return _reply(error)

    def _find_nodes_again(self, known: dict[str, Any]) -> None:
        """Give a cluster's client the nodes that it knew: redis-py before 8 forgets each node that fails, in the end all."""
        self._nodes.update(known)
        if not known:
            known.update(self._nodes)

    def _drop_connections(self) -> None:
        """Close the connection that a signal handler may have interrupted: replies may come that nobody will read.

        In its pool it is among the idle ones by now; the others are in use by other threads.
        """
        if self._client is None:
            return
        nodes = [node.redis_connection for node in self._client.get_nodes()] if self.is_cluster else [self._client]
        for pool in [client.connection_pool for client in nodes if client is not None]:
            if isinstance(pool, redis.BlockingConnectionPool):  # redis-py 5 would close those in use, too
                for connection in filter(None, list(pool.pool.queue)):
                    connection.disconnect()
            else:
                pool.disconnect(inuse_connections=False)

    def _abandon_lost(self) -> None:
        """Drop connections whose descriptors others closed, as a daemon does: the numbers may belong to other files by now."""
        if self._sentinel is not None and self._sentinel.status() is None:
            self._sentinel = None
            if self._has_own:
                clients.detach(self._connection)
                self._connection = None
                for pool in clients.pools_of(self._client):
                    for connection in (*pool._available_connections, *pool._in_use_connections):
                        clients.detach(connection)
                    pool.reset()

    def _without_secrets(self, error: Exception) -> Exception | None:
        """The error, for a traceback; None where that would show a secret."""
        said = str(error)
        return error if without_secrets(said, self._secrets()) == said else None

    def _secrets(self) -> set[str]:
        """The passwords of the client, as far as they are known before it connects."""
        known: list[dict[str, Any]] = [self._cluster.options] if self._cluster is not None else []
        if self._client is not None:
            managers = [self._client.nodes_manager] if self.is_cluster else clients.pools_of(self._client)
            known += [each.connection_kwargs for each in managers]
        options = [(name, value) for each in known for name, value in each.items()]
        return {str(text_of(value)) for name, value in options if "password" in name and value}


def _uses_tls(client: Any) -> bool:
    """True for a client, or a cluster that a URL names, whose connections use TLS; never for a client of a cluster."""
    if isinstance(client, clients.Cluster):
        return "ssl" in client.options
    kind = getattr(getattr(client, "connection_pool", None), "connection_class", None)
    return isinstance(kind, type) and issubclass(kind, redis.SSLConnection)


def _remedy(error: Exception, *, uses_tls: bool) -> str:
    """The remedy of an error; empty where there is no known one."""
    text = str(error)
    if isinstance(error, NoPermissionError) or any(each in text for each in _REFUSALS):
        more = "; in a database other than 0, both need +select, too" if "'select'" in text else ""
        return f"A user that counts needs the rights {writer_rights()}; one that only scrapes, {reader_rights()}{more}."
    if known := [remedy for part, remedy in _REMEDIES_BY_TEXT if part in text]:
        return known[0]
    remedy = next((remedy for kinds, remedy in _REMEDIES if isinstance(error, kinds)), "")
    reported, of_tls = _OF_WRONG_PORTS[uses_tls]
    return f"{remedy} {of_tls}".strip() if reported.search(text) else remedy


def _address(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return f"{options.get('host')}:{options.get('port')}"


def _replies(connection: Any, commands: list[tuple[str | bytes, ...]]) -> list[Any]:
    connection.awaits_replies = True
    if clients.socket_of(connection) is None:
        connection.connect()  # only here a sentinel is asked for the address
    connection.send_packed_command(clients.packed(connection, commands))
    replies = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(_reply(error))
    connection.awaits_replies = False
    return replies


def _reply(received: Any) -> Any:
    """The reply. Raises an error that no server sent: a handler raised it before all replies were read."""
    if isinstance(received, ResponseError) and interruption(received) is not None:
        raise received
    return received
