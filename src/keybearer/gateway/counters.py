"""The limits of this process: all of them in memory, with what their windows have left.

The database is the truth: an account begins with what usage records of its window say, once everything that this process has
written to its journal is there. What has no outcome yet counts in full, and is looked at again until it has one. From then on
calls reserve and settle here, on the event loop's thread, so that no two can take the same remainder.

A change of a limit comes by the feed. Whom it concerns, their cached tokens are dropped with it (``credentials``), so their next call
asks anew which limits it is held to, and waits until they are read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import structlog

from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Budget, BudgetSubject, Credential, Grant, Usage
from keybearer.errors import Unavailable
from keybearer.gateway.plan import Plan
from keybearer.store.changes import EVERYTHING, Change, Feed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit
from keybearer.store.queries import budgets as rows
from keybearer.usage import bounds, prices
from keybearer.usage.limits import Account, Hold, Limits, Most
from keybearer.vault.budgets import budget_of

SHIPPED_WITHIN = 60.0
"""Seconds until whoever waits for a limit to be read is told to come again."""
LOOKED_AT = 1000
"""Uses without an outcome that are asked for at once."""
KEPT_FOR = timedelta(days=40)
"""Longer than any window: then what was reserved is of no use."""
_ALL = ""

log = structlog.get_logger(__name__)


class State(NamedTuple):
    """How a limit stands, in its own unit."""

    used: int
    reserved: int
    remaining: int
    resets_at: datetime


class Counters:
    """See the module."""

    def __init__(self, db: Database, feed: Feed, keyring: Keyring, journal: Journal, shipper: Shipper) -> None:
        self._db = db
        self._keyring = keyring
        self._journal = journal
        self._shipper = shipper
        self._accounts: dict[UUID, Account] = {}
        self._by_subject: dict[tuple[BudgetSubject, str], list[Account]] = {}
        self._stale: set[str] = {_ALL}
        """Ids of limits to read; ``_ALL``: every one."""
        self._reading: asyncio.Task[None] | None = None
        self._has_read = False
        self._clock: Callable[[], float] = time.time
        feed.subscribe(self._on_change)

    # --- what calls ask -------------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether a limit has changed and was not read yet: then wait with ``catch_up`` before ``limits_of``."""
        return bool(self._stale) or self._reading is not None

    def limits_of(self, grant: Grant, credential: Credential) -> Limits | None:
        """What calls with this token and this key are held to; ``None``: nothing."""
        if not self._accounts:
            return None
        subjects = (
            (BudgetSubject.TOKEN, grant.token_id),
            (BudgetSubject.USER, str(grant.user_id)),
            (BudgetSubject.TEAM, str(credential.owner.id)),
            (BudgetSubject.SECRET, str(credential.secret_id)),
            (BudgetSubject.PROVIDER, credential.provider),
            (BudgetSubject.DEPLOYMENT, ""),
        )
        found = [account for subject in subjects for account in self._by_subject.get(subject, ())]
        return Limits(found) if found else None

    # --- reading --------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Read what has changed; one reads for all who wait. Raises ``Unavailable``, ``JournalFailed``."""
        while self.is_behind:
            if self._reading is None:
                self._reading = asyncio.get_running_loop().create_task(self._read())
                self._reading.add_done_callback(self._on_read)
            await asyncio.shield(self._reading)

    async def read_now(self) -> None:
        """Read every limit again, also those that the feed has not told of yet."""
        self._stale.add(_ALL)
        await self.catch_up()

    def _on_read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # every waiter has it

    async def _read(self) -> None:
        stale, self._stale = self._stale, set()
        is_read = False
        try:
            ids = None if _ALL in stale else [UUID(budget_id) for budget_id in stale]
            async with self._db.read(Actor.system()) as tx:
                found = await rows.of_ids(tx, ids)
            new = [row for row in found if row.id not in self._accounts]
            if new:
                await self._ship()
            at = self._clock()
            made = await self._made(new, at) if new else {}
            is_read = True
        finally:
            if not is_read:
                self._stale |= stale
        for gone in (set(self._accounts) if ids is None else set(ids)) - {row.id for row in found}:
            self._accounts.pop(gone, None)
        for row in found:
            budget = budget_of(self._keyring, row)
            account = self._accounts.setdefault(row.id, made.get(row.id) or Account(budget, at))
            account.budget = budget
        self._by_subject = {}
        for account in self._accounts.values():
            self._by_subject.setdefault((account.budget.subject, account.budget.subject_id), []).append(account)

    async def _ship(self) -> None:
        """Everything that this machine's journals know gets to the database: whoever waits for a new limit writes no use meanwhile."""
        for _ in range(2):  # uses of this turn of the event loop are written in its next
            await asyncio.sleep(0)
        self._journal.flush()
        until = time.monotonic() + SHIPPED_WITHIN
        wanted = self._journal.seq
        while await self._shipper.ship_once():  # others may go on writing
            async with self._db.read(Actor.system()) as tx:
                writer = await audit.writer(tx, self._journal.writer)
            if self._has_read and writer is not None and writer.shipped_seq >= wanted:
                break
            if time.monotonic() > until:
                raise Unavailable("What calls have used is still on its way to the database.", retry_after=1.0)
        self._has_read = True

    async def _made(self, new: Sequence[Any], at: float) -> dict[UUID, Account]:
        made: dict[UUID, Account] = {}
        async with self._db.read(Actor.system()) as tx:
            for row in new:
                account = made[row.id] = Account(budget_of(self._keyring, row), at)
                account.used, account.unsettled = await rows.used(tx, row, datetime.fromtimestamp(account.start, UTC))
        return made

    def _on_change(self, change: Change) -> None:
        if change.subject == "budget":
            self._stale.add(change.subject_id)
        elif change.subject == EVERYTHING:
            self._stale.add(_ALL)

    # --- looking --------------------------------------------------------------------------------------------------------

    def state(self, budget: Budget) -> State | None:
        """How a limit stands now; ``None``: it is too new to be known."""
        account = self._accounts.get(budget.id)
        if account is None:
            return None
        account.roll(self._clock())
        taken = account.taken()
        reserved = taken - account.used
        return State(account.used, reserved, max(0, budget.amount - taken), datetime.fromtimestamp(account.end, UTC))

    async def turn(self) -> None:
        """A job's: read what has changed, and look for outcomes that have come."""
        await self.catch_up()
        at = self._clock()
        for account in tuple(self._accounts.values()):
            account.roll(at)
            waiting = list(account.unsettled)[:LOOKED_AT]
            if not waiting:
                continue
            start = account.start
            async with self._db.read(Actor.system()) as tx:
                ended = await rows.settled(tx, account.budget.kind, waiting)
            if account.start == start:
                for request_id, amount in ended.items():
                    if account.unsettled.pop(request_id, None) is not None:
                        account.used += amount

    async def prune(self) -> None:
        """A job's: forget reservations that no window reaches."""
        async with self._db.write(Actor.system()) as tx:
            await rows.delete_reservations(tx, datetime.now(UTC) - KEPT_FOR)

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


def reserve(limits: Limits, planned: Plan, provider: str, body: bytes, at: float) -> Hold:
    """Take what a call may use at most. ``body``: as it goes to the provider. Raises ``LimitReached`` and its fellows."""
    if not limits.asks_tokens:
        return limits.reserve(Most(None, None), at)
    asked = bounds.asked(planned.operation, planned.method, body)
    if not asked.is_bounded:
        return limits.reserve(Most(None, None), at)
    window = prices.context_window(provider, planned.model)
    given = window if asked.given is None else asked.given
    made = window if asked.made is None else asked.made
    if given is None or made is None:
        return limits.reserve(Most(None, None), at)
    made *= asked.answers
    cost: int | None = 0 if not given + made else None
    if limits.asks_price and cost is None:
        cost = prices.most_micro_usd(provider, planned.model, given, made, datetime.fromtimestamp(at, UTC))
    return limits.reserve(Most(given + made, cost), at, price_known=cost is not None)


def used_of(usage: Usage, cost_micro_usd: int | None) -> Most:
    """What an outcome says was used."""
    given = usage.input_tokens
    return Most(None if given is None else given + (usage.output_tokens or 0), cost_micro_usd)
