"""The emergency stop: while a deployment is frozen, no key leaves, in no process, from a second after the command on.

It is a row of the database and a note to all processes, so it holds through restarts until it is taken back. Calls already sent finish.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import management
from keybearer.domain import Caller, ManagementRecord
from keybearer.errors import Frozen
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import deployment


async def freeze(db: Database, caller: Caller) -> bool:
    """Stop all use of keys; whether that is new. The caller has been found to be allowed to."""
    return await _set(db, caller, frozen=True)


async def unfreeze(db: Database, caller: Caller) -> bool:
    """Let keys be used again; whether that is new."""
    return await _set(db, caller, frozen=False)


async def is_frozen(db: Database) -> bool:
    """Whether all use of keys is stopped."""
    async with db.read(Actor.system()) as tx:
        return await deployment.is_frozen(tx)


async def require_thawed(tx: AsyncConnection, caller: Caller) -> None:
    """Raise ``Frozen`` for access tokens while all use is stopped. A person may still look at what is theirs: that is no use."""
    if caller.token_id is not None and await deployment.is_frozen(tx):
        raise Frozen


async def _set(db: Database, caller: Caller, *, frozen: bool) -> bool:
    async with db.write(Actor.system()) as tx:
        if await deployment.is_frozen(tx) is frozen:
            return False
        await deployment.set_frozen(tx, datetime.now(UTC) if frozen else None)
        await changes.note(db, tx, "deployment", "")
        action = "deployment.freeze" if frozen else "deployment.unfreeze"
        await management.record(db, tx, ManagementRecord(action, caller, "deployment"))
        return True
