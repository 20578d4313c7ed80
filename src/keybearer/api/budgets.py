"""``/budgets``: what may be used at most, and how much of it is."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Answer, Limit, Page, Request
from keybearer.domain import Budget, BudgetKind, BudgetSubject
from keybearer.errors import NotFound
from keybearer.gateway.counts import State
from keybearer.services import Services
from keybearer.usage.limits import is_usd
from keybearer.vault.budgets import MICRO, NewBudget

router = APIRouter(prefix="/budgets", tags=["budgets"])

Amount = Annotated[Decimal, Field(ge=0, le=10**15, description="Dollars, requests or tokens, as `kind` says.")]
Hard = Annotated[bool, Field(description="Refuse calls that may go beyond; otherwise only show that they did.")]


class NewBudgetRequest(Request):
    """A limit to be set."""

    subject: BudgetSubject
    subject_id: Annotated[
        str,
        Field(
            max_length=64,
            description="An id, or a provider's name. Empty: the caller themselves (`user`), or the `deployment`.",
        ),
    ] = ""
    kind: BudgetKind
    amount: Amount
    is_hard: Hard = True


class BudgetChange(Request):
    """Another amount, or another grade."""

    amount: Amount | None = None
    is_hard: Hard | None = None


class BudgetAnswer(Answer):
    """A limit and how it stands. Amounts are dollars, requests or tokens, as ``kind`` says."""

    id: UUID
    subject: BudgetSubject
    subject_id: str
    kind: BudgetKind
    amount: float
    is_hard: bool
    by_admin: Annotated[bool, Field(description="An administrator set it: only administrators change it.")]
    is_tampered: Annotated[bool, Field(description="Its row was changed outside Keybearer: it refuses all calls.")]
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    used: Annotated[float, Field(description="In the window that runs, settled.")]
    reserved: Annotated[float, Field(description="By calls whose outcome is not known yet: the most that they may use.")]
    remaining: float
    is_exceeded: bool
    resets_at: datetime


async def shown(services: Services, budgets: list[Budget]) -> list[BudgetAnswer]:
    """Limits with how they stand now. One that is gone since it was read is left out."""
    states = await services.counters.states(budgets)
    return [_answer(budget, states[budget.id]) for budget in budgets if budget.id in states]


async def _shown_one(services: Services, budget: Budget) -> BudgetAnswer:
    """Raises ``NotFound``: somebody lifted it meanwhile."""
    for answer in await shown(services, [budget]):
        return answer
    raise NotFound


def _answer(budget: Budget, state: State) -> BudgetAnswer:
    unit = MICRO if is_usd(budget.kind) else 1
    return BudgetAnswer(
        id=budget.id,
        subject=budget.subject,
        subject_id=budget.subject_id,
        kind=budget.kind,
        amount=budget.amount / unit,
        is_hard=budget.is_hard,
        by_admin=budget.by_admin,
        is_tampered=budget.is_tampered,
        created_by=budget.created_by,
        created_at=budget.created_at,
        updated_at=budget.updated_at,
        used=state.used / unit,
        reserved=state.reserved / unit,
        remaining=state.remaining / unit,
        is_exceeded=state.used + state.reserved > budget.amount,
        resets_at=state.resets_at,
    )


@router.get("")
async def list_budgets(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> Page[BudgetAnswer]:
    """List the limits of one's own things and one's teams, with how they stand; administrators see all."""
    found, following = await services.budgets.page(caller, cursor, limit)
    return Page(items=await shown(services, list(found)), next_cursor=following)


@router.post("", status_code=201)
async def create_budget(body: NewBudgetRequest, caller: CurrentCaller, services: CurrentServices) -> BudgetAnswer:
    """Set a limit. All limits that concern a call hold at once; every process keeps it within a second."""
    new = NewBudget(body.subject, body.kind, body.amount, body.subject_id, body.is_hard)
    return await _shown_one(services, await services.budgets.create(caller, new))


@router.get("/{budget_id}")
async def get_budget(budget_id: UUID, caller: CurrentCaller, services: CurrentServices) -> BudgetAnswer:
    """Show one limit and how it stands."""
    return await _shown_one(services, await services.budgets.get(caller, budget_id))


@router.patch("/{budget_id}")
async def change_budget(budget_id: UUID, body: BudgetChange, caller: CurrentCaller, services: CurrentServices) -> BudgetAnswer:
    """Change a limit; what is used stays used."""
    return await _shown_one(services, await services.budgets.update(caller, budget_id, body.given()))


@router.delete("/{budget_id}", status_code=204)
async def delete_budget(budget_id: UUID, caller: CurrentCaller, services: CurrentServices) -> None:
    """Lift a limit."""
    await services.budgets.delete(caller, budget_id)
