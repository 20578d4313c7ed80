"""``/usage``: what calls consumed and cost."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from keybearer.access import policy
from keybearer.api.audit import aware
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.records import MICRO, UsageAnswer, UsageSumAnswer, usage_answer
from keybearer.api.schemas import Limit, Page
from keybearer.domain import Scope
from keybearer.usage.record import Filter, GroupBy, UsageRecords, UsageSum

router = APIRouter(prefix="/usage", tags=["usage"])


@router.get("")
async def list_usage(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    secret_id: UUID | None = None,
    provider: Annotated[str | None, Query(max_length=64)] = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    request_id: Annotated[str | None, Query(max_length=40)] = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[UsageAnswer]:
    """List calls, newest first."""
    policy.require(caller, Scope.USAGE_READ)
    wanted = {"secret_id": secret_id, "provider": provider, "model": model, "request_id": request_id}
    return await usage_answer(services, caller, limit=limit, cursor=cursor, **wanted)


@router.get("/summary")
async def summary(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    by: GroupBy = "day",
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, list[UsageSumAnswer]]:
    """Sum calls by day, provider, model, secret, user, team, token, workflow or node.

    By team: of the team that owns the key; for its owners and admins also what its other members called.
    """
    policy.require(caller, Scope.USAGE_READ)
    led = await services.teams.led(caller) if by == "team" else ()
    wanted = Filter(None, led, since=aware(since), until=aware(until))
    found = await UsageRecords(services.db).summary(caller, (by,), wanted)
    return {"items": [_sum(one) for one in found]}


def _sum(one: UsageSum) -> UsageSumAnswer:
    return UsageSumAnswer(
        key=one.group[0],
        requests=one.requests,
        failed=one.failed,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cached_tokens=one.cached_tokens,
        reasoning_tokens=one.reasoning_tokens,
        cost_usd=one.cost_micro_usd / MICRO,
        unknown_cost=one.unpriced,
    )
