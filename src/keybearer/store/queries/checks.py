"""Tests of stored secrets: which are due, who has taken which, what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import secret

Row = sa.Row[Any]


def _in_use(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """What is off, has ended, was deleted or does not open is asked of nobody. A key that is failed may work again."""
    return (
        secret.c.is_active.is_(True),
        secret.c.state.in_(("ok", "failed")),
        sa.or_(secret.c.expires_at.is_(None), secret.c.expires_at > now),
        secret.c.deleted_at.is_(None),
    )


def _wanted(by_default: bool) -> sa.ColumnElement[bool]:  # noqa: FBT001  # a condition's value
    """What its owner wants checked; ``by_default``: or has not decided."""
    chosen = secret.c.check_every > 0
    return sa.or_(chosen, secret.c.check_every.is_(None)) if by_default else chosen


async def take(tx: AsyncConnection, runner: UUID, now: datetime, until: datetime, *, by_default: bool) -> Row | None:
    """The one that is due for the longest, made this runner's until then; others do not see it meanwhile."""
    due = sa.select(secret.c.id).where(secret.c.check_at <= now, *_in_use(now), _wanted(by_default))
    picked = (await tx.execute(due.order_by(secret.c.check_at).limit(1).with_for_update(skip_locked=True))).scalar()
    if picked is None:
        return None
    taken = sa.update(secret).where(secret.c.id == picked).values(check_at=until, check_runner=runner)
    columns = (secret.c.id, secret.c.owner_id, secret.c.version, secret.c.check_every, secret.c.check_failures)
    return (await tx.execute(taken.returning(*columns))).one()


async def settle(tx: AsyncConnection, secret_id: UUID, runner: UUID, next_at: datetime, failures: int) -> None:
    """Say when it is due next, if it is still this runner's."""
    where = (secret.c.id == secret_id, secret.c.check_runner == runner)
    await tx.execute(sa.update(secret).where(*where).values(check_at=next_at, check_runner=None, check_failures=failures))


async def keep(tx: AsyncConnection, secret_id: UUID, version: int, found: Mapping[str, Any]) -> bool:
    """Keep what a test found, if the value is still the one that was tested; whether it is."""
    where = (secret.c.id == secret_id, secret.c.version == version, secret.c.deleted_at.is_(None))
    return (await tx.execute(sa.update(secret).where(*where).values(**found))).rowcount == 1


async def unscheduled(tx: AsyncConnection, after: UUID | None, limit: int) -> Sequence[UUID]:
    """Secrets whose owners have not decided, and that no check is planned for, in the order of their ids."""
    query = sa.select(secret.c.id).where(secret.c.check_at.is_(None), secret.c.check_every.is_(None))
    if after is not None:
        query = query.where(secret.c.id > after)
    return (await tx.execute(query.order_by(secret.c.id).limit(limit))).scalars().all()


async def schedule(tx: AsyncConnection, times: Mapping[UUID, datetime]) -> None:
    """Plan the first check of each."""
    for secret_id, at in times.items():
        await tx.execute(sa.update(secret).where(secret.c.id == secret_id, secret.c.check_at.is_(None)).values(check_at=at))
