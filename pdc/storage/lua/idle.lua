-- Finds idle series among some fields of a metric. Twin: Removal.sweep.
--
-- Arguments, after those of every script of one metric: a cursor, how many fields to look at, and the seconds after which a
-- series is idle. A series that was never updated since the metric has this limit counts as updated now.
--
-- Returns the next cursor, '0' at the end, and the labels of the series.

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
      note_new_fields(key, now_text)
      stems = stems and with_stem(stems, own)
    elseif is_idle(since, now, idle) then
      found[#found + 1] = labels
    end
  end
end
if stems ~= known[2] then redis.call('HSET', key, '#stems', stems) end
return found
