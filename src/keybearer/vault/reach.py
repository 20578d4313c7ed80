"""What somebody reaches through teams: the teams they are in, in the order of their priority, and what is shared with these.

Each row is believed only if its MAC is right. One that was inserted or changed in the database gives no access; it is logged, and
recorded as an alarm where it was met in a call (``Alarms``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs
from keybearer.access.attempts import record_alone
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Grade, ManagementRecord, Owner, OwnerKind, Secret, Share, TeamRole
from keybearer.errors import EnvelopeError, Forbidden, NotFound
from keybearer.store.db import Database
from keybearer.store.queries import teams as rows

log = structlog.get_logger(__name__)

TAMPERED = "tampered"
"""The outcome of an alarm's record."""
_LEADS = frozenset({TeamRole.OWNER, TeamRole.ADMIN})
_FIELDS = {macs.TEAM: macs.team_fields, macs.MEMBER: macs.member_fields, macs.SHARE: macs.share_fields}
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Membership:
    """A team as one of its members sees it."""

    team_id: UUID
    name: str
    role: TeamRole
    priority: int
    """Among the person's teams; lower first."""
    accepted_at: datetime | None
    """``None``: invited, and in nothing yet."""
    created_at: datetime
    """When the team was made."""

    @property
    def leads(self) -> bool:
        """An owner or an admin."""
        return self.accepted_at is not None and self.role in _LEADS


@dataclass(frozen=True, slots=True)
class Forged:
    """A row whose MAC is wrong."""

    table: str
    team_id: UUID
    subject: str
    """The other half of its key: whose membership, which secret; empty for a team."""


@dataclass(frozen=True, slots=True)
class Reach:
    """See the module."""

    user_id: UUID
    teams: tuple[Membership, ...] = ()
    """Those that the person is in, in the order in which their keys serve."""
    invitations: tuple[Membership, ...] = ()
    shares: tuple[Share, ...] = ()
    """What is shared with ``teams``, the person's own secrets too."""
    forged: tuple[Forged, ...] = ()

    def team(self, team_id: UUID) -> Membership | None:
        """The person's membership in a team, if they are in it."""
        return next((team for team in self.teams if team.team_id == team_id), None)

    def shares_of(self, secret_id: UUID) -> tuple[Share, ...]:
        """With which of the teams a secret is shared."""
        return tuple(share for share in self.shares if share.secret_id == secret_id)

    def seen_owners(self, secret_id: UUID) -> tuple[UUID, ...]:
        """Under whose ownership this very secret may be looked at."""
        shared = (share.shared_by for share in self.shares_of(secret_id))
        return (self.user_id, *(team.team_id for team in self.teams), *shared)

    def managed_owners(self, secret_id: UUID) -> tuple[UUID, ...]:
        """Under whose ownership this very secret may be changed."""
        shared = (share.shared_by for share in self.shares_of(secret_id) if share.grade is Grade.MANAGE)
        return (self.user_id, *(team.team_id for team in self.teams if team.leads), *shared)

    def searched(self, whose: str, team_id: UUID | None) -> tuple[tuple[UUID, ...] | None, tuple[UUID, ...]]:
        """Whose secrets a listing has (``None``: everybody's), and which shared ones beside. Raises ``NotFound`` (no such team)."""
        if team_id is not None:
            if self.team(team_id) is None:
                raise NotFound
            return (team_id,), tuple(share.secret_id for share in self.shares if share.team_id == team_id)
        own = {"own": (self.user_id,), "all": (self.user_id,), "team": (), "system": (SYSTEM_OWNER_ID,)}
        if whose not in {"team", "all"}:
            return own.get(whose), ()
        return (*own[whose], *(team.team_id for team in self.teams)), tuple(share.secret_id for share in self.shares)

    def seen(self, secret: Secret) -> Secret:
        """The secret with what the person may do with it, and the teams that it is shared with."""
        shares, owner_id = self.shares_of(secret.id), secret.owner.id
        # None but administrators are shown the system's.
        if owner_id == SYSTEM_OWNER_ID or owner_id in self.managed_owners(secret.id):
            return replace(secret, shares=shares, access=Grade.MANAGE)
        return replace(secret, shares=shares, access=Grade.USE if owner_id in self.seen_owners(secret.id) else None)


