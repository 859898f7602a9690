-- The requests that wrk sends, selected by the arguments after `--`:
--
--   single N random             one of the tasks numbered 0 to N-1
--   single N each FIRST         N tasks from number FIRST, each once; then wrk stops
--   batch N SIZE MANY           one of MANY batches; the k-th holds the tasks k*SIZE, k*SIZE+1, … (modulo N)
--   batch N SIZE 0 each FIRST   N tasks in batches from batch FIRST, each once; then wrk stops
--   scatter N SIZE MANY         one of MANY batches of tasks drawn from N
--   get PATH                    a GET
--
-- COMPARE_TOKEN is the bearer token. With COMPARE_TOKENS above 1, request n of `each` uses token n modulo that number.
-- COMPARE_SEED seeds the choice. At the end one line of JSON is printed.

local ffi = require("ffi")
ffi.cdef "int kill(int, int); int getpid(void);"

local token = os.getenv("COMPARE_TOKEN")
local tokens = tonumber(os.getenv("COMPARE_TOKENS"))
local next_request

local function id(n)
   return string.format("%08x-5eed-4000-8000-%012x", n, n)
end

local function post(body, n)
   local bearer = token .. (n and tokens > 1 and "-" .. n % tokens or "")
   return "POST /producer/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. bearer
      .. "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local function single(n)
   return post('{"action":"retrieve","id":"' .. id(n) .. '"}', n)
end

local function batch(size, nth, turn)
   local ids = {}
   for n = 1, size do
      ids[n] = '"' .. id(nth(n - 1)) .. '"'
   end
   return post('{"action":"retrieve_batch","ids":[' .. table.concat(ids, ",") .. ']}', turn)
end

-- Sends `make(first)` … `make(first + count - 1)`, each once, and stops after the last response.
local function each(make, first, count)
   local sent, received = 0, 0
   next_request = function()
      sent = sent + 1
      -- Connections beyond the last request repeat the first one.
      return make(first + (sent <= count and sent - 1 or 0))
   end
   response = function()
      received = received + 1
      if received == count then
         ffi.C.kill(ffi.C.getpid(), 2)
      end
   end
end

local function any_of(list)
   next_request = function()
      return list[math.random(#list)]
   end
end

function init(args)
   local kind = args[1]
   math.randomseed(tonumber(os.getenv("COMPARE_SEED") or "1"))
   local count = tonumber(args[2])
   if kind == "get" then
      any_of({ "GET " .. args[2] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. token .. "\r\n\r\n" })
   elseif kind == "single" and args[3] == "each" then
      each(single, tonumber(args[4]), count)
   elseif kind == "single" then
      next_request = function()
         return single(math.random(0, count - 1))
      end
   elseif kind == "batch" and args[5] == "each" then
      local size = tonumber(args[3])
      each(function(n)
         return batch(size, function(m) return n * size + m end, n)
      end, tonumber(args[6]), count / size)
   else
      local size, many, list = tonumber(args[3]), tonumber(args[4]), {}
      for n = 1, many do
         list[n] = batch(size, function(m)
            return kind == "scatter" and math.random(0, count - 1) or ((n - 1) * size + m) % count
         end)
      end
      any_of(list)
   end
end

function request()
   return next_request()
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests":%d,"seconds":%.6f,"bytes":%d,"errors":%d,"refused":%d,"p50_ms":%.4f,"p99_ms":%.4f}\n',
      summary.requests, summary.duration / 1e6, summary.bytes,
      errors.connect + errors.read + errors.write + errors.timeout, errors.status,
      latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
