-- Store a queued job and put it into its queue.
-- KEYS 13-15 the queues of its tag   16 what its idempotency key is kept under   17 the failed job that it replaces
-- ARGV 4 nonce of this call   5 most unfinished jobs per tag   6 created_at   7 fingerprint, '' without a key
--      8 id of a job that was found to be gone   9 id of the job that it replaces or ''
--      10 most unfinished jobs of all tags   11... fields and values
-- A repetition of the same call (the client never saw the answer) is recognised by the nonce.
-- Returns the job, or {id, fingerprint} of the one that the key or the replaced job leads to.

local function forget_expired()
  local expired = redis.call('ZRANGEBYSCORE', ENDED, '-inf', digits(NOW_MS), 'LIMIT', 0, 100)
  for _, job in ipairs(expired) do
    redis.call('ZREM', ALL, job)
    redis.call('ZREM', ENDED, job)
    redis.call('ZREM', DEAD, job)
    for _, key in pairs(BY_STATE) do
      redis.call('ZREM', key, job)
    end
  end
end

local nonce = get('nonce')
if nonce == ARGV[4] then
  return redis.call('HGETALL', JOB)
end
if nonce then
  return redis.error_reply('CONFLICT job ' .. ID .. ': it exists already')
end
if ARGV[9] ~= '' then
  local old = redis.call('HMGET', KEYS[17], 'state', 'requeued_as')
  if old[2] then
    return { old[2], ARGV[7] }
  end
  if old[1] ~= 'failed' then
    return redis.error_reply('CONFLICT job ' .. ARGV[9] .. ': expected a failed one, got ' .. (old[1] or 'none'))
  end
end
if ARGV[7] ~= '' then
  local known = redis.call('HMGET', KEYS[16], 'job', 'fingerprint')
  if known[1] and known[1] ~= ARGV[8] then
    return known
  end
end
local unfinished = redis.call('ZCARD', DELAYED)
for level = 13, 15 do
  unfinished = unfinished + redis.call('XLEN', KEYS[level])
end
if unfinished >= tonumber(ARGV[5]) then
  return redis.error_reply('FULL jobs: expected fewer than ' .. ARGV[5] .. ' unfinished ones with this tag')
end
if redis.call('ZCARD', BY_STATE.queued) + redis.call('ZCARD', BY_STATE.running) >= tonumber(ARGV[10]) then
  return redis.error_reply('FULL jobs: expected fewer than ' .. ARGV[10] .. ' unfinished ones of all tags')
end
forget_expired()
redis.call('HSET', JOB, 'nonce', ARGV[4], 'state', 'queued', 'attempt', '0', 'released', '0', 'created_at', ARGV[6])
redis.call('HSET', JOB, unpack(ARGV, 11))
redis.call('ZADD', ALL, ARGV[6], ID)
redis.call('ZADD', BY_STATE.queued, ARGV[6], ID)
enqueue()
record('state', '{"state":"queued"}')
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[16], 'job', ID, 'fingerprint', ARGV[7])
  redis.call('PEXPIRE', KEYS[16], KEEP_MS)
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[17], 'requeued_as', ID)
  redis.call('HDEL', KEYS[17], 'dead')
  redis.call('ZREM', DEAD, ARGV[9])
end
return redis.call('HGETALL', JOB)
