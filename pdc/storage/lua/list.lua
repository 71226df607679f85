-- Lists metrics in the index of their prefix, each with the time in milliseconds by which its hash has expired, and gives the
-- storage an id where it has none. Twin: give_id in pdc/storage/sqlite/table.py; the names of metrics SQLite has in its table.
--
-- Arguments: the milliseconds that hashes last (0: for ever), a new id, and the names of the metrics.
--
-- Returns the id, and the names that were not listed.

local index, expire, listed, missing, due = KEYS[1], tonumber(ARGV[1]), {}, {}, false
local id = redis.call('ZRANGE', index, 0, 0)[1]
if not id or string.sub(id, 1, 4) ~= '#id:' then
  id = ARGV[2]
  redis.call('ZADD', index, '-inf', id)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
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
for first = 1, #listed, CHUNK do
  redis.call('ZADD', index, unpack(listed, first, math.min(first + CHUNK - 1, #listed)))
end
redis.call('ZREMRANGEBYSCORE', index, 0, string.format('(%.0f', now))
local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
if last == 'inf' then
  redis.call('PERSIST', index)
elseif last then
  redis.call('PEXPIRE', index, string.format('%.0f', tonumber(last) - now))
end
return {id, missing}
