"""Writers and records of the audit trail. What is in a line is the business of ``audit``; here are its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store import bulk
from keybearer.store.queries import cursors
from keybearer.store.schema import audit_record, audit_writer, usage_record

GENESIS = bytes(32)
SHOWN_KINDS = ("use", "manage")
"""What an access log shows; outcomes are shown with their uses."""

# Said once more in words that an index over these rows alone is chosen by: SQLite does not look into parameters.
_INDEXED = audit_record.c.kind != sa.literal_column("'outcome'")
_Cursor = tuple[datetime, UUID, int]


@dataclass(frozen=True, slots=True)
class Writer:
    """A row of ``audit_writer``."""

    id: UUID
    kind: Literal["process", "management"]
    host: str
    pid: int
    started_at: datetime
    closed_at: datetime | None
    shipped_seq: int
    shipped_hash: bytes


class Record(NamedTuple):
    """A row of ``audit_record``, in the order of its columns; ``line`` is the exact text that was hashed."""

    writer_id: UUID
    seq: int
    at: datetime
    kind: str
    action: str
    user_id: UUID | None
    owner_id: UUID | None
    secret_id: UUID | None
    request_id: str | None
    outcome: str
    nonce: bytes
    line: str
    d: bytes
    h: bytes


class Spelled(NamedTuple):
    """A ``Record`` as it is stored and as ``bulk`` takes it: ids as 32 hex digits, times as ISO text."""

    writer_id: str
    seq: int
    at: str
    kind: str
    action: str
    user_id: str | None
    owner_id: str | None
    secret_id: str | None
    request_id: str | None
    outcome: str
    nonce: bytes
    line: str
    d: bytes
    h: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records to list. ``None``: any.

    ``seen_by`` is the wall between tenants where the database has none of its own: a member sees what they did and what was done
    with what they own; ``None`` is for administrators and the operator.
    """

    seen_by: UUID | None
    led: tuple[UUID, ...] = ()
    """Teams that whoever sees leads, as their row MACs prove: they see what was done with what these own, too."""
    secret_id: UUID | None = None
    user_id: UUID | None = None
    action: str | None = None
    outcome: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""
    kinds: tuple[str, ...] = SHOWN_KINDS
    provider: str | None = None
    model: str | None = None
    workflow: str | None = None
    """These three are looked for in what the line says."""


# --- writers


async def add_writer(tx: AsyncConnection, writer: Writer) -> None:
    """Register a writer. Raises ``IntegrityError`` if it is registered already."""
    await tx.execute(
        sa.insert(audit_writer).values(
            id=writer.id,
            kind=writer.kind,
            host=writer.host,
            pid=writer.pid,
            started_at=writer.started_at,
            closed_at=writer.closed_at,
            shipped_seq=writer.shipped_seq,
            shipped_hash=writer.shipped_hash,
        )
    )


async def writer(tx: AsyncConnection, writer_id: UUID, *, lock: bool = False) -> Writer | None:
    """Return one writer; with ``lock`` nobody else may advance it until this transaction ends."""
    query = sa.select(audit_writer).where(audit_writer.c.id == writer_id)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    return Writer(*row) if row else None


async def writers(tx: AsyncConnection) -> list[Writer]:
    """Return all writers, the oldest first."""
    rows = await tx.execute(sa.select(audit_writer).order_by(audit_writer.c.started_at, audit_writer.c.id))
    return [Writer(*row) for row in rows]


async def advance_writer(tx: AsyncConnection, writer_id: UUID, seq: int, h: bytes, *, closed_at: datetime | None = None) -> None:
    """Note that everything up to ``seq`` is here, and perhaps that no more will come."""
    values: dict[str, Any] = {"shipped_seq": seq, "shipped_hash": h}
    if closed_at is not None:
        values["closed_at"] = closed_at
    await tx.execute(sa.update(audit_writer).where(audit_writer.c.id == writer_id).values(values))


# --- records


async def add_records(tx: AsyncConnection, rows: Sequence[bulk.Row]) -> None:
    """Insert records, spelled as ``bulk`` takes them. Raises ``IntegrityError`` if one of them is there already."""
    await bulk.insert_spelled(tx, audit_record, rows)


async def add_written(tx: AsyncConnection, records: Sequence[Record]) -> None:
    """Insert records. Raises ``IntegrityError`` if one of them is there already."""
    await bulk.insert(tx, audit_record, records)


async def chain(tx: AsyncConnection, writer_id: UUID, after: int, limit: int) -> list[Spelled]:
    """Return the records of a writer that follow number ``after``, in order, as they are stored."""
    condition = f"writer_id = ? AND seq > ? ORDER BY seq LIMIT {limit:d}"
    rows = await bulk.select(tx, audit_record, condition, (bulk.hex_of(writer_id), after))
    return list(map(Spelled._make, rows))


async def visible(tx: AsyncConnection, wanted: Filter, writer_id: UUID, seq: int) -> Record | None:
    """Return one record, if whoever ``wanted.seen_by`` is may see it."""
    c = audit_record.c
    query = sa.select(audit_record).where(c.writer_id == writer_id, c.seq == seq)
    if wanted.seen_by is not None:
        query = query.where(sa.or_(c.user_id == wanted.seen_by, c.owner_id == wanted.seen_by))
    row = (await tx.execute(query)).one_or_none()
    return Record(*row) if row else None


