"""The pages of teams: which there are, who is in them, what is shared with them; and the share dialog of a secret's page."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form
from fastapi.responses import Response

from keybearer.api.authentication import CurrentServices
from keybearer.console.forms import whole
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Grade, TeamRole
from keybearer.errors import FieldError, Invalid, KeybearerError
from keybearer.services import Services
from keybearer.vault.secrets import SecretFilter

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]
LISTED = 200
"""Secrets shown on a team's page; more are found by the API."""


async def _teams_page(services: Services, visitor: Visitor, error: KeybearerError | None = None) -> Response:
    return render(
        "teams.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/teams",
        teams=await services.teams.list(visitor.caller),
        error=error,
    )


@router.get("/teams")
async def teams(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show one's teams, and invitations."""
    return await _teams_page(services, visitor)


@router.post("/teams")
async def create_team(visitor: CurrentVisitor, services: CurrentServices, name: Text = "") -> Response:
    """Make a team."""
    try:
        made = await services.teams.create(visitor.caller, name)
    except KeybearerError as error:
        return await _teams_page(services, visitor, error)
    return go(f"/teams/{made.team_id}", "added")


async def _team_page(services: Services, visitor: Visitor, team_id: UUID, error: KeybearerError | None = None) -> Response:
    team = await services.teams.get(visitor.caller, team_id)
    if team.accepted_at is None:
        return await _teams_page(services, visitor)
    secrets = await services.secrets.list(visitor.caller, SecretFilter(team_id=team_id), limit=LISTED)
    return render(
        "team.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/teams",
        team=team,
        members=await services.teams.members(visitor.caller, team_id),
        secrets=secrets.items,
        standing=services.secrets.standing,
        fares=services.credentials.health,
        error=error,
    )


@router.get("/teams/{team_id}")
async def team_page(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show a team: its members and the secrets that serve them."""
    return await _team_page(services, visitor, team_id)


@router.post("/teams/{team_id}")
async def rename_team(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices, name: Text = "") -> Response:
    """Give a team another name."""
    try:
        await services.teams.rename(visitor.caller, team_id, name)
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go(f"/teams/{team_id}", "saved")


@router.post("/teams/{team_id}/accept")
async def accept(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Accept an invitation."""
    await services.teams.accept(visitor.caller, team_id)
    return go(f"/teams/{team_id}", "joined")


@router.post("/teams/{team_id}/leave")
async def leave(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Leave a team, or decline an invitation."""
    try:
        await services.teams.remove(visitor.caller, team_id, visitor.caller.user_id)
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go("/teams", "left")


@router.post("/teams/{team_id}/priority")
async def priority(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices, priority: Text = "") -> Response:
    """Say when a team's keys serve oneself."""
    try:
        number = whole(priority, "priority")
        if number is None:
            raise Invalid.of("priority", "is required")
        await services.teams.set_priority(visitor.caller, team_id, number)
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go(f"/teams/{team_id}", "saved")


@router.post("/teams/{team_id}/delete")
async def delete_team(team_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """End a team."""
    await services.teams.delete(visitor.caller, team_id)
    return go("/teams", "deleted")


@router.post("/teams/{team_id}/members")
async def invite(
    team_id: UUID, visitor: CurrentVisitor, services: CurrentServices, email: Text = "", role: Text = "member"
) -> Response:
    """Invite somebody."""
    try:
        await services.teams.invite(visitor.caller, team_id, email, _role(role))
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go(f"/teams/{team_id}", "invited")


@router.post("/teams/{team_id}/members/{user_id}/role")
async def change_role(
    team_id: UUID, user_id: UUID, visitor: CurrentVisitor, services: CurrentServices, role: Text = ""
) -> Response:
    """Give a member another role."""
    try:
        await services.teams.set_role(visitor.caller, team_id, user_id, _role(role))
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go(f"/teams/{team_id}", "saved")


@router.post("/teams/{team_id}/members/{user_id}/remove")
async def remove(team_id: UUID, user_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Send somebody away, or take back an invitation."""
    try:
        await services.teams.remove(visitor.caller, team_id, user_id)
    except KeybearerError as error:
        return await _team_page(services, visitor, team_id, error)
    return go(f"/teams/{team_id}", "removed")


@router.post("/secrets/{secret_id}/share")
async def share(
    secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, team_id: Annotated[UUID, Form()], grade: Text = "use"
) -> Response:
    """Share a secret with a team."""
    wanted = Grade.MANAGE if grade == Grade.MANAGE.value else Grade.USE  # what is none of them gives the less
    await services.shares.share(visitor.caller, secret_id, team_id, wanted)
    return go(f"/secrets/{secret_id}", "shared")


@router.post("/secrets/{secret_id}/unshare")
async def unshare(
    secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, team_id: Annotated[UUID, Form()]
) -> Response:
    """End a share."""
    share = next(
        (each for each in (await services.secrets.get(visitor.caller, secret_id)).shares if each.team_id == team_id), None
    )
    await services.shares.unshare(visitor.caller, secret_id, team_id)
    is_own = share is not None and share.shared_by == visitor.caller.user_id
    return go(f"/secrets/{secret_id}" if is_own else f"/teams/{team_id}", "unshared")


def _role(text: str) -> TeamRole:
    try:
        return TeamRole(text)
    except ValueError:
        raise Invalid("role is none of owner, admin, member.", fields=(FieldError("role", "is none of them"),)) from None
