"""Keyrings of several processes at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.crypto import make_vectors, reference
from tests.crypto.keyrings import NOW, new_owner, opening_key, reopened, rows, sealing_key, wrapper_of

from keybearer.crypto.keyring import Keyring, OwnerKey
from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys
from keybearer.store.schema import owner_key, root_key


class TestRaces:
    async def test_two_connections_make_an_owners_first_key_at_once(
        self, database: Database, second: Database, keyring: Keyring
    ) -> None:
        """The slower one waits for the faster one's end, and uses its key."""
        owner_id, made = await new_owner(database), asyncio.Event()
        other = await reopened(second)

        async def faster() -> OwnerKey:
            async with database.write(Actor.user(owner_id)) as tx:
                key = await keyring.sealing_key(tx, owner_id)
                made.set()
                await asyncio.sleep(0.2)
                return key

        async def slower() -> OwnerKey:
            await made.wait()
            return await sealing_key(second, other, owner_id)

        first, later = await asyncio.gather(faster(), slower())
        assert first.id == later.id
        assert first.key.reveal() == later.key.reveal()
        assert len([row for row in await rows(database, owner_key) if row.owner_id == owner_id]) == 1

    async def test_the_slower_one_makes_it_if_the_faster_one_rolls_back(
        self, database: Database, second: Database, keyring: Keyring
    ) -> None:
        owner_id, made = await new_owner(database), asyncio.Event()
        other = await reopened(second)

        async def faster() -> None:
            async with database.write(Actor.user(owner_id)) as tx:
                await keyring.sealing_key(tx, owner_id)
                made.set()
                await asyncio.sleep(0.2)
                raise ZeroDivisionError

        async def slower() -> OwnerKey:
            await made.wait()
            return await sealing_key(second, other, owner_id)

        failed, later = await asyncio.gather(faster(), slower(), return_exceptions=True)
        assert isinstance(failed, ZeroDivisionError)
        assert isinstance(later, OwnerKey)
        (row,) = [row for row in await rows(database, owner_key) if row.owner_id == owner_id]
        assert row.id == later.id

    async def test_one_overtakes_the_other_after_it_has_looked(
        self, database: Database, second: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The slower one saw no key, and must not make the next version of the key that was committed since."""
        owner_id, other = await new_owner(database), await reopened(second)
        looked, overtaken, original = asyncio.Event(), asyncio.Event(), keys.get_active_root_keys

        async def delayed(tx: AsyncConnection, *, lock: bool = False) -> Sequence[keys.Row]:
            if not looked.is_set():
                looked.set()
                with suppress(TimeoutError):  # SQLite: nobody overtakes a writer
                    await asyncio.wait_for(overtaken.wait(), 0.5)
            return await original(tx, lock=lock)

        async def overtake() -> OwnerKey:
            await looked.wait()
            key = await sealing_key(second, other, owner_id)
            overtaken.set()
            return key

        monkeypatch.setattr(keys, "get_active_root_keys", delayed)
        slower, faster = await asyncio.gather(sealing_key(database, keyring, owner_id), overtake())
        assert slower.id == faster.id
        assert [row.version for row in await rows(database, owner_key) if row.owner_id == owner_id] == [1]

    async def test_many_at_once(self, database: Database, second: Database, keyring: Keyring) -> None:
        owner_id, other = await new_owner(database), await reopened(second)
        pairs = [(database, keyring), (second, other)] * 8
        made = await asyncio.gather(*(sealing_key(db, ring, owner_id) for db, ring in pairs))
        assert len({key.id for key in made}) == 1

    async def test_a_process_that_slept_through_a_root_rotation_does_not_seal_under_the_dead_key(
        self, database: Database, second: Database, keyring: Keyring
    ) -> None:
        owner_id = await new_owner(database)
        sleeper = await reopened(second)
        locked = asyncio.Event()
        new_id, new_root = uuid4(), make_vectors.draw("the next root key")
        aad = b"keybearer/v1/root-key" + keyring.deployment.bytes + new_id.bytes
        proof_context = make_vectors.BASE | {
            "purpose": "root-key-proof",
            "deployment": str(keyring.deployment),
            "owner": str(SYSTEM_OWNER_ID),
            "record": str(new_id),
            "field": "proof",
            "egress": [],
        }
        proof = reference.seal(new_root, str(new_id), proof_context, b"keybearer root key", make_vectors.draw("salt"))
        wrapped = await wrapper_of().wrap(new_root, aad)

        async def promote() -> None:
            async with database.write(Actor.system()) as tx:
                await tx.execute(sa.select(root_key.c.id).where(root_key.c.state == "active").with_for_update())
                locked.set()
                await asyncio.sleep(0.2)
                await tx.execute(sa.update(root_key).values(state="retired"))
                await keys.insert_root_key(tx, new_id, ("env", "KEYBEARER_ROOT_KEY"), wrapped, proof, NOW)

        async def seal() -> OwnerKey:
            await locked.wait()
            return await sealing_key(second, sleeper, owner_id)

        _, key = await asyncio.gather(promote(), seal())
        (row,) = [row for row in await rows(database, owner_key) if row.id == key.id]
        assert row.root_key_id == new_id
        # And what the old root key sealed still opens, with either keyring.
        again = await reopened(database)
        assert again.row_mac("user", "x") == keyring.row_mac("user", "x")
        assert (await opening_key(database, again, key.id, owner_id)).key.reveal() == key.key.reveal()

    async def test_making_a_key_holds_a_rotation_off_until_it_is_committed(
        self, database: Database, second: Database, keyring: Keyring
    ) -> None:
        owner_id, order, made = await new_owner(database), [], asyncio.Event()

        async def promote() -> None:
            await made.wait()
            async with second.write(Actor.system()) as tx:
                await tx.execute(sa.select(root_key.c.id).where(root_key.c.state == "active").with_for_update())
                order.append("rotation")
                found = await tx.execute(sa.select(owner_key.c.id).where(owner_key.c.owner_id == owner_id))
                assert len(found.all()) == 1

        async def make() -> None:
            async with database.write(Actor.user(owner_id)) as tx:
                await keyring.sealing_key(tx, owner_id)
                made.set()
                await asyncio.sleep(0.2)
                order.append("key")

        await asyncio.gather(promote(), make())
        assert order == ["key", "rotation"]
