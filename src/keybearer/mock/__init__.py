"""The mock provider: speaks like OpenAI, Anthropic, Gemini, xAI and OpenRouter, for tests, demos and benchmarks.

One asyncio server. Paths are the providers' own; ``/{provider}`` may stand before them where only hosts tell providers
apart (``/xai/v1/chat/completions``). Keys are accepted in the provider's own header only, and must be one of the accepted ones,
or hold ``kbtest-`` where none are given. The same request always gets the same answer, ids and usage included.

It misbehaves on demand, by the model's name, so that it can be told through any gateway: ``mock-`` and then words, as in
``mock-429-retry-7s``, ``mock-chunks-200-pace-20ms`` or ``gpt-4o-mock-cut-5``. Calls that name no model are told by a key that
ends in ``kbtest-mock-…`` (``sk-kbtest-mock-402``). Any other model's name gets a plain answer.

=================== ==============================================================================================
word                meaning
=================== ==============================================================================================
``401`` … any 4xx   an error of that status in the provider's own shape; ``429`` and ``503`` say when to retry
or 5xx              (a few: ``400``, ``401``, ``402``, ``403``, ``404``, ``429``, ``500``, ``503``, ``529``)
``overloaded``      503, or Anthropic's 529
``quota``           no credit left, as the provider says it: OpenAI 429 insufficient_quota, Anthropic 400, OpenRouter 402
``retry-7s``        when to retry (default 1 s), told as the provider does: headers, or Gemini's ``RetryInfo`` in the body
``seconds`` ``date``  told instead as ``retry-after`` in seconds, as an HTTP date,
``ms`` ``none``     as ``retry-after-ms``, or not at all
``echo``            the error's message and a header repeat the key (401 if no other status is asked for)
``slow-2s``         that long until the first byte (times as ``20ms`` or ``2s``, up to 600 s)
``chunks-200``      text of that many pieces, each its own event in a stream and a token of usage
``pace-20ms``       that long between events; ``pace-0ms``: one write each; without it: all events in one write
``size-1000``       text of that many characters
``cached-64``       cached input tokens to report (default: a quarter of the input)
``reasoning-32``    reasoning tokens to report (default 5)
``cut-5``           the connection is closed after 5 events, or after half of an unstreamed body
``reset-5``         likewise, by a TCP reset
``stall-5``         likewise, but nothing more ever comes
``error-5``         after 5 events comes the provider's error event
``cutjson``         the connection is closed in the middle of an event's or a body's JSON
``badjson``         a whole answer (or one event of it) that is no valid JSON
``badhttp``         an answer that is no HTTP
``drop``            the connection is closed without an answer
``redirect``        307 to ``/_mock/redirected``, where a request is recorded
``cookie``          a plain answer with ``Set-Cookie`` and forged ``x-keybearer-*`` headers
=================== ==============================================================================================

A request with tools is answered by a call of the first (or the demanded) one, with arguments made from its schema; when the last
message is a tool's result, by text. A request that demands text of a JSON schema gets one. ``GET /_mock/requests`` lists what came
(headers, body, digest, whether the client left before the end), ``DELETE`` forgets it; ``GET /_mock/health`` says ok.

Glossary: a **behaviour** is what a name asks for; a **reply** is what the model says in any dialect; an **answer** is that reply
(or a refusal) in a dialect; a **script** is the answer on the wire: bytes, waits, ending; an **exchange** is what is recorded.
"""

from keybearer.mock.record import Record, Recorded
from keybearer.mock.server import MockProvider, run, start
from keybearer.mock.site import Options, parse_keys

__all__ = ["MockProvider", "Options", "Record", "Recorded", "parse_keys", "run", "start"]
