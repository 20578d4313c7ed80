"""Registered models: what an owner says of a model beyond its name (MISSION G2).

Its own address, its own key, how that is sent, defaults of requests, and further names. A model's own key is a secret that serves
nothing else, bound to where the model is; deleting the model deletes it. A model is a person's, a team's, or
everybody's (the system's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import Fields
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider, Registry, with_registered
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER, SYSTEM_OWNER_ID, Caller, ManagementRecord, Owner, OwnerKind, Scope, SecretBytes
from keybearer.errors import Invalid, NotFound
from keybearer.gateway.egress import EgressPolicy
from keybearer.store.db import Database
from keybearer.store.queries import models as rows
from keybearer.store.queries.secrets import Named
from keybearer.vault import audience, descriptions, reach, registry
from keybearer.vault.descriptions import NewModel
from keybearer.vault.drafts import provider_named
from keybearer.vault.intake import Entry, parts
from keybearer.vault.keeper import sealing_actor
from keybearer.vault.refresh import owners_eyes
from keybearer.vault.secrets import Secrets

Put = Literal["create", "unchanged", "conflict"]
"""What ``Models.put`` did."""

PAGE_LIMIT = 200


@dataclass(frozen=True, slots=True)
class ModelView:
    """A registered model as one caller sees it."""

    id: UUID
    owner_kind: OwnerKind
    team_id: UUID | None
    provider: str
    name: str
    """As the provider names it."""
    display_name: str
    kind: str
    base_url: str | None
    """Its own; ``None``: the provider's."""
    auth_style: str | None
    """``bearer``, ``header`` or ``none``; ``None``: the provider's."""
    auth_header: str
    has_own_key: bool
    secret_id: UUID | None
    """Of its own key, for those who may see it."""
    parameters: Mapping[str, Any]
    aliases: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Template:
    """A well-known model, ready to be registered."""

    provider: str
    provider_name: str
    name: str
    display_name: str
    kind: str
    base_url: str
    auth_style: str


@dataclass(frozen=True, slots=True)
class _Added:
    """A model that is checked and yet to be stored, with its own key if it brings one."""

    row: dict[str, Any]
    key: Entry | None


@dataclass(frozen=True, slots=True)
class Shelf:
    """An owner's models and the providers that the caller sees, read once for all models of an import."""

    owner: Owner
    known: Registry
    models: dict[tuple[str, str], Any]
    """By provider and name; what is to be added is here too."""
    adding: list[_Added] = field(default_factory=list)
    key_names: set[Named] = field(default_factory=set)
    """Of the keys that come with ``adding``."""


