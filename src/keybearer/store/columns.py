"""What the tables' columns are made of: types that mean the same on both databases, and names for what a table has.

SQLite lets anything into any column. What is read from one that cannot have been written there becomes a value of the column's
type that nothing here writes: no row MAC covers it, and the rows beside it are read as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


NO_TIME = datetime.fromtimestamp(0, UTC)
NO_NUMBER = -1
NO_ID = UUID(int=2**128 - 1)
"""What is read from a column that holds no time, no whole number, no id (RFC 9562's Max UUID)."""


class UtcDateTime(TypeDecorator[datetime]):
    """``timestamptz`` on PostgreSQL; on SQLite ISO text of fixed width, so that it sorts. Naive values are refused."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.DateTime(timezone=True))
        return dialect.type_descriptor(sa.String(32))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            msg = "naive datetime"
            raise ValueError(msg)
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # the base names it
        if value is None or isinstance(value, datetime):
            return value.astimezone(UTC) if value is not None else None
        try:
            found = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return NO_TIME
        return NO_TIME if found.tzinfo is None else found


class Whole(sa.Integer):
    """A whole number; on SQLite nothing else is read from it."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return super().result_processor(dialect, coltype) if dialect.name == "postgresql" else _whole


class BigWhole(sa.BigInteger):
    """A whole number of up to 63 bits; on SQLite nothing else is read from it."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return super().result_processor(dialect, coltype) if dialect.name == "postgresql" else _whole


class Id(sa.Uuid[UUID]):
    """A UUID; on SQLite nothing else is read from it."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        process: Callable[[Any], Any] | None = super().result_processor(dialect, coltype)  # type: ignore[no-untyped-call]
        if process is None or dialect.name == "postgresql":
            return process

        def read(value: Any) -> Any:
            try:
                return process(value)
            except (AttributeError, TypeError, ValueError):
                return NO_ID

        return read


def _whole(value: Any) -> int | None:
    return value if value is None or type(value) is int else NO_NUMBER


Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
"""Lists and objects; ``None`` is stored as SQL NULL by giving the column ``none_as_null``."""
NullableJson = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def id_column(name: str = "id") -> sa.Column[Any]:
    """A UUID that is the key of its table."""
    return sa.Column(name, Id(), primary_key=True)


def created_at() -> sa.Column[Any]:
    """When the row was made."""
    return sa.Column("created_at", UtcDateTime(), nullable=False)
