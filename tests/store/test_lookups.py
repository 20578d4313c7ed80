"""What is found before the caller is known: the same rows and columns on both databases."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from keybearer.store import schema
from keybearer.store.db import Actor, Database
from keybearer.store.queries import lookups

NOW = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)

TOKEN = {
    "id": "kbtest000001",
    "token_hash": b"\x01" * 32,
    "name": "kbtest",
    "scopes": ["gateway:use"],
    "allowed_providers": None,
    "allowed_models": ["openai/gpt-5"],
    "ip_allowlist": ["10.0.0.0/8"],
    "is_active": True,
    "expires_at": NOW,
    "last_used_at": None,
    "mac": b"\x02" * 32,
    "created_at": NOW,
}
SESSION = {
    "id": uuid4(),
    "token_hash": b"\x03" * 32,
    "ip": "127.0.0.1",
    "user_agent": "kbtest",
    "last_seen_at": NOW,
    "expires_at": NOW,
    "mac": b"\x04" * 32,
    "created_at": NOW,
}
LINK = {"token_hash": b"\x05" * 32, "purpose": "setup", "expires_at": NOW, "used_at": None, "created_at": NOW}


@pytest.fixture
async def user_id(database: Database) -> UUID:
    """A user with a token and a session, and a link of nobody's."""
    user_id = uuid4()
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=user_id, kind="user", created_at=NOW))
        await tx.execute(sa.insert(schema.user).values(user(user_id)))
        await tx.execute(sa.insert(schema.one_time_link).values(LINK))
    async with database.write(Actor.user(user_id)) as tx:
        await tx.execute(sa.insert(schema.access_token).values(TOKEN | {"user_id": user_id}))
        await tx.execute(sa.insert(schema.session).values(SESSION | {"user_id": user_id}))
    return user_id


def user(user_id: UUID) -> dict[str, object]:
    names = {"email": "ada@example.com", "name": "Ada", "password_hash": "kbtest-hash", "role": "member"}
    state = {"is_active": False, "fallback_allowed": True, "mac": b"\x06" * 32}
    return {"id": user_id, **names, **state, "created_at": NOW, "updated_at": NOW}


STATE = {"user_role": "member", "user_is_active": False, "user_mac": b"\x06" * 32}


async def test_a_token_by_its_id(database: Database, user_id: UUID) -> None:
    async with database.read(Actor.lookup()) as tx:
        found = await lookups.token_by_id(tx, "kbtest000001")
        assert found is not None
        assert dict(found._mapping) == TOKEN | {"user_id": user_id} | STATE
        assert await lookups.token_by_id(tx, "kbtest000002") is None


async def test_a_session_by_its_cookies_hash(database: Database, user_id: UUID) -> None:
    async with database.read(Actor.lookup()) as tx:
        found = await lookups.session_by_hash(tx, b"\x03" * 32)
        assert found is not None
        assert dict(found._mapping) == SESSION | {"user_id": user_id} | STATE
        assert await lookups.session_by_hash(tx, b"\x01" * 32) is None


async def test_an_account_by_its_address(database: Database, user_id: UUID) -> None:
    async with database.read(Actor.lookup()) as tx:
        found = await lookups.user_by_email(tx, "ada@example.com")
        assert found is not None
        assert dict(found._mapping) == user(user_id)
        for other in ("ADA@example.com", "ada@example.co", "%", "' OR 1=1 --", ""):
            assert await lookups.user_by_email(tx, other) is None


async def test_a_link_by_its_hash(database: Database, user_id: UUID) -> None:
    async with database.read(Actor.lookup()) as tx:
        found = await lookups.link_by_hash(tx, b"\x05" * 32)
        assert found is not None
        assert dict(found._mapping) == LINK
        assert await lookups.link_by_hash(tx, b"") is None


async def test_whether_an_administrator_exists(database: Database, user_id: UUID) -> None:
    async with database.read(Actor.lookup()) as tx:
        assert not await lookups.admin_exists(tx)
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.update(schema.user).values(role="admin"))
    async with database.read(Actor.lookup()) as tx:
        assert await lookups.admin_exists(tx)


async def test_the_system_looks_up_too(database: Database, user_id: UUID) -> None:
    async with database.write(Actor.system()) as tx:
        assert await lookups.user_by_email(tx, "ada@example.com") is not None


async def test_all_columns_come_back(database: Database, user_id: UUID) -> None:
    """A column that is added to a table later is added to its function too, or nobody needs it before the caller is known."""
    unneeded = {schema.user.c.mailed}
    async with database.read(Actor.lookup()) as tx:
        for table, found in (
            (schema.access_token, await lookups.token_by_id(tx, "kbtest000001")),
            (schema.session, await lookups.session_by_hash(tx, b"\x03" * 32)),
            (schema.user, await lookups.user_by_email(tx, "ada@example.com")),
            (schema.one_time_link, await lookups.link_by_hash(tx, b"\x05" * 32)),
        ):
            assert found is not None
            assert {column.name for column in table.columns if column not in unneeded} <= set(found._mapping)
