"""Rows with sealed values, whatever table they lie in: for rotation, which knows them from ``vault.sealed_columns``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import owner_key

Row = sa.Row[Any]
Source = Callable[[sa.CTE], sa.Select[Any]]


def _retired(table: sa.Table, owner_id: UUID | None) -> list[sa.ColumnElement[bool]]:
    conditions = [owner_key.c.id == table.c.owner_key_id, owner_key.c.state == "retired"]
    return conditions if owner_id is None else [*conditions, owner_key.c.owner_id == owner_id]


async def count_retired(tx: AsyncConnection, table: sa.Table, owner_id: UUID | None) -> int:
    """Count the rows that are sealed under retired owner keys; as the system, which sees no envelope."""
    # Never the whole row: of an envelope's table the system may read some columns.
    query = sa.select(sa.func.count(table.c.owner_key_id)).where(*_retired(table, owner_id))
    return int((await tx.execute(query)).scalar_one())


async def owners_retired(
    tx: AsyncConnection, table: sa.Table, owner_id: UUID | None, after: UUID | None, limit: int
) -> Sequence[UUID]:
    """Return the next owners, in the order of their ids, with rows under retired keys; as the system."""
    query = sa.select(owner_key.c.owner_id).where(*_retired(table, owner_id)).group_by(owner_key.c.owner_id)
    if after is not None:
        query = query.where(owner_key.c.owner_id > after)
    return (await tx.execute(query.order_by(owner_key.c.owner_id).limit(limit))).scalars().all()


async def rows_retired(
    tx: AsyncConnection, source: Source, table: sa.Table, owner_id: UUID, after: Sequence[Any] | None, limit: int
) -> Sequence[Row]:
    """Return an owner's next rows under retired keys, in the order of the primary key, locked; as that owner.

    Picked by themselves first: left to itself, PostgreSQL has joined every row with every other of that key. Whoever changes a row
    meanwhile seals it under the active key, so that it is not among these any more.
    """
    retired = sa.select(owner_key.c.id).where(owner_key.c.owner_id == owner_id, owner_key.c.state == "retired")
    key_ids = (await tx.execute(retired)).scalars().all()
    keys = list(table.primary_key.columns)
    query = sa.select(table).where(table.c.owner_id == owner_id, table.c.owner_key_id.in_(key_ids))
    if after is not None:
        query = query.where(sa.tuple_(*keys) > sa.tuple_(*(sa.literal(v, k.type) for v, k in zip(after, keys, strict=True))))
    picked = query.order_by(*keys).limit(limit).with_for_update().cte("picked")
    found: Sequence[Row] = (await tx.execute(source(picked).order_by(*(picked.c[key.name] for key in keys)))).all()
    return found


async def versions(tx: AsyncConnection, tables: Sequence[sa.Table]) -> Sequence[Row]:
    """Return how many owner keys there are of each version and state, and how many rows refer to them; as the system."""
    referring = sa.union_all(*(sa.select(table.c.owner_key_id) for table in tables)).subquery()
    counted = sa.select(referring.c.owner_key_id, sa.func.count().label("rows")).group_by(referring.c.owner_key_id).subquery()
    query = (
        sa.select(
            owner_key.c.version,
            owner_key.c.state,
            sa.func.count(owner_key.c.id).label("keys"),
            sa.func.coalesce(sa.func.sum(counted.c.rows), 0).label("rows"),
        )
        .outerjoin(counted, counted.c.owner_key_id == owner_key.c.id)
        .group_by(owner_key.c.version, owner_key.c.state)
        .order_by(owner_key.c.version.desc(), owner_key.c.state)
    )
    return (await tx.execute(query)).all()


async def get_one(tx: AsyncConnection, column: sa.Column[Any]) -> bytes | None:
    """Return the envelope in a table of one row, locked; ``None`` where there is no row or nothing in it."""
    found = (await tx.execute(sa.select(column).with_for_update())).scalar_one_or_none()
    return None if found is None else bytes(found)


async def set_one(tx: AsyncConnection, column: sa.Column[Any], envelope: bytes) -> None:
    """Put another envelope into a table of one row."""
    await tx.execute(sa.update(column.table).values({column.name: envelope}))
