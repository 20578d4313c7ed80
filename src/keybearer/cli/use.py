"""Commands for whoever uses a server: over HTTP, with ``KEYBEARER_URL`` and ``KEYBEARER_TOKEN``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from keybearer import config
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.client import Client
from keybearer.errors import SettingsInvalid

secrets = typer.Typer(help="Your secrets: list, add, test, change, delete.", no_args_is_help=True)
providers = typer.Typer(help="Providers: predefined ones and your own.", no_args_is_help=True)

SECRET_COLUMNS = ("id", "provider", "secret_type", "name", "preview", "is_active", "state", "usage_count", "last_used_at")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(secrets, name="secret")
    app.add_typer(providers, name="provider")
    app.command("usage")(usage)


def client() -> Client:
    """Connect as the environment says. Raises ``SettingsInvalid``."""
    url, token = config.client_environment()
    if not token:
        raise SettingsInvalid("KEYBEARER_TOKEN is not set.", hint="Create an access token in the console and export it.")
    return Client(url or "http://127.0.0.1:8787", token)


def read_value() -> str:
    """Read a secret from standard input or, at a terminal, without echo: never from the command line, where others see it."""
    if sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True))
    return sys.stdin.read().strip("\r\n")


@secrets.command("list")
def secret_list(
    *, provider: Annotated[str | None, typer.Option(help="Only this provider.")] = None, as_json: AsJson = False
) -> None:
    """List your secrets, without values."""
    with client() as api:
        print_rows(api.pages("/secrets", query={"provider": provider}), SECRET_COLUMNS, as_json=as_json)


@secrets.command("add")
def secret_add(
    provider: Annotated[str, typer.Argument(help="For example openai.")],
    *,
    name: Annotated[str, typer.Option(help="Unique for this provider.")] = "default",
    save_anyway: Annotated[bool, typer.Option("--save-anyway", help="Save although the format looks wrong.")] = False,
    as_json: AsJson = False,
) -> None:
    """Store a secret; its value is read from standard input."""
    draft: dict[str, Any] = {"provider": provider, "name": name, "value": read_value(), "save_anyway": save_anyway}
    with client() as api:
        made = api.request("POST", "/secrets", json=draft)
    if as_json:
        print_json(made)
    else:
        say(f"Stored {made['provider']} “{made['name']}” as {made['id']}.")


@secrets.command("test")
def secret_test(secret_id: Annotated[str, typer.Argument(help="The secret's id.")], *, as_json: AsJson = False) -> None:
    """Test a secret with the provider's cheap call; exits 1 unless it works."""
    with client() as api:
        result = api.request("POST", f"/secrets/{secret_id}/test")
    if as_json:
        print_json(result)
    else:
        say(f"{result['status']}: {result['message']} ({result['latency_ms']:.0f} ms)")
    if result["status"] != "ok":
        raise typer.Exit(1)


@secrets.command("disable")
def secret_disable(secret_id: Annotated[str, typer.Argument(help="The secret's id.")]) -> None:
    """Switch a secret off, everywhere within a second."""
    with client() as api:
        api.request("PATCH", f"/secrets/{secret_id}", json={"is_active": False})
    say("Disabled.")


@secrets.command("enable")
def secret_enable(secret_id: Annotated[str, typer.Argument(help="The secret's id.")]) -> None:
    """Switch a secret on again."""
    with client() as api:
        api.request("PATCH", f"/secrets/{secret_id}", json={"is_active": True})
    say("Enabled.")


@secrets.command("delete")
def secret_delete(secret_id: Annotated[str, typer.Argument(help="The secret's id.")]) -> None:
    """Delete a secret."""
    with client() as api:
        api.request("DELETE", f"/secrets/{secret_id}")
    say("Deleted.")


@providers.command("list")
def provider_list(*, as_json: AsJson = False) -> None:
    """List the providers and whether you have a usable key for each."""
    with client() as api:
        rows = api.request("GET", "/providers")
    print_rows(rows, ("name", "display_name", "base_url", "has_api_key", "is_predefined"), as_json=as_json)


def usage(
    *, by: Annotated[str, typer.Option(help="day, provider, model, secret, token or workflow.")] = "day", as_json: AsJson = False
) -> None:
    """Show what your keys were used for and what it cost."""
    with client() as api:
        rows = api.request("GET", "/usage/summary", query={"by": by})["items"]
    print_rows(rows, ("key", "requests", "input_tokens", "output_tokens", "cost_usd", "unknown_cost"), as_json=as_json)
