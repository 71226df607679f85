-- Applies updates of one batch to the keys of their metrics. Twin: apply in pdc/storage/sqlite/writing.py.
--
-- Keys: one for each metric. Arguments: first those of the batch, as named below; then for each metric its meta, 1 to declare
-- it, the most series that it may have, the labels of the series for the others, the text before and after the bound in those
-- labels, how long idle series stay, the number of operations, and for each operation its kind, field and value.
--
-- Returns for each metric an error, or a list:
--   1. 0 where the metric held nothing of the writer, or the meta that the update replaced, otherwise 1
--   2. 1 where the values of the writer, which deregisters, are to be folded: call fold.lua
--   3. 1 where it is time to forget writers: call fold.lua and forget.lua
--   4. how many new series were over the limit
--   5. 1 where the series have to be counted before the limit holds: call counted.lua
--   6. 1 where it is time to look for idle series: call idle.lua
-- The errors: PDCPREFIX, the key belongs to another prefix; PDCFOREIGN, it holds something that is not a metric; PDCVERSION2,
-- it is empty while version 2 has data of the metric, which are to be taken over first.

local prefix, expire, writer, sequence, final = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local forget_writer_after, final_mark_after, SWEEPS = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local own_start, version2_start, index = ARGV[9], ARGV[10], ARGV[11]
local FIRST = 12
local now, now_text = clock()

-- True if version 2 of this library wrote the key; a glance at some fields tells. Twin: has_version2 in
-- pdc/storage/sqlite/table.py, which looks at the columns of the table.
local function is_of_version2(key)
  if redis.pcall('HGET', key, '#prefix') then return false end
  local cursor, fields = '0'
  repeat
    local reply = redis.call('HSCAN', key, cursor, 'COUNT', 10)
    cursor, fields = reply[1], reply[2]
  until cursor == '0' or #fields > 0
  return #fields > 0 and string.match(fields[1], '^_?%a*:{.*}$') ~= nil
end

-- Reads these fields into `current`; returns an error where the key holds something else. Twin: Rows.get.
local function read(key, fields, current)
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local values = redis.pcall('HMGET', key, unpack(fields, from, to))
    if values.err then return values end
    for i = from, to do current[fields[i]] = values[i - from + 1] end
  end
end

