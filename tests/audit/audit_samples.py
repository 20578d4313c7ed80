"""Records to write, and a database with the rows they touch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from msgspec.structs import replace

from keybearer.domain import Client, KeySource, OutcomeRecord, Owner, OwnerKind, Usage, UseRecord
from keybearer.store import schema
from keybearer.store.db import Actor, Database

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Person:
    """A user with one secret and one access token."""

    user_id: UUID
    secret_id: UUID
    token_id: str

    def use(self, request_id: str, **changes: Any) -> UseRecord:
        record = UseRecord(
            request_id=request_id,
            at=time.time(),
            user_id=self.user_id,
            token_id=self.token_id,
            secret_id=self.secret_id,
            secret_version=1,
            owner=Owner(OwnerKind.USER, self.user_id),
            source=KeySource.USER,
            provider="openai",
            model="gpt-5-mini",
            operation="chat.completions",
            streamed=True,
            workflow="nightly",
            node="summary",
            client=Client("127.0.0.1", "openai-python/2.0"),
        )
        return replace(record, **changes)


def outcome(request_id: str, **changes: Any) -> OutcomeRecord:
    record = OutcomeRecord(
        request_id=request_id,
        at=time.time(),
        status=200,
        outcome="ok",
        duration_ms=12.5,
        first_byte_ms=3.25,
        usage=Usage(100, 20, 10, None, 5, "gpt-5-mini-2026-01-01"),
        cost_micro_usd=1234,
    )
    return replace(record, **changes)


def person() -> Person:
    """A person who is in no database yet."""
    return Person(uuid4(), uuid4(), uuid4().hex[:12])


async def add_person(database: Database) -> Person:
    """A person with rows for their secret and token."""
    who = person()
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=who.user_id, kind="user", created_at=NOW))
    async with database.write(Actor.user(who.user_id, admin=True)) as tx:
        await tx.execute(
            sa.insert(schema.user).values(
                id=who.user_id,
                email=f"{who.user_id.hex}@example.com",
                name="kbtest",
                role="admin",
                is_active=True,
                fallback_allowed=True,
                mac=b"",
                created_at=NOW,
                updated_at=NOW,
            )
        )
        await tx.execute(
            sa.insert(schema.access_token).values(
                id=who.token_id,
                token_hash=b"",
                user_id=who.user_id,
                name="kbtest",
                scopes=[],
                ip_allowlist=[],
                is_active=True,
                mac=b"",
                created_at=NOW,
            )
        )
        await tx.execute(
            sa.insert(schema.secret).values(
                id=who.secret_id,
                owner_id=who.user_id,
                owner_kind="user",
                provider="openai",
                secret_type="api_key",
                name="kbtest",
                preview="",
                description="",
                tags=[],
                is_active=True,
                priority=0,
                fetchable=False,
                egress=[],
                state="ok",
                state_reason="",
                version=1,
                created_by=who.user_id,
                created_at=NOW,
                updated_at=NOW,
                usage_count=0,
            )
        )
    return who


async def rows(database: Database, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> list[Any]:
    """All rows of a table, as the system sees them, in the order of their primary key."""
    async with database.read(Actor.system()) as tx:
        return list((await tx.execute(sa.select(table).where(*conditions).order_by(*table.primary_key))).all())
