"""Resolution: whose key serves a call, in which order, and where it stops (MISSION G3).

The user's own secrets for the provider, by priority; then, where the deployment *and* the user allow it, the system's. Somebody
who has own secrets is never silently served with another's key: if none of them can be used, that is the answer. All that can be
used are given, in order, for failover inside the scope.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.catalog import Provider
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Credential, KeySource
from keybearer.errors import (
    EgressRefused,
    EnvelopeError,
    KeybearerError,
    KeyExpired,
    KeyFailed,
    KeyInactive,
    KeyMissing,
    KeyUnusable,
    ModelNotAllowed,
)
from keybearer.gateway.egress import placed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.store.queries import users
from keybearer.vault.sealed import Sealer, Unreadable, console_path, credential_of, egress_of
from keybearer.vault.secrets import State

NO_FALLBACK = "none"


class Marks(Protocol):
    """Where a value that does not open is noted: ``Secrets``."""

    async def mark(self, secret_id: UUID, version: int, state: State, reason: str = "") -> bool: ...


@dataclass(frozen=True, slots=True)
class _Call:
    """What the keys are wanted for."""

    provider: Provider
    model: str
    token_id: str | None
    now: datetime


class Resolver:
    """Finds and opens the keys for a call. ``fallback``: ``none``, ``system`` or ``openrouter`` (which includes ``system``)."""

    def __init__(self, db: Database, keyring: Keyring, secrets: Marks, fallback: str = NO_FALLBACK) -> None:
        self._db = db
        self._secrets = secrets
        self._sealer = Sealer(keyring)
        self._falls_back = fallback != NO_FALLBACK

    async def resolve(self, user_id: UUID, token_id: str | None, provider: Provider, model: str) -> tuple[Credential, ...]:
        """The credentials that may serve this call, best first; at least one.

        ``provider`` is the one of the user's registry, ``model`` the bare name, empty for calls that have none. Raises
        ``KeyMissing``; where the user has own keys but none can be used, what is wrong with the first: ``KeyInactive``,
        ``KeyExpired``, ``KeyFailed``, ``KeyUnreadable``, ``ModelNotAllowed``, ``EgressRefused``, ``KeyUnusable``. Every hint
        has the console's path to what can be done.
        """
        call = _Call(provider, model, token_id, datetime.now(UTC))
        async with self._db.read(Actor.user(user_id, system_keys=self._falls_back)) as tx:
            found = await rows.for_provider(tx, user_id, provider.name, provider.secret_type.value)
            usable, problems = await self._usable(tx, found, call, KeySource.USER)
            if not found and await self._may_fall_back(tx, user_id, provider):
                system = await rows.for_provider(tx, SYSTEM_OWNER_ID, provider.name, provider.secret_type.value)
                usable, of_system = await self._usable(tx, system, call, KeySource.SYSTEM)
                problems = [*problems, *of_system]
        for problem in problems:
            if isinstance(problem, Unreadable) and problem.is_news:
                await self._secrets.mark(problem.secret_id, problem.version, "unreadable")
        if usable:
            return tuple(usable)
        if found:
            raise problems[0]
        raise _missing(provider)

    async def _may_fall_back(self, tx: AsyncConnection, user_id: UUID, provider: Provider) -> bool:
        """The deployment and the user must both allow it; a provider of the user's own never gets a key of the system's."""
        if not self._falls_back or provider.owner_id not in {None, SYSTEM_OWNER_ID}:
            return False
        user = await users.get(tx, user_id)
        return user is not None and bool(user.fallback_allowed)

    async def _usable(
        self, tx: AsyncConnection, found: Iterable[Any], call: _Call, source: KeySource
    ) -> tuple[list[Credential], list[KeybearerError]]:
        """The secrets that can serve the call, opened, and what is wrong with the others; both in their order."""
        usable: list[Credential] = []
        problems: list[KeybearerError] = []
        for row in found:
            problem = _problem(row, call)
            if problem is not None:
                problems.append(problem)
                continue
            try:
                usable.append(credential_of(row, await self._sealer.open(tx, row), source))
            except Unreadable as error:
                problems.append(error)
        return usable, problems


def _problem(row: Any, call: _Call) -> KeybearerError | None:
    """Why a secret cannot serve the call, as far as its row tells."""
    named = f"Your key '{row.name}' for {row.provider}"
    look = f"Look at it at {console_path(row.id)}."
    if not row.is_active:
        return KeyInactive(f"{named} is switched off.", hint=f"Activate it at {console_path(row.id)}, or add another.")
    if row.expires_at is not None and row.expires_at <= call.now:
        return KeyExpired(f"{named} has expired.", hint=f"Enter a new value or change its expiry at {console_path(row.id)}.")
    if row.state == "unreadable":
        return Unreadable(row)
    if row.state != "ok":
        return KeyFailed(
            f"{named} was refused by the provider.", hint=f"Test it and enter a new value at {console_path(row.id)}."
        )
    if row.allowed_tokens is not None and call.token_id not in row.allowed_tokens:
        return KeyUnusable(f"{named} may not be used with this access token.", hint=look)
    if row.allowed_models is not None and not {call.model, f"{row.provider}/{call.model}"} & set(row.allowed_models):
        wanted = "this model" if call.model else "calls that name no model"
        return ModelNotAllowed(f"{named} is not allowed for {wanted}.", hint=look)
    try:
        bound = egress_of(row)
    except EnvelopeError:
        return Unreadable(row)
    if placed(call.provider, bound) is None:
        return EgressRefused(
            f"{named} is not bound to {call.provider.base_url}, where the provider is now.",
            hint=f"If that is right, confirm the new address at {console_path(row.id)}.",
        )
    return None


def _missing(provider: Provider) -> KeyMissing:
    return KeyMissing(
        f"You have no key for {provider.display_name or provider.name}.",
        hint=f"Add one in the Secrets Vault: /secrets/new?provider={provider.name}",
    )
