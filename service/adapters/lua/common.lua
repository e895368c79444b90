-- Put in front of every other job script: the keys, the server's clock, and the moves that several scripts make.
--
-- KEYS   1 job hash   2 its events   3 queue of its tag and priority   4 all jobs   5-9 jobs by state
--        10 ended jobs   11 dead jobs   12 delayed jobs of its tag   13 its sweep's hash   14 its sweep's events (its own
--        two where it belongs to none)   15-17 the queues of its tag, the most urgent first
--        last: hash and events of each of its children
-- ARGV   1 job id     2 milliseconds a finished job is kept            3 events kept per job
-- Only the server's clock counts, so workers' clocks may differ.

local GROUP = 'workers'
local CONSUMER = 'axon'

local JOB, EVENTS, QUEUE, ALL, ENDED, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[10], KEYS[11]
local DELAYED = KEYS[12]
local PARENT, PARENT_EVENTS = KEYS[13], KEYS[14]
local QUEUES = { high = KEYS[15], normal = KEYS[16], low = KEYS[17] }
local BY_STATE = { queued = KEYS[5], running = KEYS[6], succeeded = KEYS[7], failed = KEYS[8], cancelled = KEYS[9] }
local ID, KEEP_MS, MAX_EVENTS = ARGV[1], ARGV[2], ARGV[3]

local time = redis.call('TIME')
local NOW_MS = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local NOW_S = string.format('%.3f', NOW_MS / 1000)

local function digits(number)
  return string.format('%.0f', number)
end

local function get(field)
  return redis.call('HGET', JOB, field)
end

local function final(state)
  return state == 'succeeded' or state == 'failed' or state == 'cancelled'
end

local function record(kind, data)
  return redis.call('XADD', EVENTS, 'MAXLEN', '~', MAX_EVENTS, '*', 'kind', kind, 'data', data)
end

local function move(state)
  redis.call('ZREM', BY_STATE[get('state')], ID)
  redis.call('ZADD', BY_STATE[state], get('created_at'), ID)
  redis.call('HSET', JOB, 'state', state)
end

-- Take an entry out of the queue; an empty stream goes as well, so that tags nobody uses leave nothing behind.
local function acknowledge(entry)
  if not entry then
    return
  end
  redis.call('XACK', QUEUE, GROUP, entry)
  redis.call('XDEL', QUEUE, entry)
  if redis.call('XLEN', QUEUE) == 0 then
    redis.call('DEL', QUEUE)
  end
end

local function enqueue()
  if redis.call('EXISTS', QUEUE) == 0 then
    redis.call('XGROUP', 'CREATE', QUEUE, GROUP, '0', 'MKSTREAM')
  end
  local entry = { 'job', ID }
  if get('children') then
    entry = { 'job', ID, 'children', get('children') }  -- whoever takes it must name their keys
  end
  redis.call('HSET', JOB, 'entry', redis.call('XADD', QUEUE, '*', unpack(entry)))
end

-- Make another job of the same sweep the one that everything here works on.
local function turn_to(id, job, events)
  ID, JOB, EVENTS = id, job, events
  QUEUE = QUEUES[redis.call('HGET', job, 'priority')]
end

-- The jobs of a sweep: {id, hash, events} of each.
local function children_of(id, count)
  local found, before = {}, #KEYS - 2 * count
  for number = 1, count do
    found[number] = { id .. '.' .. (number - 1), KEYS[before + 2 * number - 1], KEYS[before + 2 * number] }
  end
  return found
end

local function children()
  return children_of(ID, tonumber(get('children') or '0'))
end

-- A delayed job is named with its priority, so that whoever finds it due knows all its keys.
local function delayed_name()
  return get('priority') .. ':' .. ID
end

local function delay(milliseconds)
  local due = digits(NOW_MS + milliseconds)
  redis.call('ZADD', DELAYED, due, delayed_name())
  redis.call('HSET', JOB, 'not_before', string.format('%.3f', tonumber(due) / 1000))
end

-- Count how long the attempt has run, when it ends.
local function stop_clock(end_ms)
  local began = get('attempt_at')
  if began then
    redis.call('HINCRBY', JOB, 'ran_ms', digits(math.max(end_ms - tonumber(began), 0)))
    redis.call('HDEL', JOB, 'attempt_at')
  end
end

-- Start the clock of forgetting. A sweep's jobs are kept as long as the sweep: without an end until it has ended.
local function keep()
  if get('parent') then
    redis.call('ZADD', ENDED, '+inf', ID)
    return
  end
  local keep_ms = digits(math.min(tonumber(get('ttl_ms') or KEEP_MS), tonumber(KEEP_MS)))
  local kept = children()
  kept[#kept + 1] = { ID, JOB, EVENTS }
  for _, each in ipairs(kept) do
    redis.call('PEXPIRE', each[2], keep_ms)
    redis.call('PEXPIRE', each[3], keep_ms)
    redis.call('ZADD', ENDED, digits(NOW_MS + tonumber(keep_ms)), each[1])
  end
end

-- Tell the sweep that one of its jobs has ended; behind the last one it can be claimed.
local function tell_parent(told)
  local child = { ID, JOB, EVENTS }
  turn_to(get('parent'), PARENT, PARENT_EVENTS)
  record('child', '{"child":"' .. child[1] .. '",' .. told .. '}')
  if redis.call('HINCRBY', JOB, 'open', -1) == 0 then
    enqueue()
    record('state', '{"state":"queued","reason":"its last child has ended"}')
  end
  turn_to(unpack(child))
end

-- The one way into a final state: it acknowledges, tells, and starts the clock of forgetting.
local function finish(state, result, reason)
  stop_clock(NOW_MS)
  acknowledge(get('entry'))
  redis.call('ZREM', DELAYED, delayed_name())
  move(state)
  redis.call('HSET', JOB, 'finished_at', NOW_S, 'ended_by', get('token') or '')
  redis.call('HDEL', JOB, 'token', 'lease_until', 'entry', 'not_before')
  local told = '"state":"' .. state .. '"'
  if result and result ~= '' then
    redis.call('HSET', JOB, 'result', result)
    told = told .. ',"result":' .. result
  end
  if reason and reason ~= '' then
    redis.call('HSET', JOB, 'error', reason)
    told = told .. ',"error":' .. cjson.encode(reason)
  end
  record('state', '{' .. told .. '}')
  keep()
  if get('parent') then
    tell_parent(told)
  end
end

-- Failed because its attempts are used up, not by its own fault: kept on a list of its own for the operator.
local function bury(reason)
  finish('failed', '', reason)
  redis.call('HSET', JOB, 'dead', '1')
  redis.call('ZADD', DEAD, get('created_at'), ID)
end

local function used_up()
  return tonumber(get('attempt')) - tonumber(get('released')) >= tonumber(get('max_attempts'))
end

-- nil when the writer owns the job, else the error to return.
local function refuse(attempt, token)
  local found = redis.call('HMGET', JOB, 'state', 'attempt', 'token')
  if not found[1] then
    return redis.error_reply('NOJOB there is no job \'' .. ID .. '\'')
  end
  if found[1] ~= 'running' or found[2] ~= attempt or found[3] ~= token then
    return redis.error_reply('STALE job ' .. ID .. ': attempt ' .. attempt .. ' no longer holds the lease')
  end
  return nil
end
