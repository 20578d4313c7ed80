-- What limits count, shared by several processes. One call of this script is one atomic step; see shared_counts.py.
--
-- An account is a hash:  run       the server's run when it was filled: after a restart it may be an old copy, and counts no more
--                        end       when its window ends (Unix seconds of this server's clock, which is the one that counts)
--                        used      settled
--                        reserved  the sum of
--                        :<call>   what a call has reserved, '@', and when
-- The round is a hash:   n, position   how often, and up to which change, processes were asked to bring their records to the database
--                        <process>     the last n that this one has followed
-- Lua's own way to print would round large amounts.

local run, verb = ARGV[1], ARGV[2]
local now = tonumber(redis.call('TIME')[1])
local MISSING, CLOCK = -1, -2
local KEPT, ROUND_KEPT = 86400, 30 * 86400

-- What is used and reserved in the window that runs. Or nil, and why: MISSING (to be filled), or CLOCK (whoever asks lives in another time).
-- The windows before, now and next, as whoever asks knows them, begin at `before`, `start`, `stop`; `later` ends them.
local function standing(key, before, start, stop, later)
  local found = redis.call('HMGET', key, 'run', 'end', 'used', 'reserved')
  if found[1] ~= run then return nil, MISSING end
  if now < tonumber(found[2]) then return tonumber(found[3]), tonumber(found[4]) end
  local ends
  for _, bound in ipairs({before, start, stop, later}) do
    if now < bound then ends = bound break end
  end
  if not ends or ends == before then return nil, CLOCK end
  redis.call('DEL', key)
  redis.call('HSET', key, 'run', run, 'end', ends, 'used', '0', 'reserved', '0')
  redis.call('EXPIREAT', key, ends + KEPT)
  return 0, 0
end

-- All that a call needs, or nothing. 0: it has it; i: the i-th limit is reached; MISSING, CLOCK: see above.
-- `parts`: for each limit its key, what is needed, the most (-1: it only shows), and its four bounds.
local function take(call, parts)
  for i = 1, #parts, 7 do
    local used, reserved = standing(KEYS[parts[i]], parts[i + 3], parts[i + 4], parts[i + 5], parts[i + 6])
    if not used then return reserved end
    local most = parts[i + 2]
    if most >= 0 and used + reserved + parts[i + 1] > most then return (i + 6) / 7 end
  end
  for i = 1, #parts, 7 do
    local key, need = KEYS[parts[i]], string.format('%.0f', parts[i + 1])
    if need ~= '0' then redis.call('HINCRBY', key, 'reserved', need) end
    redis.call('HSET', key, ':' .. call, need .. '@' .. now)
  end
  return 0
end

-- What a call did use takes the place of what it reserved; once, and where that is still known. `parts`: keys, and amounts.
local function settle(call, parts)
  for i = 1, #parts, 2 do
    local key, charged = KEYS[parts[i]], string.format('%.0f', parts[i + 1])
    local found = redis.call('HMGET', key, 'run', ':' .. call)
    if found[1] == run and found[2] then
      local held = string.match(found[2], '^%d+')
      redis.call('HDEL', key, ':' .. call)
      if held ~= '0' then redis.call('HINCRBY', key, 'reserved', '-' .. held) end
      if charged ~= '0' then redis.call('HINCRBY', key, 'used', charged) end
    end
  end
end

local verbs = {}

-- What calls wish, as JSON: accounts to drop, what to settle, what to take. KEYS: the round, accounts.
-- → now, the round that this process owes (or 0), its position, a code for each call that takes.
function verbs.calls()
  local round = redis.call('HMGET', KEYS[1], 'n', 'position', ARGV[3])
  local n = tonumber(round[1] or '0')
  local answer = {now, n > tonumber(round[3] or '0') and n or 0, tonumber(round[2] or '0')}
  local wishes = cjson.decode(ARGV[4])
  for _, key in ipairs(wishes[1]) do redis.call('DEL', KEYS[key]) end -- the next who needs it fills it anew
  for _, wish in ipairs(wishes[2]) do settle(wish[1], wish[2]) end
  for _, wish in ipairs(wishes[3]) do answer[#answer + 1] = take(wish[1], wish[2]) end
  return answer
end

-- Ask all processes to bring their records to the database, those before the change `position` at least. → n, now.
function verbs.ask()
  local n = redis.call('HINCRBY', KEYS[1], 'n', 1)
  if tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[1], 'position') or '0') then
    redis.call('HSET', KEYS[1], 'position', ARGV[3])
  end
  redis.call('EXPIRE', KEYS[1], ROUND_KEPT)
  return {n, now}
end

-- This process has followed the round n.
function verbs.follow()
  if tonumber(ARGV[4]) > tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or '0') then
    redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
  end
  return 1
end

-- How far each of these processes has followed; others than these are forgotten.
function verbs.followed()
  local answer, running = {}, {n = true, position = true}
  for i = 3, #ARGV do
    running[ARGV[i]] = true
    answer[i - 2] = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if not running[field] then redis.call('HDEL', KEYS[1], field) end
  end
  return answer
end

-- Fill an account from records: `end`, `used`, then calls without an outcome and their amounts. 1; 0: it is filled; -1: the window is over.
function verbs.fill()
  local key, ends = KEYS[1], ARGV[3]
  local found = redis.call('HMGET', key, 'run', 'end')
  if found[1] == run and now < tonumber(found[2]) then return 0 end
  if now >= tonumber(ends) then return -1 end
  redis.call('DEL', key)
  redis.call('HSET', key, 'run', run, 'end', ends, 'used', ARGV[4], 'reserved', '0')
  for i = 5, #ARGV, 2 do
    redis.call('HSET', key, ':' .. ARGV[i], ARGV[i + 1] .. '@0')
    if ARGV[i + 1] ~= '0' then redis.call('HINCRBY', key, 'reserved', ARGV[i + 1]) end
  end
  redis.call('EXPIREAT', key, tonumber(ends) + KEPT)
  return 1
end

-- How accounts stand: now, then used and reserved of each as text; two empty ones where it is not filled.
function verbs.look()
  local answer = {now}
  for _, key in ipairs(KEYS) do
    local found = redis.call('HMGET', key, 'run', 'end', 'used', 'reserved')
    local used, reserved = '', ''
    if found[1] == run then
      used, reserved = '0', '0'
      if now < tonumber(found[2]) then used, reserved = found[3], found[4] end
    end
    answer[#answer + 1] = used
    answer[#answer + 1] = reserved
  end
  return answer
end

-- Whether nobody else looks for lost outcomes for the next `seconds`.
function verbs.lease()
  return redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[3]) and 1 or 0
end

-- The calls of each account that reserved before `age` seconds and have not settled, at most `most` of each.
function verbs.waiting()
  local answer, oldest, most = {}, now - tonumber(ARGV[3]), tonumber(ARGV[4])
  for i, key in ipairs(KEYS) do
    local calls = {}
    if redis.call('HLEN', key) > 4 and redis.call('HGET', key, 'run') == run then
      local fields = redis.call('HGETALL', key)
      for f = 1, #fields, 2 do
        local call = string.match(fields[f], '^:(.+)$')
        local since = call and string.match(fields[f + 1], '@(%d+)$')
        if since and tonumber(since) <= oldest and #calls < most then calls[#calls + 1] = call end
      end
    end
    answer[i] = calls
  end
  return answer
end

return verbs[verb]()
