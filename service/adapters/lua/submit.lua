-- Store a queued job and put it into its queue.
-- KEYS 13-15 the queues of its tag
-- ARGV 4 nonce of this call   5 most unfinished jobs per tag   6 created_at   7... fields and values of the hash
-- A repetition of the same call (the client never saw the answer) is recognised by the nonce.

local function forget_expired()
  local expired = redis.call('ZRANGEBYSCORE', ENDED, '-inf', digits(NOW_MS), 'LIMIT', 0, 100)
  for _, job in ipairs(expired) do
    redis.call('ZREM', ALL, job)
    redis.call('ZREM', ENDED, job)
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
local unfinished = redis.call('ZCARD', DELAYED)
for level = 13, 15 do
  unfinished = unfinished + redis.call('XLEN', KEYS[level])
end
if unfinished >= tonumber(ARGV[5]) then
  return redis.error_reply('FULL jobs: expected fewer than ' .. ARGV[5] .. ' unfinished ones with this tag')
end
forget_expired()
redis.call('HSET', JOB, 'nonce', ARGV[4], 'state', 'queued', 'attempt', '0', 'released', '0', 'created_at', ARGV[6])
redis.call('HSET', JOB, unpack(ARGV, 7))
redis.call('ZADD', ALL, ARGV[6], ID)
redis.call('ZADD', BY_STATE.queued, ARGV[6], ID)
enqueue()
record('state', '{"state":"queued"}')
return redis.call('HGETALL', JOB)
