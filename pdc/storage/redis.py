"""Metrics in Redis: one hash a metric, and one sorted set that lists the metrics of a prefix."""

from __future__ import annotations

import copy
import math
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
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
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool
from redis.utils import HIREDIS_AVAILABLE

from ..files import Descriptor
from ..interruption import interruption, locked
from . import (
    FORGET_VALUES_SECONDS,
    FORGET_WRITER_SECONDS,
    ID,
    LEFT_SECONDS,
    Batch,
    ForkSafe,
    Kind,
    Operation,
    Outcome,
    Snapshot,
    Stamped,
    StorageError,
    Update,
    new_id,
)

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 5.0
"""How long a call may last; a URL may name other timeouts (``?socket_timeout=1``), a client of the application shorter ones."""
MOST_RELIST_SECONDS = 60.0
"""How long a batch asks only whether the index is there, not whether it has its metrics."""
MOST_NUMBERS = 16
"""Of arguments in commands of redis-py, which may be numbers."""
MOST_OPERATIONS = 1000
"""Of the metrics that are changed in one call: more of them would let other clients of the server wait."""

_APPLY = """
local prefix, expire, writer, sequence, leaving = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local forget_writer_after, forget_values_after, left_after = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST, CHUNK = 9, 1000
local FATES = {live = 'drop', all = 'drop', sum = 'fold', min = 'fold', max = 'fold', mostrecent = 'fold'}
local clock = redis.call('TIME')
local now, now_text = clock[1] + clock[2] / 1000000, string.format('%s.%06d', clock[1], clock[2])

local key, first, last, fields, current, written

local function read()
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local values = redis.pcall('HMGET', key, unpack(fields, from, to))
    if values.err then return values end
    for i = from, to do current[fields[i]] = values[i - from + 1] end
  end
end

local function text(number)
  local short = string.format('%.15g', number)
  if tonumber(short) == number then return short end
  return string.format('%.17g', number)
end

local function put(field, value)
  written[#written + 1] = field
  written[#written + 1] = value
end

local function flush()
  for from = 1, #written, CHUNK do
    redis.call('HSET', key, unpack(written, from, math.min(from + CHUNK - 1, #written)))
  end
  written = {}
end

local function parse_mark(mark)
  local last, seen, fate = string.match(mark, '^(%d+) (%S+) ?(%a*)$')
  return last or '-1', seen or '0', fate or ''
end

local function remove(doomed)
  for from = 1, #doomed, CHUNK do
    redis.call('HDEL', key, unpack(doomed, from, math.min(from + CHUNK - 1, #doomed)))
  end
end

local function has_labels(field, wanted)
  local start = string.find(field, '{', 1, true)
  if not start then return false end
  local ours, labels = pcall(cjson.decode, string.sub(field, start))
  if not ours then return false end
  for name, value in pairs(wanted) do
    if labels[name] ~= value then return false end
  end
  return true
end

local function remove_matching(wanted)
  local doomed = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if has_labels(field, wanted) then doomed[#doomed + 1] = field end
  end
  remove(doomed)
end

local function find(pattern)
  local found, cursor = {}, '0'
  repeat
    local reply = redis.call('HSCAN', key, cursor, 'MATCH', pattern, 'COUNT', CHUNK)
    cursor = reply[1]
    for i = 1, #reply[2], 2 do found[reply[2][i]] = reply[2][i + 1] end
  until cursor == '0'
  return found
end

local function parse_stamped(value)
  local number, set_at = string.match(value, '^(%S+) (%S+)$')
  return tonumber(number), tonumber(set_at)
end

local function fold(fate, dead, value)
  local number, set_at = parse_stamped(dead or '')
  local new, new_set_at = parse_stamped(value)
  if not number or not set_at then return value end
  if not new or not new_set_at then return dead end
  if fate == 'sum' then return text(number + new) .. ' ' .. text(math.max(set_at, new_set_at)) end
  local wins = (fate == 'min' and new < number) or (fate == 'max' and new > number)
    or (fate == 'mostrecent' and new_set_at > set_at)
  return wins and value or dead
end

local function take_from(gone, pattern)
  flush()
  local doomed, folded = {}, {}
  for field, value in pairs(find(pattern)) do
    local fate, owner, labels = string.match(field, '^#(%a+):([^:]+):(.*)$')
    if FATES[fate] and gone[owner] then
      doomed[#doomed + 1] = field
      if FATES[fate] == 'fold' then
        local heir = '#' .. fate .. '::' .. labels
        folded[heir] = fold(fate, folded[heir] or redis.call('HGET', key, heir), value)
      end
    end
  end
  remove(doomed)
  for heir, value in pairs(folded) do put(heir, value) end
end

local function forget()
  flush()
  local doomed, gone = {}, {}
  for field, mark in pairs(find('#mark:*')) do
    local _, seen, fate = parse_mark(mark)
    local keep = (fate == '' or fate == 'live') and forget_writer_after or forget_values_after
    if (tonumber(seen) or 0) < now - keep then
      doomed[#doomed + 1] = field
      if fate ~= '' then gone[string.sub(field, 7)] = true end
    end
  end
  if next(gone) then take_from(gone, '#*') end
  remove(doomed)
end

local function add(before, amount)
  local number = (tonumber(before or '0') or 0) + tonumber(amount)
  if number % 1 == 0 and number ~= 0 and math.abs(number) < 1e15 then return number end
  return text(number)
end

local function apply(deletes, fate)
  if deletes then
    for i = first, last, 3 do
      if ARGV[i] == 'delete' then remove_matching(cjson.decode(ARGV[i + 1])) end
    end
    read()
  end
  for i = first, last, 3 do
    local kind, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if kind == 'stamp' then
      local number, age = string.match(value, '^(%S+) (%S+)$')
      put(field, number .. ' ' .. (age == 'never' and '0' or string.format('%.6f', now - tonumber(age))))
      fate = string.match(field, '^#(%a+):') or fate
    elseif kind == 'set' or kind == 'add' or (kind == 'init' and not current[field]) then
      if kind == 'add' then value = add(current[field], value) end
      current[field] = value
      put(field, value)
    end
  end
  return fate
end

local function update(meta, declare)
  local own_mark, deletes = '#mark:' .. writer, false
  fields, current, written = {'#prefix', own_mark, '#search', declare and '#meta' or nil}, {}, {}
  for i = first, last, 3 do
    local kind = ARGV[i]
    if kind == 'add' or kind == 'init' then
      fields[#fields + 1] = ARGV[i + 1]
    elseif kind == 'delete' then
      deletes = true
    end
  end
  local failed = read()
  if failed then return failed end
  local stored_prefix, stored_meta, stored_mark = current['#prefix'], current['#meta'], current[own_mark]
  if stored_prefix and stored_prefix ~= prefix then
    return redis.error_reply('PDCPREFIX ' .. stored_prefix)
  end
  if leaving and not stored_prefix then return 0 end

  local known, _, fate = parse_mark(stored_mark or '')
  known = tonumber(known)
  if known < sequence then fate = apply(deletes, fate) end
  if known <= sequence then
    local seen = now_text
    if leaving and fate ~= 'all' then
      if fate ~= '' then take_from({[writer] = true}, '#*:' .. writer .. ':*') end
      fate, seen = '', text(now - forget_writer_after + left_after)
    end
    put(own_mark, ARGV[4] .. ' ' .. seen .. ' ' .. fate)
  end
  local searched_at = tonumber(current['#search'] or '0') or 0
  local search_at = searched_at
  if search_at <= now or search_at > now + forget_writer_after then
    forget()
    search_at = now + forget_writer_after
  end
  if leaving then search_at = math.min(search_at, now + 2 * left_after) end
  if search_at ~= searched_at then put('#search', text(search_at)) end
  if declare or not stored_prefix then
    put('#prefix', prefix)
    put('#meta', meta)
  end
  flush()
  if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
  if declare and stored_meta and stored_meta ~= meta then return stored_meta end
  return stored_prefix and stored_mark and 1 or 0
end

local replies, at = {}, FIRST
for i = 1, #KEYS do
  key, first = KEYS[i], at + 3
  last = at + 2 + 3 * ARGV[at + 2]
  replies[i] = update(ARGV[at], ARGV[at + 1] == '1')
  at = last + 1
end
return replies
"""
"""Applies updates of one batch to the keys of their metrics. Of each it returns 1, 0 where nothing of the writer was there, the
meta that the update replaced, or an error for a key that is not ours to use. The arguments of all come first, then, for each
metric, its meta, whether to declare it, how many operations there are, and their kinds, fields and values."""

