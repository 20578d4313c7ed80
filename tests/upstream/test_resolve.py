"""The system's resolver: a small cache, shared lookups, bounds."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.upstream.scripted import until

from keybearer.errors import Overloaded, UpstreamUnresolved
from keybearer.gateway.resolve import SystemResolver


class Names:
    """Stands for the loop's getaddrinfo: counts, waits, answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay: float = 0) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.delay = delay
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self)

    async def __call__(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        if host.startswith("missing"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", port, 0, 0)),
        ]


async def test_names_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    resolver = SystemResolver(cache_seconds=0.05)
    assert await resolver.resolve("a.example", 443) == ("192.0.2.1", "2001:db8::1")
    await resolver.resolve("a.example", 443)
    assert names.asked == ["a.example"]
    await asyncio.sleep(0.06)
    await resolver.resolve("a.example", 443)
    assert names.asked == ["a.example"] * 2


async def test_failures_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    resolver = SystemResolver()
    for _ in range(2):
        with pytest.raises(UpstreamUnresolved):
            await resolver.resolve("missing.example", 443)
    assert len(names.asked) == 2
    assert not resolver._running


async def test_lookups_of_one_name_share_and_survive_a_caller_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, delay=0.05)
    resolver = SystemResolver()
    leaving = asyncio.ensure_future(resolver.resolve("a.example", 443))
    staying = [asyncio.ensure_future(resolver.resolve("a.example", 443)) for _ in range(5)]
    await asyncio.sleep(0.01)
    leaving.cancel()
    assert await asyncio.gather(*staying) == [("192.0.2.1", "2001:db8::1")] * 5
    assert names.asked == ["a.example"]


async def test_a_lookup_keeps_its_place_when_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user's slow name servers would occupy every thread, lookup after lookup given up."""
    names = Names(monkeypatch, delay=0.05)
    resolver = SystemResolver(at_once=2)
    for number in range(6):
        waiting = asyncio.ensure_future(resolver.resolve(f"{number}.example", 443))
        await asyncio.sleep(0)
        waiting.cancel()
    await until(lambda: len(names.asked) == 6 and names.at_once == 0)
    assert names.most_at_once == 2


async def test_names_in_waiting_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, delay=0.05)
    resolver = SystemResolver(at_once=1)
    monkeypatch.setattr("keybearer.gateway.resolve.MAX_NAMES", 3)
    waiting = [asyncio.ensure_future(resolver.resolve(f"{number}.example", 443)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await resolver.resolve("more.example", 443)
    await asyncio.gather(*waiting)
    assert len(resolver._known) <= 3


async def test_the_system_resolves_for_real() -> None:
    addresses = await SystemResolver().resolve("localhost", 80)
    assert set(addresses) <= {"127.0.0.1", "::1"}
    with pytest.raises(UpstreamUnresolved):
        await SystemResolver().resolve("keybearer.invalid", 80)
