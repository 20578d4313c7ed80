"""The pages beside the vault's. Each asks the same services as the REST API; a refused form is shown again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.api.auth import drop_session_cookie, set_session_cookie
from keybearer.api.authentication import CurrentClient, CurrentServices, check_same_origin
from keybearer.console.forms import Text, Texts, end_of_day, scopes_of
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Scope
from keybearer.errors import KeybearerError
from keybearer.services import Services

router = APIRouter(include_in_schema=False)

TOKEN_ROWS = 50
SCOPE_WORDS = {
    Scope.GATEWAY_USE: "call the gateway with your keys",
    Scope.SECRETS_USE: "list secrets and test them",
    Scope.SECRETS_READ: "read values that may be read again",
    Scope.SECRETS_WRITE: "add, change, rotate and delete secrets",
    Scope.MODELS_WRITE: "register models",
    Scope.PROVIDERS_WRITE: "add providers",
    Scope.TEAMS_WRITE: "make teams, invite, share",
    Scope.TOKENS_WRITE: "make and revoke tokens",
    Scope.BUDGETS_WRITE: "set budgets",
    Scope.USAGE_READ: "read usage and cost",
    Scope.AUDIT_READ: "read the access log",
    Scope.USERS_ACT_AS: "act for your application's users",
    Scope.ADMIN: "do what administrators do",
}
"""What each scope lets a token do, as the form says it."""


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
async def sign_in_page(services: CurrentServices) -> Response:
    """Show the sign-in form; before there is an account, say how to make one."""
    return render("sign_in.html", email="", fresh=not await services.users.has_admin())


@router.post("/sign-in")
async def sign_in(
    request: Request, services: CurrentServices, client: CurrentClient, email: Text = "", password: Text = ""
) -> Response:
    """Sign in."""
    check_same_origin(request)
    try:
        _, cookie = await services.sessions.sign_in(email, password, client)
    except KeybearerError as error:
        return render("sign_in.html", status=error.status, error=error, email=email, fresh=False)
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
    drop_session_cookie(response, services)
    return response


# ---- access tokens -----------------------------------------------------------------------------------------------------


BLANK_TOKEN = {"name": "", "expires_at": "", "scopes": (Scope.GATEWAY_USE.value,)}


async def _tokens_page(
    services: Services, visitor: Visitor, status: int = 200, cursor: str | None = None, **values: Any
) -> Response:
    tokens, next_cursor = await services.tokens.page(visitor.caller, cursor=cursor, limit=TOKEN_ROWS)
    base_url = services.options.public_url
    values = {"made": "", "next_cursor": next_cursor, "draft": BLANK_TOKEN, **values}
    scopes = [(scope.value, words) for scope, words in SCOPE_WORDS.items() if scope in visitor.caller.scopes]
    shown = {**visitor.shown, "page": "/tokens", "scopes": scopes, "base_url": base_url}
    return render("tokens.html", status=status, tokens=tokens, **shown, **values)


@router.get("/tokens")
async def tokens_page(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show one's access tokens."""
    return await _tokens_page(services, visitor, cursor=cursor)


@router.post("/tokens")
async def create_token(
    visitor: CurrentVisitor, services: CurrentServices, name: Text = "", expires_at: Text = "", scopes: Texts = ()
) -> Response:
    """Make an access token and show it this once: in the answer itself, never in a redirect's address."""
    policy.require(visitor.caller, Scope.TOKENS_WRITE)
    try:
        wanted = NewToken(name=name, scopes=scopes_of(scopes), expires_at=end_of_day(expires_at))
        _, text = await services.tokens.create(visitor.caller, wanted)
    except KeybearerError as error:
        draft = {"name": name, "expires_at": expires_at, "scopes": scopes}
        return await _tokens_page(services, visitor, error.status, error=error, draft=draft)
    return await _tokens_page(services, visitor, 201, made=text)


@router.post("/tokens/{token_id}/revoke")
async def revoke_token(token_id: str, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Revoke an access token."""
    policy.require(visitor.caller, Scope.TOKENS_WRITE)
    await services.tokens.delete(visitor.caller, token_id)
    return go("/tokens", "revoked")
