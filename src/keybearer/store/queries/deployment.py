"""What holds for the whole deployment."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import deployment


async def is_frozen(tx: AsyncConnection) -> bool:
    """Whether an administrator has stopped all use of keys."""
    return (await tx.execute(sa.select(deployment.c.frozen_at).where(deployment.c.frozen_at.is_not(None)))).first() is not None
