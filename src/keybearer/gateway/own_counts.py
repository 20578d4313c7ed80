"""The counts of limits in this process's memory, for the one process that counts.

An account begins with what usage records of its window say. What has no outcome yet counts in full, and is looked at again until
it has one. From then on calls reserve and settle here, on the event loop's thread, so that no two can take the same remainder.

Two processes would each count for themselves. So a process counts by a *claim*: that no older one runs. Without it hard limits
refuse, and when it is had again, the database is read anew.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from uuid import UUID

import structlog

from keybearer.domain import Budget
from keybearer.errors import LimitsUnshared
from keybearer.gateway.counts import Records, State, state_of
from keybearer.gateway.ready import now
from keybearer.usage.limits import Account, Limits, Most, Reserving, take

LOOKED_AT = 1000
"""Uses without an outcome that are asked for at once."""

log = structlog.get_logger(__name__)


class OwnCounts:
    """See the module. ``claim`` tells for how many seconds this process is the only one that counts; 0: it is not."""

    def __init__(self, records: Records, claim: Callable[[], Awaitable[float]]) -> None:
        self._records = records
        self._claim = claim
        self._claimed_until = 0.0
        self._is_second = False
        self._accounts: dict[UUID, Account] = {}
        self._clock: Callable[[], float] = time.time

    @property
    def counts(self) -> bool:
        """Whether calls are counted here, and nowhere else."""
        return now() < self._claimed_until

    def limits(self, budget_ids: Sequence[UUID]) -> Limits:
        """See ``Counts``."""
        return OwnLimits(self, [self._accounts[budget_id] for budget_id in budget_ids])

    async def keep(self, budgets: Sequence[Budget], gone: Iterable[UUID]) -> None:
        """See ``Counts``. Whoever waits for a new limit writes no use meanwhile."""
        new = [budget for budget in budgets if budget.id not in self._accounts]
        if new:
            await self._renew()
            await self._records.ship()
            at = self._clock()
            found = await self._records.used(new, at)
            for budget in new:
                account = self._accounts[budget.id] = Account(budget, at)
                account.begin(at, found[budget.id].settled, found[budget.id].unsettled)
        for budget_id in gone:
            self._accounts.pop(budget_id, None)
        for budget in budgets:
            self._accounts[budget.id].hold_to(budget)

    async def states(self, budgets: Iterable[Budget]) -> Mapping[UUID, State]:
        """See ``Counts``. Where another process counts, records alone say."""
        at = self._clock()
        if not self.counts:
            return await self._records.states(budgets, at)
        found: dict[UUID, State] = {}
        for budget in budgets:
            account = self._accounts.get(budget.id)
            if account is not None:
                account.roll(at)
                found[budget.id] = state_of(budget, account.used, account.counted - account.used, at)
        return found

    async def turn(self) -> None:
        """See ``Counts``: renew the claim, and look for outcomes that have come."""
        if not self._accounts:
            return
        await self._renew()
        at = self._clock()
        for account in tuple(self._accounts.values()):
            account.roll(at)
            waiting = list(account.unsettled)[:LOOKED_AT]
            if not waiting:
                continue
            counted_in = account.round
            ended = await self._records.settled(account.budget.kind, waiting)
            if account.round == counted_in:
                for request_id, amount in ended.items():
                    account.hear(request_id, amount)

    async def close(self) -> None:
        """See ``Counts``."""

    async def _renew(self) -> None:
        """Claim for another while to be the one that counts; begin anew where that was in doubt."""
        sent, had = now(), self.counts
        lasts = await self._claim()
        if lasts <= 0:
            self._claimed_until = 0.0
            if not self._is_second:
                log.warning(
                    "another process serves this deployment and counts its limits: calls that are limited are refused here"
                )
            self._is_second = True
            return
        if not had and self._accounts:
            await self._begin_anew()
        self._claimed_until = sent + lasts
        if self._is_second:
            log.info("limits are counted here now")
        self._is_second = False

    async def _begin_anew(self) -> None:
        await self._records.ship()
        at = self._clock()
        accounts = tuple(self._accounts.values())
        found = await self._records.used([account.budget for account in accounts], at)
        for account in accounts:
            account.begin(at, found[account.budget.id].settled, found[account.budget.id].unsettled)


class OwnLimits(Limits):
    """Limits whose counts are here."""

    __slots__ = ("_accounts", "_counts")

    def __init__(self, counts: OwnCounts, accounts: Sequence[Account]) -> None:
        super().__init__(account.budget.kind for account in accounts)
        self._counts = counts
        self._accounts = accounts

    def reserve(self, call: Reserving, most: Most, at: float, *, price_known: bool = True) -> None:
        """See ``Limits``. Raises ``LimitsUnshared`` where another process counts."""
        if not self._counts.counts and any(account.budget.is_hard for account in self._accounts):
            raise LimitsUnshared
        call.reserved(take(self._accounts, most, at, price_known=price_known))
