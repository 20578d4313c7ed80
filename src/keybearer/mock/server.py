"""The mock provider as a server: in-process for tests, or as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import Callable

import uvloop

from keybearer.mock.connection import Connection, Site
from keybearer.mock.record import Record
from keybearer.mock.site import REDIRECTED, Options, answer
from keybearer.mock.wire import Answer, Exchange, Request, json_answer, script

_BACKLOG = 2048


class MockProvider:
    """A running mock provider. ``url`` has no trailing slash; ``requests`` are the last ones, oldest first."""

    def __init__(self, server: asyncio.Server, site: Site, url: str) -> None:
        self.url = url
        self.requests = site.record
        self._server = server
        self._site = site

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.url.rpartition(":")[2])

    @property
    def open_connections(self) -> int:
        """How many connections clients hold open."""
        return len(self._site.connections)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        self._server.close()
        for connection in tuple(self._site.connections):
            connection.abort()
        await self._server.wait_closed()


async def start(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> MockProvider:
    """Start a mock provider in the running event loop; port 0 takes a free one.

    Raises ``OSError`` if the address cannot be bound or a TLS file cannot be read.
    """
    options = options or Options()
    record = Record(options.record)

    def handle(request: Request) -> Exchange:
        # The mock's own paths stand outside every provider's.
        return _own(request, record) if request.target.startswith("/_mock/") else answer(request, options, time.time())

    site = Site(handle, record)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(site), host, port, ssl=_tls(options), backlog=_BACKLOG, reuse_address=True
    )
    bound = server.sockets[0]
    name = f"[{host}]" if bound.family is socket.AF_INET6 else host
    return MockProvider(server, site, f"{options.scheme}://{name}:{bound.getsockname()[1]}")


def run(host: str = "127.0.0.1", port: int = 0, options: Options | None = None, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``announce`` is told the URL once it is bound."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(host, port, options, announce))


async def _serve(host: str, port: int, options: Options | None, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    provider = await start(host, port, options)
    announce(provider.url)
    await stop.wait()
    await provider.close()


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.certificate, options.private_key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _own(request: Request, record: Record) -> Exchange:
    """Answer the mock's own paths: what was recorded, and where the redirects lead."""
    path = request.target.partition("?")[0]
    said: Answer
    if path == "/_mock/requests" and request.method == "GET":
        said = json_answer({"requests": [recorded.document() for recorded in record]})
    elif path == "/_mock/requests" and request.method == "DELETE":
        record.clear()
        said = json_answer({"requests": []})
    elif path == "/_mock/health" and request.method == "GET":
        said = json_answer({"status": "ok"})
    elif path == REDIRECTED:
        said = json_answer({"redirected": True})
    else:
        said = json_answer({"error": {"message": f"no {request.method} {path} here"}}, 404)
    return Exchange(script(said, request), said.status, provider="_mock", is_constant=False, is_recorded=path == REDIRECTED)