_LIST = """
local index, expire, listed, missing, due = KEYS[1], tonumber(ARGV[1]), {}, {}, false
local id = redis.call('ZRANGE', index, 0, 0)[1]
if not id or string.sub(id, 1, 4) ~= '#id:' then
  id = ARGV[2]
  redis.call('ZADD', index, '-inf', id)
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local soonest, latest = 1 / 0, 1 / 0
if expire > 0 then soonest, latest = now + expire, math.floor(now + expire * 1.1) end
local gone_at = expire > 0 and string.format('%.0f', latest) or '+inf'
for i = 3, #ARGV do
  local score = redis.call('ZSCORE', index, ARGV[i])
  if not score then missing[#missing + 1] = ARGV[i] end
  local known = score == 'inf' and 1 / 0 or tonumber(score or '0')
  due = due or known < soonest or known > latest
  listed[#listed + 1] = gone_at
  listed[#listed + 1] = ARGV[i]
end
if not due then return {id, missing} end
for first = 1, #listed, 1000 do
  redis.call('ZADD', index, unpack(listed, first, math.min(first + 999, #listed)))
end
redis.call('ZREMRANGEBYSCORE', index, 0, string.format('(%.0f', now))
local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
if last == 'inf' then
  redis.call('PERSIST', index)
elseif last then
  redis.call('PEXPIRE', index, string.format('%.0f', tonumber(last) - now))
end
return {id, missing}
"""

