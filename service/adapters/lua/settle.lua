-- End the job and acknowledge it, in one step.
-- ARGV 4 attempt   5 token   6 state   7 result as JSON or ''   8 error or ''
-- An accepted cancellation wins over whatever the worker says; repeating the call returns the job as it ended.

local found = redis.call('HMGET', JOB, 'state', 'ended_by')
if found[1] and final(found[1]) and found[2] == ARGV[5] then
  return redis.call('HGETALL', JOB)
end
local refused = refuse(ARGV[4], ARGV[5])
if refused then
  return refused
end
if get('cancel_requested') == '1' then
  finish('cancelled', '', ARGV[8])
elseif ARGV[6] == 'cancelled' then
  return redis.error_reply('CONFLICT job ' .. ID .. ': nobody asked to cancel it')
else
  finish(ARGV[6], ARGV[7], ARGV[8])
end
return redis.call('HGETALL', JOB)
