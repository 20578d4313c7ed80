"""One request, one answer, over real sockets: what comes through, what fails and how, and what becomes of the connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from tests.upstream.scripted import Line, MakeUpstream, Serve, Sink, answering, answering_once, ask, send, until

from keybearer.errors import KeybearerError, TrustLost, UpstreamMalformed, UpstreamUnreachable

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Answered:
    """The provider says ``pieces``, then closes if ``closes``; the sink gets ``body``; the connection is kept or not."""

    pieces: tuple[bytes, ...]
    body: bytes = b""
    status: int = 200
    head_only: bool = False
    closes: bool = False
    is_kept: bool = False


ANSWERED = {
    "length": Answered((OK + b"Content-Length: 5\r\n\r\nhello",), b"hello", is_kept=True),
    "length in pieces": Answered(
        (b"HTTP/1", b".1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r", b"\nhel", b"lo"), b"hello", is_kept=True
    ),
    "chunked": Answered((CHUNKED, b"5\r\nhel", b"lo\r\n0\r\n\r\n"), b"hello", is_kept=True),
    "last chunk alone": Answered((CHUNKED + b"5\r\nhello\r\n", b"0\r\n\r\n"), b"hello", is_kept=True),
    "until the end": Answered((OK + b"\r\nhel", b"lo"), b"hello", closes=True),
    "no body": Answered((OK + b"Content-Length: 0\r\n\r\n",), is_kept=True),
    "204": Answered((b"HTTP/1.1 204 No Content\r\n\r\n",), status=204, is_kept=True),
    "304": Answered((b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",), status=304, is_kept=True),
    "HEAD": Answered((OK + b"Content-Length: 7\r\n\r\n",), head_only=True),
    "100, 103, then the answer": Answered(
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nok"),
        b"ok",
        is_kept=True,
    ),
    "close": Answered((OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",), b"hello"),
    "HTTP/1.0": Answered((b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",), b"hello"),
    "an error": Answered((b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nhello",), b"hello", status=500, is_kept=True),
    "bytes after the end": Answered((OK + b"Content-Length: 5\r\n\r\nhelloX",), b"hello"),
    "a second answer after the end": Answered(
        (OK + b"Content-Length: 5\r\n\r\nhello" + OK + b"Content-Length: 4\r\n\r\nevil",), b"hello"
    ),
    "a second answer later": Answered((OK + b"Content-Length: 5\r\n\r\nhello", OK + b"Content-Length: 4\r\n\r\nevil"), b"hello"),
    "a line break later": Answered((OK + b"Content-Length: 5\r\n\r\nhello", b"\r\n"), b"hello"),
    "the end right after": Answered((OK + b"Content-Length: 5\r\n\r\nhello",), b"hello", closes=True),
    "a body with HEAD": Answered((OK + b"Content-Length: 5\r\n\r\nhello",), head_only=True),
    "a body with 204": Answered((b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", b"hello"), status=204),
}


@pytest.mark.parametrize("case", ANSWERED.values(), ids=ANSWERED.keys())
async def test_answered(case: Answered, serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve((answering_once if case.closes else answering)(*case.pieces))
    upstream = make_upstream()
    sink = await ask(upstream, provider, head_only=case.head_only)
    assert (sink.status, bytes(sink.body), sink.error) == (case.status, case.body, None)
    assert sink.events[:2] == ["may_send", "response"]
    assert sink.events[-1] == "complete"
    if case.is_kept:
        assert upstream.idle_connections == 1
        again = await ask(upstream, provider)
        assert (again.status, bytes(again.body)) == (case.status, case.body)
        assert len(provider.lines) == 1
    else:
        await until(lambda: upstream.open_connections == 0)


@dataclass(frozen=True)
class Failed:
    """The provider says ``pieces``, then closes if ``closes``; the sink hears of a failure."""

    pieces: tuple[bytes, ...]
    error: type[KeybearerError] = UpstreamMalformed
    closes: bool = False
    is_answered: bool = False


FAILED = {
    "no answer": Failed((), UpstreamUnreachable, closes=True),
    "half a head": Failed((b"HTTP/1.1 200 OK\r\nContent-",), closes=True),
    "only an interim answer": Failed((b"HTTP/1.1 100 Continue\r\n\r\n",), closes=True),
    "half a body": Failed((OK + b"Content-Length: 5\r\n\r\nhel",), closes=True, is_answered=True),
    "half a chunk": Failed((CHUNKED + b"5\r\nhel",), closes=True, is_answered=True),
    "no last chunk": Failed((CHUNKED + b"5\r\nhello\r\n",), closes=True, is_answered=True),
    "both lengths": Failed((OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",)),
    "two lengths": Failed((OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",)),
    "a bad chunk size": Failed((CHUNKED, b"5\r\nhello\r\n", b"xyz\r\n"), is_answered=True),
    "a gzip transfer coding": Failed((OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",)),
    "NUL in a header": Failed((OK + b"A: \x00\r\n\r\n",)),
    "bare CR in a header": Failed((OK + b"A: b\rC: d\r\n\r\n",)),
    "bare LF": Failed((b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",)),
    "obs-fold": Failed((OK + b"A: b\r\n c\r\n\r\n",)),
    "headers too large": Failed((OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n",)),
    "too many headers": Failed((OK + b"A: b\r\n" * 101 + b"\r\n",)),
    "101": Failed((b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nxyz",)),
    "not HTTP": Failed((b"SSH-2.0-OpenSSH_9.9\r\n",)),
    "HTTP/2": Failed((b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",)),
}


@pytest.mark.parametrize("case", FAILED.values(), ids=FAILED.keys())
async def test_failed(case: Failed, serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve((answering_once if case.closes else answering)(*case.pieces))
    upstream = make_upstream()
    sink = await ask(upstream, provider)
    assert type(sink.error) is case.error
    assert sink.sent is True
    assert bool(sink.status) is case.is_answered
    assert sink.events.count("may_send") == 1, "what may have been sent is not sent again"
    assert sink.events[-1] == "failure"
    await until(lambda: upstream.open_connections == 0)


async def test_a_reset_is_a_failure(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(OK + b"Content-Length: 50\r\n\r\n", b"hello")
        await asyncio.sleep(0.02)
        line.reset()

    provider = await serve(script)
    upstream = make_upstream()
    sink = await ask(upstream, provider)
    assert isinstance(sink.error, UpstreamMalformed)
    assert (sink.status, bytes(sink.body), sink.sent) == (200, b"hello", True)
    assert upstream.open_connections == 0


async def test_the_request_arrives_as_written_and_in_one_piece(serve: Serve, make_upstream: MakeUpstream) -> None:
    requests: list[bytes] = []

    async def script(line: Line) -> None:
        while True:
            requests.append(await line.request())
            await line.say(OK + b"Content-Length: 0\r\n\r\n")

    provider = await serve(script)
    upstream = make_upstream()
    request = provider.request(body=b'{"model": "m"}')
    for given in (request, [request[:20], request[20:]], [request]):
        sink = Sink()
        send(upstream, provider, sink, given)
        await sink.ended.wait()
    assert requests == [request] * 3


async def test_an_early_answer_to_a_large_request_comes_through_and_ends_the_connection(
    serve: Serve, make_upstream: MakeUpstream
) -> None:
    async def script(line: Line) -> None:
        await line.reader.readuntil(b"\r\n\r\n")
        await line.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        assert await line.gone() is not None

    provider = await serve(script)
    upstream = make_upstream()
    sink = Sink()
    send(upstream, provider, sink, provider.request(body=b"x" * 20_000_000))
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert (sink.status, bytes(sink.body), sink.error) == (413, b"no", None)
    await until(lambda: upstream.open_connections == 0)


async def test_nothing_is_sent_when_may_send_refuses(serve: Serve, make_upstream: MakeUpstream) -> None:
    heard: list[bytes] = []

    async def script(line: Line) -> None:
        while True:
            heard.append(await line.request())
            await line.say(OK + b"Content-Length: 2\r\n\r\nok")

    provider = await serve(script)
    upstream = make_upstream()
    for connections in (0, 1):  # on a new connection, then on an idle one
        assert len(heard) == connections
        sink = Sink(refusal=TrustLost())
        send(upstream, provider, sink)
        assert "failure" not in sink.events, "the sink is not called back before send has returned"
        await sink.ended.wait()
        assert isinstance(sink.error, TrustLost)
        assert sink.sent is False
        assert len(heard) == connections
        assert upstream.idle_connections == 1, "the connection is as good as before"
        await asyncio.sleep(0.02)  # TLS session tickets that are still under way look like bytes on an idle connection
        assert bytes((await ask(upstream, provider)).body) == b"ok"
    assert len(provider.lines) == 1


async def test_a_warm_send_writes_before_it_returns_and_calls_back_after(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(OK + b"Content-Length: 2\r\n\r\nok"))
    upstream = make_upstream()
    await ask(upstream, provider)
    tasks = len(asyncio.all_tasks())
    sink = Sink()
    send(upstream, provider, sink)
    assert sink.events == ["may_send"]
    assert len(asyncio.all_tasks()) == tasks
    await sink.ended.wait()


async def test_the_connection_is_free_when_on_complete_is_called(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(OK + b"Content-Length: 2\r\n\r\nok"))
    upstream = make_upstream()
    last = Sink()

    class Chained(Sink):
        def on_complete(self) -> None:
            super().on_complete()
            send(upstream, provider, last)

    send(upstream, provider, Chained())
    await asyncio.wait_for(last.ended.wait(), 5)
    assert bytes(last.body) == b"ok"
    assert len(provider.lines) == 1


async def test_a_sink_that_raises_loses_its_connection_and_nobody_elses(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(OK + b"Content-Length: 2\r\n\r\nok"))
    upstream = make_upstream()
    seen: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: seen.append(context))

    class Broken(Sink):
        def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001
            raise ZeroDivisionError

    sink = Broken()
    send(upstream, provider, sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert sink.error is not None
    await until(lambda: upstream.open_connections == 0)
    loop.set_exception_handler(before)
    assert isinstance(seen[0]["exception"], ZeroDivisionError), "the loop logs it"
    assert bytes((await ask(upstream, provider)).body) == b"ok"


async def test_the_truncation_of_a_body_without_length_is_seen_under_tls(
    serve: Serve, make_upstream: MakeUpstream, scheme: str, anyio_backend: tuple[str, dict[str, bool]]
) -> None:
    """RFC 9112, section 9.8: without close_notify nobody knows whether an attacker cut it. Python's own loop cannot tell."""

    async def script(line: Line) -> None:
        await line.request()
        await line.say(OK + b"\r\nhello")
        await asyncio.sleep(0.02)
        line.shut_down()

    provider = await serve(script)
    sink = await ask(make_upstream(), provider)
    assert bytes(sink.body) == b"hello"
    if scheme == "https" and anyio_backend[1]["use_uvloop"]:
        assert isinstance(sink.error, UpstreamMalformed)
    else:
        assert sink.error is None
