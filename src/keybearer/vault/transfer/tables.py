"""Rows as they stand in a backup: the same from either kind of database, and back. Pure.

A row is a list of JSON values in the order of the table's columns: ids as 32 hex digits, times as ISO text in UTC, bytes as base64. A
table's digest is the sum of its rows' SHA-256 (mod 2²⁵⁶): it does not depend on the order, which the databases' collations make differ.
What lives with running processes or open browsers alone is left out: people sign in again, processes register anew.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from keybearer.errors import BackupError
from keybearer.store.schema import UtcDateTime, metadata

PASSING = frozenset({"session", "one_time_link", "key_holder", "change"})


def kept() -> Iterator[sa.Table]:
    """Yield the tables of a backup, those that are referred to first."""
    return (table for table in metadata.sorted_tables if table.name not in PASSING)


class Digest:
    """Counts rows and adds up their hashes."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, row: Sequence[Any]) -> None:
        """Take in one row, as it stands in a backup."""
        line = json.dumps(row, sort_keys=True, separators=(",", ":")).encode()
        self.rows += 1
        self._sum = (self._sum + int.from_bytes(hashlib.sha256(line).digest(), "big")) % 2**256

    def told(self) -> dict[str, Any]:
        """Return both as they stand in a backup."""
        return {"rows": self.rows, "digest": f"{self._sum:064x}"}


def written(row: Sequence[Any]) -> list[Any]:
    """A row from the database as it stands in a backup."""
    return [_written(value) for value in row]


def read(columns: Sequence[sa.Column[Any]], row: Sequence[Any]) -> Mapping[str, Any]:
    """A row of a backup as the database takes it. Raises ``BackupError`` for what does not fit."""
    if not isinstance(row, list) or len(row) != len(columns):
        raise _misfit(columns)
    try:
        return {column.name: _read(column, value) for column, value in zip(columns, row, strict=True)}
    except (ValueError, TypeError, AttributeError, Base64Error):
        raise _misfit(columns) from None


def columns_of(table: sa.Table, names: Sequence[str]) -> list[sa.Column[Any]]:
    """The columns that a backup names. Raises ``BackupError`` where this version has none of the name."""
    if not isinstance(names, list) or not all(name in table.c for name in names) or len(set(names)) != len(names):
        raise BackupError(
            f"The backup's table {table.name} has columns that this version does not know.",
            hint="Restore it with the version that made it, then upgrade.",
        )
    return [table.c[name] for name in names]


def _written(value: Any) -> Any:
    match value:
        case UUID():
            return value.hex
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case bytes() | memoryview():
            return b64encode(value).decode()
        case tuple():
            return list(value)
    return value


def _read(column: sa.Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, sa.Uuid):
        return UUID(hex=value)
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat(value)
    if isinstance(column.type, sa.LargeBinary):
        return b64decode(value, validate=True)
    return value


def _misfit(columns: Sequence[sa.Column[Any]]) -> BackupError:
    return BackupError(f"A row of the backup's table {columns[0].table.name} is not of its form.")
