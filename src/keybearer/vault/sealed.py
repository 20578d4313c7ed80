"""A secret's row and its sealed value: what a row says, sealing, opening.

What does not open names its row, so that it can be marked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.constant_time import bytes_eq
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs
from keybearer.catalog import Provider, places
from keybearer.crypto.keyring import Binding, Keyring, OwnerKey
from keybearer.crypto.rows import RowField
from keybearer.domain import SYSTEM_OWNER_ID, Credential, KeySource, Owner, OwnerKind, Secret, SecretBytes, SecretType
from keybearer.errors import EnvelopeError, FieldError, Invalid, KeyUnreadable
from keybearer.gateway.egress import egress_set, placed
from keybearer.vault import oauth, references
from keybearer.vault.oauth import OAuth
from keybearer.vault.references import Reference

FIELD, OAUTH_FIELD = "value", "oauth"
_KINDS, _TYPES = frozenset(OwnerKind), frozenset(SecretType)
_MARKED = 7
"""The version of ids (RFC 9562) of secrets that carry a MAC."""


@dataclass(frozen=True, slots=True)
class Content:
    """What one version of a secret seals."""

    value: SecretBytes
    """Where there is a ``reference``: nothing, or what was found there as it was saved; it is not sealed."""
    preview: str
    oauth: OAuth | None = None
    reference: Reference | None = None
    """Where the value is kept instead of here."""

    def sealable(self) -> SecretBytes:
        """What is sealed: the value, or where it is."""
        return self.value if self.reference is None else self.reference.sealable()

    def same_as(self, other: Content) -> bool:
        """Whether both hold the same; parts of an OAuth token that ``other`` does not have are not asked for."""
        if not bytes_eq(self.value.reveal(), other.value.reveal()):
            return False
        mine, theirs = ((each.oauth or OAuth()).sealable().reveal() for each in (self, other))
        return other.oauth is None or bytes_eq(mine, theirs)


class Unreadable(KeyUnreadable):
    """Your stored key cannot be read: enter it again."""

    def __init__(self, row: Any) -> None:
        """``row`` is the secret's, as it was read when its value did not open."""
        super().__init__(
            f"Your stored key '{row.name}' for {row.provider} cannot be read: enter it again.",
            hint=f"Enter it again at {console_path(row.id)}; docs/troubleshooting.md lists the causes.",
        )
        self.is_news = row.state != "unreadable"
        self.secret_id: UUID = row.id
        self.version: int = row.version


