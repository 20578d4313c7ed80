"""Usage records and their sums, as a caller may read them.

The shipper writes them from the journal (``audit.ship``); nobody else does. A member sees what they called, what their keys
paid for, and in the list and by team also what a team's keys paid for that they lead; an administrator sees everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from keybearer.access.policy import actor_of
from keybearer.domain import Caller
from keybearer.store.db import Database
from keybearer.store.queries import usage as queries
from keybearer.store.queries.usage import Filter, GroupBy, UsageRecord, UsageSum

__all__ = ["Filter", "GroupBy", "UsageRecord", "UsageRecords", "UsageSum"]

MOST = 500
"""Rows of one page at most."""
MOST_GROUPS = 5000


class UsageRecords:
    """Pages and sums of usage."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(
        self, caller: Caller, wanted: Filter, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[UsageRecord], str | None]:
        """Return a page, the newest first, and the cursor of the next. ``wanted.seen_by`` is set to the caller's own sight.

        Raises ``Invalid`` for a cursor that is none of ours.
        """
        async with self._db.read(actor_of(caller)) as tx:
            return await queries.records(tx, _seen(caller, wanted), cursor, max(1, min(limit, MOST)))

    async def summary(self, caller: Caller, group_by: Sequence[GroupBy], wanted: Filter) -> list[UsageSum]:
        """Return sums by one thing or several (``("day", "provider")``), in their order; by nothing: one sum of all."""
        async with self._db.read(actor_of(caller)) as tx:
            return await queries.summary(tx, _seen(caller, wanted), group_by, MOST_GROUPS)


def _seen(caller: Caller, wanted: Filter) -> Filter:
    return replace(wanted, seen_by=None if caller.is_admin else caller.user_id)
