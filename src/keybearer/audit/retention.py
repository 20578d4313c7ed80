"""Retention: after so many days a record keeps its place and its digest, and loses everything else.

Of each writer the records up to one are emptied: all that are sealed and older than the policy wants, up to the first that is not.
Which that is goes on record first, so that a record which somebody else emptied is told apart. Writer, sequence number, ``d``, ``h``
and the leaf stay, so every proof stays valid; the nonce goes too, or a line could be guessed. What tells of journals (their first
and last lines, and the management records about them) names no person, and is kept for verifying.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from keybearer.audit import management
from keybearer.domain import ManagementRecord
from keybearer.store.db import Actor, Database
from keybearer.store.queries import retention as queries

BATCH = 500
"""Records emptied in one transaction."""


class AuditRetention:
    """Empties what is older than ``days``; 0 keeps everything."""

    def __init__(self, db: Database, days: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._db = db
        self._days = days
        self._clock = clock

    async def turn(self) -> int:
        """Empty what is due; return how many records that was. Safe in several processes: they do the same. Raises ``Unavailable``."""
        if not self._days:
            return 0
        before = self._clock() - timedelta(days=self._days)
        async with self._db.read(Actor.system()) as tx:
            due = await queries.due(tx, before)
        return sum([await self._empty(writer, done, last, before) for writer, (done, last) in due.items()])

    async def _empty(self, writer: UUID, done: int, last: int, before: datetime) -> int:
        detail = (("through", str(last)), ("before", before.isoformat(timespec="seconds")))
        async with self._db.write(Actor.system()) as tx:
            await management.record(self._db, tx, ManagementRecord(management.REDACTED, None, str(writer), detail=detail))
        emptied = 0
        while done < last:
            until = min(done + BATCH, last)
            async with self._db.write(Actor.system()) as tx:
                emptied += await queries.empty(tx, writer, (done + 1, until), management.KEPT)
            done = until
            await asyncio.sleep(0)
        return emptied
