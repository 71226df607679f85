-- Deletes the marks of writers whose values are gone, and the stems of these values. Twin: Folding.forget.
--
-- Arguments, after those of every script of one metric: the ages at which writers without and with values are forgotten, and
-- the writers.

local key, now = KEYS[1], clock()
local forget_writer_after, forget_values_after, FIRST = tonumber(ARGV[4]), tonumber(ARGV[5]), 6

-- The text of `#stems` without those of a writer's values.
local function without_stems_of(writer, stems)
  for stem in string.gmatch(stems, '\n(#%a+:' .. string.gsub(writer, '%W', '%%%0') .. ':{)') do
    local from, to = string.find(stems, '\n' .. stem .. '\n', 1, true)
    stems = string.sub(stems, 1, from) .. string.sub(stems, to + 1)
  end
  return stems
end

local stems = redis.call('HGET', key, '#stems')
local left = stems
for i = FIRST, #ARGV do
  local own_mark = '#mark:' .. ARGV[i]
  local mark = redis.call('HGET', key, own_mark)
  if mark and is_forgotten(mark, now, forget_writer_after, forget_values_after) then
    redis.call('HDEL', key, own_mark)
    left = left and without_stems_of(ARGV[i], left)
  end
end
if left ~= stems then redis.call('HSET', key, '#stems', left) end
return 0
