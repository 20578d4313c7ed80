"""The keyring's stories on both databases: founding, sealing, opening, moved rows, lost keys."""

from __future__ import annotations

import asyncio
import traceback
from base64 import b64encode
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.crypto import make_vectors
from tests.crypto.keyrings import MARKER, NOW, alter, binding, new_owner, opening_key, reopened, rows, sealing_key, wrapper_of
from tests.crypto.vectors import Json, load, row_of
from tests.support.tamper import Tamper

from keybearer.app import forget_deleted
from keybearer.crypto.envelope import key_id_of
from keybearer.crypto.keyring import Binding, Keyring, OwnerKey, RecentKeys
from keybearer.crypto.kms import Wrapper, env
from keybearer.domain import SYSTEM_OWNER_ID, OwnerKind, SecretBytes
from keybearer.errors import EnvelopeError, RootKeyError
from keybearer.store.changes import EVERYTHING, Change
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys
from keybearer.store.schema import deployment, owner_key, root_key


class TestFounding:
    async def test_an_empty_database_gets_one_deployment_root_key_and_system_owner(self, database: Database) -> None:
        keyring = await Keyring.open(database, wrapper_of())
        (found,) = await rows(database, deployment)
        (root,) = await rows(database, root_key)
        (system,) = await rows(database, owner_key)
        assert found.id == keyring.deployment
        assert (root.provider, root.reference, root.state) == ("env", "KEYBEARER_ROOT_KEY", "active")
        assert (system.owner_id, system.version, system.root_key_id) == (SYSTEM_OWNER_ID, 1, root.id)
        assert key_id_of(found.row_mac_key) == system.id
        assert key_id_of(system.envelope) == root.id

    async def test_a_restart_finds_what_was_founded(self, database: Database, keyring: Keyring) -> None:
        again = await reopened(database)
        assert again.deployment == keyring.deployment
        assert again.row_mac("user", "x") == keyring.row_mac("user", "x")
        assert len(await rows(database, root_key)) == 1

    async def test_processes_that_start_first_together_end_with_one_root_key(self, database: Database, second: Database) -> None:
        started = await asyncio.gather(*(Keyring.open(db, wrapper_of()) for db in (database, second) * 4))
        assert len({keyring.deployment for keyring in started}) == 1
        assert len({keyring.row_mac("user", "x") for keyring in started}) == 1
        for table in (deployment, root_key, owner_key):
            assert len(await rows(database, table)) == 1

    async def test_of_processes_with_different_keys_one_starts_and_the_other_is_told(
        self, database: Database, second: Database
    ) -> None:
        started = await asyncio.gather(
            Keyring.open(database, wrapper_of("one")), Keyring.open(second, wrapper_of("another")), return_exceptions=True
        )
        (failed,) = [result for result in started if isinstance(result, BaseException)]
        assert isinstance(failed, RootKeyError)
        assert "Wrong root key" in failed.message
        assert len(await rows(database, root_key)) == 1

    async def test_a_wrapper_that_cannot_wrap_leaves_the_database_empty(self, database: Database) -> None:
        class Broken:
            provider = "openbao"
            reference = "transit/keys/kbtest"

            async def wrap(self, key: bytes, aad: bytes) -> bytes:
                raise RootKeyError("permission denied")

            async def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
                raise RootKeyError("permission denied")

        with pytest.raises(RootKeyError, match="permission denied"):
            await Keyring.open(database, Broken())
        assert await rows(database, deployment) == []
        assert (await Keyring.open(database, wrapper_of())).deployment