_DELETE = """
if redis.call('HGET', KEYS[1], '#prefix') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisStorage(ForkSafe):
    """Metrics under one prefix of a Redis database.

    The metric ``requests`` of the prefix ``myapp`` is the hash ``prometheus_myapp_requests``. The names are listed in
    ``prometheus#myapp``, which no metric key can spell, each with a time in milliseconds by which its hash has expired; the
    first, with ``-inf``, is the id of the storage.
    ``expire`` (seconds, None for never) is renewed by every write of a metric, and may differ from writer to writer.
    """

    def __init__(self, client: Any, prefix: str = "", expire: float | None = 3600) -> None:
        if not isinstance(client, (str, redis.Redis, redis.RedisCluster)):
            kind = f"{type(client).__module__}.{type(client).__qualname__}"
            raise TypeError(f"setup(redis=...) takes a redis.Redis, a redis.RedisCluster or a URL, got a {kind}")
        super().__init__()
        self.client: Any = _client_from_url(client) if isinstance(client, str) else client
        self._clustered = isinstance(self.client, redis.RedisCluster)
        self._client: Any = self.client if isinstance(client, (str, redis.RedisCluster)) else _brisk(client, SOCKET_SECONDS)
        self._own = isinstance(client, str) or self._client is not client
        self._prefix = prefix
        self._expire = 0 if expire is None else max(int(expire * 1000), 1)
        self._index = f"prometheus#{prefix}"
        self._relist_seconds = min(MOST_RELIST_SECONDS, (expire or math.inf) / 10)
        self._sentinel: Descriptor | None = None
        self._listed: dict[str, float] = {}
        """Until when, by `time.monotonic`, the index has these metrics for as long as their hashes last, if it is there."""
        self._scripts: dict[str, str] = {}
        self._connection: Any = None
        """Used without the client's pool: parts of that swallow exceptions that a handler of a signal raises into them."""
        self._nodes: dict[str, Any] = {}

    def __str__(self) -> str:
        if self._clustered:
            return "Redis cluster"
        pool = self.client.connection_pool
        options = pool.connection_kwargs
        where = options.get("path") or getattr(pool, "service_name", None)  # a socket, or what a sentinel is asked for
        return f"Redis {where}" if where else f"Redis {options.get('host', 'localhost')}:{options.get('port', 6379)}"

    @property
    def identity(self) -> str:
        if self._clustered:
            nodes = self.client.nodes_manager.startup_nodes
            return f"Redis cluster {' '.join(sorted(nodes))} {self._prefix}"
        return f"{self} {self.client.connection_pool.connection_kwargs.get('db') or 0} {self._prefix}"

    def places(self) -> list[str]:
        return [os.uname().nodename]

    def id(self) -> str:
        (found,) = self._run([("ZRANGE", self._index, "0", "0")])
        if isinstance(found, ResponseError):
            raise self._failed(found)
        return next((name for name in map(_text, found) if name.startswith(ID)), "")

    def apply(self, batch: Batch) -> Outcome:
        now = time.monotonic()
        due = [update.name for update in batch.updates if self._listed.get(update.name, 0.0) <= now]
        listing = (_LIST, [self._index], str(self._expire), batch.storage or new_id(), *due) if due else ("EXISTS", self._index)
        listed, *replies = self._run([listing, *(self._call(batch, updates) for updates in self._groups(batch))])
        if isinstance(listed, ResponseError):
            raise self._failed(listed)
        found, unlisted = listed if due else ("", [] if listed else [update.name for update in batch.updates])
        outcome = Outcome(set(map(_text, unlisted)), {}, {}, _text(found))
        if outcome.unknown:
            self._listed.clear()
        else:
            self._listed.update(dict.fromkeys(due, now + self._relist_seconds))
        for update, reply in zip(batch.updates, chain.from_iterable(replies), strict=True):
            if isinstance(reply, ResponseError):
                outcome.refused[update.name] = self._reason(update.name, reply)
            elif not reply:
                outcome.unknown.add(update.name)
            elif reply != 1:
                outcome.replaced[update.name] = _text(reply)
        for name in outcome.unknown:
            self._listed.pop(name, None)
        return outcome

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        wanted = sorted(self._names()) if names is None else list(names)
        replies = self._run([("TIME",), *(("HGETALL", self._key(name)) for name in reversed(wanted))])
        metrics: dict[str, Mapping[str, Any]] = {}
        for name in wanted:
            fields = replies.pop()  # text takes more room than what came from the server: let go of that
            if not isinstance(fields, ResponseError):
                own = _texts(fields)
                if own.pop("#prefix", None) == self._prefix:
                    metrics[name] = own
        seconds, microseconds = replies.pop()
        return Snapshot(int(seconds) + int(microseconds) / 1e6, metrics)

    def delete(self) -> None:
        names = self._names()
        self._listed.clear()
        self._run([*((_DELETE, [self._key(name)], self._prefix) for name in names), ("DEL", self._index)])

    def before_fork(self) -> None:
        self._abandon_lost()

    def close(self) -> None:
        self._abandon_lost()
        sentinel, self._sentinel = self._sentinel, None  # an interrupted close must not look like that of a daemon
        if self._connection is not None:
            self._connection.disconnect()
        if sentinel is not None:
            sentinel.close()

    def _key(self, name: str) -> str:
        return f"prometheus_{self._prefix}_{name}" if self._prefix else f"prometheus_{name}"

    def _names(self) -> list[str]:
        (names,) = self._run([("ZRANGE", self._index, "0", "-1")])
        if isinstance(names, ResponseError):
            raise self._failed(names)
        return [name for name in map(_text, names) if not name.startswith(ID)]

    def _groups(self, batch: Batch) -> Iterator[list[Update]]:
        """The updates of one call each: in a cluster a call has one key, and elsewhere other clients have their turns."""
        group: list[Update] = []
        size = 0
        for update in batch.updates:
            if group and (self._clustered or size + len(update.operations) > MOST_OPERATIONS):
                yield group
                group, size = [], 0
            group.append(update)
            size += len(update.operations)
        if group:
            yield group

    def _call(self, batch: Batch, updates: list[Update]) -> tuple[Any, ...]:
        now = time.monotonic()
        arguments = [self._prefix, str(self._expire), batch.writer, str(batch.sequence), str(int(batch.leaving))]
        arguments += map(str, (FORGET_WRITER_SECONDS, FORGET_VALUES_SECONDS, LEFT_SECONDS))
        for update in updates:
            arguments += (update.meta, str(int(update.declare)), str(len(update.operations)))
            for _, operations in update.by_kind():
                for operation in operations:
                    arguments += (operation.kind.value, operation.field, _argument(operation, now))
        return _APPLY, [self._key(update.name) for update in updates], *arguments

    def _run(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send commands, or scripts and the lists of their keys, in one round trip, and return their replies.

        All arguments are texts: hiredis 3 crashes where the handler of a signal raises while it makes a text of a number.

        Raises StorageError for every error but that a key is not ours to use, which stands among the replies.
        """
        try:
            replies = locked(self.lock, self._send_with_scripts, commands)
        except (RedisError, RedisClusterException, OSError) as error:
            raise self._failed(error) from error
        except BaseException:
            self._drop_connections()
            raise
        for reply in chain.from_iterable(reply if isinstance(reply, list) else [reply] for reply in replies):
            if isinstance(reply, Exception) and not str(reply).startswith(("PDCPREFIX", "WRONGTYPE")):
                raise self._failed(reply) from reply
        return replies

    def _send_with_scripts(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        replies = self._send(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._scripts.clear()
            replies = self._send(commands)
        return replies

    def _drop_connections(self) -> None:
        """Close the connection that a handler of a signal may have interrupted: replies may come that nobody will read.

        In a pool of the application it is among the idle ones by now; the others are in use by other threads.
        """
        with self.lock:
            if self._own:
                self.close()
                return
            clients = [node.redis_connection for node in self._client.get_nodes()] if self._clustered else [self._client]
            for pool in [client.connection_pool for client in clients if client is not None]:
                if isinstance(pool, redis.BlockingConnectionPool):
                    pool.disconnect()
                else:
                    pool.disconnect(inuse_connections=False)

    def _abandon_lost(self) -> None:
        """Forget connections whose descriptors were closed by others, as a daemon does: those may be of other files by now."""
        if self._sentinel is not None and self._sentinel.status() is None:
            self._sentinel = None
            if self._own:
                _detach(self._connection)
                self._connection = None
                for pool in _pools(self._client):
                    for connection in (*pool._available_connections, *pool._in_use_connections):
                        _detach(connection)
                    pool.reset()

    def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._abandon_lost()
        if self._sentinel is None:
            self._sentinel = Descriptor.sentinel()
        if self._clustered:
            self._find_nodes_again()
            return [self._send_alone(self._prepare(*command)) for command in commands]
        prepared = [self._prepare(*command) for command in commands]
        if self._own:
            return self._exchange(prepared)
        with self._client.pipeline(transaction=False) as pipeline:
            for command in prepared:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies

    def _exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send the commands on the own connection; once more where it died while it was idle, the buffer does the rest."""
        connection = self._connected()
        try:
            return _replies(connection, commands)
        except redis.ConnectionError as error:
            if interruption(error) is not None:
                raise
            return _replies(connection, commands)

    def _connected(self) -> Any:
        """The own connection; one that was made before a fork is the parent's."""
        if self._connection is None or self._connection.pid != os.getpid():
            pool = self._client.connection_pool
            self._connection = pool.connection_class(**{**_PACKER, **pool.connection_kwargs})
        return self._connection

    def _find_nodes_again(self) -> None:
        """Tell a cluster's client the nodes that it knew: redis-py before 8 forgets each that fails, at last all."""
        known = self._client.nodes_manager.startup_nodes
        self._nodes.update(known)
        if not known:
            known.update(self._nodes)

    def _send_alone(self, command: tuple[Any, ...]) -> Any:
        options = {"target_nodes": redis.RedisCluster.RANDOM} if command == ("TIME",) else {}
        try:
            return self._client.execute_command(*command, **options)
        except ResponseError as error:
            return error

    def _prepare(self, command: str, *arguments: Any) -> tuple[Any, ...]:
        if "\n" not in command:
            return command, *arguments
        if command not in self._scripts:
            self._scripts[command] = self._load(command)
        keys, *rest = arguments
        return "EVALSHA", self._scripts[command], str(len(keys)), *keys, *rest

    def _load(self, script: str) -> str:
        if not self._own:
            return _text(self._client.script_load(script))
        (reply,) = self._exchange([("SCRIPT", "LOAD", script)])
        if isinstance(reply, ResponseError):
            raise reply
        return _text(reply)

    def _reason(self, name: str, refusal: ResponseError) -> str:
        key = self._key(name)
        owner = str(refusal).removeprefix("PDCPREFIX").strip()
        if owner == str(refusal):
            return f"the key {key!r} holds something that is not a metric: choose another redis_prefix"
        return f"the key {key!r} belongs to the redis_prefix {owner!r}, not {self._prefix!r}: choose another one"

    def _failed(self, error: Exception) -> StorageError:
        remedy = next((text for kinds, text in _REMEDIES if isinstance(error, kinds)), "")
        if "executing the script can't run" in str(error):  # Redis 7.0 does not say which command
            remedy = _RIGHTS_REMEDY
        return StorageError(f"{self} failed: {type(error).__name__}: {str(error).rstrip('.')}{remedy}")


_COMMANDS = {"evalsha", "exists", "script|load", *re.findall(r"redis\.p?call\('(\w+)'", (_APPLY + _LIST + _DELETE).lower())}
READER_RIGHTS = "%R~prometheus_* %R~prometheus#* +hgetall +time +zrange"
WRITER_RIGHTS = f"~prometheus_* ~prometheus#* {' '.join(sorted(f'+{command}' for command in _COMMANDS | {'hgetall'}))}"
"""What ``ACL SETUSER`` must give to a user that only scrapes, and to one that counts."""
_RIGHTS_REMEDY = f". A user that counts needs the rights {WRITER_RIGHTS}; one that only scrapes, {READER_RIGHTS}."
_REMEDIES: list[tuple[Any, str]] = [
    (AuthenticationError, ". Check the user, the password and what they may do."),
    (NoPermissionError, _RIGHTS_REMEDY),
    (ReadOnlyError, ". This is a replica: give setup() the primary."),
    (OutOfMemoryError, ". Raise maxmemory, or let it evict keys; what is pending is kept in memory until then."),
    (redis.TimeoutError, ". It did not answer in time: check its load and the network."),
    ((redis.ConnectionError, RedisClusterException, OSError), ". Check that it runs and can be reached at this address."),
]


_RETRY = Retry(NoBackoff(), 0, (redis.ConnectionError,))
"""None: `RedisStorage._exchange` does that."""
_POOLS = (redis.ConnectionPool, redis.BlockingConnectionPool, SentinelConnectionPool)
"""Of which we know what they do, and can make our own."""


def _client_from_url(url: str) -> Any:
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=SOCKET_SECONDS, retry=_RETRY)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # it does not connect, but knows which options there are
    except ValueError:  # which may quote a part of the password
        reason = "expected one like redis://:password@localhost:6379/0"
    except (TypeError, RedisError) as error:
        reason = str(error)
    else:
        return client
    shown = re.sub(r"(?<=//).*@|(?<=password=)[^&]*", "***", url)
    raise ValueError(f"setup(redis={shown!r}) cannot use this URL: {reason}")


