"""Answers that have come as a whole and leave together."""

from __future__ import annotations

import asyncio

import pytest
from tests.plane.conftest import CHAT, KEY, House
from tests.plane.wire import Received, until

from keybearer.audit.gathering import Gathering
from keybearer.gateway.exchange import Exchange, leave_together
from keybearer.gateway.relay import Relay


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def leaving(house: House) -> list[list[Exchange]]:
    """The groups in which answers left; the provider answers nobody before four have asked."""
    groups: list[list[Exchange]] = []

    def deal(exchanges: list[Exchange]) -> None:
        groups.append(exchanges)
        leave_together(exchanges)

    async def all_at_once(request: Received) -> None:
        await until(lambda: len(house.provider.received) >= 4)
        request.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(CHAT) + CHAT
        )

    house.provider.script = all_at_once
    house.plane.answers = Gathering(deal)
    return groups


def outcomes(house: House) -> list[str]:
    return [line["outcome"] for line in house.lines() if line["kind"] == "outcome" and line["outcome"] != "refused"]


async def test_each_caller_has_its_own_answer(house: House, leaving: list[list[Exchange]]) -> None:
    connections = [await house.connect() for _ in range(4)]
    for connection in connections:
        await connection.send(house.request())
    answers = [await connection.answer() for connection in connections]
    assert [(answer.status, answer.body) for answer in answers] == [(200, CHAT)] * 4
    assert len({answer["x-keybearer-request-id"] for answer in answers}) == 4
    assert sum(map(len, leaving)) == 4
    await until(lambda: outcomes(house) == ["ok"] * 4)


async def test_a_mistake_of_ours_in_one_answer_ends_that_one(
    house: House, leaving: list[list[Exchange]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leave, left = Relay.leave, []

    def crash_once(relay: Relay) -> None:
        left.append(relay)
        if len(left) == 1:
            msg = f"a mistake that tells of {KEY}"
            raise RuntimeError(msg)
        leave(relay)

    monkeypatch.setattr(Relay, "leave", crash_once)
    connections = [await house.connect() for _ in range(4)]
    for connection in connections:
        await connection.send(house.request())
    answers = await asyncio.gather(*(connection.answer() for connection in connections), return_exceptions=True)
    assert [getattr(answer, "status", None) for answer in answers].count(200) == 3
    assert "RuntimeError" in caplog.text
    assert KEY not in caplog.text
    await until(lambda: sorted(outcomes(house)) == ["failed", "ok", "ok", "ok"])
    assert not house.plane.budget.held
    assert leaving


async def test_who_leaves_before_its_answer_does_pays_for_what_was_used_once(house: House) -> None:
    held: list[Exchange] = []
    house.plane.answers = Gathering(held.extend)
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: held)
    connection.writer.write_eof()
    await until(lambda: outcomes(house) == ["ok"])
    leave_together(held)
    assert outcomes(house) == ["ok"]
    (outcome,) = [line for line in house.lines() if line["kind"] == "outcome" and line["outcome"] == "ok"]
    assert (outcome["status"], outcome["usage"]["input_tokens"]) == (200, 9)


async def test_an_answer_that_is_there_when_the_server_stops_still_leaves(house: House) -> None:
    held: list[Exchange] = []
    house.plane.answers = Gathering(held.extend)
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: held)
    held[0].cut_off()
    leave_together(held)
    answer = await connection.answer()
    assert (answer.status, answer.body) == (200, CHAT)
    assert outcomes(house) == ["ok"]