class TestWrongRootKey:
    """A lost or wrong root key refuses to start, says which it is, and changes nothing."""

    async def refused(self, db: Database, message: str, wrapper: Wrapper | None = None) -> RootKeyError:
        before = await self.everything(db)
        with pytest.raises(RootKeyError, match=message) as caught:
            await Keyring.open(db, wrapper or wrapper_of())
        assert caught.value.hint
        assert await self.everything(db) == before
        return caught.value

    async def everything(self, db: Database) -> list[list[keys.Row]]:
        return [await rows(db, table) for table in (deployment, root_key, owner_key)]

    async def test_another_key(self, database: Database, keyring: Keyring) -> None:
        await self.refused(database, "Wrong root key: the database was set up with key", wrapper_of("another"))

    async def test_another_provider(self, database: Database, keyring: Keyring) -> None:
        await alter(
            database, sa.update(root_key).values(provider="aws-kms", reference="arn:aws:kms:key/kbtest", wrapped=b"\x01" * 200)
        )
        error = await self.refused(database, "KEYBEARER_ROOT_KEY_PROVIDER=aws-kms .arn:aws:kms:key/kbtest., now it is env")
        assert "as it was" in error.hint

    async def test_the_wrapped_key_is_damaged_or_gone(self, database: Database, keyring: Keyring) -> None:
        (root,) = await rows(database, root_key)
        await alter(database, sa.update(root_key).values(wrapped=make_vectors.flipped(root.wrapped, 90, 4)))
        await self.refused(database, "is damaged, or belongs to another deployment")
        await alter(database, sa.update(root_key).values(wrapped=None))
        await self.refused(database, "is missing from the database")

    async def test_the_rows_of_another_deployment_under_the_same_wrapping_key(self, database: Database, keyring: Keyring) -> None:
        await alter(database, sa.update(deployment).values(id=uuid4()))
        await self.refused(database, "belongs to another deployment")

    async def test_a_root_key_that_unwraps_but_is_not_the_one_that_sealed(self, database: Database, keyring: Keyring) -> None:
        (found,), (root,) = await rows(database, deployment), await rows(database, root_key)
        aad = b"keybearer/v1/root-key" + found.id.bytes + root.id.bytes
        other = await wrapper_of().wrap(make_vectors.draw("another root key"), aad)
        await alter(database, sa.update(root_key).values(wrapped=other))
        await self.refused(database, "does not match this database")

    async def test_the_proof_is_damaged(self, database: Database, keyring: Keyring) -> None:
        await alter(database, sa.update(root_key).values(proof=b"KB"))
        await self.refused(database, "does not match this database")

    async def test_no_active_root_key_or_two(self, database: Database, keyring: Keyring) -> None:
        (root,) = await rows(database, root_key)
        await alter(database, sa.insert(root_key).values(dict(root._mapping) | {"id": uuid4()}))
        await self.refused(database, "holds 2 active root keys")
        await alter(database, sa.update(root_key).values(state="retired"))
        await self.refused(database, "holds 0 active root keys")

    async def test_the_deployment_is_gone(self, database: Database, keyring: Keyring, tamper: Tamper) -> None:
        await tamper(sa.delete(deployment))
        await self.refused(database, "root keys but no deployment")

    async def test_the_system_keys_are_damaged(self, database: Database, keyring: Keyring) -> None:
        await alter(database, sa.update(deployment).values(row_mac_key=None))
        await self.refused(database, "system's keys")
        await alter(database, sa.update(deployment).values(row_mac_key=b"x" * 132))
        await self.refused(database, "system's keys")

    async def test_no_message_shows_a_key(self, database: Database, keyring: Keyring) -> None:
        error = await self.refused(database, "Wrong root key", wrapper_of("another"))
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        for label in ("another", "wrapping key of the keyring's tests"):
            secret = make_vectors.draw(label)
            for text in (repr(secret), secret.hex(), b64encode(secret).decode()):
                assert text not in shown


