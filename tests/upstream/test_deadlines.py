"""Time-outs: name, connect and TLS together; the first byte; between bytes. And what must not time out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import Context

import pytest
from tests.upstream.scripted import HOST, Line, MakeUpstream, Resolver, Serve, Sink, answering, ask, send, until

from keybearer.errors import UpstreamTimeout, UpstreamTls, UpstreamUnreachable
from keybearer.gateway.egress import origin_of
from keybearer.gateway.upstream import Target

OK = b"HTTP/1.1 200 OK\r\n"


async def silent(line: Line) -> None:
    await line.request()
    await line.gone()


async def test_the_first_byte(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(silent)
    upstream = make_upstream(read_timeout=0.1)
    started = asyncio.get_running_loop().time()
    sink = await ask(upstream, provider)
    waited = asyncio.get_running_loop().time() - started
    assert isinstance(sink.error, UpstreamTimeout)
    assert sink.sent is True
    assert 0.08 < waited < 1
    await until(lambda: upstream.open_connections == 0)


@pytest.mark.parametrize("said", [OK, OK + b"Content-Length: 50\r\n\r\n", OK + b"Content-Length: 50\r\n\r\nhello"])
async def test_between_bytes(said: bytes, serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(said)
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream(read_timeout=0.1)
    sink = await ask(upstream, provider)
    assert isinstance(sink.error, UpstreamTimeout)
    assert bytes(sink.body) == (b"hello" if said.endswith(b"hello") else b"")
    await until(lambda: upstream.open_connections == 0)


async def test_a_slow_drip_does_not_time_out(serve: Serve, make_upstream: MakeUpstream) -> None:
    body = b"drip" * 5
    provider = await serve(answering(OK + b"Content-Length: 20\r\n\r\n", *(body[i : i + 1] for i in range(20)), pause=0.03))
    sink = await ask(make_upstream(read_timeout=0.2), provider)
    assert (bytes(sink.body), sink.error) == (body, None)


async def test_a_paused_call_does_not_time_out_and_goes_on(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(OK + b"Content-Length: 10\r\n\r\nhello", b"world", pause=0.02)
        await line.gone()

    provider = await serve(script)
    upstream = make_upstream(read_timeout=0.1)
    sink = Sink()
    call = send(upstream, provider, sink)
    await until(lambda: bytes(sink.body) == b"hello")
    call.pause_reading()
    await asyncio.sleep(0.4)
    assert sink.error is None
    assert bytes(sink.body) in (b"hello", b"helloworld")  # TLS may have decrypted more before it heard of the pause
    call.resume_reading()
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert (bytes(sink.body), sink.error) == (b"helloworld", None)


async def test_a_call_times_out_again_after_it_was_resumed(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(silent)
    sink = Sink()
    call = send(make_upstream(read_timeout=0.1), provider, sink)
    call.pause_reading()
    await asyncio.sleep(0.3)
    assert sink.error is None
    call.resume_reading()
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert isinstance(sink.error, UpstreamTimeout)


async def test_a_provider_that_takes_no_request_bytes_times_out(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport can
        await asyncio.sleep(5)

    provider = await serve(script)
    upstream = make_upstream(read_timeout=0.15)
    sink = Sink()
    send(upstream, provider, sink, provider.request(body=b"x" * 50_000_000))
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert isinstance(sink.error, UpstreamTimeout)
    await until(lambda: upstream.open_connections == 0)


async def test_a_slow_upload_does_not_time_out(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        taken, slow_until = 0, asyncio.get_running_loop().time() + 1.0
        while taken < len(request):
            taken += len(await line.reader.read(65_536))
            if asyncio.get_running_loop().time() < slow_until:
                await asyncio.sleep(0.01)
        await line.say(OK + b"Content-Length: 2\r\n\r\nok")
        await line.gone()

    provider = await serve(script)
    request = provider.request(body=b"x" * 30_000_000)
    sink = Sink()
    started = asyncio.get_running_loop().time()
    send(make_upstream(read_timeout=0.6), provider, sink, request)
    await asyncio.wait_for(sink.ended.wait(), 20)
    assert (bytes(sink.body), sink.error) == (b"ok", None)
    assert asyncio.get_running_loop().time() - started > 0.9


async def test_a_name_that_takes_too_long(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(silent)
    upstream = make_upstream(connect_timeout=0.05, resolver=Resolver(delay=5))
    sink = await ask(upstream, provider)
    assert isinstance(sink.error, UpstreamTimeout)
    assert (sink.sent, sink.events) == (False, ["failure"])


async def test_a_tls_handshake_that_never_comes(make_upstream: MakeUpstream) -> None:
    """TCP connects by itself; nobody speaks TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = origin_of(f"https://{HOST}:{listener.getsockname()[1]}")
        upstream = make_upstream(connect_timeout=0.1)
        sink = Sink()
        upstream.send(Target(origin, None, admin_defined=True), b"GET / HTTP/1.1\r\n\r\n", sink)
        await asyncio.wait_for(sink.ended.wait(), 5)
    assert isinstance(sink.error, UpstreamTimeout)
    assert sink.sent is False
    assert upstream.open_connections == 0


async def test_a_port_where_nobody_listens(make_upstream: MakeUpstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = origin_of(f"https://{HOST}:{listener.getsockname()[1]}")
    sink = Sink()
    make_upstream().send(Target(origin, None, admin_defined=True), b"GET / HTTP/1.1\r\n\r\n", sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert isinstance(sink.error, UpstreamUnreachable)
    assert "127.0.0.1" not in sink.error.message
    assert sink.sent is False


async def test_tls_to_a_plain_server_and_plain_to_a_tls_server(serve: Serve, make_upstream: MakeUpstream, scheme: str) -> None:
    async def script(line: Line) -> None:
        await line.reader.read(100)
        await line.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    provider = await serve(script)
    other = origin_of(f"{'http' if scheme == 'https' else 'https'}://{HOST}:{provider.port}")
    sink = Sink()
    make_upstream().send(Target(other, None, admin_defined=True), provider.request(), sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    if scheme == "http":
        assert isinstance(sink.error, UpstreamTls)
        assert sink.sent is False
    else:
        assert sink.error is not None
        assert sink.status == 0


async def test_there_is_no_timer_per_call(serve: Serve, make_upstream: MakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = await serve(answering(OK + b"Content-Length: 2\r\n\r\nok"))
    upstream = make_upstream()
    await ask(upstream, provider)
    armed: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def watched(
        delay: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        armed.append(delay)
        return call_later(delay, callback, *args, context=context)

    monkeypatch.setattr(loop, "call_later", watched)
    for _ in range(20):
        sink = Sink()
        send(upstream, provider, sink)
        await sink.ended.wait()
    assert not armed
