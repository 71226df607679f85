-- Looks at these keys, or at the next keys of the database, for one of version 2. Twin: Database.for_reading, which looks at
-- the columns of the table.
--
-- Arguments: a cursor, and the keys, if any.
--
-- Returns the next cursor, '0' at the end, and 1 where a key is of version 2.

local cursor, keys = '0', {unpack(ARGV, 2)}
if #keys == 0 then
  local reply = redis.call('SCAN', ARGV[1], 'MATCH', 'prometheus_*', 'COUNT', 1000)
  cursor, keys = reply[1], reply[2]
end
for _, key in ipairs(keys) do
  if is_of_version2(key) then return {'0', 1} end
end
return {cursor, 0}
