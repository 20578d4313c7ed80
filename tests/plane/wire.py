"""Raw HTTP for tests: a strict reader of answers, and a provider that does exactly as it is told."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*\r\n")
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9a-z-]+): ([\t -~\x80-\xff]*)\r\n")


class Malformed(AssertionError):
    """An answer that is no HTTP/1.1."""


@dataclass
class Answer:
    """One answer as it came over the wire."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    is_whole: bool = True

    def __getitem__(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name.encode()]
        assert len(found) < 2, f"{name} came twice"
        return found[0].decode("latin-1") if found else None


class Reader:
    """Reads answers strictly, one after the other."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self.stream = stream

    async def answer(self, method: bytes = b"POST", *, may_be_cut: bool = False) -> Answer | None:
        """The next answer; ``None`` at the end of the connection."""
        line = await self._line()
        if not line:
            return None
        matched = STATUS.fullmatch(line)
        if matched is None:
            raise Malformed(line)
        found = Answer(int(matched[1]), [])
        while True:
            line = await self._line()
            if line == b"\r\n":
                break
            header = HEADER.fullmatch(line)
            if header is None:
                raise Malformed(line)
            found.headers.append((header[1], header[2]))
        if found.status < 200:
            return found
        try:
            await self._body(found, method)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if not may_be_cut:
                raise
            found.is_whole = False
            found.body += getattr(error, "partial", b"")
        return found

    async def all(self, method: bytes = b"POST", *, may_be_cut: bool = False) -> list[Answer]:
        """Every answer up to the end of the connection."""
        answers = []
        with suppress(ConnectionError):
            while (found := await self.answer(method, may_be_cut=may_be_cut)) is not None:
                answers.append(found)
        return answers

    async def _line(self) -> bytes:
        return await self.stream.readline()

    async def _body(self, found: Answer, method: bytes) -> None:
        length, coding = found["content-length"], found["transfer-encoding"]
        if length is not None and coding is not None:
            raise Malformed("both lengths")
        if method == b"HEAD" or found.status in (204, 304):
            return
        if coding is not None:
            if coding != "chunked":
                raise Malformed(coding)
            while True:
                size = int((await self.stream.readuntil(b"\r\n"))[:-2], 16)
                piece = await self.stream.readexactly(size + 2)
                if piece[-2:] != b"\r\n":
                    raise Malformed("chunk")
                if not size:
                    return
                found.body += piece[:-2]
        elif length is not None:
            found.body = await self.stream.readexactly(int(length))
        else:
            if found["connection"] != "close":
                raise Malformed("no length and no close")
            found.body = await self.stream.read()


@dataclass
class Connection:
    """A client's connection."""

    reader: Reader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self, method: bytes = b"POST", *, may_be_cut: bool = False) -> Answer:
        found = await asyncio.wait_for(self.reader.answer(method, may_be_cut=may_be_cut), 10)
        assert found is not None, "the connection was closed without an answer"
        return found

    async def is_closed(self) -> bool:
        """Whether the server closes now, without another byte."""
        try:
            return await asyncio.wait_for(self.reader.stream.read(), 10) == b""
        except ConnectionError:
            return True

    def stop_reading(self) -> None:
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def read_on(self) -> None:
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@dataclass
class Received:
    """A request as the provider got it."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    writer: asyncio.StreamWriter

    def __getitem__(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.encode()]
        assert len(found) < 2, f"{name} came twice"
        return found[0].decode("latin-1") if found else None


Script = Callable[[Received], Awaitable[None]]


def fixed(status: bytes, body: bytes, *headers: bytes) -> Script:
    """A script that answers the same each time."""
    lines = b"".join(header + b"\r\n" for header in (*headers, b"content-length: %d" % len(body)))

    async def run(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 " + status + b"\r\n" + lines + b"\r\n" + (b"" if request.line[:5] == b"HEAD " else body))

    return run


@dataclass
class Provider:
    """A provider on loopback that answers as ``script`` says and keeps what it was sent."""

    script: Script
    received: list[Received] = field(default_factory=list)
    open: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection to it has ended."""
    port: int = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for request in self.received:
            request.writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while (request := await self._request(reader, writer)) is not None:
                self.received.append(request)
                watch = asyncio.create_task(self._watch(reader))
                try:
                    await self.script(request)
                    await writer.drain()
                finally:
                    watch.cancel()
                    with suppress(asyncio.CancelledError):
                        await watch
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self.ended.set()
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        await until(reader.at_eof, 60)
        self.ended.set()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Received | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        line, *rest = head[:-4].split(b"\r\n")
        headers = [tuple(header.split(b": ", 1)) for header in rest]
        lengths = [int(value) for name, value in headers if name.lower() == b"content-length"]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        return Received(line, headers, body, writer)  # type: ignore[arg-type]  # pairs, by the split


async def until(holds: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something that nobody signals."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  # as the docstring says
            await asyncio.sleep(0.005)


async def connect(port: int, tls: ssl.SSLContext | None = None) -> Connection:
    """A connection to a server on loopback."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls is not None else None, limit=2**20
    )
    return Connection(Reader(reader), writer)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def code(answer: Answer) -> str:
    """Which error an answer of ours is, in whichever dialect; it says what to do."""
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert error["hint"] or error["code"] == "x"
    return str(error["code"])
