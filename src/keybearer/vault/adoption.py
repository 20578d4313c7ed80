"""Models' own keys from before their rows' MACs said whose they are: given one that does, as soon as a server runs.

Until then such a row verifies with the MAC of a key that serves all calls, so whoever writes to the database could take the model off
it. That it is the model's, the model's own row says, under a MAC of its own; what that does not say is left as it is.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from keybearer.store.db import Actor
from keybearer.store.queries import models as model_rows
from keybearer.store.queries import secrets as rows
from keybearer.vault import registry
from keybearer.vault.keeper import Keeper
from keybearer.vault.refresh import owners_eyes

BATCH = 500


class Adoption:
    """One per process; see the module."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._is_done = False

    async def turn(self) -> int:
        """Look at all models' keys once; how many were given a MAC. For a job; safe in every process at once."""
        after: UUID | None = None
        count = 0
        while not self._is_done:  # what is made later carries the newer MAC
            async with self._keeper.db.read(Actor.system()) as tx:
                found = await rows.of_models(tx, after, BATCH)
            for each in found:
                count += await self._adopt(each.id, each.owner_id)
            self._is_done = len(found) < BATCH
            after = found[-1].id if found else None
        return count

    async def _adopt(self, secret_id: UUID, owner_id: UUID) -> bool:
        async with self._keeper.db.write(owners_eyes(owner_id)) as tx:
            row = await rows.lock(tx, secret_id, (owner_id,), deleted=None)
            if row is None or row.model_id is None or self._keeper.sealer.is_bound(row) or not self._keeper.sealer.is_intact(row):
                return False
            model: Any = await model_rows.get(tx, (owner_id,), row.model_id)
            if model is None or model.secret_id != secret_id or not registry.models_written_here(self._keeper.keyring, [model]):
                return False
            await self._keeper.write(tx, row, {"model_id": row.model_id})
        return True
