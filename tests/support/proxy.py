"""A network that can fail: a TCP proxy before a server, which passes, breaks, refuses or goes silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import sqlalchemy as sa

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Listens on a free port of 127.0.0.1 and hands bytes on."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def silence(self) -> None:
        """Connections stay, bytes do not arrive: a partition."""
        self._flowing.clear()

    def break_off(self, *, refuse: bool = False) -> None:
        """All connections end; ``refuse``: new ones too, as when the server is down."""
        self._refusing = refuse
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        self._refusing = False
        self._flowing.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.break_off(refuse=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.transport.abort()
            return
        there, back = await self._connect()
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        finally:
            self._writers -= {writer, back}
            for end in (writer, back):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()


@asynccontextmanager
async def before_postgresql(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the PostgreSQL server of ``url``, and the URL that goes through it."""
    parsed = sa.make_url(url)
    directory = parsed.query.get("host")

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if directory:
            return await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{parsed.port or 5432}")
        return await asyncio.open_connection(parsed.host, parsed.port or 5432)

    proxy = Proxy(connect)
    await proxy.start()
    through = parsed.set(host="127.0.0.1", port=proxy.port).difference_update_query(["host"])
    try:
        yield proxy, through.render_as_string(hide_password=False)
    finally:
        await proxy.close()
