"""``/tokens``: access tokens."""

from __future__ import annotations

from fastapi import APIRouter

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.api.account_schemas import NewTokenRequest, TokenAnswer, TokenChange, TokenMade
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Limit, Page
from keybearer.domain import Scope

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("")
async def list_tokens(
    caller: CurrentCaller, services: CurrentServices, limit: Limit = 50, cursor: str | None = None
) -> Page[TokenAnswer]:
    """List one's access tokens, newest first."""
    found, following = await services.tokens.page(caller, cursor=cursor, limit=limit)
    return Page(items=[TokenAnswer.model_validate(token) for token in found], next_cursor=following)


@router.post("", status_code=201)
async def create_token(body: NewTokenRequest, caller: CurrentCaller, services: CurrentServices) -> TokenMade:
    """Create an access token. Its text is answered once and never again."""
    policy.require(caller, Scope.TOKENS_WRITE)
    made, text = await services.tokens.create(
        caller,
        NewToken(
            name=body.name,
            scopes=frozenset(body.scopes),
            allowed_providers=None if body.allowed_providers is None else frozenset(body.allowed_providers),
            allowed_models=None if body.allowed_models is None else frozenset(body.allowed_models),
            ip_allowlist=tuple(body.ip_allowlist),
            expires_at=body.expires_at,
        ),
    )
    return TokenMade(**TokenAnswer.model_validate(made).model_dump(), token=text)


@router.get("/{token_id}")
async def get_token(token_id: str, caller: CurrentCaller, services: CurrentServices) -> TokenAnswer:
    """Show one access token, without its text."""
    return TokenAnswer.model_validate(await services.tokens.get(caller, token_id))


@router.patch("/{token_id}")
async def change_token(token_id: str, body: TokenChange, caller: CurrentCaller, services: CurrentServices) -> TokenAnswer:
    """Rename an access token, or switch it on or off; off takes effect everywhere within a second."""
    policy.require(caller, Scope.TOKENS_WRITE)
    changed = await services.tokens.update(caller, token_id, **body.given())
    return TokenAnswer.model_validate(changed)


@router.delete("/{token_id}", status_code=204)
async def delete_token(token_id: str, caller: CurrentCaller, services: CurrentServices) -> None:
    """Revoke an access token, everywhere within a second."""
    policy.require(caller, Scope.TOKENS_WRITE)
    await services.tokens.delete(caller, token_id)
