"""A model as its owner describes it: checked field by field into columns. Values in, values out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from keybearer.access.fields import NAME_LIMIT, Fields
from keybearer.catalog import Provider, Registered, with_registered
from keybearer.catalog.registry import check_model_name
from keybearer.domain import SYSTEM_OWNER, Owner, OwnerKind, SecretBytes
from keybearer.errors import Conflict, FieldError, Invalid
from keybearer.gateway.egress import EgressPolicy
from keybearer.vault.addresses import check_base_url

MODELS_LIMIT = 5_000
"""Models one owner may register."""
ALIASES_LIMIT = 20
PARAMETERS_LIMIT = 8_192
"""Characters of JSON."""
KINDS = ("chat", "embedding", "rerank", "image", "audio", "moderation")
CHANGEABLE = frozenset(
    {"display_name", "kind", "base_url", "api_key", "auth_style", "auth_header", "parameters", "aliases", "save_anyway"}
)
LIFTED_BY_NONE = frozenset({"base_url", "api_key", "auth_style"})
"""Fields for which ``None`` is a value: the provider's own. For the others it means: as it is."""
_NOT_DEFAULTS = frozenset({"model", "messages", "input", "prompt", "contents", "stream", "stream_options"})


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model to be registered; see ``ModelView`` for the fields."""

    provider: str
    """By name or id."""
    name: str
    display_name: str = ""
    kind: str = "chat"
    base_url: str | None = None
    api_key: SecretBytes | None = None
    """Its own; ``None`` or blank: what resolution finds."""
    auth_style: str | None = None
    auth_header: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    system: bool = False
    """For everybody; administrators only."""
    team_id: UUID | None = None
    """For this team; its owners and admins only."""
    save_anyway: bool = False


def given_of(new: NewModel) -> dict[str, Any]:
    """What ``columns_of`` takes, of a new model."""
    names = ("name", "display_name", "kind", "base_url", "auth_style", "auth_header", "parameters", "aliases")
    return {name: getattr(new, name) for name in names}


def kept_of(row: Any) -> dict[str, Any]:
    """What ``columns_of`` takes, of a model as it is."""
    given = {name: getattr(row, name) for name in ("name", "display_name", "base_url", "auth_style")}
    given |= {"kind": row.kind or "chat", "auth_header": row.auth_header or "", "aliases": tuple(row.aliases or ())}
    return given | {"parameters": json.loads(row.parameters) if row.parameters else {}}


def columns_of(egress: EgressPolicy, provider: Provider, owner: Owner, given: Mapping[str, Any]) -> dict[str, Any]:
    """What can be said of a model, checked together. Raises ``Invalid`` and its kinds."""
    fields = Fields()
    name = model_name(given["name"])
    kind = given["kind"]
    if kind not in KINDS:
        fields.wrong("kind", f"is none of {', '.join(KINDS)}")
    aliases = fields.words("aliases", given["aliases"], ALIASES_LIMIT, NAME_LIMIT)
    for number, alias in enumerate(aliases):
        _check_alias(fields, f"aliases.{number}", alias)
    columns = {
        "display_name": fields.line("display_name", given["display_name"], NAME_LIMIT) or name,
        "kind": kind,
        "base_url": (given["base_url"] or "").strip().rstrip("/") or None,
        "auth_style": given["auth_style"] or None,
        "auth_header": given["auth_header"].lower() if given["auth_style"] == "header" else None,
        "parameters": _parameters(fields, given["parameters"]),
        "aliases": list(aliases) or None,
    }
    fields.check()
    with_registered(provider, registered(uuid4(), owner, None, columns))
    if columns["base_url"]:
        if not provider.apis:
            raise Invalid.of("base_url", f"does not fit: {provider.display_name} is not reached by HTTP")
        if owner.kind is OwnerKind.TEAM and provider.owner_id != owner.id:
            raise Invalid.of("base_url", "of a team's model is that of a provider of the team's; make one")
        check_base_url(egress, columns["base_url"], admin_defined=owner == SYSTEM_OWNER)
    elif columns["auth_style"] == "none":
        raise Invalid.of("auth_style", "is none only at an address of its own")
    return columns


def registered(model_id: UUID, owner: Owner, secret_id: UUID | None, columns: Mapping[str, Any]) -> Registered:
    """How the provider is called for a model of these columns."""
    address, style, header = (columns[name] or "" for name in ("base_url", "auth_style", "auth_header"))
    return Registered(model_id, owner, secret_id, address, style, header)


def model_name(name: str) -> str:
    """The model's name. Raises ``Invalid``."""
    try:
        check_model_name(name)
    except Invalid as error:
        raise Invalid.of("name", error.fields[0].message) from None
    return name


def check_names(models: Collection[Any], row: Mapping[str, Any]) -> None:
    """Each alias means one of an owner's ``models``, and there are not too many. Raises ``Conflict``, ``Invalid``."""
    others = len(models) - any(other.id == row["id"] for other in models)
    if others >= MODELS_LIMIT:
        raise Invalid.of("name", f"would be one too many; at most {MODELS_LIMIT} models are allowed")
    if not row["aliases"]:
        return
    taken_names = {alias for other in models if other.id != row["id"] for alias in (other.aliases or ())}
    for number, alias in enumerate(row["aliases"]):
        if alias in taken_names:
            message = "is an alias of another model of yours"
            raise Conflict(f"The alias {message}.", fields=(FieldError(f"aliases.{number}", message),))


def _check_alias(fields: Fields, field_name: str, alias: str) -> None:
    """An alias is one word without a slash: ``provider/model`` always means that provider's."""
    try:
        check_model_name(alias)
    except Invalid as error:
        fields.wrong(field_name, error.fields[0].message)
        return
    if "/" in alias:
        fields.wrong(field_name, "has a slash; that is how a provider's model is named")


def _parameters(fields: Fields, given: Mapping[str, Any]) -> str | None:
    """Defaults of requests as canonical JSON text."""
    for name in sorted(_NOT_DEFAULTS & {str(key).casefold() for key in given}):
        fields.wrong("parameters", f"cannot set {name}")
    try:
        text = json.dumps(given, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        fields.wrong("parameters", "are not a JSON object")
        return None
    if len(text) > PARAMETERS_LIMIT:
        fields.wrong("parameters", f"have {len(text)} characters of JSON; at most {PARAMETERS_LIMIT} are allowed")
    return text if given else None
