"""Budgets: rows in, rows out; what was reserved; and what of a window is used, from usage records. Queries name the owners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import BudgetKind, BudgetSubject
from keybearer.store import bulk
from keybearer.store.queries import cursors
from keybearer.store.queries.sums import total
from keybearer.store.schema import budget, provider, reservation, team, usage_record, user

Row = sa.Row[Any]

UNSETTLED_LIMIT = 10_000
"""Uses without an outcome that are looked at one by one."""
NOT_LIMITED = ("test", "fetch")
"""Uses that are no calls of the gateway's."""
_USD = (BudgetKind.USD_DAY, BudgetKind.USD_MONTH)


async def page(
    tx: AsyncConnection, owners: Iterable[UUID] | None, cursor: str | None, limit: int
) -> tuple[Sequence[Row], str | None]:
    """A page of these owners' limits (``None``: everybody's), the oldest first, and the cursor of the next."""
    query = sa.select(budget)
    if owners is not None:
        query = query.where(budget.c.owner_id.in_(list(owners)))
    return await cursors.page(tx, query, {budget.c.created_at: datetime, budget.c.id: UUID}, cursor, limit, descending=False)


async def get(tx: AsyncConnection, owners: Iterable[UUID] | None, budget_id: UUID, *, lock: bool = False) -> Row | None:
    """One of these owners' limits (``None``: of anybody's)."""
    query = sa.select(budget).where(budget.c.id == budget_id)
    if owners is not None:
        query = query.where(budget.c.owner_id.in_(list(owners)))
    return (await tx.execute(query.with_for_update() if lock else query)).one_or_none()


async def of_ids(tx: AsyncConnection, budget_ids: Iterable[UUID] | None) -> Sequence[Row]:
    """These limits (``None``: all); the system's."""
    query = sa.select(budget)
    if budget_ids is not None:
        query = query.where(budget.c.id.in_(list(budget_ids)))
    return (await tx.execute(query)).all()


async def exist(tx: AsyncConnection) -> bool:
    """Whether there is any; the system's."""
    return (await tx.execute(sa.select(sa.exists(sa.select(budget.c.id))))).scalar_one()


async def insert(tx: AsyncConnection, columns: Mapping[str, Any]) -> None:
    """A new limit."""
    await tx.execute(sa.insert(budget).values(**columns))


async def update(tx: AsyncConnection, owner_id: UUID, budget_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a limit."""
    await tx.execute(sa.update(budget).where(budget.c.id == budget_id, budget.c.owner_id == owner_id).values(**columns))


async def delete(tx: AsyncConnection, owner_id: UUID, budget_id: UUID) -> None:
    """Remove a limit."""
    await tx.execute(sa.delete(budget).where(budget.c.id == budget_id, budget.c.owner_id == owner_id))


async def is_known(tx: AsyncConnection, subject: BudgetSubject, subject_id: str | UUID) -> bool:
    """Whether there is such a user, team or custom provider; the system's."""
    column = {BudgetSubject.USER: user.c.id, BudgetSubject.TEAM: team.c.id, BudgetSubject.PROVIDER: provider.c.name}[subject]
    return (await tx.execute(sa.select(sa.exists(sa.select(column).where(column == subject_id))))).scalar_one()


# --- reservations


async def put_reservations(tx: AsyncConnection, rows: Sequence[bulk.Row]) -> None:
    """Note what uses reserved; of a second use of the same request (another key was tried) what that reserved."""
    clause = "ON CONFLICT (request_id) DO UPDATE SET tokens = excluded.tokens, micro_usd = excluded.micro_usd"
    await bulk.insert_spelled(tx, reservation, rows, on_conflict=clause)


async def delete_reservations(tx: AsyncConnection, before: datetime) -> int:
    """Forget reservations that no window reaches any more."""
    return (await tx.execute(sa.delete(reservation).where(reservation.c.at < before))).rowcount


# --- what is used


class Used(NamedTuple):
    """Of one limit's window: what is settled, and by request id what uses without an outcome count for."""

    settled: int
    unsettled: dict[str, int]


async def used(tx: AsyncConnection, row: Any, since: datetime) -> Used:
    """What calls that the limit ``row`` concerns have used since then; the system's."""
    c = usage_record.c
    joined = usage_record.outerjoin(reservation, reservation.c.request_id == c.request_id)
    concerned = (*_concerned(row), c.at >= since, c.operation.not_in(NOT_LIMITED))
    ended = sa.select(total(_charged(row.kind))).select_from(joined).where(*concerned, c.outcome != "unknown")
    settled = int((await tx.execute(ended)).scalar_one())
    query = sa.select(c.request_id, _reserved(row.kind)).select_from(joined).where(*concerned, c.outcome == "unknown")
    found = (await tx.execute(query.order_by(c.at.desc()).limit(UNSETTLED_LIMIT + 1))).all()
    unsettled = {request_id: int(amount or 0) for request_id, amount in found[:UNSETTLED_LIMIT]}
    if len(found) > UNSETTLED_LIMIT:  # the rest is beyond looking at one by one: it counts until the window ends
        whole = sa.select(total(_reserved(row.kind))).select_from(joined)
        everything = (await tx.execute(whole.where(*concerned, c.outcome == "unknown"))).scalar_one()
        settled += int(everything) - sum(unsettled.values())
    return Used(settled, unsettled)


async def settled(tx: AsyncConnection, kind: BudgetKind, request_ids: Sequence[str]) -> dict[str, int]:
    """Those of these requests whose outcome has come, and what they count for; the system's."""
    c = usage_record.c
    joined = usage_record.outerjoin(reservation, reservation.c.request_id == c.request_id)
    query = sa.select(c.request_id, _charged(kind)).select_from(joined)
    found = await tx.execute(query.where(c.request_id.in_(list(request_ids)), c.outcome != "unknown"))
    return {request_id: int(amount or 0) for request_id, amount in found}


def _concerned(row: Any) -> tuple[sa.ColumnElement[bool], ...]:
    c = usage_record.c
    subject = BudgetSubject(row.subject)
    if subject is BudgetSubject.TOKEN:
        return c.user_id == row.owner_id, c.token_id == row.subject_id
    if subject is BudgetSubject.PROVIDER:
        return (c.provider == row.subject_id,)
    if subject is BudgetSubject.DEPLOYMENT:
        return ()
    column = {BudgetSubject.USER: c.user_id, BudgetSubject.TEAM: c.owner_id, BudgetSubject.SECRET: c.secret_id}[subject]
    return (column == UUID(row.subject_id),)


def _reserved(kind: str) -> sa.ColumnElement[Any]:
    if kind in _USD:
        return reservation.c.micro_usd
    return sa.literal(1) if kind == BudgetKind.REQUESTS_MINUTE else reservation.c.tokens


def _charged(kind: str) -> sa.ColumnElement[Any]:
    """As ``usage.limits.charged``: nothing where the key stayed here; of what broke off no less than was reserved."""
    c = usage_record.c
    if kind == BudgetKind.REQUESTS_MINUTE:
        return sa.case((c.outcome == "refused", 0), else_=1)
    said = c.cost_micro_usd if kind in _USD else c.input_tokens + sa.func.coalesce(c.output_tokens, 0)
    reserved = sa.func.coalesce(_reserved(kind), 0)
    known = sa.func.coalesce(said, 0)
    return sa.case(
        (c.outcome == "refused", 0),
        (c.outcome == "ok", sa.func.coalesce(said, reserved)),
        (sa.and_(c.status >= 400, c.status != 499), known),  # noqa: PLR2004  # HTTP's own numbers
        (known > reserved, known),
        else_=reserved,
    )
