"""The Secrets Vault's pages. Each asks the same services as the REST API; a refused form is shown again without the value."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import groupby
from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response

from keybearer.access import policy
from keybearer.access.fields import secret_value
from keybearer.api.authentication import CurrentServices
from keybearer.api.records import audit_answer
from keybearer.console.forms import Text, an_id, day_of, end_of_day, named_texts, split_tags, whole
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Grade, Scope, Secret, SecretType
from keybearer.errors import Forbidden, KeybearerError, NotFound
from keybearer.services import Services
from keybearer.vault.drafts import NewSecret
from keybearer.vault.oauth import PARTS
from keybearer.vault.secrets import SecretFilter, Standing

router = APIRouter(include_in_schema=False)

Asked = Annotated[str, Query(max_length=200)]
LISTED = 200
"""Secrets on one page of the vault."""
LOG_ROWS = 50
STATES: tuple[Standing, ...] = get_args(Standing)


@router.head("/", include_in_schema=False)  # agents look with it whether a base URL leads anywhere
@router.get("/")
async def vault(
    visitor: CurrentVisitor,
    services: CurrentServices,
    *,
    search: Asked = "",
    tag: Asked = "",
    state: Asked = "",
    cursor: str | None = None,
    deleted: UUID | None = None,
) -> Response:
    """Show one's secrets, grouped by provider. ``deleted``: the one that was just deleted, to be brought back."""
    wanted = SecretFilter(text=search or None, tag=tag or None, state=_state(state))
    page = await services.secrets.list(visitor.caller, wanted, cursor=cursor, limit=LISTED)
    names = await _display_names(services, visitor)
    return render(
        "vault.html",
        **visitor.shown,
        page="/",
        groups=grouped(page.items, names),
        standing=services.secrets.standing,
        fares=services.credentials.health,
        restorable=services.secrets.retention.restorable,
        asked={"search": search, "tag": tag, "state": state},
        states=STATES,
        next_cursor=page.next_cursor,
        undo=await _deleted(services, visitor, deleted),
        base_url=services.options.public_url,
    )


async def _display_names(services: Services, visitor: Visitor) -> dict[str, str]:
    return {view.name: view.display_name for view in await services.providers.list(visitor.caller)}


def _state(text: str) -> Standing | None:
    return next((state for state in STATES if state == text), None)


async def _deleted(services: Services, visitor: Visitor, secret_id: UUID | None) -> Secret | None:
    """The deleted secret of this id, if the caller has one; the address is anybody's to write."""
    if secret_id is None:
        return None
    try:
        return await services.secrets.trash.get(visitor.caller, secret_id)
    except (NotFound, Forbidden):
        return None


def grouped(secrets: Iterable[Secret], names: dict[str, str]) -> list[tuple[str, list[Secret]]]:
    """Group secrets by their provider's display name, both in alphabetical order."""

    def title(secret: Secret) -> str:
        return names.get(secret.provider, secret.provider)

    ordered = sorted(secrets, key=lambda secret: (title(secret).lower(), title(secret), secret.priority, secret.name))
    return [(name, list(group)) for name, group in groupby(ordered, title)]


# ---- a new one -------------------------------------------------------------------------------------------------------

BLANK = {
    "provider": "",
    "secret_type": "",
    "name": "",
    "description": "",
    "tags": "",
    "expires_at": "",
    "rotation_period": "",
    "priority": "100",
    "fetchable": "",
    "parameters": "",
    "team_id": "",
    "reference": "",
}


async def _new_secret_page(services: Services, visitor: Visitor, status: int = 200, **values: Any) -> Response:
    values["draft"] = BLANK | values.get("draft", {})
    providers = sorted(await services.providers.list(visitor.caller), key=lambda view: view.display_name.lower())
    teams = [team for team in await services.teams.list(visitor.caller) if team.leads]
    types = [kind.value for kind in SecretType]
    return render(
        "secret_new.html", status=status, **visitor.shown, page="/", providers=providers, teams=teams, types=types, **values
    )


