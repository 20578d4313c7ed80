"""The processes that run, and the root keys that each could unwrap: a root key is promoted only when all can open with it.

A process says so every few seconds. One that was stopped or lost its network falls silent; the rotation goes on without it, and
the locks on key rows keep it from sealing under a retired key when it wakes up.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from math import inf
from uuid import UUID, uuid4

from keybearer.crypto.keyring import Keyring
from keybearer.errors import KeybearerError
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys, rotations

ALIVE = timedelta(seconds=20)
"""How long after its last sign of life a process counts as running."""
LOST = timedelta(days=1)
_EVERY_S = 5.0
_MARGIN = timedelta(seconds=5)


class KeyHolder:
    """This process among those that must follow a rotation."""

    def __init__(self, db: Database) -> None:
        self.id = uuid4()
        self._db = db
        self._noted: tuple[UUID | None, str] = (None, "")
        self._noted_at = 0.0

    async def register(self) -> None:
        """Be known *before* the root key is opened: a rotation then waits for this process, or is over when it opens."""
        async with self._db.write(Actor.system()) as tx:
            await rotations.remove_lost(tx, LOST)
            await self._db.lock_order(tx)  # who registered first is seen first
            await rotations.register(tx, self.id, socket.gethostname()[:255], os.getpid())

    async def turn(self, keyring: Keyring) -> None:
        """Unwrap what came, drop what went, and say so. Failing to unwrap is told to the operator through the database."""
        async with self._db.read(Actor.system()) as tx:
            rows = await keys.root_keys_in_use(tx)
        problem = ""
        try:
            await keyring.hold_root_keys(rows)
        except KeybearerError as error:
            problem = error.message
        held = next((row.id for row in rows if keyring.holds(row.id)), None)
        if (held, problem) != self._noted or time.monotonic() - self._noted_at > _EVERY_S:
            await self._note(held, problem)

    async def _note(self, held: UUID | None, problem: str) -> None:
        async with self._db.write(Actor.system()) as tx:
            known = await rotations.note_holder(tx, self.id, held, problem)
            if not known:  # silent for a day, and forgotten
                await self._db.lock_order(tx)
                await rotations.register(tx, self.id, socket.gethostname()[:255], os.getpid())
                await rotations.note_holder(tx, self.id, held, problem)
        self._noted, self._noted_at = (held, problem), time.monotonic()

    async def running(self) -> frozenset[UUID]:
        """The processes that run, as far as is known, this one among them."""
        async with self._db.read(Actor.system()) as tx:
            return frozenset(row.id for row in await rotations.holders(tx, ALIVE)) | {self.id}

    async def others(self) -> int:
        """How many other processes run, as far as is known; SQLite is for one."""
        return 0 if self._db.name == "sqlite" else len(await self.running()) - 1

    async def claim(self) -> float:
        """For how many seconds this process may take itself for the oldest that runs; 0: it is not. SQLite is for one.

        It lasts until shortly before others would take this one for dead, so that no two can claim to be it at a time.
        """
        if self._db.name == "sqlite":
            return inf
        async with self._db.read(Actor.system()) as tx:
            rows = await rotations.holders(tx, ALIVE)
            at = await rotations.now(tx)
        oldest = min(rows, key=lambda row: (row.created_at, row.id), default=None)
        if oldest is None or oldest.id != self.id:
            return 0.0
        left: timedelta = ALIVE - (at - oldest.seen_at) - _MARGIN
        return max(0.0, left.total_seconds())

    async def close(self) -> None:
        """Be waited for no more."""
        async with self._db.write(Actor.system()) as tx:
            await rotations.remove_holder(tx, self.id)
