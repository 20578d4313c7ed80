"""Who calls the API: an access token (Bearer, ``x-api-key``, ``api-key``) or a session cookie, never both.

A request by cookie that changes something must come from this site's own pages: browsers say so in ``Sec-Fetch-Site`` and
``Origin`` (Fetch Metadata, RFC 6454), and no page can forge these. Requests by token carry no ambient authority.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from keybearer.access import policy
from keybearer.domain import Caller, Client
from keybearer.errors import CredentialsConflict, CsrfFailed, Unauthenticated
from keybearer.services import Services

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TOKEN_HEADERS = ("x-api-key", "api-key")


def services_of(request: Request) -> Services:
    """Return the process's services."""
    services: Services = request.app.state.services
    return services


def client_of(request: Request) -> Client:
    """Return where the request came from; the protocol has already heard declared proxies, and only them."""
    address = request.client.host if request.client else ""
    return Client(address, request.headers.get("user-agent", "")[:256])


def session_cookie_name(services: Services) -> str:
    """``__Host-`` binds the cookie to this host and HTTPS (RFC 6265bis); it needs HTTPS, so plain loopback goes without."""
    return "__Host-keybearer" if services.options.secure_cookies else "keybearer_session"


def bearer_token(request: Request) -> str | None:
    """Return the one access token sent, or ``None``. Raises ``CredentialsConflict`` for two different ones."""
    found = {value for name in TOKEN_HEADERS for value in request.headers.getlist(name)}
    for value in request.headers.getlist("authorization"):
        scheme, _, rest = value.partition(" ")
        if scheme.lower() == "bearer":
            found.add(rest.strip())
    if len(found) > 1:
        raise CredentialsConflict
    return found.pop() if found else None


def check_same_origin(request: Request) -> None:
    """Refuse a change by cookie that another site's page could have sent. Raises ``CsrfFailed``."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    if site not in {None, "same-origin"}:
        raise CsrfFailed
    origin = request.headers.get("origin")
    own = {request.headers.get("host", ""), _authority(services_of(request).options.public_url)}
    if origin is None and site is None:
        raise CsrfFailed
    if origin is not None and _authority(origin) not in own - {""}:
        raise CsrfFailed


def _authority(url: str) -> str:
    """Host and port as they stand in an origin or URL; compared, never parsed: an ``Origin`` header may hold anything."""
    return url.partition("://")[2].partition("/")[0]


async def current_caller(request: Request) -> Caller:
    """Authenticate the request, once. Raises ``Unauthenticated`` in its kinds."""
    known: Caller | None = getattr(request.state, "caller", None)  # the gate has asked
    if known is None:
        known = request.state.caller = await _authenticate(request)
    return known


async def _authenticate(request: Request) -> Caller:
    services = services_of(request)
    token = bearer_token(request)
    if token is not None:
        grant = await services.tokens.verify(token.encode("utf-8", "replace"))
        return _known(request, policy.caller_of_grant(grant, client_of(request)))
    cookie = request.cookies.get(session_cookie_name(services))
    if not cookie:
        raise Unauthenticated
    check_same_origin(request)
    return _known(request, await services.sessions.authenticate(cookie, client_of(request)))


def _known(request: Request, caller: Caller) -> Caller:
    """Keep who called with the request: if they are turned away later, it is on record who it was."""
    request.state.caller = caller
    return caller


CurrentCaller = Annotated[Caller, Depends(current_caller)]
CurrentServices = Annotated[Services, Depends(services_of)]
CurrentClient = Annotated[Client, Depends(client_of)]
