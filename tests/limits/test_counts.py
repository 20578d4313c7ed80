"""What calls reserve and settle, wherever it is counted: the same stories in a process's memory and in Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.limits.conftest import early_in_a_minute
from tests.limits.counting import Call, Person, Process, budget, person, process

from keybearer.crypto.keyring import Keyring
from keybearer.domain import Budget, BudgetKind
from keybearer.errors import CallUnbounded, KeybearerError, LimitExceeded, LimitReached, LimitTampered
from keybearer.gateway.counters import Counters
from keybearer.gateway.own_counts import OwnCounts
from keybearer.usage.limits import Most
from keybearer.vault.holders import KeyHolder


@pytest.fixture(params=["memory", "valkey"])
async def desk(request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Process]:
    url = request.getfixturevalue("valkey").url if request.param == "valkey" else ""
    async with process(database_urls, tmp_path / "journal", url) as running:
        yield running


async def refusal(desk: Process, who: Person, most: Most) -> KeybearerError:
    with pytest.raises(KeybearerError) as refused:
        await desk.take(who, most)
    return refused.value


async def test_what_is_taken_is_settled_by_what_was_used(desk: Process) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 10_000)
    await desk.keep(day)
    call = await desk.take(ada, Most(1000, 6000))
    assert (await desk.state(day))[:3] == (0, 6000, 4000)
    assert isinstance(await refusal(desk, ada, Most(1000, 4001)), LimitReached)
    other = await desk.take(ada, Most(1000, 4000))
    call.end(10, 60)
    await desk.until(day, 60, 4000)
    call.end(10, 60)  # twice is once
    other.answer.result().release()
    await desk.until(day, 60, 0)


async def test_all_limits_are_taken_from_or_none(desk: Process) -> None:
    early_in_a_minute(10)
    ada = person()
    wide, narrow = budget(ada, BudgetKind.TOKENS_MINUTE, 100), budget(ada, BudgetKind.REQUESTS_MINUTE, 1)
    await desk.keep(wide, narrow)
    call = await desk.take(ada, Most(40, None))
    error = await refusal(desk, ada, Most(40, None))
    assert "requests a minute" in error.message
    assert error.retry_after is not None
    assert 1 <= error.retry_after <= 60
    assert (await desk.state(wide))[:2] == (0, 40)
    call.end(7)
    await desk.until(wide, 7, 0)
    await desk.until(narrow, 1, 0)


@pytest.mark.parametrize(
    ("error", "most", "more"),
    [
        (LimitExceeded, Most(1, 101), {}),
        (CallUnbounded, Most(None, None), {}),
        (LimitTampered, Most(1, 1), {"is_tampered": True, "is_hard": False}),
    ],
)
async def test_in_doubt_a_hard_limit_refuses(
    desk: Process, error: type[KeybearerError], most: Most, more: dict[str, Any]
) -> None:
    ada = person()
    await desk.keep(budget(ada, BudgetKind.USD_DAY, 100, **more))
    refused = await refusal(desk, ada, most)
    assert type(refused) is error
    assert refused.hint


async def test_a_soft_limit_only_shows(desk: Process) -> None:
    ada = person()
    soft = budget(ada, BudgetKind.USD_MONTH, 5, is_hard=False)
    await desk.keep(soft)
    call = await desk.take(ada, Most(None, None))
    call.end(3, 7)
    await desk.until(soft, 7, 0)
    await desk.take(ada, Most(1, 10**15))
    await desk.until(soft, 7, 10**15)


async def test_another_amount_holds_at_once_and_a_lifted_limit_is_forgotten(desk: Process) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 100)
    await desk.keep(day)
    await desk.take(ada, Most(1, 100))
    assert isinstance(await refusal(desk, ada, Most(1, 1)), LimitReached)
    day = replace(day, amount=101)
    await desk.keep(day)
    await desk.take(ada, Most(1, 1))
    await desk.counts.keep((), [day.id])
    await desk.keep(day)  # set again, it counts what calls have used since
    await desk.take(ada, Most(1, 0))
    await desk.until(day, 0, 101)


async def test_a_limit_begins_with_what_was_used_before(desk: Process, database_urls: tuple[str, str], tmp_path: Path) -> None:
    ada = person()
    day, other = budget(ada, BudgetKind.USD_DAY, 1000), budget(ada, BudgetKind.USD_MONTH, 10_000)
    await desk.keep(day)
    done, open_still = await desk.take(ada, Most(1, 300)), await desk.take(ada, Most(1, 500))
    done.end(1, 20)
    await desk.until(day, 20, 500)
    await desk.keep(day, other)
    await desk.take(ada, Most(1, 100))
    await desk.until(other, 20, 600)
    open_still.end(1, 30)
    await desk.until(day, 50, 100)
    await outcomes_arrive(desk)
    await desk.until(other, 50, 100)


async def outcomes_arrive(desk: Process) -> None:
    """Ship, and look, as the jobs do: twice what a process may have to wait for its turn to look."""
    await desk.records.ship()
    for _ in range(50):
        await desk.counts.turn()
        await asyncio.sleep(0.2)
        if all([(await desk.state(each)).reserved <= 100 for each in desk.budgets]):
            return


async def test_a_thousand_at_once_take_what_there_is(desk: Process) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 100 * 7 + 3)
    await desk.keep(day)
    calls: list[Call] = [desk.wish(ada, Most(1, 7)) for _ in range(1000)]
    answers = await asyncio.gather(*(call.answer for call in calls), return_exceptions=True)
    assert sum(isinstance(answer, LimitReached) for answer in answers) == 900
    assert (await desk.state(day))[:3] == (0, 700, 3)


class Woken(OwnCounts):
    """Counts that let somebody ask in the very moment in which a reading ends."""

    ended: asyncio.Event

    async def keep(self, budgets: Sequence[Budget], gone: Iterable[UUID]) -> None:
        await super().keep(budgets, gone)
        self.ended.set()


async def test_who_asks_as_a_reading_ends_holds_up_nobody(database_urls: tuple[str, str], tmp_path: Path) -> None:
    """The event loop once stood still: the one that asked waited for what was done, and nobody could say that it was."""
    async with process(database_urls, tmp_path / "journal") as running, asyncio.timeout(10):
        db = running.records._db
        counts = Woken(running.records, KeyHolder(db).claim)
        counts.ended = asyncio.Event()
        counters = Counters(db, running.feed, keyring=Keyring.__new__(Keyring), counts=counts)

        async def ask() -> None:
            await counts.ended.wait()
            await counters.catch_up()

        asking = asyncio.create_task(ask())
        await counters.catch_up()
        await asking
        assert not counters.is_behind
        await counters.close()