def _brisk(client: redis.Redis, seconds: float) -> redis.Redis:
    """A client with the options of this one and connections of its own, which gives up after so many seconds.

    redis-py's defaults try for a minute (version 8) or wait for ever (before). A client or pool that is not of redis-py's
    own classes may do more than connect: that client is used as it is.
    """
    pool = client.connection_pool
    if type(client) is not redis.Redis or type(pool) not in _POOLS:
        return client
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class, "retry": _RETRY}
    options |= {"retry_on_error": [], "retry_on_timeout": False}
    for name, longest in (("socket_timeout", seconds), ("socket_connect_timeout", min(seconds, CONNECT_SECONDS))):
        given = options.get(name)
        options[name] = longest if given is None else min(given, longest)
    if not isinstance(pool, SentinelConnectionPool):
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    options |= {"is_master": pool.is_master, "check_connection": pool.check_connection}
    manager = _brisk_sentinel(pool.sentinel_manager)
    return redis.Redis(connection_pool=SentinelConnectionPool(pool.service_name, manager, **options))


def _brisk_sentinel(sentinel: Sentinel) -> Sentinel:
    """The same, each of its servers given the time of a connect."""
    brisk = copy.copy(sentinel)
    brisk.sentinels = [_brisk(server, CONNECT_SECONDS) for server in sentinel.sentinels]
    return brisk


