"""Rotation of root and owner keys on both databases: everything opens before, while and after, and nothing under the old key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.crypto import make_vectors
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, World, value, world_on

from keybearer.catalog import Catalog
from keybearer.crypto.envelope import key_id_of
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import Wrapper, env, passphrase
from keybearer.domain import SYSTEM_OWNER_ID, Caller, Role
from keybearer.errors import Conflict, Forbidden, Invalid, KeyUnreadable, NotFound, RootKeyError, RotationBlocked
from keybearer.store.db import Actor, Database
from keybearer.store.schema import deployment, owner_key, root_key, secret_version
from keybearer.vault import rotate
from keybearer.vault.holders import KeyHolder
from keybearer.vault.resolve import Resolver
from keybearer.vault.rotate import Rotation, Rotations
from keybearer.vault.secrets import NewSecret, Secrets

ROOT = make_vectors.draw("wrapping key of rotation's tests")
PHRASE = passphrase.parse("kbtest correct horse battery staple", passphrase.Costs(64, 1, 1))
PER_PERSON = 5


def find(provider: str) -> Wrapper:
    """The providers of these tests' settings."""
    if provider == "env":
        return env.parse(ROOT.hex())
    if provider == "passphrase":
        return PHRASE
    raise RootKeyError(f"The root key provider '{provider}' is not configured here.", hint="Set it.")


@dataclass
class Story:
    """People with secrets, and what rotates their keys."""

    world: World
    rotations: Rotations
    admin: Caller
    people: list[Caller]
    values: dict[UUID, tuple[Caller, str]]

    @property
    def versions(self) -> int:
        """How many versions of values are sealed: one of them has two."""
        return len(self.values) + 1

    async def open_all(self, wrapper: Wrapper | None = None) -> None:
        """After a restart, every value is what it was; so are the rows that carry MACs."""
        keyring = await Keyring.open(self.world.db, wrapper or find("env"), find)
        secrets = Secrets(self.world.db, keyring, Catalog.load())
        for secret_id, (caller, text) in self.values.items():
            assert (await secrets.credential(caller, secret_id)).value.reveal().decode() == text
        assert keyring.row_mac("user_account", "x") == self.world.keyring.row_mac("user_account", "x")

    async def add(self, caller: Caller, **owner: Any) -> UUID:
        text = f"{OPENAI_KEY}{uuid4().hex}"
        made = await self.world.secrets.create(caller, NewSecret("openai", value(text), name=uuid4().hex, **owner))
        self.values[made.id] = (caller, text)
        return made.id

    async def rows(self, table: sa.Table) -> list[Any]:
        actor = Actor.system()
        async with self.world.db.read(actor) as tx:
            return list((await tx.execute(sa.select(table))).all())


@pytest.fixture
async def story(database: Database) -> Story:
    world = await world_on(database, ROOT)
    world.keyring._find = find
    admin = await world.person("root", Role.ADMIN)
    people = [await world.person(name) for name in ("ada", "bob", "eve")]
    made = Story(world, Rotations(database, world.keyring, find, batch=3), admin, people, {})
    for person in people:
        for _ in range(PER_PERSON):
            await made.add(person)
    await made.add(admin, system=True)
    team = await world.teams.create(people[0], "kbtest")
    await made.add(people[0], team_id=team.team_id)
    # A secret with an older version, which is sealed anew with it.
    text, secret_id = f"{OPENAI_KEY}{uuid4().hex}", list(made.values)[PER_PERSON]
    await world.secrets.update(people[1], secret_id, {"value": value(text)})
    made.values[secret_id] = (people[1], text)
    return made


async def rotated(story: Story, begun: Rotation) -> Rotation:
    steps: list[str] = []

    def show(seen: Rotation) -> None:
        assert 0 <= seen.done <= seen.total
        if seen.step not in steps:
            steps.append(seen.step)

    done = await story.rotations.finish(begun, show)
    assert done.state == "finished"
    assert done.done == done.total
    assert done.unreadable == 0
    assert steps[-1] == "done"
    return done


