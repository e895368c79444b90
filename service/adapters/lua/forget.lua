-- Remove an ended job before its time, because there are too many; a sweep with its jobs, these never alone.

local state = get('state')
if (state and not final(state)) or (get('parent') and redis.call('EXISTS', PARENT) == 1) then
  return redis.status_reply('OK')
end
local gone = children()
gone[#gone + 1] = { ID, JOB, EVENTS }
for _, each in ipairs(gone) do
  redis.call('DEL', each[2], each[3])
  redis.call('ZREM', ALL, each[1])
  redis.call('ZREM', ENDED, each[1])
  redis.call('ZREM', DEAD, each[1])
  for _, key in pairs(BY_STATE) do
    redis.call('ZREM', key, each[1])
  end
end
return redis.status_reply('OK')