@router.get("/secrets/new")
async def new_secret_page(visitor: CurrentVisitor, services: CurrentServices, provider: str = "") -> Response:
    """Show the form for a new secret."""
    return await _new_secret_page(services, visitor, draft={"provider": provider})


@router.post("/secrets/new")
async def new_secret(
    visitor: CurrentVisitor,
    services: CurrentServices,
    *,
    provider: Text = "",
    secret_type: Text = "",
    value: Text = "",
    name: Text = "default",
    description: Text = "",
    tags: Text = "",
    expires_at: Text = "",
    rotation_period: Text = "",
    priority: Text = "100",
    fetchable: Text = "",
    client_id: Text = "",
    client_secret: Text = "",
    refresh_token: Text = "",
    token_endpoint: Text = "",
    scopes: Text = "",
    parameters: Text = "",
    team_id: Text = "",
    reference: Text = "",
    save_anyway: Text = "",
) -> Response:
    """Store a new secret, one's own or a team's."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    given = (
        provider,
        secret_type,
        name,
        description,
        tags,
        expires_at,
        rotation_period,
        priority,
        fetchable,
        parameters,
        team_id,
        reference,
    )
    shown = dict(zip(BLANK, given, strict=True))
    typed = (client_id, client_secret, refresh_token, token_endpoint)
    try:
        draft = NewSecret(
            provider=provider,
            secret_type=next((kind for kind in SecretType if kind == secret_type), None),
            name=name,
            value=secret_value(value),
            description=description,
            tags=split_tags(tags),
            expires_at=end_of_day(expires_at),
            rotation_period=whole(rotation_period, "rotation_period"),
            priority=whole(priority.strip() or BLANK["priority"], "priority") or 0,
            fetchable=bool(fetchable),
            oauth=_parts(dict(zip(PARTS, typed, strict=False)), scopes),
            parameters=named_texts(parameters),
            team_id=an_id(team_id, "team_id"),
            reference=reference.strip() or None,
            save_anyway=bool(save_anyway),
        )
        await services.secrets.create(visitor.caller, draft)
    except KeybearerError as error:
        return await _new_secret_page(services, visitor, error.status, draft=shown, error=error)
    return go(f"/teams/{team_id}" if team_id else "/", "stored")


def _parts(typed: dict[str, str], scopes: str) -> dict[str, Any] | None:
    """The parts of an OAuth token that were filled in."""
    given: dict[str, Any] = {name: secret_value(text) for name, text in typed.items() if text.strip()}
    if scopes.split():
        given["scopes"] = scopes.split()
    return given or None


# ---- one secret ------------------------------------------------------------------------------------------------------


@router.get("/secrets/{secret_id}")
async def secret_page(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show one secret, its versions and its access log."""
    return await _secret_page(services, visitor, secret_id, cursor=cursor)


async def _secret_page(
    services: Services, visitor: Visitor, secret_id: UUID, *, cursor: str | None = None, error: KeybearerError | None = None
) -> Response:
    secret = await services.secrets.get(visitor.caller, secret_id)
    names = await _display_names(services, visitor)
    may_change = secret.access is Grade.MANAGE
    versions, _ = await services.secrets.versions.list(visitor.caller, secret_id) if may_change else ([], None)
    log = await audit_answer(services, visitor.caller, limit=LOG_ROWS, cursor=cursor, secret_id=secret_id)
    return render(
        "secret.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/",
        secret=secret,
        provider_name=names.get(secret.provider, secret.provider),
        standing=services.secrets.standing(secret),
        fares=services.credentials.health(secret.id, secret.version),
        falls_back=any(version.state == "fallback" for version in versions),
        may_change=may_change,
        is_own=secret.owner.id == visitor.caller.user_id,
        teams=[team for team in await services.teams.list(visitor.caller) if team.accepted_at],
        versions=versions,
        restorable=services.secrets.retention.restorable,
        records=log.items,
        next_cursor=log.next_cursor,
        error=error,
    )


