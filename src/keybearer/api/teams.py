"""``/teams``: teams and who is in them; ``/secrets/{id}/shares``: secrets shared with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Answer, Limit, Name, Page, Request, SecretAnswer, ShareAnswer
from keybearer.api.secrets import answer_of
from keybearer.domain import Grade, TeamRole
from keybearer.store.queries import cursors
from keybearer.vault.secrets import SecretFilter
from keybearer.vault.teams import PRIORITY_LIMIT

Shown = TypeVar("Shown")

router = APIRouter(prefix="/teams", tags=["teams"])
shares = APIRouter(prefix="/secrets", tags=["teams"])


class NewTeam(Request):
    """A new team; whoever makes it is its owner."""

    name: Name


class TeamChange(Request):
    """Only the fields given are changed."""

    name: Annotated[Name | None, Field(description="For the team's owners and admins.")] = None
    priority: Annotated[
        int | None, Field(ge=0, le=PRIORITY_LIMIT, description="The caller's own order of their teams; the lower number first.")
    ] = None


class TeamAnswer(Answer):
    """A team as the caller sees it."""

    team_id: Annotated[UUID, Field(serialization_alias="id")]
    name: str
    role: TeamRole
    """The caller's."""
    priority: int
    accepted_at: datetime | None
    """``null``: the caller is invited, and not in it yet."""
    created_at: datetime


class Invitation(Request):
    """Somebody with an account here; they are in the team once they accept."""

    email: Annotated[str, Field(max_length=320)]
    role: TeamRole = TeamRole.MEMBER


class MemberChange(Request):
    """Another role."""

    role: TeamRole


class MemberAnswer(Answer):
    """Somebody in a team, or invited to it."""

    user_id: UUID
    email: str
    name: str
    role: TeamRole
    accepted_at: datetime | None
    created_at: datetime


class NewShare(Request):
    """A team that the caller is in, and what its members may do with the secret."""

    team_id: UUID
    grade: Grade = Grade.USE


def page_of(answers: Sequence[Shown], ids: Sequence[UUID], limit: int, cursor: str | None) -> Page[Shown]:
    """Cut a page out of a list that is short by its own limits. Raises ``Invalid`` for a foreign cursor."""
    start = 0
    if cursor is not None:
        (last,) = cursors.decode(cursor, tuple[UUID])
        start = ids.index(last) + 1 if last in ids else len(ids)
    end = start + limit
    return Page(items=list(answers[start:end]), next_cursor=cursors.encode((ids[end - 1],)) if end < len(ids) else None)


@router.get("")
async def list_teams(
    caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[TeamAnswer]:
    """List one's teams, in the order in which their keys serve, then invitations."""
    found = await services.teams.list(caller)
    shown = [TeamAnswer.model_validate(team) for team in found]
    return page_of(shown, [team.team_id for team in found], limit, cursor)


@router.post("", status_code=201)
async def create_team(body: NewTeam, caller: CurrentCaller, services: CurrentServices) -> TeamAnswer:
    """Make a team; the caller is its owner."""
    return TeamAnswer.model_validate(await services.teams.create(caller, body.name))


@router.get("/{team_id}")
async def get_team(team_id: UUID, caller: CurrentCaller, services: CurrentServices) -> TeamAnswer:
    """Show one team."""
    return TeamAnswer.model_validate(await services.teams.get(caller, team_id))


@router.patch("/{team_id}")
async def change_team(team_id: UUID, body: TeamChange, caller: CurrentCaller, services: CurrentServices) -> TeamAnswer:
    """Rename a team, or say when its keys serve oneself."""
    team = await services.teams.get(caller, team_id)
    if body.name is not None:
        team = await services.teams.rename(caller, team_id, body.name)
    if body.priority is not None:
        team = await services.teams.set_priority(caller, team_id, body.priority)
    return TeamAnswer.model_validate(team)


@router.delete("/{team_id}", status_code=204)
async def delete_team(team_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """End a team with its key and all that is sealed under it; its secrets stop working everywhere within a second."""
    await services.teams.delete(caller, team_id)


@router.post("/{team_id}/accept")
async def accept(team_id: UUID, caller: CurrentCaller, services: CurrentServices) -> TeamAnswer:
    """Agree to an invitation."""
    return TeamAnswer.model_validate(await services.teams.accept(caller, team_id))


@router.post("/{team_id}/leave", status_code=204)
async def leave(team_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Leave a team, or decline an invitation to it; what one shares with it is shared no longer."""
    await services.teams.remove(caller, team_id, caller.user_id)


@router.get("/{team_id}/members")
async def list_members(
    team_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[MemberAnswer]:
    """List who is in a team, or invited to it."""
    found = await services.teams.members(caller, team_id)
    shown = [MemberAnswer.model_validate(member) for member in found]
    return page_of(shown, [member.user_id for member in found], limit, cursor)


@router.post("/{team_id}/members", status_code=201)
async def invite(team_id: UUID, body: Invitation, caller: CurrentCaller, services: CurrentServices) -> MemberAnswer:
    """Invite somebody who has an account here. An administrator of the deployment adds them at once."""
    return MemberAnswer.model_validate(await services.teams.invite(caller, team_id, body.email, body.role))


@router.patch("/{team_id}/members/{user_id}")
async def change_member(
    team_id: UUID, user_id: UUID, body: MemberChange, caller: CurrentCaller, services: CurrentServices
) -> MemberAnswer:
    """Give a member another role. The last owner stays one."""
    return MemberAnswer.model_validate(await services.teams.set_role(caller, team_id, user_id, body.role))


@router.delete("/{team_id}/members/{user_id}", status_code=204)
async def remove_member(team_id: UUID, user_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Send somebody away, or take back an invitation; access ends everywhere within a second."""
    await services.teams.remove(caller, team_id, user_id)


@router.get("/{team_id}/secrets")
async def list_team_secrets(
    team_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[SecretAnswer]:
    """List a team's own secrets and those shared with it: by whom, for what, never their values."""
    page = await services.secrets.list(caller, SecretFilter(team_id=team_id), cursor=cursor, limit=limit)
    return Page(items=[answer_of(services, secret) for secret in page.items], next_cursor=page.next_cursor)


@shares.get("/{secret_id}/shares")
async def list_shares(
    secret_id: UUID, caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[ShareAnswer]:
    """List with which of one's teams a secret is shared."""
    found = (await services.secrets.get(caller, secret_id)).shares
    shown = [ShareAnswer.model_validate(share) for share in found]
    return page_of(shown, [share.team_id for share in found], limit, cursor)


@shares.post("/{secret_id}/shares", status_code=201)
async def share(secret_id: UUID, body: NewShare, caller: CurrentCaller, services: CurrentServices) -> ShareAnswer:
    """Share one's own secret with a team one is in, or change how it is shared."""
    return ShareAnswer.model_validate(await services.shares.share(caller, secret_id, body.team_id, body.grade))


@shares.delete("/{secret_id}/shares/{team_id}", status_code=204)
async def unshare(secret_id: UUID, team_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """End a share; the team's access ends everywhere within a second."""
    await services.shares.unshare(caller, secret_id, team_id)
