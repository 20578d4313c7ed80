"""Versions of a secret: a value is replaced with an overlap, or put back; what is out of force is kept for a while.

Each version is sealed for its own number. Putting one back seals its value anew, as the next version: numbers only grow.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider
from keybearer.domain import Caller, ManagementRecord, Scope, Secret, SecretBytes, SecretVersion
from keybearer.errors import Invalid, NotFound
from keybearer.store.db import Actor
from keybearer.store.queries import cursors
from keybearer.store.queries import versions as rows
from keybearer.vault import registry
from keybearer.vault.drafts import checked_changes
from keybearer.vault.keeper import Keeper, sealing_actor
from keybearer.vault.references import require_power
from keybearer.vault.sealed import Content, egress_for, egress_of

OVERLAP_LIMIT = timedelta(days=30)


class Versions:
    """Shows, rotates, rolls back and prunes; see the module."""

    def __init__(self, keeper: Keeper, catalog: Catalog) -> None:
        self._keeper = keeper
        self._catalog = catalog

    async def list(
        self, caller: Caller, secret_id: UUID, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[SecretVersion], str | None]:
        """A page of a secret's versions, the newest first, and the cursor of the next. Raises ``NotFound``, ``ScopeMissing``."""
        async with attempt(self._keeper.db, "secret.read", caller, str(secret_id)):
            policy.require(caller, *policy.READ_SECRETS)
            below = None if cursor is None else cursors.decode(cursor, tuple[int])[0]
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id)
                found = await rows.page(tx, row.owner_id, row.id, below, limit + 1)
        more = cursors.encode((found[limit - 1].version,)) if len(found) > limit else None
        return [_view(version, row, datetime.now(UTC)) for version in found[:limit]], more

    async def rotate(
        self,
        caller: Caller,
        secret_id: UUID,
        value: SecretBytes,
        *,
        overlap: timedelta = timedelta(),
        save_anyway: bool = False,
    ) -> Secret:
        """Put a new value in force; for ``overlap`` the one before serves where the provider refuses the new one.

        Raises ``NotFound``, ``Invalid`` and its kinds, ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.rotate", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE)
            if not timedelta() <= overlap <= OVERLAP_LIMIT:
                raise Invalid.of("overlap_seconds", f"is not between 0 and {int(OVERLAP_LIMIT.total_seconds())}")
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                now = datetime.now(UTC)
                row = await self._keeper.own(tx, caller, secret_id)
                known = (await registry.load(tx, self._keeper.keyring, self._catalog, row.owner_id)).providers.get(row.provider)
                before = await self._keeper.current(tx, row)
                change = checked_changes(known, self._catalog, row, before, {"value": value, "save_anyway": save_anyway}, now)
                if change.content is None:
                    raise Invalid.of("value", "is required")
                bound = await self._agreed(tx, row, known, change.content)
                columns = await self._keeper.put_version(
                    tx, caller, row, change.content, now, bound=bound, overlap=overlap or None
                )
                await self._keeper.write(tx, row, columns, anew=True)
                overlaps = str(int(overlap.total_seconds()))
                await self._keeper.note(tx, caller, "secret.rotate", row, version=str(columns["version"]), overlap=overlaps)
                return await self._keeper.shown(tx, caller, row)

    async def rollback(self, caller: Caller, secret_id: UUID, version: int | None = None) -> Secret:
        """Put an earlier value in force again, as a new version; ``None``: the one before.

        It goes where the secret may go now. Raises ``NotFound`` (also for versions that are gone), ``Invalid``, ``KeyUnreadable``,
        ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.rollback", caller, str(secret_id)), self._keeper.marking():
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                now = datetime.now(UTC)
                row = await self._keeper.own(tx, caller, secret_id)
                self._keeper.sealer.check(row)
                wanted = await rows.before(tx, row.owner_id, row.id, row.version) if version is None else version
                if wanted == row.version:
                    raise Invalid.of("version", "is in force already")
                earlier = None if wanted is None else await rows.get(tx, row.owner_id, row.id, wanted)
                if earlier is None:
                    raise NotFound("There is no such earlier version.", hint="See which are kept: /secrets/{id}/versions.")
                content = await self._keeper.sealer.open_version(tx, earlier)
                require_power(caller, content.reference)
                known = (await registry.load(tx, self._keeper.keyring, self._catalog, row.owner_id)).providers.get(row.provider)
                # Where it may go is what the owner agreed to last; where that cannot be told any more, or the value itself names
                # the address, what was agreed to for the value put back.
                named_by_value = known is not None and bool(known.places)
                agreed = earlier if named_by_value or await self._keeper.current(tx, row) is None else row
                bound = egress_of(agreed), bool(agreed.fetchable)
                columns = await self._keeper.put_version(tx, caller, row, content, now, bound=bound)
                await self._keeper.write(tx, row, columns)
                detail = {"version": str(columns["version"]), "value_of": str(wanted)}
                await self._keeper.note(tx, caller, "secret.rollback", row, **detail)
                return await self._keeper.shown(tx, caller, row)

    async def _agreed(
        self, tx: AsyncConnection, row: Any, known: Provider | None, content: Content
    ) -> tuple[tuple[str, ...], bool]:
        """Where a new value may go; anew only where it names the address itself."""
        named_by_value = known is not None and bool(known.places)
        return await self._keeper.agreed(tx, row, lambda: egress_for(known, content.value, {}), rebind=named_by_value)

    async def prune(self) -> int:
        """Remove the versions that the policy no longer keeps, for all owners; how many. For a job."""
        now, retention = datetime.now(UTC), self._keeper.retention
        async with self._keeper.db.write(Actor.system()) as tx:
            count = await rows.prune(tx, retention.versions, now - retention.versions_for, now)
            if count:
                record = ManagementRecord("secret.prune", None, "", detail=(("versions", str(count)),))
                await management.record(self._keeper.db, tx, record)
        if count:
            await self._keeper.remains.removed()
        return count


def _view(version: Any, row: Any, now: datetime) -> SecretVersion:
    falls_back = row.fallback_until is not None and row.fallback_until > now and version.version == row.fallback_version
    state = "current" if version.version == row.version else "fallback" if falls_back else "old"
    preview = row.preview if version.preview is None else version.preview
    return SecretVersion(
        version.version, state, preview, version.owner_key_id, version.created_by, version.created_at, version.retired_at
    )
