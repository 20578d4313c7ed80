"""Audit and usage records as the API and the console show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from keybearer.api.schemas import Answer, Page
from keybearer.audit.access_log import AccessLog
from keybearer.domain import Caller
from keybearer.services import Services
from keybearer.store.queries.audit import Filter as AuditFilter
from keybearer.usage.record import Filter, UsageRecord, UsageRecords

MICRO = 1_000_000


class AuditAnswer(Answer):
    """One line of the access log: a use of a key, or a change to what is kept."""

    at: datetime
    kind: str
    action: str
    """``noun.verb``; ``secret.use`` for a use."""
    operation: str = ""
    """Of a use: what the key was used for, for example ``chat.completions``."""
    outcome: str
    """``ok``, an error code, or ``unknown`` as long as a use's outcome has not arrived."""
    user_id: UUID | None
    secret_id: UUID | None
    request_id: str | None
    subject: str = ""
    provider: str = ""
    model: str = ""
    key_source: str = ""
    token_id: str | None = None
    workflow: str = ""
    node: str = ""
    ip: str = ""
    user_agent: str = ""
    detail: dict[str, str]
    writer_id: UUID
    seq: int


class UsageAnswer(Answer):
    """What one call consumed. ``null``: unknown, never 0."""

    request_id: str
    at: datetime
    user_id: UUID
    token_id: str
    secret_id: UUID
    owner_id: UUID
    """Who paid."""
    key_source: str
    provider: str
    model: str
    operation: str
    streamed: bool
    workflow: str
    node: str
    outcome: str
    status: int | None
    duration_ms: float | None
    first_byte_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: float | None


class UsageSumAnswer(BaseModel):
    """The sum of one group of calls."""

    key: str
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float
    """Of the calls whose cost is known."""
    unknown_cost: int
    """Calls whose cost is not known."""


async def audit_answer(services: Services, caller: Caller, *, limit: int, cursor: str | None, **wanted: Any) -> Page[AuditAnswer]:
    """Return a page of what the caller may see of the access log; ``wanted``: fields of ``queries.audit.Filter``."""
    seen = AuditFilter(None, await services.teams.led(caller), **wanted)
    found, following = await AccessLog(services.db).page(caller, seen, cursor, limit)
    return Page(items=[AuditAnswer.model_validate(access) for access in found], next_cursor=following)


async def usage_answer(services: Services, caller: Caller, *, limit: int, cursor: str | None, **wanted: Any) -> Page[UsageAnswer]:
    """Return a page of the usage the caller may see; ``wanted``: fields of ``queries.usage.Filter``."""
    seen = Filter(None, await services.teams.led(caller), **wanted)
    found, following = await UsageRecords(services.db).page(caller, seen, cursor, limit)
    return Page(items=[_usage(record) for record in found], next_cursor=following)


def _usage(record: UsageRecord) -> UsageAnswer:
    values = {name: getattr(record, name) for name in UsageAnswer.model_fields if name != "cost_usd"}
    return UsageAnswer(**values, cost_usd=usd(record.cost_micro_usd))


def usd(micro: int | None) -> float | None:
    """Convert millionths of a US dollar to dollars."""
    return None if micro is None else micro / MICRO
