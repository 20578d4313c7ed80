"""Values handed out: one decision for the three doors that a value leaves by: fetched, revealed, exported. Pure.

A token is somewhere else by now, maybe with somebody else: it gets what may be used with it, serves at this moment and was made
``fetchable``. A person who has just proved who they are gets what is theirs; what a door asks of them besides is its own business.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from keybearer.domain import OwnerKind
from keybearer.errors import Forbidden, KeybearerError, ModelNotAllowed, NotFetchable, ProviderNotAllowed
from keybearer.vault.sealed import console_path
from keybearer.vault.standing import not_allowed, stopped_by


class Recipient(Protocol):
    """Who wants a value, and the limits of their token: a ``Caller`` or a ``Grant``."""

    @property
    def user_id(self) -> UUID: ...
    @property
    def token_id(self) -> str | None: ...
    @property
    def allowed_providers(self) -> frozenset[str] | None: ...
    @property
    def allowed_models(self) -> frozenset[str] | None: ...


def why_not_to(to: Recipient, provider: str = "") -> KeybearerError | None:
    """Why no value, or (with ``provider``) none for that provider, is handed to this token, whichever secret it is."""
    if to.allowed_models is not None:  # with a value, its program could call any
        return ModelNotAllowed("The access token is limited to certain models, and a value would serve for all.")
    if provider and to.allowed_providers is not None and provider not in to.allowed_providers:
        return ProviderNotAllowed()
    return None


def why_not_handed_out(to: Recipient, row: Any, now: datetime, whose: str = "") -> KeybearerError | None:
    """Why a secret's value is not handed out, as far as its row tells; ``whose``: it is another's than the user's."""
    if row.owner_kind == OwnerKind.USER.value and row.owner_id != to.user_id:
        hint = "Use it through the gateway, or ask whose it is to store it as the team's own."
        return Forbidden("What was lent to your team may be used; its value is not given out.", hint=hint)
    if to.token_id is None:
        return None
    refused = why_not_to(to, row.provider)
    if refused is None and not row.fetchable:
        refused = NotFetchable(hint=f"Its owner can allow that: set 'fetchable' at {console_path(row.id)}.")
    return refused or stopped_by(row, now, whose) or not_allowed(row, to.token_id, "", whose)
