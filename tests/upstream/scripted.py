"""A scripted provider on loopback: real sockets, plain and TLS, that say given bytes at given times; and a sink that writes down
what it is told.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from keybearer.errors import KeybearerError, UpstreamUnresolved
from keybearer.gateway.egress import Origin, origin_of
from keybearer.gateway.upstream import Call, Target, Upstream, build_request

HOST = "provider.test"
Script = Callable[["Line"], Awaitable[None]]


class Resolver:
    """Answers from a list of answers; the last one stays."""

    def __init__(self, *answers: Sequence[str], delay: float = 0) -> None:
        self.answers = list(answers) or [["127.0.0.1"]]
        self.delay = delay
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(self.delay)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise UpstreamUnresolved
        return answer


@dataclass
class Sink:
    """Writes down what it is told."""

    refusal: KeybearerError | None = None
    events: list[str] = field(default_factory=list)
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    error: KeybearerError | None = None
    sent: bool | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def may_send(self) -> None:
        self.events.append("may_send")
        if self.refusal is not None:
            raise self.refusal

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.events.append("response")
        self.status, self.headers = status, headers

    def on_wait(self) -> None:
        assert self.events[-1] == "response"

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001
        assert data
        self.events.append("data")
        self.body += data

    def on_complete(self) -> None:
        self.events.append("complete")
        self.ended.set()

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: FBT001
        self.events.append("failure")
        self.error, self.sent = error, sent
        self.ended.set()

    def __repr__(self) -> str:
        return f"<{self.events} {self.status} {bytes(self.body[:100])!r} {self.error!r}>"


class Line:
    """One accepted connection, from the provider's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    async def request(self) -> bytes:
        """One whole request with its body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        return head + await self.reader.readexactly(length)

    async def say(self, *pieces: bytes, pause: float = 0.01) -> None:
        """Send pieces so that they arrive apart."""
        for index, piece in enumerate(pieces):
            if index:
                await asyncio.sleep(pause)
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> bool:
        """Wait until the client has closed; false if it says something instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def shut_down(self) -> None:
        """End the TCP stream below TLS, so that nothing says goodbye."""
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as raw:
            raw.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        if not self.writer.transport.is_closing():  # else asyncio's TLS of Python 3.11.2 fails
            self.writer.transport.abort()


class Provider:
    """A scripted server: connection n plays script n, the last script again and again."""

    def __init__(self, server: asyncio.Server, scripts: Sequence[Script], scheme: str) -> None:
        self.server = server
        self.scripts = scripts
        self.lines: list[Line] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.names: list[str | None] = []
        port = server.sockets[0].getsockname()[1]
        self.port = port
        self.origin: Origin = origin_of(f"{scheme}://{HOST}:{port}")
        self.target = Target(self.origin, None, admin_defined=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer, len(self.lines))
        self.lines.append(line)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.scripts[min(line.number, len(self.scripts) - 1)](line)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client left: what most of these tests are about
        except RuntimeError as error:
            if "closed" not in str(error):  # uvloop's word for the same, if it was us
                raise
        finally:
            self.tasks.discard(task)
            writer.close()

    def request(self, method: bytes = b"POST", body: bytes = b"{}") -> bytes:
        return build_request(
            method, b"/v1/chat/completions", self.origin.authority, [(b"authorization", b"Bearer kbtest-1")], body
        )


Serve = Callable[..., Awaitable[Provider]]
MakeUpstream = Callable[..., Upstream]


async def ask(upstream: Upstream, provider: Provider, *, head_only: bool = False, target: Target | None = None) -> Sink:
    """Send one request and wait for its end."""
    sink = Sink()
    request = provider.request(b"HEAD" if head_only else b"POST", b"" if head_only else b"{}")
    send(upstream, provider, sink, request, head_only=head_only, target=target)
    await asyncio.wait_for(sink.ended.wait(), 10)
    return sink


def send(
    upstream: Upstream,
    provider: Provider,
    sink: Sink,
    request: bytes | Sequence[bytes] | None = None,
    *,
    head_only: bool = False,
    target: Target | None = None,
) -> Call:
    return upstream.send(target or provider.target, request or provider.request(), sink, head_only=head_only)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for something that comes with the loop's next turns."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nothing signals what is waited for
            await asyncio.sleep(0.002)


def answering(*pieces: bytes, pause: float = 0.01) -> Script:
    """A provider that answers every request of a connection in the same way."""

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(*pieces, pause=pause)

    return script


def answering_once(*pieces: bytes, pause: float = 0.01) -> Script:
    """A provider that answers one request and closes."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(*pieces, pause=pause)

    return script
