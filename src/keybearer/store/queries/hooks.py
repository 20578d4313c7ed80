"""People's addresses for signed reminders: rows in, rows out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import reminder_hook

Row = sa.Row[Any]


async def get(tx: AsyncConnection, owner_id: UUID) -> Row | None:
    """A person's, with its envelope; as that person."""
    return (await tx.execute(sa.select(reminder_hook).where(reminder_hook.c.owner_id == owner_id))).one_or_none()


async def lock(tx: AsyncConnection, owner_id: UUID) -> Row | None:
    """A person's, which no other transaction changes until this one ends."""
    query = sa.select(reminder_hook).where(reminder_hook.c.owner_id == owner_id).with_for_update()
    return (await tx.execute(query)).one_or_none()


async def put(tx: AsyncConnection, row: Row | None, columns: Mapping[str, Any]) -> None:
    """A new one, or other columns of the one that there is."""
    if row is None:
        await tx.execute(sa.insert(reminder_hook).values(**columns))
    else:
        await tx.execute(sa.update(reminder_hook).where(reminder_hook.c.owner_id == row.owner_id).values(**columns))


async def delete(tx: AsyncConnection, owner_id: UUID) -> bool:
    """Remove a person's; whether there was one."""
    return (await tx.execute(sa.delete(reminder_hook).where(reminder_hook.c.owner_id == owner_id))).rowcount == 1


async def note(tx: AsyncConnection, owner_id: UUID, version: int, problem: str, *, is_active: bool) -> None:
    """Keep what came of using a version; as the system."""
    where = (reminder_hook.c.owner_id == owner_id, reminder_hook.c.version == version)
    await tx.execute(sa.update(reminder_hook).where(*where).values(problem=problem, is_active=is_active))
