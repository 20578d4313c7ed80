"""Transactions on both databases: what commits, what rolls back, what errors become."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
import sqlalchemy as sa

from keybearer.errors import Conflict, NotFound
from keybearer.store import schema
from keybearer.store.db import Actor, Database

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_what_is_written_is_read(database: Database) -> None:
    owner = uuid4()
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=owner, kind="user", created_at=NOW))
    async with database.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(schema.owner))).one() == (owner, "user", NOW)


async def test_an_exception_rolls_back(database: Database) -> None:
    async def fail_half_way() -> None:
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
            raise RuntimeError("kbtest")

    with pytest.raises(RuntimeError, match="kbtest"):
        await fail_half_way()
    async with database.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(schema.owner))).all() == []


async def test_a_repeated_unique_value_is_a_conflict(database: Database) -> None:
    twice = [{"id": uuid4(), "kind": "user", "created_at": NOW}] * 2
    with pytest.raises(Conflict):
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner), twice)


async def test_a_missing_row_that_is_referred_to_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound):
        async with database.write(Actor.system()) as tx:
            await tx.execute(
                sa.insert(schema.owner_key).values(
                    id=uuid4(), owner_id=uuid4(), version=1, root_key_id=uuid4(), envelope=b"", state="active", created_at=NOW
                )
            )


async def test_a_read_transaction_cannot_write(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError, match=r"read-?only"):
        async with database.read(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))


async def test_ping(database: Database) -> None:
    await database.ping()
