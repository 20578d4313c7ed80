"""The page of reminders: what one is told, and how else than here."""

from __future__ import annotations

from typing import get_args
from uuid import UUID, uuid4

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer.access import policy
from keybearer.access.fields import secret_value
from keybearer.api.authentication import CurrentServices
from keybearer.console.forms import Text, Texts
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import Scope
from keybearer.errors import KeybearerError
from keybearer.services import Services
from keybearer.vault.reminders import Kind

router = APIRouter(include_in_schema=False)

ROWS = 50
KINDS: dict[Kind, str] = dict(
    zip(get_args(Kind), ("a secret expires", "a value should be replaced", "a provider refuses a key"), strict=True)
)


async def _page(
    services: Services,
    visitor: Visitor,
    error: KeybearerError | None = None,
    cursor: str | None = None,
    key: str = "",
) -> Response:
    found, following = await services.reminders.page(visitor.caller, cursor, ROWS)
    return render(
        "reminders.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/reminders",
        reminders=found,
        next_cursor=following,
        kinds=KINDS,
        mailed=await services.reminders.mailed(visitor.caller),
        hook=await services.hooks.get(visitor.caller),
        key=key,
        error=error,
    )


@router.get("/reminders")
async def reminders_page(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show what one is reminded of, and where else one is told."""
    policy.require(visitor.caller, *policy.READ_SECRETS)
    return await _page(services, visitor, cursor=cursor)


@router.post("/reminders/mail")
async def choose_mail(visitor: CurrentVisitor, services: CurrentServices, kinds: Texts = ()) -> Response:
    """Choose what comes by mail."""
    await services.reminders.set_mailed(visitor.caller, [kind for kind in KINDS if kind in kinds])
    return go("/reminders", "saved")


@router.post("/reminders/webhook")
async def set_webhook(visitor: CurrentVisitor, services: CurrentServices, url: Text = "", kinds: Texts = ()) -> Response:
    """Be told at an address, and show the signing key this once: in the answer itself, never in a redirect's address."""
    chosen = [kind for kind in KINDS if kind in kinds]
    try:
        made = await services.hooks.put(visitor.caller, secret_value(url), None if len(chosen) == len(KINDS) else chosen)
    except KeybearerError as error:
        return await _page(services, visitor, error)
    return await _page(services, visitor, key=made.key.reveal().decode())


@router.post("/reminders/webhook/test")
async def test_webhook(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Post a message that says that it is a test; what came of it stands on the page."""
    try:
        problem = await services.hooks.test(visitor.caller, f"msg_{uuid4().hex}")
    except KeybearerError as error:
        return await _page(services, visitor, error)
    return go("/reminders", "" if problem else "told")


@router.post("/reminders/webhook/delete")
async def delete_webhook(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Be told there no more."""
    await services.hooks.delete(visitor.caller)
    return go("/reminders", "deleted")


@router.post("/reminders/{reminder_id}/read")
async def dismiss(reminder_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Say that one has read a reminder."""
    policy.require(visitor.caller, Scope.SECRETS_WRITE)
    await services.reminders.read(visitor.caller, reminder_id)
    return go("/reminders")