class Sealer:
    """Seals values for a place in the vault, and opens what a row holds."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def seal(
        self, tx: AsyncConnection, owner_id: UUID, bound: Binding, content: Content, at: datetime, by: UUID | None
    ) -> dict[str, Any]:
        """The columns of a ``secret_version`` under the owner's active key. ``bound`` is made by ``binding``."""
        return self.sealed(await self._keyring.sealing_key(tx, owner_id), owner_id, bound, content, at, by)

    def sealed(
        self, key: OwnerKey, owner_id: UUID, bound: Binding, content: Content, at: datetime, by: UUID | None
    ) -> dict[str, Any]:
        """As ``seal``, under the key that ``Keyring.sealing_key`` gave in this transaction."""
        parts = None
        if content.oauth is not None:
            parts = self._keyring.seal(key, of_oauth(bound), content.oauth.sealable().reveal())
        return {
            "secret_id": bound.record,
            "version": bound.version,
            "owner_id": owner_id,
            "owner_key_id": key.id,
            "envelope": self._keyring.seal(key, bound, content.sealable().reveal()),
            "oauth_envelope": parts,
            "egress": list(bound.egress),
            "fetchable": bound.fetchable,
            "preview": content.preview,
            "created_by": by,
            "created_at": at,
        }

    async def open(self, tx: AsyncConnection, row: Any) -> Content:
        """What the version in force of a row of ``queries.secrets`` seals.

        Raises ``Unreadable`` where anything about it, or about what may be done with it, is not as it was written here.
        """
        self.check(row)
        return await self.open_version(tx, row)

    async def open_version(self, tx: AsyncConnection, row: Any) -> Content:
        """What a version seals: a row of ``queries.versions``, or of ``queries.secrets`` whose MAC is not asked for."""
        if row.envelope is None:
            raise Unreadable(row)
        try:
            bound = binding(row.id, row.version, egress_of(row), fetchable=row.fetchable)
            key = await self._keyring.opening_key(tx, row.owner_key_id, row.owner_id)
            value = self._keyring.unseal(key, bound, bytes(row.envelope))
            parts = None
            if row.oauth_envelope is not None:
                parts = oauth.opened(self._keyring.unseal(key, of_oauth(bound), bytes(row.oauth_envelope)))
            reference = references.opened(value)
        except EnvelopeError:
            raise Unreadable(row) from None
        return Content(value if reference is None else SecretBytes(b""), row.preview, parts, reference)

    def is_intact(self, row: Any) -> bool:
        """Whether what may be done with a secret is as it was written here.

        Secrets made before there were these MACs have none; the id, which the envelope is bound to, tells which.
        """
        if row.mac is None:
            return bool(row.id.version != _MARKED)
        if self.is_bound(row):
            return True
        # To take a key for a model's own lets it serve nobody, for the model's own row must name it: so the older MAC does no harm.
        return row.model_id is not None and self._is_mac_of(row, macs.older_secret_fields)

    def is_bound(self, row: Any) -> bool:
        """Whether the row's MAC covers all that it does now."""
        return row.mac is not None and self._is_mac_of(row, macs.secret_fields)

    def _is_mac_of(self, row: Any, fields: Callable[[Any], tuple[RowField, ...]]) -> bool:
        try:
            self._keyring.check_row(row.mac, macs.SECRET, fields, row)
        except EnvelopeError:
            return False
        return True

    def check(self, row: Any) -> None:
        """Raise ``Unreadable`` unless the row is intact."""
        if not self.is_intact(row):
            raise Unreadable(row)

    def mac(self, row: Any) -> bytes:
        """The MAC of a row as it is about to be written."""
        return self._keyring.row_mac(macs.SECRET, *macs.secret_fields(row))


def new_ids(now: datetime, count: int) -> list[UUID]:
    """Ids for secrets: UUIDv7 (RFC 9562), in the order of making, so that lists have an order that no change disturbs."""
    at = int(now.timestamp() * 1000) << 80
    numbers = sorted(at | int.from_bytes(os.urandom(10), "big") & ~(0xF << 76 | 0x3 << 62) for _ in range(count))
    return [UUID(int=number | _MARKED << 76 | 0x2 << 62) for number in numbers]


def of_oauth(bound: Binding) -> Binding:
    """What the OAuth fields beside a value are bound to."""
    return Binding(bound.record, bound.version, OAUTH_FIELD, bound.egress, bound.fetchable)


def binding(secret_id: UUID, version: int, egress: Sequence[str], *, fetchable: bool) -> Binding:
    """What an envelope of a secret's value is bound to, beside its owner."""
    return Binding(secret_id, version, FIELD, tuple(egress), fetchable)


def egress_of(row: Any) -> tuple[str, ...]:
    """The egress set as the row has it. Raises ``EnvelopeError`` for what was not written here."""
    if not isinstance(row.egress, list) or not all(isinstance(origin, str) for origin in row.egress):
        raise EnvelopeError
    return tuple(row.egress)


def egress_for(provider: Provider | None, value: SecretBytes, parameters: Mapping[str, str]) -> tuple[str, ...]:
    """The egress set of a new value; nowhere for providers that the registry does not know.

    ``parameters`` are those of the provider's address. Raises ``Invalid`` for wrong ones.
    """
    if provider is None:
        if parameters:
            raise Invalid("This provider takes no parameters.", fields=(FieldError("parameters", "are not taken"),))
        return ()
    return egress_set(places.at(provider, value.reveal().decode("utf-8", "replace"), parameters))


