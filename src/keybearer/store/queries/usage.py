"""What each call consumed: written by the shipper from uses and outcomes, read as pages and sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import OwnerKind
from keybearer.store import bulk
from keybearer.store.queries import cursors
from keybearer.store.queries.sums import total
from keybearer.store.schema import access_token, audit_record, owner, secret, usage_record

GroupBy = Literal["day", "provider", "model", "secret", "user", "team", "token", "workflow", "node"]
"""Things to sum by; ``team``: the one that owns the key, empty where it is no team's that whoever asks knows of."""

_Cursor = tuple[datetime, str]
_ASKED = 1000
"""Request ids of one question."""

OUTCOME_COLUMNS = (
    "outcome",
    "status",
    "duration_ms",
    "first_byte_ms",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_micro_usd",
)


class UsageRecord(NamedTuple):
    """A row of ``usage_record``, in the order of its columns.

    Times in milliseconds, cost in millionths of a US dollar; ``None``: not known, never 0.
    """

    request_id: str
    at: datetime
    user_id: UUID
    token_id: str
    secret_id: UUID
    owner_id: UUID
    key_source: str
    provider: str
    model: str
    operation: str
    streamed: bool
    workflow: str
    node: str
    outcome: str
    status: int | None = None
    duration_ms: float | None = None
    first_byte_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_micro_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which usage to look at. ``None``: any. ``seen_by``: as in ``queries.audit.Filter``."""

    seen_by: UUID | None
    led: tuple[UUID, ...] = ()
    """Teams that whoever sees leads, as their row MACs prove: they see what was done with what these own, too."""
    user_id: UUID | None = None
    secret_id: UUID | None = None
    token_id: str | None = None
    provider: str | None = None
    model: str | None = None
    workflow: str | None = None
    outcome: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sum of one group; ``group`` has a text for each thing grouped by, days as ``YYYY-MM-DD`` in UTC."""

    group: tuple[str, ...]
    requests: int
    failed: int
    """Those with another outcome than ``ok``."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_micro_usd: int
    """Of the requests whose cost is known."""
    unpriced: int
    """Requests whose cost is not known."""


# --- written by the shipper


async def put_uses(tx: AsyncConnection, rows: Sequence[bulk.Row]) -> None:
    """Insert what uses say, spelled as ``bulk`` takes it, with their outcomes where those are known already.

    A second use of the same request (another key was tried) takes its place: the last key is the one that served.
    """
    # Request ids are the server's own and unique; if they ever were not, nobody may write over another's record.
    sets = ", ".join(f"{name} = excluded.{name}" for name in UsageRecord._fields[1:])
    clause = f"ON CONFLICT (request_id) DO UPDATE SET {sets} WHERE usage_record.user_id = excluded.user_id"
    await bulk.insert_spelled(tx, usage_record, rows, on_conflict=clause)


async def put_outcomes(tx: AsyncConnection, outcomes: Mapping[str, tuple[Any, ...]]) -> None:
    """Complete records whose use came earlier; ``outcomes`` holds ``OUTCOME_COLUMNS`` by request id."""
    rows = [(request_id, *values) for request_id, values in outcomes.items()]
    await bulk.update(tx, usage_record, ("request_id", *OUTCOME_COLUMNS), rows)


@dataclass(frozen=True, slots=True)
class SecretUse:
    """How often a secret was used, when last, and in which workflow last (``None``: in none)."""

    secret_id: UUID
    count: int
    at: datetime
    workflow: str | None


async def count_secret_uses(tx: AsyncConnection, used: Sequence[SecretUse]) -> None:
    """Add to the secrets' counters. In the order of ids, so that two shippers cannot wait for each other in a circle."""
    at = sa.bindparam("used_at", type_=secret.c.last_used_at.type)
    workflow = sa.bindparam("used_in", type_=secret.c.last_used_in_workflow.type)
    is_newer = sa.or_(secret.c.last_used_at.is_(None), secret.c.last_used_at <= at)
    statement = (
        sa.update(secret)
        .where(secret.c.id == sa.bindparam("of_secret"))
        .values(
            usage_count=secret.c.usage_count + sa.bindparam("used_count"),
            last_used_at=sa.case((is_newer, at), else_=secret.c.last_used_at),
            last_used_in_workflow=sa.case(
                (sa.and_(is_newer, workflow.is_not(None)), workflow), else_=secret.c.last_used_in_workflow
            ),
        )
    )
    rows = [
        {"of_secret": use.secret_id, "used_count": use.count, "used_at": use.at, "used_in": use.workflow}
        for use in sorted(used, key=lambda use: use.secret_id)
    ]
    if rows:
        await tx.execute(statement, rows)


async def touch_tokens(tx: AsyncConnection, used: Mapping[str, datetime]) -> None:
    """Note when access tokens were last used, in the order of ids."""
    at = sa.bindparam("used_at", type_=access_token.c.last_used_at.type)
    statement = (
        sa.update(access_token)
        .where(
            access_token.c.id == sa.bindparam("of_token"),
            sa.or_(access_token.c.last_used_at.is_(None), access_token.c.last_used_at < at),
        )
        .values(last_used_at=at)
    )
    rows = [{"of_token": token_id, "used_at": used[token_id]} for token_id in sorted(used)]
    if rows:
        await tx.execute(statement, rows)


# --- read


async def by_request(tx: AsyncConnection, request_ids: Sequence[str]) -> dict[str, bulk.Row]:
    """Return the records of these requests, as they are stored."""
    if not request_ids:
        return {}
    if tx.dialect.name == "postgresql":
        rows = await bulk.select(tx, usage_record, "request_id = ANY(?)", (list(request_ids),))
    else:
        rows = await bulk.select(tx, usage_record, f"request_id IN ({', '.join('?' * len(request_ids))})", tuple(request_ids))
    return {row[0]: row for row in rows}


