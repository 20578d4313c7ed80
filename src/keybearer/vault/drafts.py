"""A secret as somebody typed it: checked field by field into columns. Pure, but for the clock it is handed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from keybearer.access.fields import NAME_LIMIT, Fields
from keybearer.catalog import MODEL_NAME_LIMIT, Catalog, Provider, Registry
from keybearer.domain import SecretBytes, SecretType
from keybearer.errors import ProviderUnknown
from keybearer.vault import values
from keybearer.vault.oauth import OAuth, changed
from keybearer.vault.references import Reference
from keybearer.vault.sealed import Content, Unreadable

DEFAULT_NAME = "default"
PRIORITY_LIMIT = 1000
LIST_LIMIT = 100
ROTATION_LIMIT = 3650
"""Days."""
CHECK_LIMIT = 8760
"""Hours."""
LIFTED_BY_NONE = frozenset({"allowed_models", "allowed_tokens", "expires_at", "rotation_period", "health_check_every"})
"""Fields for which ``None`` is a value: no limit, never. For the others it means: as it is."""

NOTHING = SecretBytes(b"")

_PROVIDER = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_TOKEN_ID = re.compile(r"[0-9A-Za-z]{12}")


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret to be stored; see ``domain.Secret`` for the fields."""

    provider: str
    value: SecretBytes = field(default_factory=lambda: NOTHING)
    secret_type: SecretType | None = None
    """``None``: the provider's default."""
    name: str = DEFAULT_NAME
    description: str = ""
    tags: tuple[str, ...] = ()
    priority: int = 100
    """0 to 1000; lower first."""
    allowed_models: tuple[str, ...] | None = None
    """Model names, bare or as ``provider/model``; ``None``: all."""
    allowed_tokens: tuple[str, ...] | None = None
    """Ids of access tokens; ``None``: all."""
    expires_at: datetime | None = None
    rotation_period: int | None = None
    """Days after which the value should be replaced; ``None``: whenever."""
    health_check_every: int | None = None
    """Hours between two tests on a schedule; 0: never; ``None``: as the deployment does."""
    oauth: Mapping[str, Any] | None = None
    """Of an ``oauth_token``: see ``oauth.changed``."""
    reference: Mapping[str, Any] | str | None = None
    """Where the value is kept instead of here: see ``references``. Then ``value`` is left empty."""
    is_active: bool = True
    fallback_allowed: bool = False
    """Whether a team's or the system's key may serve where this one cannot."""
    fetchable: bool = False
    """Whether the value may be fetched at all, with the scope ``secrets:read``."""
    system: bool = False
    """The deployment's own; administrators only."""
    team_id: UUID | None = None
    """A team's own; its owners and admins only."""
    save_anyway: bool = False
    """Save although the format looks wrong."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of the provider's address, where it has any: an Azure resource, an AWS region. They become a part of the egress set."""


@dataclass(frozen=True, slots=True)
class Pointed:
    """A reference that its maker may make, and what was found there."""

    reference: Reference
    value: SecretBytes


