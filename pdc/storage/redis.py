"""Metrics in Redis: one hash a metric, and one sorted set that lists the metrics of a prefix."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, HiredisRespSerializer
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

from ..process.files import Descriptor
from ..process.interruption import interruption, locked
from . import (
    FOLDED,
    FORGET_VALUES_SECONDS,
    FORGET_WRITER_SECONDS,
    ID,
    LEFT_SECONDS,
    MOST_TOGETHER,
    REMOVALS,
    SWEEPS,
    Batch,
    ForkSafe,
    Kind,
    Operation,
    Outcome,
    Parts,
    Selectors,
    Snapshot,
    Stamped,
    StorageError,
    Update,
    around_bound,
    foreign,
    new_id,
    series_of,
    without_secrets,
)
from .version2 import DEFAULT_PREFIX, VERSION2, report, taken_over

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 5.0
"""How long a call may last; a URL may name other timeouts (``?socket_timeout=1``), a client of the application shorter ones."""
MOST_RELIST_SECONDS = 60.0
"""How long a batch asks only whether the index is there, not whether it has its metrics."""
MOST_NUMBERS = 16
"""Of arguments in commands of redis-py, which may be numbers."""
MOST_READ = 12_000
"""How many fields are read in one go; a larger metric is read in pieces."""
MOST_LOOKED_AT = 2000
"""How large a piece is, in fields."""
STEMS = "#stems"
"""The field that tells how the fields of a metric's series begin, and which bounds its buckets have: a line ``<start>{<bound>``
for each. Every field that is new is entered there. In a metric that has none, the first search for writers to forget enters
the fields that are there; until then a line ``?`` comes first."""
INCOMPLETE = "\n?\n"
NO_BUCKETS = "?[^b]*"
"""Matches all fields but buckets."""
MOST_STEMS = 50_000
"""How long that may be, in bytes, where it is used to name the fields of a series: there is one for each process in a gauge."""
_SEVERAL_NUMBERS = re.compile(r"^(_sum:|_count:|_bucket:|#(?!exemplar|updated))", re.MULTILINE)
"""What series of more than one number that changes have among their stems."""
MOST_SERIES = 250
MOST_FIELDS = 2000
"""How many series and fields one call removes: more of them would let other clients of the server wait."""
MOST_FOUND = 500
"""How many fields one call looks at."""
BESIDE = "#"
"""The prefix of our keys beside those of version 2, where no other prefix keeps them apart; version 2 cannot spell it."""
MOST_PAGES = 200
"""How many thousand keys are looked at for those of version 2, once, before the first key of a program without a prefix."""
MADE_MILLISECONDS = "60000"
"""How long a hash stays that was made for a metric, where who made it is killed."""
MOST_OPERATIONS = 1000
"""Of the metrics that are changed in one call: more of them would let other clients of the server wait."""

_COMMON = (
    rf"local CHUNK, MOST_STEMS = 1000, {MOST_STEMS}"
    r"""

local function parse_mark(mark)
  local last, seen, fate = string.match(mark, '^(%d+) (%S+) ?(%a*)$')
  return last or '-1', seen or '0', fate or ''
end

local function stem_of(field)
  local stem = string.match(field, '^[^{]*{')
  if stem == '_bucket:{' or stem == '#exemplar_bucket:{' then
    return stem .. (string.match(field, '[{,]"le":"([^"]*)"') or '')
  end
  return stem
end

local function series_of(field)
  local labels = string.match(field, '{.*$')
  if labels and string.match(field, '^#?%a*_bucket:{') then
    labels = string.gsub(string.gsub(labels, '([{,])"le":"[^"]*",?', '%1', 1), ',}$', '}')
  end
  return labels
end

local function with_stem(stems, field)
  local stem = stem_of(field)
  if not stem or string.find(stems, '\n' .. stem .. '\n', 1, true) then return stems end
  return stems .. stem .. '\n'
end

local function is_complete(stems)
  return stems and string.sub(stems, 1, 3) ~= '\n?\n'
end

local function names_fields(stems)
  return is_complete(stems) and #stems <= MOST_STEMS
end

local function is_forgotten(mark, now, forget_writer_after, forget_values_after)
  local _, seen, fate = parse_mark(mark)
  local keep = (fate == '' or fate == 'live') and forget_writer_after or forget_values_after
  return (tonumber(seen) or 0) < now - keep
end

local function text(number)
  local short = string.format('%.15g', number)
  if tonumber(short) == number then return short end
  return string.format('%.17g', number)
end

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000, string.format('%s.%06d', time[1], time[2])
end

local function is_idle(since, now, idle)
  return (tonumber(string.match(since, ' (%S+)$') or '') or 0) <= now - idle
end

