"""What a secret is good for at a moment: one word for people, one error for calls. Pure.

The first that holds of: deleted, inactive, unreadable, failed, expired, expiring, active. ``queries.secrets`` finds by the same order.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from keybearer.domain import Secret
from keybearer.errors import KeybearerError, KeyExpired, KeyFailed, KeyInactive, KeyUnusable, ModelNotAllowed
from keybearer.store.queries.secrets import Standing
from keybearer.vault.sealed import Unreadable, console_path

__all__ = ["Standing", "named", "not_allowed", "standing_of", "stopped_by"]


def standing_of(secret: Secret, now: datetime, soon: datetime) -> Standing:
    """The standing of a secret; what expires, or should be replaced, by ``soon`` is ``expiring``."""
    if secret.deleted_at is not None:
        return "deleted"
    if not secret.is_active:
        return "inactive"
    if secret.state == "unreadable":
        return "unreadable"
    if secret.state == "failed":
        return "failed"
    if secret.expires_at is not None and secret.expires_at <= now:
        return "expired"
    if any(at is not None and at <= soon for at in (secret.expires_at, secret.rotate_at)):
        return "expiring"
    return "active"


def stopped_by(row: Any, now: datetime, whose: str = "") -> KeybearerError | None:
    """Why a secret serves nobody at the moment, as far as its row tells; ``whose``: it is another's than the user's."""
    if not row.is_active:
        hint = f"Activate it at {console_path(row.id)}, or add another."
        return KeyInactive(f"{named(row, whose)} is switched off.", hint=hint)
    if row.expires_at is not None and row.expires_at <= now:
        hint = f"Enter a new value or change its expiry at {console_path(row.id)}."
        return KeyExpired(f"{named(row, whose)} has expired.", hint=hint)
    if row.state == "unreadable":
        return Unreadable(row)
    if row.state != "ok":
        hint = f"Test it and enter a new value at {console_path(row.id)}."
        return KeyFailed(f"{named(row, whose)} was refused by the provider.", hint=hint)
    return None


def named(row: Any, whose: str = "") -> str:
    """A secret at the beginning of a message."""
    return f"{'The' if whose else 'Your'} key '{row.name}'{whose} for {row.provider}"


def not_allowed(row: Any, token_id: str | None, model: str, whose: str = "") -> KeybearerError | None:
    """Why the token or the model may not use a secret."""
    look = f"Look at it at {console_path(row.id)}."
    if row.allowed_tokens is not None and token_id not in row.allowed_tokens:
        return KeyUnusable(f"{named(row, whose)} may not be used with this access token.", hint=look)
    if row.allowed_models is not None and not {model, f"{row.provider}/{model}"} & set(row.allowed_models):
        wanted = "this model" if model else "calls that name no model"
        return ModelNotAllowed(f"{named(row, whose)} is not allowed for {wanted}.", hint=look)
    return None
