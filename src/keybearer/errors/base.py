"""What all errors have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: ``field`` is its dotted path in the request, ``message`` what is wrong with it."""

    field: str
    message: str


class KeybearerError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    default_hint: ClassVar[str] = ""
    is_recorded = False
    """Set on a refusal that is on record already."""

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = None,
        fields: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        """``message`` and ``hint`` default to the class's own; ``retry_after`` is in seconds."""
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = self.default_hint if hint is None else hint
        self.fields = fields
        self.retry_after = retry_after
        super().__init__(self.message)
