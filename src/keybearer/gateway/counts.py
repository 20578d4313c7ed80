"""What limits count, and where: one interface, of which a start chooses one implementation.

``own_counts``     the memory of the one process that counts
``shared_counts``  Valkey, for several processes and machines

The database is the truth of both: ``Records`` says what usage records of a window come to, once what is still in journals is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import UUID

from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.domain import Budget, BudgetKind
from keybearer.errors import Unavailable
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit
from keybearer.store.queries import budgets as rows
from keybearer.store.queries.budgets import Used
from keybearer.usage.limits import Limits, window

SHIPPED_WITHIN = 60.0
"""Seconds until whoever waits for a limit to be read is told to come again."""
KEPT_FOR = timedelta(days=40)
"""Longer than any window: then what was reserved is of no use."""


class State(NamedTuple):
    """How a limit stands, in its own unit."""

    used: int
    reserved: int
    remaining: int
    resets_at: datetime


class Counts(Protocol):
    """Where calls reserve and settle."""

    async def keep(self, budgets: Sequence[Budget], gone: Iterable[UUID]) -> None:
        """Count for these limits, some of them new, some changed; and no more for those that are gone. Raises ``Unavailable``."""

    def limits(self, budget_ids: Sequence[UUID]) -> Limits:
        """What calls are held to that these limits concern."""

    async def states(self, budgets: Iterable[Budget]) -> Mapping[UUID, State]:
        """How limits stand now."""

    async def turn(self) -> None:
        """A job's, every second."""

    async def close(self) -> None:
        """Stop."""


class Records:
    """What usage records say."""

    def __init__(self, db: Database, journal: Journal, shipper: Shipper) -> None:
        self._db = db
        self._journal = journal
        self._shipper = shipper
        self._has_shipped = False

    @property
    def writer(self) -> UUID:
        """Whose journal has the uses of this process."""
        return self._journal.writer

    async def are_complete(self, writers: Iterable[UUID]) -> bool:
        """Whether the database has all that these ever wrote: they have ended, and their journals were shipped."""
        async with self._db.read(Actor.system()) as tx:
            found = [await audit.writer(tx, writer) for writer in writers]
        return all(row is not None and row.closed_at is not None for row in found)

    async def ship(self) -> None:
        """Everything that this machine's journals know gets to the database. Raises ``Unavailable``.

        Uses of this turn of the event loop are written within its next ones. The first time also what dead processes left behind.
        """
        for _ in range(4):
            await asyncio.sleep(0)
        self._journal.flush()
        until = time.monotonic() + SHIPPED_WITHIN
        wanted = self._journal.seq
        while await self._shipper.ship_once():  # others may go on writing
            async with self._db.read(Actor.system()) as tx:
                writer = await audit.writer(tx, self._journal.writer)
            if self._has_shipped and writer is not None and writer.shipped_seq >= wanted:
                break
            if time.monotonic() > until:
                raise Unavailable("What calls have used is still on its way to the database.", retry_after=1.0)
        self._has_shipped = True

    async def used(self, budgets: Iterable[Budget], at: float) -> dict[UUID, Used]:
        """What calls that these limits concern have used in the windows of ``at``."""
        found: dict[UUID, Used] = {}
        async with self._db.read(Actor.system()) as tx:
            for budget in budgets:
                since = datetime.fromtimestamp(window(budget.kind, at)[0], UTC)
                # One that was changed outside says nothing of what it concerns, and refuses whatever was used.
                found[budget.id] = Used(0, {}) if budget.is_tampered else await rows.used(tx, budget, since)
        return found

    async def settled(self, kind: BudgetKind, request_ids: Sequence[str]) -> dict[str, int]:
        """Those of these calls whose outcome has come, and what they count for."""
        async with self._db.read(Actor.system()) as tx:
            return await rows.settled(tx, kind, request_ids)

    async def states(self, budgets: Iterable[Budget], at: float) -> dict[UUID, State]:
        """How limits stand by records alone: what calls under way have reserved is missing until their use has arrived."""
        budgets = list(budgets)
        found = await self.used(budgets, at)
        return {
            budget.id: state_of(budget, found[budget.id].settled, sum(found[budget.id].unsettled.values()), at)
            for budget in budgets
        }

    async def newest_change(self) -> int:
        """The feed's newest position."""
        async with self._db.read(Actor.system()) as tx:
            return await changes.newest(tx)

    async def prune(self) -> None:
        """Forget reservations that no window reaches."""
        async with self._db.write(Actor.system()) as tx:
            await rows.delete_reservations(tx, datetime.now(UTC) - KEPT_FOR)


def state_of(budget: Budget, used: int, reserved: int, at: float) -> State:
    """How a limit stands that has so much used and reserved."""
    end = datetime.fromtimestamp(window(budget.kind, at)[1], UTC)
    return State(used, reserved, max(0, budget.amount - used - reserved), end)