@router.post("/secrets/{secret_id}")
async def change_secret(
    secret_id: UUID,
    visitor: CurrentVisitor,
    services: CurrentServices,
    *,
    name: Text = "",
    description: Text = "",
    tags: Text = "",
    expires_at: Text = "",
    rotation_period: Text = "",
    priority: Text = "",
    allowed_models: Text = "",
    health_check_every: Text = "",
    fetchable: Text = "",
) -> Response:
    """Change what may be done with a secret; its value is changed by a rotation."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    try:
        before = await services.secrets.get(visitor.caller, secret_id)
        wanted: dict[str, Any] = {
            "name": name,
            "description": description,
            "tags": split_tags(tags),
            "expires_at": before.expires_at if expires_at == day_of(before.expires_at) else end_of_day(expires_at),
            "rotation_period": whole(rotation_period, "rotation_period"),
            "priority": whole(priority, "priority"),
            "allowed_models": split_tags(allowed_models) or None,
            "health_check_every": whole(health_check_every, "health_check_every"),
            "fetchable": bool(fetchable),
        }
        # Only what differs: an end that has passed may stay, and what nobody touched asks for no right to change it.
        changes = {field: value for field, value in wanted.items() if value != getattr(before, field)}
        await services.secrets.update(visitor.caller, secret_id, changes)
    except KeybearerError as error:
        return await _secret_page(services, visitor, secret_id, error=error)
    return go(f"/secrets/{secret_id}", "saved")


@router.post("/secrets/{secret_id}/rotate")
async def rotate_secret(
    secret_id: UUID,
    visitor: CurrentVisitor,
    services: CurrentServices,
    value: Text = "",
    overlap_hours: Text = "",
    save_anyway: Text = "",
) -> Response:
    """Put a new value in force."""
    try:
        overlap = timedelta(hours=whole(overlap_hours, "overlap_hours") or 0)
        await services.secrets.versions.rotate(
            visitor.caller, secret_id, secret_value(value), overlap=overlap, save_anyway=bool(save_anyway)
        )
    except KeybearerError as error:
        return await _secret_page(services, visitor, secret_id, error=error)
    return go(f"/secrets/{secret_id}", "rotated")


@router.post("/secrets/{secret_id}/rollback")
async def roll_back_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, version: Text = "") -> Response:
    """Put an earlier value in force again."""
    try:
        await services.secrets.versions.rollback(visitor.caller, secret_id, whole(version, "version"))
    except KeybearerError as error:
        return await _secret_page(services, visitor, secret_id, error=error)
    return go(f"/secrets/{secret_id}", "rolled-back")


@router.post("/secrets/{secret_id}/active")
async def switch_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, is_active: Text) -> Response:
    """Switch a secret on or off."""
    try:
        await services.secrets.update(visitor.caller, secret_id, {"is_active": is_active == "yes"})
    except KeybearerError as error:
        return await _secret_page(services, visitor, secret_id, error=error)
    return go(f"/secrets/{secret_id}", "on" if is_active == "yes" else "off")


@router.post("/secrets/{secret_id}/delete")
async def delete_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Delete a secret; the next page offers to bring it back."""
    await services.secrets.delete(visitor.caller, secret_id)
    return go(f"/?deleted={secret_id}")


@router.post("/secrets/{secret_id}/restore")
async def restore_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, name: Text = "") -> Response:
    """Bring a deleted secret back."""
    await services.secrets.trash.restore(visitor.caller, secret_id, name or None)
    return go(f"/secrets/{secret_id}", "restored")


@router.post("/secrets/{secret_id}/purge")
async def purge_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Remove a secret for good."""
    await services.secrets.trash.purge(visitor.caller, secret_id)
    return go("/?state=deleted", "purged")
