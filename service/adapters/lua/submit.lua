-- Store a queued job and put it into its queue; or a sweep, which waits, and all its jobs.
-- KEYS 18 what its idempotency key is kept under   19 the failed job that it replaces
-- ARGV 4 nonce of this call   5 most unfinished jobs per tag   6 created_at   7 fingerprint, '' without a key
--      8 id of a job that was found to be gone   9 id of the job that it replaces or ''
--      10 most unfinished jobs of all tags   11 how many children   12... how many fields and values, and these, of each
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

local CHILDREN = children_of(ID, tonumber(ARGV[11]))
local at = 12

local function store()
  local count = tonumber(ARGV[at])
  redis.call('HSET', JOB, 'nonce', ARGV[4], 'state', 'queued', 'attempt', '0', 'released', '0', 'created_at', ARGV[6])
  redis.call('HSET', JOB, unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
  redis.call('ZADD', ALL, ARGV[6], ID)
  redis.call('ZADD', BY_STATE.queued, ARGV[6], ID)
  record('state', '{"state":"queued"}')
end

local nonce = get('nonce')
if nonce == ARGV[4] then
  return redis.call('HGETALL', JOB)
end
if nonce then
  return redis.error_reply('CONFLICT job ' .. ID .. ': it exists already')
end
if ARGV[9] ~= '' then
  local old = redis.call('HMGET', KEYS[19], 'state', 'requeued_as')
  if old[2] then
    return { old[2], ARGV[7] }
  end
  if old[1] ~= 'failed' then
    return redis.error_reply('CONFLICT job ' .. ARGV[9] .. ': expected a failed one, got ' .. (old[1] or 'none'))
  end
end
if ARGV[7] ~= '' then
  local known = redis.call('HMGET', KEYS[18], 'job', 'fingerprint')
  if known[1] and known[1] ~= ARGV[8] then
    return known
  end
end
local queueing = math.max(#CHILDREN, 1)
local unfinished = redis.call('ZCARD', DELAYED)
for _, queue in pairs(QUEUES) do
  unfinished = unfinished + redis.call('XLEN', queue)
end
if unfinished + queueing > tonumber(ARGV[5]) then
  return redis.error_reply('FULL jobs: expected at most ' .. ARGV[5] .. ' unfinished ones with this tag, got ' ..
    queueing .. ' beside ' .. unfinished)
end
-- Ended jobs of sweeps that have not ended are not forgotten, so they count as unfinished.
unfinished = redis.call('ZCARD', BY_STATE.queued) + redis.call('ZCARD', BY_STATE.running) +
  redis.call('ZCOUNT', ENDED, '+inf', '+inf')
if unfinished + 1 + #CHILDREN > tonumber(ARGV[10]) then
  return redis.error_reply('FULL jobs: expected at most ' .. ARGV[10] .. ' unfinished ones of all tags, got ' ..
    (1 + #CHILDREN) .. ' beside ' .. unfinished)
end
forget_expired()
store()
if #CHILDREN == 0 then
  enqueue()
else
  local sweep = { ID, JOB, EVENTS }
  for _, child in ipairs(CHILDREN) do
    ID, JOB, EVENTS = unpack(child)
    store()
    turn_to(unpack(child))
    enqueue()
  end
  turn_to(unpack(sweep))
end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[18], 'job', ID, 'fingerprint', ARGV[7])
  redis.call('PEXPIRE', KEYS[18], KEEP_MS)
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[19], 'requeued_as', ID)
  redis.call('HDEL', KEYS[19], 'dead')
  redis.call('ZREM', DEAD, ARGV[9])
end
return redis.call('HGETALL', JOB)
