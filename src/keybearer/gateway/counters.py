"""The limits of this deployment, and which of them concern a call. Their counts are elsewhere: ``counts``.

A change of a limit comes by the feed. Whom it concerns, their cached tokens are dropped with it (``credentials``), so their next call
asks anew which limits it is held to, and waits until they are read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

from keybearer.crypto.keyring import Keyring
from keybearer.domain import Budget, BudgetSubject, Credential, Grant, Usage
from keybearer.gateway.counts import Counts, State
from keybearer.gateway.plan import Plan
from keybearer.store.changes import EVERYTHING, Change, Feed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import budgets as rows
from keybearer.usage import bounds, prices
from keybearer.usage.limits import NOTHING, Limits, Most, Reserving
from keybearer.vault.budgets import budget_of

_ALL = ""
_UNKNOWN = NOTHING, True
_MOST = 10**12
"""Tokens of one call, or millionths of a dollar: who states more has stated nothing. Sums of such would fit nowhere where limits are
counted, and stop the counting of everybody's."""


_new_most: Callable[[tuple[int | None, int | None, int]], Most] = partial(tuple.__new__, Most)
"""As ``Most`` itself does, in less than half the time: each limited call needs two."""


class Counters:
    """See the module."""

    def __init__(self, db: Database, feed: Feed, keyring: Keyring, counts: Counts) -> None:
        self._db = db
        self._keyring = keyring
        self._counts = counts
        self._budgets: dict[UUID, Budget] = {}
        self._by_subject: dict[tuple[BudgetSubject, str], list[UUID]] = {}
        self._stale: set[str] = {_ALL}
        """Ids of limits to read; ``_ALL``: every one."""
        self._reading: asyncio.Task[None] | None = None
        feed.subscribe(self._on_change)

    # --- what calls ask -------------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether a limit has changed and was not read yet: then wait with ``catch_up`` before ``limits_of``."""
        return bool(self._stale) or (self._reading is not None and not self._reading.done())

    def limits_of(self, grant: Grant, credential: Credential) -> Limits | None:
        """What calls with this token and this key are held to; ``None``: nothing."""
        if not self._budgets:
            return None
        subjects = (
            (BudgetSubject.TOKEN, grant.token_id),
            (BudgetSubject.USER, str(grant.user_id)),
            (BudgetSubject.TEAM, str(credential.owner.id)),
            (BudgetSubject.SECRET, str(credential.secret_id)),
            (BudgetSubject.PROVIDER, credential.provider),
            (BudgetSubject.DEPLOYMENT, ""),
        )
        found = [budget_id for subject in subjects for budget_id in self._by_subject.get(subject, ())]
        return self._counts.limits(found) if found else None

    # --- reading --------------------------------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Read what has changed; one reads for all who wait. Raises ``Unavailable``, ``JournalFailed``."""
        while self.is_behind:
            # Asked of the task itself: a callback runs after others that may ask, and to wait for what is done lets nobody run.
            if self._reading is None or self._reading.done():
                self._reading = asyncio.get_running_loop().create_task(self._read())
                self._reading.add_done_callback(_retrieve)
            await asyncio.shield(self._reading)

    async def read_now(self) -> None:
        """Read every limit again, also those that the feed has not told of yet."""
        self._stale.add(_ALL)
        await self.catch_up()

    async def _read(self) -> None:
        stale, self._stale = self._stale, set()
        is_read = False
        try:
            ids = None if _ALL in stale else [UUID(budget_id) for budget_id in stale]
            async with self._db.read(Actor.system()) as tx:
                found = {row.id: budget_of(self._keyring, row) for row in await rows.of_ids(tx, ids)}
            gone = (set(self._budgets) if ids is None else set(ids)) - set(found)
            await self._counts.keep(tuple(found.values()), gone)
            is_read = True
        finally:
            if not is_read:
                self._stale |= stale
        for budget_id in gone:
            self._budgets.pop(budget_id, None)
        self._budgets |= found
        self._by_subject = {}
        for budget in self._budgets.values():
            self._by_subject.setdefault((budget.subject, budget.subject_id), []).append(budget.id)

    def _on_change(self, change: Change) -> None:
        if change.subject == "budget":
            self._stale.add(change.subject_id)
        elif change.subject == EVERYTHING:
            self._stale.add(_ALL)

    # --- looking --------------------------------------------------------------------------------------------------------

    async def states(self, budgets: Sequence[Budget]) -> Mapping[UUID, State]:
        """How limits stand now. One that is gone since it was read is left out."""
        if any(budget.id not in self._budgets for budget in budgets):
            await self.read_now()
        return await self._counts.states([budget for budget in budgets if budget.id in self._budgets])

    async def turn(self) -> None:
        """A job's: read what has changed, and look for outcomes that have come."""
        await self.catch_up()
        await self._counts.turn()

    async def close(self) -> None:
        """Stop reading and counting."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._counts.close()


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # every waiter has it


def reserve(limits: Limits, planned: Plan, provider: str, body: bytes, call: Reserving) -> None:
    """Take what a call may use at most. ``body``: as it goes to the provider. Raises ``LimitReached`` and its fellows."""
    at = time.time()
    if not limits.asks_tokens:
        limits.reserve(call, NOTHING, at)
        return
    asked = bounds.asked(planned.operation, planned.method, body)
    most, price_known = _most(asked, provider, planned.model, at if limits.asks_price else None)
    limits.reserve(call, most, at, price_known=price_known)


def _most(asked: bounds.Asked, provider: str, model: str, at: float | None) -> tuple[Most, bool]:
    """The most that a call may use, and whether its price is known. ``at``: when it is to be priced; ``None``: no limit asks."""
    given, made, answers, is_bounded, is_listed = asked
    if is_bounded and (given is None or made is None):
        window = prices.context_window(provider, model)
        given = window if given is None else given
        made = window if made is None else made
    if not is_bounded or given is None or made is None:
        return _UNKNOWN
    made *= answers
    tokens = given + made
    if tokens > _MOST:
        return _UNKNOWN
    cost: int | None = None
    if not tokens:
        cost = 0
    elif at is not None and is_listed:
        cost = prices.most_micro_usd(provider, model, given, made, at)
    if cost is not None and cost > _MOST:
        return Most(tokens, None), True
    return _new_most((tokens, cost, 1)), cost is not None


def used_of(usage: Usage, cost_micro_usd: int | None) -> Most:
    """What an outcome says was used."""
    given = usage.input_tokens
    return _new_most((None if given is None else given + (usage.output_tokens or 0), cost_micro_usd, 1))
