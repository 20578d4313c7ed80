"""How pages are made: templates with autoescape, asset addresses that change with their content, who is signed in."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from keybearer.access.users import User
from keybearer.api.authentication import check_same_origin, client_of, services_of, session_cookie_name
from keybearer.domain import Caller
from keybearer.errors import KeybearerError, Unauthenticated

HERE = Path(__file__).parent
SEE_OTHER = 303


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
    return environment


def render(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page."""
    return HTMLResponse(_templates().get_template(template).render(**values), status)


def go(path: str) -> RedirectResponse:
    """Redirect after a form was accepted (Post/Redirect/Get)."""
    return RedirectResponse(path, SEE_OTHER)


class Visitor:
    """The signed-in person of a page: ``caller`` for the services, ``account`` for the page's head."""

    def __init__(self, caller: Caller, account: User) -> None:
        self.caller = caller
        self.account = account


async def signed_in(request: Request) -> Visitor:
    """Return who is signed in. Raises ``SignInNeeded``."""
    services = services_of(request)
    cookie = request.cookies.get(session_cookie_name(services))
    if not cookie:
        raise SignInNeeded
    check_same_origin(request)
    try:
        caller = await services.sessions.authenticate(cookie, client_of(request))
    except Unauthenticated:
        raise SignInNeeded from None
    return Visitor(caller, await services.users.get(caller.user_id))


CurrentVisitor = Annotated[Visitor, Depends(signed_in)]


def wants_page(request: Request) -> bool:
    """Whether an error is to be a page: everything outside the API."""
    return not request.scope["path"].startswith(("/api/", "/healthz", "/readyz"))


def install_errors(app: FastAPI) -> None:
    """Answer errors of pages as pages; the API's own handlers keep theirs."""
    as_problem = app.exception_handlers[KeybearerError]

    async def need_sign_in(_: Request, __: Exception) -> Response:
        return go("/sign-in")

    async def as_page(request: Request, error: Exception) -> Response:
        if wants_page(request) and isinstance(error, KeybearerError):
            return render("error.html", status=error.status, error=error)
        answer: Response = await as_problem(request, error)  # type: ignore[misc]  # ours is async
        return answer

    app.add_exception_handler(SignInNeeded, need_sign_in)
    app.add_exception_handler(KeybearerError, as_page)
