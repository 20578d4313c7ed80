"""Cursors of lists: where a page ended, as opaque text. They carry no authority, only a place: each page filters anew."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from keybearer.errors import FieldError, Invalid

Place = TypeVar("Place", bound=tuple[object, ...])


def encode(place: tuple[object, ...]) -> str:
    """Turn a place in a list (times, ids, numbers) into a cursor."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode(cursor: str, kind: type[Place]) -> Place:
    """Turn a cursor back into a place of type ``kind``, for example ``tuple[datetime, UUID]``. Raises ``Invalid``."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(text, type=kind)
    except ValueError:
        place = None
    if place is None or any(isinstance(part, datetime) and part.tzinfo is None for part in place):
        raise Invalid("The cursor is not one of ours.", fields=(FieldError("cursor", "Use next_cursor as it was given."),))
    return kind(part.astimezone(UTC) if isinstance(part, datetime) else part for part in place)
