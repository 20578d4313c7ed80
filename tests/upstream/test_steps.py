"""Event streams that come faster than anybody reads are passed on in steps; others event by event; all of them whole."""

from __future__ import annotations

import asyncio

import pytest
from tests.upstream.scripted import Line, MakeUpstream, Provider, Serve, Sink, ask, send, until

from keybearer.gateway import steps
from keybearer.gateway.connection import Connection
from keybearer.gateway.upstream import Call, Upstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MANY = 400
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Events(Sink):
    """An event stream's."""

    call: Call

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().on_response(status, headers)
        self.call.is_events = True


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


def chunk(number: int) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event(number)), event(number))


def stream(upstream: Upstream, provider: Provider, sink: Events | None = None) -> Events:
    sink = sink or Events()
    sink.call = send(upstream, provider, sink)
    return sink


async def say_fast(line: Line, count: int = MANY) -> None:
    """One event in each turn of the event loop."""
    for number in range(count):
        line.writer.write(chunk(number))
        await asyncio.sleep(0)


async def fast(line: Line) -> None:
    """A provider whose answer comes fast."""
    await line.request()
    line.writer.write(CHUNKED)
    await say_fast(line)
    line.writer.write(b"0\r\n\r\n")
    await line.gone()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections that waited for a step."""
    waited: list[Connection] = []
    wait = steps.Steps.wait

    def watched(self: steps.Steps, connection: Connection) -> None:
        waited.append(connection)
        wait(self, connection)

    monkeypatch.setattr(steps.Steps, "wait", watched)
    return waited


async def test_what_comes_fast_gathers_and_comes_whole(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        line.writer.write(CHUNKED)
        await say_fast(line)
        line.writer.write(b"0\r\n\r\n")
        await line.request()
        await line.say(ANSWER)
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream()
    sink = stream(upstream, provider)
    await asyncio.wait_for(sink.ended.wait(), 10)
    assert bytes(sink.body) == b"".join(map(event, range(MANY)))
    assert sink.events.count("data") < MANY / 4
    assert bytes((await ask(upstream, provider)).body) == b"ok", "and the connection is used again"
    assert len(provider.lines) == 1


async def test_what_is_no_event_stream_never_waits(serve: Serve, make_upstream: MakeUpstream, waits: list[Connection]) -> None:
    provider = await serve(fast)
    assert (await ask(make_upstream(), provider)).body
    assert not waits


async def test_the_usual_pace_and_first_events_never_wait(
    serve: Serve, make_upstream: MakeUpstream, waits: list[Connection]
) -> None:
    async def script(line: Line) -> None:
        await line.request()
        line.writer.write(CHUNKED)
        for number in range(40):  # a few together, as one token's events are, and then a while nothing
            if number % steps.IN_A_ROW == 0:
                await asyncio.sleep(2 / steps.FAST * steps.IN_A_ROW)
            line.writer.write(chunk(number))
            await until(lambda so_far=number: sink.body.endswith(event(so_far)))  # type: ignore[misc]  # a default is no argument
        line.writer.write(b"0\r\n\r\n")
        await line.gone()

    provider = await serve(script)
    sink = Events()
    stream(make_upstream(), provider, sink)
    await asyncio.wait_for(sink.ended.wait(), 10)
    assert sink.body.count(b"data:") == 40
    assert not waits


async def test_a_slow_client_stays_slow_beyond_the_step(
    serve: Serve, make_upstream: MakeUpstream, waits: list[Connection]
) -> None:
    provider = await serve(fast)
    sink = stream(make_upstream(), provider)
    await until(lambda: bool(waits))
    sink.call.pause_reading()
    before = len(sink.body)
    await asyncio.sleep(4 * steps.STEP)
    assert len(sink.body) == before
    sink.call.resume_reading()
    await asyncio.wait_for(sink.ended.wait(), 10)
    assert sink.body.count(b"data:") == MANY


async def test_who_leaves_before_the_step_is_gone(serve: Serve, make_upstream: MakeUpstream, waits: list[Connection]) -> None:
    async def script(line: Line) -> None:
        await line.request()
        line.writer.write(CHUNKED)
        await say_fast(line, 10 * MANY)
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream()
    sink = stream(upstream, provider)
    await until(lambda: bool(waits))
    sink.call.abort()
    await until(lambda: upstream.open_connections == 0)
    await asyncio.sleep(2 * steps.STEP)
    assert not sink.ended.is_set()


async def test_an_end_that_comes_before_the_step_loses_nothing(serve: Serve, make_upstream: MakeUpstream) -> None:
    """Neither where the connection's end is the stream's."""

    async def script(line: Line) -> None:
        await line.request()
        line.writer.write(HEAD + b"\r\n")
        for number in range(MANY):
            line.writer.write(event(number))
            await asyncio.sleep(0)

    provider = await serve(script)
    sink = stream(make_upstream(), provider)
    await asyncio.wait_for(sink.ended.wait(), 10)
    assert (sink.body.count(b"data:"), sink.error) == (MANY, None)


async def test_a_provider_that_closes_while_the_client_is_slow_cuts_nothing_off(
    serve: Serve, make_upstream: MakeUpstream
) -> None:
    """What the TLS layer has read ahead is not forgotten at the connection's end."""
    size = 300_000

    async def script(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
        await line.say(*(b"x" * 10_000 for _ in range(size // 10_000)), pause=0)
        line.shut_down()
        await line.gone()

    provider = await serve(script)

    class Pausing(Sink):
        def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001
            super().on_data(data, ended)
            call.pause_reading()
            asyncio.get_running_loop().call_later(0.05, call.resume_reading)

    sink = Pausing()
    call = send(make_upstream(), provider, sink)
    await asyncio.wait_for(sink.ended.wait(), 10)
    assert (len(sink.body), sink.error) == (size, None)