def egress_now(provider: Provider, value: SecretBytes, egress: Sequence[str]) -> tuple[str, ...]:
    """The egress set of a stored value for where its provider is now; what was proved of ``egress`` says of which account.

    Raises ``Invalid`` where that is not told: the provider's parameters must be given again.
    """
    if not provider.parameters:
        return egress_for(provider, value, {})
    found = placed(provider, egress)
    return egress_for(provider, value, {}) if found is None else egress_set(found)


def console_path(secret_id: UUID) -> str:
    """Where people look at a secret."""
    return f"/secrets/{secret_id}"


def owner_of(row: Any) -> Owner:
    """Whose secret the row is. A row that says no kind is an edited one, and yet to be shown and to be deleted."""
    if row.owner_kind in _KINDS:
        return Owner(OwnerKind(row.owner_kind), row.owner_id)
    return Owner(OwnerKind.SYSTEM if row.owner_id == SYSTEM_OWNER_ID else OwnerKind.USER, row.owner_id)


def secret_of(row: Any) -> Secret:
    """The row as listings show it: an edited one too, as far as it has what a secret has."""
    return Secret(
        id=row.id,
        owner=owner_of(row),
        provider=row.provider,
        secret_type=SecretType(row.secret_type) if row.secret_type in _TYPES else SecretType.CUSTOM,
        name=row.name if row.deleted_name is None else row.deleted_name,
        preview=row.preview,
        description=row.description,
        tags=_texts(row.tags),
        is_active=row.is_active,
        priority=row.priority,
        allowed_models=None if row.allowed_models is None else _texts(row.allowed_models),
        allowed_tokens=None if row.allowed_tokens is None else _texts(row.allowed_tokens),
        fetchable=row.fetchable,
        egress=_texts(row.egress),
        expires_at=row.expires_at,
        state=row.state,
        state_reason=row.state_reason,
        version=row.version,
        key_id=row.owner_key_id,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_used_at=row.last_used_at,
        usage_count=row.usage_count,
        last_used_in_workflow=row.last_used_in_workflow,
        fallback_allowed=row.fallback_allowed,
        rotation_period=row.rotation_period,
        rotate_at=row.rotate_at,
        oauth=None if row.oauth is None else _pairs(row.oauth),
        fallback_version=row.fallback_version,
        fallback_until=row.fallback_until,
        deleted_at=row.deleted_at,
        model_id=row.model_id,
        token_expires_at=row.token_expires_at,
        refresh_at=row.refresh_at,
        refresh_problem=row.refresh_problem or "",
        reference=None if row.reference is None else _pairs(row.reference),
        health_check_every=row.check_every,
        next_check_at=row.check_at,
        checked_at=row.checked_at,
        check_status=row.check_status,
        check_reason=row.check_reason or "",
        failed_at=row.failed_at,
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in value.items() if isinstance(text, str)) if isinstance(value, dict) else ()


def credential_of(row: Any, value: SecretBytes, source: KeySource, *, is_fallback: bool = False) -> Credential:
    """The row and its opened value as the gateway uses them; a fallback's time is over with the overlap."""
    ends = [at for at in (row.expires_at, row.token_expires_at, row.fallback_until if is_fallback else None) if at is not None]
    return Credential(
        secret_id=row.id,
        secret_version=row.version,
        owner=owner_of(row),
        provider=row.provider,
        source=source,
        value=value,
        egress=egress_of(row),
        allowed_models=None if row.allowed_models is None else frozenset(row.allowed_models),
        expires_at=min(ends, default=None),
        is_fallback=is_fallback,
        priority=row.priority,
        may_fall_back=source is KeySource.USER and bool(row.fallback_allowed),
    )


def with_value(credential: Credential, value: SecretBytes, until: datetime) -> Credential:
    """The credential with a value that is kept elsewhere, which serves until then."""
    expires_at = until if credential.expires_at is None else min(until, credential.expires_at)
    return replace(credential, value=value, expires_at=expires_at)
