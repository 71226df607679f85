-- Drops values of a writer that deregisters, or of all writers that are to be forgotten, or folds them into the values of the
-- dead. Twins: Folding.fold_final, Folding.forget.
--
-- Looks at some fields; call it again with the cursor that it returns until that is '0'. With the last fields, the mark of a
-- writer that deregisters becomes old. Where not all fields are entered in `#stems`, a search for writers to forget enters the
-- fields that it finds.
--
-- Returns the cursor, then the writers that are to be forgotten with forget.lua.

local key, prefix, writer, sequence = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local cursor, count, final, final_mark_at = ARGV[4], ARGV[5], ARGV[6] == '1', tonumber(ARGV[7])
local forget_writer_after, forget_values_after = tonumber(ARGV[8]), tonumber(ARGV[9])
local most, overflow = tonumber(ARGV[10]), ARGV[11]
local MODES = {live = 'drop', all = 'drop', sum = 'fold', min = 'fold', max = 'fold', mostrecent = 'fold'}
local now, now_text = clock()
local known = redis.call('HMGET', key, '#prefix', '#mark:' .. writer, '#stems', '#series')
local last = parse_mark(known[2] or '')
if known[1] ~= prefix or (final and tonumber(last) ~= sequence) then return {'0'} end

-- A number and the time it was set. Twin: stamped in pdc/storage/fields.py.
local function parse_stamped(value)
  local number, set_at = string.match(value, '^(%S+) (%S+)$')
  return tonumber(number), tonumber(set_at)
end

-- The value of the dead together with the value of one more. Twin: fold in pdc/storage/fields.py.
local function fold(mode, dead, value)
  local number, set_at = parse_stamped(dead or '')
  local new, new_set_at = parse_stamped(value)
  if not number or not set_at then return value end
  if not new or not new_set_at then return dead end
  if mode == 'sum' then return text(number + new) .. ' ' .. text(math.max(set_at, new_set_at)) end
  local wins = (mode == 'min' and new < number) or (mode == 'max' and new > number)
    or (mode == 'mostrecent' and new_set_at > set_at)
  return wins and value or dead
end

-- A value of the dead, as far as it is folded. Twin: Rows.get.
local function dead_of(folded, heir)
  return folded[heir] or redis.call('HGET', key, heir)
end

-- The field of the dead into which a value of these labels is folded, and how many series there are with it.
-- Twin: Folding._heir.
local function heir_of(folded, mode, labels, series)
  local heir, other = '#' .. mode .. '::' .. labels, '#' .. mode .. '::' .. overflow
  if most == 0 or dead_of(folded, heir) then return heir, series end
  local has_other = dead_of(folded, other)
  local is_over = labels ~= overflow and series - (has_other and 1 or 0) >= most
  if not is_over or not has_other then series = series + 1 end
  return is_over and other or heir, series
end

-- True if values of this writer are to be dropped or folded; `gone` keeps the answers.
local function is_gone(gone, owner)
  if final or owner == writer then return final and owner == writer end
  if gone[owner] == nil then
    local mark = owner ~= '' and redis.call('HGET', key, '#mark:' .. owner)
    gone[owner] = mark and is_forgotten(mark, now, forget_writer_after, forget_values_after) or false
  end
  return gone[owner]
end

local stems, series, folded, gone = known[3], tonumber(known[4] or '0'), {}, {}
if not final and cursor == '0' then stems = stems or '\n?\n' end
local enters = not final and stems and not is_complete(stems)
local pattern = final and '#*:' .. writer .. ':*' or enters and '*' or '#*'
local reply = redis.call('HSCAN', key, cursor, 'MATCH', pattern, 'COUNT', count)
local found, doomed = {reply[1]}, {}
for i = 1, #reply[2], 2 do
  local field, value = reply[2][i], reply[2][i + 1]
  if enters then stems = with_stem(stems, field) end
  local mode, owner, labels = string.match(field, '^#(%a+):([^:]+):(.*)$')
  if MODES[mode] and is_gone(gone, owner) then
    doomed[#doomed + 1] = field
    if MODES[mode] == 'fold' then
      local heir
      heir, series = heir_of(folded, mode, labels, series)
      folded[heir] = fold(mode, dead_of(folded, heir), value)
      stems = stems and with_stem(stems, heir)
    end
  elseif not final and string.sub(field, 1, 6) == '#mark:' and is_gone(gone, string.sub(field, 7)) then
    found[#found + 1] = string.sub(field, 7)
  end
end
remove(key, doomed)
for heir, value in pairs(folded) do
  if redis.call('HSET', key, heir, value) > 0 then note_new_fields(key, now_text) end
end
if enters and reply[1] == '0' then stems = string.sub(stems, 3) end
if most > 0 and text(series) ~= known[4] then redis.call('HSET', key, '#series', text(series)) end
if stems ~= known[3] then redis.call('HSET', key, '#stems', stems) end
if final and reply[1] == '0' then
  redis.call('HSET', key, '#mark:' .. writer, last .. ' ' .. text(now + final_mark_at) .. ' ')
end
return found
