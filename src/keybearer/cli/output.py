"""What commands print: a table for people, JSON for programs, ``error:`` and ``hint:`` on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size

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
    head = [column.replace("_", " ") for column in columns]
    lines = table([head, *([_cell(row.get(column)) for column in columns] for row in listed)])
    if sys.stdout.isatty():
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    say("\n".join(lines))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, a line for each whatever the terminal's width: what is folded cannot be searched for or copied.

    Texts are shown as they are: other people's names neither mark up this output nor steer the terminal.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(set_cell_size(*each) for each in zip(row, widths, strict=True)).rstrip() for row in shown]


def printable(text: str) -> str:
    """Return a text that does not steer the terminal it is shown on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


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
