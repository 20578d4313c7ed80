"""Who may what: roles give scopes, tokens give at most those, addresses are checked against the token's list."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_network

from keybearer.domain import MEMBER_SCOPES, Caller, Client, Grant, Role, Scope
from keybearer.errors import Forbidden, ProviderNotAllowed, ScopeMissing
from keybearer.gateway import allowance
from keybearer.store.db import Actor

READ_SECRETS = (Scope.SECRETS_USE, Scope.SECRETS_READ, Scope.SECRETS_WRITE)
"""Any of these lets a token list secrets (never their values)."""


def scopes_of(role: Role) -> frozenset[Scope]:
    """What a person of this role has, and may therefore give a token."""
    return frozenset(Scope) if role is Role.ADMIN else MEMBER_SCOPES


def require(caller: Caller, *scopes: Scope) -> None:
    """Raise ``ScopeMissing`` unless the caller has one of ``scopes``."""
    if caller.scopes.isdisjoint(scopes):
        raise ScopeMissing(f"The access token lacks the scope {' or '.join(scopes)}.")


def require_admin(caller: Caller) -> None:
    """Raise ``Forbidden`` unless the caller is an administrator, with the ``admin`` scope where it is a token."""
    if caller.role is not Role.ADMIN:
        raise Forbidden("Only administrators may do this.")
    if Scope.ADMIN not in caller.scopes:
        raise ScopeMissing("The access token lacks the scope admin.")


def require_person(caller: Caller) -> None:
    """Raise ``Forbidden`` for access tokens: this is for the signed-in person alone."""
    if caller.token_id is not None:
        raise Forbidden("An access token may not do this.", hint="Sign in to the console.")


def require_provider(caller: Caller, provider: str) -> None:
    """Raise ``ProviderNotAllowed`` where the caller is a token that may not use ``provider``: a connection test is a use."""
    if caller.allowed_providers is not None and provider not in caller.allowed_providers:
        raise ProviderNotAllowed


def require_among(caller: Caller, tokens: Collection[str] | None) -> None:
    """Raise ``Forbidden`` where the caller is a token and a secret's ``allowed_tokens`` do not hold it."""
    if caller.token_id is not None and tokens is not None and caller.token_id not in tokens:
        raise Forbidden("The secret may not be used with this access token.", hint="Change the secret's allowed tokens.")


def caller_of_grant(grant: Grant, client: Client) -> Caller:
    """The caller behind a verified token. Raises ``AddressRefused`` where it may not be used from ``client``."""
    if grant.ip_allowlist:
        allowance.check_address(tuple(ip_network(network, strict=False) for network in grant.ip_allowlist), client.ip)
    return Caller(
        grant.user_id,
        grant.role,
        grant.scopes,
        token_id=grant.token_id,
        client=client,
        allowed_providers=grant.allowed_providers,
        allowed_models=grant.allowed_models,
    )


def actor_of(caller: Caller) -> Actor:
    """Whose eyes the caller's transactions have."""
    return Actor.user(caller.user_id, admin=caller.is_admin)
