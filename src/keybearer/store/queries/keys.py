"""Deployment, root keys and owner keys: rows in, rows out. Everything that is key material in these rows is wrapped or sealed.

On PostgreSQL an owner key is visible to its owner's transactions and to the system's; root key rows are visible to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import OwnerKind
from keybearer.store.schema import deployment, owner, owner_key, root_key

Row: TypeAlias = "sa.Row[*tuple[Any, ...]]"


async def get_deployment(tx: AsyncConnection) -> Row | None:
    """``id`` and ``row_mac_key`` of this deployment; ``None`` before the first run."""
    return (await tx.execute(sa.select(deployment.c.id, deployment.c.row_mac_key))).one_or_none()


async def insert_deployment(tx: AsyncConnection, deployment_id: UUID, row_mac_key: bytes, at: datetime) -> None:
    """Insert the one row. A second one is ``Conflict``, on PostgreSQL after the first one's transaction has ended."""
    await tx.execute(sa.insert(deployment).values(singleton=1, id=deployment_id, row_mac_key=row_mac_key, created_at=at))


async def count_root_keys(tx: AsyncConnection) -> int:
    """Count the root keys, in any state."""
    return int((await tx.execute(sa.select(sa.func.count()).select_from(root_key))).scalar_one())


async def held_by(connection: AsyncConnection) -> str | None:
    """Return the provider of the active root key in a database, migrated or not; ``None`` where there are no root keys.

    Empty where it cannot be told: the tables are there but cannot be read, or none is active.
    """
    if connection.dialect.name == "postgresql":
        exists = sa.text("SELECT to_regclass('public.root_key')")
    else:
        exists = sa.text("SELECT name FROM sqlite_master WHERE name = 'root_key'")
    if (await connection.execute(exists)).scalar() is None:
        return None
    try:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text("SET LOCAL ROLE keybearer_system"))
        rows = (await connection.execute(sa.select(root_key.c.provider, root_key.c.state))).all()
    except ProgrammingError:  # of PostgreSQL: a login that was never admitted
        return ""
    if not rows:
        return None
    return next((str(row.provider) for row in rows if row.state == "active"), "")


async def get_root_key(tx: AsyncConnection, key_id: UUID) -> Row | None:
    """Return a root key's row, in any state."""
    return (await tx.execute(sa.select(root_key).where(root_key.c.id == key_id))).one_or_none()


async def get_active_root_keys(tx: AsyncConnection, *, lock: bool = False) -> Sequence[Row]:
    """Return the rows of root keys that new owner keys are sealed under: one, unless the database is damaged.

    ``lock`` takes it FOR SHARE until the transaction ends: a rotation, which locks it FOR UPDATE, comes before or after. Where it
    came while this waited, none is found, as the new one was not yet there at the statement's start: ask again. SQLite has one
    writer at a time and needs no lock.
    """
    query = sa.select(root_key).where(root_key.c.state == "active")
    return (await tx.execute(query.with_for_update(read=True) if lock else query)).all()


async def insert_root_key(
    tx: AsyncConnection,
    key_id: UUID,
    origin: tuple[str, str],
    wrapped: bytes,
    proof: bytes,
    at: datetime,
    *,
    state: str = "active",
) -> None:
    """Insert a new root key; ``origin`` is provider and reference of what wrapped it."""
    provider, reference = origin
    await tx.execute(
        sa.insert(root_key).values(
            id=key_id, provider=provider, reference=reference, wrapped=wrapped, proof=proof, state=state, created_at=at
        )
    )


async def root_keys_in_use(tx: AsyncConnection) -> Sequence[Row]:
    """Return the rows of root keys that something may be sealed under, or soon will be: staged, active, then those being emptied."""
    order = sa.case((root_key.c.state == "staged", 0), (root_key.c.state == "active", 1), else_=2)
    return (await tx.execute(sa.select(root_key).where(root_key.c.emptied_at.is_(None)).order_by(order))).all()


async def root_keys(tx: AsyncConnection) -> Sequence[Row]:
    """Return all root keys, in any state."""
    return (await tx.execute(sa.select(root_key).order_by(root_key.c.created_at))).all()


async def set_holder(tx: AsyncConnection, key_id: UUID, origin: tuple[str, str], wrapped: bytes) -> None:
    """Have another provider hold a root key; ``origin`` is provider and reference."""
    provider, reference = origin
    query = sa.update(root_key).where(root_key.c.id == key_id)
    await tx.execute(query.values(provider=provider, reference=reference, wrapped=wrapped))


async def lock_root_keys(tx: AsyncConnection) -> Sequence[Row]:
    """Return all root keys, locked FOR UPDATE: whoever makes an owner key under one comes before this transaction, or after."""
    return (await tx.execute(sa.select(root_key).order_by(root_key.c.id).with_for_update())).all()


async def set_root_key_state(tx: AsyncConnection, key_id: UUID, state: str, emptied_at: datetime | None = None) -> None:
    """Change what a root key is good for."""
    await tx.execute(sa.update(root_key).where(root_key.c.id == key_id).values(state=state, emptied_at=emptied_at))


async def drop_root_key(tx: AsyncConnection, key_id: UUID) -> None:
    """Delete a root key; the row is locked and was found to be retired, and empty."""
    await tx.execute(sa.delete(root_key).where(root_key.c.id == key_id, root_key.c.state == "retired"))


async def drop_owner_keys(tx: AsyncConnection, tables: Sequence[sa.Table], kept: Sequence[UUID]) -> int:
    """Delete the retired owner keys that no row of these tables refers to, but for those ``kept``; how many that were."""
    unused = (~sa.exists(sa.select(1).where(table.c.owner_key_id == owner_key.c.id)) for table in tables)
    where = (owner_key.c.state == "retired", owner_key.c.id.not_in(list(kept)), *unused)
    return (await tx.execute(sa.delete(owner_key).where(*where))).rowcount


