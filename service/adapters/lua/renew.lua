-- Extend a lease: both the time in the hash and the entry's idle time, which recovery looks at.
-- ARGV 4 attempt   5 token   6 lease in milliseconds

local refused = refuse(ARGV[4], ARGV[5])
if refused then
  return refused
end
redis.call('HSET', JOB, 'lease_until', digits(NOW_MS + tonumber(ARGV[6])))
redis.call('XCLAIM', QUEUE, GROUP, CONSUMER, 0, get('entry'), 'JUSTID')
return redis.call('HGETALL', JOB)
