"""Secrets that were deleted and can still be restored: found by when, and removed for good."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import secret


async def due(tx: AsyncConnection, deleted_before: datetime, limit: int) -> Sequence[Any]:
    """Secrets deleted at that time or earlier, the longest ago first: who they are, without anything sealed."""
    columns = (secret.c.id, secret.c.owner_id, secret.c.owner_kind, secret.c.provider, secret.c.deleted_name)
    query: sa.Select[Any] = (
        sa.select(*columns).where(secret.c.deleted_at <= deleted_before).order_by(secret.c.deleted_at).limit(limit)
    )
    return list(await tx.execute(query))


async def purge(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, deleted_before: datetime) -> bool:
    """Remove a secret with all its values, if it is deleted for that long still; whether it was there."""
    where = (secret.c.id == secret_id, secret.c.owner_id == owner_id, secret.c.deleted_at <= deleted_before)
    return (await tx.execute(sa.delete(secret).where(*where))).rowcount == 1
