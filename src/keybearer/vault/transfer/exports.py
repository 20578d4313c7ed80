"""All of somebody's secrets as a file, on record one by one. Who may have it is asked before: see ``api.transfer``.

A person who has just proved who they are gets all that is theirs; a token only what would be handed to it one by one
(``vault.disclosure``): of an OAuth token the token, and not what others are granted for. What is left out is named with why.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.access.freeze import require_thawed
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider, places
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Caller, ManagementRecord, Scope, SecretBytes
from keybearer.errors import Forbidden, TooLarge
from keybearer.store.db import Actor, Database
from keybearer.store.queries import models as model_rows
from keybearer.store.queries import secrets as rows
from keybearer.vault import registry
from keybearer.vault.disclosure import why_not_handed_out, why_not_to
from keybearer.vault.drafts import DEFAULT_NAME
from keybearer.vault.keeper import sealing_actor
from keybearer.vault.oauth import PARTS
from keybearer.vault.sealed import Content, Sealer, Unreadable, egress_of, owner_of
from keybearer.vault.transfer.items import Format, Progress, unwatched

LIMIT = 5_000
"""Secrets of one export."""
_PAGE = 200
_PLAIN = (
    "provider", "secret_type", "name", "description", "tags", "priority", "allowed_models", "rotation_period", "is_active",
    "fetchable", "fallback_allowed",
)  # fmt: skip
_OF_MODEL = ("provider", "name", "display_name", "kind", "base_url", "auth_style", "auth_header", "aliases")
_CSV = ("provider", "secret_type", "name", "value", "description", "tags", "priority", "expires_at", "is_active", "fetchable")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A secret that is not in an export."""

    provider: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Export:
    """A file with values; it redacts itself."""

    content: SecretBytes
    count: int
    left_out: tuple[LeftOut, ...]


class Exports:
    """One per process."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self._sealer = Sealer(keyring)

    async def run(self, caller: Caller, form: Format, *, system: bool = False, progress: Progress = unwatched) -> Export:
        """Write out the caller's own secrets, or (operators on the server's machine) the system's.

        Raises ``ScopeMissing``, ``Forbidden``, ``ModelNotAllowed`` (a token for certain models), ``Frozen`` (a token), ``TooLarge``,
        ``Unavailable``.
        """
        async with attempt(self._db, "secret.export", caller):
            _check(caller, system=system)
            owner_id = SYSTEM_OWNER_ID if system else caller.user_id
            actor = Actor.user(caller.user_id, admin=True, system_keys=True) if system else sealing_actor(caller)
            entries, models, left_out, now = [], [], [], datetime.now(UTC)
            async with self._db.write(actor) as tx:
                await require_thawed(tx, caller)
                known = (await registry.load(tx, self._keyring, self._catalog, owner_id)).providers
                after = None
                while found := await rows.page(tx, rows.Search(owners=(owner_id,)), after, _PAGE):
                    after = found[-1].id
                    told: list[ManagementRecord] = []
                    for row in found:
                        reason = _refusal(caller, row, form, now)
                        model = None if reason or row.model_id is None else await self._model(tx, row)
                        if model is None and row.model_id is not None:
                            reason = reason or "No model says that it is its own."
                        content = None if reason else await self._content(tx, row)
                        if content is None:
                            reason = reason or "It does not open: enter it again."
                            left_out.append(LeftOut(row.provider, row.name, reason))
                            continue
                        if model is None:
                            entries.append(_entry(row, content, known.get(row.provider), grant=caller.token_id is None))
                        else:
                            models.append(_model_entry(model, content))
                        detail = (("provider", row.provider), ("format", form))
                        told.append(ManagementRecord("secret.export", caller, str(row.id), owner=owner_of(row), detail=detail))
                    await management.record_all(self._db, tx, told)
                    progress("secrets", len(entries) + len(models) + len(left_out), 0)
                    if len(entries) + len(models) > LIMIT:
                        raise TooLarge(f"There are more than {LIMIT} secrets.", hint="'keybearer backup' takes everything.")
        text = _json(entries, models) if form == "json" else _FORMS[form](entries, known)
        return Export(SecretBytes(text.encode()), len(entries) + len(models), tuple(left_out))

    async def _content(self, tx: AsyncConnection, row: Any) -> Content | None:
        """What a secret holds; ``None``: it does not open."""
        try:
            return await self._sealer.open(tx, row)
        except Unreadable:
            return None

    async def _model(self, tx: AsyncConnection, row: Any) -> Any | None:
        """The model whose own key a secret is, if its row, as it was written here, says so."""
        model = await model_rows.get(tx, (row.owner_id,), row.model_id)
        if model is None or model.secret_id != row.id or not registry.models_written_here(self._keyring, [model]):
            return None
        return model


def _check(caller: Caller, *, system: bool) -> None:
    """Raise why somebody gets no export at all."""
    policy.require(caller, Scope.SECRETS_READ)
    if system and (caller.token_id is not None or caller.session_id is not None or not caller.is_admin):
        raise Forbidden("The system's secrets are exported on the server alone.", hint="keybearer export FILE --system")
    refused = why_not_to(caller)
    if refused is not None:
        raise refused


def _refusal(caller: Caller, row: Any, form: Format, now: datetime) -> str:
    """Why a secret is not in this caller's export; empty: it is."""
    if row.model_id is not None and form != "json":
        return "It is a model's own key: only JSON has models."
    if row.reference is not None:
        return "Its value is kept elsewhere."
    refused = why_not_handed_out(caller, row, now)
    return "" if refused is None else refused.message


