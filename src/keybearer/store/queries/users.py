"""Accounts and one-time links: rows in, rows out. Finding an account by its address before sign-in is in ``lookups``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import OwnerKind, Role
from keybearer.store.queries import cursors
from keybearer.store.schema import one_time_link, owner, user

Row = sa.Row[Any]


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new account, and the owner that its keys and secrets belong to."""
    await tx.execute(sa.insert(owner).values(id=columns["id"], kind=OwnerKind.USER.value, created_at=columns["created_at"]))
    await tx.execute(sa.insert(user).values(**columns))


async def get(tx: AsyncConnection, user_id: UUID, *, lock: bool = False) -> Row | None:
    """An account; with ``lock``, no other transaction changes it until this one ends."""
    query = sa.select(user).where(user.c.id == user_id)
    return (await tx.execute(query.with_for_update() if lock else query)).one_or_none()


async def by_email(tx: AsyncConnection, email: str) -> Row | None:
    """The account with this address, in lower case."""
    return (await tx.execute(sa.select(user).where(user.c.email == email))).one_or_none()


async def all_users(tx: AsyncConnection, cursor: str | None, limit: int) -> tuple[Sequence[Row], str | None]:
    """A page of all accounts, by address, and the cursor of the next."""
    return await cursors.page(tx, sa.select(user), {user.c.email: str}, cursor, limit)


async def count_active_admins(tx: AsyncConnection, *, but: UUID) -> int:
    """How many other administrators are active."""
    query = (
        sa.select(sa.func.count())
        .select_from(user)
        .where(user.c.role == Role.ADMIN.value, user.c.is_active.is_(True), user.c.id != but)
    )
    return (await tx.execute(query)).scalar_one()


async def set_active(tx: AsyncConnection, user_id: UUID, is_active: bool, mac: bytes, at: datetime) -> None:  # noqa: FBT001  # a column
    """Enable or disable an account."""
    await _update(tx, user_id, is_active=is_active, mac=mac, updated_at=at)


async def set_password(tx: AsyncConnection, user_id: UUID, password_hash: str, at: datetime) -> None:
    """Keep another password hash."""
    await _update(tx, user_id, password_hash=password_hash, updated_at=at)


async def set_fallback(tx: AsyncConnection, user_id: UUID, allowed: bool, at: datetime) -> None:  # noqa: FBT001  # a column
    """Keep whether the system's keys may serve this person."""
    await _update(tx, user_id, fallback_allowed=allowed, updated_at=at)


async def delete(tx: AsyncConnection, user_id: UUID) -> None:
    """Remove an account with its owner: keys, secrets, tokens, sessions, memberships, providers and models go with it."""
    await tx.execute(sa.delete(owner).where(owner.c.id == user_id, owner.c.kind == OwnerKind.USER.value))


async def insert_link(tx: AsyncConnection, token_hash: bytes, purpose: str, expires_at: datetime, at: datetime) -> None:
    """A new one-time link."""
    await tx.execute(
        sa.insert(one_time_link).values(
            token_hash=token_hash, purpose=purpose, expires_at=expires_at, used_at=None, created_at=at
        )
    )


async def delete_links(tx: AsyncConnection, purpose: str) -> None:
    """End all links of a purpose."""
    await tx.execute(sa.delete(one_time_link).where(one_time_link.c.purpose == purpose))


async def use_link(tx: AsyncConnection, token_hash: bytes, purpose: str, at: datetime) -> bool:
    """Mark a link as used, if it is good; whether it was. Of two at once, one finds it used."""
    link = one_time_link.c
    query = sa.update(one_time_link).where(
        link.token_hash == token_hash, link.purpose == purpose, link.used_at.is_(None), link.expires_at > at
    )
    return bool((await tx.execute(query.values(used_at=at))).rowcount)


async def _update(tx: AsyncConnection, user_id: UUID, **columns: Any) -> None:
    await tx.execute(sa.update(user).where(user.c.id == user_id).values(**columns))
