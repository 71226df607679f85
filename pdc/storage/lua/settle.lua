-- Settles for all processes where the metrics without a prefix are: under the keys of version 2, or beside these. The index
-- that exists says so.
-- Twin: Database.for_reading, which looks at the columns of the table.
--
-- Arguments: 1 where version 2 has keys, a new id of the storage, and the milliseconds that the index lasts (0: for ever).
--
-- Returns 1 where the metrics are beside the keys of version 2.

local index, beside, expire = KEYS[1], KEYS[2], tonumber(ARGV[3])
if redis.call('EXISTS', beside) == 1 then return 1 end
if redis.call('EXISTS', index) == 1 then return 0 end
if ARGV[1] == '1' then
  redis.call('ZADD', beside, '+inf', '#version2')
  return 1
end
redis.call('ZADD', index, '-inf', ARGV[2])
if expire > 0 then redis.call('PEXPIRE', index, expire) end
return 0
