"""Credit while accounts are gone from Valkey, and filled anew from records: nothing passes twice, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.limits.counting import Call, Process, budget, person
from tests.limits.drawing import account, draw, granted, is_here, until
from tests.support.valkey import Valkey

from keybearer.domain import BudgetKind
from keybearer.errors import KeybearerError, LimitReached
from keybearer.gateway import credit
from keybearer.gateway.ready import now
from keybearer.gateway.shared_counts import SharedCounts
from keybearer.usage.limits import Most


async def test_who_owes_a_round_lets_nothing_pass_on_credit(three: Sequence[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be in no record that is read: an account of which it has credit may be gone."""
    ada, bob = person(), person()
    day, month = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_MONTH, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day, month)
    await draw(ada, day, here)
    ship, probes = here.records.ship, []

    async def watched() -> None:
        probes.append(here.wish(ada, Most(1, 1), [day]))
        await ship()

    async def go_on() -> None:
        while True:
            call = here.wish(ada, Most(1, 1), [day])
            await call.answer
            call.end(1, 0)
            await asyncio.sleep(0.02)

    monkeypatch.setattr(here.records, "ship", watched)
    going_on = asyncio.create_task(go_on())
    await until(lambda: account(here, day).until > now())
    await there.wish(bob, Most(1, 1), [month]).answer
    going_on.cancel()
    assert probes
    assert not any(is_here(probe) for probe in probes)
    await granted(probes)
    await draw(ada, day, here)


async def test_lost_memory_lets_nothing_pass_twice(three: Sequence[Process], valkey: Valkey) -> None:
    """Accounts are gone, again and again, while processes let calls pass on what they drew before."""
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 700)
    here, there, other = three
    for each in three:
        await each.keep(day)
    await draw(ada, day, here, there)
    calls: list[Call] = []
    is_over = False

    async def go_on(each: Process) -> None:
        while not is_over:
            call = each.wish(ada, Most(1, 7))
            calls.append(call)
            try:
                await call.answer
            except KeybearerError:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)

    running = [asyncio.create_task(go_on(each)) for each in (here, there)]
    with valkey.client() as client:
        for lose in (lambda: client.delete(*client.keys(f"*{day.id.hex}")), client.flushall):
            await asyncio.sleep(0.1)
            lose()
            await other.take(ada, Most(1, 0))  # filled anew
            shown = await other.state(day)
            assert shown.used + shown.reserved <= 700
    await until(lambda: any(isinstance(call.answer.exception(), LimitReached) for call in calls if call.answer.done()))
    is_over = True
    await asyncio.gather(*running)
    for call in calls:
        assert call.answer.done()
        call.answer.exception()
    assert len([call for call in calls if call.hold is not None]) == 100
    await other.until(day, 0, 700)
    for call in calls:
        if call.hold is not None:
            call.end(1, 1)
    await here.until(day, 100, 0)


def late_fill(of: Process, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold a process between the end of a round and the filling: told that it is there, and letting it go on."""
    assert isinstance(of.counts, SharedCounts)
    fill, is_there, may_go_on = of.counts._fill_from_records, asyncio.Event(), asyncio.Event()

    async def late(accounts: Sequence[credit.Account], n: int) -> None:
        is_there.set()
        await may_go_on.wait()
        await fill(accounts, n)

    monkeypatch.setattr(of.counts, "_fill_from_records", late)
    return is_there, may_go_on


async def test_only_what_was_missing_when_the_round_began_is_filled_after_it(
    three: Sequence[Process], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = person()
    day, month = budget(ada, BudgetKind.USD_DAY, 10_000), budget(ada, BudgetKind.USD_MONTH, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day, month)
    await there.wish(ada, Most(1, 7), [month]).answer
    is_read, may_go_on = late_fill(here, monkeypatch)
    call = here.wish(ada, Most(1, 7))  # waits for the limit of a day
    await asyncio.wait_for(is_read.wait(), 30)
    await granted([there.wish(ada, Most(1, 7), [month]) for _ in range(20)])  # of which no record is in the database
    with valkey.client() as client:
        client.delete(*client.keys(f"*{month.id.hex}"))
    may_go_on.set()
    await call.answer
    await here.until(month, 0, 22 * 7)


async def test_what_was_filled_since_a_round_began_is_not_filled_by_it(
    three: Sequence[Process], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day)
    is_read, may_go_on = late_fill(here, monkeypatch)
    call = here.wish(ada, Most(1, 7))
    await asyncio.wait_for(is_read.wait(), 30)
    await granted([there.wish(ada, Most(1, 7)) for _ in range(20)])  # filled by a round of its own
    with valkey.client() as client:
        client.delete(*client.keys(f"*{day.id.hex}"))
    may_go_on.set()
    await call.answer
    await here.until(day, 0, 21 * 7)