class TestRootKey:
    async def test_owner_keys_are_sealed_anew_and_everything_opens(self, story: Story) -> None:
        (before,) = await story.rows(root_key)
        envelopes = {row.id: row.envelope for row in await story.rows(owner_key)}
        await rotated(story, await story.rotations.begin_root(story.admin))
        roots = {row.id: row for row in await story.rows(root_key)}
        (new,) = [row for row in roots.values() if row.state == "active"]
        assert (roots[before.id].state, roots[before.id].wrapped) == ("retired", before.wrapped)  # kept, wrapped, for backups
        assert roots[before.id].emptied_at is not None
        for row in await story.rows(owner_key):
            assert row.root_key_id == new.id == key_id_of(row.envelope)
            assert row.envelope != envelopes[row.id]
        await story.open_all()
        recorded = [action for action, outcome in await story.world.recorded() if outcome == "ok"]
        actions = ["rotation.begin", "root_key.stage", "root_key.retire", "root_key.promote", "root_key.empty", "rotation.finish"]
        assert [action for action in recorded if action in actions] == actions

    async def test_it_moves_to_another_provider(self, story: Story) -> None:
        await rotated(story, await story.rotations.begin_root(None, "passphrase"))
        await story.open_all(PHRASE)
        await story.open_all(find("env"))  # the settings still say so: the row says who holds the key

        def only_phrase(provider: str) -> Wrapper:
            assert provider == "passphrase"
            return PHRASE

        assert await Keyring.open(story.world.db, PHRASE, only_phrase)
        with pytest.raises(RootKeyError, match="passphrase"):
            await Keyring.open(story.world.db, find("env"))

    async def test_running_processes_go_on_throughout(self, story: Story) -> None:
        """They have all keys in memory, or open them anew: nothing of the old root key is asked for."""
        other = await Keyring.open(story.world.db, find("env"), find)
        resolver = Resolver(story.world.db, other, story.world.secrets)
        holder = KeyHolder(story.world.db)
        await holder.register()
        await holder.turn(other)
        served = failed = 0
        over = asyncio.Event()

        async def serve() -> None:
            nonlocal served, failed
            provider = Catalog.load().providers["openai"]
            while not over.is_set():
                other._recent = type(other._recent)()  # nothing is remembered
                person = story.people[served % 3]
                assert await resolver.resolve(person.user_id, None, provider, "gpt-4o-mini")
                await story.add(person)
                await holder.turn(other)
                served += 1

        serving = asyncio.create_task(serve())
        await rotated(story, await story.rotations.begin_root(None, "passphrase"))
        over.set()
        await serving
        await holder.turn(other)
        assert served > 0
        assert {str(row.id) for row in await story.rows(root_key) if row.state == "active"} == {
            str(each) for each in other._roots
        }
        await story.open_all(PHRASE)
        await holder.close()

    async def test_it_waits_for_a_process_that_cannot_unwrap(self, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rotate, "PATIENCE_S", 1.0)
        settings = {"env"}

        def lacking(provider: str) -> Wrapper:
            return find(provider if provider in settings else "none")

        behind, holder = await Keyring.open(story.world.db, find("env"), lacking), KeyHolder(story.world.db)
        await holder.register()
        await holder.turn(behind)
        begun = await story.rotations.begin_root(None, "passphrase")
        assert (await story.rotations._step(), await story.rotations._step()) == (True, False)
        await holder.turn(behind)
        with pytest.raises(RotationBlocked, match="'none' is not configured here") as caught:
            await story.rotations.finish(begun)
        assert "--resume" in caught.value.hint
        status = await story.rotations.status(story.admin)
        assert [root["state"] for root in status.root_keys] == ["staged", "active"]
        assert "not configured" in status.processes[0]["problem"]
        assert status.rotation is not None
        assert status.rotation.step == "prove"
        settings.add("passphrase")
        await holder.turn(behind)
        await rotated(story, begun)
        await holder.close()
        await story.open_all(PHRASE)

    async def test_a_process_that_ended_without_a_word_is_not_waited_for_long(
        self, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        holder = KeyHolder(story.world.db)
        await holder.register()
        begun = await story.rotations.begin_root(None)
        assert (await story.rotations._step(), await story.rotations._step()) == (True, False)
        from datetime import timedelta

        monkeypatch.setattr(rotate, "ALIVE", timedelta(0))
        await rotated(story, begun)

    async def test_a_provider_without_settings_begins_nothing(self, story: Story) -> None:
        with pytest.raises(Invalid, match="not configured"):
            await story.rotations.begin_root(story.admin, "aws-kms")
        assert await story.rotations.under_way() is None

    async def test_one_at_a_time(self, story: Story) -> None:
        begun = await story.rotations.begin_root(None)
        with pytest.raises(Conflict, match="under way") as caught:
            await story.rotations.begin_owners(None)
        assert "--resume" in caught.value.hint
        await rotated(story, begun)
        await rotated(story, await story.rotations.begin_owners(None))

    async def test_two_workers_do_no_harm(self, story: Story) -> None:
        other = Rotations(story.world.db, await Keyring.open(story.world.db, find("env"), find), find, batch=2)
        begun = await story.rotations.begin_root(None)
        first, second = await asyncio.gather(story.rotations.finish(begun), other.finish(begun))
        assert first.state == second.state == "finished"
        assert len(await story.rows(root_key)) == 2
        await story.open_all()

    async def test_a_damaged_owner_key_holds_nobody_up(self, story: Story, tamper: Tamper) -> None:
        broken = story.people[0]
        await tamper(
            sa.update(owner_key).where(owner_key.c.owner_id == broken.user_id).values(envelope=b"KB\x01\x01" + bytes(128))
        )
        done = await story.rotations.finish(await story.rotations.begin_root(None))
        assert (done.state, done.unreadable) == ("finished", 1)
        states = {root["state"]: root["owner_keys"] for root in (await story.rotations.status(None)).root_keys}
        assert states == {"active": 4, "retiring": 1}
        story.values = {id_: kept for id_, kept in story.values.items() if kept[0] is not broken}
        await story.open_all()

    async def test_members_do_not_rotate_and_are_recorded(self, story: Story) -> None:
        for call in (story.rotations.begin_root(story.people[0]), story.rotations.begin_owners(story.people[0])):
            with pytest.raises(Forbidden):
                await call
        with pytest.raises(Forbidden):
            await story.rotations.status(story.people[0])
        assert ("root_key.rotate", "forbidden") in await story.world.recorded()


class TestOwnerKeys:
    async def test_one_owners_values_are_sealed_under_a_new_version(self, story: Story) -> None:
        ada = story.people[0]
        others = {row.id for row in await story.rows(owner_key) if row.owner_id != ada.user_id}
        await rotated(story, await story.rotations.begin_owners(story.admin, ada.user_id))
        versions = {row.version: row for row in await story.rows(owner_key) if row.owner_id == ada.user_id}
        assert {version: row.state for version, row in versions.items()} == {1: "retired", 2: "active"}
        assert {row.id for row in await story.rows(owner_key) if row.owner_id != ada.user_id} == others
        for page in [await story.world.secrets.list(ada)]:
            assert {secret.key_id for secret in page.items} == {versions[2].id}
            assert {secret.version for secret in page.items} == {1}  # the values are the same
        status = await story.rotations.status(story.admin)
        assert [row for row in status.owner_keys if row["state"] == "retired"] == [
            {"version": 1, "state": "retired", "keys": 1, "rows": 0}
        ]
        await story.open_all()

    async def test_all_owners_the_system_with_them(self, story: Story) -> None:
        before = (await story.rows(deployment))[0].row_mac_key
        done = await rotated(story, await story.rotations.begin_owners(story.admin))
        assert done.total == story.versions
        after = (await story.rows(deployment))[0].row_mac_key
        (system,) = [row for row in await story.rows(owner_key) if (row.owner_id, row.state) == (SYSTEM_OWNER_ID, "active")]
        assert key_id_of(before) != key_id_of(after) == system.id
        status = await story.rotations.status(None)
        assert {row["version"]: (row["state"], row["rows"]) for row in status.owner_keys} == {
            1: ("retired", 0),
            2: ("active", story.versions),
        }
        await story.open_all()
        await rotated(story, await story.rotations.begin_root(None))
        await story.open_all()

    async def test_values_are_entered_and_changed_meanwhile(self, story: Story) -> None:
        over, changed = asyncio.Event(), 0

        async def enter() -> None:
            nonlocal changed
            while not over.is_set():
                person = story.people[changed % 3]
                secret_id = await story.add(person)
                text = f"{OPENAI_KEY}{uuid4().hex}"
                await story.world.secrets.update(person, secret_id, {"value": value(text)})
                await story.world.secrets.update(person, secret_id, {"fetchable": True})
                story.values[secret_id] = (person, text)
                gone = await story.add(person)
                await story.world.secrets.delete(person, gone)
                del story.values[gone]
                changed += 1

        entering = asyncio.create_task(enter())
        await story.rotations.finish(await story.rotations.begin_owners(None))
        over.set()
        await entering
        assert changed
        assert [row["rows"] for row in (await story.rotations.status(None)).owner_keys if row["state"] == "retired"] == [0]
        await story.open_all()

    async def test_a_value_that_does_not_open_is_left_and_counted(self, story: Story, tamper: Tamper) -> None:
        broken = next(iter(story.values))
        await tamper(
            sa.update(secret_version).where(secret_version.c.secret_id == broken).values(envelope=b"KB\x01\x01" + bytes(128))
        )
        done = await story.rotations.finish(await story.rotations.begin_owners(None))
        assert (done.state, done.unreadable) == ("finished", 1)
        status = await story.rotations.status(None)
        assert [row["rows"] for row in status.owner_keys if row["state"] == "retired"] == [1]
        caller, _ = story.values.pop(broken)
        with pytest.raises(KeyUnreadable):
            await story.world.secrets.credential(caller, broken)
        await story.open_all()

    async def test_somebody_without_a_key(self, story: Story) -> None:
        with pytest.raises(NotFound):
            await story.rotations.begin_owners(story.admin, uuid4())


async def test_the_system_sees_no_envelope(story: Story) -> None:
    """Rotation counts as the system, which on PostgreSQL may not read what is sealed."""
    if story.world.db.name == "sqlite":
        return
    async with story.world.db.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(sa.func.count(secret_version.c.owner_key_id)))).scalar_one() == story.versions
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        async with story.world.db.read(Actor.system()) as tx:
            await tx.execute(sa.select(secret_version.c.envelope))


