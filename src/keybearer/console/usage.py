"""The page of usage: what calls consumed and cost, by day, provider, model, key, team and, for administrators, person; budgets beside.

What is not known is called unknown, and never counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer.access import policy
from keybearer.api.authentication import CurrentServices
from keybearer.api.budgets import shown
from keybearer.api.records import MICRO
from keybearer.console.budgets import KINDS
from keybearer.console.names import secret_names, user_names
from keybearer.console.pages import CurrentVisitor, Visitor, render
from keybearer.domain import BudgetKind, Scope
from keybearer.services import Services
from keybearer.usage.limits import is_usd
from keybearer.usage.record import Filter, GroupBy, UsageRecords, UsageSum

router = APIRouter(include_in_schema=False)

PERIODS = (7, 30, 90, 365)
"""Days that the page can look back."""
LISTED = 20
"""Groups of one kind on the page, the dearest; ``keybearer usage`` has all."""
BUDGETS = 20
_SMALL = MICRO // 100
_DIM = 120
"""Height of a chart; a day is 10 wide."""


def dollars(micro: int) -> str:
    """Millionths of a dollar, as people read them: whole cents, or what there is below one."""
    if micro and abs(micro) < _SMALL:
        return f"${micro / MICRO:.6f}".rstrip("0")
    return f"${micro / MICRO:,.2f}"


def cost(one: UsageSum) -> str:
    """What calls cost, as far as that is known."""
    if one.unpriced == one.requests:
        return "unknown"
    return dollars(one.cost_micro_usd) + (f" + {one.unpriced:,} unknown" if one.unpriced else "")


def tokens(one: UsageSum, count: int) -> str:
    """A number of tokens. Calls without any are calls of which the provider told nothing."""
    return f"{count:,}" if one.input_tokens or one.output_tokens else "unknown"


def amount(kind: BudgetKind, value: float) -> str:
    """What a limit counts, as people read it."""
    return dollars(round(value * MICRO)) if is_usd(kind) else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One day of a chart, in its units."""

    day: str
    x: int
    y: float
    height: float
    said: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars over all days of a period. Drawn by the server: a strict policy lets no script style anything."""

    bars: tuple[Bar, ...]
    width: int
    most: str
    total: str


def chart_of(days: Sequence[UsageSum], since: date, until: date, of: Literal["cost", "tokens"]) -> Chart:
    """Lay a chart out."""
    by_day = {one.group[0]: one for one in days}
    span = [(since + timedelta(days=passed)).isoformat() for passed in range((until - since).days + 1)]

    def height_of(one: UsageSum) -> int:
        return one.cost_micro_usd if of == "cost" else one.input_tokens + one.output_tokens

    def said(one: UsageSum) -> str:
        return cost(one) if of == "cost" else f"{tokens(one, height_of(one))} tokens"

    most = max((height_of(one) for one in days), default=0)
    bars = []
    for place, day in enumerate(span):
        one = by_day.get(day)
        height = 0.0 if one is None or not most else round(height_of(one) / most * _DIM, 1)
        bars.append(Bar(day, place * 10, _DIM - height, height, "nothing" if one is None else said(one)))
    write = dollars if of == "cost" else "{:,}".format
    total = sum(map(height_of, days))
    return Chart(tuple(bars), len(span) * 10, write(most), write(total))


@dataclass(frozen=True, slots=True)
class Group:
    """One table of the page."""

    title: str
    head: str
    rows: tuple[tuple[str, str, UsageSum], ...]
    """Name, where it leads (empty: nowhere), sums."""
    left_out: int


def group_of(title: str, head: str, sums: Sequence[UsageSum], names: Mapping[str, tuple[str, str]]) -> Group:
    """The dearest first; of those that cost the same, or unknown, what was used most."""
    ordered = sorted(sums, key=lambda one: (-one.cost_micro_usd, -one.input_tokens - one.output_tokens, one.group))
    rows = tuple((*names.get(one.group[0], (one.group[0], "")), one) for one in ordered[:LISTED])
    return Group(title, head, rows, max(0, len(sums) - LISTED))


@router.get("/usage")
async def usage_page(visitor: CurrentVisitor, services: CurrentServices, days: str = "") -> Response:
    """Show what was used and what it cost."""
    policy.require(visitor.caller, Scope.USAGE_READ)
    period = next((each for each in PERIODS if str(each) == days), 30)
    until = datetime.now(UTC).date()
    since = until - timedelta(days=period - 1)
    wanted = Filter(None, since=datetime.combine(since, time(), UTC))
    records = UsageRecords(services.db)

    async def sums(by: GroupBy) -> list[UsageSum]:
        led = await services.teams.led(visitor.caller) if by == "team" else ()
        return await records.summary(visitor.caller, (by,), replace(wanted, led=led))

    by_day = await sums("day")
    total = await records.summary(visitor.caller, (), wanted)
    budgets, _ = await services.budgets.page(visitor.caller, None, BUDGETS)
    return render(
        "usage.html",
        **visitor.shown,
        page="/usage",
        periods=PERIODS,
        period=period,
        total=total[0] if total and total[0].requests else None,
        charts=(
            ("Cost by day", chart_of(by_day, since, until, "cost")),
            ("Tokens by day", chart_of(by_day, since, until, "tokens")),
        ),
        since=since.isoformat(),
        until=until.isoformat(),
        groups=[await _group(services, visitor, by, await sums(by)) for by in _grouped(visitor)],
        by_day=list(reversed(by_day)),
        cost=cost,
        tokens=tokens,
        amount=amount,
        budgets=await shown(services, list(budgets)),
        kinds=KINDS,
    )


def _grouped(visitor: Visitor) -> tuple[GroupBy, ...]:
    return ("provider", "model", "secret", "team", "user") if visitor.caller.is_admin else ("provider", "model", "secret", "team")


async def _group(services: Services, visitor: Visitor, by: GroupBy, sums: list[UsageSum]) -> Group:
    if by == "secret":
        found = await secret_names(services, visitor.caller)
        named = {str(secret_id): (name, f"/secrets/{secret_id}") for secret_id, name in found.items()}
        unnamed = {one.group[0]: (f"key {one.group[0][:8]}…", "") for one in sums}
        return group_of("By key", "Key", sums, unnamed | named)
    if by == "team":
        teams = [one for one in sums if one.group[0]]
        mine = {str(team.team_id): (team.name, f"/teams/{team.team_id}") for team in await services.teams.list(visitor.caller)}
        return group_of("By team", "Team", teams, {one.group[0]: (f"team {one.group[0][:8]}…", "") for one in teams} | mine)
    if by == "user":
        people = await user_names(services, visitor.caller)
        return group_of("By person", "Person", sums, {str(user_id): (name, "") for user_id, name in people.items()})
    return group_of(f"By {by}", by.capitalize(), sums, {})
