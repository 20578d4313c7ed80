"""``/audit``: the access log, newest first. A member sees what they did and what was done with what they own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from keybearer.access import policy
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.records import AuditAnswer, audit_answer
from keybearer.api.schemas import Limit, Page
from keybearer.domain import Scope

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("")
async def list_records(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    user_id: UUID | None = None,
    secret_id: UUID | None = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    outcome: Annotated[str | None, Query(max_length=40)] = None,
    request_id: Annotated[str | None, Query(max_length=40)] = None,
    provider: Annotated[str | None, Query(max_length=64)] = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    workflow: Annotated[str | None, Query(max_length=200)] = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[AuditAnswer]:
    """List uses and changes."""
    policy.require(caller, Scope.AUDIT_READ)
    wanted = {"user_id": user_id, "secret_id": secret_id, "action": action, "outcome": outcome, "request_id": request_id}
    said = {"provider": provider, "model": model, "workflow": workflow}
    times = {"since": aware(since), "until": aware(until)}
    return await audit_answer(services, caller, limit=limit, cursor=cursor, **wanted, **said, **times)


def aware(moment: datetime | None) -> datetime | None:
    """Take a time without a zone as UTC, as the documentation says."""
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None
