"""Access tokens: rows in, rows out. Every query names the owner; what is another's is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.queries import cursors
from keybearer.store.schema import access_token

Row = sa.Row[Any]


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new token."""
    await tx.execute(sa.insert(access_token).values(**columns))


async def of_user(tx: AsyncConnection, user_id: UUID, cursor: str | None, limit: int) -> tuple[Sequence[Row], str | None]:
    """A page of a person's tokens, newest first, and the cursor of the next."""
    query = sa.select(access_token).where(access_token.c.user_id == user_id)
    order = {access_token.c.created_at: datetime, access_token.c.id: str}
    return await cursors.page(tx, query, order, cursor, limit, descending=True)


async def get(tx: AsyncConnection, user_id: UUID | None, token_id: str, *, lock: bool = False) -> Row | None:
    """One of a person's tokens (``None``: of anybody's); with ``lock``, no other transaction changes it until this one ends."""
    query = sa.select(access_token).where(access_token.c.id == token_id)
    if user_id is not None:
        query = query.where(access_token.c.user_id == user_id)
    return (await tx.execute(query.with_for_update() if lock else query)).one_or_none()


async def update(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """Write all columns of a token anew."""
    where = (access_token.c.id == columns["id"], access_token.c.user_id == columns["user_id"])
    await tx.execute(sa.update(access_token).where(*where).values(**columns))


async def delete(tx: AsyncConnection, user_id: UUID, token_id: str) -> None:
    """Remove a token."""
    await tx.execute(sa.delete(access_token).where(access_token.c.id == token_id, access_token.c.user_id == user_id))
