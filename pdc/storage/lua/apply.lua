-- Applies updates of one batch to the keys of their metrics. Twin: apply in pdc/storage/sqlite/writing.py.
--
-- Keys: one for each metric. Arguments: first those of the batch, as named below; then for each metric doubles in one text, and
-- its meta; where it has a limit, the labels of the series for those over it, and the text before and after the bound in these
-- labels; then the fields of its operations, by their kinds: begin (init with a text), init (with a number), add, set and
-- stamp; then the texts of begin, set and stamp, in the same order. The doubles are: 1 to declare the metric, its most series
-- (0: no limit), how long idle series stay, 1 where series that begin get a time of creation, 1 where a field has several
-- operations, how many operations there are of each kind, and the numbers of init and add: many arguments take long.
--
-- Returns 1 where the index exists, or was not to be looked for, otherwise 0; then for each metric an error, or a list:
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
local own_start, version2_start, index, looks = ARGV[9], ARGV[10], ARGV[11], ARGV[12] == '1'
local FIRST = 13
local now, now_text = clock()
local ARGV = ARGV

local OWN_MARK = '#mark:' .. writer

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

-- The values of the fields in ARGV from `first` to `last`, in their order, false where there is none. Twin: Rows.get.
local function read(key, first, last)
  local values = {}
  for from = first, last, CHUNK do
    local found = redis.call('HMGET', key, unpack(ARGV, from, math.min(from + CHUNK - 1, last)))
    if last - first < CHUNK then return found end
    for i = 1, #found do values[from - first + i] = found[i] end
  end
  return values
end

