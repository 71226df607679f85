-- Functions that most scripts share: a script is loaded with numbers.lua and this text before its own, but change.lua without
-- this one. Fields, marks and modes are those of pdc/storage/__init__.py.

-- How many arguments one command gets: Lua's stack has no room for many more.
local CHUNK = 1000
-- How long `#stems` may be, in bytes, where it is used to name the fields of a series: a gauge has a stem for each process.
local MOST_STEMS = 50000

-- The sequence, the time and the mode of a mark, as texts. Twin: Mark.loads.
local function parse_mark(mark)
  local last, seen, mode = string.match(mark, '^(%d+) (%S+) ?(%a*)$')
  return last or '-1', seen or '0', mode or ''
end

-- How a field begins, up to its labels; for a bucket its bound comes after that. Twin: Removal._stems, which asks the index.
local function stem_of(field)
  local stem = string.match(field, '^[^{]*{')
  if stem == '_bucket:{' or stem == '_native:{' or stem == '#exemplar_bucket:{' or stem == '#exemplar_native:{' then
    return stem .. (string.match(field, '[{,]"le":"([^"]*)"') or '')
  end
  return stem
end

-- The labels of the series that a field belongs to. Twin: series_of in pdc/storage/labels.py.
local function series_of(field)
  local labels = string.match(field, '{.*$')
  if labels and (string.match(field, '^#?%a*_bucket:{') or string.match(field, '^#?%a*_native:{')) then
    labels = string.gsub(string.gsub(labels, '([{,])"le":"[^"]*",?', '%1', 1), ',}$', '}')
  end
  return labels
end

-- The text of `#stems` with the stem of this field. SQLite has no twin of it and of the next two: its index names the stems.
local function with_stem(stems, field)
  local stem = stem_of(field)
  if not stem or string.find(stems, '\n' .. stem .. '\n', 1, true) then return stems end
  return stems .. stem .. '\n'
end

-- True if all fields are entered in `#stems`.
local function is_complete(stems)
  return stems and string.sub(stems, 1, 3) ~= '\n?\n'
end

-- True if `#stems` can name the fields of a series.
local function names_fields(stems)
  return is_complete(stems) and #stems <= MOST_STEMS
end

-- Notes that the metric has got a new field, which is no mark: readers that know its fields have to read all of them.
local function note_new_fields(key, now_text)
  redis.call('HSET', key, '#fields', now_text)
end

-- True if a writer was not seen for so long that it does not count any more. Twin: Mark.is_forgotten.
local function is_forgotten(mark, now, forget_writer_after, forget_values_after)
  local _, seen, mode = parse_mark(mark)
  local keep = (mode == '' or mode == 'live') and forget_writer_after or forget_values_after
  return (tonumber(seen) or 0) < now - keep
end

-- True if a series with this `#updated` was not updated for long. Twin: Removal.sweep.
local function is_idle(since, now, idle)
  return (tonumber(string.match(since, ' (%S+)$') or '') or 0) <= now - idle
end

-- Deletes these fields. Twin: Rows.delete.
local function remove(key, doomed)
  for from = 1, #doomed, CHUNK do
    redis.call('HDEL', key, unpack(doomed, from, math.min(from + CHUNK - 1, #doomed)))
  end
end