class TestDrop:
    async def test_a_retired_root_key_that_seals_nothing_goes_and_no_other(self, story: Story, tamper: Tamper) -> None:
        (before,) = await story.rows(root_key)
        with pytest.raises(Conflict, match="active"):
            await story.rotations.drop_root_key(None, before.id)
        await rotated(story, await story.rotations.begin_root(story.admin))
        (still,) = (await story.rows(owner_key))[:1]
        await tamper(sa.update(owner_key).where(owner_key.c.id == still.id).values(root_key_id=before.id))
        with pytest.raises(Conflict, match="1 owner key"):
            await story.rotations.drop_root_key(None, before.id)
        await tamper(sa.update(owner_key).where(owner_key.c.id == still.id).values(root_key_id=still.root_key_id))
        with pytest.raises(Forbidden):
            await story.rotations.drop_root_key(story.people[0], before.id)
        with pytest.raises(NotFound):
            await story.rotations.drop_root_key(None, uuid4())
        await story.rotations.drop_root_key(story.admin, before.id)
        assert [row.id for row in await story.rows(root_key)] == [still.root_key_id]
        await story.open_all()
        told = [outcome for action, outcome in await story.world.recorded() if action == "root_key.drop"]
        assert told == ["conflict", "conflict", "forbidden", "not_found", "ok"]

    async def test_retired_owner_keys_go_that_no_value_is_sealed_under(self, story: Story, tamper: Tamper) -> None:
        assert await story.rotations.drop_owner_keys(None) == 0
        count = len(await story.rows(owner_key))
        await rotated(story, await story.rotations.begin_owners(story.admin))
        retired = [row for row in await story.rows(owner_key) if row.state == "retired"]
        assert len(retired) == count
        # One value stays under the old key, as one that does not open does.
        person = story.people[0].user_id
        (old,) = [row.id for row in retired if row.owner_id == person]
        (place,) = [found for found in story.values if story.values[found][0].user_id == person][:1]
        moved = sa.update(secret_version).where(secret_version.c.secret_id == place)
        await tamper(moved.values(owner_key_id=old))
        with pytest.raises(Forbidden):
            await story.rotations.drop_owner_keys(story.people[0])
        assert await story.rotations.drop_owner_keys(None) == count - 1
        left = await story.rows(owner_key)
        assert [row.id for row in left if row.state == "retired"] == [old]
        assert await story.rotations.drop_owner_keys(None) == 0
        (new,) = [row.id for row in left if row.state == "active" and row.owner_id == person]
        await tamper(moved.values(owner_key_id=new))
        await story.open_all()
        assert await story.rotations.drop_owner_keys(None) == 1
        await story.rotations.begin_owners(story.admin)
        with pytest.raises(Conflict, match="under way"):
            await story.rotations.drop_owner_keys(None)