class TestSealing:
    async def test_a_value_is_sealed_and_after_a_restart_opened(self, database: Database, keyring: Keyring) -> None:
        owner_id = await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        sealed = keyring.seal(key, binding(), MARKER)
        assert MARKER not in sealed
        assert key_id_of(sealed) == key.id
        again = await reopened(database)
        opened = await opening_key(database, again, key_id_of(sealed), owner_id)
        assert again.unseal(opened, binding(), sealed).reveal() == MARKER

    async def test_an_owner_has_one_key_and_each_owner_another(self, database: Database, keyring: Keyring) -> None:
        first, other = await new_owner(database), await new_owner(database, OwnerKind.TEAM)
        made = [await sealing_key(database, keyring, owner_id) for owner_id in (first, first, other)]
        assert made[0].id == made[1].id != made[2].id
        assert made[0].key.reveal() != made[2].key.reveal()
        assert {key.version for key in made} == {1}

    async def test_the_system_has_its_key_from_the_start(self, database: Database, keyring: Keyring) -> None:
        (system,) = await rows(database, owner_key)
        async with database.write(Actor.system()) as tx:
            assert (await keyring.sealing_key(tx, SYSTEM_OWNER_ID)).id == system.id

    async def test_what_does_not_belong_together_does_not_open(self, database: Database, keyring: Keyring) -> None:
        owner_id, other = await new_owner(database), await new_owner(database)
        key, other_key = [await sealing_key(database, keyring, each) for each in (owner_id, other)]
        sealed = keyring.seal(key, binding(), MARKER)
        assert keyring.unseal(key, binding(), sealed).reveal() == MARKER
        moved = [
            binding(record=uuid4()),
            binding(version=2),
            binding(field="refresh_token"),
            binding(egress=()),
            binding(egress=("https://evil.example:443",)),
            binding(egress=("https://api.openai.com:443", "https://evil.example:443")),
            binding(fetchable=True),
            binding(purpose="row-mac-key"),
            binding(egress=("not an origin",)),
            binding(version=-1),
        ]
        for each in moved:
            with pytest.raises(EnvelopeError):
                keyring.unseal(key, each, sealed)
        with pytest.raises(EnvelopeError):
            keyring.unseal(other_key, binding(), sealed)

    async def test_an_owners_key_is_not_handed_out_for_another_owners_row(self, database: Database, keyring: Keyring) -> None:
        """A secret's row that was moved to another owner in the database still names the first owner's key."""
        owner_id, thief = await new_owner(database), await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        for ring in (keyring, await reopened(database)):
            with pytest.raises(EnvelopeError):
                await opening_key(database, ring, key.id, thief)

    async def test_a_key_row_that_was_moved_to_another_owner_does_not_open(self, database: Database, keyring: Keyring) -> None:
        owner_id, thief = await new_owner(database), await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        await alter(database, sa.update(owner_key).where(owner_key.c.id == key.id).values(owner_id=thief))
        for ring in (keyring, await reopened(database)):
            with pytest.raises(EnvelopeError):
                await opening_key(database, ring, key.id, thief)
            with pytest.raises(EnvelopeError):
                await sealing_key(database, ring, thief)

    @pytest.mark.parametrize("changed", [{"version": 2}, {"envelope": b"KB\x01\x01" + bytes(128)}, {"envelope": b""}])
    async def test_a_damaged_key_row_does_not_open(self, database: Database, keyring: Keyring, changed: dict[str, Any]) -> None:
        owner_id = await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        await alter(database, sa.update(owner_key).where(owner_key.c.id == key.id).values(changed))
        with pytest.raises(EnvelopeError):
            await opening_key(database, await reopened(database), key.id, owner_id)

    async def test_an_unknown_key_does_not_open(self, database: Database, keyring: Keyring) -> None:
        with pytest.raises(EnvelopeError):
            await opening_key(database, keyring, uuid4(), await new_owner(database))

    async def test_an_owners_transaction_does_not_see_the_keys_of_others(self, database: Database, keyring: Keyring) -> None:
        # SQLite has no row-level security: opening_key's own check, above, is the wall there.
        shown_to_others = database.name == "sqlite"
        owner_id, other = await new_owner(database), await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        for actor in (Actor.user(other), Actor.user(other, system_keys=True), Actor.lookup()):
            async with database.read(actor) as tx:
                assert (await keys.get_owner_key(tx, key.id) is not None) == shown_to_others
        async with database.read(Actor.user(owner_id)) as tx:
            assert await keys.get_owner_key(tx, key.id) is not None

    async def test_a_retired_key_opens_and_the_next_version_seals(self, database: Database, keyring: Keyring) -> None:
        owner_id = await new_owner(database)
        old = await sealing_key(database, keyring, owner_id)
        sealed = keyring.seal(old, binding(), MARKER)
        await alter(database, sa.update(owner_key).where(owner_key.c.id == old.id).values(state="retired"))
        new = await sealing_key(database, keyring, owner_id)
        assert (new.version, new.id != old.id) == (2, True)
        again = await reopened(database)
        assert again.unseal(await opening_key(database, again, old.id, owner_id), binding(), sealed).reveal() == MARKER

    async def test_a_rolled_back_key_is_made_anew(self, database: Database, keyring: Keyring) -> None:
        owner_id = await new_owner(database)
        lost = None
        with suppress(ZeroDivisionError):
            async with database.write(Actor.user(owner_id)) as tx:
                lost = await keyring.sealing_key(tx, owner_id)
                raise ZeroDivisionError
        assert lost is not None
        kept = await sealing_key(database, keyring, owner_id)
        assert kept.id != lost.id
        assert kept.version == 1

    async def test_nothing_shows_itself(self, database: Database, keyring: Keyring) -> None:
        owner_id = await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        opened = keyring.unseal(key, binding(), keyring.seal(key, binding(), MARKER))
        shown = f"{key!r} {key} {opened!r} {opened} {keyring!r} {vars(keyring)!r} {vars(keyring._recent)!r}"
        assert repr(key.key.reveal()) not in shown
        assert "kbtest" not in shown
        with pytest.raises(EnvelopeError) as caught:
            keyring.unseal(key, binding(version=9), keyring.seal(key, binding(), MARKER))
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
        assert repr(key.key.reveal()) not in "".join(frames)
        assert caught.value.__cause__ is None


