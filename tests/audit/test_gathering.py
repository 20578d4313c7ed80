"""What is gathered over turns of the event loop."""

from __future__ import annotations

import asyncio

from keybearer.audit.gathering import Gathering


async def test_what_comes_alone_waits_for_one_turn() -> None:
    dealt: list[list[int]] = []
    gathering = Gathering(dealt.append)
    gathering.add(1)
    assert dealt == []
    await asyncio.sleep(0)
    assert dealt == [[1]]


async def test_several_wait_for_a_second_turn_and_for_no_third() -> None:
    dealt: list[list[int]] = []
    gathering = Gathering(dealt.append)
    gathering.add(1)
    gathering.add(2)
    await asyncio.sleep(0)
    assert dealt == []
    gathering.add(3)
    await asyncio.sleep(0)
    assert dealt == [[1, 2, 3]]
    gathering.add(4)
    await asyncio.sleep(0)
    assert dealt == [[1, 2, 3], [4]]


async def test_what_dealing_brings_is_dealt_with_next() -> None:
    dealt: list[list[int]] = []

    def deal(items: list[int]) -> None:
        dealt.append(items)
        if items == [1]:
            gathering.add(2)

    gathering: Gathering[int] = Gathering(deal)
    gathering.add(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert dealt == [[1], [2]]
