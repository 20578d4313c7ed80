"""The pages. Each asks the same services as the REST API; a refused form is shown again with what was wrong, without the value."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, time
from itertools import groupby
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.api.auth import set_session_cookie
from keybearer.api.authentication import CurrentClient, CurrentServices, check_same_origin, session_cookie_name
from keybearer.api.records import audit_answer
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Scope, Secret, SecretBytes
from keybearer.errors import FieldError, Invalid, KeybearerError
from keybearer.services import Services
from keybearer.vault.drafts import NewSecret
from keybearer.vault.secrets import SecretFilter

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]
LISTED = 200
"""Secrets shown on the vault's page; more are found by the API's search."""
LOG_ROWS = 50


# ---- coming in -------------------------------------------------------------------------------------------------------


@router.get("/setup")
async def setup_page() -> Response:
    """Show the set-up form; the link's token stays in the browser until the form is sent."""
    return render("setup.html", name="", email="")


@router.post("/setup")
async def setup(
    request: Request,
    services: CurrentServices,
    client: CurrentClient,
    token: Text = "",
    email: Text = "",
    password: Text = "",
    name: Text = "",
) -> Response:
    """Make the first administrator."""
    check_same_origin(request)
    try:
        _, cookie = await services.users.redeem_setup_link(token, email, password, name, client)
    except KeybearerError as error:
        return render("setup.html", status=error.status, error=error, name=name, email=email)
    return _signed_in(services, cookie)


@router.get("/sign-in")
async def sign_in_page() -> Response:
    """Show the sign-in form."""
    return render("sign_in.html", email="")


@router.post("/sign-in")
async def sign_in(
    request: Request, services: CurrentServices, client: CurrentClient, email: Text = "", password: Text = ""
) -> Response:
    """Sign in."""
    check_same_origin(request)
    try:
        _, cookie = await services.sessions.sign_in(email, password, client)
    except KeybearerError as error:
        return render("sign_in.html", status=error.status, error=error, email=email)
    return _signed_in(services, cookie)


def _signed_in(services: Services, cookie: str) -> RedirectResponse:
    response = go("/")
    set_session_cookie(response, services, cookie)
    return response


