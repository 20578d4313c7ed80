"""What forms hold, as the services take it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time
from typing import Annotated
from uuid import UUID

from fastapi import Form

from keybearer.domain import Scope
from keybearer.errors import FieldError, Invalid

Text = Annotated[str, Form()]
Texts = Annotated[Sequence[str], Form()]
_DIGITS = 9
"""More are out of any range."""


def split_tags(text: str) -> tuple[str, ...]:
    """Split words at commas."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


def an_id(text: str, field: str) -> UUID | None:
    """Read an id; empty: none. Raises ``Invalid``."""
    try:
        return UUID(text) if text else None
    except ValueError:
        raise Invalid.of(field, "is no id") from None


def named_texts(text: str) -> dict[str, str]:
    """Read ``name=text`` pairs, separated by commas."""
    pairs = (part.partition("=") for part in split_tags(text))
    return {name.strip(): value.strip() for name, _, value in pairs}


def whole(text: str, field: str) -> int | None:
    """Read a whole number; empty: none. Raises ``Invalid``."""
    digits = text.strip()
    if not digits:
        return None
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS):
        raise Invalid(fields=(FieldError(field, "Write a whole number."),))
    return int(digits)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Read the scopes that were ticked. Raises ``Invalid``."""
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        raise Invalid(fields=(FieldError("scopes", "holds something that is no scope"),)) from None


def end_of_day(text: str) -> datetime | None:
    """Return the end of a day given as ``YYYY-MM-DD``, in UTC; empty: never. Raises ``Invalid``."""
    if not text.strip():
        return None
    try:
        return datetime.combine(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC), time(23, 59, 59), UTC)
    except ValueError:
        raise Invalid(fields=(FieldError("expires_at", "Write the day as YYYY-MM-DD."),)) from None


def start_of_day(text: str, field: str) -> datetime:
    """Return the start of a day given as ``YYYY-MM-DD``, in UTC. Raises ``Invalid``."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise Invalid(f"{field} is no day.", hint="Write it as YYYY-MM-DD.", fields=(FieldError(field, "is no day"),)) from None


def day_of(at: datetime | None) -> str:
    """A moment's day, as a form shows it."""
    return "" if at is None else at.strftime("%Y-%m-%d")
