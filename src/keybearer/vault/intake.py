"""The way of new secrets into the vault: checked one by one, written together, in a handful of statements for a hundred.

Whoever imports a file holds the database's only writer (SQLite), or the lock that orders changes, until all of it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access.fields import NAME_LIMIT
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider, Registry
from keybearer.crypto.keyring import OwnerKey
from keybearer.domain import Caller, ManagementRecord, Owner, SecretBytes, SecretType
from keybearer.errors import Conflict
from keybearer.store.queries import secrets as rows
from keybearer.store.queries import versions
from keybearer.vault import audience
from keybearer.vault.drafts import PRIORITY_LIMIT, Draft, NewSecret, Pointed, checked_draft
from keybearer.vault.keeper import Keeper, refreshing, rotate_at
from keybearer.vault.refresh import with_endpoint
from keybearer.vault.sealed import binding, egress_for, new_ids

TOGETHER = 10
"""Secrets of one step, which takes some 3 ms: between two of them the process serves others."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A new secret, checked and not yet stored."""

    new: NewSecret
    draft: Draft
    pointed: Pointed | None = None
    of_model: Provider | None = None
    """As it is called for the registered model whose own key this is."""

    @property
    def named(self) -> rows.Named:
        """What no other secret of its owner's is called."""
        columns = self.draft.columns
        return columns["provider"], columns["secret_type"], columns["name"]

    def egress(self) -> tuple[str, ...]:
        """Where its value may go. Raises ``Invalid`` for wrong parameters of the provider's address."""
        content = self.draft.content
        return with_endpoint(egress_for(self.draft.provider, content.value, self.new.parameters), content.oauth)


class Intake:
    """One per process; see the module. ``first_check`` gives when a new secret is tested first, by its hours."""

    def __init__(self, keeper: Keeper, catalog: Catalog, first_check: Callable[[int | None, datetime], datetime | None]) -> None:
        self._keeper = keeper
        self._catalog = catalog
        self._first_check = first_check

    def checked(self, known: Registry, new: NewSecret, pointed: Pointed | None = None) -> Entry:
        """Check a secret of an owner who sees these providers. Raises ``ProviderUnknown``, ``Invalid`` and its kinds."""
        return Entry(new, checked_draft(known, self._catalog, new, datetime.now(UTC), pointed), pointed)

    def checked_for_model(self, called: Provider, model: str, value: SecretBytes, *, save_anyway: bool) -> Entry:
        """Check a model's own key. Raises ``Invalid`` and its kinds.

        ``called`` is the provider of the registered model: the key is bound to where that is, and serves no other call.
        """
        name = f"model {model}"[:NAME_LIMIT]
        new = NewSecret(called.name, value, SecretType.API_KEY, name, priority=PRIORITY_LIMIT, save_anyway=save_anyway)
        return replace(self.checked(Registry([called]), new), of_model=called)

    async def held(self, tx: AsyncConnection, owner_id: UUID, entries: Sequence[Entry]) -> Mapping[rows.Named, rows.Row]:
        """Those of an owner's secrets that have the names of ``entries``, locked."""
        return await rows.lock_named(tx, owner_id, [entry.named for entry in entries])

    async def require_free(self, tx: AsyncConnection, owner_id: UUID, entry: Entry, queued: set[rows.Named]) -> None:
        """Raise ``Conflict`` where the owner has a secret of this name, or is about to have one: ``queued``, which it joins."""
        if entry.named in queued or await rows.named(tx, owner_id, *entry.named) is not None:
            raise Conflict("There is a secret that is named like this model's own key.")
        queued.add(entry.named)

    async def add(
        self, tx: AsyncConnection, caller: Caller, owner: Owner, entries: Sequence[Entry]
    ) -> Sequence[ManagementRecord]:
        """Store secrets whose names are free. Gives what ``note`` is to put on record, in the same order; the subjects are their ids.

        Raises what ``Entry.egress`` does.
        """
        if not entries:
            return ()
        now = datetime.now(UTC)
        key = await self._keeper.keyring.sealing_key(tx, owner.id)
        ids = new_ids(now, len(entries))
        new = list(zip(ids, entries, strict=True))
        for part in parts(new):
            made = [self._made(secret_id, caller, owner, entry, key, now) for secret_id, entry in part]
            await self._keeper.insert(tx, [columns for columns, _ in made])
            await versions.insert(tx, [version for _, version in made])
        return [_record(caller, owner, *each) for each in new]

    async def note(self, tx: AsyncConnection, owner: Owner, records: Sequence[ManagementRecord]) -> None:
        """Put on record what was added, and tell every process. Last, for others who change anything wait from here to the commit."""
        if records:
            await management.record_all(self._keeper.db, tx, records)
            # Once for all of them, and for no team but the owner: what is new is shared with nobody.
            await audience.note_owned(self._keeper.db, tx, "secret", records[0].subject if len(records) == 1 else "", owner)

    def _made(
        self, secret_id: UUID, caller: Caller, owner: Owner, entry: Entry, key: OwnerKey, now: datetime
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The columns of a secret's row, and of its first version's."""
        new, draft, egress = entry.new, entry.draft, entry.egress()
        given = dict(draft.columns)
        hours = given.pop("health_check_every")
        registered = None if entry.of_model is None else entry.of_model.registered
        columns = {
            "id": secret_id,
            "owner_id": owner.id,
            "owner_kind": owner.kind.value,
            "egress": list(egress),
            "state": "ok",
            "state_reason": "",
            "version": 1,
            "rotate_at": rotate_at(new.rotation_period, now),
            **refreshing(draft.content, now),
            "check_every": hours,
            "check_at": self._first_check(hours, now),
            "created_by": caller.user_id,
            "created_at": now,
            "updated_at": now,
            "usage_count": 0,
            "model_id": None if registered is None else registered.id,
        }
        place = binding(secret_id, 1, egress, fetchable=new.fetchable)
        sealed = self._keeper.sealer.sealed(key, owner.id, place, draft.content, now, caller.user_id)
        return given | columns, sealed


def parts(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """``entries`` in steps of ``TOGETHER``."""
    return (entries[start : start + TOGETHER] for start in range(0, len(entries), TOGETHER))


def _record(caller: Caller, owner: Owner, secret_id: UUID, entry: Entry) -> ManagementRecord:
    facts = {"provider": entry.new.provider, "name": entry.draft.columns["name"]}
    if entry.pointed is not None:
        facts["reference"] = str(entry.pointed.reference)
    return ManagementRecord("secret.create", caller, str(secret_id), owner=owner, detail=tuple(facts.items()))
