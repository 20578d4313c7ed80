"""Back-pressure both ways, and large bodies whole."""

from __future__ import annotations

import asyncio
import hashlib

from tests.upstream.scripted import Line, MakeUpstream, Serve, Sink, ask, send, until

SIZE = 24_000_000


async def test_a_paused_call_makes_the_provider_wait(serve: Serve, make_upstream: MakeUpstream) -> None:
    written = 0

    async def script(line: Line) -> None:
        nonlocal written
        await line.request()
        line.writer.transport.set_write_buffer_limits(high=65536)
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // 100_000):
            await line.say(b"x" * 100_000)
            written += 100_000
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream()

    class Pausing(Sink):
        def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001
            super().on_data(data, ended)
            if len(self.body) == len(data):
                call.pause_reading()

    sink = Pausing()
    call = send(upstream, provider, sink)
    await until(lambda: len(sink.body) > 0)
    await asyncio.sleep(0.3)
    before = (len(sink.body), written)
    await asyncio.sleep(0.1)
    assert (len(sink.body), written) == before, "nothing moves while paused"
    assert len(sink.body) < 1_000_000
    assert written < SIZE, "the provider is held up by the kernel's buffers"
    call.resume_reading()
    await asyncio.wait_for(sink.ended.wait(), 20)
    assert (len(sink.body), sink.error) == (SIZE, None)


async def test_a_pause_before_the_connection_is_there_holds(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await line.gone()

    provider = await serve(script)
    sink = Sink()
    call = send(make_upstream(), provider, sink)
    call.pause_reading()
    await until(lambda: sink.events == ["may_send"])
    await asyncio.sleep(0.1)
    assert sink.events == ["may_send"]
    call.resume_reading()
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert bytes(sink.body) == b"ok"


async def test_a_connection_that_was_paused_when_its_answer_ended_reads_on_for_the_next(
    serve: Serve, make_upstream: MakeUpstream
) -> None:
    async def script(line: Line) -> None:
        while True:
            await line.request()
            await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    provider = await serve(script)
    upstream = make_upstream()

    class Pausing(Sink):
        def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
            super().on_response(status, headers)
            call.pause_reading()

    sink = Pausing()
    call = send(upstream, provider, sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert bytes((await ask(upstream, provider)).body) == b"ok"
    assert len(provider.lines) == 1


async def test_a_large_request_waits_for_the_provider_and_arrives_whole(serve: Serve, make_upstream: MakeUpstream) -> None:
    digest = hashlib.sha256()
    go = asyncio.Event()

    async def script(line: Line) -> None:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport can
        await go.wait()
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]
        left = total
        while left:
            data = await line.reader.read(500_000)
            digest.update(data)
            left -= len(data)
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream()
    body = bytes(range(256)) * (SIZE // 256)
    head = provider.request(body=body)[: -len(body)]
    total = len(head) + len(body)
    sink = Sink()
    send(upstream, provider, sink, [head, body[:1000], body[1000:]])
    await until(lambda: upstream.open_connections == 1)
    await asyncio.sleep(0.2)
    connection = next(iter(upstream._connections))
    held = sum(map(len, connection._unwritten))
    assert held > SIZE / 2, "most of it has not been handed to the transport"
    assert connection.transport.get_write_buffer_size() < 2_000_000
    go.set()
    await asyncio.wait_for(sink.ended.wait(), 20)
    assert (bytes(sink.body), sink.error) == (b"ok", None)
    assert digest.digest() == hashlib.sha256(head + body).digest()
    assert upstream.idle_connections == 1