async def load(tx: AsyncConnection, keyring: Keyring, user_id: UUID, *, shares: bool = True) -> Reach:
    """What a person reaches; ``shares``: also what is shared with their teams, for whoever looks at secrets."""
    memberships = await rows.of_user(tx, user_id)
    if not memberships:
        return Reach(user_id)
    forged: list[Forged] = []
    memberships = written_here(keyring, macs.MEMBER, memberships, forged)
    found = await rows.of_ids(tx, [row.team_id for row in memberships])
    named = {row.id: row for row in written_here(keyring, macs.TEAM, found, forged)}
    seen = [membership_of(row, named[row.team_id]) for row in memberships if row.team_id in named]
    teams = tuple(team for team in seen if team.accepted_at is not None)
    invitations = tuple(team for team in seen if team.accepted_at is None)
    shared = await _shares(tx, keyring, user_id, teams, forged) if shares and teams else ()
    return Reach(user_id, teams, invitations, shared, tuple(forged))


def led(mine: Reach, team_id: UUID) -> Owner:
    """A team as an owner, for who leads it. Raises ``NotFound``, ``Forbidden``."""
    team = mine.team(team_id)
    if team is None:
        raise NotFound("You are in no such team.", hint="List your teams at GET /api/v1/teams.")
    if not team.leads:
        raise Forbidden("Only the team's owners and admins may do this.", hint="Ask one of them, or share a secret of your own.")
    return Owner(OwnerKind.TEAM, team_id)


def membership_of(row: Any, team: Any) -> Membership:
    """A membership's row and its team's, both believed."""
    return Membership(team.id, team.name, TeamRole(row.role), row.priority, row.accepted_at, team.created_at)


async def _shares(
    tx: AsyncConnection, keyring: Keyring, user_id: UUID, teams: Sequence[Membership], forged: list[Forged]
) -> tuple[Share, ...]:
    names = {team.team_id: team.name for team in teams}
    found = written_here(keyring, macs.SHARE, await rows.shares_with(tx, names), forged)
    people = {person.id: person.name for person in await rows.people(tx, user_id)} if found else {}
    # Who left a team takes along what they shared with it; should a row of it be there, it gives nothing.
    return tuple(
        Share(
            row.secret_id, row.team_id, names[row.team_id], Grade(row.grade), row.owner_id, people[row.owner_id], row.created_at
        )
        for row in found
        if row.owner_id in people
    )


def written_here(keyring: Keyring, table: str, found: Iterable[Any], forged: list[Forged]) -> list[Any]:
    """The rows of ``table`` whose MAC is right; the others are logged, and named in ``forged``."""
    good: list[Any] = []
    for row in found:
        try:
            keyring.check_row(row.mac, table, _FIELDS[table], row)
        except EnvelopeError:
            bad = _named(table, row)
            forged.append(bad)
            log.warning(
                "a row was changed outside Keybearer and gives no access: look at the database's own logs",
                table=bad.table,
                team=str(bad.team_id),
                subject=bad.subject,
            )
        else:
            good.append(row)
    return good


def _named(table: str, row: Any) -> Forged:
    if table == macs.TEAM:
        return Forged(table, row.id, "")
    return Forged(table, row.team_id, str(row.user_id if table == macs.MEMBER else row.secret_id))


class Alarms:
    """Puts forged rows on record, each once a process: a call a second must not fill the log of changes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._told: set[Forged] = set()

    async def raise_for(self, reach: Reach) -> None:
        """Record what is forged of a reach; after the transaction that met it."""
        for forged in reach.forged:
            if forged in self._told or len(self._told) >= _REMEMBERED:
                continue
            self._told.add(forged)
            detail = (("table", forged.table), ("subject", forged.subject))
            owner = Owner(OwnerKind.TEAM, forged.team_id)
            record = ManagementRecord("team.alarm", None, str(forged.team_id), outcome=TAMPERED, owner=owner, detail=detail)
            await record_alone(self._db, record)
