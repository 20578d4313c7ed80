"""Processes that draw credit ahead, until there is some; and what became of calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tests.limits.counting import Call, Person, Process

from keybearer.domain import Budget
from keybearer.errors import LimitReached
from keybearer.gateway import credit
from keybearer.gateway.credit import CreditHold
from keybearer.gateway.ready import now
from keybearer.gateway.shared_counts import SharedCounts
from keybearer.usage.limits import Most

ASKED = 8
"""Calls that show that a limit is used much."""


def account(of: Process, one: Budget) -> credit.Account:
    assert isinstance(of.counts, SharedCounts)
    return of.counts._accounts[one.id]


async def until(is_so: Callable[[], bool], *what: object) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def draw(who: Person, one: Budget, *of: Process, cost: int = 7) -> None:
    """Calls that cost nothing, until all these processes have credit for some that do, and nothing else is on its way."""
    accounts = [account(each, one) for each in of]
    deadline = time.monotonic() + 30

    def is_enough() -> bool:
        if not all(drawn.free >= cost and drawn.until > now() + 0.1 for drawn in accounts):
            return False
        return not any(each.counts._settles or each.counts._link._in_turn.locked() for each in of)  # type: ignore[attr-defined]

    while not is_enough():
        assert time.monotonic() < deadline, [(drawn.free, drawn.until - now()) for drawn in accounts]
        calls = [each.wish(who, Most(1, cost), [one]) for each in of for _ in range(ASKED)]
        for call in calls:
            await call.answer
            call.end(1, 0)
        for _ in range(40):
            if is_enough():
                break
            await asyncio.sleep(0.01)


def is_here(call: Call) -> bool:
    """Whether a call did not ask Valkey."""
    return isinstance(call.hold, CreditHold)


async def granted(calls: Sequence[Call]) -> list[Call]:
    """Those that may be made; the others have reached the limit."""
    answers = await asyncio.gather(*(call.answer for call in calls), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(refusal, LimitReached) for refusal in refusals), refusals
    return [call for call in calls if call.hold is not None]
