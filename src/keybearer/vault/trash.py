"""Deleted secrets: gone from everything but this list, restorable for a stated time, then removed so that no live file holds them.

A deleted secret gives up its name, so that another may have it. After a purge SQLite's file has its pages overwritten
(``secure_delete``) and its write-ahead log emptied; PostgreSQL's tables are vacuumed where the owner's URL is known
(docs/postgresql.md says what that leaves).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from keybearer.access import policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import NAME_LIMIT, Fields
from keybearer.domain import Caller, Scope, Secret
from keybearer.store.db import Actor
from keybearer.store.queries import secrets, versions
from keybearer.store.queries import trash as rows
from keybearer.vault.keeper import Keeper, require_owner, sealing_actor

BATCH = 500


class Trash:
    """Restores and purges; see the module. ``Secrets.delete`` fills it."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def get(self, caller: Caller, secret_id: UUID) -> Secret:
        """One deleted secret that the caller may bring back. Raises ``NotFound``, ``Forbidden``, ``ScopeMissing``."""
        policy.require(caller, *policy.READ_SECRETS)
        async with self._keeper.db.write(sealing_actor(caller)) as tx:
            return self._keeper.secret(await self._keeper.own(tx, caller, secret_id, deleted=True))

    async def restore(self, caller: Caller, secret_id: UUID, name: str | None = None) -> Secret:
        """Bring a deleted secret back, under its name or another.

        One that its provider refused comes back as such; one whose row was edited meanwhile, unreadable. Raises ``NotFound``
        (purged, or not deleted), ``Conflict`` where another has the name by now, ``Invalid``, ``ScopeMissing``.
        """
        async with (
            attempt(self._keeper.db, "secret.restore", caller, str(secret_id)),
            taken("Another secret has this name by now.", 'Restore it under another name: {"name": …}.'),
        ):
            policy.require(caller, Scope.SECRETS_WRITE)
            fields = Fields()
            wanted = None if name is None else fields.name("name", name, NAME_LIMIT)
            fields.check()
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id, deleted=True)
                back = wanted or str(row.deleted_name)
                columns: dict[str, Any] = {
                    "deleted_at": None,
                    "deleted_name": None,
                    "name": back,
                    "state": "ok" if row.failed_at is None else "failed",
                }
                columns |= {"updated_at": datetime.now(UTC)}
                await self._keeper.write(tx, row, columns)
                await self._keeper.note(tx, caller, "secret.restore", row, provider=row.provider, name=back)
                return await self._keeper.shown(tx, caller, row)

    async def purge(self, caller: Caller, secret_id: UUID) -> None:
        """Remove a secret, deleted or not, with all its versions, now and for good.

        Raises ``NotFound``, ``Forbidden`` for whom it is only lent to, ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.purge", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id, deleted=None)
                require_owner(caller, row)
                name = row.deleted_name or row.name
                await self._keeper.note(tx, caller, "secret.purge", row, provider=row.provider, name=name)
                await versions.delete_all(tx, row.owner_id, row.id)
                await secrets.delete(tx, row.owner_id, row.id)
        await self._keeper.remains.removed()

    async def purge_due(self) -> int:
        """Purge what can no longer be restored, for all owners, and finish what erasing is left; how many were purged. For a job."""
        before, count = datetime.now(UTC) - self._keeper.retention.restorable, 0
        async with self._keeper.db.write(Actor.system()) as tx:
            for row in await rows.due(tx, before, BATCH):
                if await rows.purge(tx, row.owner_id, row.id, before):
                    count += 1
                    detail = {"provider": row.provider, "name": row.deleted_name or ""}
                    await self._keeper.note(tx, None, "secret.purge", row, **detail)
        if count:
            await self._keeper.remains.removed()
        await self._keeper.remains.erase()
        return count
