"""Faults through real sockets: a provider that plays each, clients that meet it or leave at its very point. For ``bench.soak``.

Provider and clients share one event loop, so that a client can leave at the moment at which the provider has said so much and not
a byte more. A request says in the header ``x-soak`` which fault it wants, and who asks.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum
from typing import Self, cast

import httptools

_NO_LINGER = struct.pack("ii", 1, 0)
_ASKED = re.compile(rb"\r\nx-soak: ([a-z0-9 -]+)/(\d+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_LONGEST = 30.0
"""Seconds until a call that has no end is given up, and counted as wrong."""
_FLOOD = (b"x-flood: " + b"x" * 65_525 + b"\r\n",) * 153
"""10 MB of headers."""

_ANSWER = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
).encode()
_EVENT = b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER)
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_LIMITED = b'{"error":{"message":"slow down","type":"requests"}}'


class Act(Enum):
    """What a provider does beside writing."""

    CLOSE = "close"
    RESET = "reset"
    STALL = "stall"
    TURN = "turn"
    """Wait a little, so that what was written arrives by itself."""
    LEAVE = "leave"
    """The client leaves now; the provider waits until it is left, too."""


CUT, NO_HTTP, NOTHING = 0, -1, -2
"""As a status: the answer was cut off, or there was none; what came was no HTTP; nothing came at all, not even an end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind: what the provider does once it has the request, and what may come of it."""

    name: str
    steps: tuple[bytes | Act, ...] = ()
    streamed: bool = False
    leaves_at: int | None = None
    """The client leaves after so many bytes of its request, before the provider hears of it."""
    expected: frozenset[int] = frozenset()
    """Statuses that a client may see; ``CUT`` too. Empty: the client has left."""
    is_slow: bool = False
    """It lasts until a time-out."""

    @property
    def leaves(self) -> bool:
        """Whether the client is the one who ends it."""
        return self.leaves_at is not None or Act.LEAVE in self.steps or self.name == ABORTED.name


def _retry_after(header: Callable[[], bytes]) -> tuple[bytes, ...]:
    return (b"HTTP/1.1 429 Too Many Requests\r\n%bcontent-length: %d\r\n\r\n%b" % (header(), len(_LIMITED), _LIMITED),)


def _past() -> bytes:
    return b"retry-after: %b\r\n" % formatdate(0, usegmt=True).encode()


_STAGES: dict[str, tuple[bool, tuple[bytes | Act, ...]]] = {
    "before headers": (False, ()),
    "in headers": (False, (_HEAD[:30], Act.TURN)),
    "after headers": (False, (_HEAD, Act.TURN)),
    "in body": (False, (_HEAD + _ANSWER[:40], Act.TURN)),
    "after stream headers": (True, (_SSE, Act.TURN)),
    "between chunks": (True, (_SSE + _CHUNK, Act.TURN, _CHUNK, Act.TURN)),
    "mid-chunk": (True, (_SSE + _CHUNK, Act.TURN, _CHUNK[:40], Act.TURN)),
}
"""How far an answer gets: whether a stream was asked for, and what is written."""


def _made() -> dict[str, Fault]:
    broken = frozenset({502, CUT})
    found = [
        Fault("client leaves unheard", leaves_at=0),
        Fault("client leaves in its headers", leaves_at=60),
        Fault("client leaves in its body", leaves_at=-5),
    ]
    for stage, (streamed, steps) in _STAGES.items():
        has_begun = stage not in ("before headers", "in headers")
        ended = frozenset({CUT}) if has_begun else broken
        found += [
            Fault(f"closed {stage}", (*steps, Act.CLOSE), streamed, expected=ended),
            Fault(f"reset {stage}", (*steps, Act.RESET), streamed, expected=ended),
            Fault(f"client leaves {stage}", (*steps, Act.LEAVE), streamed),
            Fault(
                f"stalled {stage}",
                (*steps, Act.STALL),
                streamed,
                expected=frozenset({CUT}) if has_begun else frozenset({504, CUT}),
                is_slow=True,
            ),
        ]
    served = frozenset({200})
    found += [
        Fault("two answers at once", (_HEAD + _ANSWER + _HEAD + _ANSWER,), expected=served),
        Fault("a second answer later", (_HEAD + _ANSWER, Act.TURN, _HEAD + _ANSWER), expected=served),
        Fault("two streams at once", (_SSE + _CHUNK + _DONE + _SSE + _CHUNK + _DONE,), streamed=True, expected=served),
        # Where the second overtakes the gateway's look at the connection, it is taken for the next call's.
        Fault("client leaves between two answers", (_HEAD + _ANSWER, Act.LEAVE, _HEAD + _ANSWER), expected=served),
        Fault("10 MB of headers", (b"HTTP/1.1 200 OK\r\n", *_FLOOD, b"\r\n", Act.STALL), expected=broken),
        Fault("10 MB of one header", (b"HTTP/1.1 200 OK\r\nx: ", *((b"x" * 65_536,) * 153), Act.STALL), expected=broken),
        Fault("client leaves in 10 MB of headers", (b"HTTP/1.1 200 OK\r\n", _FLOOD[0][:60_000], Act.TURN, Act.LEAVE)),
        Fault("no HTTP", (b"garbage\r\n\r\n", Act.CLOSE), expected=broken),
    ]
    limited = frozenset({429})
    forms: dict[str, Callable[[], bytes]] = {
        "seconds": lambda: b"retry-after: 0\r\n",
        "a date": _past,
        "retry-after-ms": lambda: b"retry-after-ms: 1\r\n",
        "nonsense": lambda: b"retry-after: soon\r\nretry-after-ms: 0\r\n",
    }
    for form, header in forms.items():
        found.append(Fault(f"429, retry-after as {form}", _retry_after(header), expected=limited))
        # Until the key has rested, others are told so by the gateway itself.
        found.append(Fault(f"client leaves a 429, {form}", (*_retry_after(header), Act.LEAVE), expected=limited))
    return {fault.name: fault for fault in found}


FAULTS = _made()
ABORTED = Fault("aborted stream", streamed=True)
"""A stream that would go on, whose client leaves after as many chunks as its number says."""
GOOD = Fault("good", (_HEAD + _ANSWER,), expected=frozenset({200}))
GOOD_STREAM = Fault("good stream", (_SSE + _CHUNK, Act.TURN, _CHUNK + _DONE), streamed=True, expected=frozenset({200}))
_SHOWN = {None: "left", CUT: "cut off", NO_HTTP: "no HTTP", NOTHING: "nothing"}
_NAMED = FAULTS | {fault.name: fault for fault in (ABORTED, GOOD, GOOD_STREAM)}
_CODES = {name: str(number) for number, name in enumerate(_NAMED)}
_BY_CODE = {code: _NAMED[name] for name, code in _CODES.items()}


def steps_of(fault: Fault, number: int) -> tuple[bytes | Act, ...]:
    """What the provider does for the caller of this number."""
    if fault is not ABORTED:
        return fault.steps
    chunks = number % 7
    return (_SSE, *((_CHUNK,) * chunks), Act.TURN, Act.LEAVE)


class Playing(asyncio.Protocol):
    """One connection of the provider."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._buffer = b""
        self._steps: deque[bytes | Act] = deque()
        self._number = -1
        self._is_writable = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._scene.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._scene.open.discard(self)
        self._steps.clear()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[: end + 4]
        found, asked = _LENGTH.search(head), _ASKED.search(head)
        length = int(found[1]) if found else 0
        if len(self._buffer) < end + 4 + length:
            return
        if b"kb_" in self._buffer:
            self._scene.leaks += 1
        self._buffer = b""
        if asked is None:
            self._transport.abort()
            return
        # A second answer that comes after the next request is that one's answer, in HTTP/1.1: nobody could tell.
        self._steps.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._number = int(asked[2])
        self._steps.extend(steps_of(_BY_CODE[asked[1].decode()], self._number))
        self._play()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._play()

    def drop(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _play(self) -> None:
        self._timer = None
        while self._steps and self._is_writable:
            step = self._steps.popleft()
            if isinstance(step, bytes):
                self._transport.write(step)
            elif step is Act.TURN:
                self._timer = asyncio.get_running_loop().call_later(0.001, self._play)
                return
            else:
                self._end(step)

    def _end(self, act: Act) -> None:
        if act is Act.CLOSE:
            self._transport.close()
        elif act is Act.RESET:
            connected = self._transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
        elif act is Act.LEAVE:
            self._scene.leave(self._number)


class Line(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._parser: httptools.HttpResponseParser | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = self._parser = None
        self._caller.heard(self, CUT)

    def begin(self) -> None:
        """An answer is waited for."""
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self._caller.heard(self, NO_HTTP)

    def on_message_complete(self) -> None:
        parser, self._parser = self._parser, None
        if parser is not None:
            status, keeps = parser.get_status_code(), parser.should_keep_alive()
            if not keeps and self.transport is not None:
                self.transport.close()
                self.transport = None
            self._caller.heard(self, status)


class Caller:
    """One client, which asks again and again on a connection that is kept as long as it can be."""

    def __init__(self, scene: Scene, number: int) -> None:
        self._scene = scene
        self.number = number
        self._line: Line | None = None
        self._end: asyncio.Future[int | None] | None = None

    def heard(self, line: Line, status: int | None) -> None:
        """How the call on ``line`` ended."""
        if line is self._line and self._end is not None and not self._end.done():
            self._end.set_result(status)

    async def ask(self, fault: Fault) -> int | None:
        """Make one call; the status, ``CUT``, ``NO_HTTP``, ``NOTHING``, or ``None``: left."""
        loop = asyncio.get_running_loop()
        line, transport = self._line, None if self._line is None else self._line.transport
        if line is None or transport is None or transport.is_closing():
            line = self._line = Line(self)
            made = line
            name = None if self._scene.client_tls is None else "localhost"
            transport, _ = await loop.create_connection(
                lambda: made, "127.0.0.1", self._scene.gateway, ssl=self._scene.client_tls, server_hostname=name
            )
        self._end = loop.create_future()
        line.begin()
        request = self._scene.request(fault, self.number)
        transport.write(request if fault.leaves_at is None else request[: fault.leaves_at])
        if fault.leaves_at is not None:
            await asyncio.sleep(0.001)
            self.leave()
        try:
            async with asyncio.timeout(_LONGEST):
                status = await self._end
        except TimeoutError:
            status = NOTHING
        if status is not None and status <= CUT:
            self.drop()
        return status

    def leave(self) -> None:
        """Leave in mid-call: by a reset, at once, or half-closing first."""
        line, transport = self._line, None if self._line is None else self._line.transport
        if line is not None and transport is not None:
            how = self._scene.left % 3
            if how == 0:
                connected = transport.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                transport.abort()
            elif how == 1 or not transport.can_write_eof():
                transport.abort()
            else:
                transport.write_eof()
                asyncio.get_running_loop().call_later(0.05, transport.abort)
            self.heard(line, None)
        self._line = None
        self._scene.left += 1

    def drop(self) -> None:
        """Close, without a call under way."""
        if self._line is not None and self._line.transport is not None:
            self._line.transport.abort()
        self._line = None


@dataclass
class Outcome:
    """What came of many calls."""

    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    first_wrong: str = ""

    def add(self, fault: Fault, status: int | None) -> None:
        """Count one."""
        self.asked += 1
        shown = _SHOWN.get(status, str(status))
        self.statuses[shown] += 1
        if status not in fault.expected and not (status is None and fault.leaves):
            self.wrong += 1
            self.first_wrong = self.first_wrong or f"{fault.name}: {shown}"


@dataclass
class Scene:
    """The provider, the clients, and what they share."""

    gateway: int
    token: str = field(repr=False)
    port: int = 0
    open: set[Playing] = field(default_factory=set)
    callers: dict[int, Caller] = field(default_factory=dict)
    left: int = 0
    leaks: int = 0
    """Requests in which the provider saw a token of ours."""
    is_stopped: bool = False
    client_tls: ssl.SSLContext | None = None
    provider_tls: ssl.SSLContext | None = None
    _server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        """Listen as the provider."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Playing(self), "127.0.0.1", port, ssl=self.provider_tls, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        self.drop()
        for playing in tuple(self.open):
            playing.drop()
        if self._server is not None:
            self._server.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def drop(self) -> None:
        """Close all clients' connections."""
        for caller in self.callers.values():
            caller.drop()

    def leave(self, number: int) -> None:
        """The provider has come to the point at which the client of this number leaves."""
        caller = self.callers.get(number)
        if caller is not None:
            caller.leave()

    def request(self, fault: Fault, number: int) -> bytes:
        """A call that asks the provider for this fault."""
        body = b'{"model":"gpt-4o-mini","max_tokens":50,"messages":[{"role":"user","content":"hello"}]%b}' % (
            b',"stream":true,"stream_options":{"include_usage":true}' if fault.streamed else b""
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {self.token}\r\n"
            f"content-type: application/json\r\nx-soak: {_CODES[fault.name]}/{number}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def run(self, faults: Sequence[Fault], count: int, at_once: int, on_progress: Callable[[int], None]) -> Outcome:
        """Ask ``count`` times, for each of ``faults`` in turn."""
        outcome = Outcome()
        rest = iter(range(count))

        async def work(number: int) -> None:
            caller = self.callers.setdefault(number, Caller(self, number))
            for index in rest:
                if self.is_stopped:
                    return
                fault = faults[index % len(faults)]
                try:
                    status = await caller.ask(fault)
                except OSError as error:
                    status = NOTHING
                    outcome.first_wrong = outcome.first_wrong or repr(error)
                outcome.add(fault, status)
                on_progress(outcome.asked)

        await asyncio.gather(*(work(number) for number in range(min(at_once, count))))
        return outcome
