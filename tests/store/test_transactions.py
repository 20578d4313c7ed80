"""Transactions on both databases: what commits, what rolls back, what errors become."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper

from keybearer.errors import Conflict, DatabaseError, Invalid, NotFound
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


async def test_a_read_transaction_sees_one_state_throughout(database: Database) -> None:
    count = sa.select(sa.func.count()).select_from(schema.owner)
    async with database.read(Actor.system()) as reader:
        before = (await reader.execute(count)).scalar_one()
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
        assert (await reader.execute(count)).scalar_one() == before == 0


async def test_deleting_an_owner_deletes_all_that_is_theirs_and_nothing_else(database: Database, tamper: Tamper) -> None:
    root, users = uuid4(), [uuid4(), uuid4()]
    await tamper(
        sa.insert(schema.root_key).values(id=root, provider="env", reference="", state="active", proof=b"", created_at=NOW)
    )
    for user in users:
        await _populate(tamper, user, root)
    async with database.write(Actor.user(users[0])) as tx:
        assert (await tx.execute(sa.delete(schema.owner).where(schema.owner.c.id == users[0]))).rowcount == 1
    for user in users:
        async with database.read(Actor.user(user)) as tx:
            for table in (schema.user, schema.access_token, schema.owner_key, schema.secret, schema.secret_version):
                owner = table.c.get("owner_id", table.c.get("user_id", table.c.get("id")))
                assert owner is not None
                found = (await tx.execute(sa.select(sa.func.count()).where(owner == user))).scalar_one()
                assert found == users.index(user), table.name


async def _populate(tamper: Tamper, user: UUID, root: UUID) -> None:
    key, secret = uuid4(), uuid4()
    await tamper(sa.insert(schema.owner).values(id=user, kind="user", created_at=NOW))
    account = {"email": str(user), "name": "", "role": "member", "is_active": True, "fallback_allowed": True, "mac": b""}
    await tamper(sa.insert(schema.user).values(id=user, **account, created_at=NOW, updated_at=NOW))
    token = {"token_hash": b"", "user_id": user, "name": "", "scopes": [], "ip_allowlist": [], "is_active": True, "mac": b""}
    await tamper(sa.insert(schema.access_token).values(id=str(user)[:12], **token, created_at=NOW))
    sealed = {"root_key_id": root, "envelope": b"", "state": "active", "created_at": NOW}
    await tamper(sa.insert(schema.owner_key).values(id=key, owner_id=user, version=1, **sealed))
    texts = dict.fromkeys(("provider", "secret_type", "name", "preview", "description", "state", "state_reason"), "")
    flags = {"tags": [], "egress": [], "is_active": True, "priority": 0, "fetchable": False, "version": 1, "usage_count": 0}
    owned = {"id": secret, "owner_id": user, "owner_kind": "user", "created_by": user, "created_at": NOW, "updated_at": NOW}
    await tamper(sa.insert(schema.secret).values(**owned, **texts, **flags))
    version = {"secret_id": secret, "version": 1, "owner_id": user, "owner_key_id": key, "envelope": b"", "created_at": NOW}
    await tamper(sa.insert(schema.secret_version).values(version))


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def test_an_error_does_not_repeat_what_was_to_be_written(database: Database) -> None:
    owner = uuid4()
    good = {"id": owner, "kind": "user", "created_at": NOW}
    for row, expected in (({"kind": "kbtest-kind"}, DatabaseError), ({"kind": None}, DatabaseError), ({}, Conflict)):
        with pytest.raises(expected) as caught:
            async with database.write(Actor.system()) as tx:
                await tx.execute(sa.insert(schema.owner), [good, good | row])
        assert str(owner) not in told(caught.value)
        assert owner.hex not in told(caught.value)
        assert "kbtest-kind" not in told(caught.value)


async def test_what_postgresql_cannot_store_is_invalid(database: Database) -> None:
    if database.name == "sqlite":
        return  # stores any text of any length
    for host in ("x" * 300, "kbtest\x00"):
        row = {"id": uuid4(), "kind": "process", "host": host, "pid": 1, "started_at": NOW, "shipped_seq": 0, "shipped_hash": b""}
        with pytest.raises(Invalid) as caught:
            async with database.write(Actor.system()) as tx:
                await tx.execute(sa.insert(schema.audit_writer).values(row))
        assert host not in told(caught.value)


async def test_a_cancelled_transaction_rolls_back_and_gives_its_connection_back(database: Database) -> None:
    begun = asyncio.Event()

    async def write() -> None:
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
            begun.set()
            await asyncio.sleep(60)

    for _ in range(12):  # more than there are connections
        begun.clear()
        task = asyncio.create_task(write())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with database.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(schema.owner))).scalar_one() == 0


async def test_closing_waits_for_who_was_cancelled_twice(database_urls: tuple[str, str]) -> None:
    """Else the connection is nobody's, and stays open until the collector finds it."""
    db = await Database.open(*database_urls)
    engines = [db._readers, db._writers, db._side]
    for begin in (lambda: db.read(Actor.system()), lambda: db.write(Actor.system()), db.watch):
        entered = asyncio.Event()

        async def stay(begin: Callable[[], AbstractAsyncContextManager[object]], entered: asyncio.Event) -> None:
            async with begin():
                entered.set()
                await asyncio.Event().wait()

        staying = asyncio.create_task(stay(begin, entered))
        await entered.wait()
        staying.cancel()
        await asyncio.sleep(0)
        staying.cancel()
        await asyncio.wait({staying})
    pools = [engine.sync_engine.pool for engine in engines]
    await db.close()
    assert [pool.checkedout() for pool in pools if isinstance(pool, sa.QueuePool)] == [0] * len(pools)


async def test_times_come_back_as_they_were(database: Database) -> None:
    """In UTC, to the microsecond, whatever zone they were given in; and they sort as times do."""
    zones = [UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=12))]
    times = [datetime(2026, 3, 29, hour, 30, 15, 123456, tzinfo=zone) for hour in (1, 23) for zone in zones]
    times.append(datetime(2026, 3, 29, tzinfo=UTC))
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner), [{"id": uuid4(), "kind": "user", "created_at": at} for at in times])
        found = (await tx.execute(sa.select(schema.owner.c.created_at).order_by(schema.owner.c.created_at))).scalars().all()
    assert list(found) == sorted(times)
    assert {at.tzinfo for at in found} == {UTC}
    with pytest.raises(sa.exc.StatementError, match="naive"):
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW.replace(tzinfo=None)))
