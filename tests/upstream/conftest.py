"""Fixtures: both event loops, plain and TLS, scripted providers, upstreams searched for leftovers after each test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from tests.upstream.scripted import HOST, MakeUpstream, Provider, Resolver, Script, Serve

from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.upstream import Limits, Upstream


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


@pytest.fixture
async def serve(scheme: str, server_tls: ssl.SSLContext) -> AsyncIterator[Serve]:
    """``await serve(script, …)`` starts a scripted provider."""
    running: list[Provider] = []

    async def start(*scripts: Script, tls: ssl.SSLContext | None = None) -> Provider:
        holder: list[Provider] = []
        context = tls or (server_tls if scheme == "https" else None)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await holder[0].accept(reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
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
            line.reset()
    await asyncio.sleep(0)


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


@pytest.fixture
def open_files() -> Callable[[], int]:
    """The number of open files of this process."""
    folder = Path("/dev/fd")
    return lambda: len(list(folder.iterdir()))