async def count_not_under(tx: AsyncConnection, root_key_id: UUID) -> int:
    """Count the owner keys that other root keys seal."""
    query = sa.select(sa.func.count()).select_from(owner_key).where(owner_key.c.root_key_id != root_key_id)
    return int((await tx.execute(query)).scalar_one())


async def count_under(tx: AsyncConnection, root_key_id: UUID) -> int:
    """Count the owner keys that a root key seals."""
    query = sa.select(sa.func.count()).select_from(owner_key).where(owner_key.c.root_key_id == root_key_id)
    return int((await tx.execute(query)).scalar_one())


async def not_under(tx: AsyncConnection, root_key_id: UUID, after: UUID | None, limit: int) -> Sequence[Row]:
    """Return owner keys that other root keys seal, in the order of their ids after ``after``, locked until they are sealed anew."""
    query = sa.select(owner_key).where(owner_key.c.root_key_id != root_key_id)
    if after is not None:
        query = query.where(owner_key.c.id > after)
    return (await tx.execute(query.order_by(owner_key.c.id).limit(limit).with_for_update())).all()


async def active_owner_keys(tx: AsyncConnection, owner_id: UUID | None, after: UUID | None, limit: int) -> Sequence[Row]:
    """Return the active owner keys of one owner, or of the next ``limit`` owners after ``after``; locked against whoever seals."""
    query = sa.select(owner_key).where(owner_key.c.state == "active")
    if owner_id is not None:
        query = query.where(owner_key.c.owner_id == owner_id)
    if after is not None:
        query = query.where(owner_key.c.owner_id > after)
    return (await tx.execute(query.order_by(owner_key.c.owner_id, owner_key.c.version).limit(limit).with_for_update())).all()


async def retire_owner_keys(tx: AsyncConnection, key_ids: Sequence[UUID]) -> None:
    """Let nothing more be sealed under these."""
    await tx.execute(sa.update(owner_key).where(owner_key.c.id.in_(key_ids)).values(state="retired"))


async def count_active_owner_keys(tx: AsyncConnection, owner_id: UUID | None) -> int:
    """Count the owner keys that are sealed under now: one for each owner that has any."""
    query = sa.select(sa.func.count()).select_from(owner_key).where(owner_key.c.state == "active")
    if owner_id is not None:
        query = query.where(owner_key.c.owner_id == owner_id)
    return int((await tx.execute(query)).scalar_one())


async def insert_owner(tx: AsyncConnection, owner_id: UUID, kind: OwnerKind, at: datetime) -> None:
    """Insert an owner, before its first key."""
    await tx.execute(sa.insert(owner).values(id=owner_id, kind=kind.value, created_at=at))


async def get_owner_key(tx: AsyncConnection, key_id: UUID) -> Row | None:
    """Return an owner key's row, active or retired."""
    return (await tx.execute(sa.select(owner_key).where(owner_key.c.id == key_id))).one_or_none()


async def get_active_owner_key(tx: AsyncConnection, owner_id: UUID, *, lock: bool = False) -> Row | None:
    """Return the row of the owner's newest active key.

    ``lock`` takes it FOR SHARE until the transaction ends: a rotation of it comes before or after what is sealed under it. Where
    it came while this waited, none is found: ask again.
    """
    query = sa.select(owner_key).where(owner_key.c.owner_id == owner_id, owner_key.c.state == "active")
    query = query.order_by(owner_key.c.version.desc()).limit(1)
    return (await tx.execute(query.with_for_update(read=True) if lock else query)).one_or_none()


async def latest_owner_key_version(tx: AsyncConnection, owner_id: UUID) -> int:
    """Return the highest version of the owner's keys, active or retired; 0 where there is none."""
    query = sa.select(sa.func.coalesce(sa.func.max(owner_key.c.version), 0)).where(owner_key.c.owner_id == owner_id)
    return int((await tx.execute(query)).scalar_one())


async def insert_owner_key(
    tx: AsyncConnection, key_id: UUID, owner: tuple[UUID, int], sealed: tuple[UUID, bytes], at: datetime
) -> bool:
    """Insert an active owner key; ``owner`` is its owner and version, ``sealed`` the root key's id and the envelope.

    False where another transaction has made that version: on PostgreSQL after that one's end, and without breaking this one.
    """
    owner_id, version = owner
    root_key_id, envelope = sealed
    insert = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    statement = (
        insert(owner_key)
        .values(
            id=key_id,
            owner_id=owner_id,
            version=version,
            root_key_id=root_key_id,
            envelope=envelope,
            state="active",
            created_at=at,
        )
        .on_conflict_do_nothing(index_elements=["owner_id", "version"])
    )
    return bool((await tx.execute(statement)).rowcount)


async def root_key_status(tx: AsyncConnection) -> Sequence[Row]:
    """All root keys, the newest first, without their wrapped form, and how many owner keys each seals."""
    counted = sa.select(owner_key.c.root_key_id, sa.func.count().label("owner_keys")).group_by(owner_key.c.root_key_id).subquery()
    query = (
        sa.select(
            root_key.c.id,
            root_key.c.provider,
            root_key.c.reference,
            root_key.c.state,
            root_key.c.created_at,
            root_key.c.emptied_at,
            sa.func.coalesce(counted.c.owner_keys, 0).label("owner_keys"),
        )
        .outerjoin(counted, counted.c.root_key_id == root_key.c.id)
        .order_by(root_key.c.created_at.desc())
    )
    return (await tx.execute(query)).all()
