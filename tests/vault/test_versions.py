"""A value is replaced: with an overlap, back again, and what is out of force goes in time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.catalog import Catalog
from keybearer.domain import Caller, Credential, Role, Secret
from keybearer.errors import Invalid, KeyDoubtful, KeyFailed, KeyRefused, KeyUnreadable, KeyUnusable, NotFound
from keybearer.store.db import Actor
from keybearer.store.schema import secret, secret_version
from keybearer.vault.retention import Retention
from keybearer.vault.secrets import NewSecret, Secrets

NEW = NewSecret("openai", value(OPENAI_KEY))
THIRD = "sk-proj-kbtest-openai-third-0123456789abcdefghij"
HOUR = timedelta(hours=1)


async def resolved(world: World, caller: Caller) -> tuple[Credential, ...]:
    openai = (await world.providers.registry(caller.user_id)).get("openai")
    return await world.resolver.resolve(caller.user_id, None, openai, "gpt-5")


async def served(world: World, caller: Caller) -> list[str]:
    return [credential.value.reveal().decode() for credential in await resolved(world, caller)]


async def states(world: World, caller: Caller, made: Secret) -> list[tuple[int, str]]:
    found, _ = await world.secrets.versions.list(caller, made.id)
    return [(version.version, version.state) for version in found]


async def numbers(world: World, caller: Caller) -> list[int]:
    async with world.db.read(Actor.user(caller.user_id)) as tx:
        query = sa.select(secret_version.c.version).where(secret_version.c.owner_id == caller.user_id)
        return sorted((await tx.execute(query)).scalars())


def keeping(world: World, **policy: Any) -> World:
    return replace(world, secrets=Secrets(world.db, world.keyring, Catalog.load(), Retention(**policy)))


async def test_the_value_before_serves_where_the_new_one_is_refused_until_the_overlap_ends(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    rotated = await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY), overlap=timedelta(seconds=4))
    assert (rotated.version, rotated.fallback_version, rotated.preview) == (2, 1, "sk-p…dcba")
    assert rotated.fallback_until is not None
    assert await states(world, ada, made) == [(2, "current"), (1, "fallback")]
    first, second = await resolved(world, ada)
    assert (first.value.reveal(), first.is_fallback) == (OTHER_OPENAI_KEY.encode(), False)
    assert (second.value.reveal(), second.is_fallback, second.secret_version) == (OPENAI_KEY.encode(), True, 1)
    assert second.expires_at == rotated.fallback_until
    await world.secrets.mark(made.id, 2, "failed", "401")
    assert await served(world, ada) == [OPENAI_KEY]
    await asyncio.sleep((rotated.fallback_until - datetime.now(UTC)).total_seconds() + 0.01)
    with pytest.raises(KeyFailed):
        await resolved(world, ada)
    assert await states(world, ada, made) == [(2, "current"), (1, "old")]
    assert ("secret.rotate", "ok") in await world.recorded()


async def test_without_an_overlap_the_old_value_serves_nobody(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    rotated = await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY))
    assert (rotated.fallback_version, rotated.fallback_until) == (None, None)
    assert await served(world, ada) == [OTHER_OPENAI_KEY]
    await world.secrets.mark(made.id, 2, "failed", "401")
    with pytest.raises(KeyFailed):
        await resolved(world, ada)


async def test_what_is_off_does_not_serve_through_its_fallback(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY), overlap=HOUR)
    for fields in ({"is_active": False}, {"is_active": True, "allowed_tokens": ["B" * 12]}):
        await world.secrets.update(ada, made.id, fields)
        await world.secrets.mark(made.id, 2, "failed", "401")
        with pytest.raises(KeyUnusable, match=r"switched off|refused by the provider"):
            await resolved(world, ada)


async def test_rolling_back_seals_the_earlier_value_as_the_next_version(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY), overlap=HOUR)
    back = await world.secrets.versions.rollback(ada, made.id)
    assert (back.version, back.preview, back.fallback_version, back.state) == (3, made.preview, None, "ok")
    assert await served(world, ada) == [OPENAI_KEY]
    again = await world.secrets.versions.rollback(ada, made.id, 2)
    assert (again.version, await served(world, ada)) == (4, [OTHER_OPENAI_KEY])
    assert [number for number, _ in await states(world, ada, made)] == [4, 3, 2, 1]
    for wrong, error in ((4, Invalid), (9, NotFound), (0, NotFound)):
        with pytest.raises(error):
            await world.secrets.versions.rollback(ada, made.id, wrong)
    fresh = await world.secrets.create(ada, replace(NEW, name="fresh"))
    with pytest.raises(NotFound, match="no such earlier version"):
        await world.secrets.versions.rollback(ada, fresh.id)


async def test_rolling_back_goes_where_the_secret_may_go_now(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, replace(NEW, fetchable=True))
    await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY), "fetchable": False})
    back = await world.secrets.versions.rollback(ada, made.id)
    assert (back.fetchable, back.egress, await served(world, ada)) == (False, made.egress, [OPENAI_KEY])


async def test_a_rotation_is_checked_like_any_new_value(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    for text, error in (("", Invalid), (made.preview, KeyRefused), ("a b", KeyRefused), ("kbtest-odd-form", KeyDoubtful)):
        with pytest.raises(error):
            await world.secrets.versions.rotate(ada, made.id, value(text))
    for overlap in (timedelta(days=31), timedelta(seconds=-1)):
        with pytest.raises(Invalid, match="overlap_seconds"):
            await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY), overlap=overlap)
    assert await numbers(world, ada) == [1]
    odd = await world.secrets.versions.rotate(ada, made.id, value("kbtest-odd-form"), save_anyway=True)
    assert odd.version == 2


async def test_pages_of_versions(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    for number in range(4):
        await world.secrets.update(ada, made.id, {"value": value(f"{OPENAI_KEY}{number}")})
    seen: list[int] = []
    cursor = None
    while True:
        found, cursor = await world.secrets.versions.list(ada, made.id, cursor, 2)
        seen.extend(version.version for version in found)
        if cursor is None:
            break
    assert seen == [5, 4, 3, 2, 1]
    with pytest.raises(Invalid):
        await world.secrets.versions.list(ada, made.id, "nonsense")


async def test_old_versions_go_by_number_and_by_age_but_not_while_they_may_serve(world: World, tamper: Tamper) -> None:
    world = keeping(world, versions=2, versions_for=timedelta(days=30))
    ada, bob = await world.person("ada"), await world.person("bob")
    bobs = await world.secrets.create(bob, NEW)
    made = await world.secrets.create(ada, NEW)
    for number in range(4):
        await world.secrets.update(ada, made.id, {"value": value(f"{OPENAI_KEY}{number}")})
    await world.secrets.versions.rotate(ada, made.id, value(THIRD), overlap=HOUR)
    assert await world.secrets.versions.prune() == 3
    assert await world.secrets.versions.prune() == 0
    assert await numbers(world, ada) == [4, 5, 6]
    aged = sa.update(secret_version).where(secret_version.c.owner_id == ada.user_id, secret_version.c.version < 6)
    await tamper(aged.values(retired_at=datetime.now(UTC) - timedelta(days=31)))
    assert await world.secrets.versions.prune() == 1
    assert await numbers(world, ada) == [5, 6]  # 5 is the fallback
    assert (await world.secrets.get(bob, bobs.id)).version == 1
    assert await numbers(world, bob) == [1]
    assert (await world.recorded()).count(("secret.prune", "ok")) == 2


async def test_a_deployment_that_keeps_none_overwrites(world: World) -> None:
    world = keeping(world, versions=0)
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    assert await numbers(world, ada) == [2]
    await world.secrets.versions.rotate(ada, made.id, value(THIRD), overlap=HOUR)
    assert await world.secrets.versions.prune() == 0
    assert await numbers(world, ada) == [2, 3]


async def test_versions_are_their_owners(world: World) -> None:
    admin, ada, bob = await world.person("admin", Role.ADMIN), await world.person("ada"), await world.person("bob")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    for other in (bob, admin):
        for call in (
            world.secrets.versions.list(other, made.id),
            world.secrets.versions.rotate(other, made.id, value(THIRD)),
            world.secrets.versions.rollback(other, made.id, 1),
        ):
            with pytest.raises(NotFound):
                await call
    assert await served(world, ada) == [OTHER_OPENAI_KEY]


async def test_an_earlier_version_put_in_force_in_the_database_opens_nothing(world: World, tamper: Tamper) -> None:
    """Each version opens by its own number: without the row's MAC a writer could bring a revoked value back."""
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY))
    for columns in ({"version": 1}, {"fallback_version": 1, "fallback_until": datetime.now(UTC) + HOUR}):
        kept = {"version": 2, "fallback_version": None, "fallback_until": None}
        await tamper(sa.update(secret).values(**(kept | columns)))
        with pytest.raises(KeyUnreadable):
            await resolved(world, ada)
        with pytest.raises(KeyUnreadable):
            await world.secrets.versions.rollback(ada, made.id, 1)
        await tamper(sa.update(secret).values(**kept, state="ok"))
        assert await served(world, ada) == [OTHER_OPENAI_KEY]
