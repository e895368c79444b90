-- Tie the job to a version number, once: the first reservation stays, whoever asks again.
-- ARGV 4 attempt   5 token   6 model   7 version
-- From here on it can no longer be cancelled; after a cancellation it can no longer be reserved.

local refused = refuse(ARGV[4], ARGV[5])
if refused then
  return refused
end
if not get('reserved_version') then
  if get('cancel_requested') == '1' then
    return redis.error_reply('CONFLICT job ' .. ID .. ': it is to be cancelled')
  end
  redis.call('HSET', JOB, 'reserved_model', ARGV[6], 'reserved_version', ARGV[7])
end
return redis.call('HMGET', JOB, 'reserved_model', 'reserved_version')