local function remove(key, doomed)
  for from = 1, #doomed, CHUNK do
    redis.call('HDEL', key, unpack(doomed, from, math.min(from + CHUNK - 1, #doomed)))
  end
end

local function is_of_version2(key)
  if redis.pcall('HGET', key, '#prefix') then return false end
  local cursor, fields = '0', {}
  repeat
    local reply = redis.call('HSCAN', key, cursor, 'COUNT', 10)
    cursor, fields = reply[1], reply[2]
  until cursor == '0' or #fields > 0
  return #fields > 0 and string.match(fields[1], '^_?%a*:{.*}$') ~= nil
end
"""
)
_APPLY = r"""
local prefix, expire, writer, sequence, leaving = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local forget_writer_after, left_after, SWEEPS = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local own_start, version2_start, index = ARGV[9], ARGV[10], ARGV[11]
local FIRST = 12
local now, now_text = clock()

local key, first, last, fields, current, written, stems, is_new

local function read()
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local values = redis.pcall('HMGET', key, unpack(fields, from, to))
    if values.err then return values end
    for i = from, to do current[fields[i]] = values[i - from + 1] end
  end
end

local function put(field, value)
  written[#written + 1] = field
  written[#written + 1] = value
end

local function note_stems(from, to)
  stems = stems or redis.call('HGET', key, '#stems') or is_new and '\n'
  if not stems then return end
  local before = stems
  for i = from, to, 2 do
    stems = with_stem(stems, written[i])
  end
  if stems ~= before or is_new then redis.call('HSET', key, '#stems', stems) end
end

local function flush()
  for from = 1, #written, CHUNK do
    local to = math.min(from + CHUNK - 1, #written)
    if redis.call('HSET', key, unpack(written, from, to)) > 0 then note_stems(from, to) end
  end
  written = {}
end

local function add(before, amount)
  local number = (tonumber(before or '0') or 0) + tonumber(amount)
  if number % 1 == 0 and number ~= 0 and math.abs(number) < 1e15 then return number end
  return text(number)
end

local function others_of(most, overflow)
  local found, new, elsewhere = {}, {}, {}
  for i = first, last, 3 do
    local field = ARGV[i + 1]
    local labels = series_of(field)
    if ARGV[i] ~= 'stamp' and labels then
      if found[labels] == nil then
        new[#new + 1], found[labels] = labels, false
      end
      found[labels] = found[labels] or current[field]
    end
    if labels then
      local stem, le = string.match(field, '^[^{]*'), string.match(stem_of(field), '_bucket:{(.*)$')
      elsewhere[i] = stem .. (le and overflow[2] .. le .. overflow[3] or overflow[1])
      fields[#fields + 1] = elsewhere[i]
    end
  end
  return found, new, elsewhere
end

local function limit(most, overflow)
  local is_known = true
  for i = first, last, 3 do is_known = is_known and (ARGV[i] == 'stamp' or current[ARGV[i + 1]]) end
  if is_known then return 0 end
  fields = {}
  local found, new, elsewhere = others_of(most, overflow)
  read()
  local has_overflow = false
  for _, field in pairs(elsewhere) do has_overflow = has_overflow or current[field] end
  local before = tonumber(current['#series'] or '0')
  local count, refused = before, 0
  for _, labels in ipairs(new) do
    local is_over = count - (has_overflow and 1 or 0) >= most
    if not found[labels] and labels ~= overflow[1] and is_over then
      found[labels], refused = 'over', refused + 1
    elseif not found[labels] and (labels ~= overflow[1] or not has_overflow) then
      count = count + 1
      has_overflow = has_overflow or labels == overflow[1]
    end
  end
  if refused > 0 and not has_overflow then count = count + 1 end
  for i, field in pairs(elsewhere) do
    if found[series_of(ARGV[i + 1])] == 'over' then ARGV[i + 1] = field end
  end
  if count ~= before then put('#series', text(count)) end
  return refused
end

local function expect_new()
  if redis.call('HLEN', key) > 0 then return redis.error_reply('PDCFOREIGN it has fields') end
  local name = string.sub(key, #own_start + 1)
  if version2_start == '' or not is_of_version2(version2_start .. name) then return nil end
  if redis.call('ZSCORE', index, '#version2:' .. name) then return nil end
  return redis.error_reply('PDCVERSION2 it has data to take over')
end

local function apply(fate)
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

local function update(meta, declare, most, overflow, idle)
  local own_mark = '#mark:' .. writer
  fields = {'#prefix', own_mark, '#search', '#series', '#sweep', declare and '#meta' or nil}
  current, written, stems = {}, {}, nil
  for i = first, last, 3 do
    local kind = ARGV[i]
    if kind == 'add' or kind == 'init' or (kind == 'set' and most > 0) then fields[#fields + 1] = ARGV[i + 1] end
  end
  local failed = read()
  if failed then return failed end
  local stored_prefix, stored_meta, stored_mark = current['#prefix'], current['#meta'], current[own_mark]
  if stored_prefix and stored_prefix ~= prefix then
    return redis.error_reply('PDCPREFIX ' .. stored_prefix)
  end
  if leaving and not stored_prefix then return {0, 0, 0, 0, 0, 0} end
  is_new = not stored_prefix
  failed = is_new and expect_new()
  if failed then return failed end

  local known, _, fate = parse_mark(stored_mark or '')
  known = tonumber(known)
  local folds, searches, refused, uncounted, sweeps = 0, 0, 0, 0, 0
  if most > 0 and not current['#series'] then
    uncounted = is_new and 0 or 1
    if is_new then put('#series', '0') end
  end
  if known < sequence then
    if most > 0 and uncounted == 0 then refused = limit(most, overflow) end
    fate = apply(fate)
  end
  if known <= sequence then
    local seen = now_text
    if leaving and fate == '' then seen = text(now - forget_writer_after + left_after) end
    if leaving and fate ~= '' and fate ~= 'all' then folds = 1 end
    put(own_mark, ARGV[4] .. ' ' .. seen .. ' ' .. fate)
  end
  local searched_at = tonumber(current['#search'] or '0') or 0
  local search_at = searched_at
  if search_at <= now or search_at > now + forget_writer_after then
    searches = is_new and 0 or 1
    search_at = now + forget_writer_after
  end
  local sweep_at = tonumber(current['#sweep'] or '0') or 0
  if idle > 0 and (sweep_at <= now or sweep_at > now + idle) then
    sweeps = is_new and 0 or 1
    put('#sweep', text(now + idle / SWEEPS))
  end
  if leaving then search_at = math.min(search_at, now + 2 * left_after) end
  if search_at ~= searched_at then put('#search', text(search_at)) end
  if declare or not stored_prefix then
    put('#prefix', prefix)
    put('#meta', meta)
  end
  flush()
  if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
  if declare and stored_meta and stored_meta ~= meta then return {stored_meta, folds, searches, refused, uncounted, sweeps} end
  return {stored_prefix and stored_mark and 1 or 0, folds, searches, refused, uncounted, sweeps}
end

local replies, at = {}, FIRST
for i = 1, #KEYS do
  key, first = KEYS[i], at + 8
  last = at + 7 + 3 * ARGV[at + 7]
  local overflow = {ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]}
  replies[i] = update(ARGV[at], ARGV[at + 1] == '1', tonumber(ARGV[at + 2]), overflow, tonumber(ARGV[at + 6]))
  at = last + 1
end
return replies
"""
"""Applies updates of one batch to the keys of their metrics. Of each it returns an error for a key that is not ours to use, or
that is empty while version 2 has data of the metric, which have to be taken over first; or
1, 0 where nothing of the writer was there, or the meta that the update replaced; then 1 where the values of the writer, which
leaves, are to be folded; then 1 where it is time to forget writers; then how many series were over the limit, 1 where all have
to be counted first, and 1 where it is time to look for idle ones. The arguments of all come first, then, for each metric, its
meta, whether to declare it, how many series it may have, the labels of the one for the others, and those around a bound, how
long idle ones stay, how many operations there are, and their kinds, fields and values."""

_FOLD = r"""
local key, prefix, writer, sequence = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local cursor, count, leaving, left_at = ARGV[4], ARGV[5], ARGV[6] == '1', tonumber(ARGV[7])
local forget_writer_after, forget_values_after = tonumber(ARGV[8]), tonumber(ARGV[9])
local FATES = {live = 'drop', all = 'drop', sum = 'fold', min = 'fold', max = 'fold', mostrecent = 'fold'}
local now = clock()
local most, overflow = tonumber(ARGV[10]), ARGV[11]
local known = redis.call('HMGET', key, '#prefix', '#mark:' .. writer, '#stems', '#series')
local last = parse_mark(known[2] or '')
if known[1] ~= prefix or (leaving and tonumber(last) ~= sequence) then return {'0'} end

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

local folded, dead = {}, tonumber(known[4] or '0')

local function dead_of(heir)
  return folded[heir] or redis.call('HGET', key, heir)
end

local function heir_of(fate, labels)
  local heir, other = '#' .. fate .. '::' .. labels, '#' .. fate .. '::' .. overflow
  if most == 0 or dead_of(heir) then return heir end
  local has_other = dead_of(other)
  local is_over = labels ~= overflow and dead - (has_other and 1 or 0) >= most
  if not is_over or not has_other then dead = dead + 1 end
  return is_over and other or heir
end

local gone = {}
local function is_gone(owner)
  if leaving or owner == writer then return leaving and owner == writer end
  if gone[owner] == nil then
    local mark = owner ~= '' and redis.call('HGET', key, '#mark:' .. owner)
    gone[owner] = mark and is_forgotten(mark, now, forget_writer_after, forget_values_after) or false
  end
  return gone[owner]
end

local stems = known[3]
if not leaving and cursor == '0' then stems = stems or '\n?\n' end
local enters = not leaving and stems and not is_complete(stems)
local pattern = leaving and '#*:' .. writer .. ':*' or enters and '*' or '#*'
local reply = redis.call('HSCAN', key, cursor, 'MATCH', pattern, 'COUNT', count)
local found, doomed = {reply[1]}, {}
for i = 1, #reply[2], 2 do
  local field, value = reply[2][i], reply[2][i + 1]
  if enters then stems = with_stem(stems, field) end
  local fate, owner, labels = string.match(field, '^#(%a+):([^:]+):(.*)$')
  if FATES[fate] and is_gone(owner) then
    doomed[#doomed + 1] = field
    if FATES[fate] == 'fold' then
      local heir = heir_of(fate, labels)
      folded[heir] = fold(fate, dead_of(heir), value)
      stems = stems and with_stem(stems, heir)
    end
  elseif not leaving and string.sub(field, 1, 6) == '#mark:' and is_gone(string.sub(field, 7)) then
    found[#found + 1] = string.sub(field, 7)
  end
end
remove(key, doomed)
for heir, value in pairs(folded) do redis.call('HSET', key, heir, value) end
if enters and reply[1] == '0' then stems = string.sub(stems, 3) end
if most > 0 and text(dead) ~= known[4] then redis.call('HSET', key, '#series', text(dead)) end
if stems ~= known[3] then redis.call('HSET', key, '#stems', stems) end
if leaving and reply[1] == '0' then redis.call('HSET', key, '#mark:' .. writer, last .. ' ' .. text(now + left_at) .. ' ') end
return found
"""
"""Drops values of the writer that leaves, or of all that are to be forgotten, or folds them into those of the dead. It looks at
some fields, and returns a cursor and the writers to forget; with the last fields, the mark of one that leaves is old. Where not
all fields are entered among the stems, one that does not leave enters those that it finds."""

_FORGET = r"""
local key, now = KEYS[1], clock()
local stems = redis.call('HGET', key, '#stems')
local left = stems
for i = 6, #ARGV do
  local own_mark = '#mark:' .. ARGV[i]
  local mark = redis.call('HGET', key, own_mark)
  if mark and is_forgotten(mark, now, tonumber(ARGV[4]), tonumber(ARGV[5])) then
    redis.call('HDEL', key, own_mark)
    for stem in string.gmatch(left or '', '\n(#%a+:' .. string.gsub(ARGV[i], '%W', '%%%0') .. ':{)') do
      local from, to = string.find(left, '\n' .. stem .. '\n', 1, true)
      left = string.sub(left, 1, from) .. string.sub(left, to + 1)
    end
  end
end
if left ~= stems then redis.call('HSET', key, '#stems', left) end
return 0
"""
"""Forgets writers whose values are gone."""

_REMOVE = r"""
local key, prefix, writer, sequence, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local idle, now = tonumber(ARGV[5]), clock()
local FIRST = 6
local known = redis.pcall('HMGET', key, '#prefix', '#mark:' .. writer, '#stems', '#series')
if known.err then return known end
local all = (#ARGV - FIRST + 1) / 3
if known[1] ~= prefix or tonumber((parse_mark(known[2] or ''))) >= sequence then return all end
if not names_fields(known[3]) then return -1 end
local plain, bounded, heir = {}, {}, string.match(known[3], '\n(#%a+::){\n')
for stem, le in string.gmatch(known[3], '([^{\n]*){([^\n]*)\n') do
  if le == '' then plain[#plain + 1] = stem else bounded[#bounded + 1] = {stem, le} end
end
local doomed, done, count = {}, 0, tonumber(known[4] or '0')
while done < all and (done == 0 or #doomed + #plain + #bounded <= most) do
  local at, from = FIRST + 3 * done, #doomed + 1
  local labels, before, after = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if idle == 0 or is_idle(redis.call('HGET', key, '#updated' .. labels) or ' inf', now, idle) then
    for _, stem in ipairs(plain) do doomed[#doomed + 1] = stem .. labels end
    for _, stem in ipairs(bounded) do doomed[#doomed + 1] = stem[1] .. before .. stem[2] .. after end
  end
  if known[4] and from <= #doomed then
    local counts = not heir or redis.call('HGET', key, heir .. labels)
    if redis.call('HDEL', key, unpack(doomed, from)) > 0 and counts then count = count - 1 end
  end
  done = done + 1
end
if known[4] then redis.call('HSET', key, '#series', text(math.max(count, 0))) else remove(key, doomed) end
return done
"""
"""Removes as many series of a metric as take no more than some fields, or of these the idle ones, and returns how many that
are: all where the batch was applied, -1 where the stems cannot tell which fields series have."""

_FIND = r"""
local key, prefix, writer, sequence, cursor, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local known = redis.pcall('HMGET', key, '#prefix', '#mark:' .. writer, '#stems')
if known.err then return known end
if known[1] ~= prefix or tonumber((parse_mark(known[2] or ''))) >= sequence then return {'0'} end
local groups = cjson.decode(ARGV[6])
for _, group in ipairs(groups) do
  for _, values in ipairs(group[2]) do group[values] = true end
end

local function value_of(labels, name)
  local _, from = string.find(labels, name .. ':"', 1, true)
  local at = from and string.find(labels, '["\\]', from + 1)
  while at and string.byte(labels, at) == 92 do at = string.find(labels, '["\\]', at + 2) end
  return at and string.sub(labels, from, at)
end

local function wanted(labels)
  for _, group in ipairs(groups) do
    local values = {}
    for i, name in ipairs(group[1]) do values[i] = value_of(labels, name) or '' end
    if group[table.concat(values, ',')] then return true end
  end
  return false
end

local reply = redis.call('HSCAN', key, cursor, 'COUNT', count)
local found, seen, entered, doomed, stems = {reply[1]}, {}, {}, {}, known[3]
for i = 1, #reply[2], 2 do
  local field = reply[2][i]
  local stem, labels = stem_of(field), series_of(field)
  if labels and seen[labels] == nil then
    seen[labels] = wanted(labels)
    if seen[labels] then found[#found + 1] = labels end
  end
  if labels and seen[labels] then
    doomed[#doomed + 1] = field
    stems = stems and not entered[stem] and with_stem(stems, field) or stems
    entered[stem] = true
  end
end
if stems ~= known[3] then redis.call('HSET', key, '#stems', stems) end
if names_fields(stems) then return found end
remove(key, doomed)
redis.call('HDEL', key, '#series')
return {reply[1]}
"""
"""Looks at some fields of a metric, and returns a cursor and the labels of the series that are to be removed. Where the stems
cannot tell which fields series have, it removes those that it finds."""

_IDLE = """
local key, prefix, cursor, count, idle = KEYS[1], ARGV[1], ARGV[4], ARGV[5], tonumber(ARGV[6])
local known = redis.pcall('HMGET', key, '#prefix', '#stems')
if known.err or known[1] ~= prefix then return {'0'} end
local now, now_text = clock()
local reply = redis.call('HSCAN', key, cursor, 'COUNT', count)
local found, seen, stems = {reply[1]}, {}, known[2]
for i = 1, #reply[2], 2 do
  local labels = series_of(reply[2][i])
  if labels and not seen[labels] then
    seen[labels] = true
    local own = '#updated' .. labels
    local since = redis.call('HGET', key, own)
    if not since then
      redis.call('HSET', key, own, '0 ' .. now_text)
      stems = stems and with_stem(stems, own)
    elseif is_idle(since, now, idle) then
      found[#found + 1] = labels
    end
  end
end
if stems ~= known[2] then redis.call('HSET', key, '#stems', stems) end
return found
"""
"""Looks at some fields of a metric, and returns a cursor and the labels of idle series. One that was never updated since the
metric has this limit is as if it were now."""

_COUNTED = """
if redis.call('HGET', KEYS[1], '#prefix') == ARGV[1] then redis.call('HSET', KEYS[1], '#series', ARGV[4]) end
return 0
"""
"""Notes how many series a metric has."""

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
local key, prefix, index, name = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', key, '#prefix') ~= prefix then return 0 end
if redis.call('HGET', key, '#version2') then redis.call('ZADD', index, '-inf', '#version2:' .. name) end
return redis.call('UNLINK', key)
"""
"""Deletes a metric; of one that was taken over from version 2 the index keeps that it is not to be taken over again."""

_LOOK = """
local cursor, keys = '0', {unpack(ARGV, 2)}
if #keys == 0 then
  local reply = redis.call('SCAN', ARGV[1], 'MATCH', 'prometheus_*', 'COUNT', 1000)
  cursor, keys = reply[1], reply[2]
end
for _, key in ipairs(keys) do
  if is_of_version2(key) then return {'0', 1} end
end
return {cursor, 0}
"""
"""Looks at these keys, or at the next ones from a cursor, and returns a cursor, and 1 where one is of version 2."""

_SETTLE = """
local index, beside, expire = KEYS[1], KEYS[2], tonumber(ARGV[3])
if redis.call('EXISTS', beside) == 1 then return 1 end
if redis.call('EXISTS', index) == 1 then return 0 end
if ARGV[1] == '1' then
  redis.call('ZADD', beside, '+inf', '#version2')
  return 1
end
redis.call('ZADD', index, '-inf', ARGV[2])
if expire > 0 then redis.call('PEXPIRE', index, expire) end
return 0
"""
"""Settles for all processes whether metrics without a prefix are beside those of version 2, by which index there is."""

_TAKE_OVER = """
local key, made, expire = KEYS[1], KEYS[2], tonumber(ARGV[1])
if redis.call('EXISTS', key) == 1 or redis.call('EXISTS', made) == 0 then return 0 end
redis.call('RENAME', made, key)
if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
return 1
"""
"""Begins a metric with the hash that was made for it, unless somebody has begun it."""


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
        self._settled = self._clustered or bool(prefix)
        """Whether it is known which prefix keys have."""
        self._expire = 0 if expire is None else max(int(expire * 1000), 1)
        self._use(prefix)
        self._noted = False
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

    @property
    def prefix(self) -> str:
        """Part of every key."""
        return self._prefix

    def places(self) -> list[str]:
        return [socket.gethostname()]

    def _use(self, prefix: str) -> None:
        """Use this prefix for keys."""
        self._own_prefix, self._index = prefix, f"prometheus#{prefix}"
        self._start = f"prometheus_{prefix}_" if prefix else "prometheus_"

    def _find_keys(self) -> bool:
        """Learn where the metrics are; return whether there are any yet.

        Those of a program without a prefix are under keys of version 2's default, or beside them where version 2 has used them.
        """
        if not self._settled:
            indexes = self._run([("ZRANGE", f"prometheus#{prefix}", "0", "0") for prefix in (BESIDE, "")])
            found = [prefix for prefix, index in zip((BESIDE, ""), indexes, strict=True) if index]
            if found:
                self._use(found[0])
                self._settled = True
        return self._settled

    def _has_version2(self, batch: Batch) -> bool:
        """Whether version 2 has keys: those of the metrics in the batch are looked at before others."""
        ((cursor, found),) = self._run([(_LOOK, [], "0", *(f"{DEFAULT_PREFIX}_{update.name}" for update in batch.updates))])
        for _ in range(0 if found else MOST_PAGES):
            ((cursor, found),) = self._run([(_LOOK, [], _text(cursor))])
            if found or _text(cursor) == "0":
                break
        return bool(found)

    def _settle_keys(self, batch: Batch) -> None:
        """Decide where metrics are, where nobody has."""
        found = self._own_prefix == BESIDE or self._has_version2(batch)
        indexes = ["prometheus#", f"prometheus#{BESIDE}"]
        (beside,) = self._run([(_SETTLE, indexes, str(int(found)), batch.storage or new_id(), str(self._expire))])
        self._use(BESIDE if beside else "")
        self._settled = True

    def id(self) -> str:
        self._find_keys()
        (found,) = self._run([("ZRANGE", self._index, "0", "0")])
        if isinstance(found, ResponseError):
            raise self._failed(found)
        return next((name for name in map(_text, found) if name.startswith(ID)), "")

    def apply(self, batch: Batch) -> Outcome:
        if not self._find_keys():
            self._settle_keys(batch)
        self._remove(batch)
        outcome, replies = self._send_batch(batch)
        left = []
        for update, reply in zip(batch.updates, replies, strict=True):
            if not isinstance(reply, ResponseError):
                self._book(batch, update, reply, outcome)
            elif str(reply).startswith("PDCVERSION2"):
                self._take_over(update)
                left.append(update)
            else:
                outcome.refused[update.name] = self._reason(update.name, reply)
        for name in outcome.unknown:
            self._listed.pop(name, None)
        return outcome.joined(self.apply(batch._replace(updates=left))) if left else outcome

    def _send_batch(self, batch: Batch) -> tuple[Outcome, Iterator[Any]]:
        """Send the batch; return what the index says of it, and the reply for each update."""
        now = time.monotonic()
        due = [update.name for update in batch.updates if self._listed.get(update.name, 0.0) <= now]
        listing = (_LIST, [self._index], str(self._expire), batch.storage or new_id(), *due) if due else ("EXISTS", self._index)
        listed, *replies = self._run([listing, *(self._call(batch, updates) for updates in self._groups(batch))])
        if isinstance(listed, ResponseError):
            raise self._failed(listed)
        found, unlisted = listed if due else ("", [] if listed else [update.name for update in batch.updates])
        outcome = Outcome(set(map(_text, unlisted)), {}, {}, {}, _text(found), self._note(batch, set(map(_text, unlisted))))
        if outcome.unknown:
            self._listed.clear()
            if not due:  # the index is gone, and what version 2 had may be, too
                self._settled = self._clustered or bool(self._prefix)
        else:
            self._listed.update(dict.fromkeys(due, now + self._relist_seconds))
        return outcome, chain.from_iterable(replies)

    def _take_over(self, update: Update) -> None:
        """Begin the metric with what version 2 counted; or note, and log, that this cannot be."""
        source = self._version2_start() + update.name
        (stored,) = self._run([("HGETALL", source)])
        try:
            fields = taken_over(self._fields(update.name, stored), update.meta)
        except (ValueError, StorageError) as error:
            report(update.name, f"the key {source!r}", str(error))
            self._run([("ZADD", self._index, "-inf", f"{VERSION2}:{update.name}")])
        else:
            texts = [text for field, number in fields.items() for text in (field, _number_text(number))]
            own = ("#prefix", self._own_prefix, "#meta", update.meta, "#version2", source)
            self._begin(update.name, [*own, *texts])

    def _begin(self, name: str, texts: list[str]) -> None:
        """Make a hash of these fields and values, in pieces, and begin the metric with it, unless somebody has."""
        key = self._key(name)
        made = f"{key}#{os.urandom(8).hex()}"
        for first in range(0, len(texts), MOST_FIELDS):
            self._run([("HSET", made, *texts[first : first + MOST_FIELDS]), ("PEXPIRE", made, MADE_MILLISECONDS)])
        self._run([(_TAKE_OVER, [key, made], str(self._expire))])

    def _version2_start(self) -> str:
        """How the keys of version 2 begin; empty in a cluster, which it could not use."""
        return "" if self._clustered else f"{self._prefix or DEFAULT_PREFIX}_"

    def _note(self, batch: Batch, unlisted: set[str]) -> str:
        """Tell a program without a prefix whose metrics are new beside others, that those of other programs add up."""
        names = {update.name for update in batch.updates if not update.name.startswith("pdc_")}  # which every program has
        if self._prefix or self._noted or batch.leaving or not names:
            return ""
        self._noted = True
        if not names <= unlisted or all(name in names or name.startswith("pdc_") for name in self._names()):
            return ""
        return (
            f"{self} has metrics without redis_prefix: where other programs use it without one, too, those of the same name "
            "add up; give each program a redis_prefix of its own"
        )

    def _book(self, batch: Batch, update: Update, reply: list[Any], outcome: Outcome) -> None:
        """Note what the script said of a metric, and do what it left to do."""
        name, idle = update.name, update.limits.expire_series
        found, folds, searches, overflowed, uncounted, sweeps = reply
        if not found:
            outcome.unknown.add(name)
        elif found != 1:
            outcome.replaced[name] = _text(found)
        if overflowed:
            outcome.overflowed[name] = overflowed
        if uncounted:
            self._count_series(batch, name)
        if sweeps:
            self._sweep(batch, name, idle)
        if folds:
            self._fold(batch, update, leaving=True)
        gone = self._fold(batch, update, leaving=False) if searches else []
        for first in range(0, len(gone), MOST_SERIES):
            self._call_one(
                _FORGET, batch, name, FORGET_WRITER_SECONDS, FORGET_VALUES_SECONDS, *gone[first : first + MOST_SERIES]
            )

    def _fold(self, batch: Batch, update: Update, *, leaving: bool) -> list[str]:
        """Fold the values of the writer that is leaving, or of all that are to be forgotten; return those."""
        ages = LEFT_SECONDS - FORGET_WRITER_SECONDS, FORGET_WRITER_SECONDS, FORGET_VALUES_SECONDS
        most, overflow, _ = update.limits
        gone: list[str] = []
        cursor = None
        while cursor != "0":
            arguments = cursor or "0", MOST_FOUND, int(leaving), *ages, most, overflow
            found = self._call_one(_FOLD, batch, update.name, *arguments)
            cursor, *forgotten = map(_text, found)
            gone += forgotten
        return gone

    def _sweep(self, batch: Batch, name: str, idle: float) -> None:
        """Remove the series that are idle, as long as no later batch of this process has come."""
        later = batch._replace(sequence=batch.sequence + 1)
        cursor = None
        while cursor != "0":
            cursor, *series = map(_text, self._call_one(_IDLE, batch, name, cursor or "0", MOST_FOUND, idle))
            if series and not self._remove_series(later, name, series, idle):
                self._remove_found(later, name, series)

    def _count_series(self, batch: Batch, name: str) -> None:
        """Count the series of a metric that had no limit before, but for those that only living processes have."""
        fields = [field for field in self._look_through(name) if not field.startswith("#") or "::{" in field]
        self._call_one(_COUNTED, batch, name, len(set(map(series_of, fields))))

    def _remove(self, batch: Batch) -> None:
        """Remove series in calls of bounded length; once the batch is applied, its mark keeps them from doing anything."""
        for update in batch.updates:
            series, selectors = update.removals(Kind.REMOVE), update.removals(Kind.DELETE)
            if series and not self._remove_series(batch, update.name, series):
                selectors += series
            if selectors:
                self._remove_found(batch, update.name, selectors)

    def _remove_series(self, batch: Batch, name: str, series: list[str], idle: float = 0.0) -> bool:
        """Remove the series with these labels, or the idle ones of them; return whether it is known which fields they have."""
        done = 0
        while done < len(series):
            parts = ((labels, *around_bound(labels)) for labels in series[done : done + MOST_SERIES])
            count = self._call_one(_REMOVE, batch, name, MOST_FIELDS, idle, *chain.from_iterable(parts))
            if isinstance(count, ResponseError):  # the call with the mark will say that
                return True
            if count < 0:
                return False
            done += count
        return True

    def _remove_found(self, batch: Batch, name: str, selectors: list[str]) -> None:
        """Remove the series whose labels include one of these."""
        groups = Selectors(map(json.loads, selectors)).dumps()
        cursor = None
        while cursor != "0":
            found = self._call_one(_FIND, batch, name, cursor or "0", MOST_FOUND, groups)
            if isinstance(found, ResponseError):
                return
            cursor, *series = map(_text, found)
            self._remove_series(batch, name, series)

    def _call_one(self, script: str, batch: Batch, name: str, *arguments: Any) -> Any:
        """Call a script with the key of one metric."""
        texts = map(str, (self._own_prefix, batch.writer, batch.sequence, *arguments))
        (reply,) = self._run([(script, [self._key(name)], *texts)])
        return reply

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        self._find_keys()
        wanted = sorted(self._names()) if names is None else list(names)
        (seconds, microseconds), *sizes = self._run([("TIME",), *(("HLEN", self._key(name)) for name in wanted)])
        for name, size in zip(wanted, sizes, strict=True):
            self._expect_fields(name, size)
        metrics: dict[str, Mapping[str, Any]] = {}
        for group in _grouped(zip(wanted, sizes, strict=True)):
            for name, (fields, *more) in self._read_group(group):
                if fields.pop("#prefix", None) == self._own_prefix:
                    fields.pop(STEMS, None)
                    metrics[name] = Parts([fields, *more]) if more else fields
        return Snapshot(int(seconds) + int(microseconds) / 1e6, metrics)

    def _read_group(self, group: list[tuple[str, int]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
        """Read some metrics, each as it was at one moment, or a large one, which may be in several parts."""
        (name, size), *others = group
        if size > MOST_READ and not others:
            yield name, self._read_large(name)
            return
        replies = self._run([("HGETALL", self._key(name)) for name, _ in reversed(group)])
        for name, _ in group:
            fields = replies.pop()  # text takes more room than what came from the server: let go of that
            yield name, [self._fields(name, fields)]

    def _read_large(self, name: str) -> list[dict[str, str]]:
        """Read a metric in pieces, so that others have their turns; each of its series is as it was at one moment.

        The series of several numbers are found first, by those that are no buckets, and then read, each in one piece.
        """
        (listed,) = self._run([("HMGET", self._key(name), STEMS)])
        self._expect_fields(name, listed)
        listed = _text(listed[0]) or ""
        if listed.startswith(INCOMPLETE) or not _SEVERAL_NUMBERS.search(listed):
            return [self._look_through(name)]
        others = self._look_through(name, "MATCH", NO_BUCKETS)
        series, own = _series_in(others)
        parts: list[dict[str, str]] = [{}]
        for fields in self._read_series(name, series, own, listed):
            if len(parts[-1]) >= MOST_TOGETHER:
                parts.append({})
            parts[-1].update(fields)
        return [others, *parts]

    def _look_through(self, name: str, *pattern: str) -> dict[str, str]:
        """All fields of a metric, or those that match a pattern, each as it was when its piece was read."""
        fields: dict[str, str] = {}
        cursor = None
        while cursor != "0":
            (reply,) = self._run([("HSCAN", self._key(name), cursor or "0", *pattern, "COUNT", str(MOST_LOOKED_AT))])
            self._expect_fields(name, reply)
            cursor, piece = str(int(reply[0])), reply[1]
            fields.update(self._fields(name, piece))
        return fields

    def _read_series(self, name: str, left: list[str], own: Mapping[str, list[str]], listed: str) -> Iterator[dict[str, str]]:
        """Read all fields that series with these labels may have, those of each as they are at one moment."""
        stems = _Stems.loads(listed)
        while left:
            names: list[str] = []
            done = 0
            while done < len(left) and len(names) < MOST_FIELDS:
                done += 1
                labels = left[-done]
                names += stems.fields_of(labels)
                names += own.get(labels, ())
            (values,) = self._run([("HMGET", self._key(name), STEMS, *names)])
            self._expect_fields(name, values)
            before, listed = listed, _text(values[0]) or ""
            if listed != before and (now := _Stems.loads(listed)) != stems:
                stems = now  # and series may have other fields
            else:
                del left[-done:]
                yield self._decoded(name, zip(names, values[1:], strict=True))

    def _fields(self, name: str, reply: Any) -> dict[str, str]:
        """The fields of a metric as texts. Raises StorageError where they are none."""
        self._expect_fields(name, reply)
        try:
            return _texts(reply)
        except UnicodeDecodeError as error:
            raise foreign(name, error) from error

    def _decoded(self, name: str, fields: Iterable[tuple[str, Any]]) -> dict[str, str]:
        """The fields that have values, as texts. Raises StorageError where these are none."""
        try:
            return {field: _text(value) for field, value in fields if value is not None}
        except UnicodeDecodeError as error:
            raise foreign(name, error) from error

    def _expect_fields(self, name: str, reply: Any) -> None:
        """Raise StorageError where the key of a metric holds something else: a scrape would be without that metric."""
        if isinstance(reply, ResponseError):
            raise StorageError(f"metric {name!r} cannot be read: {self._reason(name, reply)}") from reply

    def delete(self) -> None:
        self._find_keys()
        members = [member for member in self._members() if not member.startswith(VERSION2)]
        self._listed.clear()
        names = [name for name in members if not name.startswith(ID)]
        commands: list[tuple[Any, ...]] = [(_DELETE, [self._key(name)], self._own_prefix, self._index, name) for name in names]
        if members:
            commands.append(("ZREM", self._index, *members))
        self._run(commands)

    def hurry(self, until: float) -> None:
        super().hurry(until)
        waiting = getattr(self._connection, "_sock", None)
        if waiting is not None and time.monotonic() >= until:
            with suppress(OSError):  # the server, or the thread that waits for it, has closed it
                waiting.shutdown(socket.SHUT_RDWR)

    def before_fork(self) -> None:
        self._abandon_lost()

    def inherit(self, *, idle: bool) -> None:
        """Make the locks of a cluster's client anew: a thread that is not there may hold them while it asks for the nodes."""
        if not idle and self._clustered:
            for owner in (self._client, self._client.nodes_manager):
                for name, lock in list(vars(owner).items()):
                    if type(lock) in _LOCKS:
                        setattr(owner, name, _LOCKS[type(lock)]())

    def close(self) -> None:
        self._abandon_lost()
        sentinel, self._sentinel = self._sentinel, None  # an interrupted close must not look like that of a daemon
        if self._connection is not None:
            self._connection.disconnect()
        if sentinel is not None:
            sentinel.close()

    def _key(self, name: str) -> str:
        return self._start + name

    def _members(self) -> list[str]:
        """All that the index has."""
        (members,) = self._run([("ZRANGE", self._index, "0", "-1")])
        if isinstance(members, ResponseError):
            raise self._failed(members)
        return list(map(_text, members))

    def _names(self) -> list[str]:
        return [name for name in self._members() if not name.startswith((ID, VERSION2))]

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
        arguments = [self._own_prefix, str(self._expire), batch.writer, str(batch.sequence), str(int(batch.leaving))]
        arguments += map(str, (FORGET_WRITER_SECONDS, LEFT_SECONDS, SWEEPS))
        arguments += (self._start, self._version2_start(), self._index)
        for update in updates:
            operations = [each for kind, chosen in update.by_kind() if kind not in REMOVALS for each in chosen]
            most, overflow, idle = update.limits
            others = (overflow, *around_bound(overflow)) if most else ("", "", "")
            arguments += (update.meta, str(int(update.declare)), str(most), *others, str(idle), str(len(operations)))
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
            raise self._failed(error) from self._shown(error)
        except BaseException:
            self._drop_connections()
            raise
        for reply in chain.from_iterable(reply if isinstance(reply, list) else [reply] for reply in replies):
            if isinstance(reply, Exception) and not str(reply).startswith(("PDC", "WRONGTYPE")):
                raise self._failed(reply) from self._shown(reply)
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
                pipeline.execute_command(*command, **_RAW)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies

    def _exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send the commands on the own connection; once more where it died while it was idle, the buffer does the rest."""
        connection = self._connected()
        try:
            return _replies(connection, commands)
        except redis.ConnectionError as error:
            if interruption(error) is not None or time.monotonic() >= self.until:
                raise
            return _replies(connection, commands)

    def _connected(self) -> Any:
        """The own connection; one that was made before a fork is the parent's."""
        if self._connection is None or self._connection.pid != os.getpid():
            pool = self._client.connection_pool
            options = {**_PACKER, **_UNNAMED, **pool.connection_kwargs, "decode_responses": False}  # one may be no text
            self._connection = pool.connection_class(**options)
        if self.until < math.inf:
            _hasten(self._connection, max(self.until - time.monotonic(), 0.001))
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
            return self._client.execute_command(*command, **options, **_RAW)
        except ResponseError as error:
            return error

    def _prepare(self, command: str, *arguments: Any) -> tuple[Any, ...]:
        if "\n" not in command:
            return command, *arguments
        if command not in self._scripts:
            self._scripts[command] = self._load(_COMMON + command)
        keys, *rest = arguments
        return "EVALSHA", self._scripts[command], _Count(len(keys)), *keys, *rest

    def _load(self, script: str) -> str:
        if not self._own:
            return _text(self._client.script_load(script))
        (reply,) = self._exchange([("SCRIPT", "LOAD", script)])
        if isinstance(reply, ResponseError):
            raise reply
        return _text(reply)

    def _reason(self, name: str, refusal: ResponseError) -> str:
        key = self._key(name)
        if str(refusal).startswith("PDCFOREIGN"):
            return (
                f"the key {key!r} holds data of version 2 of this library, or of another program: "
                "give setup() a redis_prefix of its own, or delete the key"
            )
        owner = str(refusal).removeprefix("PDCPREFIX").strip()
        if owner == str(refusal):
            return f"the key {key!r} holds something that is not a metric: delete that, or choose another redis_prefix"
        return f"the key {key!r} belongs to the redis_prefix {owner!r}, not {self._prefix!r}: choose another one"

    def _failed(self, error: Exception) -> StorageError:
        remedy = next((text for kinds, text in _REMEDIES if isinstance(error, kinds)), "")
        if "executing the script can't run" in str(error):  # Redis 7.0 does not say which command
            remedy = _RIGHTS_REMEDY
        reason = without_secrets(str(error), self._secrets()).rstrip(".")
        return StorageError(f"{self} failed: {type(error).__name__}: {reason}{remedy}")

    def _shown(self, error: Exception) -> Exception | None:
        """The error, for a traceback, unless that would show a secret."""
        said = str(error)
        return error if without_secrets(said, self._secrets()) == said else None

    def _secrets(self) -> set[str]:
        """The passwords of the client, as far as they are known before it connects."""
        managers = [self.client.nodes_manager] if self._clustered else _pools(self.client)
        options = [(name, value) for each in managers for name, value in each.connection_kwargs.items()]
        return {str(_text(value)) for name, value in options if "password" in name and value}


_SCRIPTS = (
    _COMMON + _APPLY + _FOLD + _FORGET + _REMOVE + _FIND + _IDLE + _COUNTED + _LIST + _DELETE + _LOOK + _SETTLE + _TAKE_OVER
).lower()
_COMMANDS = {"evalsha", "exists", "script|load", "zrem", *re.findall(r"redis\.p?call\('(\w+)'", _SCRIPTS)}
_READ = {"hgetall", "hlen", "hmget", "hscan", "time", "zrange"}
READER_RIGHTS = f"%R~prometheus_* %R~prometheus#* {' '.join(sorted(f'+{command}' for command in _READ))}"
WRITER_RIGHTS = f"~prometheus_* ~prometheus#* {' '.join(sorted(f'+{command}' for command in _COMMANDS | _READ))}"
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


_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
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
        if not _has_stray_at(url):
            return client
        reason = "in a password, @ / ? # and % are written as %40 %2F %3F %23 and %25, and so is @ elsewhere"
    raise ValueError(f"setup(redis={_shown(url)!r}) cannot use this URL: {reason}")


def _has_stray_at(url: str) -> bool:
    """Whether an @ stands where no password can end: then the host, or what else is shown, may be a part of one."""
    parts = urlsplit(url)
    return "@" in parts.path + parts.fragment or ("@" in parts.query and "@" not in parts.netloc)


_PLAIN_URL = re.compile(r"(\w+://)([^/?#]*@)?((?:[\w.-]*|\[[\w:.]*\])(?::\d*)?(?:/\d*)?)(?:\?([^@#]*))?")


def _shown(url: str) -> str:
    """As much of the URL as is no password, however it is misspelt: values are those of options that redis-py parses."""
    plain = _PLAIN_URL.fullmatch(url)
    if plain is None:
        return re.sub(r"^(rediss?://|unix://)?.*", r"\1***", url, flags=re.DOTALL)
    scheme, user, place, options = plain.groups()
    shown = [f"{name}={value if name in URL_QUERY_ARGUMENT_PARSERS else '***'}" for name, value in parse_qsl(options or "")]
    return f"{scheme}{'***@' if user else ''}{place}{'?' if shown else ''}{'&'.join(shown)}"


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


def _hasten(connection: Any, seconds: float) -> None:
    """Let what a connection does next last so long at most."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        setattr(connection, name, min(getattr(connection, name) or seconds, seconds))
    if getattr(connection, "_sock", None) is not None:
        connection._sock.settimeout(connection.socket_timeout)


def _detach(connection: Any) -> None:
    """Forget the socket of a connection, if there is one, without closing its descriptor."""
    if getattr(connection, "_sock", None) is not None:
        connection._sock.detach()
        connection._sock = None


def _grouped(sizes: Iterable[tuple[str, Any]]) -> Iterator[list[tuple[str, int]]]:
    """The names of metrics with their numbers of fields, as many together as can be read in one go."""
    group: list[tuple[str, int]] = []
    total = 0
    for name, size in sizes:
        if group and total + size > MOST_READ:
            yield group
            group, total = [], 0
        group.append((name, size))
        total += size
    if group:
        yield group


class _Stems(NamedTuple):
    """How the fields of a series begin that are not values of single processes, and which bounds its buckets have."""

    plain: list[str]
    bounded: list[tuple[str, str]]

    @classmethod
    def loads(cls, stored: str) -> _Stems:
        """Parse the field."""
        lines = [line.partition("{")[::2] for line in stored.split() if not line.startswith("#")]
        return cls([stem for stem, bound in lines if not bound], [line for line in lines if line[1]])

    def fields_of(self, labels: str) -> Iterator[str]:
        """The fields that the series with these labels may have."""
        yield from [stem + labels for stem in self.plain]
        if self.bounded:
            before, after = around_bound(labels)
            yield from [f"{stem}{before}{bound}{after}" for stem, bound in self.bounded]


def _series_in(fields: dict[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take the series out of the fields: the labels of each, and its values of single processes and of the dead, if any."""
    series: dict[str, None] = {}
    own: defaultdict[str, list[str]] = defaultdict(list)
    for field in list(fields):
        start, brace, rest = field.partition("{")
        if brace and not start.startswith("#exemplar"):
            del fields[field]
            series[brace + rest] = None
            if start.startswith("#"):
                own[brace + rest].append(field)
    return list(series), {labels: _with_heirs(labels, names) for labels, names in own.items()}


def _with_heirs(labels: str, names: list[str]) -> list[str]:
    """These values of single processes, and those of the dead into which they may be folded."""
    fates = {name[1:].partition(":")[0] for name in names}
    return list(dict.fromkeys([*names, *(f"#{fate}::{labels}" for fate in FOLDED if fate in fates)]))


def _argument(operation: Operation, now: float) -> str:
    value = operation.value
    if isinstance(value, Stamped):
        age = value.age(now)
        return f"{_argument(Operation(Kind.SET, '', value.number), now)} {'never' if age is None else repr(age)}"
    return value if isinstance(value, str) else _number_text(value)


def _number_text(value: float) -> str:
    return repr(value).removesuffix(".0")


class _Count(str):
    """A number as text, which the cluster client of redis-py 5 adds to an index."""

    __slots__ = ()

    def __radd__(self, other: int) -> int:
        return other + int(self)


class _TextPacker(HiredisRespSerializer):
    """Packs commands with texts only: hiredis 3 crashes where a handler raises while it makes a text of a number."""

    def pack(self, *args: Any) -> Any:
        """The command as bytes."""
        if len(args) > MOST_NUMBERS:  # ours, which have texts only
            return super().pack(*args)
        texts: list[Any] = [str(each) if isinstance(each, (int, float)) else each for each in args]
        return super().pack(*texts)


_RAW = {NEVER_DECODE: True}
"""Options of commands whose replies may be no text."""
_UNNAMED: dict[str, Any] = {"lib_name": None, "lib_version": None} if redis.__version__.startswith("5.") else {}
"""Options of connections: a Redis before 7.2 refuses the name of redis-py 5, whose error then keeps the frames that it came
through, and what the application has in them, until the garbage collector runs."""
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
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _texts(fields: dict[Any, Any] | list[Any]) -> dict[str, str]:
    """The fields as texts, by C code as far as can be: there may be very many. A list has each value after its field."""
    if isinstance(fields, list):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    if isinstance(next(iter(fields), ""), bytes):
        return dict(zip(map(bytes.decode, fields), map(bytes.decode, fields.values()), strict=True))
    return fields
