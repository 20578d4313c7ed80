"""The end of a person: their key is destroyed, whatever copies of their ciphertext are left open no more, the trail stays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, World, value

from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, Role
from keybearer.errors import Forbidden, NotFound, Unavailable
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.store.schema import audit_record, change, metadata, owner, owner_key, secret_version
from keybearer.vault.erasure import Erasure
from keybearer.vault.remains import Remains
from keybearer.vault.sealed import Sealer, Unreadable
from keybearer.vault.secrets import NewSecret, Secrets


@pytest.fixture
def erasure(world: World) -> Erasure:
    return Erasure(world.db, world.keyring)


async def with_secret(world: World, name: str) -> tuple[Caller, Any]:
    """A person with a secret; its row as it lies in the database, envelope and all."""
    caller = await world.person(name)
    made = await world.secrets.create(caller, NewSecret("openai", value(OPENAI_KEY)))
    async with world.db.read(Actor.user(caller.user_id)) as tx:
        return caller, await rows.get(tx, made.id, (caller.user_id,))


async def all_of(db: Database, table: sa.Table) -> list[Any]:
    columns: Iterable[sa.Column[Any]] = [column for column in table.columns if column.name not in {"envelope", "oauth_envelope"}]
    async with db.read(Actor.system()) as tx:
        return list((await tx.execute(sa.select(*columns))).all())


async def test_what_is_left_of_a_deleted_person_does_not_open(world: World, erasure: Erasure, tamper: Tamper) -> None:
    admin = await world.person("root", Role.ADMIN)
    bob, left = await with_secret(world, "bob")
    eve, hers = await with_secret(world, "eve")
    sealer = Sealer(world.keyring)
    async with world.db.read(Actor.user(bob.user_id)) as tx:
        (key,) = (await tx.execute(sa.select(owner_key).where(owner_key.c.owner_id == bob.user_id))).all()
        assert (await sealer.open(tx, left)).value.reveal() == OPENAI_KEY.encode()
    await erasure.delete_user(bob.user_id, admin)

    # Nothing of the person's is left in any table that has owners, but in the records of what was done.
    async with world.db.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(owner_key.c.id).where(owner_key.c.owner_id == bob.user_id))).all() == []
        assert (await tx.execute(sa.select(owner.c.id).where(owner.c.id == bob.user_id))).all() == []
        counted = sa.select(sa.func.count(secret_version.c.secret_id)).where(secret_version.c.owner_id == bob.user_id)
        assert (await tx.execute(counted)).scalar_one() == 0

    # A copy of the ciphertext, from a backup or a page: neither this process opens it, whose cache held the key, nor a new one.
    for keyring in (world.keyring, await Keyring.open(world.db, world.keyring._wrapper)):
        async with world.db.read(Actor.user(bob.user_id)) as tx:
            with pytest.raises(Unreadable):
                await Sealer(keyring).open(tx, left)
    # Nor with another owner's key in its place, under the old key's id.
    async with world.db.read(Actor.user(eve.user_id)) as tx:
        (other,) = (await tx.execute(sa.select(owner_key).where(owner_key.c.owner_id == eve.user_id))).all()
        assert (await sealer.open(tx, hers)).value.reveal() == OPENAI_KEY.encode()
    await tamper(sa.insert(owner).values(id=bob.user_id, kind="user", created_at=key.created_at))
    await tamper(sa.insert(owner_key).values(dict(other._mapping) | {"id": key.id, "owner_id": bob.user_id}))
    async with world.db.read(Actor.user(bob.user_id)) as tx:
        with pytest.raises(Unreadable):
            await Sealer(await Keyring.open(world.db, world.keyring._wrapper)).open(tx, left)


async def test_the_trail_stays_and_everybody_is_told(world: World, erasure: Erasure) -> None:
    admin = await world.person("root", Role.ADMIN)
    bob, _ = await with_secret(world, "bob")
    before = len(await all_of(world.db, audit_record))
    await erasure.delete_user(bob.user_id, admin)
    assert len(await all_of(world.db, audit_record)) == before + 1
    assert ("secret.create", "ok") in await world.recorded()
    assert (await world.recorded())[-1] == ("user.delete", "ok")
    told = (await all_of(world.db, change))[-1]
    assert (told.subject, told.subject_id, told.user_id) == ("user", str(bob.user_id), None)
    with pytest.raises(NotFound):
        await world.users.get(bob.user_id)


async def test_no_live_file_of_sqlite_holds_key_or_value(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    admin = await world.person("root", Role.ADMIN)
    bob, left = await with_secret(world, "bob")
    async with world.db.read(Actor.system()) as tx:
        (key,) = (await tx.execute(sa.select(owner_key).where(owner_key.c.owner_id == bob.user_id))).all()

    def held(part: bytes) -> bool:
        return any(part in path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("keybearer.db"))

    assert held(bytes(key.envelope)[52:])
    assert held(bytes(left.envelope)[52:])
    await Erasure(world.db, world.keyring).delete_user(bob.user_id, admin)
    assert not held(bytes(key.envelope)[52:])
    assert not held(bytes(left.envelope)[52:])


async def test_nor_of_a_teams_that_was_ended(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    ada = await world.person("ada")
    team = (await world.teams.create(ada, "Research")).team_id
    made = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), team_id=team))
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        left: Any = await rows.get(tx, made.id, (team,))
    async with world.db.read(Actor.system()) as tx:
        (key,) = (await tx.execute(sa.select(owner_key).where(owner_key.c.owner_id == team))).all()
    sealed = [bytes(key.envelope)[52:], bytes(left.envelope)[52:]]

    def held() -> list[bool]:
        files = [path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("keybearer.db")]
        return [any(part in content for content in files) for part in sealed]

    assert held() == [True, True]
    await world.teams.delete(ada, team)
    assert held() == [False, False]
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        with pytest.raises(Unreadable):  # nor does this process keep the key
            await Sealer(world.keyring).open(tx, left)


async def test_what_a_killed_process_left_the_next_one_erases(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    erased: list[set[str]] = []
    erase = Database.erase

    async def noted(db: Database, *tables: str) -> None:
        erased.append(set(tables))
        await erase(db, *tables)

    monkeypatch.setattr(Database, "erase", noted)
    admin, (bob, _) = await world.person("root", Role.ADMIN), await with_secret(world, "bob")
    await Erasure(world.db, world.keyring).delete_user(bob.user_id, admin)  # killed here, before its job ran
    reborn = Erasure(world.db, world.keyring)
    await reborn.erase()
    assert erased == [{"owner_key", "secret", "secret_version"}]
    await reborn.erase()
    await Secrets(world.db, world.keyring, Catalog.load()).trash.purge_due()
    assert erased[1:] == [{"secret", "secret_version"}], "and no more than once"


async def test_what_is_removed_while_files_are_erased_is_erased_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    remains, calls = Remains(world.db, "secret"), 0

    async def erase(db: Database, *tables: str) -> None:
        nonlocal calls
        del db, tables
        calls += 1
        if calls == 1:
            await remains.removed()
        if calls == 2:
            raise Unavailable

    monkeypatch.setattr(Database, "erase", erase)
    await remains.erase()
    with pytest.raises(Unavailable):
        await remains.erase()
    await remains.erase()
    await remains.erase()
    assert calls == 3


async def test_who_may_delete_whom(world: World, erasure: Erasure) -> None:
    admin, other = await world.person("root", Role.ADMIN), await world.person("second", Role.ADMIN)
    bob, _ = await with_secret(world, "bob")
    eve = await world.person("eve")
    for by, whom in ((eve, bob), (bob, bob), (admin, admin)):
        with pytest.raises(Forbidden):
            await erasure.delete_user(whom.user_id, by)
    with pytest.raises(NotFound):
        await erasure.delete_user(uuid4(), admin)
    await erasure.delete_user(other.user_id, admin)
    with pytest.raises(Forbidden, match="last active administrator"):
        await erasure.delete_user(admin.user_id, None)
    team = await world.teams.create(eve, "kbtest")
    with pytest.raises(Forbidden, match="last owner of 1 team"):
        await erasure.delete_user(eve.user_id, admin)
    await world.teams.delete(eve, team.team_id)
    await erasure.delete_user(eve.user_id, None)  # the operator
    assert [outcome for action, outcome in await world.recorded() if action == "user.delete"] == [
        "forbidden", "forbidden", "forbidden", "not_found", "ok", "forbidden", "forbidden", "ok",
    ]  # fmt: skip


def test_every_table_with_an_owner_goes_with_the_owner() -> None:
    """By foreign key, so that a new table is not forgotten; the records of what was done stay."""
    stay = {"audit_record", "usage_record", "change", "key_rotation"}
    for table in metadata.tables.values():
        for name in ("owner_id", "user_id"):
            if name in table.columns and table.name not in stay:
                constraints = [each for each in table.foreign_key_constraints if name in each.column_keys]
                assert any(each.ondelete == "CASCADE" for each in constraints), f"{table.name}.{name}"
