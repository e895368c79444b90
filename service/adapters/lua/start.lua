-- Make a taken entry's job this worker's own: a new attempt with a new token and a fresh lease.
-- ARGV 4 entry   5 token   6 worker   7 lease in milliseconds
-- Returns the job, or an empty list when there is nothing to own (gone, ended, or its lease still holds).
-- Repeating the call with the same token (the client never saw the answer) returns the job again.

local state = get('state')
if not state or final(state) or get('entry') ~= ARGV[4] then
  acknowledge(ARGV[4])
  return {}
end
if state == 'queued' and get('cancel_requested') == '1' then  -- a sweep that waited for its last job
  finish('cancelled', '', '')
  return {}
end
if state == 'running' then
  if get('token') == ARGV[5] then
    return redis.call('HGETALL', JOB)
  end
  if tonumber(get('lease_until')) > NOW_MS then
    return {}
  end
  stop_clock(tonumber(get('lease_until')))
  local reason = 'the lease of attempt ' .. get('attempt') .. ' was lost'
  if get('cancel_requested') == '1' then
    finish('cancelled', '', '')
    return {}
  end
  if used_up() then
    bury(reason .. '; no attempt of ' .. get('max_attempts') .. ' is left')
    return {}
  end
  record('state', cjson.encode({ state = 'queued', reason = reason }))
end
local attempt = redis.call('HINCRBY', JOB, 'attempt', 1)
redis.call('HSETNX', JOB, 'started_at', NOW_S)
redis.call('HSET', JOB, 'attempt_at', digits(NOW_MS), 'token', ARGV[5], 'worker', ARGV[6], 'lease_until', digits(NOW_MS + tonumber(ARGV[7])))
move('running')
record('state', cjson.encode({ state = 'running', attempt = attempt, worker = ARGV[6] }))
return redis.call('HGETALL', JOB)
