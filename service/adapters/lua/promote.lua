-- Put a delayed job that is due into its queue, once, whoever finds it.

if redis.call('ZREM', DELAYED, delayed_name()) == 1 and get('state') == 'queued' then
  redis.call('HDEL', JOB, 'not_before')
  enqueue()
end
return redis.status_reply('OK')
