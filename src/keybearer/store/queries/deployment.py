"""What holds for the whole deployment."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import deployment


async def is_frozen(tx: AsyncConnection) -> bool:
    """Whether an administrator has stopped all use of keys."""
    return (await tx.execute(sa.select(deployment.c.frozen_at).where(deployment.c.frozen_at.is_not(None)))).first() is not None


async def set_frozen(tx: AsyncConnection, at: datetime | None) -> None:
    """Stop all use of keys from ``at`` on, or let them be used again."""
    await tx.execute(sa.update(deployment).values(frozen_at=at))
