"""Secrets: the only writer of them.

A value goes in sealed, bound to its owner, record, version, hosts and whether it may be fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import has_control
from keybearer.audit import management
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.domain import (
    SYSTEM_OWNER,
    SYSTEM_OWNER_ID,
    Caller,
    Credential,
    KeySource,
    ManagementRecord,
    Owner,
    OwnerKind,
    Scope,
    Secret,
    SecretBytes,
    SecretType,
)
from keybearer.errors import FieldError, Invalid, NotFound
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.vault import registry
from keybearer.vault.drafts import DEFAULT_NAME, NewSecret, checked_changes, checked_draft, provider_named
from keybearer.vault.sealed import (
    Sealer,
    Unreadable,
    binding,
    credential_of,
    egress_for,
    egress_now,
    egress_of,
    owner_of,
    secret_of,
)

__all__ = ["NewSecret", "Page", "SecretFilter", "Secrets", "State"]

PAGE_LIMIT = 200
_REASON_LIMIT = 500

State = Literal["ok", "failed", "unreadable"]


@dataclass(frozen=True, slots=True)
class SecretFilter:
    """What a listing is narrowed to; ``None``: not by this."""

    owner: Literal["own", "system", "everyone"] = "own"
    """``system`` and ``everyone`` are for administrators."""
    provider: str | None = None
    secret_type: SecretType | None = None
    name: str | None = None
    tag: str | None = None
    text: str | None = None
    """Part of name, provider or description, in any case."""
    is_active: bool | None = None
    state: State | None = None
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of secrets; ``next_cursor`` is ``None`` on the last."""

    items: tuple[Secret, ...]
    next_cursor: str | None


