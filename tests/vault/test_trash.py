"""A secret is deleted, restored, purged; then the data directory is searched for what it held."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.catalog import Catalog
from keybearer.domain import Caller, Role, Scope, SecretType
from keybearer.errors import Conflict, Invalid, KeyFailed, KeyMissing, KeyUnreadable, NotFound, ScopeMissing
from keybearer.store.db import Actor
from keybearer.store.schema import secret, secret_version
from keybearer.vault.retention import Retention
from keybearer.vault.secrets import NewSecret, SecretFilter, Secrets

NEW = NewSecret("openai", value(OPENAI_KEY), name="work", tags=("a",))


def restorable_for(world: World, time: timedelta) -> World:
    return replace(world, secrets=Secrets(world.db, world.keyring, Catalog.load(), Retention(restorable=time)))


async def resolve(world: World, caller: Caller) -> bytes:
    openai = (await world.providers.registry(caller.user_id)).get("openai")
    return (await world.resolver.resolve(caller.user_id, None, openai, "gpt-5"))[0].value.reveal()


async def deleted(world: World, caller: Caller, **wanted: Any) -> list[str]:
    return [item.name for item in (await world.secrets.list(caller, SecretFilter(state="deleted", **wanted))).items]


async def test_a_deleted_secret_is_gone_and_comes_back_as_it_was(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, replace(NEW, allowed_models=("gpt-5",), priority=7))
    await world.secrets.delete(ada, made.id)
    assert (await world.secrets.list(ada)).items == ()
    assert not (await world.providers.get(ada, "openai")).has_api_key
    with pytest.raises(KeyMissing):
        await resolve(world, ada)
    for gone in (
        world.secrets.get(ada, made.id),
        world.secrets.update(ada, made.id, {"description": "x"}),
        world.secrets.credential(ada, made.id),
        world.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY)),
        world.secrets.versions.list(ada, made.id),
        world.secrets.delete(ada, made.id),
    ):
        with pytest.raises(NotFound):
            await gone
    assert await deleted(world, ada) == ["work"]
    assert await deleted(world, ada, name="work", text="OR", tag="a") == ["work"]
    assert not await world.secrets.mark(made.id, 1, "failed", "late")
    back = await world.secrets.trash.restore(ada, made.id)
    assert back == replace(made, updated_at=back.updated_at)
    assert await resolve(world, ada) == OPENAI_KEY.encode()
    with pytest.raises(NotFound):
        await world.secrets.trash.restore(ada, made.id)
    assert [action for action, outcome in await world.recorded() if outcome == "ok"][-2:] == ["secret.delete", "secret.restore"]


async def test_what_its_provider_refused_does_not_come_back_as_good(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.mark(made.id, 1, "failed", "The provider does not know it.")
    failed = await world.secrets.get(ada, made.id)
    await world.secrets.delete(ada, made.id)
    back = await world.secrets.trash.restore(ada, made.id)
    assert back == replace(failed, updated_at=back.updated_at)
    with pytest.raises(KeyFailed):
        await resolve(world, ada)


async def test_deleting_frees_the_name(world: World) -> None:
    ada = await world.person("ada")
    first = await world.secrets.create(ada, NEW)
    await world.secrets.delete(ada, first.id)
    second = await world.secrets.create(ada, replace(NEW, value=value(OTHER_OPENAI_KEY)))
    with pytest.raises(Conflict, match="has this name by now"):
        await world.secrets.trash.restore(ada, first.id)
    with pytest.raises(Invalid):
        await world.secrets.trash.restore(ada, first.id, "\x00")
    back = await world.secrets.trash.restore(ada, first.id, "again")
    assert {item.name for item in (await world.secrets.list(ada)).items} == {"work", "again"}
    for each in (second, back):
        await world.secrets.delete(ada, each.id)
    assert sorted(await deleted(world, ada)) == ["again", "work"]


async def test_after_the_stated_time_a_job_purges(world: World) -> None:
    world = restorable_for(world, timedelta(seconds=0.2))
    ada = await world.person("ada")
    made, kept = await world.secrets.create(ada, NEW), await world.secrets.create(ada, replace(NEW, name="kept"))
    await world.secrets.delete(ada, made.id)
    assert await world.secrets.trash.purge_due() == 0
    await asyncio.sleep(0.25)
    assert await world.secrets.trash.purge_due() == 1
    assert await deleted(world, ada) == []
    with pytest.raises(NotFound):
        await world.secrets.trash.restore(ada, made.id)
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        assert list((await tx.execute(sa.select(secret_version.c.secret_id))).scalars()) == [kept.id]
    assert ("secret.purge", "ok") in await world.recorded()


async def test_where_nothing_is_restorable_deleting_purges(world: World) -> None:
    world = restorable_for(world, timedelta())
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.delete(ada, made.id)
    assert await deleted(world, ada) == []
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        assert (await tx.execute(sa.select(secret_version.c.secret_id))).all() == []


async def test_the_trash_is_its_owners(world: World) -> None:
    admin, ada, bob = await world.person("admin", Role.ADMIN), await world.person("ada"), await world.person("bob")
    made, live = await world.secrets.create(ada, NEW), await world.secrets.create(ada, replace(NEW, name="live"))
    await world.secrets.delete(ada, made.id)
    assert await deleted(world, bob) == []
    assert await deleted(world, admin, owner="everyone") == ["work"]  # metadata, for support
    for other in (bob, admin):
        for secret_id in (made.id, live.id):
            for call in (world.secrets.trash.restore(other, secret_id), world.secrets.trash.purge(other, secret_id)):
                with pytest.raises(NotFound):
                    await call
    reader = replace(ada, scopes=frozenset({Scope.SECRETS_READ, Scope.SECRETS_USE}))
    for call in (world.secrets.trash.restore(reader, made.id), world.secrets.trash.purge(reader, made.id)):
        with pytest.raises(ScopeMissing):
            await call
    system = await world.secrets.create(admin, replace(NEW, system=True))
    await world.secrets.delete(admin, system.id)
    await world.secrets.trash.restore(admin, system.id)
    await world.secrets.trash.purge(admin, system.id)


async def test_a_deletion_undone_in_the_database_brings_nothing_back(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.delete(ada, made.id)
    await tamper(sa.update(secret).values(deleted_at=None, deleted_name=None, name="work", state="ok"))
    with pytest.raises(KeyUnreadable):
        await resolve(world, ada)
    await world.secrets.delete(ada, made.id)
    assert (await world.secrets.trash.restore(ada, made.id)).state == "unreadable"
    with pytest.raises(KeyUnreadable):
        await resolve(world, ada)


def holding(directory: Path, what: bytes) -> list[str]:
    """The files in which ``what`` stands."""
    return [path.name for path in directory.rglob("*") if path.is_file() and what in path.read_bytes()]


@pytest.mark.parametrize("size", [40, 60_000], ids=["in a page", "over many pages"])
@pytest.mark.parametrize("way", ["purged at once", "purged by the job", "pruned"])
async def test_no_live_file_holds_what_was_purged(sqlite_world: World, tmp_path: Path, way: str, size: int) -> None:
    """Neither the ciphertext of any version, nor the wrapped parts of it: free pages, free cells and the log are searched."""
    world = restorable_for(sqlite_world, timedelta(days=1) if way == "purged at once" else timedelta(microseconds=1))
    if way == "pruned":
        world = replace(world, secrets=Secrets(world.db, world.keyring, Catalog.load(), Retention(versions=0)))
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NewSecret("warehouse", value("kbtest-" + "x" * size), SecretType.CUSTOM))
    others = [await world.secrets.create(ada, replace(NEW, name=f"n{number}")) for number in range(20)]
    await world.secrets.versions.rotate(ada, made.id, value("kbtest-" + "y" * size), overlap=timedelta(microseconds=1))
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        query = sa.select(secret_version.c.version, secret_version.c.envelope).where(secret_version.c.secret_id == made.id)
        envelopes = {row.version: bytes(row.envelope) for row in await tx.execute(query)}
    pieces = {version: (envelope[20:84], envelope[-16:]) for version, envelope in envelopes.items()}  # salt, commitment; tag
    for salt_and_commitment, tag in pieces.values():
        assert holding(tmp_path, salt_and_commitment)
        assert holding(tmp_path, tag)
    gone = [1] if way == "pruned" else [1, 2]
    if way == "pruned":
        assert await world.secrets.versions.prune() == 1
    elif way == "purged at once":
        await world.secrets.trash.purge(ada, made.id)
    else:
        await world.secrets.delete(ada, made.id)
        assert await world.secrets.trash.purge_due() == 1
    for version in gone:
        for piece in pieces[version]:
            assert holding(tmp_path, piece) == []
        middle = envelopes[version][84:-16]
        assert all(holding(tmp_path, middle[at : at + 24]) == [] for at in range(0, len(middle) - 24, 4096))
    assert (await world.secrets.get(ada, others[7].id)).version == 1
