-- Changes fields that a metric has: the short form of apply.lua for a batch of one update, as write-through sends them.
-- Twin: apply in pdc/storage/sqlite/writing.py, which has one form for all batches.
--
-- Arguments: those of every script of one metric, the milliseconds that the hash lasts (0: for ever), the index, the seconds
-- between two searches for writers to forget, and for each operation its kind, field and value. No two have the same field.
--
-- Returns 1 where the update is applied. Otherwise it has changed nothing and returns 0, and apply.lua has to do it: a field or
-- the mark of the writer is missing, the batch was seen before, it is time to forget writers, the index is gone.

local key, prefix, own_mark, sequence = KEYS[1], ARGV[1], '#mark:' .. ARGV[2], tonumber(ARGV[3])
local expire, index, forget_writer_after, FIRST = ARGV[4], ARGV[5], tonumber(ARGV[6]), 7
local now, now_text = clock()

local fields = {'#prefix', own_mark, '#search'}
for i = FIRST, #ARGV, 3 do fields[#fields + 1] = ARGV[i + 1] end
local stored = redis.pcall('HMGET', key, unpack(fields))
if stored.err or stored[1] ~= prefix then return 0 end
for i = 2, #fields do
  if not stored[i] then return 0 end
end
local last, _, mode = parse_mark(stored[2])
local search_at = tonumber(stored[3]) or 0
if tonumber(last) >= sequence or search_at <= now or search_at > now + forget_writer_after then return 0 end
if redis.call('EXISTS', index) == 0 then return 0 end

local written = {own_mark, ARGV[3] .. ' ' .. now_text .. ' ' .. mode}
for i = FIRST, #ARGV, 3 do
  local kind, value = ARGV[i], ARGV[i + 2]
  if kind == 'add' then value = add(stored[4 + (i - FIRST) / 3], value) end
  if kind ~= 'init' then
    written[#written + 1] = ARGV[i + 1]
    written[#written + 1] = value
  end
end
redis.call('HSET', key, unpack(written))
if expire == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, expire) end
return 1
