"""A scripted provider on loopback: real sockets, plain and TLS, that say given bytes at given times."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from keybearer.errors import KeybearerError, UpstreamUnresolved
from keybearer.gateway.egress import EgressPolicy, Origin, origin_of
from keybearer.gateway.upstream import Call, Limits, Target, Upstream, build_request

HOST = "provider.test"
Script = Callable[["Line"], Awaitable[None]]


@pytest.fixture(
    scope="module",
    params=[("asyncio", {"use_uvloop": True}), ("asyncio", {"use_uvloop": False})],
    ids=["uvloop", "asyncio"],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The server's own loop, and Python's."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


@pytest.fixture(params=["plain", "tls"])
def scheme(request: pytest.FixtureRequest) -> str:
    return "https" if request.param == "tls" else "http"


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

    def on_data(self, data: bytes) -> None:
        assert data
        self.events.append("data")
        self.body += data

    def on_complete(self) -> None:
        self.events.append("complete")
        self.ended.set()

    def on_failure(self, error: KeybearerError, sent: bool) -> None:
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

    def reset(self) -> None:
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
        finally:
            self.tasks.discard(task)
            writer.close()

    def request(self, method: bytes = b"POST", body: bytes = b"{}") -> bytes:
        return build_request(
            method, b"/v1/chat/completions", self.origin.authority, [(b"authorization", b"Bearer kbtest-1")], body
        )


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "127.0.0.1").configure_cert(context)
    return context


Serve = Callable[..., Awaitable[Provider]]


@pytest.fixture
async def serve(scheme: str, server_tls: ssl.SSLContext) -> AsyncIterator[Serve]:
    """``await serve(script, …)`` starts a scripted provider."""
    running: list[Provider] = []

    async def start(*scripts: Script, tls: ssl.SSLContext | None = None) -> Provider:
        holder: list[Provider] = []
        context = tls or (server_tls if scheme == "https" else None)
        server = await asyncio.start_server(lambda r, w: holder[0].accept(r, w), "127.0.0.1", 0, ssl=context)
        holder.append(Provider(server, scripts, scheme))
        running.append(holder[0])
        return holder[0]

    yield start
    for provider in running:
        provider.server.close()
        for task in tuple(provider.tasks):
            task.cancel()
        await asyncio.gather(*provider.tasks, return_exceptions=True)
        for line in provider.lines:
            line.writer.transport.abort()
    await asyncio.sleep(0)


MakeUpstream = Callable[..., Upstream]


@pytest.fixture
async def make_upstream(ca_file: Path) -> AsyncIterator[MakeUpstream]:
    """``make_upstream(read_timeout=…)`` with sensible defaults; closed, and searched for leftovers, after the test."""
    made: list[Upstream] = []

    def make(
        *,
        allow: tuple[str, ...] = ("127.0.0.0/8",),
        resolver: Resolver | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 5.0,
        limits: Limits | None = None,
    ) -> Upstream:
        upstream = Upstream(
            EgressPolicy(allow),
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            ca_file=ca_file,
            resolver=resolver or Resolver(),
            limits=limits,
        )
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        await upstream.close()
        assert upstream.open_connections == 0
        assert upstream._sweeper is None
        assert not upstream._pools


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
        while not condition():
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


@pytest.fixture
def open_files() -> Iterator[Callable[[], int]]:
    """The number of open files of this process."""
    folder = Path("/dev/fd")
    yield lambda: len(list(folder.iterdir()))
