"""``/auth``: set up, sign in, sign out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from keybearer.api.account_schemas import Account, SetUp, SignIn
from keybearer.api.authentication import (
    CurrentCaller,
    CurrentClient,
    CurrentServices,
    check_same_origin,
    session_cookie_name,
)
from keybearer.domain import Caller
from keybearer.services import Services

router = APIRouter(prefix="/auth", tags=["auth"])


def set_session_cookie(response: Response, services: Services, cookie: str) -> None:
    """Hand the browser its session: unreadable for scripts, not sent by other sites' pages."""
    response.set_cookie(
        session_cookie_name(services),
        cookie,
        max_age=int(services.sessions.absolute.total_seconds()),
        path="/",
        secure=services.options.secure_cookies,
        httponly=True,
        samesite="lax",
    )


def drop_session_cookie(response: Response, services: Services) -> None:
    """Have the browser forget its session. It takes ``__Host-`` cookies with ``Secure`` alone, also when they are to go."""
    response.delete_cookie(
        session_cookie_name(services), path="/", secure=services.options.secure_cookies, httponly=True, samesite="lax"
    )


async def _account(caller: Caller, services: Services) -> Account:
    return Account.model_validate(await services.users.get(caller.user_id))


@router.post("/setup", status_code=201)
async def setup(body: SetUp, request: Request, response: Response, services: CurrentServices, client: CurrentClient) -> Account:
    """Make the first administrator with the one-time set-up link, and sign in."""
    check_same_origin(request)
    caller, cookie = await services.users.redeem_setup_link(
        body.token.get_secret_value(), body.email, body.password.get_secret_value(), body.name, client
    )
    set_session_cookie(response, services, cookie)
    return await _account(caller, services)


@router.post("/sign-in")
async def sign_in(
    body: SignIn, request: Request, response: Response, services: CurrentServices, client: CurrentClient
) -> Account:
    """Sign in with e-mail and password; the session comes as a cookie."""
    check_same_origin(request)
    caller, cookie = await services.sessions.sign_in(body.email, body.password.get_secret_value(), client)
    set_session_cookie(response, services, cookie)
    return await _account(caller, services)


@router.post("/sign-out", status_code=204)
async def sign_out(caller: CurrentCaller, response: Response, services: CurrentServices) -> None:
    """End this session."""
    await services.sessions.sign_out(caller)
    drop_session_cookie(response, services)
