"""Commands for whoever uses a server: over HTTP, with ``KEYBEARER_URL`` and ``KEYBEARER_TOKEN``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from keybearer import config
from keybearer.cli.output import AsJson, print_json, print_rows
from keybearer.client import Client
from keybearer.errors import SettingsInvalid

By = Literal["day", "provider", "model", "secret", "user", "team", "token", "workflow", "node"]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("usage")(usage)


def client(timeout: float = 30.0) -> Client:
    """Connect as the environment says; ``timeout`` in seconds for each request. Raises ``SettingsInvalid``."""
    url, token = config.client_environment()
    if not token:
        raise SettingsInvalid("KEYBEARER_TOKEN is not set.", hint="Create an access token in the console and export it.")
    return Client(url or "http://127.0.0.1:8787", token, timeout=timeout)


def read_value() -> str:
    """Read a secret from standard input or, at a terminal, without echo: never from the command line, where others see it."""
    if sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True))
    return sys.stdin.read().strip("\r\n")


def usage(
    *,
    by: Annotated[By, typer.Option(help="What to sum by.")] = "day",
    since: Annotated[str | None, typer.Option(help="From this day or time on, for example 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Until before this day or time.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what your keys were used for and what it cost. What is not known is called unknown, and never counts as nothing."""
    asked = {"by": by, "since": since, "until": until}
    with client() as api:
        items = api.request("GET", "/usage/summary", query={name: value for name, value in asked.items() if value})["items"]
    if as_json:
        print_json(items)
        return
    rows = [{**item, by: item["key"] or "none", "cost": cost(item), **_tokens(item)} for item in items]
    columns = (by, "requests", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost")
    print_rows(rows, columns, as_json=False)


def cost(item: Mapping[str, Any]) -> str:
    """Dollars, as far as they are known."""
    known = f"{item['cost_usd']:.6f}".rstrip("0")
    whole, _, cents = known.partition(".")
    dollars = f"${whole}.{cents.ljust(2, '0')}"
    if item["unknown_cost"] == item["requests"]:
        return "unknown"
    return f"{dollars} + {item['unknown_cost']} unknown" if item["unknown_cost"] else dollars


def _tokens(item: Mapping[str, Any]) -> dict[str, Any]:
    """Calls without any tokens are calls of which the provider told nothing."""
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    is_known = item["input_tokens"] or item["output_tokens"]
    return {name: item[name] if is_known else "unknown" for name in names}
