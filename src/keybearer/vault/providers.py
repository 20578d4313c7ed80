"""Providers and models: what an owner can name, and how that is changed.

A custom provider belongs to who made it; names are unique there, and none may be a predefined provider's. Of a predefined one
only the base URL can be changed, by an administrator, which is kept beside the catalogue: an update of it overwrites nothing.
Models can be added to any provider, for oneself or (an administrator) for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import NAME_LIMIT, Fields
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider, Registry, custom, with_base_url
from keybearer.catalog.registry import check_model_name
from keybearer.crypto.keyring import Keyring
from keybearer.domain import (
    SYSTEM_OWNER,
    SYSTEM_OWNER_ID,
    Caller,
    ManagementRecord,
    Owner,
    OwnerKind,
    Scope,
    SecretBytes,
)
from keybearer.errors import Conflict, Forbidden, Invalid
from keybearer.gateway.egress import EgressPolicy
from keybearer.store.db import Actor, Database
from keybearer.store.queries import providers as rows
from keybearer.store.queries import secrets as secret_rows
from keybearer.store.queries import users as user_rows
from keybearer.vault import audience, descriptions, reach, registry
from keybearer.vault.addresses import check_base_url
from keybearer.vault.resolve import NO_FALLBACK
from keybearer.vault.secrets import Secrets
from keybearer.vault.views import Keys, ModelView, NewProvider, ProviderView, Seen, columns_of, model_views_of, view_of

__all__ = ["ModelView", "NewProvider", "ProviderView", "Providers"]

MODELS_LIMIT = 500
PROVIDERS_LIMIT = 200
"""Custom ones of one owner. Each listing puts together what somebody can see, and nobody else has a turn meanwhile."""
"""Models one owner may add to one provider."""
CHANGEABLE = frozenset(
    {"name", "display_name", "base_url", "auth_style", "auth_header", "models", "api_key", "parameters", "save_anyway"}
)
_SUBJECT = re.compile(r"[a-z0-9._-]+")
_SUBJECT_LIMIT = 36
"""Characters of an id; keys are longer."""


class Providers:
    """Shows, makes and changes providers and their models; see the module."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        catalog: Catalog,
        policy: EgressPolicy,
        secrets: Secrets,
        fallback: str = NO_FALLBACK,
    ) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self._policy = policy
        self._secrets = secrets
        self._falls_back = fallback != NO_FALLBACK

    async def registry(self, user_id: UUID) -> Registry:
        """What a person's calls can name."""
        async with self._db.read(Actor.user(user_id)) as tx:
            return await registry.load(tx, self._keyring, self._catalog, user_id)

    async def list(self, caller: Caller) -> list[ProviderView]:
        """All providers the caller can name: the predefined ones in the catalogue's order, then custom ones by name."""
        async with self._db.read(self._actor(caller)) as tx:
            seen, keys = await self._seen(tx, caller), await self._keys(tx, caller)
        return [view_of(seen, provider, keys) for provider in seen.registry.providers.values()]

    async def get(self, caller: Caller, key: str) -> ProviderView:
        """One provider by id or name. Raises ``ProviderUnknown``, for those of others as for unknown ones."""
        async with self._db.read(self._actor(caller)) as tx:
            return await self._shown(tx, caller, key)

    async def find(self, caller: Caller, key: str) -> Provider:
        """One provider by id or name as calls use it, for connection tests. Raises ``ProviderUnknown``."""
        async with self._db.read(self._actor(caller)) as tx:
            return (await self._seen(tx, caller)).find(key)

    async def create(self, caller: Caller, new: NewProvider) -> ProviderView:
        """Make a custom provider of the caller's, of a team that they lead, or the system's.

        Raises ``Invalid`` and its kinds, ``Conflict``, ``ScopeMissing``, ``Forbidden``.
        """
        async with attempt(self._db, "provider.create", caller), taken("A provider of this name exists already."):
            policy.require(caller, Scope.PROVIDERS_WRITE)
            if new.system:
                policy.require_admin(caller)
            now, provider_id = datetime.now(UTC), uuid4()
            async with self._db.write(self._actor(caller)) as tx:
                seen = await self._seen(tx, caller)
                owner = _owner_of_new(caller, seen, new)
                made = self._made(new, owner)
                if made.name in seen.registry.providers:
                    raise Conflict("A provider of this name exists already.")
                if sum(row.owner_id == owner.id and not row.is_predefined for row in seen.providers) >= PROVIDERS_LIMIT:
                    raise Invalid.of("name", f"would be one too many; at most {PROVIDERS_LIMIT} custom providers are allowed")
                _check_room(seen, owner.id, len(new.models))
                columns = self._row(provider_id, owner.id, made)
                await rows.insert(tx, columns | {"created_at": now, "updated_at": now})
                await rows.insert_models(tx, _model_rows(owner.id, made.name, new.models, now))
                await self._note(tx, caller, "provider.create", (str(provider_id), owner), name=made.name, base_url=made.base_url)
                key = {"base_url": new.base_url, "api_key": new.api_key, "save_anyway": new.save_anyway}
                await self._put_key(tx, caller, made.name, key)
                return await self._shown(tx, caller, str(provider_id))

    async def update(self, caller: Caller, key: str, fields: Mapping[str, Any]) -> ProviderView:
        """Change the fields given (``CHANGEABLE``); ``None``, blank ones and what is so already change nothing.

        ``api_key`` becomes the caller's own secret named ``default``; ``models`` are all that the caller wants to have added.
        A new base URL widens no secret's egress set; the catalogue's own takes an administrator's edit back.

        Raises ``ProviderUnknown``, ``Invalid`` and its kinds, ``ScopeMissing``, ``Forbidden`` (of a predefined provider only
        administrators change the base URL, and nobody anything else).
        """
        async with attempt(self._db, "provider.update", caller, self._nameable(key)):
            given = {name: value for name, value in fields.items() if value is not None and value != ""}
            _check_names(given)
            async with self._db.write(self._actor(caller)) as tx:
                seen = await self._seen(tx, caller)
                provider = seen.find(key)
                changed = _differences(provider, given)
                if changed:
                    await self._change(tx, caller, seen, provider, changed)
                if "models" in given:
                    await self._set_models(tx, caller, seen, provider, given["models"])
                await self._put_key(tx, caller, provider.name, given)
                return await self._shown(tx, caller, key)

    async def delete(self, caller: Caller, key: str) -> None:
        """Delete a custom provider with its owner's models and their own keys; other secrets for it stay, and serve no call.

        Raises ``ProviderUnknown``, ``Forbidden`` (predefined, or another's), ``ScopeMissing``.
        """
        async with attempt(self._db, "provider.delete", caller, self._nameable(key)):
            policy.require(caller, Scope.PROVIDERS_WRITE)
            async with self._db.write(self._actor(caller)) as tx:
                seen = await self._seen(tx, caller)
                provider = seen.find(key)
                if provider.is_predefined:
                    raise Forbidden("Predefined providers cannot be deleted.", hint="Leave it without a key instead.")
                owner = self._may_change(caller, seen, provider)
                row = seen.row_of(provider)
                keys = await rows.delete_models(tx, owner.id, provider.name)
                for secret_id in keys:
                    await self._secrets.drop_for_model(tx, caller, owner.id, secret_id)
                await rows.delete(tx, owner.id, row.id)
                await self._note(tx, caller, "provider.delete", (str(row.id), owner), name=provider.name)
        if keys:
            await self._secrets.dropped()

    async def models(self, caller: Caller, key: str) -> tuple[ModelView, ...]:
        """The models of a provider. Raises ``ProviderUnknown``."""
        async with self._db.read(self._actor(caller)) as tx:
            seen = await self._seen(tx, caller)
        return tuple(model_views_of(seen, seen.find(key)))

    async def add_model(self, caller: Caller, key: str, name: str, display_name: str = "", *, system: bool = False) -> ModelView:
        """Add a model to a provider, for oneself, or (``system``, administrators) for everybody.

        Raises ``ProviderUnknown``, ``Conflict``, ``Invalid``, ``ScopeMissing``, ``Forbidden``.
        """
        async with attempt(self._db, "model.create", caller), taken("The provider has a model of this name already."):
            policy.require(caller, Scope.MODELS_WRITE)
            if system:
                policy.require_admin(caller)
            fields = Fields()
            _check_model(fields, "name", name)
            shown = fields.line("display_name", display_name, NAME_LIMIT) or name
            fields.check()
            now = datetime.now(UTC)
            async with self._db.write(self._actor(caller)) as tx:
                seen = await self._seen(tx, caller)
                provider = seen.find(key)
                owner = SYSTEM_OWNER if system else _owner_of_models(caller, seen, provider)
                owner_id = owner.id
                if any(model.name == name for model in provider.models):
                    raise Conflict("The provider has a model of this name already.")
                _check_count(sum(row.owner_id == owner_id and row.provider == provider.name for row in seen.models) + 1)
                _check_room(seen, owner_id, 1)
                columns = _model_rows(owner_id, provider.name, [name], now)
                columns[0]["display_name"] = shown
                await rows.insert_models(tx, columns)
                model_id = str(columns[0]["id"])
                await self._note_model(tx, caller, "model.create", (model_id, owner), f"{provider.name}/{name}")
                return ModelView(model_id, provider.name, name, shown, "chat", is_predefined=False)

    def _actor(self, caller: Caller) -> Actor:
        """Whether there is a key of the system's that may be used is seen with the system's eyes."""
        return Actor.user(caller.user_id, admin=caller.is_admin, system_keys=caller.is_admin or self._falls_back)

    async def _seen(self, tx: AsyncConnection, caller: Caller) -> Seen:
        mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        owners = registry.owners_of(caller.user_id, (team.team_id for team in mine.teams))
        providers, models = await rows.of_owners(tx, owners), await rows.models_of_owners(tx, owners)
        ours, models = registry.written_here(self._keyring, providers), registry.models_written_here(self._keyring, models)
        return Seen(mine, registry.build(self._catalog, ours, models, owners), providers, models)

    async def _keys(self, tx: AsyncConnection, caller: Caller) -> Keys:
        now = datetime.now(UTC)
        own = await secret_rows.usable(tx, (caller.user_id,), now)
        mine = await reach.load(tx, self._keyring, caller.user_id)
        lent = [share for share in mine.shares if share.shared_by != caller.user_id]
        ids = [team.team_id for team in mine.teams]
        of_teams = await secret_rows.usable(tx, ids, now, [share.secret_id for share in lent]) if ids else ()
        shared = {(share.secret_id, share.team_id) for share in lent}
        teams = [(team_id, row) for row in of_teams for team_id in ids if row.owner_id == team_id or (row.id, team_id) in shared]
        user = await user_rows.get(tx, caller.user_id) if self._falls_back else None
        system = await secret_rows.usable(tx, (SYSTEM_OWNER_ID,), now) if user is not None and user.fallback_allowed else ()
        return Keys(own, teams, system)

    async def _shown(self, tx: AsyncConnection, caller: Caller, key: str) -> ProviderView:
        seen = await self._seen(tx, caller)
        return view_of(seen, seen.find(key), await self._keys(tx, caller))

    def _made(self, new: NewProvider, owner: Owner) -> Provider:
        """A new provider, checked. Raises ``Invalid``."""
        fields = Fields()
        display_name = fields.line("display_name", new.display_name, NAME_LIMIT) or new.name
        _check_models(fields, new.models)
        fields.check()
        made = custom(new.name, display_name, new.base_url, new.auth_style, new.auth_header, (), owner.id)
        if made.name in self._catalog.providers:
            raise Conflict("This is the name of a predefined provider.", hint="Choose another name, or add your key to that one.")
        check_base_url(self._policy, made.base_url, admin_defined=owner == SYSTEM_OWNER)
        return made

    async def _change(
        self, tx: AsyncConnection, caller: Caller, seen: Seen, provider: Provider, changed: Mapping[str, Any]
    ) -> None:
        """Write what differs of a provider's own fields."""
        policy.require(caller, Scope.PROVIDERS_WRITE)
        owner = self._may_change(caller, seen, provider)
        row, now = seen.row_of(provider), datetime.now(UTC)
        if provider.is_predefined:
            if set(changed) != {"base_url"}:
                raise Forbidden("Of a predefined provider only the base URL can be changed.", hint="Make a custom provider.")
            if changed["base_url"].rstrip("/") == self._catalog.get(provider.name).base_url:
                await rows.delete(tx, owner.id, row.id)  # differs from the row's: there is one
                await self._note(tx, caller, "provider.update", (provider.name, owner), name=provider.name, fields="base_url")
                return
            after = with_base_url(provider, changed["base_url"])
        else:
            auth = provider.auth
            new = {
                "display_name": provider.display_name,
                "base_url": provider.base_url,
                "auth_style": auth.style,
                "auth_header": auth.header,
            }
            fields = Fields()
            new |= changed
            new["display_name"] = fields.line("display_name", new["display_name"], NAME_LIMIT) or provider.name
            fields.check()
            after = custom(provider.name, **new, models=(), owner_id=owner.id)
        check_base_url(self._policy, after.base_url, admin_defined=owner == SYSTEM_OWNER)
        columns = self._row(uuid4() if row is None else row.id, owner.id, after) | {"updated_at": now}
        if row is None:
            await rows.insert(tx, columns | {"created_at": now})
        else:
            await rows.update(tx, owner.id, row.id, columns)
        subject = provider.name if provider.is_predefined else str(row.id)
        await self._note(
            tx,
            caller,
            "provider.update",
            (subject, owner),
            name=provider.name,
            base_url=after.base_url,
            fields=" ".join(sorted(changed)),
        )

    def _nameable(self, key: str) -> str:
        """What a caller calls a provider or model, as it may stand in a record for ever: nothing that may be a key."""
        return key if len(key) <= _SUBJECT_LIMIT and _SUBJECT.fullmatch(key) and not self._catalog.detect(key) else ""

    def _row(self, provider_id: UUID, owner_id: UUID, provider: Provider) -> dict[str, Any]:
        """The columns of a provider, its MAC last."""
        columns: dict[str, Any] = {"id": provider_id, "owner_id": owner_id, "name": provider.name}
        columns |= {"is_predefined": provider.is_predefined, **columns_of(provider)}
        return columns | {"mac": self._keyring.row_mac(macs.PROVIDER, *macs.provider_fields(SimpleNamespace(**columns)))}

    def _may_change(self, caller: Caller, seen: Seen, provider: Provider) -> Owner:
        """Whose the provider is, if the caller may change it. Raises ``Forbidden``."""
        if provider.owner_id == caller.user_id:
            return Owner(OwnerKind.USER, caller.user_id)
        if provider.owner_id not in {None, SYSTEM_OWNER_ID}:
            return reach.led(seen.mine, provider.owner_id)
        policy.require_admin(caller)
        return SYSTEM_OWNER

    async def _set_models(
        self, tx: AsyncConnection, caller: Caller, seen: Seen, provider: Provider, wanted: Iterable[str]
    ) -> None:
        """Let the owner's added models be the wanted ones that the provider does not have without them."""
        if caller.scopes.isdisjoint({Scope.PROVIDERS_WRITE, Scope.MODELS_WRITE}):
            policy.require(caller, Scope.MODELS_WRITE)
        fields, names = Fields(), list(wanted)
        _check_models(fields, names)
        fields.check()
        is_systems = provider.owner_id == SYSTEM_OWNER_ID and caller.is_admin
        owner = SYSTEM_OWNER if is_systems else _owner_of_models(caller, seen, provider)
        # Those that somebody said more of are not taken away by a list of names.
        bare = [row for row in seen.models if row.mac is None]
        mine = {row.name for row in bare if row.provider == provider.name and row.owner_id == owner.id}
        others = {model.name for model in provider.models} - mine
        added = [name for name in names if name not in mine | others]
        if not added and mine <= set(names):
            return
        _check_room(seen, owner.id, len(added) - len(mine - set(names)))
        await rows.delete_bare_models(tx, owner.id, provider.name, but=names)
        await rows.insert_models(tx, _model_rows(owner.id, provider.name, added, datetime.now(UTC)))
        row = None if provider.is_predefined else seen.row_of(provider)
        subject = provider.name if row is None else str(row.id)
        await self._note(tx, caller, "provider.set_models", (subject, owner), name=provider.name, models=str(len(names)))

    async def _put_key(self, tx: AsyncConnection, caller: Caller, name: str, given: Mapping[str, Any]) -> None:
        """Store the caller's own key; a blank one says: as it is. Who names the address too has confirmed it."""
        api_key: SecretBytes | None = given.get("api_key")
        if api_key is None or not api_key.reveal().strip():
            return
        policy.require(caller, Scope.SECRETS_WRITE)
        anyway = bool(given.get("save_anyway", False))
        rebind, parameters = "base_url" in given, given.get("parameters")
        await self._secrets.put_default(tx, caller, name, api_key, save_anyway=anyway, rebind=rebind, parameters=parameters)

    async def _note(self, tx: AsyncConnection, caller: Caller, action: str, subject: tuple[str, Owner], **detail: str) -> None:
        subject_id, owner = subject
        record = ManagementRecord(action, caller, subject_id, owner=owner, detail=tuple(detail.items()))
        await management.record(self._db, tx, record)
        await audience.note_owned(self._db, tx, "provider", subject_id, owner)

    async def _note_model(self, tx: AsyncConnection, caller: Caller, action: str, subject: tuple[str, Owner], name: str) -> None:
        model_id, owner = subject
        await management.record(self._db, tx, ManagementRecord(action, caller, model_id, owner=owner, detail=(("name", name),)))
        await audience.note_owned(self._db, tx, "model", model_id, owner)


