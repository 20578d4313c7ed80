"""What the API takes and answers about people: their accounts, sessions and access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field, SecretStr

from keybearer.api.schemas import Answer, Name, Request
from keybearer.domain import Role, Scope

# ---- accounts --------------------------------------------------------------------------------------------------------


class SetUp(Request):
    """Redeem the set-up link: make the first administrator."""

    token: Annotated[SecretStr, Field(description="The part of the link behind #.")]
    email: Annotated[str, Field(max_length=320)]
    password: Annotated[SecretStr, Field(description="At least 12 characters.")]
    name: Annotated[str, Field(max_length=200)] = ""


class SignIn(Request):
    """Sign in with e-mail and password."""

    email: Annotated[str, Field(max_length=320)]
    password: SecretStr


class PasswordChange(Request):
    """Change one's own password; other sessions end."""

    current_password: SecretStr
    new_password: Annotated[SecretStr, Field(description="At least 12 characters.")]


class MeChange(Request):
    """What people say about themselves."""

    fallback_allowed: Annotated[
        bool, Field(description="Whether the system's keys may serve this person, where the deployment offers them.")
    ]


class Account(Answer):
    """A person."""

    id: UUID
    email: str
    name: str
    role: Role
    is_active: bool
    fallback_allowed: bool
    created_at: datetime


class Me(BaseModel):
    """Who the caller is and what the credential may do."""

    user: Account
    scopes: list[Scope]
    token_id: str | None
    gateway_url: str


class NewAccount(Request):
    """A new account, made by an administrator."""

    email: Annotated[str, Field(max_length=320)]
    password: Annotated[SecretStr, Field(description="At least 12 characters; the person should change it.")]
    name: Annotated[str, Field(max_length=200)] = ""
    role: Role = Role.MEMBER


class AccountChange(Request):
    """Enable or disable an account; all its tokens and sessions stop within a second."""

    is_active: bool


class SessionAnswer(Answer):
    """A signed-in browser."""

    id: UUID
    ip: str
    user_agent: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    is_current: bool


# ---- access tokens ---------------------------------------------------------------------------------------------------


class NewTokenRequest(Request):
    """A new access token: at most what its maker has."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1)] = [Scope.GATEWAY_USE]
    allowed_providers: list[str] | None = None
    allowed_models: list[str] | None = None
    ip_allowlist: list[str] = []
    expires_at: datetime | None = None


class TokenChange(Request):
    """Rename a token, switch it on or off."""

    name: Name | None = None
    is_active: bool | None = None


class TokenAnswer(Answer):
    """An access token, without its secret part."""

    id: str
    user_id: UUID
    name: str
    scopes: list[Scope]
    allowed_providers: list[str] | None
    allowed_models: list[str] | None
    ip_allowlist: list[str]
    is_active: bool
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


class TokenMade(TokenAnswer):
    """A token just made: the only time that ``token`` is shown."""

    token: str
