"""Objects kept at providers, made with keys of several people: whose each is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store import bulk
from keybearer.store.schema import gateway_object

_PRUNED = 1_000


async def made_by(tx: AsyncConnection, owner_id: UUID, origin: str, user_id: UUID, ids: Iterable[str]) -> Sequence[sa.Row[Any]]:
    """Of these ids the rows that are this user's, made with this owner's key at this place."""
    query = sa.select(gateway_object).where(
        gateway_object.c.owner_id == owner_id,
        gateway_object.c.origin == origin,
        gateway_object.c.user_id == user_id,
        gateway_object.c.object_id.in_(list(ids)),
    )
    return (await tx.execute(query)).all()


async def insert(tx: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Record new objects. One that is recorded stays whose it is."""
    columns = list(gateway_object.c)
    values = [tuple(row[column.name] for column in columns) for row in rows]
    await bulk.insert(tx, gateway_object, values, on_conflict="ON CONFLICT DO NOTHING")


async def delete(tx: AsyncConnection, owner_id: UUID, origin: str, user_id: UUID, named: tuple[str, str]) -> None:
    """Forget an object that is no more. ``named``: kind and id."""
    kind, object_id = named
    where = (
        gateway_object.c.owner_id == owner_id,
        gateway_object.c.origin == origin,
        gateway_object.c.kind == kind,
        gateway_object.c.object_id == object_id,
        gateway_object.c.user_id == user_id,
    )
    await tx.execute(sa.delete(gateway_object).where(*where))


async def prune(tx: AsyncConnection, kinds: Iterable[str], before: datetime) -> int:
    """Forget old objects of these kinds, some at a time; the system's. How many."""
    key = sa.tuple_(*gateway_object.primary_key.columns)
    old = (
        sa.select(*gateway_object.primary_key.columns)
        .where(gateway_object.c.kind.in_(list(kinds)), gateway_object.c.created_at < before)
        .order_by(gateway_object.c.created_at)
        .limit(_PRUNED)
    )
    return int((await tx.execute(sa.delete(gateway_object).where(key.in_(old)))).rowcount)
