"""From a name to a connection: resolve once, refuse if any answer is denied, connect to what was checked, verify the name."""

from __future__ import annotations

import asyncio
import socket
from uuid import UUID

import pytest
from tests.upstream.scripted import HOST, MakeUpstream, Resolver, Serve, Sink, answering, ask, send

from keybearer.errors import EgressRefused, UpstreamUnresolved
from keybearer.gateway.egress import origin_of
from keybearer.gateway.upstream import Target

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_a_resolver_that_changes_its_answer_after_the_check(serve: Serve, make_upstream: MakeUpstream) -> None:
    """DNS rebinding: the first answer is allowed, the second is not; the second must never be asked for."""
    provider = await serve(answering(ANSWER))
    resolver = Resolver(["127.0.0.1"], ["169.254.169.254"])
    upstream = make_upstream(resolver=resolver)
    assert bytes((await ask(upstream, provider)).body) == b"ok"
    assert resolver.asked == [HOST]


async def test_a_name_that_is_rebound_between_connections(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"))
    upstream = make_upstream(resolver=Resolver(["127.0.0.1"], ["10.0.0.1"]))
    assert (await ask(upstream, provider)).error is None
    assert isinstance((await ask(upstream, provider)).error, EgressRefused)
    assert len(provider.lines) == 1


@pytest.mark.parametrize(
    "denied", ["169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254", "::ffff:10.0.0.1", "0.0.0.0", "fe80::1%lo", "nonsense"]
)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_one_denied_answer_refuses_all(denied: str, place: str, serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    answer = [denied, "127.0.0.1"] if place == "first" else ["127.0.0.1", denied]
    sink = await ask(make_upstream(resolver=Resolver(answer)), provider)
    assert isinstance(sink.error, EgressRefused)
    assert (sink.sent, sink.events) == (False, ["failure"])
    assert not provider.lines, "nobody was connected to"


async def test_users_do_not_reach_what_only_admins_may(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    sink = await ask(make_upstream(), provider, target=Target.of_owner(provider.origin, UUID(int=5)))
    assert isinstance(sink.error, EgressRefused)
    assert not provider.lines


async def test_private_hosts_are_closed_without_an_exception(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    sink = await ask(make_upstream(allow=()), provider)
    assert isinstance(sink.error, EgressRefused)
    assert not provider.lines


@pytest.mark.parametrize("allow", [(HOST,), ("127.0.0.1",), ("127.0.0.0/8",)])
async def test_exceptions_open_private_hosts_for_admins(
    allow: tuple[str, ...], serve: Serve, make_upstream: MakeUpstream
) -> None:
    provider = await serve(answering(ANSWER))
    assert (await ask(make_upstream(allow=allow), provider)).error is None


async def test_an_exception_with_a_port_opens_that_port_only(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider, other = await serve(answering(ANSWER)), await serve(answering(ANSWER))
    upstream = make_upstream(allow=(f"{HOST}:{provider.port}",))
    assert (await ask(upstream, provider)).error is None
    assert isinstance((await ask(upstream, other)).error, EgressRefused)


async def test_literal_addresses_are_checked_and_not_resolved(serve: Serve, make_upstream: MakeUpstream, scheme: str) -> None:
    provider = await serve(answering(ANSWER))
    resolver = Resolver()
    upstream = make_upstream(resolver=resolver, allow=("127.0.0.1",))
    good = Target(origin_of(f"{scheme}://127.0.0.1:{provider.port}"), None, admin_defined=True)
    bad = Target(origin_of(f"{scheme}://127.0.0.2:{provider.port}"), None, admin_defined=True)
    assert (await ask(upstream, provider, target=good)).error is None
    assert isinstance((await ask(upstream, provider, target=bad)).error, EgressRefused)
    assert resolver.asked == []


async def test_the_next_address_is_tried_when_one_does_not_connect(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(resolver=Resolver(["127.0.0.9", "127.0.0.1"]))  # nobody listens on the first
    sink = await ask(upstream, provider)
    assert (sink.error, sink.events.count("may_send")) == (None, 1)


async def test_a_silent_address_leaves_time_for_the_next(serve: Serve, make_upstream: MakeUpstream, scheme: str) -> None:
    provider = await serve(answering(ANSWER))
    with socket.socket() as full:
        full.bind(("127.0.0.9", provider.port))
        full.listen(0)
        fillers = [await _begin_connecting(provider.port) for _ in range(4)]  # the backlog is full: no more connect
        upstream = make_upstream(resolver=Resolver(["127.0.0.9", "127.0.0.1"]), connect_timeout=1.0)
        sink = await ask(upstream, provider)
        for filler in fillers:
            filler.close()
    assert sink.error is None


async def _begin_connecting(port: int) -> socket.socket:
    filler = socket.socket()
    filler.setblocking(False)
    filler.connect_ex(("127.0.0.9", port))
    await asyncio.sleep(0)
    return filler


async def test_a_name_without_addresses(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    sink = await ask(make_upstream(resolver=Resolver([])), provider)
    assert isinstance(sink.error, UpstreamUnresolved)
    assert (sink.sent, sink.events) == (False, ["failure"])


async def test_abort_while_dialing_leaves_nothing_behind(serve: Serve, make_upstream: MakeUpstream) -> None:
    provider = await serve(answering(ANSWER))
    upstream = make_upstream(resolver=Resolver(delay=0.02))
    for wait in (None, 0, 0.01, 0.02, 0.021, 0.022, 0.024, 0.03):
        sink = Sink()
        call = send(upstream, provider, sink)
        if wait is not None:
            await asyncio.sleep(wait)
        heard = list(sink.events)
        call.abort()
        await asyncio.sleep(0.05)
        assert sink.events == heard
        assert all(pool.dialing == 0 for pool in upstream._pools.values())
    assert upstream.open_connections <= 1
    assert (await ask(upstream, provider)).error is None