def _entry(row: Any, content: Content, provider: Provider | None, *, grant: bool) -> dict[str, Any]:
    """What an import takes, to make the same secret again; ``grant``: with what an OAuth token is refreshed with."""
    entry = {name: getattr(row, name) for name in _PLAIN} | {"value": content.value.reveal().decode()}
    entry["health_check_every"] = row.check_every
    entry["expires_at"] = None if row.expires_at is None else row.expires_at.astimezone(UTC).isoformat()
    if grant and content.oauth is not None:
        parts = {name: getattr(content.oauth, name) for name in PARTS}
        texts = {name: part.reveal().decode() for name, part in parts.items() if part is not None}
        entry["oauth"] = texts | ({"scopes": texts["scopes"].split()} if "scopes" in texts else {})
    if provider is not None and provider.parameters:
        entry["parameters"] = places.parameters_of(provider, egress_of(row))
    return {name: value for name, value in entry.items() if value not in (None, "", [], {})}


def _model_entry(model: Any, content: Content) -> dict[str, Any]:
    """What an import takes, to register the same model again with its key."""
    entry = {name: getattr(model, name) for name in _OF_MODEL} | {"api_key": content.value.reveal().decode()}
    entry["parameters"] = json.loads(model.parameters) if model.parameters else {}
    return {name: value for name, value in entry.items() if value not in (None, "", [], {})}


def _json(entries: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> str:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"exported_at": at, "secrets": entries} | ({"models": models} if models else {})
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _csv(entries: Sequence[Mapping[str, Any]], known: Mapping[str, Provider]) -> str:
    del known
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_CSV)
    for entry in entries:
        cells = {name: ";".join(value) if isinstance(value, list) else value for name, value in entry.items()}
        writer.writerow([str(cells[name]).lower() if isinstance(cells.get(name), bool) else cells.get(name, "") for name in _CSV])
    return text.getvalue()


def _env(entries: Sequence[Mapping[str, Any]], known: Mapping[str, Provider]) -> str:
    """Variables of the usual names; further ones are named by provider and name, and numbered where these meet."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    """The last number that a name was given: with 5,000 of one, counting from two on each time took seconds."""
    lines = []
    for entry in entries:
        provider = known.get(entry["provider"])
        usual = provider.variables[:1] if provider is not None and entry["name"] == DEFAULT_NAME else ()
        wanted = usual[0] if usual else re.sub(r"[^A-Z0-9]+", "_", f"{entry['provider']}_{entry['name']}".upper()).strip("_")
        base = variable = wanted if wanted[:1].isalpha() else f"KEY_{wanted}"
        while variable in taken:
            numbers[base] = numbers.get(base, 1) + 1
            variable = f"{base}_{numbers[base]}"
        taken.add(variable)
        escaped = entry["value"].replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\r", "\\r")
        lines.append(f'{variable}="{escaped}"\n')
    return "".join(lines)


_FORMS: Mapping[Format, Callable[[Sequence[Mapping[str, Any]], Mapping[str, Provider]], str]] = {
    "csv": _csv,
    "env": _env,
}
