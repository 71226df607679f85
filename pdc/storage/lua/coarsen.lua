-- Adds the counts of native buckets to those of coarser ones, which get their exemplars, too, unless they have some.
-- Twin: coarsen in pdc/storage/sqlite/forgetting.py.
--
-- Arguments, after those of every script of one metric: the field of each bucket, and that of the coarser one.

local key, prefix, FIRST, EXEMPLAR = KEYS[1], ARGV[1], 4, '#exemplar'
local _, now_text = clock()
local known = redis.call('HMGET', key, '#prefix', '#stems')
local stems, is_new = known[2], false
if known[1] ~= prefix or not is_complete(stems) then return 0 end

-- Writes a field, which may be new to readers. Twin: Rows.write.
local function put(field, value)
  if redis.call('HSET', key, field, value) > 0 then
    stems, is_new = with_stem(stems, field), true
  end
end

for i = FIRST, #ARGV, 2 do
  local from, to = ARGV[i], ARGV[i + 1]
  local count, exemplar, before, other = unpack(redis.call('HMGET', key, from, EXEMPLAR .. from, to, EXEMPLAR .. to))
  if count then put(to, add(before or '0', tonumber(count) or 0)) end
  if exemplar and not other then put(EXEMPLAR .. to, exemplar) end
  redis.call('HDEL', key, from, EXEMPLAR .. from)
end
if is_new then note_new_fields(key, now_text) end
if stems ~= known[2] then redis.call('HSET', key, '#stems', stems) end
return 0