async def unaccounted(tx: AsyncConnection, limit: int, since: datetime | None = None) -> list[str]:
    """Return the ids of requests whose usage is recorded, but no use: of older ones retention may have emptied it.

    Some at a time, by key: PostgreSQL, asked for all at once and not having looked at the tables yet, compared each with each.
    """
    found: list[str] = []
    last = ""
    while len(found) < limit:
        query = sa.select(usage_record.c.request_id).where(usage_record.c.request_id > last)
        if since is not None:
            query = query.where(usage_record.c.at >= since)
        asked = list(await tx.scalars(query.order_by(usage_record.c.request_id).limit(_ASKED)))
        if not asked:
            break
        last = asked[-1]
        used = sa.select(audit_record.c.request_id).where(
            audit_record.c.request_id.in_(asked),
            audit_record.c.kind == "use",
            audit_record.c.kind != sa.literal_column("'outcome'"),  # chooses the index
        )
        known = set(await tx.scalars(used))
        found += (request_id for request_id in asked if request_id not in known)
    return found[:limit]


async def records(
    tx: AsyncConnection, wanted: Filter, cursor: str | None = None, limit: int = 50
) -> tuple[list[UsageRecord], str | None]:
    """Return a page of records, the newest first, and the cursor of the next page. Raises ``Invalid`` for a foreign cursor."""
    base = sa.select(usage_record).where(*_conditions(wanted))
    if cursor is not None:
        at, request_id = cursors.decode(cursor, _Cursor)
        place = sa.tuple_(usage_record.c.at, usage_record.c.request_id)
        base = base.where(
            place < sa.tuple_(sa.literal(at, usage_record.c.at.type), sa.literal(request_id, usage_record.c.request_id.type))
        )
    base = base.order_by(usage_record.c.at.desc(), usage_record.c.request_id.desc()).limit(limit + 1)
    if wanted.seen_by is None:
        query: Any = base
    else:  # one index each for what they did and for what they own, instead of a scan for either
        did = base.where(usage_record.c.user_id == wanted.seen_by).subquery()
        owned = [base.where(usage_record.c.owner_id == owner_id).subquery() for owner_id in (wanted.seen_by, *wanted.led)]
        both = sa.union(sa.select(did), *map(sa.select, owned)).subquery()
        query = sa.select(both).order_by(both.c.at.desc(), both.c.request_id.desc()).limit(limit + 1)
    found = [UsageRecord(*row) for row in await tx.execute(query)]
    page, rest = found[:limit], found[limit:]
    return page, cursors.encode((page[-1].at, page[-1].request_id)) if rest else None


async def summary(tx: AsyncConnection, wanted: Filter, group_by: Sequence[GroupBy], limit: int = 1000) -> list[UsageSum]:
    """Return sums by one thing or several, in their order; at most ``limit`` groups."""
    c = usage_record.c
    groups = [_group(tx, name) for name in group_by]
    conditions = _conditions(wanted)
    if wanted.seen_by is not None:
        owners = (wanted.seen_by, *wanted.led)
        conditions.append(sa.or_(c.user_id == wanted.seen_by, c.owner_id.in_(owners)))
    paid_by_team = sa.and_(owner.c.id == c.owner_id, owner.c.kind == OwnerKind.TEAM.value)
    table = usage_record.outerjoin(owner, paid_by_team) if "team" in group_by else usage_record
    totals = [total(c[name]) for name in OUTCOME_COLUMNS[4:]]
    query = (
        sa.select(
            *groups,
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((c.outcome != "ok", 1), else_=0)), 0),
            *totals,
            sa.func.coalesce(sa.func.sum(sa.case((c.cost_micro_usd.is_(None), 1), else_=0)), 0),
        )
        .select_from(table)
        .where(*conditions)
        .group_by(*groups)
        .order_by(*groups)
        .limit(limit)
    )
    found = []
    for row in await tx.execute(query):
        group, sums = (
            tuple("" if part is None else str(part) for part in row[: len(groups)]),
            [int(part) for part in row[len(groups) :]],
        )
        found.append(UsageSum(group, *sums))
    return found


def _group(tx: AsyncConnection, name: GroupBy) -> sa.ColumnElement[Any]:
    c = usage_record.c
    if name != "day":
        return {
            "provider": c.provider,
            "model": c.model,
            "secret": c.secret_id,
            "user": c.user_id,
            "team": owner.c.id,
            "token": c.token_id,
            "workflow": c.workflow,
            "node": c.node,
        }[name]
    if tx.dialect.name == "postgresql":
        return sa.func.to_char(sa.func.timezone("UTC", c.at), sa.literal_column("'YYYY-MM-DD'"))
    return sa.func.substr(sa.cast(c.at, sa.String), sa.literal_column("1"), sa.literal_column("10"))


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    c = usage_record.c
    equal = {
        c.user_id: wanted.user_id,
        c.secret_id: wanted.secret_id,
        c.token_id: wanted.token_id,
        c.provider: wanted.provider,
        c.model: wanted.model,
        c.workflow: wanted.workflow,
        c.outcome: wanted.outcome,
        c.request_id: wanted.request_id,
    }
    conditions: list[sa.ColumnElement[bool]] = [column == value for column, value in equal.items() if value is not None]
    if wanted.since is not None:
        conditions.append(c.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(c.at < wanted.until)
    return conditions
