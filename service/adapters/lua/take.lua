-- Take the next entry for a worker: a lost lease first, else the oldest new one of the level whose turn it is.
-- Alone: without common.lua.
--
-- KEYS   the queues of the first tag from the highest level to the lowest, those of the next tag, ...;
--        then the delayed jobs of each tag; last the turns
-- ARGV   1 lease in milliseconds   2 how many tags   3 these tags as one text   4 how many levels   5... level of each turn
-- Returns {number of the queue, entry, job id, {last id of each queue}, {due: number of the tag, name, ...},
-- milliseconds until the next delayed job or -1, how many children the job has}. The first is 0 when nothing was taken: because there is nothing, or
-- because delayed jobs are due, which must be promoted first.
--
-- Taking is not yet owning: start.lua decides that. An entry taken by a worker that dies in between is idle, and
-- becomes takeable again, without an attempt being counted.

local GROUP = 'workers'
local CONSUMER = 'axon'  -- one for all: who owns a job is in its hash, and consumers of dead workers would pile up
local LEASE_MS, TAGS, WHO, LEVELS = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local QUEUES = TAGS * LEVELS
local TURNS = KEYS[#KEYS]
local MAX_DUE = 20
local TURNS_KEPT_MS = 86400000

local function field(info, name)
  for i = 1, #info, 2 do
    if info[i] == name then
      return info[i + 1]
    end
  end
end

-- The first entry that nobody was given, as {milliseconds, count}.
local function waiting(queue)
  if redis.call('EXISTS', queue) == 0 then
    return nil
  end
  local delivered = field(redis.call('XINFO', 'GROUPS', queue)[1], 'last-delivered-id')
  local found = redis.call('XRANGE', queue, '(' .. delivered, '+', 'COUNT', 1)[1]
  if not found then
    return nil
  end
  local milliseconds, count = string.match(found[1], '(%d+)-(%d+)')
  return { tonumber(milliseconds), tonumber(count) }
end

local function oldest(level)
  local best, at
  for tag = 1, TAGS do
    local queue = (tag - 1) * LEVELS + level
    local found = waiting(KEYS[queue])
    if found and (not best or found[1] < at[1] or (found[1] == at[1] and found[2] < at[2])) then
      best, at = queue, found
    end
  end
  return best
end

local lasts = {}
for queue = 1, QUEUES do
  lasts[queue] = '0-0'
  if redis.call('EXISTS', KEYS[queue]) == 1 then
    lasts[queue] = field(redis.call('XINFO', 'STREAM', KEYS[queue]), 'last-generated-id')
  end
end

for queue = 1, QUEUES do
  if lasts[queue] ~= '0-0' then
    local idle = redis.call('XPENDING', KEYS[queue], GROUP, 'IDLE', LEASE_MS, '-', '+', 1)
    if idle[1] then
      local claimed = redis.call('XAUTOCLAIM', KEYS[queue], GROUP, CONSUMER, LEASE_MS, idle[1][1], 'COUNT', 1)[2][1]
      if claimed then
        return { queue, claimed[1], claimed[2][2], lasts, {}, -1, tonumber(claimed[2][4] or '0') }
      end
    end
  end
end

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due, next_ms = {}, -1
for tag = 1, TAGS do
  local first = redis.call('ZRANGE', KEYS[QUEUES + tag], 0, MAX_DUE - 1, 'WITHSCORES')
  for i = 1, #first, 2 do
    local left = tonumber(first[i + 1]) - now_ms
    if left <= 0 then
      due[#due + 1] = tag
      due[#due + 1] = first[i]
    elseif next_ms < 0 or left < next_ms then
      next_ms = left
    end
  end
end
if #due > 0 then
  return { 0, false, false, lasts, due, next_ms, 0 }
end

local turn = tonumber(redis.call('HGET', TURNS, WHO) or '0')
local turns = #ARGV - 4
local queue = oldest(tonumber(ARGV[5 + turn % turns]))
for level = 1, LEVELS do
  queue = queue or oldest(level)
end
if not queue then
  return { 0, false, false, lasts, due, next_ms, 0 }
end
redis.call('HSET', TURNS, WHO, (turn + 1) % turns)
redis.call('PEXPIRE', TURNS, TURNS_KEPT_MS)
local entry = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', 1, 'STREAMS', KEYS[queue], '>')[1][2][1]
return { queue, entry[1], entry[2][2], lasts, due, next_ms, tonumber(entry[2][4] or '0') }
