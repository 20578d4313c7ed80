"""The gateway and a real vault on a PostgreSQL that goes away: calls are held, then refused, or served for the grace that was asked for."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.plane.conftest import House, Opener
from tests.plane.wire import Answer, Connection, until
from tests.support.proxy import Proxy, before_postgresql
from tests.support.vault import OPENAI_KEY, World, value, world_on

from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Role
from keybearer.gateway.limits import Limits
from keybearer.store.db import Database
from keybearer.vault.secrets import NewSecret

TRUST = 0.5


@dataclass
class Site:
    """A server whose way to its database can fail; another process's way never does."""

    house: House
    proxy: Proxy
    near: World
    person: Caller
    kept: Connection

    async def ask(self) -> Answer:
        """One more call on the kept connection."""
        await self.kept.send(self.house.request())
        return await self.kept.answer()

    async def lose(self, how: str) -> None:
        """The database goes away, and the process has noticed that it hears nothing any more."""
        self.proxy.silence() if how == "silence" else self.proxy.break_off(refuse=True)
        await until(lambda: not self.house.feed.is_trusted())


Begin = Callable[..., Any]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def begin(emptied_postgresql: tuple[str, str], open_house: Opener) -> Begin:
    """Open a site: ``async with begin(hold=0.5, grace=2) as site``."""

    @asynccontextmanager
    async def begun(hold: float = 10.0, grace: float = 0.0) -> AsyncIterator[Site]:
        root_key = os.urandom(32)
        async with AsyncExitStack() as stack:
            near = await Database.open(*emptied_postgresql)
            stack.push_async_callback(near.close)
            vault = (await world_on(near, root_key)).allowing("127.0.0.1")
            proxy, through = await stack.enter_async_context(before_postgresql(emptied_postgresql[0]))
            far = await Database.open(through)
            stack.push_async_callback(far.close)
            world = (await world_on(far, root_key)).allowing("127.0.0.1")
            limits, feed = Limits(hold_seconds=hold), {"trust": TRUST, "grace": grace}
            house = await stack.enter_async_context(open_house(world=world, limits=limits, feed=feed))
            stack.callback(proxy.heal)
            admin, person = await vault.person("root", Role.ADMIN), await vault.person("alice")
            await vault.providers.update(admin, "openai", {"base_url": f"http://127.0.0.1:{house.provider.port}"})
            await vault.secrets.create(person, NewSecret("openai", value(OPENAI_KEY), save_anyway=True))
            _, house.token = await vault.tokens.create(person, NewToken("test"))
            site = Site(house, proxy, vault, person, await house.connect())
            for _ in range(3):
                assert (await site.ask()).status == 200
            yield site

    return begun


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


LOSSES = ["silence", "break"]


@pytest.mark.parametrize("how", LOSSES)
async def test_a_call_is_held_and_served_when_the_database_is_back(begin: Begin, how: str) -> None:
    async with begin() as site:
        await site.lose(how)
        before = len(site.house.provider.received)
        asking: Awaitable[Answer] = asyncio.ensure_future(site.ask())
        await until(lambda: bool(site.house.plane._tasks))
        assert len(site.house.provider.received) == before
        site.proxy.heal()
        assert (await asking).status == 200
        assert len(site.house.provider.received) == before + 1


@pytest.mark.parametrize("how", LOSSES)
async def test_a_call_is_refused_when_it_was_held_for_long_enough(begin: Begin, how: str) -> None:
    async with begin(hold=0.3) as site:
        await site.lose(how)
        before = len(site.house.provider.received)
        answer = await site.ask()
        assert code(answer) == (503, "database_unreachable")
        assert len(site.house.provider.received) == before
        site.proxy.heal()
        await until(site.house.feed.is_trusted)
        assert (await site.ask()).status == 200


async def test_what_was_taken_away_meanwhile_serves_nobody_when_the_database_is_back(begin: Begin) -> None:
    async with begin() as site:
        await site.lose("silence")
        (secret,) = (await site.near.secrets.list(site.person)).items
        before = len(site.house.provider.received)
        asking = asyncio.ensure_future(site.ask())
        await until(lambda: bool(site.house.plane._tasks))
        await site.near.secrets.update(site.person, secret.id, {"is_active": False})
        site.proxy.heal()
        assert code(await asking) == (403, "key_inactive")
        assert len(site.house.provider.received) == before


async def test_a_grace_serves_what_is_known_and_nobody_else_until_it_ends(begin: Begin) -> None:
    async with begin(hold=0.3, grace=6.0) as site:  # long enough for what is asked meanwhile on a busy machine
        site.proxy.break_off(refuse=True)
        await asyncio.sleep(2 * TRUST)  # without a grace it would be over
        assert site.house.feed.is_trusted()
        assert [(await site.ask()).status for _ in range(3)] == [200] * 3
        _, site.house.token = await site.near.tokens.create(site.person, NewToken("new"))
        assert (await site.ask()).status == 503  # nobody here can say who that is
        await until(lambda: not site.house.feed.is_trusted(), 10)
        assert code(await site.ask()) == (503, "database_unreachable")