class Secrets:
    """Stores, shows, changes and deletes secrets; see the module."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog) -> None:
        self._db = db
        self._catalog = catalog
        self._keyring = keyring
        self._sealer = Sealer(keyring)

    async def create(self, caller: Caller, new: NewSecret) -> Secret:
        """Store a secret of the caller's, or the system's.

        Raises ``Invalid`` (and its kinds ``KeyRefused`` and ``KeyDoubtful``), ``ProviderUnknown``, ``Conflict``,
        ``ScopeMissing``, ``Forbidden``.
        """
        async with (
            attempt(self._db, "secret.create", caller),
            taken("A secret with this name exists for this provider already.", "Choose another name, or change that secret."),
        ):
            policy.require(caller, Scope.SECRETS_WRITE)
            if new.system:
                policy.require_admin(caller)
            owner = SYSTEM_OWNER if new.system else Owner(OwnerKind.USER, caller.user_id)
            async with self._db.write(actor_of(caller)) as tx:
                return await self._insert(tx, caller, owner, new)

    async def list(self, caller: Caller, wanted: SecretFilter | None = None, cursor: str | None = None, limit: int = 50) -> Page:
        """One page of secrets without their values. Raises ``Invalid`` (cursor, limit), ``ScopeMissing``, ``Forbidden``."""
        policy.require(caller, *policy.READ_SECRETS)
        wanted = wanted or SecretFilter()
        if not 1 <= limit <= PAGE_LIMIT:
            raise _invalid("limit", f"is not between 1 and {PAGE_LIMIT}")
        if wanted.owner != "own":
            policy.require_admin(caller)
        search = _search(caller, wanted)
        order = rows.order_of(search)
        after = None if cursor is None else _place(cursor, len(order))
        async with self._db.read(actor_of(caller)) as tx:
            found = await rows.page(tx, search, after, limit + 1)
        more = None if len(found) <= limit else _cursor([str(getattr(found[limit - 1], column.name)) for column in order])
        return Page(tuple(secret_of(row) for row in found[:limit]), more)

    async def get(self, caller: Caller, secret_id: UUID) -> Secret:
        """One secret without its value; for an administrator anybody's.

        Raises ``NotFound`` for those of others as for unknown ids, ``ScopeMissing``.
        """
        async with attempt(self._db, "secret.read", caller, str(secret_id)):
            policy.require(caller, *policy.READ_SECRETS)
            async with self._db.read(actor_of(caller)) as tx:
                row = await rows.get(tx, secret_id, None if caller.is_admin else (caller.user_id,))
            if row is None:
                raise NotFound
            return secret_of(row)

    async def update(self, caller: Caller, secret_id: UUID, fields: Mapping[str, Any]) -> Secret:
        """Change the fields given: those of ``NewSecret`` but provider, type and owner. A blank ``value`` keeps the old one.

        A new value is a new version, bound to the same hosts, and makes the secret ``ok`` again; ``fetchable`` seals the value
        anew. Raises ``NotFound``, ``Invalid`` and its kinds, ``Conflict``, ``KeyUnreadable``, ``ScopeMissing``.
        """
        async with (
            attempt(self._db, "secret.update", caller, str(secret_id)),
            taken("Another secret has this name for this provider.", "Choose another name."),
            self._marking(),
        ):
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._db.write(actor_of(caller)) as tx:
                return await self._update(tx, caller, await self._own(tx, caller, secret_id), fields)

    async def delete(self, caller: Caller, secret_id: UUID) -> None:
        """Delete a secret and its sealed value; it stops serving everywhere within a second.

        Raises ``NotFound``, ``ScopeMissing``.
        """
        async with attempt(self._db, "secret.delete", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._db.write(actor_of(caller)) as tx:
                row = await self._own(tx, caller, secret_id)
                await rows.delete(tx, row.owner_id, row.id)
                await self._note(tx, caller, "secret.delete", row, provider=row.provider, name=row.name)

    async def confirm_egress(self, caller: Caller, secret_id: UUID) -> Secret:
        """Let the secret go where its provider is now: the owner's consent after a base URL was changed. Seals the value anew.

        Raises ``NotFound``, ``ProviderUnknown``, ``KeyUnreadable``, ``ScopeMissing``.
        """
        async with attempt(self._db, "secret.confirm_egress", caller, str(secret_id)), self._marking():
            policy.require(caller, Scope.SECRETS_WRITE)
            now = datetime.now(UTC)
            async with self._db.write(actor_of(caller)) as tx:
                row = await self._own(tx, caller, secret_id)
                known = provider_named(await registry.load(tx, self._keyring, self._catalog, row.owner_id), row.provider)
                value = await self._sealer.open(tx, row)
                egress = egress_now(known, value, egress_of(row))
                await self._reseal(tx, row, value, egress, fetchable=row.fetchable)
                await rows.update(tx, row.owner_id, row.id, {"egress": list(egress), "updated_at": now})
                await self._note(tx, caller, "secret.confirm_egress", row, egress=" ".join(egress))
                return await self._shown(tx, row)

    async def credential(self, caller: Caller, secret_id: UUID) -> Credential:
        """One of the caller's secrets, opened for a connection test, on record.

        Raises ``NotFound``, ``KeyUnreadable``, ``ScopeMissing``. What a call may use is ``Resolver.resolve``'s business; a test
        is for secrets that do not work, too.
        """
        async with attempt(self._db, "secret.test", caller, str(secret_id)), self._marking():
            policy.require(caller, Scope.SECRETS_USE, Scope.SECRETS_WRITE)
            async with self._db.write(actor_of(caller)) as tx:
                row = await self._own(tx, caller, secret_id)
                value = await self._sealer.open(tx, row)
                await self._record(tx, caller, "secret.test", row, provider=row.provider)
            return credential_of(row, value, KeySource.SYSTEM if row.owner_id == SYSTEM_OWNER_ID else KeySource.USER)

    async def note_test(self, caller: Caller, credential: Credential) -> None:
        """Record that a resolved key is about to be tested. Raises ``Unavailable``: then it must not leave."""
        detail = (("provider", credential.provider),)
        record = ManagementRecord("secret.test", caller, str(credential.secret_id), owner=credential.owner, detail=detail)
        async with self._db.write(actor_of(caller)) as tx:
            await management.record(self._db, tx, record)

    async def mark(self, secret_id: UUID, version: int, state: State, reason: str = "") -> bool:
        """Note what became of a value in use: ``failed``, ``unreadable``, or ``ok`` again; whether that was news.

        ``version`` is the one that was used: a value entered meanwhile keeps its state. ``reason`` is shown to the owner and
        must not repeat a provider's words unredacted.
        """
        async with self._db.write(Actor.system()) as tx:
            row = await rows.mark(tx, secret_id, version, state, reason[:_REASON_LIMIT])
            if row is None:
                return False
            await self._note(tx, None, f"secret.{state}", row)
        return True

    async def put_default(
        self,
        tx: AsyncConnection,
        caller: Caller,
        provider: str,
        value: SecretBytes,
        *,
        save_anyway: bool,
        rebind: bool,
        parameters: Mapping[str, str] | None = None,
    ) -> Secret:
        """Store the caller's own secret named ``default``, within the transaction of what it is stored for.

        ``rebind``: the caller has named the provider's address along with the value, which is bound to it.
        """
        known = provider_named(await registry.load(tx, self._keyring, self._catalog, caller.user_id), provider)
        found = await rows.named(tx, caller.user_id, provider, known.secret_type.value, DEFAULT_NAME)
        if found is None:
            new = NewSecret(provider, value, save_anyway=save_anyway, parameters=parameters or {})
            return await self._insert(tx, caller, Owner(OwnerKind.USER, caller.user_id), new)
        row = await self._own(tx, caller, found)
        fields = {"value": value, "is_active": True, "save_anyway": save_anyway, "parameters": parameters}
        return await self._update(tx, caller, row, fields, rebind=rebind)

    async def _insert(self, tx: AsyncConnection, caller: Caller, owner: Owner, new: NewSecret) -> Secret:
        now = datetime.now(UTC)
        draft = checked_draft(await registry.load(tx, self._keyring, self._catalog, owner.id), self._catalog, new, now)
        secret_id, egress = uuid4(), egress_for(draft.provider, draft.value, new.parameters)
        columns = {
            "id": secret_id,
            "owner_id": owner.id,
            "owner_kind": owner.kind.value,
            "egress": list(egress),
            "state": "ok",
            "state_reason": "",
            "version": 1,
            "created_by": caller.user_id,
            "created_at": now,
            "updated_at": now,
            "usage_count": 0,
        }
        await rows.insert(tx, draft.columns | columns)
        bound = binding(secret_id, 1, egress, fetchable=new.fetchable)
        await rows.insert_version(tx, await self._sealer.seal(tx, owner.id, bound, draft.value, now))
        row = await rows.get(tx, secret_id, (owner.id,))
        await self._note(tx, caller, "secret.create", row, provider=new.provider, name=draft.columns["name"])
        return secret_of(row)

    async def _update(
        self, tx: AsyncConnection, caller: Caller, row: Any, fields: Mapping[str, Any], *, rebind: bool = False
    ) -> Secret:
        now = datetime.now(UTC)
        known = (await registry.load(tx, self._keyring, self._catalog, row.owner_id)).providers.get(row.provider)
        change = checked_changes(known, self._catalog, row, fields, now)
        columns = change.columns | {"updated_at": now}
        new = change.value
        if new is not None:
            rebound = rebind or change.parameters is not None or (known is not None and bool(known.places))
            egress, fetchable = await self._proved(
                tx, row, lambda: egress_for(known, new, change.parameters or {}), rebind=rebound
            )
            columns = {"fetchable": fetchable} | columns | {"egress": list(egress), "version": row.version + 1}
            columns |= {"state": "ok", "state_reason": ""}
            bound = binding(row.id, columns["version"], egress, fetchable=columns["fetchable"])
            await rows.replace_versions(tx, await self._sealer.seal(tx, row.owner_id, bound, new, now))
        elif change.parameters is not None or columns.get("fetchable", row.fetchable) != row.fetchable:
            value, fetchable = await self._sealer.open(tx, row), columns.get("fetchable", row.fetchable)
            egress = egress_of(row) if change.parameters is None else egress_for(known, value, change.parameters)
            columns |= {"egress": list(egress)}
            await self._reseal(tx, row, value, egress, fetchable=fetchable)
        await rows.update(tx, row.owner_id, row.id, columns)
        await self._note(tx, caller, "secret.update", row, fields=" ".join(change.fields))
        return await self._shown(tx, row)

    async def _proved(
        self, tx: AsyncConnection, row: Any, now_at: Callable[[], tuple[str, ...]], *, rebind: bool
    ) -> tuple[tuple[str, ...], bool]:
        """Egress set and fetchability for a new value: those that the owner agreed to, once the old value has proved them.

        A row edited in the database must not get an edited egress set sealed. Where the old value does not open, and where the
        owner has just named the address (or the new value itself does), the new one is bound to where the provider is now.
        """
        try:
            await self._sealer.open(tx, row)
        except Unreadable:
            return now_at(), False
        return now_at() if rebind else egress_of(row), bool(row.fetchable)

    async def _reseal(
        self, tx: AsyncConnection, row: Any, value: SecretBytes, egress: tuple[str, ...], *, fetchable: bool
    ) -> None:
        """Seal the same version of the value with another binding."""
        bound = binding(row.id, row.version, egress, fetchable=fetchable)
        await rows.replace_versions(tx, await self._sealer.seal(tx, row.owner_id, bound, value, datetime.now(UTC)))

    async def _own(self, tx: AsyncConnection, caller: Caller, secret_id: UUID) -> Any:
        """A secret that the caller may change, locked: their own, or the system's for an administrator. Raises ``NotFound``."""
        owners = (caller.user_id, SYSTEM_OWNER_ID) if caller.is_admin else (caller.user_id,)
        row = await rows.lock(tx, secret_id, owners)
        if row is None:
            raise NotFound
        return row

    async def _shown(self, tx: AsyncConnection, row: Any) -> Secret:
        return secret_of(await rows.get(tx, row.id, (row.owner_id,)))

    async def _record(self, tx: AsyncConnection, caller: Caller | None, action: str, row: Any, **detail: str) -> None:
        record = ManagementRecord(action, caller, str(row.id), owner=owner_of(row), detail=tuple(detail.items()))
        await management.record(self._db, tx, record)

    async def _note(self, tx: AsyncConnection, caller: Caller | None, action: str, row: Any, **detail: str) -> None:
        """Record the change, and tell every process: a person's secret concerns them, the system's everybody."""
        await self._record(tx, caller, action, row, **detail)
        concerned = None if row.owner_id == SYSTEM_OWNER_ID else row.owner_id
        await changes.note(self._db, tx, "secret", str(row.id), concerned)

    @asynccontextmanager
    async def _marking(self) -> AsyncIterator[None]:
        """Mark the secret whose value did not open, after the transaction that found out."""
        try:
            yield
        except Unreadable as error:
            await self.mark(error.secret_id, error.version, "unreadable")
            raise


