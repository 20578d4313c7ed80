"""Audit and usage records as the API and the console show them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from keybearer.api.schemas import Answer, Page
from keybearer.domain import Caller
from keybearer.services import Services
from keybearer.store.db import Actor
from keybearer.store.queries import audit as audit_queries
from keybearer.store.queries import usage as usage_queries

MICRO = 1_000_000


class AuditAnswer(BaseModel):
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
    detail: dict[str, str] = {}
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


def seen_by(caller: Caller) -> UUID | None:
    """Return whose records the caller sees; ``None``: everybody's, for administrators."""
    return None if caller.is_admin else caller.user_id


def actor_of(caller: Caller) -> Actor:
    """Return whose eyes a listing has."""
    return Actor.user(caller.user_id, admin=caller.is_admin)


def _of_record(record: audit_queries.Record) -> AuditAnswer:
    line: dict[str, Any] = json.loads(record.line) if record.line else {}
    client = line.get("client") or {}
    return AuditAnswer(
        at=record.at,
        kind=record.kind,
        action=record.action,
        outcome=record.outcome,
        user_id=record.user_id,
        secret_id=record.secret_id,
        request_id=record.request_id,
        subject=line.get("subject", ""),
        provider=line.get("provider", "") or line.get("detail", {}).get("provider", ""),
        model=line.get("model", ""),
        operation=line.get("operation", ""),
        key_source=line.get("source", ""),
        token_id=line.get("token_id"),
        workflow=line.get("workflow", ""),
        node=line.get("node", ""),
        ip=client.get("ip", ""),
        user_agent=client.get("user_agent", ""),
        detail=line.get("detail", {}),
        writer_id=record.writer_id,
        seq=record.seq,
    )


async def audit_answer(services: Services, caller: Caller, *, limit: int, cursor: str | None, **wanted: Any) -> Page[AuditAnswer]:
    """Return a page of audit records, newest first; ``wanted``: fields of ``queries.audit.Filter``."""
    chosen = audit_queries.Filter(seen_by=seen_by(caller), **wanted)
    async with services.db.read(actor_of(caller)) as tx:
        found, following = await audit_queries.records(tx, chosen, cursor, limit)
    return Page(items=[_of_record(record) for record in found], next_cursor=following)


async def usage_answer(services: Services, caller: Caller, *, limit: int, cursor: str | None, **wanted: Any) -> Page[UsageAnswer]:
    """Return a page of usage records, newest first; ``wanted``: fields of ``queries.usage.Filter``."""
    chosen = usage_queries.Filter(seen_by=seen_by(caller), **wanted)
    async with services.db.read(actor_of(caller)) as tx:
        found, following = await usage_queries.records(tx, chosen, cursor, limit)
    return Page(items=[_usage(record) for record in found], next_cursor=following)


def _usage(record: usage_queries.UsageRecord) -> UsageAnswer:
    values = {name: getattr(record, name) for name in UsageAnswer.model_fields if name != "cost_usd"}
    return UsageAnswer(**values, cost_usd=usd(record.cost_micro_usd))


def usd(micro: int | None) -> float | None:
    """Convert millionths of a US dollar to dollars."""
    return None if micro is None else micro / MICRO
