"""Many rows in one statement, for the tables that grow with every call.

SQLAlchemy's own way costs about 25 µs of the event loop's time for each row. Here the driver is handed plain tuples (SQLite: bound
in its own thread) or one JSON document (PostgreSQL, which takes no COPY into tables with row-level security).

Who has very many rows spells them as both databases read them, ids as 32 hex digits and times as ISO text (``hex_of``,
``time_of``), and spares this module from looking at each value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import UtcDateTime

Row = tuple[Any, ...]

TOGETHER = 50
"""Rows of one statement on SQLite. The driver's thread takes the interpreter's lock for each statement, and the event loop waits for
it: fewer turns, each still far below a millisecond."""

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects are not annotated
_encode = msgspec.json.Encoder().encode


def hex_of(value: UUID | None) -> str | None:
    """Return an id as rows have it."""
    return None if value is None else value.hex


def time_of(value: datetime) -> str:
    """Return a time (UTC) as rows have it."""
    return value.isoformat(timespec="microseconds")


async def insert(tx: AsyncConnection, table: sa.Table, rows: Sequence[Row], *, on_conflict: str = "") -> None:
    """Insert ``rows``, whose values stand in the order of the table's columns; ``on_conflict`` is that clause in SQL."""
    await insert_spelled(tx, table, spelled(list(table.c), rows), on_conflict=on_conflict)


async def insert_spelled(tx: AsyncConnection, table: sa.Table, rows: Sequence[Row], *, on_conflict: str = "") -> None:
    """As ``insert``, of rows that are spelled already."""
    if not rows:
        return
    columns = list(table.c)
    into = f"INSERT INTO {table.name} ({', '.join(column.name for column in columns)})"
    if tx.dialect.name == "postgresql":
        values = ", ".join(_value(column, place) for place, column in enumerate(columns))
        # `WHERE true`: after a bare FROM the parser takes ON for that of a join.
        await tx.exec_driver_sql(
            f"{into} SELECT {values} FROM {_recordset(columns)} WHERE true {on_conflict}",  # noqa: S608  # our own schema's names
            (_document(len(columns), rows),),
        )
        return
    places = f"({', '.join('?' * len(columns))})"
    whole = len(rows) - len(rows) % TOGETHER
    if whole:
        together = ", ".join([places] * TOGETHER)
        bound = [tuple(chain.from_iterable(rows[start : start + TOGETHER])) for start in range(0, whole, TOGETHER)]
        await tx.exec_driver_sql(f"{into} VALUES {together} {on_conflict}", bound)
    if whole < len(rows):
        await tx.exec_driver_sql(f"{into} VALUES {places} {on_conflict}", list(rows[whole:]))


async def update(tx: AsyncConnection, table: sa.Table, names: Sequence[str], rows: Sequence[Row], *, keys: int = 1) -> None:
    """Set columns of rows found by key: ``names`` begins with the key's columns (``keys`` of them), each of ``rows`` likewise."""
    if not rows:
        return
    columns = [table.c[name] for name in names]
    rows = spelled(columns, rows)
    if tx.dialect.name == "postgresql":
        sets = ", ".join(f"{column.name} = {_value(column, place)}" for place, column in enumerate(columns) if place >= keys)
        where = " AND ".join(f"t.{column.name} = {_value(column, place)}" for place, column in enumerate(columns[:keys]))
        await tx.exec_driver_sql(
            f"UPDATE {table.name} AS t SET {sets} FROM {_recordset(columns)} WHERE {where}",  # noqa: S608  # as above
            (_document(len(columns), rows),),
        )
    else:
        sets = ", ".join(f"{name} = ?" for name in names[keys:])
        where = " AND ".join(f"{name} = ?" for name in names[:keys])
        await tx.exec_driver_sql(
            f"UPDATE {table.name} SET {sets} WHERE {where}",  # noqa: S608  # as above
            [(*row[keys:], *row[:keys]) for row in rows],
        )


async def select(tx: AsyncConnection, table: sa.Table, condition: str, values: Row) -> list[Row]:
    """Return rows as ``insert_spelled`` takes them, unread; ``condition`` is SQL from WHERE on, with ``?`` for each of ``values``.

    For comparing many rows with what they should be: turning ids and times into objects costs more than all else.
    """
    if tx.dialect.name == "postgresql":
        columns, condition = ", ".join(map(_spelled, table.c)), condition.replace("?", "%s")
    else:
        columns = ", ".join(column.name for column in table.c)
    found = await tx.exec_driver_sql(f"SELECT {columns} FROM {table.name} WHERE {condition}", values)  # noqa: S608  # as above
    return [tuple(row) for row in found]


def spelled(columns: Sequence[sa.Column[Any]], rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows as ``insert_spelled`` takes them."""
    converters = [(place, convert) for place, column in enumerate(columns) if (convert := _converter(column)) is not None]
    if not converters:
        return rows
    found = []
    for row in rows:
        values = list(row)
        for place, convert in converters:
            if values[place] is not None:
                values[place] = convert(values[place])
        found.append(tuple(values))
    return found


def _converter(column: sa.Column[Any]) -> Callable[[Any], str | None] | None:
    if isinstance(column.type, sa.Uuid):
        return hex_of
    return time_of if isinstance(column.type, UtcDateTime) else None


# --- PostgreSQL: one JSON document, whose keys are short, for they stand in it once for each row


def _document(width: int, rows: Sequence[Row]) -> str:
    make = _struct(width)
    return _encode([make(*row) for row in rows]).decode()


@lru_cache
def _struct(width: int) -> type[msgspec.Struct]:
    """Return a type that is encoded as an object of so many values, at a third of a dictionary's cost."""
    return msgspec.defstruct(f"Row{width}", [(f"c{place}", Any) for place in range(width)], gc=False)


def _spelled(column: sa.Column[Any]) -> str:
    if isinstance(column.type, sa.Uuid):
        return f"replace({column.name}::text, '-', '')"
    if isinstance(column.type, UtcDateTime):
        return f"to_char({column.name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"
    return column.name


def _recordset(columns: Sequence[sa.Column[Any]]) -> str:
    kinds = ["text" if isinstance(column.type, sa.LargeBinary) else column.type.compile(_POSTGRESQL) for column in columns]
    return f"json_to_recordset(%s::json) AS r({', '.join(f'c{place} {kind}' for place, kind in enumerate(kinds))})"


def _value(column: sa.Column[Any], place: int) -> str:
    return f"decode(r.c{place}, 'base64')" if isinstance(column.type, sa.LargeBinary) else f"r.c{place}"
