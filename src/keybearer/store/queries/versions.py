"""Versions of secrets: each a sealed value, with what it was sealed for. Every query names the owner, but for the job's.

A version's row reads like its secret's (``queries.secrets``), with the version's own number, envelope and binding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import secret, secret_version

Row = Any
"""A row of ``_AS_SECRET``."""

_TAKEN_FROM_VERSION = {"version", "egress", "fetchable", "created_at", "created_by", "preview"}

_AS_SECRET: sa.Select[Any] = sa.select(
    *(column for column in secret.c if column.name not in _TAKEN_FROM_VERSION),
    *(secret_version.c[name] for name in ("version", "owner_key_id", "envelope", "oauth_envelope", "retired_at", "preview")),
    secret_version.c.created_at,
    secret_version.c.created_by,
    sa.func.coalesce(secret_version.c.egress, secret.c.egress, type_=secret.c.egress.type).label("egress"),
    sa.func.coalesce(secret_version.c.fetchable, secret.c.fetchable).label("fetchable"),
).join_from(
    secret_version, secret, sa.and_(secret.c.id == secret_version.c.secret_id, secret.c.owner_id == secret_version.c.owner_id)
)


async def insert(tx: AsyncConnection, columns: Sequence[Mapping[str, Any]]) -> None:
    """Sealed values, all with the same columns."""
    await tx.execute(sa.insert(secret_version), list(columns))


async def reseal(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """Put another envelope of the same version in the place of the one that is there; its age stays."""
    values = {name: value for name, value in columns.items() if name not in {"created_at", "created_by"}}
    where = _where(columns["owner_id"], columns["secret_id"])
    await tx.execute(sa.update(secret_version).where(*where, secret_version.c.version == columns["version"]).values(**values))


async def retire(tx: AsyncConnection, row: Row, at: datetime) -> None:
    """Say of the version in force (of a row of ``queries.secrets``) that another takes its place.

    One from before versions were kept does not say by itself what it was sealed for.
    """
    where = (*_where(row.owner_id, row.id), secret_version.c.retired_at.is_(None))
    kept = {
        name: sa.func.coalesce(secret_version.c[name], sa.literal(getattr(row, name), secret_version.c[name].type))
        for name in ("egress", "fetchable", "preview")
    }
    await tx.execute(sa.update(secret_version).where(*where).values(retired_at=at, **kept))


async def delete(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, version: int) -> None:
    """Remove one version."""
    await tx.execute(sa.delete(secret_version).where(*_where(owner_id, secret_id), secret_version.c.version == version))


async def delete_all(tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> None:
    """Remove every version of a secret."""
    await tx.execute(sa.delete(secret_version).where(*_where(owner_id, secret_id)))


async def latest(tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> int:
    """The highest number among the versions kept; 0 where there is none."""
    query = sa.select(sa.func.max(secret_version.c.version)).where(*_where(owner_id, secret_id))
    return (await tx.execute(query)).scalar_one() or 0


async def get(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, version: int) -> Row | None:
    """One version of a secret, as the secret would be with it."""
    where = (*_where(owner_id, secret_id), secret_version.c.version == version)
    return (await tx.execute(_AS_SECRET.where(*where))).one_or_none()


async def before(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, version: int) -> int | None:
    """The number of the newest version kept that is older than ``version``."""
    where = (*_where(owner_id, secret_id), secret_version.c.version < version)
    found: int | None = (await tx.execute(sa.select(sa.func.max(secret_version.c.version)).where(*where))).scalar_one()
    return found


async def page(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, below: int | None, limit: int) -> Sequence[Row]:
    """Versions of a secret, the newest first; ``below``: older than that one."""
    query = _AS_SECRET.where(*_where(owner_id, secret_id))
    if below is not None:
        query = query.where(secret_version.c.version < below)
    return list(await tx.execute(query.order_by(secret_version.c.version.desc()).limit(limit)))


async def prune(tx: AsyncConnection, kept: int, retired_before: datetime, now: datetime) -> int:
    """Remove versions out of force that are more than ``kept`` or retired too long ago, but for those that may still serve."""
    newer = secret_version.alias("newer")
    newer_retired = (
        sa.select(sa.func.count())
        .select_from(newer)
        .where(
            newer.c.secret_id == secret_version.c.secret_id,
            newer.c.retired_at.is_not(None),
            newer.c.version > secret_version.c.version,
        )
        .scalar_subquery()
    )
    serves = sa.exists().where(
        secret.c.id == secret_version.c.secret_id,
        secret.c.fallback_version == secret_version.c.version,
        secret.c.fallback_until > now,
    )
    out_of_force = secret_version.c.retired_at.is_not(None)
    surplus = sa.or_(secret_version.c.retired_at <= retired_before, newer_retired >= kept)
    return (await tx.execute(sa.delete(secret_version).where(out_of_force, surplus, ~serves))).rowcount


def _where(owner_id: UUID, secret_id: UUID) -> tuple[sa.ColumnElement[bool], ...]:
    return (secret_version.c.secret_id == secret_id, secret_version.c.owner_id == owner_id)