@router.post("/sign-out")
async def sign_out(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """End the session."""
    await services.sessions.sign_out(visitor.caller)
    response = go("/sign-in")
    response.delete_cookie(session_cookie_name(services))
    return response


# ---- secrets ---------------------------------------------------------------------------------------------------------


@router.get("/")
async def vault(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show one's secrets, grouped by provider."""
    page = await services.secrets.list(visitor.caller, SecretFilter(), cursor=None, limit=LISTED)
    names = {view.name: view.display_name for view in await services.providers.list(visitor.caller)}
    return render(
        "vault.html",
        account=visitor.account,
        page="/",
        groups=grouped(page.items, names),
        now=datetime.now(UTC),
        base_url=services.options.public_url,
    )


def grouped(secrets: Iterable[Secret], names: dict[str, str]) -> list[tuple[str, list[Secret]]]:
    """Group secrets by their provider's display name, both in alphabetical order."""

    def title(secret: Secret) -> str:
        return names.get(secret.provider, secret.provider)

    ordered = sorted(secrets, key=lambda secret: (title(secret).lower(), secret.priority, secret.name))
    return [(name, list(group)) for name, group in groupby(ordered, title)]


async def _new_secret_page(services: Services, visitor: Visitor, status: int = 200, **values: Any) -> Response:
    blank = {"provider": "", "name": "", "description": "", "tags": "", "expires_at": "", "team_id": ""}
    values["draft"] = blank | values.get("draft", {})
    providers = sorted(await services.providers.list(visitor.caller), key=lambda view: view.display_name.lower())
    teams = [team for team in await services.teams.list(visitor.caller) if team.leads]
    return render("secret_new.html", status=status, account=visitor.account, providers=providers, teams=teams, **values)


@router.get("/secrets/new")
async def new_secret_page(visitor: CurrentVisitor, services: CurrentServices, provider: str = "") -> Response:
    """Show the form for a new secret."""
    return await _new_secret_page(services, visitor, draft={"provider": provider})


@router.post("/secrets/new")
async def new_secret(
    visitor: CurrentVisitor,
    services: CurrentServices,
    provider: Text = "",
    value: Text = "",
    name: Text = "default",
    description: Text = "",
    tags: Text = "",
    expires_at: Text = "",
    team_id: Text = "",
    save_anyway: Text = "",
) -> Response:
    """Store a new secret, one's own or a team's."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    shown = {"provider": provider, "name": name, "description": description, "tags": tags, "expires_at": expires_at}
    shown["team_id"] = team_id
    try:
        draft = NewSecret(
            provider=provider,
            name=name,
            value=SecretBytes(value.encode("utf-8", "surrogatepass")),
            description=description,
            tags=split_tags(tags),
            expires_at=end_of_day(expires_at),
            team_id=_team(team_id),
            save_anyway=bool(save_anyway),
        )
        await services.secrets.create(visitor.caller, draft)
    except KeybearerError as error:
        return await _new_secret_page(services, visitor, error.status, draft=shown, error=error)
    return go(f"/teams/{team_id}" if team_id else "/")


def _team(text: str) -> UUID | None:
    """Whose a secret is to be; nothing: one's own. Raises ``Invalid``."""
    try:
        return UUID(text) if text else None
    except ValueError:
        raise Invalid("team_id is no id.", fields=(FieldError("team_id", "is no id"),)) from None


def split_tags(text: str) -> tuple[str, ...]:
    """Split tags at commas."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


def end_of_day(text: str) -> datetime | None:
    """Return the end of a day given as ``YYYY-MM-DD``, in UTC; empty: never. Raises ``Invalid``."""
    if not text.strip():
        return None
    try:
        return datetime.combine(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC), time(23, 59, 59), UTC)
    except ValueError:
        raise Invalid(fields=(FieldError("expires_at", "Write the day as YYYY-MM-DD."),)) from None


@router.get("/secrets/{secret_id}")
async def secret_page(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show one secret and its access log."""
    return await _secret_page(services, visitor, secret_id, cursor=cursor)


async def _secret_page(
    services: Services, visitor: Visitor, secret_id: UUID, *, cursor: str | None = None, error: KeybearerError | None = None
) -> Response:
    secret = await services.secrets.get(visitor.caller, secret_id)
    log = await audit_answer(services, visitor.caller, limit=LOG_ROWS, cursor=cursor, secret_id=secret_id)
    return render(
        "secret.html",
        status=error.status if error else 200,
        account=visitor.account,
        secret=secret,
        is_own=secret.owner.id == visitor.caller.user_id,
        teams=[team for team in await services.teams.list(visitor.caller) if team.accepted_at],
        records=log.items,
        next_cursor=log.next_cursor,
        now=datetime.now(UTC),
        error=error,
    )


@router.post("/secrets/{secret_id}")
async def change_secret(
    secret_id: UUID,
    visitor: CurrentVisitor,
    services: CurrentServices,
    name: Text = "",
    value: Text = "",
    description: Text = "",
    tags: Text = "",
) -> Response:
    """Change a secret; an empty value keeps the old one."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    changes: dict[str, Any] = {"name": name, "description": description, "tags": split_tags(tags)}
    if value:
        changes["value"] = SecretBytes(value.encode("utf-8", "surrogatepass"))
    try:
        await services.secrets.update(visitor.caller, secret_id, changes)
    except KeybearerError as error:
        return await _secret_page(services, visitor, secret_id, error=error)
    return go(f"/secrets/{secret_id}")


@router.post("/secrets/{secret_id}/active")
async def switch_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices, is_active: Text) -> Response:
    """Switch a secret on or off."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    await services.secrets.update(visitor.caller, secret_id, {"is_active": is_active == "yes"})
    return go(f"/secrets/{secret_id}")


@router.post("/secrets/{secret_id}/delete")
async def delete_secret(secret_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Delete a secret."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    await services.secrets.delete(visitor.caller, secret_id)
    return go("/")


# ---- access tokens and log -------------------------------------------------------------------------------------------


async def _tokens_page(
    services: Services, visitor: Visitor, status: int = 200, cursor: str | None = None, **values: Any
) -> Response:
    tokens, next_cursor = await services.tokens.page(visitor.caller, cursor=cursor, limit=LOG_ROWS)
    base_url = services.options.public_url
    values = {"made": "", "next_cursor": next_cursor, **values}
    return render(
        "tokens.html", status=status, account=visitor.account, page="/tokens", tokens=tokens, base_url=base_url, **values
    )


@router.get("/tokens")
async def tokens_page(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show one's access tokens."""
    return await _tokens_page(services, visitor, cursor=cursor)


@router.post("/tokens")
async def create_token(visitor: CurrentVisitor, services: CurrentServices, name: Text = "", expires_at: Text = "") -> Response:
    """Make an access token and show it this once: in the answer itself, never in a redirect's address."""
    policy.require(visitor.caller, Scope.TOKENS_WRITE)
    try:
        wanted = NewToken(name=name, scopes=frozenset({Scope.GATEWAY_USE}), expires_at=end_of_day(expires_at))
        _, text = await services.tokens.create(visitor.caller, wanted)
    except KeybearerError as error:
        return await _tokens_page(services, visitor, error.status, error=error)
    return await _tokens_page(services, visitor, 201, made=text)


@router.post("/tokens/{token_id}/revoke")
async def revoke_token(token_id: str, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Revoke an access token."""
    policy.require(visitor.caller, Scope.TOKENS_WRITE)
    await services.tokens.delete(visitor.caller, token_id)
    return go("/tokens")


@router.get("/access-log")
async def access_log(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show what was done with one's keys."""
    log = await audit_answer(services, visitor.caller, limit=LOG_ROWS, cursor=cursor)
    return render(
        "access_log.html",
        account=visitor.account,
        page="/access-log",
        records=log.items,
        next_cursor=log.next_cursor,
    )
