-- Give a running job back to its queue, at the end; or to the delayed ones.
-- ARGV 4 attempt   5 token   6 '1' when the attempt counts, else '0'   7 reason   8 delay in milliseconds

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
  stop_clock(NOW_MS)
  redis.call('HDEL', JOB, 'token', 'lease_until', 'worker', 'entry')
  move('queued')
  local told = { state = 'queued', reason = ARGV[7] }
  if tonumber(ARGV[8]) > 0 then
    delay(tonumber(ARGV[8]))
    told.retry_in_s = tonumber(ARGV[8]) / 1000
  else
    enqueue()
  end
  record('state', cjson.encode(told))
end
return redis.call('HGETALL', JOB)
