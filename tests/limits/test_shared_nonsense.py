"""Whoever writes nonsense into one limit's account in Valkey has that one filled anew, and stops no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
from tests.limits.counting import Process, budget, person, process
from tests.support.valkey import Valkey

from keybearer.domain import Budget, BudgetKind
from keybearer.gateway import credit, lost
from keybearer.usage.limits import Most

STRANGER = f"={uuid4()}:{uuid4()}"
"""A process that does not run."""


@pytest.fixture
async def here(
    database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Process]:
    """One that draws nothing ahead: each call asks."""
    monkeypatch.setattr(credit, "FEW", 10**9)
    async with process(database_urls, tmp_path, valkey.url) as running:
        yield running


class Place:
    """Where a limit is counted, as whoever can write to Valkey sees it."""

    def __init__(self, valkey: Valkey, one: Budget) -> None:
        self._client = valkey.client()
        (self._key,) = self._client.keys(f"*{one.id.hex}")

    def spoil(self, field: str | bytes, value: str) -> None:
        if field:
            self._client.hset(self._key, field, value)
        else:
            self._client.delete(self._key)
            self._client.set(self._key, value)

    @property
    def is_dropped(self) -> bool:
        return not self._client.exists(self._key)


async def until(is_so: Callable[[], bool], *what: object) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def look_for_the_lost(here: Process, valkey: Valkey) -> None:
    """It is this process's turn."""
    with valkey.client() as client:
        client.delete(*client.keys("*lease") or ["none"])
    await here.counts.turn()


async def test_who_looks_for_the_lost_finds_those_of_other_accounts(
    here: Process, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "LOST_AFTER", 0)
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_DAY, 10_000)
    await here.keep(one, other)
    used = 0
    for field, value in (
        (STRANGER, "1 nonsense 0 0 0"), (STRANGER, "1"), (STRANGER, ""), ("=nonsense", "1 0 0 0 0"), ("=", "1 0 0 0 0"),
        (":nonsense", "nonsense"), (":nonsense", "1@"), (b":\xff", "1@0"), (":\0", "1@0"), ("", "nonsense"),
    ):  # fmt: skip
        await here.wish(ada, Most(1, 1), [one]).answer
        killed = here.wish(bob, Most(1, 7), [other])
        await killed.answer
        killed.report(1, 3)
        used += 3
        await here.records.ship()
        place = Place(valkey, one)
        place.spoil(field, value)
        await look_for_the_lost(here, valkey)
        await here.until(other, used, 0)
        await until(lambda place=place: place.is_dropped, field, value)  # type: ignore[misc]


async def test_who_looks_at_limits_is_told_of_the_others(here: Process, valkey: Valkey) -> None:
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_DAY, 10_000)
    await here.keep(one, other)
    reserved = 0
    for field, value in (
        ("used", "nonsense"), ("used", "nan"), ("reserved", "-nan"), ("credit", "1.5"), ("idle", "9" * 30), ("end", ""),
        ("", "nonsense"),
    ):  # fmt: skip
        await here.wish(ada, Most(1, 1), [one]).answer
        await here.wish(bob, Most(1, 7), [other]).answer  # of which nobody knows but Valkey
        reserved += 7
        place = Place(valkey, one)
        place.spoil(field, value)
        states = await here.counts.states([one, other])
        assert states[other.id][:2] == (0, reserved), (field, value)
        assert states[one.id].used == 0
        assert place.is_dropped


async def test_who_calls_is_answered_as_are_others_who_call(here: Process, valkey: Valkey) -> None:
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_DAY, 10_000)
    await here.keep(one, other)
    await asyncio.gather(here.wish(ada, Most(1, 1), [one]).answer, here.wish(bob, Most(1, 7), [other]).answer)
    made = 1
    for field, value in (("reserved", "1e3"), ("used", "9" * 19), ("recalled", "nan"), ("end", "nonsense"), ("", "nonsense")):
        Place(valkey, one).spoil(field, value)
        await asyncio.gather(here.wish(ada, Most(1, 1), [one]).answer, here.wish(bob, Most(1, 7), [other]).answer)
        made += 1
        await here.until(one, 0, made)
        await here.until(other, 0, 7 * made)


async def test_what_else_a_call_settles_and_what_others_do_is_settled(here: Process, valkey: Valkey) -> None:
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_DAY, 10_000)
    await here.keep(one, other)
    used, settled = 0, 0
    for field, value in (("reserved", "nonsense"), ("used", "1.5"), (":", "nonsense"), ("", "nonsense")):
        both, another = here.wish(ada, Most(1, 7)), here.wish(bob, Most(1, 7), [other])
        await asyncio.gather(both.answer, another.answer)
        place = Place(valkey, one)
        place.spoil(field + both.request_id if field == ":" else field, value)
        both.end(1, 2)
        another.end(1, 3)
        used, settled = used + 5, settled + 2
        await here.until(other, used, 0)
        assert place.is_dropped, (field, value)
        await here.wish(ada, Most(1, 0), [one]).answer
        await here.until(one, settled, 0)


async def test_a_journal_is_looked_at_once_for_all_accounts(
    here: Process, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = person()
    limits = [budget(ada, BudgetKind.USD_MONTH, 10_000) for _ in range(3)]
    await here.keep(*limits)
    await here.take(ada, Most(1, 7))
    for one in limits:
        Place(valkey, one).spoil(STRANGER, "1 0 0 0 0")
    are_complete, asked = here.records.are_complete, []

    async def watched(writers: frozenset[object]) -> bool:
        asked.append(writers)
        return await are_complete(writers)  # type: ignore[arg-type]

    monkeypatch.setattr(here.records, "are_complete", watched)
    await look_for_the_lost(here, valkey)
    assert len(asked) == 1
