"""Rotations of keys, and the processes that must follow them: rows in, rows out. All of it is the system's.

Times are the database's: leases and signs of life are compared across machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import key_holder, key_rotation

Row = sa.Row[Any]


async def now(tx: AsyncConnection) -> datetime:
    """Return the database's time; SQLite's is this machine's."""
    if tx.dialect.name == "postgresql":
        found: datetime = (await tx.execute(sa.select(sa.func.now()))).scalar_one()
        return found.astimezone(UTC)
    return datetime.now(UTC)


async def running(tx: AsyncConnection) -> Row | None:
    """Return the rotation under way."""
    return (await tx.execute(sa.select(key_rotation).where(key_rotation.c.state == "running"))).one_or_none()


async def latest(tx: AsyncConnection) -> Row | None:
    """Return the rotation under way, or the one that was begun last."""
    order = (sa.case((key_rotation.c.state == "running", 0), else_=1), key_rotation.c.created_at.desc())
    return (await tx.execute(sa.select(key_rotation).order_by(*order).limit(1))).one_or_none()


async def get(tx: AsyncConnection, rotation_id: UUID) -> Row | None:
    """Return one rotation."""
    return (await tx.execute(sa.select(key_rotation).where(key_rotation.c.id == rotation_id))).one_or_none()


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """Begin a rotation. Another that is under way is ``Conflict``."""
    empty = {"provider": "", "done": 0, "total": 0, "unreadable": 0, "problem": "", "state": "running"}
    await tx.execute(sa.insert(key_rotation).values(**{**empty, **columns}))


async def lease(tx: AsyncConnection, rotation_id: UUID, runner: UUID, life: timedelta) -> bool:
    """Take a rotation to work on it, or go on with it; whether nobody else does."""
    at = await now(tx)
    columns = key_rotation.c
    free = sa.or_(columns.runner.is_(None), columns.runner == runner, columns.leased_until <= at)
    query = sa.update(key_rotation).where(columns.id == rotation_id, columns.state == "running", free)
    return bool((await tx.execute(query.values(runner=runner, leased_until=at + life))).rowcount)


async def update(tx: AsyncConnection, rotation_id: UUID, columns: Mapping[str, Any]) -> None:
    """Note how far a rotation has come."""
    query = sa.update(key_rotation).where(key_rotation.c.id == rotation_id)
    await tx.execute(query.values(updated_at=await now(tx), **columns))


async def advance(tx: AsyncConnection, rotation_id: UUID, done: int, unreadable: int, place: UUID | None) -> None:
    """Count what was done."""
    columns = key_rotation.c
    counted = {"done": columns.done + done, "unreadable": columns.unreadable + unreadable, "place": place}
    await update(tx, rotation_id, counted)


async def round_off(tx: AsyncConnection, rotation_id: UUID) -> None:
    """Count as done what a killed worker had done and not noted; also what was deleted meanwhile."""
    columns = key_rotation.c
    await tx.execute(sa.update(key_rotation).where(columns.id == rotation_id).values(done=columns.total - columns.unreadable))


async def register(tx: AsyncConnection, holder_id: UUID, host: str, pid: int) -> None:
    """A process that is about to open the root key: of this very moment, not of the transaction's beginning."""
    at = await now(tx)
    if tx.dialect.name == "postgresql":
        at = (await tx.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
    await tx.execute(
        sa.insert(key_holder).values(id=holder_id, host=host, pid=pid, seen_at=at, root_key_id=None, problem="", created_at=at)
    )


async def note_holder(tx: AsyncConnection, holder_id: UUID, root_key_id: UUID | None, problem: str) -> bool:
    """A process's sign of life; whether it was known."""
    query = sa.update(key_holder).where(key_holder.c.id == holder_id)
    values = {"seen_at": await now(tx), "root_key_id": root_key_id, "problem": problem}
    return bool((await tx.execute(query.values(values))).rowcount)


async def holders(tx: AsyncConnection, alive: timedelta) -> Sequence[Row]:
    """Return the processes that were seen within ``alive``."""
    at = await now(tx)
    return (
        await tx.execute(sa.select(key_holder).where(key_holder.c.seen_at > at - alive).order_by(key_holder.c.created_at))
    ).all()


async def remove_holder(tx: AsyncConnection, holder_id: UUID) -> None:
    """A process that ends."""
    await tx.execute(sa.delete(key_holder).where(key_holder.c.id == holder_id))


async def remove_lost(tx: AsyncConnection, alive: timedelta) -> None:
    """Forget processes that gave no sign of life for long."""
    await tx.execute(sa.delete(key_holder).where(key_holder.c.seen_at <= await now(tx) - alive))
