"""Sharing: a person's secret, lent to a team they are in, for use only or for management. The value stays theirs, under their key.

What a team owns is not shared further, and who manages a shared secret shares it with nobody: lending is its owner's alone. It
ends when they say so, when a team's admin does, and when they leave the team.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, Grade, ManagementRecord, Owner, OwnerKind, Scope, Share
from keybearer.errors import Conflict, FieldError, Forbidden, Invalid, NotFound
from keybearer.store.db import Database
from keybearer.store.queries import secrets as secret_rows
from keybearer.store.queries import teams as rows
from keybearer.vault import audience, reach, registry
from keybearer.vault.reach import Reach

SHARES_LIMIT = 1000
"""Secrets shared with one team."""


class Shares:
    """Makes, changes and ends shares; see the module."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog

    async def share(self, caller: Caller, secret_id: UUID, team_id: UUID, grade: Grade) -> Share:
        """Share one of the caller's own secrets with a team they are in, or change how it is shared.

        Raises ``NotFound`` (no such secret, or no team of theirs), ``Forbidden`` (not theirs to share), ``Invalid`` (its provider
        is the caller's alone), ``Conflict``, ``ScopeMissing``.
        """
        async with attempt(self._db, "secret.share", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE)
            policy.require(caller, Scope.TEAMS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                mine = await reach.load(tx, self._keyring, caller.user_id)
                row = await self._own(tx, mine, secret_id)
                team = mine.team(team_id)
                if team is None:
                    raise NotFound("You are in no such team.", hint="List your teams at GET /api/v1/teams.")
                await self._check_provider(tx, row)
                await self._write(tx, mine, row, team_id, grade)
                detail = {"team_id": str(team_id), "team": team.name, "grade": grade.value}
                await self._note(tx, caller, "secret.share", (secret_id, Owner(OwnerKind.USER, row.owner_id)), team_id, detail)
                made = (await reach.load(tx, self._keyring, caller.user_id)).shares_of(secret_id)
                return next(share for share in made if share.team_id == team_id)

    async def unshare(self, caller: Caller, secret_id: UUID, team_id: UUID) -> None:
        """End a share, everywhere within a second: whose secret it is, or an owner or admin of the team.

        Raises ``NotFound``, ``Forbidden``, ``ScopeMissing``.
        """
        async with attempt(self._db, "secret.unshare", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE, Scope.TEAMS_WRITE)
            async with self._db.write(policy.actor_of(caller)) as tx:
                await self._db.lock_order(tx)
                mine = await reach.load(tx, self._keyring, caller.user_id)
                share = next((share for share in mine.shares_of(secret_id) if share.team_id == team_id), None)
                if share is None:
                    raise NotFound
                team = mine.team(team_id)
                if share.shared_by != caller.user_id and (team is None or not team.leads):
                    raise Forbidden("Only whose secret it is, and the team's owners and admins, end a share.")
                await rows.delete_share(tx, secret_id, team_id)
                subject = secret_id, Owner(OwnerKind.USER, share.shared_by)
                await self._note(tx, caller, "secret.unshare", subject, team_id, {"team_id": str(team_id)})

    async def _own(self, tx: AsyncConnection, mine: Reach, secret_id: UUID) -> Any:
        row = await secret_rows.lock(tx, secret_id, (mine.user_id,))
        if row is not None:
            return row
        if await secret_rows.get(tx, secret_id, mine.seen_owners(secret_id)) is not None:
            raise Forbidden("Only whose secret it is can share it.", hint="Ask them.")
        raise NotFound

    async def _check_provider(self, tx: AsyncConnection, row: Any) -> None:
        """A provider that only the sharer can name would make the share a key without a door."""
        known = (await registry.load(tx, self._keyring, self._catalog, row.owner_id)).providers.get(row.provider)
        if known is not None and known.owner_id == row.owner_id:
            message = "is for a custom provider of your own, which the team does not have"
            hint = "Make the provider the team's, with team_id, and store the key there."
            raise Invalid(f"This secret {message}.", hint=hint, fields=(FieldError("provider", message),))

    async def _write(self, tx: AsyncConnection, mine: Reach, row: Any, team_id: UUID, grade: Grade) -> None:
        there = [share for share in await rows.shares_of(tx, row.owner_id, row.id) if share.team_id == team_id]
        if not there and sum(share.team_id == team_id for share in mine.shares) >= SHARES_LIMIT:
            raise Conflict(f"At most {SHARES_LIMIT} secrets are shared with one team.", hint="End other shares first.")
        columns: dict[str, Any] = {
            "secret_id": row.id,
            "team_id": team_id,
            "owner_id": row.owner_id,
            "grade": grade.value,
            "created_at": there[0].created_at if there else datetime.now(UTC),
        }
        columns["mac"] = self._keyring.row_mac(macs.SHARE, *macs.share_fields(SimpleNamespace(**columns)))
        if there:
            await rows.update_share(tx, row.id, team_id, {"grade": grade.value, "mac": columns["mac"]})
        else:
            await rows.insert_share(tx, columns)

    async def _note(
        self,
        tx: AsyncConnection,
        caller: Caller,
        action: str,
        subject: tuple[UUID, Owner],
        team_id: UUID,
        detail: dict[str, str],
    ) -> None:
        """Record the change, and tell every process: it concerns the secret's owner and all of the team."""
        secret_id, owner = subject
        record = ManagementRecord(action, caller, str(secret_id), owner=owner, detail=tuple(detail.items()))
        await management.record(self._db, tx, record)
        await audience.note_team(self._db, tx, team_id, (owner.id,), subject="secret", subject_id=str(secret_id))
