-- Cancel a queued job (it leaves its queue at once), or mark a running one for its supervisor.

local state = get('state')
if not state then
  return redis.error_reply('NOJOB there is no job \'' .. ID .. '\'')
end
if final(state) then
  return redis.error_reply(
    'CONFLICT job ' .. ID .. ': expected a move from ' .. state .. ' to nothing, the state is final; got cancelled')
end
if state == 'queued' then
  finish('cancelled', '', '')
elseif get('reserved_version') then
  return redis.error_reply(
    'CONFLICT job ' .. ID .. ': it publishes version ' .. get('reserved_version') .. ' already and cannot be cancelled')
elseif redis.call('HSETNX', JOB, 'cancel_requested', '1') == 1 then
  record('state', '{"state":"running","cancel_requested":true}')
end
return redis.call('HGETALL', JOB)