class Models:
    """Shows, registers, changes and deletes models; see the module."""

    def __init__(self, db: Database, keyring: Keyring, catalog: Catalog, egress: EgressPolicy, secrets: Secrets) -> None:
        self._db = db
        self._keyring = keyring
        self._catalog = catalog
        self._egress = egress
        self._secrets = secrets

    async def list(
        self, caller: Caller, provider: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> tuple[tuple[ModelView, ...], str | None]:
        """One page of the models that the caller's calls can name, and where the next begins. Raises ``Invalid`` (cursor, limit)."""
        if not 1 <= limit <= PAGE_LIMIT:
            raise Invalid.of("limit", f"is not between 1 and {PAGE_LIMIT}")
        async with self._db.read(policy.actor_of(caller)) as tx:
            found, following = await rows.page(tx, await self._seen_owners(tx, caller), provider, cursor, limit)
        return tuple(_view(row, caller) for row in registry.models_written_here(self._keyring, found)), following

    async def get(self, caller: Caller, model_id: UUID) -> ModelView:
        """One model. Raises ``NotFound``, for those of others as for unknown ones."""
        async with self._db.read(policy.actor_of(caller)) as tx:
            row = await rows.get(tx, await self._seen_owners(tx, caller), model_id)
        return _view(self._ours(row), caller)

    async def provider_of(self, caller: Caller, model_id: UUID) -> tuple[Provider, str]:
        """The provider as it is called for this model, and the model's name there. Raises ``NotFound``, ``ProviderUnknown``."""
        async with self._db.read(policy.actor_of(caller)) as tx:
            row = self._ours(await rows.get(tx, await self._seen_owners(tx, caller), model_id))
            provider = await self._provider(tx, caller, row.provider)
        return with_registered(provider, registry.registered_of(row, caller.user_id)), row.name

    async def provider_for_owner(self, owner_id: UUID, model_id: UUID) -> Provider:
        """The provider as it is called for an owner's model, with the owner's own eyes. Raises ``NotFound``, ``ProviderUnknown``."""
        async with self._db.read(owners_eyes(owner_id)) as tx:
            row = self._ours(await rows.get(tx, (owner_id,), model_id))
            known = await registry.load(tx, self._keyring, self._catalog, owner_id)
        return with_registered(known.get(row.provider), registry.registered_of(row, owner_id))

    async def draft(self, caller: Caller, new: NewModel) -> Provider:
        """The provider as it would be called for a new model, for a test before it is saved. Raises as ``create`` does."""
        async with self._db.read(policy.actor_of(caller)) as tx:
            owner, provider = await self._owner_of_new(tx, caller, new), await self._provider(tx, caller, new.provider)
        columns = descriptions.columns_of(self._egress, provider, owner, descriptions.given_of(new))
        return with_registered(provider, descriptions.registered(uuid4(), owner, None, columns))

    def templates(self) -> Sequence[Template]:
        """The catalogue's models."""
        return [
            Template(
                provider.name,
                provider.display_name,
                model.name,
                model.display_name,
                model.kind,
                provider.base_url,
                provider.auth.style,
            )
            for provider in self._catalog.providers.values()
            for model in provider.models
        ]

    async def create(self, caller: Caller, new: NewModel) -> ModelView:
        """Register a model of the caller's, or everybody's.

        Raises ``ProviderUnknown``, ``Invalid`` and its kinds, ``Conflict`` (name or alias), ``ScopeMissing``, ``Forbidden``.
        """
        async with (
            attempt(self._db, "model.create", caller),
            taken("You have registered this model already.", "Change that one instead."),
        ):
            policy.require(caller, Scope.MODELS_WRITE)
            if new.system:
                policy.require_admin(caller)
            async with self._db.write(sealing_actor(caller)) as tx:
                shelf = await self.shelf(tx, caller, await self._owner_of_new(tx, caller, new))
                shelf.adding.append(self._added(caller, shelf, new))
                await self.note(tx, caller, shelf, await self.add(tx, caller, shelf))
        return _view(SimpleNamespace(**shelf.adding[0].row), caller)

    async def put(self, tx: AsyncConnection, caller: Caller, shelf: Shelf, new: NewModel) -> Put:
        """Have ``add`` register a model, within an import's transaction, unless the owner has it; say what is done.

        One that is there stays as it is: ``unchanged`` where it has this very key (or none is given), else ``conflict``. Raises
        ``ProviderUnknown``, ``Invalid`` and its kinds, ``Conflict`` (alias), ``ScopeMissing``, before anything is written.
        """
        policy.require(caller, Scope.MODELS_WRITE)
        found = shelf.models.get((new.provider, new.name))
        if found is None:
            added = self._added(caller, shelf, new)
            if added.key is not None:
                await self._secrets.intake.require_free(tx, shelf.owner.id, added.key, shelf.key_names)
            shelf.adding.append(added)
            shelf.models[new.provider, new.name] = SimpleNamespace(**added.row)
            return "create"
        row, owner = self._ours(found), shelf.owner
        if new.api_key is None:
            is_same = row.secret_id is None
        else:
            is_same = row.secret_id is not None and await self._secrets.is_model_key(tx, owner.id, row.secret_id, new.api_key)
        wanted = descriptions.columns_of(
            self._egress, provider_named(shelf.known, new.provider), owner, descriptions.given_of(new)
        )
        kept = {name: getattr(row, name) for name in wanted}
        return "unchanged" if is_same and kept == wanted else "conflict"

    async def shelf(self, tx: AsyncConnection, caller: Caller, owner: Owner) -> Shelf:
        """What ``put`` adds to."""
        known = await registry.load(tx, self._keyring, self._catalog, caller.user_id)
        return Shelf(owner, known, {(row.provider, row.name): row for row in await rows.of_owner(tx, owner.id)})

    async def add(self, tx: AsyncConnection, caller: Caller, shelf: Shelf) -> Sequence[ManagementRecord]:
        """Register what ``put`` found to be new: all of it together. Gives the records of the models' own keys, for ``note``."""
        with_keys = [added for added in shelf.adding if added.key is not None]
        keys = [added.key for added in with_keys if added.key is not None]
        records = await self._secrets.intake.add(tx, caller, shelf.owner, keys)
        for added, record in zip(with_keys, records, strict=True):
            added.row["secret_id"] = UUID(record.subject)
        for part in parts(shelf.adding):
            await rows.insert(tx, [self._sealed(added.row) for added in part])
        return records

    async def note(self, tx: AsyncConnection, caller: Caller, shelf: Shelf, keys: Sequence[ManagementRecord]) -> None:
        """Put on record what was added, and tell every process. Last: see ``Intake.note``."""
        await self._secrets.intake.note(tx, shelf.owner, keys)
        if shelf.adding:
            records = (_record(caller, "model.create", added.row, shelf.owner) for added in shelf.adding)
            await management.record_all(self._db, tx, records)
            only = str(shelf.adding[0].row["id"]) if len(shelf.adding) == 1 else ""
            await audience.note_owned(self._db, tx, "model", only, shelf.owner)

    def _added(self, caller: Caller, shelf: Shelf, new: NewModel) -> _Added:
        """A new model, checked."""
        now, owner, provider = datetime.now(UTC), shelf.owner, provider_named(shelf.known, new.provider)
        columns = descriptions.columns_of(self._egress, provider, owner, descriptions.given_of(new))
        row = {"id": uuid4(), "owner_id": owner.id, "provider": provider.name, "name": descriptions.model_name(new.name)}
        row |= {"secret_id": None, "created_at": now, "updated_at": now, **columns}
        descriptions.check_names(shelf.models.values(), row)
        found = self._key(caller, provider, owner, row, new.api_key, anyway=new.save_anyway)
        return _Added(row, None if found is None else found[1])

    async def update(self, caller: Caller, model_id: UUID, fields: Mapping[str, Any]) -> ModelView:
        """Change the fields given (``descriptions.CHANGEABLE``).

        A blank ``api_key`` keeps the key; ``None`` takes it off the model and deletes it.

        A new address binds a new key only: one that is kept stays bound to where it was, so it must be entered again with it.
        Raises ``NotFound``, ``Invalid`` and its kinds, ``Conflict``, ``ScopeMissing``.
        """
        async with (
            attempt(self._db, "model.update", caller, str(model_id)),
            taken("Another model has this name.", "Choose another name."),
        ):
            policy.require(caller, Scope.MODELS_WRITE)
            checked = Fields()
            checked.unknown(fields.keys() - descriptions.CHANGEABLE)
            checked.check()
            given = {name: value for name, value in fields.items() if value is not None or name in descriptions.LIFTED_BY_NONE}
            async with self._db.write(sealing_actor(caller)) as tx:
                owners = await self._managed_owners(tx, caller)
                found = self._ours(await rows.lock(tx, owners, model_id))
                owner = owners[found.owner_id]
                provider = await self._provider(tx, caller, found.provider)
                before = descriptions.kept_of(found)
                columns = descriptions.columns_of(self._egress, provider, owner, before | given)
                row = {"id": found.id, "owner_id": owner.id, "provider": found.provider, "name": found.name}
                row |= {"secret_id": found.secret_id, "created_at": found.created_at, "updated_at": datetime.now(UTC), **columns}
                descriptions.check_names(await rows.of_owner(tx, owner.id), row)
                anyway = bool(given.get("save_anyway", False))
                if "api_key" in given and given["api_key"] is None and found.secret_id is not None:
                    await self._secrets.drop_for_model(tx, caller, owner.id, found.secret_id)
                    row["secret_id"] = None
                else:
                    key = self._key(caller, provider, owner, row, given.get("api_key"), anyway=anyway)
                    if key is not None:
                        row["secret_id"] = await self._secrets.put_for_model(tx, caller, *key)
                await rows.update(tx, owner.id, found.id, self._sealed(row))
                await self._note(tx, caller, "model.update", row, owner, fields=" ".join(sorted(given.keys() - {"save_anyway"})))
        if row["secret_id"] != found.secret_id:
            await self._secrets.dropped()
        return _view(SimpleNamespace(**row), caller)

    async def delete(self, caller: Caller, model_id: UUID) -> None:
        """Delete a model with its own key: one's own, or (administrators) everybody's. Raises ``NotFound``, ``ScopeMissing``."""
        async with attempt(self._db, "model.delete", caller, str(model_id)):
            policy.require(caller, Scope.MODELS_WRITE)
            async with self._db.write(sealing_actor(caller)) as tx:
                owners = await self._managed_owners(tx, caller)
                row = await rows.lock(tx, owners, model_id)
                if row is None:
                    raise NotFound
                if row.secret_id is not None:
                    await self._secrets.drop_for_model(tx, caller, row.owner_id, row.secret_id)
                await rows.delete(tx, row.owner_id, row.id)
                await self._note(tx, caller, "model.delete", row._asdict(), owners[row.owner_id])
        await self._secrets.dropped()

    def _ours(self, row: Any) -> Any:
        """The row, if it is one and was written here. Raises ``NotFound``."""
        if row is None or not registry.models_written_here(self._keyring, [row]):
            raise NotFound
        return row

    async def _seen_owners(self, tx: AsyncConnection, caller: Caller) -> tuple[UUID, ...]:
        mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        return registry.owners_of(caller.user_id, (team.team_id for team in mine.teams))

    async def _managed_owners(self, tx: AsyncConnection, caller: Caller) -> dict[UUID, Owner]:
        """Whose models the caller may change: their own, those of teams that they lead, for an administrator the system's."""
        mine = await reach.load(tx, self._keyring, caller.user_id, shares=False)
        owners = {caller.user_id: Owner(OwnerKind.USER, caller.user_id)}
        owners |= {team.team_id: Owner(OwnerKind.TEAM, team.team_id) for team in mine.teams if team.leads}
        return owners | ({SYSTEM_OWNER_ID: SYSTEM_OWNER} if caller.is_admin else {})

    async def _owner_of_new(self, tx: AsyncConnection, caller: Caller, new: NewModel) -> Owner:
        """Whose a new model is to be. Raises ``NotFound``, ``Forbidden``."""
        if new.system:
            return SYSTEM_OWNER
        if new.team_id is None:
            return Owner(OwnerKind.USER, caller.user_id)
        return reach.led(await reach.load(tx, self._keyring, caller.user_id, shares=False), new.team_id)

    async def _provider(self, tx: AsyncConnection, caller: Caller, key: str) -> Provider:
        """A provider by name, without what was said of single models. Raises ``ProviderUnknown``."""
        return provider_named(await registry.load(tx, self._keyring, self._catalog, caller.user_id), key)

    def _key(
        self, caller: Caller, provider: Provider, owner: Owner, row: Mapping[str, Any], value: SecretBytes | None, *, anyway: bool
    ) -> tuple[Provider, Entry] | None:
        """The model's own key, if there is a new one, checked; and the provider as it is called for this model."""
        if value is None or not value.reveal().strip():
            return None
        policy.require(caller, Scope.SECRETS_WRITE)
        if provider.parameters and not row["base_url"]:
            raise Invalid.of("base_url", f"is required with a key of its own: an address of {provider.display_name}")
        called = with_registered(provider, descriptions.registered(row["id"], owner, row["secret_id"], row))
        return called, self._secrets.intake.checked_for_model(called, row["name"], value, save_anyway=anyway)

    def _sealed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return dict(row) | {"mac": self._keyring.row_mac(macs.MODEL, *macs.model_fields(SimpleNamespace(**row)))}

    async def _note(
        self, tx: AsyncConnection, caller: Caller, action: str, row: Mapping[str, Any], owner: Owner, **detail: str
    ) -> None:
        await management.record(self._db, tx, _record(caller, action, row, owner, **detail))
        await audience.note_owned(self._db, tx, "model", str(row["id"]), owner)


def _record(caller: Caller, action: str, row: Mapping[str, Any], owner: Owner, **detail: str) -> ManagementRecord:
    facts = {"name": f"{row['provider']}/{row['name']}"} | ({"base_url": row["base_url"]} if row["base_url"] else {}) | detail
    return ManagementRecord(action, caller, str(row["id"]), owner=owner, detail=tuple(facts.items()))


def _view(row: Any, caller: Caller) -> ModelView:
    owner = registry.registered_of(row, caller.user_id).owner
    return ModelView(
        id=row.id,
        owner_kind=owner.kind,
        team_id=owner.id if owner.kind is OwnerKind.TEAM else None,
        provider=row.provider,
        name=row.name,
        display_name=row.display_name,
        kind=row.kind or "chat",
        base_url=row.base_url,
        auth_style=row.auth_style,
        auth_header=row.auth_header or "",
        has_own_key=row.secret_id is not None,
        secret_id=row.secret_id if caller.is_admin or owner.kind is not OwnerKind.SYSTEM else None,
        parameters=json.loads(row.parameters) if row.parameters else {},
        aliases=tuple(row.aliases or ()),
        created_at=row.created_at,
        updated_at=row.updated_at or row.created_at,
    )
