-- Take the next entry of one queue: the first whose lease may have run out, else the first new one.
-- Alone: without common.lua.   KEYS 1 queue   ARGV 1 lease in milliseconds
-- Returns {last id of the stream, entry, job id}; the last two are false when there is nothing to do.
--
-- Taking is not yet owning: start.lua decides that. An entry taken by a worker that dies in between is idle, and
-- becomes takeable again, without an attempt being counted.

local GROUP = 'workers'
local CONSUMER = 'axon'  -- one for all: who owns a job is in its hash, and consumers of dead workers would pile up
local QUEUE = KEYS[1]

local function last_id()
  local info = redis.call('XINFO', 'STREAM', QUEUE)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

if redis.call('EXISTS', QUEUE) == 0 then
  return { '0-0', false, false }
end
local last = last_id()
local idle = redis.call('XPENDING', QUEUE, GROUP, 'IDLE', ARGV[1], '-', '+', 1)
if idle[1] then
  local claimed = redis.call('XAUTOCLAIM', QUEUE, GROUP, CONSUMER, ARGV[1], idle[1][1], 'COUNT', 1)[2][1]
  if claimed then
    return { last, claimed[1], claimed[2][2] }
  end
end
local read = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', 1, 'STREAMS', QUEUE, '>')
if read then
  local entry = read[1][2][1]
  return { last, entry[1], entry[2][2] }
end
return { last, false, false }
