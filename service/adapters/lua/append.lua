-- Append to the job's events; returns the event's id.
-- ARGV 4 attempt   5 token   6 kind   7 data as JSON

return refuse(ARGV[4], ARGV[5]) or record(ARGV[6], ARGV[7])