@dataclass(frozen=True, slots=True)
class Draft:
    """A new secret, checked."""

    provider: Provider | None
    """``None``: not in the registry."""
    columns: dict[str, Any]
    content: Content


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of a secret, checked."""

    columns: dict[str, Any]
    content: Content | None
    """``None``: as it is."""
    fields: tuple[str, ...]
    """The names of what was given, for the record."""
    parameters: Mapping[str, str] | None
    """``None``: as they are."""


def provider_named(providers: Registry, name: str) -> Provider:
    """A provider of the registry. Raises ``ProviderUnknown``, which does not repeat the name: it may be a key in the wrong field."""
    known = providers.providers.get(name)
    if known is None:
        raise ProviderUnknown
    return known


def checked_draft(providers: Registry, catalog: Catalog, new: NewSecret, now: datetime, pointed: Pointed | None = None) -> Draft:
    """A new secret's columns; ``pointed``: instead of a value. Raises ``ProviderUnknown``, ``Invalid`` and its kinds.

    Secrets of other types than ``api_key`` may name a provider that the registry does not have: they are bound to no host, and
    no call uses them.
    """
    known = providers.providers.get(new.provider)
    if known is None and (new.secret_type in {None, SecretType.API_KEY} or not _PROVIDER.fullmatch(new.provider)):
        provider_named(providers, new.provider)
    secret_type = new.secret_type or (known.secret_type if known else SecretType.CUSTOM)
    given = {name: getattr(new, name) for name in _READERS}
    columns = _columns(catalog, given, now)
    text = values.text_of(new.value if pointed is None else pointed.value, secret_type)
    values.check(catalog, known, secret_type, text, save_anyway=new.save_anyway)
    content = _content(text, secret_type, _oauth(secret_type, None, new.oauth), pointed)
    columns |= {"provider": new.provider, "secret_type": secret_type.value, "preview": content.preview}
    return Draft(known, columns | _shown(content), content)


def checked_changes(
    known: Provider | None, catalog: Catalog, row: Any, before: Content | None, fields: Mapping[str, Any], now: datetime
) -> Changes:
    """What a change of ``row`` writes. ``before``: what the secret holds; ``None``: it does not open.

    Raises ``Invalid`` and its kinds, ``Unreadable`` where a part of what does not open is to be changed.
    """
    given = {name: value for name, value in fields.items() if value is not None or name in LIFTED_BY_NONE}
    value, oauth_given, parameters, pointed = (given.pop(name, None) for name in ("value", "oauth", "parameters", "reference"))
    if pointed is not None:
        require_alone(value)
        value = pointed.value
    save_anyway = bool(given.pop("save_anyway", False))
    columns = _columns(catalog, given, now)
    secret_type = SecretType(row.secret_type)
    text = "" if value is None else values.text_of(value, secret_type)
    named = [*columns, *(name for name, part in (("oauth", oauth_given), ("parameters", parameters)) if part)]
    if not text.strip() and not oauth_given:
        return Changes(columns, None, tuple(sorted(named)), parameters)
    parts = _oauth(secret_type, None if before is None else before.oauth, oauth_given)
    if text.strip():
        values.check(catalog, known, secret_type, text, shown=row.preview, save_anyway=save_anyway)
        content = _content(text, secret_type, parts, pointed)
        return Changes(columns, content, tuple(sorted([*named, "value" if pointed is None else "reference"])), parameters)
    if before is None:
        raise Unreadable(row)
    content = replace(before, oauth=parts)
    _require_no_reference(content)
    return Changes(columns, content, tuple(sorted(named)), parameters)


def require_alone(value: SecretBytes | None) -> None:
    """Raise ``Invalid`` where a value was given beside a reference."""
    if value is not None and value.reveal().strip():
        fields = Fields()
        fields.wrong("reference", "takes the place of a value: give one of them")
        fields.check()


def _content(text: str, secret_type: SecretType, parts: OAuth | None, pointed: Pointed | None) -> Content:
    value = SecretBytes(text.encode())
    if pointed is None:
        return Content(value, values.preview_of(text, secret_type), parts)
    content = Content(value, "", parts, pointed.reference)  # even a preview would store a part of it
    _require_no_reference(content)
    return content


def _shown(content: Content) -> dict[str, Any]:
    return {
        "oauth": None if content.oauth is None else content.oauth.previews(),
        "reference": None if content.reference is None else content.reference.shown(),
    }


def _require_no_reference(content: Content) -> None:
    """What is refreshed is kept here: nothing is ever written into another store."""
    if content.oauth is not None and content.reference is not None:
        fields = Fields()
        fields.wrong("oauth", "does not go with a reference: a token that is refreshed is kept here")
        fields.check()


def _oauth(secret_type: SecretType, before: OAuth | None, given: Mapping[str, Any] | None) -> OAuth | None:
    if not given:
        return before
    if secret_type is not SecretType.OAUTH_TOKEN:
        fields = Fields()
        fields.wrong("oauth", "belongs to secrets of the type oauth_token")
        fields.check()
    return changed(before, given)


def _columns(catalog: Catalog, given: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The fields that were given, checked together so that all that is wrong is told at once."""
    fields = Fields()
    fields.unknown(given.keys() - _READERS.keys())
    columns = {name: read(fields, given[name], now) for name, read in _READERS.items() if name in given}
    if catalog.detect(columns.get("name", "")):  # names are listed and recorded
        fields.wrong("name", "looks like a key; that belongs into value")
    fields.check()
    return columns


def _priority(fields: Fields, value: int) -> int:
    if not 0 <= value <= PRIORITY_LIMIT:
        fields.wrong("priority", f"is not between 0 and {PRIORITY_LIMIT}")
    return value


def _rotation_period(fields: Fields, value: int | None) -> int | None:
    if value is not None and not 1 <= value <= ROTATION_LIMIT:
        fields.wrong("rotation_period", f"is not between 1 and {ROTATION_LIMIT} days")
    return value


def _check_every(fields: Fields, value: int | None) -> int | None:
    if value is not None and not 0 <= value <= CHECK_LIMIT:
        fields.wrong("health_check_every", f"is not between 0 (never) and {CHECK_LIMIT} hours")
    return value


def _models(fields: Fields, names: Iterable[str] | None) -> list[str] | None:
    """An empty list would allow nothing and is surely a mistake."""
    if names is None:
        return None
    cleaned = fields.words("allowed_models", names, LIST_LIMIT, MODEL_NAME_LIMIT)
    if not cleaned:
        fields.wrong("allowed_models", "is empty; leave it out to allow all")
    return sorted(cleaned)


def _tokens(fields: Fields, ids: Iterable[str] | None) -> list[str] | None:
    if ids is None:
        return None
    cleaned = fields.words("allowed_tokens", ids, LIST_LIMIT)
    if not cleaned:
        fields.wrong("allowed_tokens", "is empty; leave it out to allow all")
    for number, token_id in enumerate(cleaned):
        if not _TOKEN_ID.fullmatch(token_id):
            fields.wrong(f"allowed_tokens.{number}", "is not the id of an access token (the 12 characters after kb_)")
    return sorted(cleaned)


_READERS: Mapping[str, Callable[[Fields, Any, datetime], Any]] = {
    "name": lambda fields, value, _: fields.name("name", value, NAME_LIMIT),
    "description": lambda fields, value, _: fields.text("description", value),
    "tags": lambda fields, value, _: list(fields.words("tags", value)),
    "priority": lambda fields, value, _: _priority(fields, value),
    "allowed_models": lambda fields, value, _: _models(fields, value),
    "allowed_tokens": lambda fields, value, _: _tokens(fields, value),
    "expires_at": lambda fields, value, now: fields.future("expires_at", value, now),
    "rotation_period": lambda fields, value, _: _rotation_period(fields, value),
    "health_check_every": lambda fields, value, _: _check_every(fields, value),
    "fallback_allowed": lambda _fields, value, _now: bool(value),
    "is_active": lambda _fields, value, _now: bool(value),
    "fetchable": lambda _fields, value, _now: bool(value),
}
