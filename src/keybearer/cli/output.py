"""What commands print: a table for people, JSON for programs, ``error:`` and ``hint:`` on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from keybearer.errors import KeybearerError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_error(error: KeybearerError) -> None:
    """Print a deliberate error to standard error."""
    print(f"error: {error.message}", file=sys.stderr)  # noqa: T201
    for wrong in error.fields:
        print(f"       {wrong.field}: {wrong.message}", file=sys.stderr)  # noqa: T201
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))  # noqa: T201


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as a table of ``columns``, or whole as a JSON array."""
    listed = list(rows)
    if as_json:
        print_json(listed)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column in {"id", "name", "provider", "state"})
    for row in listed:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(table)


def say(text: str) -> None:
    """Print one line for people."""
    print(text)  # noqa: T201


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return str(value)
