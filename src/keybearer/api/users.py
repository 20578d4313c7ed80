"""``/users``: accounts, for administrators."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from keybearer.api.account_schemas import Account, AccountChange, NewAccount
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Limit, Page

router = APIRouter(prefix="/users", tags=["users"])


@router.get("")
async def list_users(
    caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[Account]:
    """List the accounts, by e-mail address."""
    found, following = await services.users.page(caller, cursor, limit)
    return Page(items=[Account.model_validate(user) for user in found], next_cursor=following)


@router.post("", status_code=201)
async def create_user(body: NewAccount, caller: CurrentCaller, services: CurrentServices) -> Account:
    """Make an account."""
    made = await services.users.create(body.email, body.password.get_secret_value(), body.name, body.role, by=caller)
    return Account.model_validate(made)


@router.delete("/{user_id}", status_code=204)
async def delete_user(user_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Delete an account with all that is its own, keys first: nothing brings it back, and no copy of its secrets opens any more."""
    await services.erasure.delete_user(user_id, caller)


@router.patch("/{user_id}")
async def change_user(user_id: UUID, body: AccountChange, caller: CurrentCaller, services: CurrentServices) -> Account:
    """Enable or disable an account; its tokens and sessions stop everywhere within a second."""
    return Account.model_validate(await services.users.set_active(user_id, body.is_active, caller))
