-- Deletes a metric. Where it was taken over from version 2, the index keeps a note that it is not to be taken over again.
-- Twin: SqliteStorage.delete.

local key, prefix, index, name = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', key, '#prefix') ~= prefix then return 0 end
if redis.call('HGET', key, '#version2') then redis.call('ZADD', index, '-inf', '#version2:' .. name) end
return redis.call('UNLINK', key)