def _owner_of_new(caller: Caller, seen: Seen, new: NewProvider) -> Owner:
    """Whose a new provider is to be. Raises ``NotFound``, ``Forbidden``."""
    if new.system:
        return SYSTEM_OWNER
    return Owner(OwnerKind.USER, caller.user_id) if new.team_id is None else reach.led(seen.mine, new.team_id)


def _owner_of_models(caller: Caller, seen: Seen, provider: Provider) -> Owner:
    """Whose added models of a provider are: a team's, where the caller leads the team whose provider it is; else their own."""
    team = None if provider.owner_id is None else seen.mine.team(provider.owner_id)
    return Owner(OwnerKind.USER, caller.user_id) if team is None or not team.leads else Owner(OwnerKind.TEAM, team.team_id)


def _model_rows(owner_id: UUID, provider_name: str, names: Iterable[str], now: datetime) -> list[dict[str, Any]]:
    return [
        {"id": uuid4(), "owner_id": owner_id, "provider": provider_name, "name": name, "display_name": name, "created_at": now}
        for name in names
    ]


def _check_names(given: Mapping[str, Any]) -> None:
    fields = Fields()
    fields.unknown(given.keys() - CHANGEABLE)
    fields.check()


def _check_models(fields: Fields, names: Sequence[str]) -> None:
    """Names as providers write them, each once."""
    _check_count(len(names))
    for number, name in enumerate(names):
        _check_model(fields, f"models.{number}", name)
        if name in names[:number]:
            fields.wrong(f"models.{number}", "is there twice")


def _check_model(fields: Fields, field: str, name: str) -> None:
    try:
        check_model_name(name)
    except Invalid as error:
        fields.wrong(field, error.fields[0].message)


def _check_room(seen: Seen, owner_id: UUID, adding: int) -> None:
    """Registered or not, an owner's models have one bound."""
    if adding > 0 and sum(row.owner_id == owner_id for row in seen.models) + adding > descriptions.MODELS_LIMIT:
        raise Invalid.of("models", f"would be too many; at most {descriptions.MODELS_LIMIT} models of all providers are allowed")


def _check_count(count: int) -> None:
    if count > MODELS_LIMIT:
        fields = Fields()
        fields.wrong("models", f"has {count} entries; at most {MODELS_LIMIT} are allowed")
        fields.check()


def _differences(provider: Provider, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provider's own fields is to become another; clients send back what they got."""
    view = columns_of(provider) | {"name": provider.name}
    changed = {name: given[name] for name in view.keys() & given.keys() if given[name] != view[name]}
    if changed.get("base_url", "").rstrip("/") == provider.base_url:
        del changed["base_url"]
    if "name" in changed:
        fields = Fields()
        fields.wrong("name", "cannot be changed")
        fields.check()
    return changed