def _pools(client: Any) -> Iterator[Any]:
    """The pool of a client, and of those that it asks which server to use."""
    yield client.connection_pool
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for server in () if manager is None else manager.sentinels:
        yield server.connection_pool


def _detach(connection: Any) -> None:
    """Forget the socket of a connection, if there is one, without closing its descriptor."""
    if getattr(connection, "_sock", None) is not None:
        connection._sock.detach()
        connection._sock = None


def _argument(operation: Operation, now: float) -> str:
    value = operation.value
    if isinstance(value, Stamped):
        age = value.age(now)
        return f"{_argument(Operation(Kind.SET, '', value.number), now)} {'never' if age is None else repr(age)}"
    if isinstance(value, str):
        return value
    return repr(value).removesuffix(".0")


class _TextPacker(HiredisRespSerializer):
    """Packs commands with texts only: hiredis 3 crashes where a handler raises while it makes a text of a number."""

    def pack(self, *args: Any) -> Any:
        """The command as bytes."""
        if len(args) > MOST_NUMBERS:  # ours, which have texts only
            return super().pack(*args)
        texts: list[Any] = [str(each) if isinstance(each, (int, float)) else each for each in args]
        return super().pack(*texts)


_PACKER = {"command_packer": _TextPacker()} if HIREDIS_AVAILABLE else {}


def _replies(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    connection.connect()  # unless it is: those of a sentinel ask it for the address only here
    connection.send_packed_command(connection.pack_commands(commands))
    return [_reply(connection) for _ in commands]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _texts(fields: dict[Any, Any] | list[Any]) -> dict[str, str]:
    """The fields as texts, by C code as far as can be: there may be very many. A list has each value after its field."""
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    if isinstance(next(iter(fields), ""), bytes):
        return dict(zip(map(bytes.decode, fields), map(bytes.decode, fields.values()), strict=True))
    return fields
