"""The access log as a file: JSON lines for programs, CSV for spreadsheets. Streamed: a page is in memory at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Literal

import msgspec

from keybearer.audit.access_log import MOST, Access, AccessLog
from keybearer.domain import Caller
from keybearer.store.queries.audit import Filter

Format = Literal["jsonl", "csv"]
MEDIA_TYPES: dict[str, str] = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
COLUMNS = tuple(field.name for field in fields(Access))

# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection"); user agents and model names are anybody's text.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
_encode = msgspec.json.Encoder().encode


async def lines(log: AccessLog, caller: Caller, wanted: Filter, form: Format) -> AsyncIterator[bytes]:
    """Yield what ``caller`` may see of the access log, the newest first, a page at a time."""
    if form == "csv":
        yield _csv([COLUMNS])
    cursor: str | None = None
    while True:
        page, cursor = await log.page(caller, wanted, cursor, MOST)
        yield b"".join(_encode(asdict(row)) + b"\n" for row in page) if form == "jsonl" else _csv(_cells(row) for row in page)
        if cursor is None:
            return


def _csv(rows: Iterator[Any] | list[Any]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue().encode()


def _cells(row: Access) -> list[str]:
    return [_cell(getattr(row, name)) for name in COLUMNS]


def _cell(value: object) -> str:
    """Return a value as a cell that no spreadsheet runs."""
    if value is None:
        return ""
    match value:
        case dict():
            text = _encode(value).decode()
        case datetime():
            text = value.isoformat()
        case _:
            text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
