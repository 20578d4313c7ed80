"""Many rows in one statement, for the tables that grow with every call.

SQLAlchemy's own way costs about 25 µs of the event loop's time for each row. Here the driver is handed plain tuples (SQLite: bound
in its own thread) or one JSON document (PostgreSQL, which takes no COPY into tables with row-level security).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import UtcDateTime

Row = tuple[Any, ...]

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects are not annotated
_encode = msgspec.json.Encoder().encode


async def insert(tx: AsyncConnection, table: sa.Table, rows: Sequence[Row], *, on_conflict: str = "") -> None:
    """Insert ``rows``, whose values stand in the order of the table's columns; ``on_conflict`` is that clause in SQL."""
    if not rows:
        return
    columns = list(table.c)
    into = f"INSERT INTO {table.name} ({', '.join(column.name for column in columns)})"
    if tx.dialect.name == "postgresql":
        values = ", ".join(_value(column, place) for place, column in enumerate(columns))
        # `WHERE true`: after a bare FROM the parser takes ON for that of a join.
        await tx.exec_driver_sql(
            f"{into} SELECT {values} FROM {_recordset(columns)} WHERE true {on_conflict}",  # noqa: S608  # our own schema's names
            (_document(columns, rows),),
        )
    else:
        places = ", ".join("?" * len(columns))
        await tx.exec_driver_sql(f"{into} VALUES ({places}) {on_conflict}", _bound(columns, rows))


async def update(tx: AsyncConnection, table: sa.Table, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Set columns of rows found by key: ``names`` begins with the key's column, and each of ``rows`` with its value."""
    if not rows:
        return
    columns = [table.c[name] for name in names]
    if tx.dialect.name == "postgresql":
        sets = ", ".join(f"{column.name} = {_value(column, place)}" for place, column in enumerate(columns) if place)
        await tx.exec_driver_sql(
            f"UPDATE {table.name} AS t SET {sets} FROM {_recordset(columns)} WHERE t.{names[0]} = {_value(columns[0], 0)}",  # noqa: S608  # as above
            (_document(columns, rows),),
        )
    else:
        sets = ", ".join(f"{name} = ?" for name in names[1:])
        await tx.exec_driver_sql(
            f"UPDATE {table.name} SET {sets} WHERE {names[0]} = ?",  # noqa: S608  # as above
            [(*row[1:], row[0]) for row in _bound(columns, rows)],
        )


# --- SQLite: values as SQLAlchemy's types store them


def _bound(columns: Sequence[sa.Column[Any]], rows: Sequence[Row]) -> list[Row]:
    converters = [(place, convert) for place, column in enumerate(columns) if (convert := _converter(column)) is not None]
    bound = []
    for row in rows:
        values = list(row)
        for place, convert in converters:
            if values[place] is not None:
                values[place] = convert(values[place])
        bound.append(tuple(values))
    return bound


def _converter(column: sa.Column[Any]) -> Callable[[Any], str] | None:
    if isinstance(column.type, sa.Uuid):
        return _hex
    if isinstance(column.type, UtcDateTime):
        return _iso
    return None


def _hex(value: UUID) -> str:
    return value.hex


def _iso(value: datetime) -> str:
    return value.isoformat(timespec="microseconds")


# --- PostgreSQL: one JSON document, whose keys are short, for they stand in it once for each row


def _document(columns: Sequence[sa.Column[Any]], rows: Sequence[Row]) -> str:
    keys = [f"c{place}" for place in range(len(columns))]
    binary = [place for place, column in enumerate(columns) if isinstance(column.type, sa.LargeBinary)]
    documents = []
    for row in rows:
        document = dict(zip(keys, row, strict=True))
        for place in binary:
            document[keys[place]] = row[place].hex()
        documents.append(document)
    return _encode(documents).decode()


def _recordset(columns: Sequence[sa.Column[Any]]) -> str:
    kinds = ["text" if isinstance(column.type, sa.LargeBinary) else column.type.compile(_POSTGRESQL) for column in columns]
    return f"json_to_recordset(%s::json) AS r({', '.join(f'c{place} {kind}' for place, kind in enumerate(kinds))})"


def _value(column: sa.Column[Any], place: int) -> str:
    return f"decode(r.c{place}, 'hex')" if isinstance(column.type, sa.LargeBinary) else f"r.c{place}"
