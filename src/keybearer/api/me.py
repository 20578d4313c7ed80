"""``/me``: who the caller is; their sessions and password."""

from __future__ import annotations

from uuid import UUID, uuid4

from fastapi import APIRouter, Response

from keybearer.access import policy
from keybearer.api.account_schemas import Account, Me, MeChange, PasswordChange, SessionAnswer
from keybearer.api.authentication import CurrentCaller, CurrentServices, session_cookie_name
from keybearer.api.schemas import (
    HookAnswer,
    HookMadeAnswer,
    HookRequest,
    HookTestAnswer,
    Limit,
    NotificationAnswer,
    NotificationPreferences,
    Page,
)
from keybearer.domain import Scope, SecretBytes
from keybearer.errors import NotFound

router = APIRouter(prefix="/me", tags=["me"])


@router.get("")
async def me(caller: CurrentCaller, services: CurrentServices) -> Me:
    """Tell who the caller is and what the credential may do."""
    account = await services.users.get(caller.user_id)
    return Me(
        user=Account.model_validate(account),
        scopes=sorted(caller.scopes),
        token_id=caller.token_id,
        gateway_url=f"{services.options.public_url}/v1",
    )


@router.patch("")
async def change_me(body: MeChange, caller: CurrentCaller, services: CurrentServices) -> Account:
    """Say whether the system's keys may serve oneself where one has none."""
    return Account.model_validate(await services.users.set_fallback(caller, body.fallback_allowed))


@router.post("/password", status_code=204)
async def change_password(body: PasswordChange, caller: CurrentCaller, services: CurrentServices) -> None:
    """Change one's own password; other sessions end."""
    await services.users.change_password(caller, body.current_password.get_secret_value(), body.new_password.get_secret_value())


@router.get("/notifications")
async def notifications(
    caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[NotificationAnswer]:
    """List what one is reminded of, newest first."""
    policy.require(caller, *policy.READ_SECRETS)
    found, following = await services.reminders.page(caller, cursor, limit)
    return Page(items=[NotificationAnswer.model_validate(row) for row in found], next_cursor=following)


@router.post("/notifications/{notification_id}/read", status_code=204)
async def read_notification(notification_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Say that one has read a reminder."""
    policy.require(caller, Scope.SECRETS_WRITE)
    await services.reminders.read(caller, notification_id)


@router.get("/notification-preferences")
async def notification_preferences(caller: CurrentCaller, services: CurrentServices) -> NotificationPreferences:
    """Tell which reminders come by mail; all are in the console."""
    return NotificationPreferences(mail=await services.reminders.mailed(caller))


@router.put("/notification-preferences")
async def change_notification_preferences(
    body: NotificationPreferences, caller: CurrentCaller, services: CurrentServices
) -> NotificationPreferences:
    """Choose which reminders come by mail."""
    return NotificationPreferences(mail=await services.reminders.set_mailed(caller, body.mail))


@router.get("/notification-webhook")
async def notification_webhook(caller: CurrentCaller, services: CurrentServices) -> HookAnswer:
    """Tell where one's reminders are posted."""
    found = await services.hooks.get(caller)
    if found is None:
        raise NotFound("You have no webhook for reminders.")
    return HookAnswer.model_validate(found)


@router.put("/notification-webhook")
async def set_notification_webhook(body: HookRequest, caller: CurrentCaller, services: CurrentServices) -> HookMadeAnswer:
    """Have one's reminders posted to an address from now on, signed with a new key that is shown this once."""
    made = await services.hooks.put(caller, SecretBytes(body.url.get_secret_value().encode("utf-8", "replace")), body.kinds)
    shown = HookAnswer.model_validate(made.hook)
    return HookMadeAnswer(**shown.model_dump(), signing_key=made.key.reveal().decode())


@router.post("/notification-webhook/test")
async def test_notification_webhook(caller: CurrentCaller, services: CurrentServices) -> HookTestAnswer:
    """Post a message that says that it is a test."""
    problem = await services.hooks.test(caller, f"msg_{uuid4().hex}")
    return HookTestAnswer(is_taken=not problem, problem=problem)


@router.delete("/notification-webhook", status_code=204)
async def delete_notification_webhook(caller: CurrentCaller, services: CurrentServices) -> None:
    """Have one's reminders posted nowhere."""
    await services.hooks.delete(caller)


@router.get("/sessions")
async def sessions(
    caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[SessionAnswer]:
    """List one's sessions, newest first."""
    found, following = await services.sessions.page(caller, cursor, limit)
    return Page(items=[SessionAnswer.model_validate(session) for session in found], next_cursor=following)


@router.delete("/sessions/{session_id}", status_code=204)
async def revoke_session(session_id: UUID, caller: CurrentCaller, services: CurrentServices, response: Response) -> None:
    """End one of one's sessions."""
    await services.sessions.revoke(caller, session_id)
    if session_id == caller.session_id:
        response.delete_cookie(session_cookie_name(services))
