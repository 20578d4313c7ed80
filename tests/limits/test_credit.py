"""Processes draw ahead of limits that are counted in Valkey: few questions, and every count as if there were one for each call."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.limits.counting import Process, budget, person, process
from tests.limits.drawing import account, draw, granted, is_here, until
from tests.support.valkey import Valkey

from keybearer.domain import BudgetKind
from keybearer.errors import KeybearerError, LimitReached, LimitsUnreachable
from keybearer.gateway import lost, shared_counts
from keybearer.gateway.credit import Account, Credits
from keybearer.gateway.wishes import TOGETHER
from keybearer.usage.limits import Most


@pytest.mark.parametrize("processes", [1, 2, 3])
async def test_a_thousand_calls_take_what_there_is_and_nothing_more(three: Sequence[Process], processes: int) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 300 * 7 + 6)
    running = three[:processes]
    for each in running:
        await each.keep(day)
    await draw(ada, day, *running)
    calls = [running[number % processes].wish(ada, Most(1, 7)) for number in range(1000)]
    passed = await granted(calls)
    assert len(passed) == 300
    assert any(is_here(call) for call in passed)
    await running[-1].until(day, 0, 2100)
    for call in passed:
        call.end(1, 2)
    await running[0].until(day, 600, 0)
    assert (await running[-1].state(day)).remaining == 2106 - 600


@pytest.mark.parametrize("need", [Most(6, 7), Most(6, None), Most(None, 5)])
def test_who_is_short_of_one_limit_takes_nothing_of_the_others(need: Most) -> None:
    ada = person()
    plenty = Account(budget(ada, BudgetKind.REQUESTS_MINUTE, 100), "plenty")
    tokens = Account(budget(ada, BudgetKind.TOKENS_MINUTE, 100), "tokens")
    dollars = Account(budget(ada, BudgetKind.USD_DAY, 100), "dollars")
    for drawn, free in ((plenty, 50), (tokens, 6), (dollars, 6)):
        drawn.free, drawn.until = free, math.inf
    credit = Credits(lambda: None, lambda *_: None)
    assert credit.take("r1", [plenty, tokens, dollars], need) is None
    assert [(drawn.free, drawn.needed) for drawn in (plenty, tokens, dollars)] == [(50, 0), (6, 0), (6, 0)]
    hold = credit.take("r2", [plenty, tokens, dollars], Most(6, 6))
    assert [(drawn.free, drawn.needed) for drawn in (plenty, tokens, dollars)] == [(49, 1), (0, 6), (0, 6)]
    assert hold is not None


async def test_credit_is_drawn_as_soon_as_many_ask(three: Sequence[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 100_000)
    for each in three:
        await each.keep(day)
    first = three[0].wish(ada, Most(1, 7))
    await first.answer
    assert not is_here(first)
    monkeypatch.setattr(shared_counts, "SEEN_EVERY", 600.0)
    await asyncio.sleep(0.5)  # the last looks for long
    calls = []
    for _ in range(40):
        calls.append(three[0].wish(ada, Most(1, 7)))
        await calls[-1].answer
    assert not is_here(calls[0])
    assert any(is_here(call) for call in calls)


async def test_who_is_short_gets_what_others_have_free(three: Sequence[Process]) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    for each in three:
        await each.keep(day)
    here, there, other = three
    await draw(ada, day, here, there)
    held = here.wish(ada, Most(1, 7))
    await held.answer
    assert is_here(held)
    rest = await other.take(ada, Most(1, 10_000 - 7))
    for each in three:  # nobody has anything any more
        assert not await granted([each.wish(ada, Most(1, 1))])
    held.end(1, 3)
    await other.until(day, 3, 10_000 - 7)
    await there.take(ada, Most(1, 4))
    rest.end(1, 0)
    await other.until(day, 3, 4)


async def test_a_silent_process_is_not_waited_for_long(three: Sequence[Process]) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day)
    await draw(ada, day, here)
    drawn = account(here, day)
    for task in here.counts._tasks.values():  # type: ignore[attr-defined]
        task.cancel()
    with pytest.raises(LimitReached) as reached:
        await asyncio.wait_for(there.take(ada, Most(1, 10_000)), 8)
    assert reached.value.retry_after
    await until(lambda: here.wish(ada, Most(1, 1), [day]).hold is None, drawn.until)  # it does not use it either, from now on


async def test_ample_limits_ask_seldom(three: Sequence[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    ada = person()
    limits = [budget(ada, kind, 10**9) for kind in (BudgetKind.USD_DAY, BudgetKind.USD_MONTH, BudgetKind.TOKENS_MINUTE)]
    limits.append(budget(ada, BudgetKind.REQUESTS_MINUTE, 10**6, is_hard=False))
    here = three[0]
    await here.keep(*limits)
    questions = 0
    ask = here.counts._link.ask  # type: ignore[attr-defined]

    async def counted(*asked: Any) -> Any:
        nonlocal questions
        questions += 1
        return await ask(*asked)

    monkeypatch.setattr(here.counts._link, "ask", counted)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    made, before, calls = 0, questions, 0
    while True:
        for _ in range(20):
            (await here.take(ada, Most(20, 50))).end(3, 10)
            made, calls = made + 1, calls + 1
        await asyncio.sleep(0.005)
        if calls == 200:
            if questions - before < 50:
                break
            assert time.monotonic() < deadline, questions
            before, calls = questions, 0
    for one, used in zip(limits, (10, 10, 3, 1), strict=True):
        if one.kind in (BudgetKind.USD_DAY, BudgetKind.USD_MONTH):  # a minute may have ended
            await three[0].until(one, made * used, 0)
    assert (await here.state(limits[0])).remaining == 10**9 - 10 * made


async def test_what_is_free_is_not_shown_as_used(three: Sequence[Process]) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day)
    await draw(ada, day, here)
    assert (await here.state(day))[:3] == (0, 0, 10_000)
    await there.until(day, 0, 0)
    await draw(ada, day, here)
    call = here.wish(ada, Most(1, 7))
    assert is_here(call)
    assert (await here.state(day))[:3] == (0, 7, 9_993)
    await there.until(day, 0, 7)
    call.end(1, 5)
    assert (await here.state(day))[:2] == (5, 0)
    await there.until(day, 5, 0)


async def test_what_is_told_of_many_limits_is_told_at_once(three: Sequence[Process]) -> None:
    """Of more than go together in one question; nobody waits for the next look."""
    ada = person()
    limits = [budget(ada, BudgetKind.USD_DAY, 10_000, is_hard=False) for _ in range(TOGETHER + 6)]
    here, there, _ = three
    for each in (here, there):
        await each.keep(*limits)
    deadline = time.monotonic() + 30
    while not is_here(call := await here.take(ada, Most(1, 7))):
        assert time.monotonic() < deadline
        call.end(1, 0)
        await asyncio.sleep(0.02)
    here.counts._tasks["tick"].cancel()  # type: ignore[attr-defined]
    call.end(1, 3)
    for one in limits:
        await there.until(one, 3, 0)


async def test_what_a_call_settles_is_what_it_counts_for(three: Sequence[Process]) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    here = three[0]
    await here.keep(day)
    used = 0
    for outcome, status, cost, counts in (
        ("ok", 200, 3, 3),
        ("ok", 200, None, 7),
        ("ok", 200, 40, 40),  # more than it could
        ("aborted", 499, None, 7),
        ("aborted", 499, 2, 7),
        ("error", 500, None, 0),
        ("refused", 429, None, 0),
        ("", 0, None, 0),
    ):
        await draw(ada, day, here)
        call = here.wish(ada, Most(1, 7))
        assert is_here(call)
        assert call.hold is not None
        for _ in range(2):  # twice is once
            call.hold.settle(outcome, status, Most(1, cost)) if outcome else call.hold.release()
        used += counts
        await here.until(day, used, 0)


async def test_what_nobody_knew_before_is_counted_where_limits_only_show(three: Sequence[Process]) -> None:
    ada = person()
    month = budget(ada, BudgetKind.USD_MONTH, 5, is_hard=False)
    here, there, _ = three
    for each in (here, there):
        await each.keep(month)
    await draw(ada, month, here)
    calls = [here.wish(ada, Most(None, None)) for _ in range(3)]
    for call in calls:
        assert is_here(call)
        call.end(100, 1000)
    assert is_here(here.wish(ada, Most(1, 10**9)))
    await there.until(month, 3000, 10**9)


async def test_answers_that_are_lost_count_nothing_twice(three: Sequence[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks between a question that was understood and its answer; every third one."""
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 3000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day)
    await draw(ada, day, here)
    link = here.counts._link  # type: ignore[attr-defined]
    ask, asked = link._ask, 0

    async def lossy(*question: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = await ask(*question)
        if asked % 3 == 0:
            raise ConnectionResetError
        return answer

    used, open_still = 0, []
    with monkeypatch.context() as patched:
        patched.setattr(link, "_ask", lossy)
        for number in range(300):
            call = here.wish(ada, Most(1, 7))
            try:
                await call.answer
            except LimitsUnreachable:
                continue
            if number % 10:
                call.end(1, 2)
                used += 2
            else:
                open_still.append(call)
            await asyncio.sleep(0.001)
    await there.until(day, used, 7 * len(open_still))
    rest = 3000 - used - 7 * len(open_still)
    await there.take(ada, Most(1, rest))
    assert not await granted([each.wish(ada, Most(1, 1)) for each in (here, there)])


async def test_a_killed_process_gives_back_what_it_had_free(
    database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "LOST_AFTER", 0)
    monkeypatch.setattr(lost, "LOOKS_EVERY", 1)
    ada = person()
    month = budget(ada, BudgetKind.USD_MONTH, 10_000)
    async with process(database_urls, tmp_path, valkey.url) as here:
        await here.keep(month)
        await here.take(ada, Most(1, 100))
        async with process(database_urls, tmp_path, valkey.url) as there:
            await there.keep(month)
            await draw(ada, month, there)
            known, unknown = there.wish(ada, Most(1, 7)), there.wish(ada, Most(1, 7))
            assert is_here(known)
            assert is_here(unknown)
            await here.until(month, 0, 114)
            known.report(1, 3)
            tasks = list(there.counts._tasks.values())  # type: ignore[attr-defined]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            there.counts.credits._watched.clear()  # type: ignore[attr-defined]  # who is killed gives nothing back
            there.counts.credits._due.clear()  # type: ignore[attr-defined]
        with pytest.raises(LimitReached):
            await here.take(ada, Most(1, 9_800 + 90))
        deadline = time.monotonic() + 30
        while (await here.state(month))[:2] != (3, 107):
            await here.shipper.ship_once()
            await here.counts.turn()
            assert time.monotonic() < deadline, await here.state(month)
            await asyncio.sleep(0.05)
        assert (await here.take(ada, Most(1, 9_890))).hold is not None


async def test_a_window_that_ends_takes_its_credit_along(
    three: Sequence[Process], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = person()
    here, there, _ = three
    for seconds in (3, 8, 20):  # a busy machine may want more
        day = budget(ada, BudgetKind.USD_DAY, 10_000)
        for each in (here, there):
            await each.keep(day)
        end = int(time.time()) + seconds
        with monkeypatch.context() as patched:
            patched.setattr(shared_counts, "window", lambda _kind, _at, end=end: (0.0, float(end)))
            await here.take(ada, Most(1, 0))  # filled
        await draw(ada, day, here)
        call = here.wish(ada, Most(1, 7))
        assert is_here(call)
        with valkey.client() as client:
            if client.time()[0] < end:
                break
    with valkey.client() as client:
        await until(lambda: client.time()[0] >= end)  # before, it may be used
    late = here.wish(ada, Most(1, 0))
    assert not is_here(late)
    await late.answer
    await there.take(ada, Most(1, 11))
    await draw(ada, day, here)
    again = here.wish(ada, Most(1, 7))
    assert is_here(again)
    call.end(1, 5)  # of a window that is over
    await there.until(day, 0, 18)
    again.end(1, 2)
    await there.until(day, 2, 11)


async def test_another_amount_holds_for_what_was_drawn(three: Sequence[Process]) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(day)
    await draw(ada, day, here, there)
    call = here.wish(ada, Most(1, 7))
    assert is_here(call)
    for each in (here, there):
        await each.keep(replace(day, amount=8))
    assert len(await granted([each.wish(ada, Most(1, 1)) for _ in range(3) for each in (here, there)])) == 1
    for each in (here, there):
        await each.keep(replace(day, amount=10_000, is_tampered=True))
        with pytest.raises(KeybearerError, match="changed outside"):
            await each.take(ada, Most(1, 1))
    for each in (here, there):
        await each.keep(day)
        await each.take(ada, Most(1, 7))
    call.end(1, 4)
    await here.counts.keep((), [day.id])
    await there.counts.keep((), [day.id])
    for each in (here, there):
        await each.keep(day)
    assert not account(here, day).free
    await here.take(ada, Most(1, 0))
    await there.until(day, 4, 15)


async def test_nonsense_in_one_account_stops_no_other(three: Sequence[Process], valkey: Valkey) -> None:
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_DAY, 10_000)
    here, there, _ = three
    for each in (here, there):
        await each.keep(one, other)
    await draw(ada, one, here)
    await draw(bob, other, here)
    with valkey.client() as client:
        (key,) = client.keys(f"*{one.id.hex}")
        for spoil in (lambda: client.hset(key, "idle", "nonsense"), lambda: client.hset(key, "used", "-"), client.flushall):
            spoil()
            call = here.wish(ada, Most(1, 7), [one])
            if call.hold is not None:
                call.end(1, 1)
            else:
                call.answer.add_done_callback(lambda answer: answer.exception())
            await draw(bob, other, here)
            await there.until(other, 0, 0)
            await draw(ada, one, here)  # it is filled anew
