"""The access log as a caller may read it: uses and changes, what they tell in their lines made readable.

A member sees what they did, what was done with what they own, and with what a team owns that they lead; an administrator sees
everything (metadata only: no line holds a value of a secret).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from keybearer.audit import lines
from keybearer.domain import Caller
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit as queries
from keybearer.store.queries.audit import Filter, Record

MOST = 500
"""Rows of one page at most."""


@dataclass(frozen=True, slots=True)
class Access:
    """One row of the access log. Text is empty where a record has no such thing."""

    writer_id: UUID
    seq: int
    """With ``writer_id`` it names the record for ever."""
    at: datetime
    kind: str
    """``use`` or ``manage``."""
    action: str
    outcome: str
    """``ok``, ``unknown`` (of a use whose end is not on record), or how it failed."""
    user_id: UUID | None
    owner_id: UUID | None
    secret_id: UUID | None
    request_id: str | None
    token_id: str | None = None
    subject: str = ""
    """Of a change: the id of what was changed."""
    provider: str = ""
    model: str = ""
    operation: str = ""
    key_source: str = ""
    workflow: str = ""
    node: str = ""
    ip: str = ""
    user_agent: str = ""
    detail: dict[str, str] = field(default_factory=dict)


class AccessLog:
    """Pages of the access log."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(
        self, caller: Caller, wanted: Filter, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[Access], str | None]:
        """Return a page, the newest first, and the cursor of the next. ``wanted.seen_by`` is set to the caller's own sight.

        Raises ``Invalid`` for a cursor that is none of ours.
        """
        seen_by = None if caller.is_admin else caller.user_id
        async with self._db.read(Actor.user(caller.user_id, admin=caller.is_admin)) as tx:
            found, following = await queries.records(tx, replace(wanted, seen_by=seen_by), cursor, max(1, min(limit, MOST)))
        return [readable(record) for record in found], following


def readable(record: Record) -> Access:
    """Return a record with what its line tells; a line that cannot be read (``verify`` names it) tells nothing."""
    line = record.line.encode()
    access = Access(
        writer_id=record.writer_id,
        seq=record.seq,
        at=record.at,
        kind=record.kind,
        action=record.action,
        outcome=record.outcome,
        user_id=record.user_id,
        owner_id=record.owner_id,
        secret_id=record.secret_id,
        request_id=record.request_id,
    )
    try:
        if record.kind == "use":
            return _of_use(access, line)
        if record.kind == "manage":
            return _of_change(access, line)
    except ValueError:
        pass
    return access


def _of_use(access: Access, line: bytes) -> Access:
    use = lines.decode_use(line)
    return replace(
        access,
        token_id=use.token_id,
        provider=use.provider,
        model=use.model,
        operation=use.operation,
        key_source=use.source.value,
        workflow=use.workflow,
        node=use.node,
        ip=use.client.ip,
        user_agent=use.client.user_agent,
    )


def _of_change(access: Access, line: bytes) -> Access:
    managed = lines.decode_manage(line)
    client = managed.client
    return replace(
        access,
        token_id=managed.token_id or managed.detail.get("token_id"),
        subject=managed.subject,
        provider=managed.detail.get("provider", ""),
        model=managed.detail.get("model", ""),
        workflow=managed.detail.get("workflow", ""),
        node=managed.detail.get("node", ""),
        ip=client.ip if client else managed.detail.get("ip", ""),
        user_agent=client.user_agent if client else managed.detail.get("user_agent", ""),
        detail=managed.detail,
    )