-- Queues a field and its value for `flush`. Twin: Rows.put.
local function put(written, field, value)
  written[#written + 1] = field
  written[#written + 1] = value
end

-- Enters the stems of written fields; returns the text of `#stems`, nil where the metric has none.
local function note_stems(key, written, from, to, stems, is_new)
  stems = stems or redis.call('HGET', key, '#stems') or is_new and '\n'
  if not stems then return end
  local before = stems
  for i = from, to, 2 do
    stems = with_stem(stems, written[i])
  end
  if stems ~= before or is_new then redis.call('HSET', key, '#stems', stems) end
  return stems
end

-- Writes the queued fields. Twin: Rows.write.
local function flush(key, written, is_new)
  local stems
  for from = 1, #written, CHUNK do
    local to = math.min(from + CHUNK - 1, #written)
    if redis.call('HSET', key, unpack(written, from, to)) > 0 then
      stems = note_stems(key, written, from, to, stems, is_new)
    end
  end
end

-- The series of the operations: by labels whether it exists; the labels in order; and by the place of each operation the
-- field of the series for all that are over the limit.
local function others_of(first, last, current, overflow)
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
      local stem, le = string.match(stem_of(field), '^([^{]*){(.*)$')
      elsewhere[i] = stem .. (le ~= '' and overflow[2] .. le .. overflow[3] or overflow[1])
    end
  end
  return found, new, elsewhere
end

-- Which of the new series are over the limit, as 'over' in `found`. Returns how many, and how many series there are then.
local function refuse(found, new, has_overflow, count, most, overflow)
  local refused = 0
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
  return refused, count
end

-- Moves operations on new series that are over the limit to another series; returns the count of the new series.
-- Twin: limited in pdc/storage/sqlite/limiting.py.
local function limit(key, first, last, current, written, most, overflow)
  local is_known = true
  for i = first, last, 3 do is_known = is_known and (ARGV[i] == 'stamp' or current[ARGV[i + 1]]) end
  if is_known then return 0 end
  local found, new, elsewhere = others_of(first, last, current, overflow)
  local fields = {}
  for _, field in pairs(elsewhere) do fields[#fields + 1] = field end
  read(key, fields, current)
  local has_overflow = false
  for _, field in pairs(elsewhere) do has_overflow = has_overflow or current[field] end
  local before = tonumber(current['#series'] or '0')
  local refused, count = refuse(found, new, has_overflow, before, most, overflow)
  for i, field in pairs(elsewhere) do
    if found[series_of(ARGV[i + 1])] == 'over' then ARGV[i + 1] = field end
  end
  if count ~= before then put(written, '#series', text(count)) end
  return refused
end

-- Returns an error where a metric cannot begin at the key. Twin: take_over in pdc/storage/sqlite/writing.py, which does at
-- once what PDCVERSION2 asks for.
local function expect_new(key)
  if redis.call('HLEN', key) > 0 then return redis.error_reply('PDCFOREIGN it has fields') end
  local name = string.sub(key, #own_start + 1)
  if version2_start == '' or not is_of_version2(version2_start .. name) then return nil end
  if redis.call('ZSCORE', index, '#version2:' .. name) then return nil end
  return redis.error_reply('PDCVERSION2 it has data to take over')
end

-- Puts the results of the operations; returns the mode of the writer's values. Twin: Rows.write.
local function apply(first, last, current, written, mode)
  for i = first, last, 3 do
    local kind, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if kind == 'stamp' then
      local number, age = string.match(value, '^(%S+) (%S+)$')
      put(written, field, number .. ' ' .. (age == 'never' and '0' or string.format('%.6f', now - tonumber(age))))
      mode = string.match(field, '^#(%a+):') or mode
    elseif kind == 'set' or kind == 'add' or (kind == 'init' and not current[field]) then
      if kind == 'add' then value = add(current[field], value) end
      current[field] = value
      put(written, field, value)
    end
  end
  return mode
end

-- Puts when to look next for writers to forget; returns 1 where it is time now. Twin: is_time_to_search in
-- pdc/storage/sqlite/writing.py.
local function schedule_search(current, written, is_new)
  local searched_at, searches = tonumber(current['#search'] or '0') or 0, 0
  local search_at = searched_at
  if search_at <= now or search_at > now + forget_writer_after then
    searches = is_new and 0 or 1
    search_at = now + forget_writer_after
  end
  if final then search_at = math.min(search_at, now + 2 * final_mark_after) end
  if search_at ~= searched_at then put(written, '#search', text(search_at)) end
  return searches
end

-- Puts when to look next for idle series; returns 1 where it is time now. Twin: is_time_to_sweep in the same file.
local function schedule_sweep(current, written, is_new, idle)
  local sweep_at = tonumber(current['#sweep'] or '0') or 0
  if idle <= 0 or (sweep_at > now and sweep_at <= now + idle) then return 0 end
  put(written, '#sweep', text(now + idle / SWEEPS))
  return is_new and 0 or 1
end

-- The mark of the writer, which is old where the writer deregisters without values. Twin: new_mark in the same file.
local function mark_of(mode)
  local seen = now_text
  if final and mode == '' then seen = text(now - forget_writer_after + final_mark_after) end
  return ARGV[4] .. ' ' .. seen .. ' ' .. mode
end

-- The fields that an update needs to know.
local function needed(own_mark, first, last, declare, most)
  local fields = {'#prefix', own_mark, '#search', '#series', '#sweep', declare and '#meta' or nil}
  for i = first, last, 3 do
    local kind = ARGV[i]
    if kind == 'add' or kind == 'init' or (kind == 'set' and most > 0) then fields[#fields + 1] = ARGV[i + 1] end
  end
  return fields
end

-- Applies the operations from `first` to `last` unless the batch was seen before. Twin: apply in the same file.
local function update(key, first, last, meta, declare, most, overflow, idle)
  local own_mark, current, written = '#mark:' .. writer, {}, {}
  local failed = read(key, needed(own_mark, first, last, declare, most), current)
  if failed then return failed end
  local stored_prefix, stored_meta, stored_mark = current['#prefix'], current['#meta'], current[own_mark]
  if stored_prefix and stored_prefix ~= prefix then
    return redis.error_reply('PDCPREFIX ' .. stored_prefix)
  end
  if final and not stored_prefix then return {0, 0, 0, 0, 0, 0} end
  local is_new = not stored_prefix
  failed = is_new and expect_new(key)
  if failed then return failed end

  local known, _, mode = parse_mark(stored_mark or '')
  known = tonumber(known)
  local folds, refused, uncounted = 0, 0, 0
  if most > 0 and not current['#series'] then
    uncounted = is_new and 0 or 1
    if is_new then put(written, '#series', '0') end
  end
  if known < sequence then
    if most > 0 and uncounted == 0 then refused = limit(key, first, last, current, written, most, overflow) end
    mode = apply(first, last, current, written, mode)
  end
  if known <= sequence then
    if final and mode ~= '' and mode ~= 'all' then folds = 1 end
    put(written, own_mark, mark_of(mode))
  end
  local searches, sweeps = schedule_search(current, written, is_new), schedule_sweep(current, written, is_new, idle)
  if declare or is_new then
    put(written, '#prefix', prefix)
    put(written, '#meta', meta)
  end
  flush(key, written, is_new)
  if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
  local seen = stored_prefix and stored_mark and 1 or 0
  if declare and stored_meta and stored_meta ~= meta then seen = stored_meta end
  return {seen, folds, searches, refused, uncounted, sweeps}
end

local replies, at = {}, FIRST
for i = 1, #KEYS do
  local first, last = at + 8, at + 7 + 3 * ARGV[at + 7]
  local overflow = {ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]}
  local most, idle = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 6])
  replies[i] = update(KEYS[i], first, last, ARGV[at], ARGV[at + 1] == '1', most, overflow, idle)
  at = last + 1
end
return replies
