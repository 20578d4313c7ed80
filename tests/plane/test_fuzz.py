"""Arbitrary bytes in arbitrary pieces: no exception, no gateway path to the app, answers always well-formed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.plane.wire import Reader

from keybearer.errors import TokenInvalid
from keybearer.gateway.limits import Limits
from keybearer.gateway.plan import is_gateway_path
from keybearer.gateway.plane import Plane
from keybearer.gateway.protocol import PLANE, GatewayProtocol


class Transport(asyncio.Transport):
    """A transport without a socket: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed, "written after the close"
        self.written += data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)}.get(name, default)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Stranger:
    """Caches that know nobody, and a vault that knows nobody either."""

    is_frozen = False

    def admission(self, digest: bytes) -> None:
        return None

    async def fill_admission(self, token: bytes) -> None:
        raise TokenInvalid


HEADS = [
    b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /api HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer kb_x\r\nContent-Length: 4\r\n\r\n{{}}",
    b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: kb_x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nT: x\r\n\r\n",
    b"POST /api HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /%76%31/models HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /api/../v1/models HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
]
WORDS = [
    *(b"GET ", b"POST ", b"/", b"v1", b"%2f", b"..", b"?", b"#", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"\0", b":"),
    *(b" ", b"\t", b"Host: a", b"Content-Length: ", b"Transfer-Encoding: chunked", b"5", b"0", b"\r\n\r\n", b";", b"\xff"),
    *(b"Expect: 100-continue", b"Connection: close", b"Authorization: Bearer ", b"kb_"),
]

requests = st.lists(
    st.one_of(
        st.sampled_from(HEADS),
        st.binary(max_size=40),
        st.lists(st.sampled_from(WORDS), max_size=30).map(b"".join),
        st.tuples(st.sampled_from(HEADS), st.integers(0, 200), st.sampled_from(WORDS)).map(
            lambda found: found[0][: found[1]] + found[2] + found[0][found[1] :]
        ),
    ),
    max_size=6,
).map(b"".join)


class Rig:
    """One protocol on a transport without a socket."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        options = SimpleNamespace(trusted_proxies=(), max_buffered_bytes=10_000, max_body_bytes=1_000)
        feed = SimpleNamespace(is_trusted=lambda: True)
        refusals = SimpleNamespace(note=lambda refusal: None)
        services: Any = SimpleNamespace(
            credentials=Stranger(),
            feed=feed,
            counters=None,
            journal=None,
            refusals=refusals,
            objects=None,
            upstream=None,
            options=options,
        )
        config = uvicorn.Config(
            self.app, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False
        )
        config.load()
        state = uvicorn.Server(config).server_state
        plane = Plane(services, Limits(api_body_bytes=1_000))
        self.protocol = GatewayProtocol(config, state, {PLANE: plane}, asyncio.get_running_loop())
        self.plane = plane
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        assert not is_gateway_path(scope["raw_path"])
        assert not is_gateway_path(scope["path"].encode())
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.request":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    async def feed(self, data: bytes, sizes: list[int]) -> None:
        """Give the protocol ``data`` in pieces of these sizes, over and over, as long as it listens."""
        at, turn = 0, 0
        while at < len(data) and not self.transport.is_closed:
            size = sizes[turn % len(sizes)]
            self.protocol.data_received(data[at : at + size])
            at, turn = at + size, turn + 1
            if turn % 3 == 0:
                await asyncio.sleep(0)
        for _ in range(40):
            await asyncio.sleep(0)

    async def answers(self) -> list[int]:
        """The statuses of what was written, read strictly."""
        stream = asyncio.StreamReader(limit=2**20)
        stream.feed_data(bytes(self.transport.written))
        stream.feed_eof()
        return [answer.status for answer in await Reader(stream).all()]

    def leave(self) -> None:
        self.protocol.connection_lost(None)
        if self.plane._sweep is not None:
            self.plane._sweep.cancel()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def complaints() -> Iterator[list[logging.LogRecord]]:
    """What the gateway logs: a bug that was caught at a boundary is a bug."""
    found: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Handler()
    for name in ("keybearer.gateway", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in ("keybearer.gateway", "uvicorn.error"):
        logging.getLogger(name).removeHandler(handler)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=requests, sizes=st.lists(st.sampled_from([1, 2, 3, 7, 50, 10_000]), min_size=1, max_size=5))
@example(data=HEADS[2] * 3, sizes=[1])
@example(data=b"\r\n" * 50 + HEADS[0], sizes=[3])
def test_whatever_arrives_the_answers_are_well_formed(
    loop: asyncio.AbstractEventLoop, complaints: list[logging.LogRecord], data: bytes, sizes: list[int]
) -> None:
    data = data.replace(b"HEAD ", b"GET ")  # a HEAD's answer cannot be told from its own bytes

    async def run() -> None:
        rig = Rig()
        await rig.feed(data, sizes)
        statuses = await rig.answers()
        assert set(statuses) <= {100, 200, 400, 401, 404, 405, 413, 503}
        rig.leave()
        for _ in range(10):
            await asyncio.sleep(0)
        assert rig.plane.budget.held == 0
        assert not rig.protocol.turns
        assert not rig.protocol.tasks

    loop.run_until_complete(run())
    assert [record.getMessage() for record in complaints] == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=requests, sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), cut=st.integers(0, 300))
def test_a_client_may_leave_at_any_moment(
    loop: asyncio.AbstractEventLoop, complaints: list[logging.LogRecord], data: bytes, sizes: list[int], cut: int
) -> None:
    async def run() -> None:
        rig = Rig()
        at = 0
        for size in sizes * 20:
            if at >= min(cut, len(data)) or rig.transport.is_closed:
                break
            rig.protocol.data_received(data[at : at + size])
            at += size
        rig.transport.close()
        rig.leave()
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.plane.budget.held == 0
        assert not rig.protocol.tasks

    loop.run_until_complete(run())
    assert [record.getMessage() for record in complaints] == []
