"""Sessions: rows in, rows out. Finding one by its cookie is in ``lookups``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.queries import cursors
from keybearer.store.schema import session

Row = sa.Row[Any]


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new session."""
    await tx.execute(sa.insert(session).values(**columns))


async def touch(tx: AsyncConnection, session_id: UUID, at: datetime) -> None:
    """Note that the session was used."""
    await tx.execute(sa.update(session).where(session.c.id == session_id).values(last_seen_at=at))


async def live_of_user(
    tx: AsyncConnection, user_id: UUID, alive: tuple[datetime, datetime], cursor: str | None, limit: int
) -> tuple[Sequence[Row], str | None]:
    """A page of a person's sessions that end after, and were seen after, these times; newest first; the cursor of the next."""
    now, seen_after = alive
    query = sa.select(session).where(
        session.c.user_id == user_id, session.c.expires_at > now, session.c.last_seen_at > seen_after
    )
    return await cursors.page(tx, query, {session.c.created_at: datetime, session.c.id: UUID}, cursor, limit, descending=True)


async def begun_at(tx: AsyncConnection, user_id: UUID, session_id: UUID) -> datetime | None:
    """When a person's session began: when they proved who they are."""
    query = sa.select(session.c.created_at).where(session.c.id == session_id, session.c.user_id == user_id)
    found: datetime | None = (await tx.execute(query)).scalar_one_or_none()
    return found


async def delete(tx: AsyncConnection, user_id: UUID, session_id: UUID) -> bool:
    """End one of a person's sessions; whether there was one."""
    query = sa.delete(session).where(session.c.id == session_id, session.c.user_id == user_id)
    return bool((await tx.execute(query)).rowcount)


async def delete_by_hash(tx: AsyncConnection, user_id: UUID, token_hash: bytes) -> None:
    """End the session of a cookie, if it is this person's."""
    await tx.execute(sa.delete(session).where(session.c.token_hash == token_hash, session.c.user_id == user_id))


async def delete_of_user(tx: AsyncConnection, user_id: UUID, but: UUID | None) -> None:
    """End all of a person's sessions, but the one given."""
    query = sa.delete(session).where(session.c.user_id == user_id)
    await tx.execute(query if but is None else query.where(session.c.id != but))


async def delete_expired(tx: AsyncConnection, user_id: UUID, now: datetime, seen_before: datetime) -> None:
    """Sweep a person's sessions that have timed out."""
    over = sa.or_(session.c.expires_at <= now, session.c.last_seen_at <= seen_before)
    await tx.execute(sa.delete(session).where(session.c.user_id == user_id, over))
