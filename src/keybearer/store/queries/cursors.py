"""Cursors of lists: where a page ended, as opaque text. They carry no authority, only a place: each page filters anew."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.errors import FieldError, Invalid


def encode(place: tuple[datetime | UUID | str | int, ...]) -> str:
    """Turn a place in a list (times, ids, numbers) into a cursor."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode(cursor: str, kind: Any) -> tuple[Any, ...]:
    """Turn a cursor back into a place of the type ``kind``, for example ``tuple[datetime, UUID]``. Raises ``Invalid``."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place: tuple[Any, ...] = msgspec.json.decode(text, type=kind)
    except ValueError:
        place = ()
    if not place or any(map(_is_foreign, place)):
        raise Invalid("The cursor is not one of ours.", fields=(FieldError("cursor", "Use next_cursor as it was given."),))
    return place


def _is_foreign(part: Any) -> bool:
    """A time without its zone, or a text or a number that no column holds."""
    if isinstance(part, int):
        return not 0 <= part < 2**63
    return (isinstance(part, datetime) and part.tzinfo is None) or (isinstance(part, str) and not part.isprintable())


async def page(
    tx: AsyncConnection,
    query: sa.Select[Any],
    order: dict[sa.Column[Any], type],
    cursor: str | None,
    limit: int,
    *,
    descending: bool = False,
) -> tuple[Sequence[sa.Row[Any]], str | None]:
    """Read a page of ``query`` in the order of these columns, each with the type of its values, and the cursor of the next page.

    Together the columns are unique, and none of them changes, or rows would be skipped or come twice. Raises ``Invalid`` for a
    foreign cursor.
    """
    columns = tuple(order)
    if cursor is not None:
        kind = tuple.__class_getitem__(tuple(order.values()))
        place = (sa.literal(value, column.type) for value, column in zip(decode(cursor, kind), columns, strict=True))
        here, there = sa.tuple_(*columns), sa.tuple_(*place)
        query = query.where(here < there if descending else here > there)
    ordered = query.order_by(*(column.desc() if descending else column for column in columns))
    found = (await tx.execute(ordered.limit(limit + 1))).all()
    more = len(found) > limit
    return found[:limit], encode(tuple(getattr(found[limit - 1], column.name) for column in columns)) if more else None
