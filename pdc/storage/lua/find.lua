-- Finds series to remove among some fields of a metric. Twin: find_series in pdc/storage/sqlite/removing.py.
--
-- Arguments, after those of every script of one metric: a cursor, how many fields to look at, and the labels to look for as
-- Selectors.dumps spells them.
--
-- Returns the next cursor, '0' at the end, and the labels of the series. Where `#stems` cannot name the fields of a series, it
-- removes the fields that it finds.

local key, prefix, writer, sequence, cursor, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local known = redis.pcall('HMGET', key, '#prefix', '#mark:' .. writer, '#stems')
if known.err then return known end
if known[1] ~= prefix or tonumber((parse_mark(known[2] or ''))) >= sequence then return {'0'} end
local groups = cjson.decode(ARGV[6])
for _, group in ipairs(groups) do
  for _, values in ipairs(group[2]) do group[values] = true end
end

-- The value of a label, with its quotes, as fields spell it.
local function value_of(labels, name)
  local _, from = string.find(labels, name .. ':"', 1, true)
  local at = from and string.find(labels, '["\\]', from + 1)
  while at and string.byte(labels, at) == 92 do at = string.find(labels, '["\\]', at + 2) end
  return at and string.sub(labels, from, at)
end

-- True if a series with these labels is to be removed. Twin: Selectors.match_text.
local function is_wanted(labels)
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
    seen[labels] = is_wanted(labels)
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