async def hashes(tx: AsyncConnection, writer_id: UUID, first: int, last: int) -> dict[int, bytes]:
    """Return ``h`` by number, of the records of a writer from ``first`` to ``last`` that are here."""
    rows = await tx.execute(
        sa.select(audit_record.c.seq, audit_record.c.h).where(
            audit_record.c.writer_id == writer_id, audit_record.c.seq.between(first, last)
        )
    )
    return {seq: h for seq, h in rows}  # noqa: C416  # a row is no pair to the type checker


async def uses(tx: AsyncConnection, writer_id: UUID, request_ids: Sequence[str], before: int) -> dict[str, bulk.Row]:
    """Return user, owner and secret of the last use before number ``before`` of each of these requests by this writer, if any.

    Ids are spelled as ``bulk`` takes them.
    """
    if not request_ids:
        return {}
    rows = await tx.execute(
        sa.select(audit_record.c.request_id, audit_record.c.user_id, audit_record.c.owner_id, audit_record.c.secret_id)
        .where(
            audit_record.c.request_id.in_(request_ids),
            audit_record.c.writer_id == writer_id,
            audit_record.c.kind == "use",
            _INDEXED,
            audit_record.c.seq < before,
        )
        .order_by(audit_record.c.seq)
    )
    return {row.request_id: tuple(map(bulk.hex_of, row[1:])) for row in rows}


async def with_actions(tx: AsyncConnection, writer_id: UUID, actions: Sequence[str]) -> list[Record]:
    """Return a writer's records of these actions, in order."""
    rows = await tx.execute(
        sa.select(audit_record)
        .where(audit_record.c.writer_id == writer_id, audit_record.c.action.in_(actions))
        .order_by(audit_record.c.seq)
    )
    return [Record(*row) for row in rows]


async def records(
    tx: AsyncConnection, wanted: Filter, cursor: str | None = None, limit: int = 50
) -> tuple[list[Record], str | None]:
    """Return a page of records, the newest first, and the cursor of the next page. Raises ``Invalid`` for a foreign cursor.

    The ``outcome`` of a use is what its outcome record says, or ``unknown`` as long as there is none.
    """
    outcome = sa.case(
        (audit_record.c.kind == "use", sa.func.coalesce(usage_record.c.outcome, "unknown")), else_=audit_record.c.outcome
    )
    columns = [outcome.label("outcome") if column.name == "outcome" else column for column in audit_record.c]
    place = sa.tuple_(audit_record.c.at, audit_record.c.writer_id, audit_record.c.seq)
    conditions = [*_conditions(wanted), *_said(tx, wanted)]
    if wanted.outcome is not None:
        conditions.append(outcome == wanted.outcome)
    if cursor is not None:
        after = cursors.decode(cursor, _Cursor)
        types = (audit_record.c.at.type, audit_record.c.writer_id.type, audit_record.c.seq.type)
        conditions.append(place < sa.tuple_(*(sa.literal(part, kind) for part, kind in zip(after, types, strict=True))))
    joined = audit_record.outerjoin(
        usage_record, sa.and_(usage_record.c.request_id == audit_record.c.request_id, audit_record.c.kind == "use")
    )
    order = (audit_record.c.at.desc(), audit_record.c.writer_id.desc(), audit_record.c.seq.desc())
    base = sa.select(*columns).select_from(joined).where(*conditions).order_by(*order).limit(limit + 1)
    if wanted.seen_by is None:
        query: Any = base
    else:  # one index each for what they did and for what they own, instead of a scan for either
        did = base.where(audit_record.c.user_id == wanted.seen_by).subquery()
        owned = [base.where(audit_record.c.owner_id == owner_id).subquery() for owner_id in (wanted.seen_by, *wanted.led)]
        both = sa.union(sa.select(did), *map(sa.select, owned)).subquery()
        query = sa.select(both).order_by(both.c.at.desc(), both.c.writer_id.desc(), both.c.seq.desc()).limit(limit + 1)
    found = [Record(*row) for row in await tx.execute(query)]
    page, rest = found[:limit], found[limit:]
    return page, cursors.encode((page[-1].at, page[-1].writer_id, page[-1].seq)) if rest else None


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    c = audit_record.c
    equal = {
        c.secret_id: wanted.secret_id,
        c.user_id: wanted.user_id,
        c.action: wanted.action,
        c.request_id: wanted.request_id,
    }
    conditions: list[sa.ColumnElement[bool]] = [column == value for column, value in equal.items() if value is not None]
    conditions.append(c.kind.in_(wanted.kinds))
    if "outcome" not in wanted.kinds:
        conditions.append(_INDEXED)
    if wanted.since is not None:
        conditions.append(c.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(c.at < wanted.until)
    return conditions


def _said(tx: AsyncConnection, wanted: Filter) -> list[sa.ColumnElement[bool]]:
    """Look for what lines say. Quotes inside a line's text are escaped, so no text can pretend to be another field."""
    contains = sa.func.strpos if tx.dialect.name == "postgresql" else sa.func.instr
    named = {"provider": wanted.provider, "model": wanted.model, "workflow": wanted.workflow}
    texts = [f'"{name}":{msgspec.json.encode(value).decode()}' for name, value in named.items() if value is not None]
    return [contains(audit_record.c.line, text) > 0 for text in texts]
