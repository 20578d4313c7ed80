-- What limits count, shared by several processes. One call of this script is one atomic step; see shared_counts.py.
--
-- An account is a hash:  run       the server's run when it was filled: after a restart it may be an old copy, and counts no more
--                        end       when its window ends (Unix seconds of this server's clock, which is the one that counts)
--                        used      settled
--                        reserved  the sum of
--                        :<call>   what a call has reserved, '@', and when
--                        mark      told apart from what was filled, or began, at other times
--                        credit    the sum of what processes have drawn ahead and have neither used nor given back: taken, too
--                        idle      the part of it that, as they last said, no call has reserved
--                        open      how many of them may have such a part
--                        recalled  since when (ms) it is wanted back
--                        =<owner>  a process: what it drew, used, gave back, all since the account began; its part of idle; of open
-- The round is a hash:   n, position   its number, and up to which change processes were asked to bring their records to the database
--                        <process>     the last n that this one has followed
--                        @<account>    what n was when it was filled
-- Lua's own way to print would round large amounts.

local run, verb = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now, now_ms = tonumber(time[1]), tonumber(time[1]) * 1000 + math.ceil(tonumber(time[2]) / 1000)
local MISSING, CLOCK, RECALLED = -1, -2, -2 -- and RECALLED - i: the i-th limit's
local KEPT, ROUND_KEPT = 86400, 30 * 86400
local FIXED = 8 -- fields of an account beside calls, owners, and recalled
local SHARE = 8 -- what a process draws ahead is this part of what remains, at most
local HEARD_MS, RECALLED_MS = 1500, 3000 -- until then whoever is there has given back; until then nobody draws again

local function whole(number) return string.format('%.0f', number) end

-- A number as it stands in an account: one that more can be added to. Anything else is an error.
local function number(text)
  local found = string.match(text, '^%-?%d+$') and tonumber(text)
  assert(found and math.abs(found) < 2 ^ 62)
  return found
end

-- Of `understood(key, pcall(work, key, ...))` what `work` returned. Who writes nonsense into an account gains nothing, and stops no other:
-- that one is dropped, and filled anew.
local function understood(key, is_understood, ...)
  if is_understood then return ... end
  redis.call('DEL', key)
end

-- What an owner has said: what it drew, used, gave back; its part of idle; of open.
local function said_by(owner)
  local said = {}
  for text in string.gmatch(owner, '%S+') do said[#said + 1] = number(text) end
  assert(#said == 5)
  return said
end

-- Begin an account anew: `calls` and their amounts are under way.
local function begin(key, ends, mark, used, calls)
  redis.call('DEL', key)
  redis.call('HSET', key, 'run', run, 'end', ends, 'mark', mark, 'used', used, 'reserved', '0', 'credit', '0', 'idle', '0', 'open', '0')
  for i = 1, #calls, 2 do
    redis.call('HSET', key, ':' .. calls[i], calls[i + 1] .. '@0')
    if calls[i + 1] ~= '0' then redis.call('HINCRBY', key, 'reserved', calls[i + 1]) end
  end
  redis.call('EXPIREAT', key, tonumber(ends) + KEPT)
end

-- How an account stands in the window that runs. Or nil, and why: MISSING (to be filled), or CLOCK (whoever asks lives in another time).
-- The windows before, now and next, as whoever asks knows them, begin at `before`, `start`, `stop`; `later` ends them.
local function standing(key, before, start, stop, later)
  local found = redis.call('HMGET', key, 'run', 'end', 'used', 'reserved', 'credit', 'open', 'recalled')
  if found[1] ~= run then return nil, MISSING end
  local account = {firm = number(found[3]) + number(found[4]), credit = number(found[5]), open = number(found[6])}
  account.recalled = found[7] and number(found[7])
  if now < number(found[2]) then return account end
  local ends
  for _, bound in ipairs({before, start, stop, later}) do
    if now < bound then ends = bound break end
  end
  if not ends or ends == before then return nil, CLOCK end
  begin(key, ends, whole(now_ms), '0', {})
  return {firm = 0, credit = 0, open = 0}
end

-- All that a call needs, or nothing. 0: it has it; i: the i-th limit is reached; RECALLED - i: it is, unless processes give back
-- what they drew ahead, which they are asked for; MISSING, CLOCK: see above.
-- `parts`: for each limit its key, what is needed, the most (-1: it only shows), and its four bounds.
local function take(call, parts)
  local short = 0
  for i = 1, #parts, 7 do
    local key = KEYS[parts[i]]
    local account, why = understood(key, pcall(standing, key, parts[i + 3], parts[i + 4], parts[i + 5], parts[i + 6]))
    if not account then return why or MISSING end
    local need, most = parts[i + 1], parts[i + 2]
    if most >= 0 and account.firm + account.credit + need > most then
      local is_heard = account.recalled and now_ms - account.recalled > HEARD_MS
      if account.firm + need > most or account.open == 0 or is_heard then return (i + 6) / 7 end
      if not account.recalled then redis.call('HSET', key, 'recalled', whole(now_ms)) end
      if short == 0 then short = (i + 6) / 7 end
    end
  end
  if short > 0 then return RECALLED - short end
  for i = 1, #parts, 7 do
    local key, need = KEYS[parts[i]], whole(parts[i + 1])
    if need ~= '0' then redis.call('HINCRBY', key, 'reserved', need) end
    redis.call('HSET', key, ':' .. call, need .. '@' .. now)
  end
  return 0
end

-- What a process says of its credit: key, mark; what it drew as far as it knows, used, gave back; what it must have drawn, and would
-- like to have; what of it is idle, and whether that may grow (2: yes, 1: from now on, unless it is recalled); the most (-1: it only
-- shows). All are sums since the account began: said twice, or late, they change nothing.
-- → the account's mark (empty: it is missing, or its window is over), what the process drew, ms until the window ends, 1: give back.
local function report(key, owner, mark, known, used, back, least, wish, idle, open, most)
  local found = redis.call('HMGET', key, 'run', 'end', 'mark', 'used', 'reserved', 'credit', 'open', 'recalled', '=' .. owner, 'idle')
  if found[1] ~= run or now_ms >= number(found[2]) * 1000 then return '', 0, 0, 0 end
  local left, there = number(found[2]) * 1000 - now_ms, found[3] .. ':' .. found[2]
  if mark ~= there then return there, 0, left, 0 end
  local said = said_by(found[9] or '0 0 0 0 0')
  used, back = math.max(used, said[2]), math.max(back, said[3])
  local drawn, others = math.max(said[1], least), number(found[7]) - said[5]
  local credit = number(found[6]) + drawn - said[1] - (used - said[2]) - (back - said[3])
  local room = most - number(found[4]) - (used - said[2]) - number(found[5]) - credit
  local recalled = found[8] and number(found[8])
  if most < 0 then
    if wish > drawn then credit, drawn = credit + wish - drawn, wish end
    recalled = false
  else
    if not recalled and room < 0 then
      recalled = now_ms
      redis.call('HSET', key, 'recalled', whole(now_ms))
    elseif recalled and room * 4 >= most and now_ms - recalled > RECALLED_MS then
      recalled = false
      redis.call('HDEL', key, 'recalled')
    end
    local more = math.min(wish - drawn, math.floor((room + idle) / (SHARE * (others + 1))) - idle)
    if not recalled and more > 0 and more * 4 >= wish - drawn then credit, drawn = credit + more, drawn + more end
  end
  idle = idle + math.max(0, drawn - known)
  local is_open = drawn ~= used + back and (open == 2 or open == 1 and not recalled or drawn > known)
  open = is_open and 1 or 0
  redis.call('HSET', key, -- in one: whatever stands there, nothing is half done
    'used', whole(number(found[4]) + used - said[2]), 'credit', whole(credit), 'idle', whole(number(found[10]) + idle - said[4]),
    'open', whole(others + open), '=' .. owner, string.format('%.0f %.0f %.0f %.0f %d', drawn, used, back, idle, open))
  return there, drawn, left, recalled and 1 or 0
end

-- What a call did use takes the place of what it reserved; once, and where that is still known.
local function settle(key, call, charged)
  local found = redis.call('HMGET', key, 'run', ':' .. call)
  if found[1] == run and found[2] then
    local held = whole(number(string.match(found[2], '^(%d+)@')))
    redis.call('HDEL', key, ':' .. call)
    if held ~= '0' then redis.call('HINCRBY', key, 'reserved', '-' .. held) end
    if charged ~= '0' then redis.call('HINCRBY', key, 'used', charged) end
  end
end

-- Whether an account is filled, and of the window that runs.
local function is_running(key)
  local found = redis.call('HMGET', key, 'run', 'end')
  return found[1] == run and now < number(found[2])
end

-- How an account stands: used and reserved as text; empty ones where it is not filled.
local function look(key)
  local found = redis.call('HMGET', key, 'run', 'end', 'used', 'reserved', 'credit', 'idle')
  if found[1] ~= run then return '', '' end
  local used, reserved = number(found[3]), number(found[4]) + number(found[5]) - number(found[6])
  if now >= number(found[2]) then return '0', '0' end
  return whole(used), whole(math.max(0, reserved))
end

-- An account's calls that reserved at `oldest` or before and have not settled, at most `most`; and the processes that have drawn ahead
-- what they have neither used nor given back.
local function waiting(key, oldest, most)
  local calls, owners = {}, {}
  if redis.call('HLEN', key) <= FIXED or redis.call('HGET', key, 'run') ~= run then return calls, owners end
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local kind, name = string.match(fields[f], '^([:=])(.*)$')
    if kind then assert(string.match(name, '^[%w_:-]+$')) end
    if kind == ':' then
      local since = number(string.match(fields[f + 1], '^%d+@(%d+)$'))
      if since <= oldest and #calls < most then calls[#calls + 1] = name end
    elseif kind == '=' then
      local said = said_by(fields[f + 1])
      if said[1] ~= said[2] + said[3] then owners[#owners + 1] = name end
    end
  end
  return calls, owners
end

local verbs = {}

-- What calls wish, as JSON: accounts to drop, what to settle, what to say of credit, what to take. KEYS: the round, accounts.
-- → now, the round that this process owes (or 0), its position, four values for each report, a code for each call that takes.
function verbs.calls()
  local round = redis.call('HMGET', KEYS[1], 'n', 'position', ARGV[3])
  local n = tonumber(round[1] or '0')
  local answer = {now, n > tonumber(round[3] or '0') and n or 0, tonumber(round[2] or '0')}
  local wishes = cjson.decode(ARGV[4])
  for _, key in ipairs(wishes[1]) do redis.call('DEL', KEYS[key]) end -- the next who needs it fills it anew
  for _, wish in ipairs(wishes[2]) do
    local parts = wish[2] -- keys, and amounts
    for i = 1, #parts, 2 do
      local key = KEYS[parts[i]]
      understood(key, pcall(settle, key, wish[1], whole(parts[i + 1])))
    end
  end
  for _, wish in ipairs(wishes[3]) do
    local key = KEYS[table.remove(wish, 1)]
    local there, drawn, left, back = understood(key, pcall(report, key, ARGV[5], unpack(wish)))
    for _, value in ipairs({there or '', drawn or 0, left or 0, back or 0}) do answer[#answer + 1] = value end
  end
  for _, wish in ipairs(wishes[4]) do answer[#answer + 1] = take(wish[1], wish[2]) end
  return answer
end

-- Ask all processes to bring their records to the database, those before the change `position` at least. KEYS: the round, accounts.
-- → n, now, and for each account 1: it is missing; 0: it is there.
-- Numbers go on where a server has lost its memory: who followed a round of before has not followed one of after.
function verbs.ask()
  local n = math.max(tonumber(redis.call('HGET', KEYS[1], 'n') or '0') + 1, now_ms)
  redis.call('HSET', KEYS[1], 'n', whole(n))
  if tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[1], 'position') or '0') then
    redis.call('HSET', KEYS[1], 'position', ARGV[3])
  end
  redis.call('EXPIRE', KEYS[1], ROUND_KEPT)
  local answer = {n, now}
  for i = 2, #KEYS do answer[i + 1] = understood(KEYS[i], pcall(redis.call, 'HGET', KEYS[i], 'run')) == run and 0 or 1 end
  return answer
end

-- This process has followed the round n.
function verbs.follow()
  if tonumber(ARGV[4]) > tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or '0') then
    redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
  end
  return 1
end

-- The newest round's n, and how far each of these processes has followed; others than these are forgotten.
function verbs.followed()
  local answer, running = {tonumber(redis.call('HGET', KEYS[1], 'n') or '0')}, {n = true, position = true}
  for i = 3, #ARGV do
    running[ARGV[i]] = true
    answer[i - 1] = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if not running[field] and string.sub(field, 1, 1) ~= '@' then redis.call('HDEL', KEYS[1], field) end
  end
  return answer
end

-- Fill an account that was missing when the round n began, from records that all have brought since: `end`, `mark`, `used`, this process,
-- n, then calls without an outcome and their amounts. KEYS: the account, the round. 1; 0: it is filled, or was since, or the round is
-- forgotten: then somebody may have let pass what these records lack; -1: the window is over.
function verbs.fill()
  local key, ends, n = KEYS[1], ARGV[3], tonumber(ARGV[7])
  if understood(key, pcall(is_running, key)) then return 0 end
  local round = redis.call('HMGET', KEYS[2], 'n', ARGV[6], '@' .. key)
  if tonumber(round[2] or '0') < n or tonumber(round[3] or '0') >= n then return 0 end
  if now >= tonumber(ends) then return -1 end
  local calls = {}
  for i = 8, #ARGV do calls[#calls + 1] = ARGV[i] end
  begin(key, ends, ARGV[4], ARGV[5], calls)
  redis.call('HSET', KEYS[2], '@' .. key, round[1])
  return 1
end

-- How accounts stand: now, then used and reserved of each as text; two empty ones where it is not filled.
function verbs.look()
  local answer = {now}
  for _, key in ipairs(KEYS) do
    local used, reserved = understood(key, pcall(look, key))
    answer[#answer + 1] = used or ''
    answer[#answer + 1] = reserved or ''
  end
  return answer
end

-- Whether nobody else looks for lost outcomes for the next `seconds`.
function verbs.lease()
  return redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[3]) and 1 or 0
end

-- Of each account what `waiting` says of it; of calls that reserved before `age` seconds.
function verbs.waiting()
  local answer, oldest, most = {}, now - tonumber(ARGV[3]), tonumber(ARGV[4])
  for i, key in ipairs(KEYS) do
    local calls, owners = understood(key, pcall(waiting, key, oldest, most))
    answer[i] = {calls or {}, owners or {}}
  end
  return answer
end

return verbs[verb]()