class TestRecentKeys:
    async def test_a_used_key_needs_no_query_for_a_while_and_not_for_ever(
        self, database: Database, keyring: Keyring, tamper: Tamper
    ) -> None:
        owner_id, now = await new_owner(database), [0.0]
        keyring._recent = RecentKeys(clock=lambda: now[0])
        key = await sealing_key(database, keyring, owner_id)
        await tamper(sa.delete(owner_key).where(owner_key.c.id == key.id))
        now[0] = 59.9
        assert (await opening_key(database, keyring, key.id, owner_id)).id == key.id
        now[0] = 60.0
        with pytest.raises(EnvelopeError):  # destroyed: what it sealed is gone
            await opening_key(database, keyring, key.id, owner_id)

    async def test_a_process_that_may_have_missed_a_deletion_reads_keys_anew(
        self, database: Database, keyring: Keyring, tamper: Tamper
    ) -> None:
        owner_id = await new_owner(database)
        key = await sealing_key(database, keyring, owner_id)
        await tamper(sa.delete(owner_key).where(owner_key.c.id == key.id))
        forget_deleted(keyring, Change(1, "secret", "", owner_id))
        assert (await opening_key(database, keyring, key.id, owner_id)).id == key.id
        forget_deleted(keyring, Change(2, EVERYTHING, "", None))
        with pytest.raises(EnvelopeError):
            await opening_key(database, keyring, key.id, owner_id)

    def test_using_a_key_does_not_prolong_its_time(self) -> None:
        now, key = [0.0], some_key()
        recent = RecentKeys(seconds=10, clock=lambda: now[0])
        recent.put(key)
        for now[0] in (5.0, 9.0):
            assert recent.get(key.id) is key
        now[0] = 10.0
        assert recent.get(key.id) is None

    def test_it_is_bounded_and_drops_what_was_longest_unused(self) -> None:
        made = [some_key() for _ in range(4)]
        recent = RecentKeys(most=3)
        for key in made[:3]:
            recent.put(key)
        recent.get(made[0].id)
        recent.put(made[3])
        assert [recent.get(key.id) is not None for key in made] == [True, False, True, True]


def some_key() -> OwnerKey:
    return OwnerKey(uuid4(), uuid4(), 1, SecretBytes(b"kbtest-owner-key"))


class TestAnOldDeployment:
    """Frozen: a database that was written from the format's text alone opens, down to the user's secret."""

    async def test_it_opens(self, database: Database) -> None:
        vector = load("deployment_v1.json")
        await self.restore(database, vector)
        keyring = await Keyring.open(database, env.parse(vector["wrapping_key"]))
        assert str(keyring.deployment) == vector["deployment"]["id"]
        secret = vector["secret"]
        sealed = bytes.fromhex(secret["envelope"])
        owner_id = UUID(vector["owner_keys"][secret["owner"]]["owner_id"])
        key = await opening_key(database, keyring, key_id_of(sealed), owner_id)
        bound = secret["binding"] | {"record": UUID(secret["binding"]["record"]), "egress": tuple(secret["binding"]["egress"])}
        assert keyring.unseal(key, Binding(**bound), sealed).reveal().hex() == secret["plaintext"]
        for row in vector["row_macs"]:
            assert keyring.row_mac(row["table"], *row_of(row)).hex() == row["mac"]

    async def test_not_with_another_wrapping_key(self, database: Database) -> None:
        vector = load("deployment_v1.json")
        await self.restore(database, vector)
        with pytest.raises(RootKeyError, match="Wrong root key"):
            await Keyring.open(database, env.parse(vector["other_wrapping_key"]))

    async def restore(self, db: Database, vector: Json) -> None:
        root = vector["root_key"]
        async with db.write(Actor.system()) as tx:
            await keys.insert_deployment(
                tx, UUID(vector["deployment"]["id"]), bytes.fromhex(vector["deployment"]["row_mac_key"]), NOW
            )
            wrapped, proof = bytes.fromhex(root["wrapped"]), bytes.fromhex(root["proof"])
            await keys.insert_root_key(tx, UUID(root["id"]), ("env", "KEYBEARER_ROOT_KEY"), wrapped, proof, NOW)
            for kind, row in vector["owner_keys"].items():
                owner_id = UUID(row["owner_id"])
                await keys.insert_owner(tx, owner_id, OwnerKind(kind), NOW)
                sealed = (UUID(row["root_key_id"]), bytes.fromhex(row["envelope"]))
                assert await keys.insert_owner_key(tx, UUID(row["id"]), (owner_id, row["version"]), sealed, NOW)
