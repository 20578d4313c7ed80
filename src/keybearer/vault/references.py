"""References: where a secret's value is kept instead of here, and who may point where. Pure.

``aws``      region, id, key: AWS Secrets Manager          ``openbao``  mount, path, key: OpenBao's (or Vault's) KV engine, version 2
``env``      name: an environment variable of the server

``key`` names one text of a JSON object; without it the whole text is the value. A reference is read with the *server's* identity, so
that whoever makes one borrows its power (the confused deputy): administrators may, others below the prefixes that the operator
gave each owner. By whose leave one was made is sealed with it, in the place of the value, so that nobody who writes the database
points a secret elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from keybearer.access import policy
from keybearer.access.fields import Fields
from keybearer.domain import SYSTEM_OWNER_ID, Caller, SecretBytes
from keybearer.errors import EnvelopeError, Forbidden, KeybearerError, ReferenceDenied, SettingsInvalid

SOURCES = ("aws", "openbao", "env")
OWNER = "{owner}"
"""In an operator's prefix: the id of whose secret it is, a user's or a team's."""
LEAVE = Literal["admin", "prefix"]
MARK = b"\x00keybearer/v1/reference\x00"
"""Before a sealed reference. No value that people enter has a NUL."""

_PATH = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._@+=~-]+(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._@+=~-]+)*"
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]{1,12}){1,3}-[0-9]{1,2}")
_AWS_NAME = re.compile(
    r"[A-Za-z0-9/_+=.@-]{1,512}|arn:aws[a-z-]*:secretsmanager:[a-z0-9-]{1,40}:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]{1,512}"
)
_MOUNT, _NAME = re.compile(_PATH), re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_KEY_LIMIT, _PATH_LIMIT = 200, 1024
_FIELDS = {"aws": ("region", "id", "key"), "openbao": ("mount", "path", "key"), "env": ("name",)}
_FORMS = {"region": _REGION, "id": _AWS_NAME, "mount": _MOUNT, "path": _MOUNT, "name": _NAME}
_EXAMPLES = {
    "region": "the name of an AWS region, like eu-central-1",
    "id": "the name or ARN of a secret",
    "mount": "a path like 'secret'",
    "path": "a path like 'apps/openai', without dots as segments",
    "name": "the name of an environment variable",
}
_OURS = "KEYBEARER_"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a value is; see the module."""

    source: str
    place: str
    """``aws``: the region; ``openbao``: the mount."""
    name: str
    key: str
    leave: LEAVE
    """Whose: an administrator's, or a prefix's of the operator."""

    def shown(self) -> dict[str, str]:
        """For answers and the secret's row: fields by name, without those that are not given."""
        values = (self.place, self.name, self.key) if self.source != "env" else (self.name,)
        named = {name: value for name, value in zip(_FIELDS[self.source], values, strict=True) if value}
        return {"source": self.source, **named, "leave": self.leave}

    def sealable(self) -> SecretBytes:
        """What is sealed in the place of the value."""
        return SecretBytes(MARK + json.dumps(self.shown(), sort_keys=True).encode())

    def __str__(self) -> str:
        where = f"{self.source}:{self.place}/{self.name}" if self.place else f"{self.source}:{self.name}"
        return f"{where}#{self.key}" if self.key else where


def opened(value: SecretBytes) -> Reference | None:
    """The reference, where that is what was sealed. Raises ``EnvelopeError``."""
    raw = value.reveal()
    if not raw.startswith(MARK):
        return None
    try:
        found = json.loads(raw.removeprefix(MARK))
        leave = found.pop("leave")
        return _of(found, leave)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EnvelopeError from None


def checked(given: Mapping[str, Any] | str) -> Reference:
    """A reference as somebody typed it, field by field or in one line, not yet by anybody's leave. Raises ``Invalid``."""
    fields = Fields()
    if isinstance(given, str):
        given = _read(given)
    source = given.get("source")
    if source not in _FIELDS:
        fields.wrong("reference.source", f"is none of {', '.join(SOURCES)}")
        fields.check()
    names = _FIELDS[str(source)]
    for name in sorted(given.keys() - {"source", *names}):
        fields.wrong(f"reference.{name}", f"does not belong to {source}")
    for name in names:
        text = given.get(name) or ""
        if name == "key":
            fields.line("reference.key", text, _KEY_LIMIT)
        elif len(text) > _PATH_LIMIT or not _FORMS[name].fullmatch(text):
            fields.wrong(f"reference.{name}", f"is not {_EXAMPLES[name]}")
    fields.check()
    return _of(dict(given), "prefix")


@dataclass(frozen=True, slots=True)
class _Prefix:
    source: str
    place: str
    name: str

    def covers(self, reference: Reference, owner_id: UUID) -> bool:
        below = self.name.replace(OWNER, str(owner_id))
        return (reference.source, reference.place) == (self.source, self.place) and reference.name.startswith(below)


