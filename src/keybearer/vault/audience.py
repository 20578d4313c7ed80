"""Whom a change concerns: whose cached keys every process must drop, told with the change itself.

Read under the lock that orders changes, so that nobody joins a team unheard between the reading and the commit; and with the
system's eyes, because who changes a shared secret need not see all the teams it is shared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import SYSTEM_OWNER_ID, Owner, OwnerKind
from keybearer.store import changes
from keybearer.store.db import Database
from keybearer.store.queries import teams as rows


async def note_secret(db: Database, tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> None:
    """Tell every process of a change of a secret: it concerns its owner, the team that owns it, those it is shared with."""
    await note_secrets(db, tx, owner_id, [secret_id])


async def note_secrets(db: Database, tx: AsyncConnection, owner_id: UUID, secret_ids: Sequence[UUID]) -> None:
    """As ``note_secret``, of several of one owner's."""
    await db.lock_order(tx)
    concerned = None if owner_id == SYSTEM_OWNER_ID else owner_id
    await changes.note_each(db, tx, "secret", [(str(secret_id), concerned) for secret_id in secret_ids])
    if concerned is not None:
        async with db.as_system(tx):
            shared = await rows.audience_of_secrets(tx, secret_ids)
            team = await rows.audience_of_team(tx, owner_id)
        also = [(str(secret_ids[0]), user_id) for user_id in sorted((shared | team) - {owner_id})]
        await changes.note_each(db, tx, "secret", also)


async def note_owned(db: Database, tx: AsyncConnection, subject: str, subject_id: str, owner: Owner) -> None:
    """Tell every process of a change of what an owner's people call by name: providers, models."""
    if owner.kind is OwnerKind.SYSTEM:
        await changes.note(db, tx, subject, subject_id)
    elif owner.kind is OwnerKind.TEAM:
        await note_team(db, tx, owner.id, subject=subject, subject_id=subject_id)
    else:
        await changes.note(db, tx, subject, subject_id, owner.id)


async def note_team(
    db: Database,
    tx: AsyncConnection,
    team_id: UUID,
    also: Iterable[UUID] = (),
    *,
    subject: str = "team",
    subject_id: str = "",
) -> None:
    """Tell every process of a change that concerns all of a team, and ``also`` these."""
    await db.lock_order(tx)
    async with db.as_system(tx):
        team = await rows.audience_of_team(tx, team_id)
    concerned = sorted(team | set(also))
    await changes.note_each(db, tx, subject, [(subject_id or str(team_id), user_id) for user_id in concerned])
