"""Raw HTTP over a socket, for tests that must see and say exact bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from keybearer.mock import MockProvider

BEARER = {"authorization": "Bearer sk-kbtest-one"}
X_API_KEY = {"x-api-key": "sk-ant-kbtest-one", "anthropic-version": "2023-06-01"}
X_GOOG = {"x-goog-api-key": "AIza-kbtest-one"}
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]


def request(method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None, version: str = "1.1") -> bytes:
    """The bytes of a request; a ``body`` that is no bytes is sent as JSON."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "mock.test"} | dict(headers or {})
    if body is not None:
        fields = {"content-type": "application/json", "content-length": str(len(data))} | fields
    head = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def chat(model: str, headers: Mapping[str, str] = BEARER, **more: Any) -> bytes:
    """A chat completion in OpenAI's dialect."""
    return request("POST", CHAT, {"model": model, "messages": HI} | more, headers)


class Answer:
    """An answer as it came."""

    def __init__(self, head: bytes, body: bytes, events: list[bytes], *, is_complete: bool) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)]
        self.body = body
        self.chunks = events
        self.is_complete = is_complete

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        """The next whole answer, or as much of it as came before the connection's end."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        found = Answer(head, b"", [], is_complete=True)
        length = found.header("content-length")
        try:
            if found.header("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    found.chunks.append(await self.reader.readexactly(size))
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif length is not None:
                found.body = await self.reader.readexactly(int(length))
            else:
                found.body = await self.reader.read()
        except asyncio.IncompleteReadError as error:
            found.is_complete = False
            found.body = error.partial if length is not None else b""
        found.body = found.body or b"".join(found.chunks)
        return found

    async def ended(self) -> bool:
        """Whether the other side closed without another byte."""
        return await self.reader.read(1) == b""

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def connect(provider: MockProvider) -> Wire:
    return Wire(*await asyncio.open_connection("127.0.0.1", provider.port))


async def ask(provider: MockProvider, data: bytes) -> Answer:
    """One request on a connection of its own."""
    wire = await connect(provider)
    wire.send(data)
    try:
        return await asyncio.wait_for(wire.answer(), 10)
    finally:
        wire.writer.transport.abort()
