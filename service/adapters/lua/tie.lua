-- A version that an unfinished job had published before it was known to is the job's: it finds it, and makes no other.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'reserved_version') == 1 then
  return 0
end
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then
  return 0
end
redis.call('HSET', KEYS[1], 'reserved_model', ARGV[1], 'reserved_version', ARGV[2])
return 1
