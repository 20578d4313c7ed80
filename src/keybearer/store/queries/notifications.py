"""Reminders: rows in, rows out. A row is one person, occasion and channel; that it is unique makes it be sent once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import Role, TeamRole
from keybearer.store.queries import cursors
from keybearer.store.schema import notification, reminder_hook, secret, team_member, user

Row = sa.Row[Any]


async def due(
    tx: AsyncConnection, column: str, since: datetime, until: datetime, after: UUID | None, limit: int
) -> Sequence[Any]:
    """Secrets in use whose ``expires_at`` or ``rotate_at`` lies between the two, in the order of their ids."""
    at = secret.c[column]
    query = sa.select(secret.c.id, secret.c.owner_id, secret.c.owner_kind, secret.c.provider, secret.c.name, at.label("due_at"))
    query = query.where(at.is_not(None), at > since, at <= until, secret.c.is_active.is_(True), secret.c.deleted_at.is_(None))
    if after is not None:
        query = query.where(secret.c.id > after)
    return (await tx.execute(query.order_by(secret.c.id).limit(limit))).all()


async def still_due(tx: AsyncConnection, secret_id: UUID, column: str, at: datetime) -> bool:
    """Whether that is still when the secret ends."""
    where = (secret.c.id == secret_id, secret.c[column] == at, secret.c.is_active.is_(True), secret.c.deleted_at.is_(None))
    return (await tx.execute(sa.select(secret.c.id).where(*where))).one_or_none() is not None


async def told(tx: AsyncConnection, owner_kind: str, owner_id: UUID) -> Sequence[Any]:
    """Whom a secret's end concerns: its owner, those who lead its team, the administrators."""
    hook = (reminder_hook.c.is_active.label("is_hooked"), reminder_hook.c.kinds.label("hooked"))
    query = sa.select(user.c.id, user.c.email, user.c.mailed, *hook).outerjoin(
        reminder_hook, reminder_hook.c.owner_id == user.c.id
    )
    query = query.where(user.c.is_active.is_(True))
    if owner_kind == "user":
        query = query.where(user.c.id == owner_id)
    elif owner_kind == "team":
        leads = (TeamRole.OWNER.value, TeamRole.ADMIN.value)
        members = sa.select(team_member.c.user_id).where(
            team_member.c.team_id == owner_id, team_member.c.role.in_(leads), team_member.c.accepted_at.is_not(None)
        )
        query = query.where(user.c.id.in_(members))
    else:
        query = query.where(user.c.role == Role.ADMIN.value)
    return (await tx.execute(query.order_by(user.c.id))).all()


async def add(tx: AsyncConnection, rows: Iterable[dict[str, Any]]) -> None:
    """Add those that are not there yet."""
    insert = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    for values in rows:
        await tx.execute(insert(notification).values(**values).on_conflict_do_nothing())


async def take(tx: AsyncConnection, runner: UUID, now: datetime, until: datetime, channels: Iterable[str]) -> Row | None:
    """One that is to be sent by these channels, made this runner's until then; others do not see it meanwhile."""
    where = (notification.c.state == "pending", notification.c.next_at <= now, notification.c.channel.in_(list(channels)))
    waiting = sa.select(notification.c.id).where(*where)
    picked = (await tx.execute(waiting.order_by(notification.c.next_at).limit(1).with_for_update(skip_locked=True))).scalar()
    if picked is None:
        return None
    taken = sa.update(notification).where(notification.c.id == picked).values(
        runner=runner, next_at=until, attempts=notification.c.attempts + 1
    )  # fmt: skip
    found: Row = (await tx.execute(taken.returning(notification))).one()
    return found


async def settle(tx: AsyncConnection, row: Row, state: str, next_at: datetime) -> None:
    """Say what became of one that was taken, if it is still this runner's."""
    where = (notification.c.id == row.id, notification.c.runner == row.runner, notification.c.attempts == row.attempts)
    await tx.execute(sa.update(notification).where(*where).values(state=state, next_at=next_at, runner=None))


async def postpone(tx: AsyncConnection, row: Row, next_at: datetime) -> None:
    """Where one was not taken, this person's others for the same channel wait, too: nobody else's wait while an address hangs."""
    where = (notification.c.user_id == row.user_id, notification.c.channel == row.channel, notification.c.state == "pending")
    waiting = (notification.c.runner.is_(None), notification.c.next_at < next_at)
    await tx.execute(sa.update(notification).where(*where, *waiting).values(next_at=next_at))


async def page(tx: AsyncConnection, user_id: UUID, cursor: str | None, limit: int) -> tuple[Sequence[Row], str | None]:
    """A person's reminders in the console, newest first."""
    query = sa.select(notification).where(notification.c.user_id == user_id, notification.c.channel == "console")
    order: dict[sa.Column[Any], type] = {notification.c.created_at: datetime, notification.c.id: UUID}
    return await cursors.page(tx, query, order, cursor, limit, descending=True)


async def unread(tx: AsyncConnection, user_id: UUID) -> int:
    """How many of a person's reminders in the console they have not read."""
    where = (notification.c.user_id == user_id, notification.c.channel == "console", notification.c.read_at.is_(None))
    return int((await tx.execute(sa.select(sa.func.count(notification.c.id)).where(*where))).scalar_one())


async def read(tx: AsyncConnection, user_id: UUID, notification_id: UUID, at: datetime) -> bool:
    """Mark one as read; whether there is such a one."""
    where = (notification.c.id == notification_id, notification.c.user_id == user_id, notification.c.channel == "console")
    kept = sa.func.coalesce(notification.c.read_at, sa.literal(at, notification.c.read_at.type))
    return (await tx.execute(sa.update(notification).where(*where).values(read_at=kept))).rowcount == 1


async def mailed(tx: AsyncConnection, user_id: UUID) -> list[str] | None:
    """The kinds that a person wants by mail; ``None``: all."""
    found: list[str] | None = (await tx.execute(sa.select(user.c.mailed).where(user.c.id == user_id))).scalar_one()
    return found


async def set_mailed(tx: AsyncConnection, user_id: UUID, kinds: list[str]) -> None:
    """Keep them."""
    await tx.execute(sa.update(user).where(user.c.id == user_id).values(mailed=kinds))