-- Queues a field and its value for `flush`. Twin: Rows.put.
local function put(written, field, value)
  written[#written + 1] = field
  written[#written + 1] = value
end

-- Writes the queued fields, and notes new ones and their stems. Twin: Rows.write.
local function flush(key, written)
  for from = 1, #written, CHUNK do
    local to = math.min(from + CHUNK - 1, #written)
    if redis.call('HSET', key, unpack(written, from, to)) > 0 then
      local stems = redis.call('HGET', key, '#stems')
      local left = stems
      for i = from, stems and to or 0, 2 do left = with_stem(left, written[i]) end
      if left ~= stems then redis.call('HSET', key, '#stems', left) end
      note_new_fields(key, now_text)
    end
  end
end

-- The doubles in a text.
local function parse_doubles(packed)
  local count = #packed / 8
  if count <= CHUNK then return {struct.unpack('<' .. string.rep('d', count), packed)} end
  local numbers = {}
  for from = 1, count, CHUNK do
    local size = math.min(CHUNK, count - from + 1)
    local found = {struct.unpack('<' .. string.rep('d', size), packed, 8 * from - 7)}
    for i = 1, size do numbers[from + i - 1] = found[i] end
  end
  return numbers
end

-- The update of a metric, whose arguments begin at this place of ARGV: its parts, and where fields of each kind, texts and the
-- arguments of the next metric begin.
local function parse_update(at)
  local numbers = parse_doubles(ARGV[at])
  local most = numbers[2]
  local begin = at + (most > 0 and 5 or 2)
  local init = begin + numbers[6]
  local add = init + numbers[7]
  local set = add + numbers[8]
  local stamp = set + numbers[9]
  local texts = stamp + numbers[10]
  return {
    numbers = numbers, meta = ARGV[at + 1], declare = numbers[1] == 1, most = most, idle = numbers[3],
    overflow = most > 0 and {ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]}, created = numbers[4] == 1, repeats = numbers[5] == 1,
    begin = begin, init = init, add = add, set = set, stamp = stamp, texts = texts,
    after = texts + (init - begin) + (texts - set),
  }
end

-- The series of the operations: by labels whether it exists; the labels in order; and by the place of each operation the
-- field of the series for all that are over the limit.
local function others_of(update, current, overflow)
  local found, new, elsewhere = {}, {}, {}
  for i = update.begin, update.texts - 1 do
    local field = ARGV[i]
    local labels = series_of(field)
    if i < update.stamp and labels then
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
local function limit(key, update, values, count, written)
  local is_known, current, most, overflow = true, {}, update.most, update.overflow
  for n = 1, #values do is_known = is_known and values[n] end
  if is_known then return 0 end
  for n, value in ipairs(values) do current[ARGV[update.begin + n - 1]] = value end
  local found, new, elsewhere = others_of(update, current, overflow)
  local has_overflow = false
  for _, field in pairs(elsewhere) do
    if current[field] == nil then current[field] = redis.call('HGET', key, field) end
    has_overflow = has_overflow or current[field]
  end
  local refused, now_count = refuse(found, new, has_overflow, count, most, overflow)
  for i, field in pairs(elsewhere) do
    if found[series_of(ARGV[i])] == 'over' then ARGV[i] = field end
  end
  for n = 1, #values do values[n] = current[ARGV[update.begin + n - 1]] end
  if now_count ~= count then put(written, '#series', text(now_count)) end
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

-- Puts the time of creation of each series that begins with these fields, unless it is there. Twin: created_of in
-- pdc/storage/fields.py.
local function date(key, new, written)
  local known = {}
  for i = 1, #written, 2 do known[written[i]] = true end
  for _, field in ipairs(new) do
    local labels = series_of(field)
    local own = labels and '_created:' .. labels
    if own and not known[own] then
      known[own] = true
      if not redis.call('HGET', key, own) then put(written, own, now_text) end
    end
  end
end

-- Puts the results of the operations; returns the mode of the writer's values, and fields that inits and additions make.
-- Twin: Rows.write.
local function apply(update, values, written, mode, repeats)
  local first, numbers, n, text_at = update.begin - 1, update.numbers, 10, update.texts
  local changed, new, at = {}, {}, #written
  for i = update.begin, update.add - 1 do
    local field, value = ARGV[i]
    if i < update.init then value, text_at = ARGV[text_at], text_at + 1 else value, n = text(numbers[n + 1]), n + 1 end
    if not values[i - first] and not changed[field] then
      written[at + 1], written[at + 2], at = field, value, at + 2
      changed[field], new[#new + 1] = value, field
    end
  end
  for i = update.set, update.stamp - 1 do
    local field, value = ARGV[i], ARGV[text_at]
    written[at + 1], written[at + 2], at, text_at = field, value, at + 2, text_at + 1
    if repeats then changed[field] = value end
  end
  for i = update.add, update.set - 1 do
    local field, before = ARGV[i], values[i - first]
    if repeats then before = changed[field] or before end
    n = n + 1
    local after = add(before or '0', numbers[n])
    written[at + 1], written[at + 2], at = field, after, at + 2
    if not before then new[#new + 1] = field end
    if repeats then changed[field] = after end
  end
  for i = update.stamp, update.texts - 1 do
    local field, number, age = ARGV[i], string.match(ARGV[text_at], '^(%S+) (%S+)$')
    local value = number .. ' ' .. (age == 'never' and '0' or format('%.6f', now - tonumber(age)))
    written[at + 1], written[at + 2], at, text_at = field, value, at + 2, text_at + 1
    mode = string.match(field, '^#(%a+):') or mode
  end
  return mode, new
end

-- Puts when to look next for writers to forget; returns 1 where it is time now. Twin: is_time_to_search in
-- pdc/storage/sqlite/writing.py.
local function schedule_search(search, written, is_new)
  local searched_at, searches = tonumber(search or '0') or 0, 0
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
local function schedule_sweep(sweep, written, is_new, idle)
  local sweep_at = tonumber(sweep or '0') or 0
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

-- Applies an update unless the batch was seen before. Twin: apply in the same file.
local function apply_update(key, update)
  local known = redis.pcall('HMGET', key, '#prefix', OWN_MARK, '#search', '#sweep', '#series', '#meta')
  if known.err then return known end
  local stored_prefix, stored_mark, search, sweep, series, stored_meta = unpack(known)
  if stored_prefix and stored_prefix ~= prefix then
    return redis.error_reply('PDCPREFIX ' .. stored_prefix)
  end
  if final and not stored_prefix then return {0, 0, 0, 0, 0, 0} end
  local is_new = not stored_prefix
  local failed = is_new and expect_new(key)
  if failed then return failed end

  local last, _, mode = parse_mark(stored_mark or '')
  last = tonumber(last)
  local own, written = {}, {}  -- new bookkeeping is apart: it is no new field for readers
  local folds, refused, uncounted = 0, 0, 0
  if update.most > 0 and not series then
    uncounted = is_new and 0 or 1
    if is_new then put(own, '#series', '0') end
  end
  if last < sequence then
    local values = read(key, update.begin, (update.most > 0 and update.stamp or update.set) - 1)
    if update.most > 0 and uncounted == 0 then
      refused = limit(key, update, values, tonumber(series or '0'), own)
    end
    local new
    mode, new = apply(update, values, written, mode, update.repeats or refused > 0)
    if update.created and #new > 0 then date(key, new, written) end
  end
  if last <= sequence then
    if final and mode ~= '' and mode ~= 'all' then folds = 1 end
    put(stored_mark and written or own, OWN_MARK, mark_of(mode))
  end
  local searches, sweeps = schedule_search(search, own, is_new), schedule_sweep(sweep, own, is_new, update.idle)
  if update.declare or is_new then
    put(own, '#prefix', prefix)
    put(own, '#meta', update.meta)
  end
  if is_new then redis.call('HSET', key, '#stems', '\n') end
  flush(key, written)
  if #own > 0 then redis.call('HSET', key, unpack(own)) end
  if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
  local seen = stored_prefix and stored_mark and 1 or 0
  if update.declare and stored_meta and stored_meta ~= update.meta then seen = stored_meta end
  return {seen, folds, searches, refused, uncounted, sweeps}
end

local replies, at = {looks and redis.call('EXISTS', index) or 1}, FIRST
for i = 1, #KEYS do
  local update = parse_update(at)
  replies[i + 1] = apply_update(KEYS[i], update)
  at = update.after
end
return replies
