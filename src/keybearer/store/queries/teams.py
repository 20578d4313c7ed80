"""Teams, memberships and shares: rows in, rows out.

Every query but those that are said to be the system's names the caller or the caller's teams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import OwnerKind, TeamRole
from keybearer.store.schema import owner, secret_share, team, team_member, user

Row = sa.Row[Any]

_IS_IN = team_member.c.accepted_at.is_not(None)


# ---- teams -----------------------------------------------------------------------------------------------------------


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new team, and the owner that its keys and secrets belong to; the system's."""
    await tx.execute(sa.insert(owner).values(id=columns["id"], kind=OwnerKind.TEAM.value, created_at=columns["created_at"]))
    await tx.execute(sa.insert(team).values(**columns))


async def of_ids(tx: AsyncConnection, team_ids: Iterable[UUID]) -> Sequence[Row]:
    """These teams."""
    return (await tx.execute(sa.select(team).where(team.c.id.in_(list(team_ids))))).all()


async def rename(tx: AsyncConnection, team_id: UUID, name: str, mac: bytes, at: datetime) -> None:
    """Give a team another name."""
    await tx.execute(sa.update(team).where(team.c.id == team_id).values(name=name, mac=mac, updated_at=at))


async def delete(tx: AsyncConnection, team_id: UUID) -> None:
    """Remove a team with all that is its own: keys, secrets, providers, models, memberships, shares."""
    await tx.execute(sa.delete(owner).where(owner.c.id == team_id, owner.c.kind == OwnerKind.TEAM.value))


# ---- memberships -----------------------------------------------------------------------------------------------------


async def of_user(tx: AsyncConnection, user_id: UUID) -> Sequence[Row]:
    """A person's memberships, invitations too: by their priority, then the longest first."""
    query = sa.select(team_member).where(team_member.c.user_id == user_id)
    return (await tx.execute(query.order_by(team_member.c.priority, team_member.c.created_at, team_member.c.team_id))).all()


async def members(tx: AsyncConnection, team_id: UUID) -> Sequence[Row]:
    """A team's members, invited ones too, the first first."""
    query = sa.select(team_member).where(team_member.c.team_id == team_id)
    return (await tx.execute(query.order_by(team_member.c.created_at, team_member.c.user_id))).all()


async def insert_member(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new membership."""
    await tx.execute(sa.insert(team_member).values(**columns))


async def update_member(tx: AsyncConnection, team_id: UUID, user_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a membership."""
    where = (team_member.c.team_id == team_id, team_member.c.user_id == user_id)
    await tx.execute(sa.update(team_member).where(*where).values(**columns))


async def delete_member(tx: AsyncConnection, team_id: UUID, user_id: UUID) -> None:
    """End a membership."""
    await tx.execute(sa.delete(team_member).where(team_member.c.team_id == team_id, team_member.c.user_id == user_id))


async def led_alone(tx: AsyncConnection, user_id: UUID) -> Sequence[UUID]:
    """The teams whose only owner this person is; as the system."""
    other = team_member.alias()
    others = sa.exists().where(
        other.c.team_id == team_member.c.team_id,
        other.c.user_id != user_id,
        other.c.role == TeamRole.OWNER.value,
        other.c.accepted_at.is_not(None),
    )
    query = sa.select(team_member.c.team_id).where(
        team_member.c.user_id == user_id, team_member.c.role == TeamRole.OWNER.value, _IS_IN, ~others
    )
    return (await tx.execute(query)).scalars().all()


async def people(tx: AsyncConnection, user_id: UUID) -> Sequence[Any]:
    """``id``, ``email`` and ``name`` of whoever is in a team with this person, themselves included.

    On PostgreSQL a look-up function does this: an account's row has more than its fellows may see.
    """
    if tx.dialect.name == "postgresql":
        columns = (sa.column("id", sa.Uuid()), sa.column("email", sa.String()), sa.column("name", sa.String()))
        return (await tx.execute(sa.select(sa.func.public.keybearer_people().table_valued(*columns, name="found")))).all()
    own = sa.select(team_member.c.team_id).where(team_member.c.user_id == user_id, _IS_IN)
    fellows = sa.select(team_member.c.user_id).where(team_member.c.team_id.in_(own))
    return (await tx.execute(sa.select(user.c.id, user.c.email, user.c.name).where(user.c.id.in_(fellows)))).all()


# ---- shares ----------------------------------------------------------------------------------------------------------


async def shares_with(tx: AsyncConnection, team_ids: Iterable[UUID]) -> Sequence[Row]:
    """What is shared with these teams."""
    query = sa.select(secret_share).where(secret_share.c.team_id.in_(list(team_ids)))
    return (await tx.execute(query.order_by(secret_share.c.created_at, secret_share.c.secret_id))).all()


async def shares_of(tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> Sequence[Row]:
    """With which teams an owner shares a secret."""
    query = sa.select(secret_share).where(secret_share.c.owner_id == owner_id, secret_share.c.secret_id == secret_id)
    return (await tx.execute(query.order_by(secret_share.c.created_at, secret_share.c.team_id))).all()


async def insert_share(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new share."""
    await tx.execute(sa.insert(secret_share).values(**columns))


async def update_share(tx: AsyncConnection, secret_id: UUID, team_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change a share's grade."""
    where = (secret_share.c.secret_id == secret_id, secret_share.c.team_id == team_id)
    await tx.execute(sa.update(secret_share).where(*where).values(**columns))


async def delete_share(tx: AsyncConnection, secret_id: UUID, team_id: UUID) -> bool:
    """End a share; whether there was one."""
    where = (secret_share.c.secret_id == secret_id, secret_share.c.team_id == team_id)
    return bool((await tx.execute(sa.delete(secret_share).where(*where))).rowcount)


async def delete_shares_by(tx: AsyncConnection, owner_id: UUID, team_id: UUID) -> None:
    """End all that an owner shares with a team."""
    await tx.execute(sa.delete(secret_share).where(secret_share.c.owner_id == owner_id, secret_share.c.team_id == team_id))


# ---- whom a change concerns: the system's ----------------------------------------------------------------------------


async def audience_of_team(tx: AsyncConnection, team_id: UUID) -> set[UUID]:
    """Who uses what is a team's, whoever asks."""
    return set((await tx.execute(sa.select(team_member.c.user_id).where(team_member.c.team_id == team_id))).scalars())


async def audience_of_secrets(tx: AsyncConnection, secret_ids: Sequence[UUID]) -> set[UUID]:
    """Who uses these secrets, or one of them, through a team that it is shared with."""
    query = sa.select(team_member.c.user_id).join(secret_share, secret_share.c.team_id == team_member.c.team_id)
    return set((await tx.execute(query.where(secret_share.c.secret_id.in_(secret_ids)).distinct())).scalars())
