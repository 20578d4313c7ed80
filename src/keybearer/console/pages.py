"""How pages are made: templates with autoescape, asset addresses that change with their content, who is signed in."""

from __future__ import annotations

import hashlib
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from keybearer.access.users import User
from keybearer.api import problems
from keybearer.api.authentication import check_same_origin, client_of, services_of, session_cookie_name
from keybearer.api.gate import Gate
from keybearer.console import headers
from keybearer.domain import Caller
from keybearer.errors import KeybearerError, NotFound, Unauthenticated

HERE = Path(__file__).parent
SEE_OTHER = 303
OPEN = frozenset({"/setup", "/sign-in"})
"""Whose forms strangers may send."""


DONE = {
    "stored": "Stored, encrypted. Your apps can use it now.",
    "saved": "Saved.",
    "rotated": "The new value is in force.",
    "rolled-back": "The earlier value is in force again.",
    "off": "Switched off, everywhere within a second.",
    "on": "Switched on.",
    "restored": "Brought back.",
    "purged": "Removed for good.",
    "revoked": "Revoked. It stops working everywhere within a second.",
    "added": "Added.",
    "deleted": "Deleted.",
    "invited": "Invited. They are in the team once they accept.",
    "removed": "Removed. The team's keys stop serving them within a second.",
    "joined": "You are in the team now.",
    "left": "You are no longer in the team.",
    "shared": "Shared.",
    "account": "Added. They can sign in now.",
    "disabled": "Disabled. Their sessions and access tokens stop everywhere within a second.",
    "enabled": "Enabled.",
    "erased": "Deleted, and their key destroyed.",
    "rotating": "Begun. The servers work on it.",
    "told": "The address has taken a test message.",
    "unshared": "The share has ended, everywhere within a second.",
}
"""What a page says of the form that led to it. An address names one, and so can say nothing else."""


class SignInNeeded(Exception):  # not an error: a way
    """Nobody is signed in: the page redirects to sign in."""


class Assets(StaticFiles):
    """Static files that may be kept for a year: their address holds their digest."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.status_code == 200 and scope["query_string"]:  # noqa: PLR2004  # HTTP's own number
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def assets_app() -> Assets:
    """Serve ``console/assets``."""
    return Assets(directory=HERE / "assets")


@cache
def asset(name: str) -> str:
    """Return the address of an asset, with its digest."""
    digest = hashlib.sha256((HERE / "assets" / name).read_bytes()).hexdigest()[:12]
    return f"/assets/{name}?{digest}"


@cache
def _templates() -> Environment:
    environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    environment.globals["asset"] = asset
    environment.globals["notice"] = ""
    environment.globals["page"] = ""
    environment.globals["error"] = None
    environment.globals["unread"] = 0
    return environment


def render(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page."""
    return HTMLResponse(_templates().get_template(template).render(**values), status)


def go(path: str, done: str = "") -> RedirectResponse:
    """Redirect after a form was accepted (Post/Redirect/Get). ``done``: which of ``DONE`` the next page says."""
    if done:
        path += f"{'&' if '?' in path else '?'}done={done}"
    return RedirectResponse(path, SEE_OTHER)


class Visitor:
    """The signed-in person of a page: ``caller`` for the services, ``shown`` for the page's head."""

    def __init__(self, caller: Caller, account: User, done: str = "", unread: int = 0) -> None:
        self.caller = caller
        self.account = account
        self.shown: dict[str, Any] = {"account": account, "notice": DONE.get(done, ""), "unread": unread}


async def signed_in(request: Request) -> Visitor:
    """Return who is signed in, asked once. Raises ``SignInNeeded``."""
    known: Visitor | None = getattr(request.state, "visitor", None)  # the gate has asked
    if known is None:
        known = request.state.visitor = await _visitor(request)
    return known


async def _visitor(request: Request) -> Visitor:
    services = services_of(request)
    cookie = request.cookies.get(session_cookie_name(services))
    if not cookie:
        raise SignInNeeded
    check_same_origin(request)
    try:
        caller = await services.sessions.authenticate(cookie, client_of(request))
    except Unauthenticated:
        raise SignInNeeded from None
    unread = await services.reminders.unread(caller) if request.method == "GET" else 0
    return Visitor(caller, await services.users.get(caller.user_id), request.query_params.get("done", ""), unread)


CurrentVisitor = Annotated[Visitor, Depends(signed_in)]


def is_page(path: str) -> bool:
    """Whether a path is the console's: everything outside the API."""
    return path != "/api" and not path.startswith(("/api/", "/healthz", "/readyz", "/metrics"))


def needs_visitor(path: str) -> bool:
    """Whether a form sent to a path is to be read only from somebody who is signed in."""
    return is_page(path) and path not in OPEN


async def as_page(request: Request, error: Exception) -> Response:
    """Answer an error of a page as a page, or with the way to sign in; those of the API as problems."""
    if isinstance(error, SignInNeeded):
        return go("/sign-in")
    if not is_page(request.scope["path"]):
        return await problems.answer(request, error)
    problems.note_refusal(request, error)
    told = problems.told(error)
    if isinstance(error, HTTPException | RequestValidationError) and _names_nothing(error):
        told = NotFound("There is no such page.", hint="Check the address, or go back to the vault.")
    page = render("error.html", status=told.status, error=told)
    # Said here too: the answer to an unexpected error passes no middleware.
    page.headers.update(headers.HEADERS | {"cache-control": "no-store"})
    return page


def _names_nothing(error: HTTPException | RequestValidationError) -> bool:
    """Whether the address is wrong: no such page, or no id where one stands in it."""
    if isinstance(error, HTTPException):
        return error.status_code == HTTPStatus.NOT_FOUND
    return any(wrong["loc"][0] == "path" for wrong in error.errors())


def install_errors(app: FastAPI) -> None:
    """Answer errors of pages as pages; ask who sends a form before it is read."""
    kinds: tuple[type[Exception], ...] = (SignInNeeded, *problems.KINDS)
    for kind in kinds:
        app.add_exception_handler(kind, as_page)
    app.add_middleware(Gate, covers=needs_visitor, ask=signed_in, refusals=(SignInNeeded, KeybearerError), answer=as_page)
