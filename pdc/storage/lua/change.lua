-- Changes fields that a metric has: the short form of apply.lua for a batch of one update, as write-through sends them.
-- Twin: apply in pdc/storage/sqlite/writing.py, which has one form for all batches.
--
-- Keys: the metric's; then, where its writer has not renewed it within the last second, the index. Arguments: the prefix, the
-- sequence, the field of the writer's mark, and the fields of the operations, each once; then for each of these fields the
-- number to add, or `=` and the text to set, or nothing where the field has to be there. The last two arguments of a renewal
-- are the milliseconds that the hash lasts (0: for ever), and the seconds between two searches for writers to forget.
--
-- Other updates take two commands: they leave the time in the mark as it is, and the hash lasts as if they were a part of the
-- renewal. So an index that is gone, or a search that is due, is found within the second, too.
--
-- Returns 1 where the update is applied. Otherwise it has changed nothing and returns 0, and apply.lua has to do it: a field or
-- the mark of the writer is missing, the batch was seen before, it is time to forget writers, the index is gone.

local key, index, prefix, sequence, own_mark = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local count = (#ARGV - (index and 5 or 3)) / 2
local CHANGES = 3 + count

-- The rest of the mark after a renewal; nothing where apply.lua has to renew the metric.
local function renew(rest)
  local expire, forget_writer_after = ARGV[#ARGV - 1], tonumber(ARGV[#ARGV])
  local now, now_text = clock()
  local search_at = tonumber(redis.call('HGET', key, '#search') or '0') or 0
  if search_at <= now or search_at > now + forget_writer_after or redis.call('EXISTS', index) == 0 then return nil end
  if expire == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, expire) end
  return ' ' .. now_text .. ' ' .. string.match(rest, '%a*$')
end

local stored = redis.pcall('HMGET', key, '#prefix', unpack(ARGV, 3, CHANGES))
if stored.err or stored[1] ~= prefix then return 0 end
for i = 2, 2 + count do
  if not stored[i] then return 0 end
end
local last, rest = string.match(stored[2], '^(%d+)( %S+ ?%a*)$')
if not last or tonumber(last) >= tonumber(sequence) then return 0 end
if index then rest = renew(rest) end
if not rest then return 0 end

local written, at = {own_mark, sequence .. rest}, 2
for i = 1, count do
  local change = ARGV[CHANGES + i]
  if change ~= '' then
    local is_text = string.byte(change) == 61
    written[at + 1] = ARGV[3 + i]
    written[at + 2] = is_text and string.sub(change, 2) or add(stored[2 + i], change)
    at = at + 2
  end
end
redis.call('HSET', key, unpack(written))
return 1
