"""The page of budgets and limits: which there are, how they stand; setting and lifting them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer.api.authentication import CurrentServices
from keybearer.api.budgets import shown
from keybearer.console.forms import Text
from keybearer.console.pages import CurrentVisitor, Visitor, go, render
from keybearer.domain import BudgetKind, BudgetSubject
from keybearer.errors import Invalid, KeybearerError
from keybearer.services import Services
from keybearer.vault.budgets import NewBudget

router = APIRouter(include_in_schema=False)

ROWS = 50
KINDS = {
    BudgetKind.USD_DAY: "dollars a day",
    BudgetKind.USD_MONTH: "dollars a month",
    BudgetKind.REQUESTS_MINUTE: "requests a minute",
    BudgetKind.TOKENS_MINUTE: "tokens a minute",
}


async def _page(
    services: Services,
    visitor: Visitor,
    error: KeybearerError | None = None,
    cursor: str | None = None,
    draft: Mapping[str, object] | None = None,
) -> Response:
    found, following = await services.budgets.page(visitor.caller, cursor, ROWS)
    blank = {"subject": "user", "subject_id": "", "kind": "usd_month", "amount": "", "is_hard": True}
    everybody = {BudgetSubject.PROVIDER, BudgetSubject.DEPLOYMENT}
    return render(
        "budgets.html",
        status=error.status if error else 200,
        **visitor.shown,
        page="/budgets",
        budgets=await shown(services, list(found)),
        next_cursor=following,
        kinds=KINDS,
        subjects=[subject for subject in BudgetSubject if visitor.caller.is_admin or subject not in everybody],
        is_admin=visitor.caller.is_admin,
        draft=blank | dict(draft or {}),
        error=error,
    )


@router.get("/budgets")
async def budgets_page(visitor: CurrentVisitor, services: CurrentServices, cursor: str | None = None) -> Response:
    """Show the limits that one sees."""
    return await _page(services, visitor, cursor=cursor)


@router.post("/budgets")
async def set_budget(
    visitor: CurrentVisitor,
    services: CurrentServices,
    subject: Text = "",
    subject_id: Text = "",
    kind: Text = "",
    amount: Text = "",
    is_hard: Text = "",
) -> Response:
    """Set a limit."""
    try:
        of, counted = _one(BudgetSubject, subject, "subject"), _one(BudgetKind, kind, "kind")
        await services.budgets.create(visitor.caller, NewBudget(of, counted, _number(amount), subject_id, bool(is_hard)))
    except KeybearerError as error:
        draft = {"subject": subject, "subject_id": subject_id, "kind": kind, "amount": amount, "is_hard": bool(is_hard)}
        return await _page(services, visitor, error, draft=draft)
    return go("/budgets")


@router.post("/budgets/{budget_id}")
async def change_budget(
    budget_id: UUID, visitor: CurrentVisitor, services: CurrentServices, amount: Text = "", is_hard: Text = ""
) -> Response:
    """Change a limit."""
    try:
        await services.budgets.update(visitor.caller, budget_id, {"amount": _number(amount), "is_hard": bool(is_hard)})
    except KeybearerError as error:
        return await _page(services, visitor, error)
    return go("/budgets")


@router.post("/budgets/{budget_id}/delete")
async def delete_budget(budget_id: UUID, visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Lift a limit."""
    try:
        await services.budgets.delete(visitor.caller, budget_id)
    except KeybearerError as error:
        return await _page(services, visitor, error)
    return go("/budgets")


def _one(kind: Any, text: str, field: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise Invalid.of(field, "is not one of the list") from None


def _number(text: str) -> Decimal:
    try:
        return Decimal(text.strip()[:40])
    except InvalidOperation:
        raise Invalid.of("amount", "is no number") from None
