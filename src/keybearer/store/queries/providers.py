"""Providers and models that people and administrators added: rows in, rows out. Every query names the owners it may touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import model, provider

Row = sa.Row[Any]


PROVIDERS_SEEN, MODELS_SEEN = 1_000, 20_000
"""By one person: their own and the system's are fewer, but each of a hundred teams may have as many. They are put together anew for each
listing, and nobody else has a turn meanwhile."""


async def of_owners(tx: AsyncConnection, owners: Iterable[UUID]) -> Sequence[Row]:
    """The providers of these owners, by name; of more than can be seen those of the first."""
    return await _seen(tx, provider, list(owners), (provider.c.name, provider.c.id), PROVIDERS_SEEN)


async def models_of_owners(tx: AsyncConnection, owners: Iterable[UUID]) -> Sequence[Row]:
    """The models of these owners, oldest first; of more than can be seen those of the first."""
    return await _seen(tx, model, list(owners), (model.c.created_at, model.c.name), MODELS_SEEN)


async def _seen(
    tx: AsyncConnection, table: sa.Table, owners: Sequence[UUID], order: Sequence[sa.Column[Any]], most: int
) -> Sequence[Row]:
    query = sa.select(table).where(table.c.owner_id.in_(owners))
    found = (await tx.execute(query.order_by(*order).limit(most + 1))).all()
    if len(found) <= most:
        return found
    place = sa.case({owner: number for number, owner in enumerate(owners)}, value=table.c.owner_id)
    return (await tx.execute(query.order_by(place, *order).limit(most))).all()


async def get(tx: AsyncConnection, owners: Iterable[UUID], provider_id: UUID) -> Row | None:
    """One provider of these owners, locked until the transaction ends."""
    query = sa.select(provider).where(provider.c.id == provider_id, provider.c.owner_id.in_(list(owners)))
    return (await tx.execute(query.with_for_update())).one_or_none()


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new provider."""
    await tx.execute(sa.insert(provider).values(**columns))


async def update(tx: AsyncConnection, owner_id: UUID, provider_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a provider."""
    where = (provider.c.id == provider_id, provider.c.owner_id == owner_id)
    await tx.execute(sa.update(provider).where(*where).values(**columns))


async def delete(tx: AsyncConnection, owner_id: UUID, provider_id: UUID) -> None:
    """Remove a provider."""
    await tx.execute(sa.delete(provider).where(provider.c.id == provider_id, provider.c.owner_id == owner_id))


async def insert_models(tx: AsyncConnection, columns: Sequence[Mapping[str, Any]]) -> None:
    """New models."""
    if columns:
        await tx.execute(sa.insert(model), [dict(each) for each in columns])


async def delete_models(tx: AsyncConnection, owner_id: UUID, provider_name: str) -> Sequence[UUID]:
    """Remove an owner's models of a provider; the secrets that were their own keys."""
    query = sa.delete(model).where(model.c.owner_id == owner_id, model.c.provider == provider_name)
    removed = (await tx.execute(query.returning(model.c.secret_id))).scalars().all()
    return [secret_id for secret_id in removed if secret_id is not None]


async def delete_bare_models(tx: AsyncConnection, owner_id: UUID, provider_name: str, but: Iterable[str]) -> None:
    """Remove an owner's models of a provider of which nothing but the name is known, but for the names given."""
    query = sa.delete(model).where(model.c.owner_id == owner_id, model.c.provider == provider_name, model.c.mac.is_(None))
    await tx.execute(query.where(model.c.name.not_in(list(but))))
