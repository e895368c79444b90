-- Cancel a queued job (it leaves its queue at once), or mark a running one for its supervisor.
-- A sweep whose jobs have not all ended is marked, and they are cancelled each like any other; it ends at once where no
-- job of it runs any more, else when it is claimed behind the last one.

local state = get('state')
if not state then
  return redis.error_reply('NOJOB there is no job \'' .. ID .. '\'')
end
if final(state) then
  return redis.error_reply(
    'CONFLICT job ' .. ID .. ': expected a move from ' .. state .. ' to nothing, the state is final; got cancelled')
end

local function mark()
  if redis.call('HSETNX', JOB, 'cancel_requested', '1') == 1 then
    record('state', '{"state":"' .. get('state') .. '","cancel_requested":true}')
  end
end

if state == 'queued' then
  if tonumber(get('open') or '0') > 0 then
    mark()
    local sweep = { ID, JOB, EVENTS }
    for _, child in ipairs(children()) do
      turn_to(unpack(child))
      if get('state') == 'queued' then
        finish('cancelled', '', '')
      elseif get('state') == 'running' and not get('reserved_version') then
        mark()
      end
    end
    turn_to(unpack(sweep))
  end
  if tonumber(get('open') or '0') == 0 then
    finish('cancelled', '', '')
  end
elseif get('reserved_version') then
  return redis.error_reply(
    'CONFLICT job ' .. ID .. ': it publishes version ' .. get('reserved_version') .. ' already and cannot be cancelled')
else
  mark()
end
return redis.call('HGETALL', JOB)
