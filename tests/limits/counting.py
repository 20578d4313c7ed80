"""Processes that count, without a gateway: a journal, a feed and counts each, on one database; and calls that want to be made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tests.audit.audit_samples import Person, outcome, person

from keybearer.audit.journal import Journal
from keybearer.audit.lines import repeated_use_line, reserving_tail, use_tail
from keybearer.audit.ship import Shipper
from keybearer.domain import Budget, BudgetKind, BudgetSubject, Usage
from keybearer.errors import KeybearerError
from keybearer.gateway.counts import Counts, Records, State
from keybearer.gateway.own_counts import OwnCounts
from keybearer.gateway.shared_counts import SharedCounts
from keybearer.store.changes import Feed
from keybearer.store.db import Database
from keybearer.usage.limits import Hold, Most
from keybearer.vault.holders import KeyHolder

DEPLOYMENT = UUID(int=77)


def budget(who: Person, kind: BudgetKind, amount: int, **more: Any) -> Budget:
    """A limit of somebody's own."""
    now = datetime.now(UTC)
    made = Budget(
        id=uuid4(), owner_id=who.user_id, subject=BudgetSubject.USER, subject_id=str(who.user_id), kind=kind, amount=amount,
        is_hard=True, by_admin=False, created_by=who.user_id, created_at=now, updated_at=now,
    )  # fmt: skip
    return replace(made, **more)


class Call:
    """A call that wants to be made."""

    def __init__(self, process: Process, who: Person) -> None:
        self.request_id = uuid4().hex
        self.process = process
        self.who = who
        self.answer: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self.hold: Hold | None = None

    def reserved(self, hold: Hold) -> None:
        """As the gateway does: the use is on record before anything else happens."""
        self.hold = hold
        tail = reserving_tail(hold.most.tokens, hold.most.micro_usd, use_tail(self.who.use(self.request_id)))
        self.process.journal.depart(repeated_use_line(self.request_id, time.time(), tail), self)
        self.answer.set_result(hold)

    def unreserved(self, error: KeybearerError) -> None:
        self.answer.set_exception(error)

    def depart(self, seq: int) -> None:
        pass

    def stay(self, error: KeybearerError) -> None:
        raise error

    def end(self, tokens: int | None, micro_usd: int | None = None) -> None:
        """The answer has come, and cost so much."""
        assert self.hold is not None
        self.report(tokens, micro_usd)
        self.hold.settle("ok", 200, Most(tokens, micro_usd))

    def report(self, tokens: int | None, micro_usd: int | None = None) -> None:
        """The outcome is on record, and nothing more."""
        self.process.journal.outcome(
            outcome(self.request_id, usage=Usage(tokens, 0, None, None, None, ""), cost_micro_usd=micro_usd)
        )


@dataclass
class Process:
    """One that counts."""

    counts: Counts
    journal: Journal
    shipper: Shipper
    feed: Feed
    records: Records
    budgets: list[Budget] = field(default_factory=list)

    async def keep(self, *budgets: Budget) -> None:
        self.budgets = list(budgets)
        await self.counts.keep(budgets, ())

    def wish(self, who: Person, most: Most, budgets: Sequence[Budget] | None = None) -> Call:
        """Ask, and do not wait."""
        call = Call(self, who)
        try:
            self.counts.limits([each.id for each in budgets or self.budgets]).reserve(call, most, time.time())
        except KeybearerError as error:
            call.unreserved(error)
        return call

    async def take(self, who: Person, most: Most) -> Call:
        call = self.wish(who, most)
        await call.answer
        return call

    async def state(self, one: Budget) -> State:
        return (await self.counts.states([one]))[one.id]

    async def until(self, one: Budget, used: int, reserved: int) -> None:
        """Wait until a limit stands so."""
        deadline = time.monotonic() + 30
        while (await self.state(one))[:2] != (used, reserved):
            assert time.monotonic() < deadline, await self.state(one)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def process(urls: tuple[str, str], directory: Path, url: str = "") -> AsyncIterator[Process]:
    """One that serves, on the database at ``urls``: with ``url`` it counts in Valkey."""
    async with AsyncExitStack() as stack:
        db = await Database.open(*urls)
        stack.push_async_callback(db.close)
        holder = KeyHolder(db)
        await holder.register()
        stack.push_async_callback(holder.close)
        feed = Feed(db, interval=0.05)
        journal = await Journal.open(db, directory, "journal")
        stack.push_async_callback(journal.close)
        stack.push_async_callback(asyncio.sleep, 0.01)  # uses that wait are written in a turn or two
        shipper = Shipper(db, directory, journal)
        records = Records(db, journal, shipper)
        await feed.start()
        stack.push_async_callback(feed.stop)
        counts: Counts = (
            SharedCounts(url, DEPLOYMENT, records, feed, holder.id, holder.running) if url else OwnCounts(records, holder.claim)
        )
        stack.push_async_callback(counts.close)
        yield Process(counts, journal, shipper, feed, records)


__all__ = ["DEPLOYMENT", "Call", "Person", "Process", "budget", "person", "process"]
