"""One client's connection: takes requests from the parser, plays their scripts in order.

The quick way: a connection at rest that gets exactly the bytes of an earlier whole request plays the same script again,
without parsing. Answers depend on nothing but the request, so this changes only the speed (measured: 4 µs instead of 60).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from keybearer.mock.parser import Continue, Malformed, RequestParser
from keybearer.mock.record import Record, Recorded
from keybearer.mock.wire import Ending, Exchange, Request, Script, json_answer, script

MOST_QUEUED = 64
"""Pipelined requests that wait; reading pauses beyond."""
_SEEN_REQUESTS = 256
_SEEN_BYTES = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_LINGER = struct.pack("ii", 1, 0)
_FLUSH = 0.01
"""Seconds for written bytes to leave before a reset throws away what did not."""


@dataclass(slots=True)
class Site:
    """What all connections of one mock provider share."""

    handle: Callable[[Request], Exchange]
    record: Record
    connections: set[Connection] = field(default_factory=set)
    seen: dict[bytes, tuple[Request, Exchange]] = field(default_factory=dict)

    def remember(self, data: bytes, request: Request, exchange: Exchange) -> None:
        """Keep a whole request's bytes with what to play. Forgets all when full: simple, and enough."""
        if len(self.seen) >= _SEEN_REQUESTS:
            self.seen.clear()
        self.seen[data] = (request, exchange)


class Connection(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parser = RequestParser()
        self._waiting: deque[Request | Malformed] = deque()
        self._is_playing = False
        self._is_closing = False
        self._is_writable = True
        self._is_reading = True
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._recorded: Recorded | None = None
        self._script = Script(b"")
        self._step = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._site.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._site.connections.discard(self)
        self._is_closing = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._recorded is not None and self._recorded.outcome == "answering":
            self._recorded.outcome = "left"

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        at_rest = not (self._is_playing or self._waiting or self._parser.in_message) and self._is_writable
        if at_rest:
            seen = self._site.seen.get(data)
            if seen is not None:
                self._start(*seen)
                return
        events = self._parser.feed(data)
        if at_rest and len(events) == 1 and not self._parser.in_message and isinstance(events[0], Request):
            self._answer(events[0], data)
            return
        for event in events:
            if not isinstance(event, Continue):
                self._waiting.append(event)
            elif not self._is_playing and not self._waiting:
                # Behind outstanding answers an interim one would be out of order; clients then send unasked.
                self._transport.write(_CONTINUE)
        self._work()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._is_playing and self._timer is None and self._step < len(self._script.steps):
            self._play_step()
        self._work()

    def abort(self) -> None:
        """End at once: the server ends."""
        self._transport.abort()

    def _work(self) -> None:
        """Answer what waits, as far as the wire is free; read on when little waits."""
        while self._waiting and self._is_writable and not self._is_playing and not self._is_closing:
            event = self._waiting.popleft()
            if isinstance(event, Request):
                self._answer(event, b"")
            else:
                said = json_answer({"error": {"message": event.why, "type": "invalid_request_error", "code": None}}, event.status)
                self._recorded = None
                self._play(script(said, Request("", "", (), b"", keep_alive=False)))
        should_read = len(self._waiting) <= (MOST_QUEUED // 2 if not self._is_reading else MOST_QUEUED)
        if should_read != self._is_reading and not self._is_closing:
            self._is_reading = should_read
            (self._transport.resume_reading if should_read else self._transport.pause_reading)()

    def _answer(self, request: Request, data: bytes) -> None:
        """Have a request answered; ``data``: its bytes, if they are the whole of it and nothing else."""
        exchange = self._site.handle(request)
        if data and exchange.is_constant and len(data) <= _SEEN_BYTES:
            self._site.remember(data, request, exchange)
        self._start(request, exchange)

    def _start(self, request: Request, exchange: Exchange) -> None:
        record = self._site.record
        self._recorded = record.add(request, exchange) if record.is_on and exchange.is_recorded else None
        self._play(exchange.script)

    def _play(self, played: Script) -> None:
        self._script = played
        if played.delay:
            self._is_playing = True
            self._timer = self._loop.call_later(played.delay, self._play_head)
        else:
            self._play_head()

    def _play_head(self) -> None:
        self._timer = None
        played = self._script
        if played.head:
            self._transport.write(played.head)
        if played.steps:
            self._is_playing = True
            self._step = 0
            self._due = self._loop.time()
            self._play_step()
        else:
            self._finish()

    def _play_step(self) -> None:
        self._timer = None
        if not self._is_writable:
            return  # resume_writing plays on
        steps = self._script.steps
        self._transport.write(steps[self._step])
        self._step += 1
        if self._recorded is not None:
            self._recorded.steps = self._step
        if self._step == len(steps):
            self._finish()
        elif self._script.pace:
            self._due += self._script.pace  # from the start, so that lateness does not add up
            self._timer = self._loop.call_at(self._due, self._play_step)
        else:
            self._timer = self._loop.call_soon(self._play_step)

    def _finish(self) -> None:
        ending = self._script.ending
        if ending is Ending.STALL:
            self._is_playing = True  # until the client leaves
            return
        if self._recorded is not None:
            self._recorded.outcome = "done"
        if ending is Ending.KEEP:
            if self._is_playing:
                self._is_playing = False
                self._loop.call_soon(self._work)
            return
        self._is_closing = True
        if ending is Ending.CLOSE:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(_FLUSH, self._reset)

    def _reset(self) -> None:
        connected = self._transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()
