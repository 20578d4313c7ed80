"""What retention takes from audit records, and what is due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import audit_record, audit_sealed

EMPTIED: dict[str, Any] = {
    "at": datetime(1970, 1, 1, tzinfo=UTC),
    "kind": "outcome",
    "action": "redacted",
    "user_id": None,
    "owner_id": None,
    "secret_id": None,
    "request_id": None,
    "outcome": "",
    "nonce": b"",
    "line": "",
}
"""What the columns of an emptied record hold. Of kind ``outcome``, for such are in no index and never looked for."""


async def due(tx: AsyncConnection, before: datetime) -> dict[UUID, tuple[int, int]]:
    """Return for each writer up to which record it is emptied, and up to which it is to be: sealed, and all older than ``before``."""
    c, found = audit_record.c, {}
    for row in (await tx.execute(sa.select(audit_sealed))).all():
        young = sa.select(c.seq).where(c.writer_id == row.writer_id, c.seq > row.redacted_seq, c.at >= before)
        first = (await tx.execute(young.order_by(c.seq).limit(1))).scalar()
        last = min(row.seq, first - 1) if first is not None else row.seq
        if last > row.redacted_seq:
            found[row.writer_id] = (row.redacted_seq, last)
    return found


async def empty(tx: AsyncConnection, writer_id: UUID, span: tuple[int, int], kept: Sequence[str]) -> int:
    """Empty a writer's records, but for first and last lines and the actions ``kept``; return how many."""
    c = audit_record.c
    is_kept = sa.or_(c.kind.in_(("open", "close")), c.action.in_(kept))
    changed = await tx.execute(
        sa.update(audit_record).where(c.writer_id == writer_id, c.seq.between(*span), ~is_kept).values(**EMPTIED)
    )
    await tx.execute(sa.update(audit_sealed).where(audit_sealed.c.writer_id == writer_id).values(redacted_seq=span[1]))
    return changed.rowcount
