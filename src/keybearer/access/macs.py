"""Which columns a row MAC covers, in an order kept for ever: a changed column, or a row inserted by other hands, is no way in.

Functions give the arguments of ``Keyring.row_mac``, and are an argument of ``check_row``. A row comes as it was read, so it may hold
anything: what cannot have been written here raises ``EnvelopeError``, ``TypeError`` or ``ValueError``, and ``check_row`` the first.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from keybearer.crypto.rows import RowField
from keybearer.errors import EnvelopeError

TOKEN = "access_token"  # noqa: S105  # a table's name
SESSION = "session"
USER = "user_account"
PROVIDER = "provider"
MODEL = "model"
TEAM = "team"
MEMBER = "team_member"
SHARE = "secret_share"
OBJECT = "gateway_object"
BUDGET = "budget"


SECRET = "secret"  # noqa: S105  # likewise
SECRET_COLUMNS = frozenset(
    {"is_active", "priority", "allowed_models", "allowed_tokens", "expires_at", "version", "fallback_version", "fallback_until"}
    | {"reference", "deleted_at", "fallback_allowed", "model_id"}
)
"""What of a secret's row is covered and can be changed."""


def token_fields(row: Any) -> tuple[RowField, ...]:
    """All of an access token but its name and last use."""
    return (
        row.id,
        row.token_hash,
        row.user_id,
        strings(row.scopes),
        optional_strings(row.allowed_providers),
        optional_strings(row.allowed_models),
        strings(row.ip_allowlist),
        bool(row.is_active),
        row.expires_at,
        row.created_at,
    )


def session_fields(
    session_id: UUID, token_hash: bytes, user_id: UUID, created_at: datetime, expires_at: datetime
) -> tuple[RowField, ...]:
    """All of a session but its last use and what the browser says of itself."""
    return (session_id, token_hash, user_id, created_at, expires_at)


def user_fields(user_id: UUID, role: str, is_active: bool) -> tuple[RowField, ...]:  # noqa: FBT001  # a column's value
    """What an account may do. Its password hash needs no MAC: it is peppered with the account's id and a sealed key."""
    return (user_id, role, bool(is_active))


def provider_fields(row: Any) -> tuple[RowField, ...]:
    """All of a provider that says where keys go, and how. A key entered from now on is bound to it."""
    return (row.id, row.owner_id, row.name, bool(row.is_predefined), row.base_url, row.auth_style, row.auth_header)


def team_fields(row: Any) -> tuple[RowField, ...]:
    """All of a team but when it was renamed last: its name is what its members and sharers trust."""
    return (row.id, row.name, row.created_by, row.created_at)


def member_fields(row: Any) -> tuple[RowField, ...]:
    """All of a membership: who is in, as what, whether they agreed, and which of their teams pays first."""
    return (row.team_id, row.user_id, row.role, row.priority, row.added_by, row.accepted_at, row.created_at)


def share_fields(row: Any) -> tuple[RowField, ...]:
    """All of a share."""
    return (row.secret_id, row.team_id, row.owner_id, row.grade, row.created_at)


def object_fields(row: Any) -> tuple[RowField, ...]:
    """All of an object that was made with a key of several people."""
    return (row.owner_id, row.origin, row.kind, row.object_id, row.provider, row.user_id, row.token_id, row.created_at)


def budget_fields(row: Any) -> tuple[RowField, ...]:
    """All of a limit but when it was changed last."""
    return (
        row.id,
        row.owner_id,
        row.subject,
        row.subject_id,
        row.token_id,
        row.secret_id,
        row.kind,
        row.amount,
        bool(row.is_hard),
        bool(row.by_admin),
        row.created_by,
        row.created_at,
    )


def secret_fields(row: Any) -> tuple[RowField, ...]:
    """What may be done with a secret, and which of the versions kept is in force.

    Its hosts and ``fetchable`` are bound into the envelope instead.
    """
    # A model's own key says whose it is; others' MACs are as they were before this did.
    fields = _common_secret_fields(row)
    return fields if row.model_id is None else (*fields, row.model_id)


def older_secret_fields(row: Any) -> tuple[RowField, ...]:
    """What the MAC of a model's own key covered before it said whose it is (``vault.adoption``)."""
    return _common_secret_fields(row)


def _common_secret_fields(row: Any) -> tuple[RowField, ...]:
    reference = None if row.reference is None else json.dumps(row.reference, sort_keys=True, separators=(",", ":"))
    return (
        row.id,
        row.owner_id,
        row.owner_kind,
        row.provider,
        row.secret_type,
        bool(row.is_active),
        row.priority,
        optional_strings(row.allowed_models),
        optional_strings(row.allowed_tokens),
        row.expires_at,
        row.version,
        row.fallback_version,
        row.fallback_until,
        reference,
        row.deleted_at,
        bool(row.fallback_allowed),
    )


def model_fields(row: Any) -> tuple[RowField, ...]:
    """All of a model that says where calls go, with which key, under which names and with which defaults."""
    return (
        row.id,
        row.owner_id,
        row.provider,
        row.name,
        row.base_url,
        row.auth_style,
        row.auth_header,
        row.secret_id,
        optional_strings(row.aliases),
        row.parameters,
    )


def strings(value: Any) -> tuple[str, ...]:
    """A JSON list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise EnvelopeError
    return tuple(value)


def optional_strings(value: Any) -> tuple[str, ...] | None:
    """A JSON list of texts, or nothing: no limit."""
    return None if value is None else strings(value)
