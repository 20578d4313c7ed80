"""Commands for whoever uses a server: over HTTP, with ``KEYBEARER_URL`` and ``KEYBEARER_TOKEN``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keybearer import config
from keybearer.cli.output import AsJson, print_rows
from keybearer.client import Client
from keybearer.errors import SettingsInvalid


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
    *, by: Annotated[str, typer.Option(help="day, provider, model, secret, token or workflow.")] = "day", as_json: AsJson = False
) -> None:
    """Show what your keys were used for and what it cost."""
    with client() as api:
        rows = api.request("GET", "/usage/summary", query={"by": by})["items"]
    print_rows(rows, ("key", "requests", "input_tokens", "output_tokens", "cost_usd", "unknown_cost"), as_json=as_json)
