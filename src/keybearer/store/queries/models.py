"""Registered models: rows in, rows out. Every query names the owners it may touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.queries import cursors
from keybearer.store.schema import model

Row = sa.Row[Any]


async def page(
    tx: AsyncConnection, owners: Iterable[UUID], provider: str | None, cursor: str | None, limit: int
) -> tuple[Sequence[Row], str | None]:
    """A page of the models of these owners, by provider and name, and the cursor of the next. Raises ``Invalid`` for a foreign one."""
    query = sa.select(model).where(model.c.owner_id.in_(list(owners)))
    if provider is not None:
        query = query.where(model.c.provider == provider)
    return await cursors.page(tx, query, {model.c.provider: str, model.c.name: str, model.c.id: UUID}, cursor, limit)


async def get(tx: AsyncConnection, owners: Iterable[UUID], model_id: UUID) -> Row | None:
    """One model of these owners."""
    query = sa.select(model).where(model.c.id == model_id, model.c.owner_id.in_(list(owners)))
    return (await tx.execute(query)).one_or_none()


async def lock(tx: AsyncConnection, owners: Iterable[UUID], model_id: UUID) -> Row | None:
    """One model of these owners, which no other transaction changes until this one ends."""
    query = sa.select(model).where(model.c.id == model_id, model.c.owner_id.in_(list(owners)))
    return (await tx.execute(query.with_for_update())).one_or_none()


async def of_owner(tx: AsyncConnection, owner_id: UUID) -> Sequence[Row]:
    """All models of one owner."""
    return (await tx.execute(sa.select(model).where(model.c.owner_id == owner_id))).all()


async def insert(tx: AsyncConnection, columns: Sequence[Mapping[str, Any]]) -> None:
    """New models, all with the same columns."""
    await tx.execute(sa.insert(model), list(columns))


async def update(tx: AsyncConnection, owner_id: UUID, model_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a model."""
    await tx.execute(sa.update(model).where(model.c.id == model_id, model.c.owner_id == owner_id).values(**columns))


async def delete(tx: AsyncConnection, owner_id: UUID, model_id: UUID) -> None:
    """Remove a model."""
    await tx.execute(sa.delete(model).where(model.c.id == model_id, model.c.owner_id == owner_id))
