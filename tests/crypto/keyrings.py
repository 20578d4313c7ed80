"""What the stories of keyrings begin with: an owner, its keys, and whatever the database holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from tests.crypto import make_vectors

from keybearer.crypto.keyring import Binding, Keyring, OwnerKey
from keybearer.crypto.kms import Wrapper, env
from keybearer.domain import OwnerKind
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys

MARKER = b"kbtest-sk-keyring-7a1c"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def wrapper_of(label: str = "wrapping key of the keyring's tests") -> Wrapper:
    return env.parse(make_vectors.draw(label).hex())


async def new_owner(db: Database, kind: OwnerKind = OwnerKind.USER) -> UUID:
    owner_id = uuid4()
    async with db.write(Actor.system()) as tx:
        await keys.insert_owner(tx, owner_id, kind, NOW)
    return owner_id


async def sealing_key(db: Database, keyring: Keyring, owner_id: UUID) -> OwnerKey:
    async with db.write(Actor.user(owner_id)) as tx:
        return await keyring.sealing_key(tx, owner_id)


async def opening_key(db: Database, keyring: Keyring, key_id: UUID, owner_id: UUID) -> OwnerKey:
    async with db.read(Actor.user(owner_id)) as tx:
        return await keyring.opening_key(tx, key_id, owner_id)


async def reopened(db: Database) -> Keyring:
    """The keyring after a restart: nothing in memory."""
    return await Keyring.open(db, wrapper_of())


def binding(**changed: Any) -> Binding:
    usual: dict[str, Any] = {"record": UUID(int=7), "version": 1, "field": "value", "egress": ("https://api.openai.com:443",)}
    return Binding(**(usual | changed))


async def rows(db: Database, table: sa.Table) -> list[keys.Row]:
    async with db.read(Actor.system()) as tx:
        return list((await tx.execute(sa.select(table))).all())


async def alter(db: Database, statement: sa.Executable) -> None:
    async with db.write(Actor.system()) as tx:
        await tx.execute(statement)
