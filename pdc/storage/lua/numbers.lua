-- Numbers and times as the storage keeps them: each script is loaded with this text before its own.

local format, tonumber, type = string.format, tonumber, type  -- locals are found sooner than globals

-- The shortest text of a number that gives back the same double. Twin: repr of a float.
local function text(number)
  local short = format('%.15g', number)
  if tonumber(short) == number then return short end
  return format('%.17g', number)
end

-- The sum of a stored value and an amount: integers as such, which Redis keeps in less memory. A sum that had more than 15
-- digits stays a number, which Redis writes with 17: it takes long to find out that fewer would do. Twin: `value + :value` in
-- Rows.
local function add(before, amount)
  local sum = (tonumber(before) or 0) + amount
  if sum % 1 == 0 and sum ~= 0 and sum < 1e15 and sum > -1e15 then return format('%d', sum) end
  return (type(before) == 'number' or #before > 17) and sum or text(sum)
end

-- The server's clock in seconds, as a number and as a text. Twin: time.time.
local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000, format('%s.%06d', time[1], time[2])
end
