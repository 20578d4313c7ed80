"""Teams: made, renamed, ended; people invited, given roles, sent away.

A team is an owner of its own, with its own key. Nobody is in one without having agreed: through a team's providers and keys its
admins see what is sent, so that being put into one would be an attack. An administrator of the deployment, who is trusted with
everybody's calls anyway, may add people at once to the teams they lead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import Fields
from keybearer.access.limiter import Limiter, Rate
from keybearer.audit import management
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, ManagementRecord, Owner, OwnerKind, Scope, TeamRole
from keybearer.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited
from keybearer.store.db import Actor, Database
from keybearer.store.queries import lookups
from keybearer.store.queries import teams as rows
from keybearer.vault import audience, reach
from keybearer.vault.reach import Membership
from keybearer.vault.remains import OF_OWNERS, Remains

TEAMS_LIMIT = 100
"""Teams of one person, invitations included."""
MEMBERS_LIMIT = 1000
"""People of one team: each is told of, one by one, when something of the team's changes."""
PRIORITY_LIMIT = 1000
DEFAULT_PRIORITY = 100

_READ = (*policy.READ_SECRETS, Scope.TEAMS_WRITE)
_UNKNOWN_ADDRESSES = Rate(10, 60.0)
_OF_ONE_PLACE = Rate(30, 20.0)


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody in a team, or invited to it."""

    user_id: UUID
    email: str
    name: str
    role: TeamRole
    accepted_at: datetime | None
    """``None``: invited."""
    created_at: datetime


class Teams:
    """See the module."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self.remains = Remains(db, *OF_OWNERS)
        self._limiter = Limiter(_UNKNOWN_ADDRESSES, _OF_ONE_PLACE)

    # --- looking --------------------------------------------------------------------------------------------------------

    async def list(self, caller: Caller) -> Sequence[Membership]:
        """The caller's teams in the order in which their keys serve, then invitations. Raises ``ScopeMissing``."""
        policy.require(caller, *_READ)
        async with self._db.read(policy.actor_of(caller)) as tx:
            mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        return (*mine.teams, *mine.invitations)

    async def led(self, caller: Caller) -> tuple[UUID, ...]:
        """The teams whose owner or admin the caller is: they see what is done with its keys."""
        async with self._db.read(policy.actor_of(caller)) as tx:
            mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        return tuple(team.team_id for team in mine.teams if team.leads)

    async def get(self, caller: Caller, team_id: UUID) -> Membership:
        """One of the caller's teams, or one they are invited to. Raises ``NotFound`` for others' as for unknown ones."""
        async with attempt(self._db, "team.read", caller, str(team_id)):
            return _found(await self.list(caller), team_id)

    async def members(self, caller: Caller, team_id: UUID) -> Sequence[Member]:
        """Who is in one of the caller's teams, or invited to it. Raises ``NotFound``, ``ScopeMissing``."""
        async with attempt(self._db, "team.read", caller, str(team_id)):
            policy.require(caller, *_READ)
            async with self._db.read(policy.actor_of(caller)) as tx:
                await self._mine(tx, caller, team_id, TeamRole.MEMBER)
                found = reach.written_here(self._keyring, macs.MEMBER, await rows.members(tx, team_id), [])
                people = {person.id: person for person in await rows.people(tx, caller.user_id)}
        return tuple(_member(row, people[row.user_id]) for row in found if row.user_id in people)

    # --- teams ----------------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, name: str) -> Membership:
        """Make a team with its own key; the caller is its owner. Raises ``Invalid``, ``Conflict``, ``ScopeMissing``."""
        async with attempt(self._db, "team.create", caller):
            policy.require(caller, Scope.TEAMS_WRITE)
            shown, now, team_id = self._checked_name(name), datetime.now(UTC), uuid4()
            # As the system: nobody may put a row into a team that they do not lead, and of this one there is no leader yet.
            async with self._db.write(Actor.system()) as tx:
                await self._db.lock_order(tx)
                await self._check_room(tx, caller.user_id)
                columns = {"id": team_id, "name": shown, "created_by": caller.user_id, "created_at": now, "updated_at": now}
                await rows.insert(tx, columns | {"mac": self._mac(macs.TEAM, columns)})
                first = self._membership(team_id, caller.user_id, TeamRole.OWNER, caller.user_id, now)
                await self._insert(tx, first | {"accepted_at": now})
                await self._keyring.sealing_key(tx, team_id)
                await self._note(tx, caller, "team.create", team_id, name=shown)
                return await self._mine(tx, caller, team_id, TeamRole.OWNER)

    async def rename(self, caller: Caller, team_id: UUID, name: str) -> Membership:
        """Give a team another name: its owners and admins. Raises ``NotFound``, ``Forbidden``, ``Invalid``, ``ScopeMissing``."""
        async with attempt(self._db, "team.update", caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            shown = self._checked_name(name)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._mine(tx, caller, team_id, TeamRole.ADMIN)
                (row,) = await rows.of_ids(tx, [team_id])
                columns = {name: getattr(row, name) for name in ("id", "created_by", "created_at")} | {"name": shown}
                await rows.rename(tx, team_id, shown, self._mac(macs.TEAM, columns), datetime.now(UTC))
                await self._note(tx, caller, "team.update", team_id, name=shown)
                return await self._mine(tx, caller, team_id, TeamRole.ADMIN)

    async def delete(self, caller: Caller, team_id: UUID) -> None:
        """End a team with all that is its own, its key included: its owners. What was shared with it is its owners' again.

        Raises ``NotFound``, ``Forbidden``, ``ScopeMissing``.
        """
        async with attempt(self._db, "team.delete", caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                mine = await self._mine(tx, caller, team_id, TeamRole.OWNER)
                everybody = {row.user_id for row in await rows.members(tx, team_id)}
                await rows.delete(tx, team_id)
                await self._note(tx, caller, "team.delete", team_id, everybody, name=mine.name)
        self._keyring.forget_owner(team_id)
        await self.remains.removed()

    # --- members --------------------------------------------------------------------------------------------------------

    async def invite(self, caller: Caller, team_id: UUID, email: str, role: TeamRole = TeamRole.MEMBER) -> Member:
        """Invite somebody who has an account here; they become a member when they accept.

        Owners and admins invite; only owners invite owners. Raises ``NotFound``, ``Forbidden``, ``Invalid`` (no such account),
        ``Conflict`` (in the team already), ``RateLimited``, ``ScopeMissing``.
        """
        async with (
            attempt(self._db, "team.invite", caller, str(team_id)),
            taken("This person is in the team, or invited to it, already."),
        ):
            policy.require(caller, Scope.TEAMS_WRITE)
            fields = Fields()
            address = fields.email("email", email)
            fields.check()
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                mine = await self._mine(tx, caller, team_id, TeamRole.ADMIN)
                _check_may_give(mine, role)
                person = await self._account(tx, caller, address)
                there = await rows.members(tx, team_id)
                if len(there) >= MEMBERS_LIMIT:
                    raise Conflict(f"A team has at most {MEMBERS_LIMIT} members.", hint="Make another team.")
                await self._replace_forged(tx, [row for row in there if row.user_id == person.id])
                async with self._db.as_system(tx):
                    await self._check_room(tx, person.id)
                now = datetime.now(UTC)
                columns = self._membership(team_id, person.id, role, caller.user_id, now)
                columns["accepted_at"] = now if caller.is_admin else None
                await self._insert(tx, columns)
                await self._note(tx, caller, "team.invite", team_id, user_id=str(person.id), role=role)
                return _member(SimpleNamespace(**columns), person)

    async def accept(self, caller: Caller, team_id: UUID) -> Membership:
        """Agree to an invitation. Raises ``NotFound``, ``ScopeMissing``."""
        async with attempt(self._db, "team.accept", caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            return await self._change_own(caller, team_id, "team.accept", {"accepted_at": datetime.now(UTC)})

    async def set_priority(self, caller: Caller, team_id: UUID, priority: int) -> Membership:
        """Say which of one's own teams pays first: the lower number. Raises ``NotFound``, ``Invalid``, ``ScopeMissing``."""
        async with attempt(self._db, "team.set_priority", caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            if not 0 <= priority <= PRIORITY_LIMIT:
                raise Invalid.of("priority", f"is not between 0 and {PRIORITY_LIMIT}")
            return await self._change_own(caller, team_id, "team.set_priority", {"priority": priority})

    async def set_role(self, caller: Caller, team_id: UUID, user_id: UUID, role: TeamRole) -> Member:
        """Give a member another role. Only owners make owners, and change those who are; the last one stays.

        Raises ``NotFound``, ``Forbidden``, ``ScopeMissing``.
        """
        async with attempt(self._db, "team.set_role", caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                mine = await self._mine(tx, caller, team_id, TeamRole.ADMIN)
                there = reach.written_here(self._keyring, macs.MEMBER, await rows.members(tx, team_id), [])
                row = _row_of(there, user_id)
                _check_may_give(mine, TeamRole(row.role))
                _check_may_give(mine, role)
                if role is not TeamRole.OWNER:
                    _check_not_last(there, user_id)
                columns = _columns(row) | {"role": role.value}
                await rows.update_member(tx, team_id, user_id, {"role": role.value, "mac": self._mac(macs.MEMBER, columns)})
                await self._note(tx, caller, "team.set_role", team_id, user_id=str(user_id), role=role)
                people = {person.id: person for person in await rows.people(tx, caller.user_id)}
                return _member(SimpleNamespace(**columns), people[user_id])

    async def remove(self, caller: Caller, team_id: UUID, user_id: UUID) -> None:
        """Send somebody away, or leave oneself; what they share with the team goes with them, everywhere within a second.

        An invitation is taken back, or declined, likewise. Raises ``NotFound``, ``Forbidden`` (the last owner, an owner by an
        admin, a member by a member), ``ScopeMissing``.
        """
        action = "team.leave" if user_id == caller.user_id else "team.remove"
        async with attempt(self._db, action, caller, str(team_id)):
            policy.require(caller, Scope.TEAMS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                there = await rows.members(tx, team_id)
                if user_id != caller.user_id:
                    mine = await self._mine(tx, caller, team_id, TeamRole.ADMIN)
                    # A row that somebody put there by hand goes like any other.
                    _check_may_give(mine, TeamRole(_row_of(there, user_id).role))
                _row_of(there, user_id)
                _check_not_last(reach.written_here(self._keyring, macs.MEMBER, there, []), user_id)
                await rows.delete_shares_by(tx, user_id, team_id)
                await rows.delete_member(tx, team_id, user_id)
                await self._note(tx, caller, action, team_id, {user_id}, user_id=str(user_id))

    # --- inside ---------------------------------------------------------------------------------------------------------

    async def _mine(self, tx: AsyncConnection, caller: Caller, team_id: UUID, least: TeamRole) -> Membership:
        """The caller's membership, with at least this role. Raises ``NotFound`` for who is not in the team, ``Forbidden``."""
        mine = (await reach.load(tx, self._keyring, caller.user_id, shares=False)).team(team_id)
        if mine is None:
            raise NotFound
        if least is TeamRole.OWNER and mine.role is not TeamRole.OWNER:
            raise Forbidden("Only the team's owners may do this.", hint="Ask one of them.")
        if least is TeamRole.ADMIN and not mine.leads:
            raise Forbidden("Only the team's owners and admins may do this.", hint="Ask one of them.")
        return mine

    async def _account(self, tx: AsyncConnection, caller: Caller, address: str) -> Any:
        """The active account of this address. Who asks for many that are not there is slowed down: this is no directory."""
        counted = str(caller.user_id), caller.client.ip
        try:
            self._limiter.take(*counted)
        except RateLimited as error:
            raise RateLimited("Too many invitations.", retry_after=error.retry_after) from None
        person = await lookups.user_by_email(tx, address)
        if person is None or not person.is_active:
            raise Invalid.of("email", "belongs to no account here")
        self._limiter.give_back(*counted)
        return person

    async def _change_own(self, caller: Caller, team_id: UUID, action: str, change: dict[str, Any]) -> Membership:
        """Change one's own membership: columns that are nobody else's business, and so the system's to write."""
        async with self._db.write(Actor.system()) as tx:
            await self._db.lock_order(tx)
            mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
            _found(mine.invitations if "accepted_at" in change else mine.teams, team_id)
            row = _row_of(await rows.members(tx, team_id), caller.user_id)
            columns = _columns(row) | change
            await rows.update_member(tx, team_id, caller.user_id, change | {"mac": self._mac(macs.MEMBER, columns)})
            detail = {name: str(value) for name, value in change.items() if name == "priority"}
            await self._note(tx, caller, action, team_id, {caller.user_id}, **detail)
            return await self._mine(tx, caller, team_id, TeamRole.MEMBER)

    async def _check_room(self, tx: AsyncConnection, user_id: UUID) -> None:
        if len(await rows.of_user(tx, user_id)) >= TEAMS_LIMIT:
            raise Conflict(f"A person is in at most {TEAMS_LIMIT} teams, invitations included.", hint="Leave another team first.")

    async def _replace_forged(self, tx: AsyncConnection, there: Iterable[Any]) -> None:
        """Make room where a row stands that was not written here."""
        for row in there:
            if not reach.written_here(self._keyring, macs.MEMBER, [row], []):
                await rows.delete_member(tx, row.team_id, row.user_id)

    def _checked_name(self, name: str) -> str:
        fields = Fields()
        shown = fields.name("name", name)
        if self._catalog.detect(shown):  # names are listed and recorded
            fields.wrong("name", "looks like a key")
        fields.check()
        return shown

    def _membership(self, team_id: UUID, user_id: UUID, role: TeamRole, by: UUID, at: datetime) -> dict[str, Any]:
        return {
            "team_id": team_id,
            "user_id": user_id,
            "role": role.value,
            "priority": DEFAULT_PRIORITY,
            "added_by": by,
            "accepted_at": None,
            "created_at": at,
        }

    async def _insert(self, tx: AsyncConnection, columns: dict[str, Any]) -> None:
        await rows.insert_member(tx, columns | {"mac": self._mac(macs.MEMBER, columns)})

    def _mac(self, table: str, columns: dict[str, Any]) -> bytes:
        fields = {macs.TEAM: macs.team_fields, macs.MEMBER: macs.member_fields}[table]
        return self._keyring.row_mac(table, *fields(SimpleNamespace(**columns)))

    async def _note(
        self, tx: AsyncConnection, caller: Caller, action: str, team_id: UUID, also: Iterable[UUID] = (), **detail: str
    ) -> None:
        """Record the change, and tell every process: it concerns all of the team, and ``also`` these."""
        owner = Owner(OwnerKind.TEAM, team_id)
        record = ManagementRecord(action, caller, str(team_id), owner=owner, detail=tuple(detail.items()))
        await management.record(self._db, tx, record)
        await audience.note_team(self._db, tx, team_id, also)


def _found(teams: Iterable[Membership], team_id: UUID) -> Membership:
    found = next((team for team in teams if team.team_id == team_id), None)
    if found is None:
        raise NotFound
    return found


def _row_of(there: Iterable[Any], user_id: UUID) -> Any:
    row = next((row for row in there if row.user_id == user_id), None)
    if row is None:
        raise NotFound
    return row


def _columns(row: Any) -> dict[str, Any]:
    names = ("team_id", "user_id", "role", "priority", "added_by", "accepted_at", "created_at")
    return {name: getattr(row, name) for name in names}


def _check_may_give(mine: Membership, role: TeamRole) -> None:
    """Owners are made, changed and sent away by owners. Raises ``Forbidden``."""
    if role is TeamRole.OWNER and mine.role is not TeamRole.OWNER:
        raise Forbidden("Only the team's owners may do this with an owner.", hint="Ask one of them.")


def _check_not_last(there: Iterable[Any], user_id: UUID) -> None:
    """A team has an owner. Raises ``Forbidden`` where this is the last."""
    owners = {row.user_id for row in there if row.role == TeamRole.OWNER.value and row.accepted_at is not None}
    if owners == {user_id}:
        raise Forbidden(
            "A team needs an owner, and this is its last.", hint="Make somebody else an owner first, or delete the team."
        )


def _member(row: Any, person: Any) -> Member:
    return Member(row.user_id, person.email, person.name, TeamRole(row.role), row.accepted_at, row.created_at)
