"""Behind a pooler in transaction mode one backend serves all tenants in turn: what one leaves behind, the next must not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest
import sqlalchemy as sa
from tests.store import wall
from tests.support.pooler import KINDS, pooled
from tests.support.postgresql import Server
from tests.support.vault import OPENAI_KEY, World, value, world_on

from keybearer.domain import Caller, Grade
from keybearer.errors import KeyMissing
from keybearer.store.changes import Change, Feed
from keybearer.store.db import Actor, Database
from keybearer.store.schema import metadata, secret
from keybearer.vault.secrets import NewSecret

NEW = NewSecret("openai", value(OPENAI_KEY))


@pytest.fixture(params=KINDS)
async def pooled_url(request: pytest.FixtureRequest, emptied_postgresql: tuple[str, str]) -> AsyncIterator[str]:
    async with pooled(request.param, emptied_postgresql[0]) as url:
        yield url


@pytest.fixture
async def pooled_world(pooled_url: str, emptied_postgresql: tuple[str, str]) -> AsyncIterator[World]:
    db = await Database.open(pooled_url, emptied_postgresql[1])
    yield await world_on(db)
    await db.close()


async def test_two_tenants_at_once_see_what_is_theirs(pooled_world: World) -> None:
    world = pooled_world
    people = [await world.person(name) for name in ("ada", "bob", "cleo")]
    for person in people:
        await world.secrets.create(person, replace(NEW, name=str(person.user_id)))

    async def look(person: Caller) -> None:
        for _ in range(12):
            (listed,) = (await world.secrets.list(person)).items
            assert listed.name == str(person.user_id)
            async with world.db.read(Actor.user(person.user_id)) as tx:  # no condition of ours: the policies alone
                assert (await tx.execute(sa.select(secret.c.owner_id))).scalars().all() == [person.user_id]
            openai = (await world.providers.registry(person.user_id)).get("openai")
            (credential,) = await world.resolver.resolve(person.user_id, None, openai, "gpt-5")
            assert credential.owner.id == person.user_id

    await asyncio.gather(*(look(person) for person in people for _ in range(3)))


async def test_teams_and_the_change_feed_work_through_it(pooled_world: World) -> None:
    """The system's eyes, taken for a moment within a transaction, are given back before the next tenant has the backend."""
    world = pooled_world
    ada, bob = await world.person("ada"), await world.person("bob")
    told = asyncio.Event()

    def hear(change: Change) -> None:
        if change.user_id == bob.user_id:
            told.set()

    feed = Feed(world.db)
    feed.subscribe(hear)
    await feed.start()
    team = (await world.teams.create(ada, "Research")).team_id
    await world.teams.invite(ada, team, "bob@example.com")
    await world.teams.accept(bob, team)
    lent = await world.secrets.create(ada, NEW)
    await world.shares.share(ada, lent.id, team, Grade.USE)
    openai = (await world.providers.registry(bob.user_id)).get("openai")
    (credential,) = await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    assert credential.source.value == "team"
    await asyncio.sleep(0.5)  # what was noted so far is heard
    told.clear()
    await world.teams.remove(ada, team, bob.user_id)
    async with world.db.read(Actor.user(bob.user_id)) as tx:
        assert (await tx.execute(sa.select(secret.c.id))).scalars().all() == []
    async with asyncio.timeout(2):
        await told.wait()
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    await feed.stop()


async def test_raw_statements_after_anothers_transaction_find_nothing_of_it(
    pooled_url: str, postgresql_server: Server, postgresql_database: str
) -> None:
    """Nobody's eyes on every table, on the very backend that an administrator and the system have just had."""
    dsn = sa.make_url(pooled_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with postgresql_server.connect(postgresql_database) as superuser:
        wall.fill(superuser)

    def work() -> None:
        with psycopg.connect(dsn, prepare_threshold=None) as theirs, psycopg.connect(dsn, prepare_threshold=None) as mine:
            for table in metadata.tables:
                for eyes in ("admin c", "system"):
                    with theirs.transaction(), wall.seeing(theirs, wall.EYES[eyes]):
                        theirs.execute("SELECT 1")
                    with pytest.raises(psycopg.errors.InsufficientPrivilege), mine.transaction():
                        mine.execute(f'SELECT 1 FROM "{table}"')
                with mine.transaction():
                    mine.execute("SET LOCAL ROLE keybearer_app")
                    assert mine.execute("SELECT public.keybearer_caller(), public.keybearer_is_admin()").fetchone() == (
                        None,
                        False,
                    )
                    assert mine.execute("SELECT public.keybearer_teams('invited')").fetchone() == ([],)

    await asyncio.to_thread(work)  # the pooler runs on this loop


async def test_a_client_that_vanishes_in_a_transaction_leaves_nothing(pooled_world: World) -> None:
    ada, bob = await pooled_world.person("ada"), await pooled_world.person("bob")

    async def hang() -> None:
        async with pooled_world.db.write(Actor.user(ada.user_id)) as tx:
            await tx.execute(sa.text("SELECT 1"))
            await asyncio.sleep(30)

    hanging = asyncio.create_task(hang())
    await asyncio.sleep(0.1)
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    async with pooled_world.db.read(Actor.user(bob.user_id)) as tx:
        assert (await tx.execute(sa.select(sa.func.public.keybearer_caller()))).scalar_one() == bob.user_id
