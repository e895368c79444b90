-- Remove an ended job before its time, because there are too many.

local state = get('state')
if state and not final(state) then
  return redis.status_reply('OK')
end
redis.call('DEL', JOB, EVENTS)
redis.call('ZREM', ALL, ID)
redis.call('ZREM', ENDED, ID)
redis.call('ZREM', DEAD, ID)
for _, key in pairs(BY_STATE) do
  redis.call('ZREM', key, ID)
end
return redis.status_reply('OK')
