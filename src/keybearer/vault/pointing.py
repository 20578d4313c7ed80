"""References on their way in: who may make one for whom, and what is there now, before anything is saved.

A store is asked outside of any transaction; what may be done with a secret is looked at again in the one that writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER, Caller, ManagementRecord, Owner, OwnerKind, Scope, SecretBytes, SecretType
from keybearer.errors import Invalid
from keybearer.vault import reach
from keybearer.vault.drafts import NewSecret, Pointed, require_alone
from keybearer.vault.external import Wanted
from keybearer.vault.keeper import Keeper, sealing_actor


class Pointing:
    """See the module. Raises, for each reference, what ``External.granted`` and ``External.fresh`` do."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def of_new(self, caller: Caller, new: NewSecret) -> Pointed | None:
        """What a new secret's reference points to, if it has one."""
        if not new.reference:
            return None
        require_alone(new.value)
        async with self._keeper.db.read(sealing_actor(caller)) as tx:
            owner = await owner_of_new(tx, self._keeper.keyring, caller, new)
        return await self._pointed(caller, owner.id, new.secret_type, new.reference)

    async def anew(self, caller: Caller, secret_id: UUID, fields: Mapping[str, Any]) -> Pointed:
        """The same for a change of a secret that is there. Raises ``NotFound``, ``Forbidden``."""
        require_alone(fields.get("value"))
        async with self._keeper.db.write(sealing_actor(caller)) as tx:
            row = await self._keeper.own(tx, caller, secret_id)
        return await self._pointed(caller, row.owner_id, SecretType(row.secret_type), fields["reference"])

    async def look(self, caller: Caller, new: NewSecret) -> SecretBytes:
        """What a secret would serve with, for a test before it is saved; of a reference on record."""
        async with attempt(self._keeper.db, "secret.test", caller):
            policy.require(caller, Scope.SECRETS_WRITE)
            if new.system:
                policy.require_admin(caller)
            pointed = await self.of_new(caller, new)
            if pointed is None:
                if not new.value.reveal().strip():
                    raise Invalid.of("value", "is required")
                return new.value
            record = ManagementRecord("secret.test", caller, "", detail=(("reference", str(pointed.reference)),))
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                await management.record(self._keeper.db, tx, record)
            return pointed.value

    async def _pointed(
        self, caller: Caller, owner_id: UUID, secret_type: SecretType | None, given: Mapping[str, Any] | str
    ) -> Pointed:
        reference = self._keeper.external.granted(caller, owner_id, given)
        wanted = Wanted(reference, owner_id, secret_type or SecretType.CUSTOM)
        return Pointed(reference, await self._keeper.external.fresh(wanted))


async def owner_of_new(tx: AsyncConnection, keyring: Keyring, caller: Caller, new: NewSecret) -> Owner:
    """Whose a new secret is to be. Raises ``NotFound``, ``Forbidden``."""
    if new.system:
        return SYSTEM_OWNER
    if new.team_id is None:
        return Owner(OwnerKind.USER, caller.user_id)
    return reach.led(await reach.load(tx, keyring, caller.user_id, shares=False), new.team_id)
