-- Show a worker as alive; the set of names loses those whose time is over.
-- Alone: without common.lua.   KEYS 1 set of workers   2 this worker   ARGV 1 name   2 description   3 time to live in ms

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms))
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[3])), ARGV[1])
return redis.status_reply('OK')
