-- Move the job's checkpoint pointer; returns the one before (the same one when this call is a repetition).
-- ARGV 4 attempt   5 token   6 pointer as JSON

local refused = refuse(ARGV[4], ARGV[5])
if refused then
  return refused
end
local before = get('checkpoint')
if before ~= ARGV[6] then
  redis.call('HSET', JOB, 'checkpoint', ARGV[6])
  record('checkpoint', ARGV[6])
end
return before
