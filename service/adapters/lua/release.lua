-- Give a running job back to its queue, at the end.
-- ARGV 4 attempt   5 token   6 '1' when the attempt counts, else '0'   7 reason

local refused = refuse(ARGV[4], ARGV[5])
if refused then
  return refused
end
if get('cancel_requested') == '1' then
  finish('cancelled', '', '')
elseif ARGV[6] == '1' and used_up() then
  bury(ARGV[7])
else
  if ARGV[6] == '0' then
    redis.call('HINCRBY', JOB, 'released', 1)
  end
  acknowledge(get('entry'))
  redis.call('HDEL', JOB, 'token', 'lease_until', 'worker')
  move('queued')
  enqueue()
  record('state', cjson.encode({ state = 'queued', reason = ARGV[7] }))
end
return redis.call('HGETALL', JOB)
