"""The pages of administrators: people and their accounts; root and owner keys, and their rotation; how the deployment stands."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer import __version__
from keybearer.access import policy
from keybearer.access.freeze import is_frozen
from keybearer.api.authentication import CurrentServices
from keybearer.api.checkpoints import newest_checkpoint
from keybearer.console.forms import Text
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Role
from keybearer.errors import FieldError, Invalid, KeybearerError, NotFound
from keybearer.services import Services
from keybearer.vault.secrets import SecretFilter

router = APIRouter(include_in_schema=False)

ROWS = 50
STEPS = {
    "stage": "wrapping a new root key",
    "prove": "waiting for running processes to unwrap it",
    "promote": "promoting it",
    "reseal": "sealing owner keys under it",
    "retire": "retiring the old one",
    "turn": "making new owner keys",
    "system": "sealing what is the system's",
    "seal": "sealing values",
    "done": "done",
}
"""Where a rotation is, in words."""
SYSTEM_KEYS = 200
FALLBACKS = {
    "none": "nobody else's: who has no key is told so",
    "system": "the system's, if the person agrees",
    "openrouter": "the system's, and for chats its OpenRouter key, if the person agrees",
}
"""Whose keys may serve who has none, by the deployment's policy."""
ROTATED = {"root": "Root key", "owner": "One owner's key", "owners": "All owners' keys"}


# ---- people ----------------------------------------------------------------------------------------------------------


async def _users_page(services: Services, visitor: Visitor, cursor: str | None = None, **values: Any) -> Response:
    found, following = await services.users.page(visitor.caller, cursor, ROWS)
    error: KeybearerError | None = values.get("error")
    draft = {"email": "", "name": "", "role": Role.MEMBER.value} | values.pop("draft", {})
    shown = {**visitor.shown, "page": "/admin/users", "users": found, "next_cursor": following, "roles": list(Role)}
    return render("users.html", status=error.status if error else 200, **shown, draft=draft, **values)


@router.get("/admin/users")
async def users_page(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show everybody who has an account."""
    return await _users_page(services, visitor, cursor)


@router.post("/admin/users")
async def add_user(
    visitor: CurrentVisitor,
    services: CurrentServices,
    email: Text = "",
    name: Text = "",
    role: Text = Role.MEMBER.value,
    password: Text = "",
) -> Response:
    """Make an account."""
    policy.require_admin(visitor.caller)
    try:
        await services.users.create(email, password, name, _role(role), by=visitor.caller)
    except KeybearerError as error:
        return await _users_page(services, visitor, error=error, draft={"email": email, "name": name, "role": role})
    return go("/admin/users", "account")


@router.post("/admin/users/{user_id}/active")
async def switch_user(user_id: UUID, visitor: CurrentVisitor, services: CurrentServices, is_active: Text = "") -> Response:
    """Disable or enable an account."""
    policy.require_admin(visitor.caller)
    try:
        await services.users.set_active(user_id, is_active == "yes", visitor.caller)
    except KeybearerError as error:
        return await _users_page(services, visitor, error=error)
    return go("/admin/users", "enabled" if is_active == "yes" else "disabled")


@router.post("/admin/users/{user_id}/delete")
async def delete_user(user_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Delete an account and all that is its own, keys first."""
    policy.require_admin(visitor.caller)
    try:
        await services.erasure.delete_user(user_id, visitor.caller)
    except KeybearerError as error:
        return await _users_page(services, visitor, error=error)
    return go("/admin/users", "erased")


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise Invalid("role is neither admin nor member.", fields=(FieldError("role", "is neither"),)) from None


# ---- keys ------------------------------------------------------------------------------------------------------------


async def _keys_page(services: Services, visitor: Visitor, error: KeybearerError | None = None) -> Response:
    status = await services.rotations.status(visitor.caller)
    return render(
        "keys.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/admin/keys",
        keys=status,
        rotation=status.rotation,
        is_running=status.rotation is not None and status.rotation.state == "running",
        steps=STEPS,
        rotated=ROTATED,
        error=error,
    )


@router.get("/admin/keys")
async def keys_page(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show every version of every key, who holds the root key, and how far a rotation is."""
    return await _keys_page(services, visitor)


@router.post("/admin/keys/rotate")
async def rotate_keys(visitor: CurrentVisitor, services: CurrentServices, kind: Text = "") -> Response:
    """Begin a rotation; the servers work on it."""
    policy.require_admin(visitor.caller)
    try:
        if kind == "root":
            await services.rotations.begin_root(visitor.caller)
        elif kind == "owners":
            await services.rotations.begin_owners(visitor.caller)
        else:
            raise Invalid("kind is neither root nor owners.", fields=(FieldError("kind", "is neither"),))
    except KeybearerError as error:
        return await _keys_page(services, visitor, error)
    return go("/admin/keys", "rotating")


# ---- the deployment --------------------------------------------------------------------------------------------------


@router.get("/admin/system")
async def system_page(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show how the deployment stands: whether it serves, whose keys may stand in, the system's keys, the audit trail."""
    policy.require_admin(visitor.caller)
    try:
        checkpoint = await newest_checkpoint(visitor.caller, services)
    except NotFound:
        checkpoint = None
    held = await services.secrets.list(visitor.caller, SecretFilter(owner="system"), limit=SYSTEM_KEYS)
    return render(
        "system.html",
        **visitor.shown,
        page="/admin/system",
        version=__version__,
        database=services.db.name,
        is_trusted=services.feed.is_trusted(),
        is_frozen=await is_frozen(services.db),
        options=services.options,
        fallbacks=FALLBACKS,
        checkpoint=checkpoint,
        secrets=held.items,
        standing=services.secrets.standing,
        fares=services.credentials.health,
    )