def actor_of(caller: Caller) -> Actor:
    """Whose eyes: an administrator's see the system's keys, to seal under them."""
    return Actor.user(caller.user_id, admin=caller.is_admin, system_keys=caller.is_admin)


def _search(caller: Caller, wanted: SecretFilter) -> rows.Search:
    owners = {"own": (caller.user_id,), "system": (SYSTEM_OWNER_ID,), "everyone": None}[wanted.owner]
    for field in ("provider", "name", "tag", "text"):
        if has_control(getattr(wanted, field) or ""):
            raise _invalid(field, "has control or other invisible characters")
    return rows.Search(
        owners=owners,
        provider=wanted.provider,
        secret_type=wanted.secret_type and wanted.secret_type.value,
        name=wanted.name,
        tag=wanted.tag,
        text=wanted.text,
        is_active=wanted.is_active,
        state=wanted.state,
        expires_before=wanted.expires_before,
    )


def _cursor(place: list[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(cursor: str, length: int) -> list[Any]:
    """The place a cursor names; the last of it is an id. Raises ``Invalid`` for what is no cursor of this listing."""
    try:
        place = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(place, list) or len(place) != length or not all(isinstance(part, str) for part in place):
            raise _invalid("cursor", "is not one of this listing")
        if any(has_control(part) for part in place):
            raise _invalid("cursor", "is not one of this listing")
        return [*place[:-1], UUID(place[-1])]
    except (ValueError, RecursionError, binascii.Error):
        raise _invalid("cursor", "is not one of this listing") from None


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}.", fields=(FieldError(field, message),))