class Leaves:
    """What the operator lets references point to.

    ``sources``: of ``aws`` and ``openbao`` those that may be asked at all. ``variables``: the environment variables that may be
    named. ``prefixes``: like ``openbao:secret/people/{owner}/``, what everybody may point below. Raises ``SettingsInvalid``.
    """

    def __init__(self, sources: tuple[str, ...] = (), variables: tuple[str, ...] = (), prefixes: tuple[str, ...] = ()) -> None:
        for source in sources:
            if source not in {"aws", "openbao"}:
                raise SettingsInvalid(f"KEYBEARER_REFERENCE_SOURCES: {source!r} is neither 'aws' nor 'openbao'.")
        for name in variables:
            if not _NAME.fullmatch(name) or name.upper().startswith(_OURS):
                message = f"KEYBEARER_REFERENCE_ENVIRONMENT: {name[:100]!r} cannot be pointed to."
                raise SettingsInvalid(
                    message, hint="Name variables other than Keybearer's own settings, which hold its root key."
                )
        self._sources = frozenset(sources)
        self._variables = frozenset(variables)
        self._prefixes = tuple(_prefix_of(text) for text in prefixes)

    def granted(self, caller: Caller, owner_id: UUID, given: Mapping[str, Any] | str) -> Reference:
        """A reference that ``caller`` may make for this owner. Raises ``Invalid``, ``Forbidden``, ``ScopeMissing``."""
        reference = checked(given)
        self._require_open(reference, owner_id, Forbidden)
        if reference.source == "env" or not self._is_below(reference, owner_id):
            if not caller.is_admin:
                raise Forbidden(
                    "Only administrators may point a secret at what the server itself can read.",
                    hint="Ask one; the operator can give everybody a place of their own: KEYBEARER_REFERENCE_PREFIXES.",
                )
            policy.require_admin(caller)
            return Reference(reference.source, reference.place, reference.name, reference.key, "admin")
        return reference

    def require(self, reference: Reference, owner_id: UUID) -> None:
        """Before each reading: what the operator took back is not read any more. Raises ``ReferenceDenied``."""
        self._require_open(reference, owner_id, ReferenceDenied)
        if reference.leave != "admin" and not self._is_below(reference, owner_id):
            raise ReferenceDenied(f"{reference} is no longer below a prefix that you may point to.", hint="Ask an administrator.")

    def _require_open(self, reference: Reference, owner_id: UUID, error: type[KeybearerError]) -> None:
        if reference.source == "env":
            if owner_id != SYSTEM_OWNER_ID:
                raise error("Only the system's secrets may point to the server's environment.", hint="Make it a system secret.")
            if reference.name not in self._variables:
                hint = "The operator lists those that may be: KEYBEARER_REFERENCE_ENVIRONMENT."
                raise error(f"The environment variable {reference.name} may not be pointed to.", hint=hint)
        elif reference.source not in self._sources:
            hint = "The operator names those that may be: KEYBEARER_REFERENCE_SOURCES."
            raise error(f"Secrets may not point into {reference.source} here.", hint=hint)

    def _is_below(self, reference: Reference, owner_id: UUID) -> bool:
        return any(prefix.covers(reference, owner_id) for prefix in self._prefixes)


def require_power(caller: Caller, reference: Reference | None) -> None:
    """Whoever decides where a value goes, or that it may be read, must have been able to point to it.

    Else a team's admin would be handed what an administrator let the team use. Raises ``Forbidden``, ``ScopeMissing``.
    """
    if reference is not None and reference.leave == "admin":
        policy.require_admin(caller)


def _read(text: str) -> dict[str, str]:
    """The fields of ``aws:eu-central-1/apps/openai#key``, ``openbao:secret/apps/openai#key`` or ``env:NAME``."""
    source, _, rest = text.strip().partition(":")
    if source == "env":
        return {"source": source, "name": rest}
    where, _, key = rest.partition("#")
    place, _, name = where.partition("/")
    fields = {"source": source, "key": key} if key else {"source": source}
    return fields | dict(zip(_FIELDS.get(source, ()), (place, name), strict=False))


def _of(found: dict[str, Any], leave: str) -> Reference:
    source = found["source"]
    place, name, key = "", "", ""
    match source:
        case "aws":
            place, name, key = found["region"], found["id"], found.get("key") or ""
        case "openbao":
            place, name, key = found["mount"], found["path"], found.get("key") or ""
        case "env":
            name = found["name"]
        case _:
            raise EnvelopeError
    if leave not in {"admin", "prefix"}:
        raise EnvelopeError
    return Reference(source, place, name, key, "admin" if leave == "admin" else "prefix")


def _prefix_of(text: str) -> _Prefix:
    source, _, rest = text.partition(":")
    place, _, name = rest.partition("/")
    # Whole segments: "people/{owner}" would cover "people/<id>-of-another" as well.
    if source not in {"aws", "openbao"} or not place or not name.endswith("/") or OWNER not in name.split("/"):
        raise SettingsInvalid(
            f"KEYBEARER_REFERENCE_PREFIXES: {text[:200]!r} is no prefix of one owner.",
            hint="Like 'openbao:secret/people/{owner}/' or 'aws:eu-central-1/people/{owner}/': with {owner} as a segment, and a / last.",
        )
    return _Prefix(source, place, name)
