"""Hundreds of faults, and bytes at random: nothing leaks, nothing raises, no dirty connection is used again."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.upstream.scripted import Line, MakeUpstream, Resolver, Script, Serve, Sink, send, until

from keybearer.errors import KeybearerError
from keybearer.gateway.connection import Call, Connection
from keybearer.gateway.pool import Limits, Pool
from keybearer.gateway.steps import Steps

ROUNDS = 300
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ANSWERS = [
    (GOOD,),
    (GOOD, b"more"),
    (GOOD[:20],),
    (GOOD[:-1],),
    (b"",),
    (b"\x00\x00garbage\r\n\r\n",),
    (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\n", b"zz\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\n\r\nok",),
]


def misbehaving(dice: random.Random) -> Script:
    """A provider that answers well or badly, and then stays, leaves, resets or waits to be left."""

    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(*dice.choice(ANSWERS), pause=0.001)
            match dice.randrange(4):
                case 0:
                    return
                case 1:
                    line.reset()
                    return
                case 2:
                    await line.gone()
                    return

    return script


async def test_after_hundreds_of_faults_nothing_is_left(
    serve: Serve, make_upstream: MakeUpstream, open_files: Callable[[], int]
) -> None:
    dice = random.Random(7)
    provider = await serve(misbehaving(dice))
    resolver = Resolver(["127.0.0.1"])
    upstream = make_upstream(read_timeout=0.1, connect_timeout=2, resolver=resolver)
    before_files = open_files()
    sinks: list[Sink] = []
    for _ in range(ROUNDS // 10):
        for _ in range(10):
            resolver.answers = [dice.choice([["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1"], []])]
            sink = Sink()
            sinks.append(sink)
            call = send(upstream, provider, sink)
            if dice.random() < 0.3:
                await asyncio.sleep(dice.choice([0, 0, 0.001, 0.002, 0.004]))
                call.abort()
                sink.events.append("aborted")
                sink.ended.set()
        await asyncio.gather(*(asyncio.wait_for(sink.ended.wait(), 5) for sink in sinks[-10:]))
    for sink in sinks:
        ends = [event for event in sink.events if event in ("complete", "failure", "aborted")]
        assert ends in (["complete"], ["failure"], ["aborted"], ["complete", "aborted"], ["failure", "aborted"]), sink
        assert sink.events.count("may_send") <= 1
        if "complete" in ends:
            assert bytes(sink.body) == b"ok", "never a byte of another answer"
    assert {"complete", "failure", "aborted"} <= {event for sink in sinks for event in sink.events}
    await upstream.close()
    assert (upstream.open_connections, len(upstream._dialing)) == (0, 0)
    for line in provider.lines:
        line.reset()
    await until(lambda: not provider.tasks)
    gc.collect()
    await until(lambda: open_files() <= before_files)


async def test_dials_cancelled_at_every_step_leave_nothing(
    serve: Serve, make_upstream: MakeUpstream, open_files: Callable[[], int]
) -> None:
    """uvloop forgets to tell the protocol of a connection that was cancelled right after it was made."""
    provider = await serve(misbehaving(random.Random(3)))
    upstream = make_upstream()
    before_files = open_files()
    for turns in (*range(12), 20, 40, 80, 160):
        sink = Sink()
        call = send(upstream, provider, sink)
        for _ in range(turns):
            await asyncio.sleep(0)
        call.abort()
    await until(lambda: upstream.open_connections == upstream.idle_connections and not upstream._dialing)
    await upstream.close()
    for line in provider.lines:
        line.reset()
    await until(lambda: open_files() <= before_files)


# A connection fed with anything, without a socket


class Wire(asyncio.Transport):
    """A transport that writes down what is done to it."""

    def __init__(self) -> None:
        super().__init__({"socket": self})
        self.written = bytearray()
        self.is_aborted = False

    def fileno(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_aborted
        self.written += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Watch:
    def __init__(self) -> None:
        self.open: set[Connection] = set()

    def opened(self, connection: Connection) -> None:
        self.open.add(connection)

    def gone(self, connection: Connection, pool: Pool) -> None:
        self.open.discard(connection)


class Bounded(Sink):
    """Checks the order of events."""

    def __init__(self) -> None:
        self.events = []
        self.body = bytearray()
        self.status = 0
        self.headers = []
        self.refusal = self.error = self.sent = None
        self.ends = 0

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert self.events == ["may_send"]
        assert 200 <= status <= 599
        assert len(headers) <= 100
        for name, value in headers:
            assert name == name.lower()
            assert not name.startswith(b"x-keybearer-")
            assert name not in (b"set-cookie", b"connection", b"transfer-encoding")
            assert not {0, 10, 13} & set(name + value)
        self.events.append("response")

    def on_wait(self) -> None:
        assert self.events[-1] == "response"

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001
        assert self.events[1] == "response"
        assert not self.ends
        assert data
        self.body += data

    def on_complete(self) -> None:
        self.ends += 1

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: FBT001
        assert sent
        self.ends += 1


PIECES = st.one_of(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 103 E\r\n\r\n",
            b"HTTP/1.1 204 N\r\n\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Set-Cookie: a\r\nX-Keybearer-A: b\r\n",
            b"Connection: close\r\n",
            b"\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"hello",
            b"\n",
            b"x" * 70_000,
        ]
    ),
    st.binary(min_size=1, max_size=30),
)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=10),
    joined=st.booleans(),
    ends=st.sampled_from(["eof", "lost", "open"]),
    head_only=st.booleans(),
)
def test_no_bytes_make_a_connection_raise_or_come_back_dirty(  # one story
    *, pieces: list[bytes], joined: bool, ends: str, head_only: bool
) -> None:
    watch = Watch()
    pool = Pool("key", Limits(), 10, watch)
    connection = Connection(pool, 5.0, Steps())
    wire = Wire()
    connection.connection_made(wire)
    sink = Bounded()
    call = Call(sink, b"GET / HTTP/1.1\r\n\r\n", head_only=head_only)
    connection.start(call)
    for piece in [b"".join(pieces)] if joined and pieces else pieces:
        was_idle = call.is_ended
        connection.data_received(piece)
        assert len(connection.reader.pieces) == 0
        if was_idle:
            assert wire.is_aborted, "bytes on an idle connection close it"
        if wire.is_aborted:
            assert pool.idle == 0
            assert call.is_ended
        assert pool.idle <= 1
        assert sink.ends <= 1
        assert call.is_ended == bool(sink.ends)
    if ends == "eof":
        connection.eof_received()
    if ends != "open":
        connection.connection_lost(None)
        assert (sink.ends, pool.idle, pool.open, len(watch.open)) == (1, 0, 0, 0)
    elif pool.idle:
        assert not connection.reader._is_dirty
        assert connection.call is None
