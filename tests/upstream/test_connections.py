"""Which connections are used again, by whom, for how long; and what closes them."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import pytest
from tests.upstream.scripted import Line, MakeUpstream, Provider, Resolver, Serve, Sink, answering, ask, send, until

from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.errors import EgressRefused, Overloaded
from keybearer.gateway.egress import origin_of
from keybearer.gateway.upstream import Limits, Target

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


async def test_requests_one_after_the_other_share_a_connection(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    for _ in range(20):
        assert bytes((await ask(upstream, provider)).body) == b"ok"
    assert len(provider.lines) == 1


async def test_requests_at_once_have_their_own_connections_and_the_last_used_comes_first(
    serve: Serve, make_upstream: MakeUpstream
) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    await asyncio.gather(*(ask(upstream, provider) for _ in range(5)))
    assert len(provider.lines) == 5
    assert upstream.idle_connections == 5
    for _ in range(10):
        await ask(upstream, provider)
    assert len(provider.lines) == 5


async def test_bytes_on_an_idle_connection_close_it(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.say(ANSWER, EVIL, pause=0.03)
        assert await line.gone()

    provider = await serve(script, answering(ANSWER))
    upstream = make_upstream()
    await ask(upstream, provider)
    await until(lambda: upstream.open_connections == 0)
    assert bytes((await ask(upstream, provider)).body) == b"ok"
    assert len(provider.lines) == 2


async def test_bytes_that_wait_in_the_kernel_are_no_answer_to_the_next_request(serve: Serve, make_upstream: MakeUpstream) -> None:
    """The unsolicited answer has arrived, but the loop has not read it yet when the next caller sends."""
    said = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(ANSWER)
        await asyncio.sleep(0.02)
        line.writer.write(EVIL)
        said.set()
        assert await line.gone()

    provider = await serve(script, answering(ANSWER))
    upstream = make_upstream()
    await ask(upstream, provider)
    await said.wait()
    time.sleep(0.02)  # noqa: ASYNC251  # the loop must not run: the bytes are to stay in the kernel
    sink = Sink()
    send(upstream, provider, sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    assert bytes(sink.body) == b"ok"
    assert len(provider.lines) == 2


async def test_a_connection_that_the_provider_closed_while_idle_is_not_used(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def once(line: Line) -> None:
        await line.request()
        await line.say(ANSWER)

    provider = await serve(once, once, answering(ANSWER))
    upstream = make_upstream()
    await ask(upstream, provider)
    time.sleep(0.05)  # noqa: ASYNC251  # the end is in the kernel, unseen by the loop
    sink = await ask(upstream, provider)
    assert bytes(sink.body) == b"ok"
    assert sink.events.count("may_send") == 1, "nothing was sent on the dead connection, so may_send was not asked for it"
    await until(lambda: upstream.open_connections == 0)
    assert bytes((await ask(upstream, provider)).body) == b"ok"


async def test_idle_connections_close_after_the_limit(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(limits=Limits(idle_seconds=0.05), read_timeout=0.4)
    await ask(upstream, provider)
    assert upstream.idle_connections == 1
    await until(lambda: upstream.open_connections == 0)
    assert upstream._sweeper is None, "no timer without a connection"


async def test_an_expired_idle_connection_is_not_used_before_it_is_swept(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(limits=Limits(idle_seconds=0.02), read_timeout=60)
    await ask(upstream, provider)
    await asyncio.sleep(0.03)
    await ask(upstream, provider)
    assert len(provider.lines) == 2


async def test_old_connections_are_not_used_again(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(limits=Limits(max_age_seconds=0.02))
    await ask(upstream, provider)
    await asyncio.sleep(0.03)
    await ask(upstream, provider)
    assert len(provider.lines) == 2


@pytest.mark.parametrize(("header", "kept"), [(b"timeout=0", 0), (b"timeout=1", 0), (b"timeout=5, max=9", 1)])
async def test_the_idle_time_that_a_provider_announces_is_honoured_with_a_margin(
    header: bytes,
    kept: int,
    serve: Serve,
    make_upstream: MakeUpstream,
) -> None:
    provider = await serve(answering(b"HTTP/1.1 200 OK\r\nKeep-Alive: " + header + b"\r\nContent-Length: 0\r\n\r\n"))
    upstream = make_upstream()
    await ask(upstream, provider)
    assert upstream.idle_connections == kept


async def test_no_more_idle_connections_are_kept_than_the_limit(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(limits=Limits(idle_per_pool=2))
    await asyncio.gather(*(ask(upstream, provider) for _ in range(6)))
    assert upstream.idle_connections == 2
    await until(lambda: upstream.open_connections == 2)


async def test_over_the_limit_of_connections_is_refused_at_once(serve: Serve, make_upstream: MakeUpstream) -> None:
    release = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await release.wait()
        await line.say(ANSWER)

    provider = await serve(script)
    upstream = make_upstream(limits=Limits(open_per_pool=3))
    waiting = [asyncio.ensure_future(ask(upstream, provider)) for _ in range(3)]
    await until(lambda: len(provider.lines) == 3)
    refused = await ask(upstream, provider)
    assert isinstance(refused.error, Overloaded)
    assert refused.error.retry_after
    assert refused.sent is False
    assert refused.events == ["failure"]
    release.set()
    assert [bytes(sink.body) for sink in await asyncio.gather(*waiting)] == [b"ok"] * 3
    await until(lambda: upstream.open_connections == 0)
    assert (await ask(upstream, provider)).error is None


async def test_the_limit_counts_connections_that_are_being_opened(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(limits=Limits(open_per_pool=2), resolver=Resolver(delay=0.05))
    sinks = await asyncio.gather(*(ask(upstream, provider) for _ in range(5)))
    assert sorted(type(sink.error).__name__ for sink in sinks) == [
        "NoneType",
        "NoneType",
        "Overloaded",
        "Overloaded",
        "Overloaded",
    ]


def targets(provider: Provider) -> list[Target]:
    """The same origin for the system and for two users."""
    return [
        Target(provider.origin, None, admin_defined=True),
        Target(provider.origin, UUID(int=1), admin_defined=True),
        Target(provider.origin, UUID(int=2), admin_defined=True),
    ]


async def test_connections_are_not_shared_between_owners(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    for _ in range(3):
        for target in targets(provider):
            await ask(upstream, provider, target=target)
    assert len(provider.lines) == 3
    assert upstream.idle_connections == 3


async def test_a_users_provider_does_not_ride_on_a_connection_that_an_admin_may_open(
    serve: Serve, make_upstream: MakeUpstream
) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    await ask(upstream, provider, target=Target(provider.origin, None, admin_defined=True))
    for pool in (None, UUID(int=1)):
        sink = await ask(upstream, provider, target=Target(provider.origin, pool, admin_defined=False))
        assert isinstance(sink.error, EgressRefused)
    assert len(provider.lines) == 1


def test_targets_of_owners() -> None:
    origin = origin_of("https://api.example")
    system = Target.of_owner(origin, None)
    assert (system.pool, system.admin_defined) == (None, True)
    assert Target.of_owner(origin, SYSTEM_OWNER_ID).key == system.key
    user = Target.of_owner(origin, UUID(int=7))
    assert (user.pool, user.admin_defined) == (UUID(int=7), False)
    assert user.key != system.key


async def test_abort_closes_at_once_and_says_nothing(serve: Serve, make_upstream: MakeUpstream) -> None:
    gone = asyncio.Event()

    async def script(line: Line) -> None:
        await line.request()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        assert await line.gone()
        gone.set()

    provider = await serve(script)
    upstream = make_upstream()
    sink = Sink()
    call = send(upstream, provider, sink)
    await until(lambda: bytes(sink.body) == b"hello")
    heard = list(sink.events)
    call.abort()
    await asyncio.wait_for(gone.wait(), 5)
    assert sink.events == heard
    assert upstream.open_connections == 0
    call.abort()
    call.pause_reading()
    call.resume_reading()


async def test_abort_from_inside_a_callback(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()

    class Leaving(Sink):
        def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
            super().on_response(status, headers)
            call.abort()

    sink = Leaving()
    call = send(upstream, provider, sink)
    await until(lambda: sink.status == 200)
    await until(lambda: upstream.open_connections == 0)
    assert sink.events == ["may_send", "response"]


async def test_a_late_abort_does_not_meet_the_next_callers_request(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    first, second = Sink(), Sink()
    old = send(upstream, provider, first)
    await first.ended.wait()
    send(upstream, provider, second)
    old.abort()
    old.pause_reading()
    await asyncio.wait_for(second.ended.wait(), 5)
    assert bytes(second.body) == b"ok"
    assert len(provider.lines) == 1


async def test_close_ends_calls_and_dials_and_refuses_new_ones(serve: Serve, make_upstream: MakeUpstream) -> None:
    async def script(line: Line) -> None:
        await line.request()
        await line.gone()

    provider = await serve(script)
    resolver = Resolver(["127.0.0.1"])
    upstream = make_upstream(resolver=resolver)
    waiting, dialing, late = Sink(), Sink(), Sink()
    send(upstream, provider, waiting)
    await until(lambda: len(provider.lines) == 1)
    resolver.delay = 5
    send(upstream, provider, dialing)
    await asyncio.sleep(0.01)
    await upstream.close()
    send(upstream, provider, late)
    await asyncio.wait_for(asyncio.gather(*(sink.ended.wait() for sink in (waiting, dialing, late))), 5)
    assert [sink.error.code for sink in (waiting, dialing, late) if sink.error] == ["unavailable"] * 3
    assert [sink.sent for sink in (waiting, dialing, late)] == [True, False, False]
