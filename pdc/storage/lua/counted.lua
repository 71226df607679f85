-- Notes how many series a metric has. Twin: count_series in pdc/storage/sqlite/limiting.py.

if redis.call('HGET', KEYS[1], '#prefix') == ARGV[1] then redis.call('HSET', KEYS[1], '#series', ARGV[4]) end
return 0
