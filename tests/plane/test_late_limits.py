"""Calls that wait until somebody else has counted: let pass, refused, or left by their clients meanwhile."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.plane.conftest import House
from tests.plane.wire import until

from keybearer.domain import BudgetKind
from keybearer.errors import LimitReached, LimitsUnreachable
from keybearer.usage.limits import NOTHING, Limits, Most, Reserving


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


class Hold:
    """What it becomes of a reservation."""

    def __init__(self) -> None:
        self.most = Most(100, 7)
        self.ends: list[str] = []

    def settle(self, outcome: str, status: int, used: Most) -> None:
        assert used != NOTHING
        self.ends.append(f"{outcome} {status}")

    def release(self) -> None:
        self.ends.append("released")


class Late(Limits):
    """Answers when a test says so."""

    def __init__(self) -> None:
        super().__init__([BudgetKind.REQUESTS_MINUTE])
        self.calls: list[Reserving] = []

    def reserve(self, call: Reserving, most: Most, at: float, *, price_known: bool = True) -> None:
        self.calls.append(call)


@pytest.fixture
def late(house: House, monkeypatch: pytest.MonkeyPatch) -> Late:
    made = Late()
    monkeypatch.setattr(house.plane.counters, "limits_of", lambda *_: made)
    return made


async def test_a_call_goes_on_where_it_waited(house: House, late: Late) -> None:
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: late.calls)
    await asyncio.sleep(0.05)
    assert house.provider.received == []
    assert house.lines() == []
    hold = Hold()
    late.calls[0].reserved(hold)
    assert (await connection.answer()).status == 200
    await until(lambda: hold.ends)
    assert hold.ends == ["ok 200"]
    use = house.lines()[0]
    assert (use["reserved_tokens"], use["reserved_micro_usd"]) == (100, 7)
    assert use["request_id"] == late.calls[0].request_id


@pytest.mark.parametrize(("error", "status"), [(LimitsUnreachable(retry_after=1.0), 503), (LimitReached(retry_after=9.0), 429)])
async def test_a_refusal_that_comes_late_is_answered(
    house: House, late: Late, error: LimitsUnreachable | LimitReached, status: int
) -> None:
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: late.calls)
    late.calls[0].unreserved(error)
    answer = await connection.answer()
    assert answer.status == status
    assert json.loads(answer.body)["error"]["code"] == error.code
    assert answer["retry-after"]
    assert house.provider.received == []
    assert house.lines() == []
    assert house.plane.budget.held == 0


@pytest.mark.parametrize("is_granted", [True, False])
async def test_a_client_that_leaves_meanwhile_has_taken_nothing(house: House, late: Late, is_granted: bool) -> None:  # noqa: FBT001
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: late.calls)
    connection.writer.transport.abort()
    await until(lambda: not house.server.server_state.connections)
    hold = Hold()
    if is_granted:
        late.calls[0].reserved(hold)
        assert hold.ends == ["released"]
    else:
        late.calls[0].unreserved(LimitsUnreachable())
    assert house.provider.received == []
    assert house.lines() == []
    assert house.plane.budget.held == 0
