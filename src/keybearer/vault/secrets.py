"""Secrets: the only writer of them.

A value goes in sealed, bound to its owner, record, version, hosts and whether it may be fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from cryptography.hazmat.primitives.constant_time import bytes_eq
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import has_control
from keybearer.access.freeze import require_thawed
from keybearer.access.limiter import Rate
from keybearer.access.pace import Bound, Pace
from keybearer.audit import management
from keybearer.catalog import Catalog, Provider
from keybearer.crypto.keyring import Keyring
from keybearer.domain import (
    SYSTEM_OWNER_ID,
    Caller,
    Credential,
    KeySource,
    ManagementRecord,
    Owner,
    OwnerKind,
    Revealed,
    Scope,
    Secret,
    SecretBytes,
    SecretType,
)
from keybearer.errors import Conflict, Invalid, NotFetchable, NotFound, ProviderUnknown
from keybearer.gateway.egress import egress_set
from keybearer.store.db import Actor, Database
from keybearer.store.queries import cursors, versions
from keybearer.store.queries import secrets as rows
from keybearer.vault import audience, reach, registry
from keybearer.vault.adoption import Adoption
from keybearer.vault.checks import Checks, scheduled
from keybearer.vault.disclosure import why_not_handed_out
from keybearer.vault.drafts import (
    DEFAULT_NAME,
    NewSecret,
    Pointed,
    checked_changes,
    provider_named,
)
from keybearer.vault.external import External
from keybearer.vault.intake import Entry, Intake
from keybearer.vault.keeper import Keeper, State, record_of, refreshing, require_owner, rotate_at, sealing_actor
from keybearer.vault.pointing import Pointing, owner_of_new
from keybearer.vault.reach import Reach
from keybearer.vault.references import require_power
from keybearer.vault.refresh import Endpoint, Refresher, endpoint_of, with_endpoint
from keybearer.vault.retention import Retention
from keybearer.vault.sealed import credential_of, egress_for, egress_now, egress_of
from keybearer.vault.standing import Standing, standing_of
from keybearer.vault.trash import Trash
from keybearer.vault.versions import Versions

__all__ = ["NewSecret", "Page", "SecretFilter", "Secrets", "Standing", "State"]

PAGE_LIMIT = 200
REVEALS = Bound("secret.reveal", Rate(20, 6.0), "Too many values were read in a short time.")
TESTS = Bound("secret.test", Rate(30, 6.0), "Too many connections were tested in a short time.")
"""Of one person, their tokens included: so many at once, then ten a minute."""

Again = Literal["update", "unchanged", "conflict"]
"""What ``Secrets.put_again`` did."""


@dataclass(frozen=True, slots=True)
class SecretFilter:
    """What a listing is narrowed to; ``None``: not by this."""

    owner: Literal["own", "team", "all", "system", "everyone"] = "own"
    """``team``: what teams own and what is shared with them; ``all``: one's own too. The last two are for administrators."""
    team_id: UUID | None = None
    """Only this team's, and what is shared with it."""
    provider: str | None = None
    secret_type: SecretType | None = None
    name: str | None = None
    tag: str | None = None
    text: str | None = None
    """Part of name, provider or description, in any case."""
    is_active: bool | None = None
    state: Standing | None = None
    """``None``: any but ``deleted``."""
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of secrets; ``next_cursor`` is ``None`` on the last."""

    items: tuple[Secret, ...]
    next_cursor: str | None


class Secrets:
    """Stores, shows, changes and deletes secrets; see the module."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        catalog: Catalog,
        retention: Retention | None = None,
        external: External | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.retention = retention or Retention()
        self.external = external or External()
        self._keeper = Keeper(db, keyring, self.retention, self.external)
        self._catalog = catalog
        self.versions = Versions(self._keeper, catalog)
        self.trash = Trash(self._keeper)
        self.pointing = Pointing(self._keeper)
        self.refresher = Refresher(self._keeper, catalog, endpoint)
        self.adoption = Adoption(self._keeper)
        self._reveals = Pace(db, REVEALS)
        self.tests = Pace(db, TESTS)
        """Of tests that people ask for: of stored values, and of such as are only to be tried."""
        self.checks = Checks(self._keeper, self.refresher, self.retention.checked)
        self.intake = Intake(self._keeper, catalog, self.checks.first)

    async def create(self, caller: Caller, new: NewSecret) -> Secret:
        """Store a secret of the caller's, of a team that they lead, or the system's.

        Raises ``Invalid`` (and its kinds ``KeyRefused`` and ``KeyDoubtful``), ``ProviderUnknown``, ``Conflict``,
        ``ScopeMissing``, ``Forbidden``; for a reference, which is read before it is saved, what ``External.fresh`` does.
        """
        async with (
            attempt(self._keeper.db, "secret.create", caller),
            taken("A secret with this name exists for this provider already.", "Choose another name, or change that secret."),
        ):
            policy.require(caller, Scope.SECRETS_WRITE)
            if new.system:
                policy.require_admin(caller)
            pointed = await self.pointing.of_new(caller, new)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                return await self._insert(tx, caller, await owner_of_new(tx, self._keeper.keyring, caller, new), new, pointed)

    async def list(self, caller: Caller, wanted: SecretFilter | None = None, cursor: str | None = None, limit: int = 50) -> Page:
        """One page of secrets without their values. Raises ``Invalid`` (cursor, limit), ``ScopeMissing``, ``Forbidden``."""
        policy.require(caller, *policy.READ_SECRETS)
        wanted = wanted or SecretFilter()
        if not 1 <= limit <= PAGE_LIMIT:
            raise Invalid.of("limit", f"is not between 1 and {PAGE_LIMIT}")
        if wanted.owner in {"system", "everyone"}:
            policy.require_admin(caller)
        after = None if cursor is None else cursors.decode(cursor, tuple[UUID])[0]
        async with self._keeper.db.read(sealing_actor(caller)) as tx:
            mine = await reach.load(tx, self._keeper.keyring, caller.user_id)
            search = _search(mine, wanted, datetime.now(UTC), self.retention.expiring)
            found = await rows.page(tx, search, after, limit + 1)
        more = cursors.encode((found[limit - 1].id,)) if len(found) > limit else None
        return Page(tuple(mine.seen(self._keeper.secret(row)) for row in found[:limit]), more)

    def standing(self, secret: Secret) -> Standing:
        """What a secret is good for now."""
        now = datetime.now(UTC)
        return standing_of(secret, now, now + self.retention.expiring)

    async def get(self, caller: Caller, secret_id: UUID) -> Secret:
        """One secret without its value, also a team's or one shared with it; for an administrator anybody's.

        Raises ``NotFound`` for those of others as for unknown ids, ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.read", caller, str(secret_id)):
            policy.require(caller, *policy.READ_SECRETS)
            async with self._keeper.db.read(sealing_actor(caller)) as tx:
                mine = await reach.load(tx, self._keeper.keyring, caller.user_id)
                row = await rows.get(tx, secret_id, None if caller.is_admin else mine.seen_owners(secret_id))
            if row is None:
                raise NotFound
            return mine.seen(self._keeper.secret(row))

    async def update(self, caller: Caller, secret_id: UUID, fields: Mapping[str, Any]) -> Secret:
        """Change the fields given: those of ``NewSecret`` but provider, type and owner. A blank ``value`` keeps the old one.

        A new value, or another part of ``oauth``, is a new version, bound to the same hosts, and makes the secret ``ok``
        again; ``fetchable`` seals the value anew.

        Raises ``NotFound``, ``Invalid`` and its kinds, ``Conflict``, ``KeyUnreadable``, ``ScopeMissing``.
        """
        async with (
            attempt(self._keeper.db, "secret.update", caller, str(secret_id)),
            taken("Another secret has this name for this provider.", "Choose another name."),
            self._keeper.marking(),
        ):
            policy.require(caller, Scope.SECRETS_WRITE)
            if fields.get("reference"):
                fields = {**fields, "reference": await self.pointing.anew(caller, secret_id, fields)}
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                return await self._update(tx, caller, await self._keeper.own(tx, caller, secret_id), fields)

    async def delete(self, caller: Caller, secret_id: UUID) -> None:
        """Delete a secret: it stops serving everywhere within a second, and for ``retention.restorable`` can be restored.

        Where that is no time, it is purged. Raises ``NotFound``, ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.delete", caller, str(secret_id)):
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id)
                now = datetime.now(UTC)
                # Under its id nobody misses the name; to the version before this one, which knows of no deletion, it is failed.
                columns = {
                    "deleted_at": now,
                    "deleted_name": row.name,
                    "name": str(row.id),
                    "state": "deleted",
                    "updated_at": now,
                }
                await self._keeper.write(tx, row, columns)
                await self._keeper.note(tx, caller, "secret.delete", row, provider=row.provider, name=row.name)
        if not self.retention.restorable:
            await self.trash.purge(caller, secret_id)

    async def confirm_egress(self, caller: Caller, secret_id: UUID) -> Secret:
        """Let the secret go where its provider is now: the owner's consent after a base URL was changed. Seals the value anew.

        Raises ``NotFound``, ``ProviderUnknown``, ``KeyUnreadable``, ``ScopeMissing``.
        """
        async with attempt(self._keeper.db, "secret.confirm_egress", caller, str(secret_id)), self._keeper.marking():
            policy.require(caller, Scope.SECRETS_WRITE)
            now = datetime.now(UTC)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id)
                if row.model_id is not None:
                    raise Invalid.of("secret", "belongs to a model; enter the key there again")
                known = provider_named(await registry.load(tx, self._keeper.keyring, self._catalog, row.owner_id), row.provider)
                content = await self._keeper.sealer.open(tx, row)
                require_power(caller, content.reference)
                if content.reference is not None and known.places:
                    raise Invalid.of("reference", "must be given again: the value itself says where it goes")
                egress = with_endpoint(egress_now(known, content.value, egress_of(row)), content.oauth)
                await self._keeper.reseal(tx, row, content, now, egress, fetchable=row.fetchable)
                await self._keeper.write(tx, row, {"egress": list(egress), "updated_at": now, **refreshing(content, now)})
                await self._keeper.note(tx, caller, "secret.confirm_egress", row, egress=" ".join(egress))
                return await self._keeper.shown(tx, caller, row)

    async def credential(self, caller: Caller, secret_id: UUID) -> Credential:
        """One of the caller's secrets, opened for a connection test, on record; a token that has expired is refreshed first.

        Raises ``NotFound``, ``KeyUnreadable``, ``KeyExpired`` (a token that could not be), ``ScopeMissing``. What a call may use is
        ``Resolver.resolve``'s business; a test is for secrets that do not work, too.
        """
        async with attempt(self._keeper.db, "secret.test", caller, str(secret_id)), self._keeper.marking():
            policy.require(caller, Scope.SECRETS_USE, Scope.SECRETS_WRITE)
            row, content = await self.refresher.opened(
                caller, sealing_actor(caller), "secret.test", lambda tx: self._keeper.own(tx, caller, secret_id)
            )
            return credential_of(row, await self._keeper.value(row, content), _source_of(row, caller))

    async def reveal(self, caller: Caller, secret_id: UUID) -> Revealed:
        """The value of a ``fetchable`` secret, on record before it is handed over.

        For a signed-in person (the API asks for a fresh sign-in), and for tokens with ``secrets:read`` to which it is handed out
        (``disclosure``), while the deployment is not frozen. Raises ``NotFound``, ``NotFetchable``, ``ScopeMissing``, ``RateLimited``,
        ``Frozen``, and the rest of what ``why_not_handed_out`` says.
        """
        await self._reveals.take(caller, str(secret_id))

        async def find(tx: AsyncConnection) -> Any:
            row = await self._keeper.own(tx, caller, secret_id)
            await require_thawed(tx, caller)
            refused = why_not_handed_out(caller, row, datetime.now(UTC))
            if refused is not None:
                raise refused
            if not row.fetchable:  # be it by a person
                raise NotFetchable
            return row

        async with attempt(self._keeper.db, "secret.reveal", caller, str(secret_id)), self._keeper.marking():
            policy.require(caller, Scope.SECRETS_READ)
            is_person = caller.token_id is None  # who sees what there is, whatever it is good for
            row, content = await self.refresher.opened(
                caller, sealing_actor(caller), "secret.reveal", find, even_expired=is_person
            )
            return Revealed(self._keeper.secret(row), await self._keeper.value(row, content))

    async def note_test(self, caller: Caller | None, credential: Credential) -> None:
        """Record that a resolved key is about to be tested; ``None``: by the server itself, which was told that it is refused.

        Raises ``Unavailable``: then it must not leave.
        """
        detail = (("provider", credential.provider),)
        record = ManagementRecord("secret.test", caller, str(credential.secret_id), owner=credential.owner, detail=detail)
        async with self._keeper.db.write(Actor.system() if caller is None else sealing_actor(caller)) as tx:
            await management.record(self._keeper.db, tx, record)

    async def is_replaced(self, credential: Credential) -> bool:
        """Whether a refused key is kept elsewhere and was replaced there; then every process drops the one it has."""
        if not await self.external.is_replaced((credential.secret_id, credential.secret_version), credential.value):
            return False
        async with self._keeper.db.write(Actor.system()) as tx:
            await audience.note_secret(self._keeper.db, tx, credential.owner.id, credential.secret_id)
        return True

    async def model_of(self, credential: Credential) -> UUID | None:
        """The model whose own key this is, if any."""
        async with self._keeper.db.read(Actor.system()) as tx:
            return await rows.model_of(tx, credential.secret_id)

    async def mark(self, secret_id: UUID, version: int, state: State, reason: str = "") -> bool:
        """Note what became of a value in use: ``failed``, ``unreadable``, or ``ok`` again; whether that was news.

        ``version`` is the one that was used: a value entered meanwhile keeps its state. ``reason`` is shown to the owner and
        must not repeat a provider's words unredacted.
        """
        return await self._keeper.mark(secret_id, version, state, reason)

    async def put_default(
        self,
        tx: AsyncConnection,
        caller: Caller,
        provider: str,
        value: SecretBytes,
        *,
        save_anyway: bool,
        rebind: bool,
        parameters: Mapping[str, str] | None = None,
    ) -> Secret:
        """Store the caller's own secret named ``default``, within the transaction of what it is stored for.

        ``rebind``: the caller has named the provider's address along with the value, which is bound to it.
        """
        known = provider_named(await registry.load(tx, self._keeper.keyring, self._catalog, caller.user_id), provider)
        found = await rows.named(tx, caller.user_id, provider, known.secret_type.value, DEFAULT_NAME)
        if found is None:
            new = NewSecret(provider, value, save_anyway=save_anyway, parameters=parameters or {})
            return await self._insert(tx, caller, Owner(OwnerKind.USER, caller.user_id), new)
        row = await self._keeper.own(tx, caller, found)
        fields = {"value": value, "is_active": True, "save_anyway": save_anyway, "parameters": parameters}
        return await self._update(tx, caller, row, fields, rebind=rebind)

    async def put_again(
        self, tx: AsyncConnection, caller: Caller, row: Any, entry: Entry, *, replace: bool
    ) -> tuple[Again, ManagementRecord | None]:
        """Have a secret hold what a file says of it, within an import's transaction; say what was done.

        ``row`` is locked, of an owner whose secrets the caller may store. It keeps its value unless ``replace``; all else about it
        stays as it is in any case. A change is yet to be put on record, with the others of the file (``Keeper.note_all``).
        Raises ``Invalid`` and its kinds, and ``Conflict`` for a model's own key, before anything is written.
        """
        if row.model_id is not None:
            raise Conflict("The name is that of a model's own key.")
        before = await self._keeper.current(tx, row)
        if before is not None and before.same_as(entry.draft.content):
            return "unchanged", None
        if not replace:
            return "conflict", None
        new = entry.new
        fields = {"value": new.value, "oauth": new.oauth, "parameters": new.parameters or None, "save_anyway": new.save_anyway}
        return "update", await self._change(tx, caller, row, entry.draft.provider, fields)

    async def note_all(self, tx: AsyncConnection, owner_id: UUID, records: Sequence[ManagementRecord]) -> None:
        """Put an owner's changes on record, and tell every process, within an import's transaction."""
        await self._keeper.note_all(tx, owner_id, records)

    async def put_for_model(self, tx: AsyncConnection, caller: Caller, provider: Provider, entry: Entry) -> UUID:
        """Store a model's own key, within the transaction of what it is stored for; return its id. One it had before is deleted.

        ``provider`` is the one of the registered model, for which ``entry`` was checked.
        """
        if provider.registered is None:
            raise ProviderUnknown
        if provider.registered.secret_id is not None:
            await self.drop_for_model(tx, caller, provider.registered.owner.id, provider.registered.secret_id)
        owner = provider.registered.owner
        records = await self.intake.add(tx, caller, owner, [entry])
        await self.intake.note(tx, owner, records)
        return UUID(records[0].subject)

    async def drop_for_model(self, tx: AsyncConnection, caller: Caller, owner_id: UUID, secret_id: UUID) -> None:
        """Purge a model's own key, if it is still there, within the transaction of what it belonged to."""
        row = await rows.lock(tx, secret_id, (owner_id,), deleted=None)
        if row is not None and row.model_id is not None:
            await self._keeper.note(tx, caller, "secret.purge", row, provider=row.provider, name=row.deleted_name or row.name)
            await versions.delete_all(tx, row.owner_id, row.id)
            await rows.delete(tx, row.owner_id, row.id)

    async def is_model_key(self, tx: AsyncConnection, owner_id: UUID, secret_id: UUID, value: SecretBytes) -> bool:
        """Whether a model's own key is ``value``, within an import's transaction."""
        row = await rows.get(tx, secret_id, (owner_id,))
        held = None if row is None else await self._keeper.current(tx, row)
        return held is not None and bytes_eq(held.value.reveal(), value.reveal().strip())

    async def dropped(self) -> None:
        """After a commit that may have dropped a model's key: have SQLite's log forget it."""
        await self._keeper.remains.removed()

    async def _insert(
        self, tx: AsyncConnection, caller: Caller, owner: Owner, new: NewSecret, pointed: Pointed | None = None
    ) -> Secret:
        known = await registry.load(tx, self._keeper.keyring, self._catalog, owner.id)
        records = await self.intake.add(tx, caller, owner, [self.intake.checked(known, new, pointed)])
        await self.intake.note(tx, owner, records)
        return self._keeper.secret(await rows.get(tx, UUID(records[0].subject), (owner.id,)))

    async def _update(
        self, tx: AsyncConnection, caller: Caller, row: Any, fields: Mapping[str, Any], *, rebind: bool = False
    ) -> Secret:
        known = (await registry.load(tx, self._keeper.keyring, self._catalog, row.owner_id)).providers.get(row.provider)
        record = await self._change(tx, caller, row, known, fields, rebind=rebind)
        await self._keeper.note_all(tx, row.owner_id, [record])
        return await self._keeper.shown(tx, caller, row)

    async def _change(
        self,
        tx: AsyncConnection,
        caller: Caller,
        row: Any,
        known: Provider | None,
        fields: Mapping[str, Any],
        *,
        rebind: bool = False,
    ) -> ManagementRecord:
        """Write a change; gives what is to be put on record. ``known``: its provider, as the owner sees it."""
        now, keeper = datetime.now(UTC), self._keeper
        before = await keeper.current(tx, row)
        change = checked_changes(known, self._catalog, row, before, fields, now)
        if change.columns.get("fetchable"):
            require_owner(caller, row)
        if before is not None and (change.columns.get("fetchable") or change.parameters is not None):
            require_power(caller, before.reference if change.content is None else change.content.reference)
        columns = change.columns | {"updated_at": now}
        if "health_check_every" in columns:
            columns |= scheduled(self.checks, row, columns.pop("health_check_every"), now)
        new = change.content
        if new is not None:
            rebound = (
                rebind or change.parameters is not None or (known is not None and bool(known.places) and row.model_id is None)
            )
            egress, fetchable = await keeper.agreed(
                tx, row, lambda: egress_for(known, new.value, change.parameters or {}), rebind=rebound
            )
            stale = endpoint_of(before.oauth if before is not None else None)
            if stale is not None and stale != endpoint_of(new.oauth) and (known is None or stale.text not in egress_set(known)):
                egress = tuple(origin for origin in egress if origin != stale.text)
            bound = with_endpoint(egress, new.oauth), columns.get("fetchable", fetchable)
            columns = await keeper.put_version(tx, caller, row, new, now, bound=bound) | columns
        elif change.parameters is not None or columns.get("fetchable", row.fetchable) != row.fetchable:
            content, fetchable = await keeper.sealer.open(tx, row), columns.get("fetchable", row.fetchable)
            egress = egress_of(row)
            if change.parameters is not None:
                egress = with_endpoint(egress_for(known, content.value, change.parameters), content.oauth)
            columns["egress"] = list(egress)
            await keeper.reseal(tx, row, content, now, egress, fetchable=fetchable)
        if "rotation_period" in columns:
            since = row.value_at if change.content is None else now
            columns["rotate_at"] = rotate_at(columns["rotation_period"], since or row.created_at)
        await keeper.write(tx, row, columns, anew=change.content is not None)
        where = {} if new is None or new.reference is None else {"reference": str(new.reference)}
        return record_of(caller, "secret.update", row, fields=" ".join(change.fields), **where)


def _source_of(row: Any, caller: Caller) -> KeySource:
    """As whose a key is tested."""
    if row.owner_id == SYSTEM_OWNER_ID:
        return KeySource.SYSTEM
    return KeySource.USER if row.owner_id == caller.user_id else KeySource.TEAM


def _search(mine: Reach, wanted: SecretFilter, now: datetime, expiring: timedelta) -> rows.Search:
    owners, shared = mine.searched(wanted.owner, wanted.team_id)
    for field in ("provider", "name", "tag", "text"):
        if has_control(getattr(wanted, field) or ""):
            raise Invalid.of(field, "has control or other invisible characters")
    return rows.Search(
        owners=owners,
        shared=shared,
        provider=wanted.provider,
        secret_type=wanted.secret_type and wanted.secret_type.value,
        name=wanted.name,
        tag=wanted.tag,
        text=wanted.text,
        is_active=wanted.is_active,
        expires_before=wanted.expires_before,
        standing=wanted.state,
        now=now,
        soon=now + expiring,
    )
