"""``keybearer budget``: budgets and limits, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.use import client

budgets = typer.Typer(help="Budgets and limits: dollars a day or month, requests and tokens a minute.", no_args_is_help=True)

COLUMNS = ("id", "subject", "subject_id", "kind", "amount", "used", "reserved", "remaining", "resets_at", "is_hard", "by_admin")

BudgetId = Annotated[str, typer.Argument(help="The limit's id; 'keybearer budget list' shows it.")]
Amount = Annotated[str, typer.Argument(help="Dollars, requests or tokens, as the kind says.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(budgets, name="budget")


@budgets.command("list")
def budget_list(*, as_json: AsJson = False) -> None:
    """List the limits that you see, and how they stand."""
    with client() as api:
        print_rows(api.pages("/budgets"), COLUMNS, as_json=as_json)


@budgets.command("set")
def budget_set(
    kind: Annotated[str, typer.Argument(help="usd_day, usd_month, requests_minute or tokens_minute.")],
    amount: Amount,
    *,
    subject: Annotated[str, typer.Option(help="token, user, team, secret, provider or deployment.")] = "user",
    of: Annotated[str, typer.Option(help="Its id, or the provider's name; left out: yourself, or the deployment.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Refuse nothing; only show that it is exceeded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set a limit."""
    draft = {"subject": subject, "subject_id": of, "kind": kind, "amount": amount, "is_hard": not soft}
    with client() as api:
        _print(api.request("POST", "/budgets", json=draft), as_json=as_json)


@budgets.command("change")
def budget_change(
    budget_id: BudgetId,
    *,
    amount: Annotated[str | None, typer.Option(help="Dollars, requests or tokens, as the kind says.")] = None,
    hard: Annotated[bool | None, typer.Option("--hard/--soft", help="Refuse calls, or only show that it is exceeded.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a limit; what is used stays used."""
    change: dict[str, Any] = {}
    if amount is not None:
        change["amount"] = amount
    if hard is not None:
        change["is_hard"] = hard
    with client() as api:
        _print(api.request("PATCH", f"/budgets/{budget_id}", json=change), as_json=as_json)


@budgets.command("delete")
def budget_delete(budget_id: BudgetId) -> None:
    """Lift a limit."""
    with client() as api:
        api.request("DELETE", f"/budgets/{budget_id}")
    say("Deleted.")


def _print(budget: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(budget)
    else:
        say(
            f"{budget['kind']} of {budget['subject']} {budget['subject_id']}: {budget['remaining']} of {budget['amount']} remain."
        )
