"""Secrets and their sealed values: rows in, rows out. Every query that changes something names the owner.

A secret's row comes with the envelope of its current version (``owner_key_id``, ``envelope``) where the transaction may see it;
on PostgreSQL an administrator's does not, for secrets of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import secret, secret_version

Row = sa.Row[Any]

_WITH_VERSION = sa.select(secret, secret_version.c.owner_key_id, secret_version.c.envelope).select_from(
    secret.outerjoin(
        secret_version,
        sa.and_(
            secret_version.c.secret_id == secret.c.id,
            secret_version.c.owner_id == secret.c.owner_id,
            secret_version.c.version == secret.c.version,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Search:
    """What a listing is narrowed to; ``None``: not by this."""

    owners: tuple[UUID, ...] | None = None
    """``None``: everybody's, for an administrator."""
    provider: str | None = None
    secret_type: str | None = None
    name: str | None = None
    tag: str | None = None
    text: str | None = None
    """Part of name, provider or description, in any case."""
    is_active: bool | None = None
    state: str | None = None
    expires_before: datetime | None = None


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new secret; its value follows with ``insert_version``."""
    await tx.execute(sa.insert(secret).values(**columns))


async def insert_version(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A sealed value."""
    await tx.execute(sa.insert(secret_version).values(**columns))


async def replace_versions(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A sealed value in the place of all that the secret had."""
    where = (secret_version.c.secret_id == columns["secret_id"], secret_version.c.owner_id == columns["owner_id"])
    await tx.execute(sa.delete(secret_version).where(*where))
    await insert_version(tx, columns)


async def get(tx: AsyncConnection, secret_id: UUID, owners: Iterable[UUID] | None) -> Row | None:
    """One secret of these owners (``None``: of anybody), with its current envelope."""
    query = _WITH_VERSION.where(secret.c.id == secret_id)
    if owners is not None:
        query = query.where(secret.c.owner_id.in_(list(owners)))
    return (await tx.execute(query)).one_or_none()


async def lock(tx: AsyncConnection, secret_id: UUID, owners: Iterable[UUID]) -> Row | None:
    """One secret of these owners, which no other transaction changes until this one ends."""
    where = (secret.c.id == secret_id, secret.c.owner_id.in_(list(owners)))
    found = (await tx.execute(sa.select(secret.c.id).where(*where).with_for_update())).one_or_none()
    return None if found is None else await get(tx, secret_id, owners)


async def named(tx: AsyncConnection, owner_id: UUID, provider: str, secret_type: str, name: str) -> UUID | None:
    """The id of the secret with this name."""
    query = sa.select(secret.c.id).where(
        secret.c.owner_id == owner_id,
        secret.c.provider == provider,
        secret.c.secret_type == secret_type,
        secret.c.name == name,
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def for_provider(tx: AsyncConnection, owner_id: UUID, provider: str, secret_type: str) -> Sequence[Row]:
    """An owner's secrets for a provider, by priority (lower first), then age: with their envelopes."""
    query = _WITH_VERSION.where(secret.c.owner_id == owner_id, secret.c.provider == provider, secret.c.secret_type == secret_type)
    return (await tx.execute(query.order_by(secret.c.priority, secret.c.created_at, secret.c.id))).all()


async def usable(tx: AsyncConnection, owner_id: UUID, now: datetime) -> Sequence[Any]:
    """Provider, type and egress set of the owner's secrets that are neither off nor expired nor marked."""
    query = sa.select(secret.c.provider, secret.c.secret_type, secret.c.egress).where(
        secret.c.owner_id == owner_id,
        secret.c.is_active.is_(True),
        secret.c.state == "ok",
        sa.or_(secret.c.expires_at.is_(None), secret.c.expires_at > now),
    )
    return (await tx.execute(query)).all()


async def page(tx: AsyncConnection, search: Search, after: Sequence[Any] | None, limit: int) -> Sequence[Row]:
    """Secrets after a place in the order of ``order_of(search)``."""
    order = order_of(search)
    query = _WITH_VERSION.where(*_conditions(tx, search))
    if after is not None:
        query = query.where(
            sa.tuple_(*order) > sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(after, order, strict=True)))
        )
    return (await tx.execute(query.order_by(*order).limit(limit))).all()


def order_of(search: Search) -> tuple[sa.Column[Any], ...]:
    """What a listing is ordered by: each owner's by provider, type and name; everybody's by id, which has an index."""
    if search.owners is None:
        return (secret.c.id,)
    return (secret.c.provider, secret.c.secret_type, secret.c.name, secret.c.id)


async def update(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a secret."""
    where = (secret.c.id == secret_id, secret.c.owner_id == owner_id)
    await tx.execute(sa.update(secret).where(*where).values(**columns))


async def mark(tx: AsyncConnection, secret_id: UUID, version: int, state: str, reason: str) -> Row | None:
    """Change the state of a secret, if its value is still that version and its state another; its id and owner if so."""
    where = (secret.c.id == secret_id, secret.c.version == version, secret.c.state != state)
    query = sa.update(secret).where(*where).values(state=state, state_reason=reason)
    return (await tx.execute(query.returning(secret.c.id, secret.c.owner_id, secret.c.owner_kind))).one_or_none()


async def delete(tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> None:
    """Remove a secret with all its values."""
    await tx.execute(sa.delete(secret).where(secret.c.id == secret_id, secret.c.owner_id == owner_id))


def _conditions(tx: AsyncConnection, search: Search) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if search.owners is not None:
        found.append(secret.c.owner_id.in_(search.owners))
    exact = ("provider", "secret_type", "name", "is_active", "state")
    found.extend(secret.c[name] == getattr(search, name) for name in exact if getattr(search, name) is not None)
    if search.expires_before is not None:
        found.append(secret.c.expires_at <= search.expires_before)
    if search.text:
        columns = (secret.c.name, secret.c.provider, secret.c.description)
        found.append(sa.or_(*(column.icontains(search.text, autoescape=True) for column in columns)))
    if search.tag is not None:
        found.append(_has_tag(tx, search.tag))
    return found


def _has_tag(tx: AsyncConnection, tag: str) -> sa.ColumnElement[bool]:
    if tx.dialect.name == "postgresql":
        return secret.c.tags.op("@>", is_comparison=True)(sa.literal([tag], secret.c.tags.type))
    each = sa.func.json_each(secret.c.tags).table_valued("value", name="tag")
    return sa.exists(sa.select(1).select_from(each).where(each.c.value == tag))
