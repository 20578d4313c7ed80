"""Callers who state, and providers who claim, more than anybody could use: nobody else's limits, calls or sums suffer from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from tests.audit.audit_samples import outcome
from tests.limits.counting import Call, Person, Process, budget, person, process
from tests.support import valkey as servers
from tests.support.valkey import Valkey

from keybearer.domain import Budget, BudgetKind, Usage
from keybearer.errors import CallUnbounded, LimitReached
from keybearer.gateway.counters import reserve
from keybearer.gateway.plan import Plan
from keybearer.store.db import Actor
from keybearer.store.queries import usage
from keybearer.usage import prices
from keybearer.usage.limits import Most

MODEL = "gpt-4o"
TALK = Plan("openai", "chat.completions", b"POST", None, None, MODEL, MODEL, False, b"/v1/chat/completions", False)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    prices.load()
    with servers.running() as running:
        yield running


@pytest.fixture(params=["memory", "valkey"])
async def desk(
    request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey
) -> AsyncIterator[Process]:
    async with process(database_urls, tmp_path / "journal", valkey.url if request.param == "valkey" else "") as running:
        yield running


def wish(desk: Process, who: Person, limits: Sequence[Budget], stated: int) -> Call:
    """A chat of at most so many tokens, as the gateway asks for it."""
    call = Call(desk, who)
    body = b'{"model":"%b","max_tokens":%d,"messages":[{"role":"user","content":"Hello"}]}' % (MODEL.encode(), stated)
    try:
        reserve(desk.counts.limits([each.id for each in limits]), TALK, "openai", body, call)
    except CallUnbounded as error:
        call.unreserved(error)
    return call


@pytest.mark.parametrize("stated", [10**13, 4 * 10**18, 10**19, 10**40])
async def test_what_no_call_can_use_is_stated_for_nothing(desk: Process, stated: int) -> None:
    """Their sums did not fit where limits are counted: nobody's limit could be read any more, or no question to Valkey was answered."""
    ada, bob = person(), person()
    soft = [budget(ada, kind, 1000, is_hard=False) for kind in (BudgetKind.USD_DAY, BudgetKind.TOKENS_MINUTE)]
    hard = budget(bob, BudgetKind.USD_DAY, 10_000)
    await desk.keep(*soft, hard)
    for _ in range(2):
        calls = [wish(desk, ada, soft, stated) for _ in range(3)]
        another = desk.wish(bob, Most(1, 7), [hard])
        await asyncio.gather(another.answer, *(call.answer for call in calls))
        another.end(1, 7)
        for call in calls:
            gone = outcome(call.request_id, status=499, outcome="aborted", usage=Usage(), cost_micro_usd=None)
            desk.journal.outcome(gone)
    await desk.records.ship()
    later = [budget(ada, BudgetKind.USD_MONTH, 10**12, is_hard=False), budget(bob, BudgetKind.USD_MONTH, 10_000)]
    await desk.keep(*soft, hard, *later)
    await asyncio.gather(desk.wish(bob, Most(1, 1), [hard, later[1]]).answer, desk.wish(ada, Most(1, 1), [later[0]]).answer)
    await desk.until(later[1], 14, 1)
    with pytest.raises(CallUnbounded):
        await wish(desk, bob, [hard], stated).answer


async def test_sums_of_what_providers_claim_have_no_end(desk: Process) -> None:
    ada, bob = person(), person()
    day = budget(ada, BudgetKind.USD_DAY, 10**15)
    await desk.keep(day)
    for _ in range(3):
        call = desk.wish(ada, Most(1, 1), [day])
        await call.answer
        desk.journal.outcome(outcome(call.request_id, usage=Usage(2**62, 2**62), cost_micro_usd=2**62))
    await desk.records.ship()
    month, other = budget(ada, BudgetKind.USD_MONTH, 10**15), budget(bob, BudgetKind.USD_DAY, 100)
    await desk.keep(month, other)
    with pytest.raises(LimitReached):
        await desk.wish(ada, Most(1, 1), [month]).answer
    await desk.wish(bob, Most(1, 1), [other]).answer
    async with desk.records._db.read(Actor.system()) as tx:  # as the page of usage asks
        (found,) = [row for row in await usage.summary(tx, usage.Filter(seen_by=None), ["user"]) if row.requests == 3]
    assert found.cost_micro_usd == found.input_tokens == 3 * 2**62


def test_an_answer_that_comes_to_more_than_anybody_pays_has_no_known_cost() -> None:
    """A provider of somebody's own, under a name that has prices, claims what it likes."""
    prices.load()
    at = time.time()
    assert prices.cost_micro_usd("openai", "o1-pro", Usage(10**12, 10**12), at) is None
    assert prices.cost_micro_usd("openai", MODEL, Usage(10**6, 10**6), at) == 12_500_000
