-- Removes the first of these series, until it has removed enough fields; where `idle` is given, only series that are idle.
-- Twin: Removal.remove.
--
-- Arguments, after those of every script of one metric: the most fields, the seconds after which a series is idle (0: remove
-- all), and for each series its labels and the text before and after the bound in the labels of its buckets.
--
-- Returns how many series it has done: all where the batch was applied, -1 where `#stems` cannot name the fields of a series.

local key, prefix, writer, sequence, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local idle, now = tonumber(ARGV[5]), clock()
local FIRST = 6
local known = redis.pcall('HMGET', key, '#prefix', '#mark:' .. writer, '#stems', '#series')
if known.err then return known end
local all = (#ARGV - FIRST + 1) / 3
if known[1] ~= prefix or tonumber((parse_mark(known[2] or ''))) >= sequence then return all end
if not names_fields(known[3]) then return -1 end

-- The stems of fields without and with a bound, and how values of the dead begin. Twin: Removal._stems and Bounds.
local function parse_stems(stems)
  local plain, bounded = {}, {}
  for stem, le in string.gmatch(stems, '([^{\n]*){([^\n]*)\n') do
    if le == '' then plain[#plain + 1] = stem else bounded[#bounded + 1] = {stem, le} end
  end
  return plain, bounded, string.match(stems, '\n(#%a+::){\n')
end

local plain, bounded, heir = parse_stems(known[3])

-- Adds the fields of a series to those to delete. Twin: fields_of in pdc/storage/sqlite/removing.py.
local function doom(doomed, labels, before, after)
  for _, stem in ipairs(plain) do doomed[#doomed + 1] = stem .. labels end
  for _, stem in ipairs(bounded) do doomed[#doomed + 1] = stem[1] .. before .. stem[2] .. after end
end

local doomed, done, count = {}, 0, tonumber(known[4] or '0')
while done < all and (done == 0 or #doomed + #plain + #bounded <= most) do
  local at, from = FIRST + 3 * done, #doomed + 1
  local labels = ARGV[at]
  if idle == 0 or is_idle(redis.call('HGET', key, '#updated' .. labels) or ' inf', now, idle) then
    doom(doomed, labels, ARGV[at + 1], ARGV[at + 2])
  end
  if known[4] and from <= #doomed then
    local counts = not heir or redis.call('HGET', key, heir .. labels)
    if redis.call('HDEL', key, unpack(doomed, from)) > 0 and counts then count = count - 1 end
  end
  done = done + 1
end
if known[4] then redis.call('HSET', key, '#series', text(math.max(count, 0))) else remove(key, doomed) end
return done
