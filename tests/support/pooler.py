"""A pooler in transaction mode: all clients get one and the same backend, in turn, for one transaction each.

The worst case of what PgBouncer does: whatever somebody leaves on a connection, the next one finds. PgBouncer itself is used
beside it where it is installed, or where ``KEYBEARER_TEST_PGBOUNCER`` names it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg
import sqlalchemy as sa

PGBOUNCER = os.environ.get("KEYBEARER_TEST_PGBOUNCER") or shutil.which("pgbouncer") or ""
KINDS: Sequence[str] = ("one backend", "pgbouncer") if PGBOUNCER else ("one backend",)

_PROTOCOL, _CANCEL = 196608, 80877102
_STATUS = ("server_version", "server_encoding", "client_encoding", "DateStyle", "TimeZone", "integer_datetimes")


class OneBackend:
    """See the module. ``turns``: which client had the backend, transaction by transaction."""

    def __init__(self, url: sa.URL) -> None:
        self._signed_in = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
        self._turn = asyncio.Lock()
        self._clients = 0
        self.turns: list[int] = []
        self.port = 0

    async def start(self) -> None:
        """Take over the signed-in connection's socket, and listen."""
        taken = socket.socket(fileno=os.dup(self._signed_in.pgconn.socket))
        taken.setblocking(False)
        opened = asyncio.open_unix_connection if taken.family == socket.AF_UNIX else asyncio.open_connection
        self._reader, self._writer = await opened(sock=taken)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        self._server.close()
        self._writer.close()
        self._signed_in.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        number = self._clients
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if await self._greet(reader, writer):
                await self._relay(number, reader, writer)
        writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Let anybody in: whoever reaches this port is the test."""
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code == _CANCEL:
                return False
            if code == _PROTOCOL:
                break
            writer.write(b"N")  # no TLS here
        writer.write(_message(b"R", struct.pack("!i", 0)))
        for name in _STATUS:
            value = self._signed_in.pgconn.parameter_status(name.encode()) or b""
            writer.write(_message(b"S", name.encode() + b"\0" + value + b"\0"))
        writer.write(_message(b"K", struct.pack("!ii", 1, 1)) + _message(b"Z", b"I"))
        return True

    async def _relay(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_turn = False
        try:
            while True:
                kind, message = await _read(reader)
                if kind == b"X":
                    return
                if not has_turn:
                    await self._turn.acquire()
                    has_turn = True
                    self.turns.append(number)
                self._writer.write(message)
                if kind in b"QSc" and await self._answer(writer) == b"I":
                    self._turn.release()
                    has_turn = False
        finally:
            if has_turn:
                await self._abandon()

    async def _answer(self, writer: asyncio.StreamWriter | None) -> bytes:
        """Pass on what the backend says until it is ready, or waits for the client's data; the state of the transaction."""
        while True:
            kind, message = await _read(self._reader)
            if writer is not None:
                writer.write(message)
            if kind == b"Z":
                return message[5:]
            if kind == b"G":
                return b"T"

    async def _abandon(self) -> None:
        """A client went away in the middle of a transaction."""
        self._writer.write(_message(b"Q", b"ROLLBACK\0"))
        while await self._answer(None) != b"I":
            pass
        self._turn.release()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


@asynccontextmanager
async def pooled(kind: str, url: str) -> AsyncIterator[str]:
    """The URL of a pooler before the database of ``url``."""
    target = sa.make_url(url)
    if kind == "pgbouncer":
        with _pgbouncer(target) as port:
            yield _at(target, port)
        return
    pooler = OneBackend(target)
    await pooler.start()
    yield _at(target, pooler.port)
    assert len(set(pooler.turns)) > 1, "nobody took turns"
    await pooler.stop()


def _at(url: sa.URL, port: int) -> str:
    return url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)


@contextmanager
def _pgbouncer(url: sa.URL) -> Iterator[int]:
    """A PgBouncer with one backend. It refuses to be root, and signs everybody in as the runtime login."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = str(url.query.get("host") or url.host)
    backend = f"host={host} port={url.port or 5432} user={url.username} password={url.password}"
    settings = [
        "[databases]",
        f"{url.database} = {backend}",
        "[pgbouncer]",
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any",
        "pool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 100\nlogfile = /dev/null",
    ]
    home = tempfile.TemporaryDirectory()  # that of the test is its user's alone
    file = Path(home.name) / "pgbouncer.ini"
    file.write_text("\n".join(settings))
    file.parent.chmod(0o755)
    run = [PGBOUNCER, str(file)]
    if os.geteuid() == 0:
        run = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *run]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        assert process.poll() is None, "PgBouncer did not start"
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(10)
    home.cleanup()
