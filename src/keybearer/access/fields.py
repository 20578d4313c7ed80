"""What people type: normalised, measured, and refused by the name of the field. Pure; no value ends up in a message."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime

from keybearer.domain import SecretBytes
from keybearer.errors import FieldError, Invalid

NAME_LIMIT = 200
EMAIL_LIMIT = 320
DESCRIPTION_LIMIT = 2000
TAG_LIMIT, TAGS_LIMIT = 50, 50

_FIELD = re.compile(r"[a-z_]{1,30}")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(?:\.[^@\s.]+)*")
# Not letters of any language: controls, lone surrogates, line and paragraph separators.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# They turn the direction of what follows, so that one name looks like another (Unicode TR 36).
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_INVISIBLE = frozenset({"Cf", "Zs"})
_LINE_CHARACTERS = frozenset("\n\r\t")


def has_control(text: str, *, lines: bool = False) -> bool:
    """Whether ``text`` has characters that nobody types; with ``lines``, line breaks and tabs are allowed."""
    if text.isascii() and text.isprintable():
        return False
    return any(
        (unicodedata.category(character) in _REFUSED_CATEGORIES or character in _DIRECTIONS)
        and not (lines and character in _LINE_CHARACTERS)
        for character in text
    )


def normalised_email(text: str) -> str:
    """An e-mail address in the one form that accounts are kept and looked for under."""
    return unicodedata.normalize("NFC", text).strip().lower()


def secret_value(text: str) -> SecretBytes:
    """A typed value on its way in. Lone surrogates are let through here and refused by name where the value is checked."""
    return SecretBytes(text.encode("utf-8", "surrogatepass"))


class Fields:
    """Collects what is wrong with the fields of one request, so that all of it is told at once."""

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def wrong(self, field: str, message: str) -> None:
        """Note that ``field`` is wrong; ``message`` follows the field's name in a sentence."""
        self._errors.append(FieldError(field, message))

    def unknown(self, names: Iterable[str]) -> None:
        """Note fields that there are not, or that cannot be changed; a name that is none is not repeated: it may be a value."""
        for name in sorted(names):
            self.wrong(name if _FIELD.fullmatch(name) else "a field", "cannot be changed")

    def check(self) -> None:
        """Raise ``Invalid`` with all that is wrong, if anything is."""
        if self._errors:
            first = self._errors[0]
            raise Invalid(f"{first.field} {first.message}.", fields=tuple(self._errors))

    def name(self, field: str, value: str, most: int = NAME_LIMIT) -> str:
        """One line that must not be empty, in NFC, without outer white space."""
        text = self._line(field, value, most)
        if not any(unicodedata.category(character) not in _INVISIBLE for character in text) and not self._is_wrong(field):
            self.wrong(field, "is required")
        return text

    def line(self, field: str, value: str, most: int = NAME_LIMIT) -> str:
        """One line, possibly empty."""
        return self._line(field, value, most)

    def text(self, field: str, value: str, most: int = DESCRIPTION_LIMIT) -> str:
        """Text of several lines, possibly empty."""
        return self._line(field, value, most, lines=True)

    def words(self, field: str, values: Iterable[str], most: int = TAGS_LIMIT, each: int = TAG_LIMIT) -> tuple[str, ...]:
        """A list of distinct short texts, in the order given."""
        listed = list(values)
        if len(listed) > most:
            self.wrong(field, f"has {len(listed)} entries; at most {most} are allowed")
            return ()
        cleaned = (self.name(f"{field}.{number}", value, each) for number, value in enumerate(listed))
        return tuple(dict.fromkeys(cleaned))

    def email(self, field: str, value: str) -> str:
        """An e-mail address in lower case."""
        text = self._line(field, value, EMAIL_LIMIT).lower()
        if not _EMAIL.fullmatch(text) and not self._is_wrong(field):
            self.wrong(field, "is not an e-mail address")
        return text

    def future(self, field: str, at: datetime | None, now: datetime) -> datetime | None:
        """A moment to come, with its time zone; ``None``: never."""
        if at is None:
            return None
        if at.tzinfo is None:
            self.wrong(field, "needs a time zone, for example 2030-01-31T12:00:00Z")
        elif at <= now:
            self.wrong(field, "lies in the past")
        return at

    def _is_wrong(self, field: str) -> bool:
        return any(error.field == field for error in self._errors)

    def _line(self, field: str, value: str, most: int, *, lines: bool = False) -> str:
        # Measured before it is normalised, which takes time by length and may make text longer or shorter.
        if len(value) > 4 * most:
            self.wrong(field, f"has {len(value)} characters; at most {most} are allowed")
            return ""
        text = unicodedata.normalize("NFC", value).strip()
        if has_control(text, lines=lines):
            self.wrong(field, "has control or other invisible characters")
            return ""
        if len(text) > most:
            self.wrong(field, f"has {len(text)} characters; at most {most} are allowed")
            return ""
        return text
