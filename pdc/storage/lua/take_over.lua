-- Begins a metric with the hash that was made for it, unless another process has begun it. Twin: take_over in
-- pdc/storage/sqlite/writing.py.
--
-- Keys: the metric's, and that of the hash. Argument: the milliseconds that the metric lasts (0: for ever).

local key, made, expire = KEYS[1], KEYS[2], tonumber(ARGV[1])
if redis.call('EXISTS', key) == 1 or redis.call('EXISTS', made) == 0 then return 0 end
redis.call('RENAME', made, key)
if expire > 0 then redis.call('PEXPIRE', key, expire) else redis.call('PERSIST', key) end
return 1
