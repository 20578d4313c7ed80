"""What the body of a fetch asks for: read strictly, and never repeated, for keys are pasted into wrong fields. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from keybearer.domain import Asked, SecretType
from keybearer.errors import FieldError, Invalid

_NAME_CHARACTERS: Final = 200
_PROVIDER: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def asked_in(body: bytes) -> Asked:
    """The secret that is asked for. ``body`` is one JSON object; fields that are ``null`` count as left out. Raises ``Invalid``."""
    said = {field: value for field, value in _decode(body).items() if value is not None}
    read: dict[str, Any] = {}
    wrong: list[FieldError] = []
    for field, value in said.items():
        if field not in _READERS:
            wrong.append(FieldError("body", f"has an unknown field; known are {', '.join(_READERS)}"))
            continue
        reader, problem = _READERS[field]
        try:
            read[field] = reader(value)
        except (TypeError, ValueError):
            wrong.append(FieldError(field, problem))
    if "id" in said and len(said) > 1:
        wrong.append(FieldError("id", "is enough: send nothing beside it"))
    if not said.keys() & {"id", "provider"}:
        wrong.append(FieldError("provider", "is missing: send an id, or a provider"))
    if wrong:
        raise Invalid(fields=tuple(wrong))
    return Asked(**read)


def _provider(value: Any) -> str:
    if _PROVIDER.fullmatch(value) is None:
        raise ValueError
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARACTERS:
        raise ValueError
    return value


_READERS: Final[Mapping[str, tuple[Callable[[Any], Any], str]]] = {
    "id": (lambda value: msgspec.convert(value, UUID), "is not a secret's id"),
    "provider": (_provider, "is not a provider's name"),
    "secret_type": (SecretType, f"is none of {', '.join(SecretType)}"),
    "name": (_name, f"is not a text of 1 to {_NAME_CHARACTERS} characters"),
}
