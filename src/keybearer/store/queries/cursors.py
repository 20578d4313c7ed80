"""Cursors of lists: where a page ended, as opaque text. They carry no authority, only a place: each page filters anew."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

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
    if not place or any(isinstance(part, datetime) and part.tzinfo is None for part in place):
        raise Invalid("The cursor is not one of ours.", fields=(FieldError("cursor", "Use next_cursor as it was given."),))
    return place
