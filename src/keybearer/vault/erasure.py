"""The end of an owner: the key row goes, and with it what any copy of their ciphertext could be opened with (crypto-shredding).

Everything of theirs goes in the same transaction: keys, secrets, tokens, sessions, memberships, own providers and models. What
stays is the audit trail and what was used, which name the person by id alone.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, ManagementRecord, Owner, OwnerKind, Role
from keybearer.errors import Forbidden, NotFound
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import teams, users
from keybearer.vault.remains import OF_OWNERS, Remains


class Erasure:
    """Deletes people, and has the live files forget them."""

    def __init__(self, db: Database, keyring: Keyring) -> None:
        self._db = db
        self._keyring = keyring
        self._remains = Remains(db, *OF_OWNERS)

    async def delete_user(self, user_id: UUID, by: Caller | None) -> None:
        """Delete an account and all that is its own; nothing brings it back. ``by``: an administrator; ``None``: the operator.

        Raises ``NotFound``, ``Forbidden`` (no administrator, oneself, the last active administrator, a team's last owner).
        """
        async with attempt(self._db, "user.delete", by, str(user_id)):
            if by is not None:
                policy.require_admin(by)
                if by.user_id == user_id:
                    raise Forbidden("You cannot delete your own account.", hint="Ask another administrator.")
            # The operator has no rights of their own to people's rows: it is as if that person did it.
            async with self._db.write(Actor.user(user_id) if by is None else policy.actor_of(by)) as tx:
                await self._db.lock_order(tx)  # or two administrators delete each other at the same moment
                async with self._db.as_system(tx):
                    await _check(tx, user_id)
                await users.delete(tx, user_id)
                owner = Owner(OwnerKind.USER, user_id)
                await management.record(self._db, tx, ManagementRecord("user.delete", by, str(user_id), owner=owner))
                # Everybody's: whoever was lent one of their secrets has it in a cache.
                await changes.note(self._db, tx, "user", str(user_id))
        self._keyring.forget_owner(user_id)
        await self._remains.removed()

    async def erase(self) -> None:
        """Have the live files forget who was deleted. For a job: on PostgreSQL it takes its time. Raises ``Unavailable``."""
        await self._remains.erase()


async def _check(tx: AsyncConnection, user_id: UUID) -> None:
    row = await users.get(tx, user_id)
    if row is None:
        raise NotFound
    if row.role == Role.ADMIN.value and row.is_active and await users.count_active_admins(tx, but=user_id) == 0:
        raise Forbidden("This is the last active administrator.", hint="Make another one first.")
    if alone := await teams.led_alone(tx, user_id):
        raise Forbidden(
            f"This person is the last owner of {len(alone)} team(s).",
            hint="Make somebody else an owner of each first, or delete them.",
        )
