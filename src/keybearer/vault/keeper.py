"""What all who write secrets share: the row found and locked, its MAC kept right, a new version put in force, the change told.

Nobody writes a secret's row but through ``Keeper.write``: a row that was edited by other hands must not get its MAC renewed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access.macs import SECRET_COLUMNS
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Caller, ManagementRecord, OwnerKind, Secret, SecretBytes, SecretType
from keybearer.errors import Forbidden, NotFound
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.store.queries import versions
from keybearer.vault import audience, reach
from keybearer.vault.external import External, Wanted
from keybearer.vault.remains import Remains
from keybearer.vault.retention import Retention
from keybearer.vault.sealed import Content, Sealer, Unreadable, binding, egress_of, owner_of, secret_of
from keybearer.vault.token_answer import can_refresh

State = Literal["ok", "failed", "unreadable"]
"""What became of a value in use."""

REASON_LIMIT = 500
LAST_CHECK = ("checked_at", "check_status", "check_reason")
"""What the last test found: of the value in force."""


class Keeper:
    """One per process; see the module."""

    def __init__(self, db: Database, keyring: Keyring, retention: Retention, external: External) -> None:
        self.db = db
        self.keyring = keyring
        self.retention = retention
        self.external = external
        self.sealer = Sealer(keyring)
        self.remains = Remains(db, "secret", "secret_version")

    async def own(self, tx: AsyncConnection, caller: Caller, secret_id: UUID, *, deleted: bool | None = False) -> Any:
        """A secret that the caller may change, locked.

        Their own, one of a team that they lead, one shared for management; for an administrator the system's. Raises
        ``NotFound``, and ``Forbidden`` for what they may only use.
        """
        mine = await reach.load(tx, self.keyring, caller.user_id)
        owners = mine.managed_owners(secret_id)
        row = await rows.lock(tx, secret_id, (*owners, SYSTEM_OWNER_ID) if caller.is_admin else owners, deleted=deleted)
        if row is not None:
            return row
        if await rows.get(tx, secret_id, mine.seen_owners(secret_id), deleted=deleted) is not None:
            raise Forbidden(
                "You may use this secret, and not change or test it.", hint="Ask whose it is, or an admin of the team."
            )
        raise NotFound

    async def insert(self, tx: AsyncConnection, new: Iterable[Mapping[str, Any]]) -> None:
        """Write new secrets' rows."""
        nothing = dict.fromkeys(SECRET_COLUMNS)
        await rows.insert(tx, [{**columns, "mac": self.sealer.mac(SimpleNamespace(**{**nothing, **columns}))} for columns in new])

    async def write(self, tx: AsyncConnection, row: Any, columns: Mapping[str, Any], *, anew: bool = False) -> None:
        """Change a secret's row, as it was locked.

        ``anew``: the owner has entered the value again, and with it all that the row says. Otherwise a row that is not intact keeps
        its wrong MAC, and of what the MAC covers only a deletion is written. Raises ``Unreadable``.
        """
        if anew or self.sealer.is_intact(row):
            after = SimpleNamespace(**{**row._mapping, **columns})  # noqa: SLF001  # SQLAlchemy's public name
            columns = {**columns, "mac": self.sealer.mac(after)}
        elif set(columns) & (SECRET_COLUMNS - {"deleted_at"}):
            raise Unreadable(row)
        await rows.update(tx, row.owner_id, row.id, columns)

    async def put_version(
        self,
        tx: AsyncConnection,
        caller: Caller | None,
        row: Any,
        content: Content,
        now: datetime,
        *,
        bound: tuple[tuple[str, ...], bool],
        overlap: timedelta | None = None,
    ) -> dict[str, Any]:
        """Seal ``content`` as the next version and put it in force; gives the columns of the secret's row that say so.

        ``bound``: egress set and fetchability. The version before stays for rolling back, and for ``overlap`` serves where the new
        one is refused; one that does not open is of no use and goes.
        """
        egress, fetchable = bound
        opens = await self.current(tx, row) is not None
        version = max(row.version, await versions.latest(tx, row.owner_id, row.id)) + 1
        await versions.retire(tx, row, now)
        if not opens or (self.retention.versions == 0 and overlap is None):
            await versions.delete(tx, row.owner_id, row.id, row.version)
        place = binding(row.id, version, egress, fetchable=fetchable)
        by = None if caller is None else caller.user_id
        await versions.insert(tx, [await self.sealer.seal(tx, row.owner_id, place, content, now, by)])
        falls_back = opens and overlap is not None
        return {
            "preview": content.preview,
            "oauth": None if content.oauth is None else content.oauth.previews(),
            "reference": None if content.reference is None else content.reference.shown(),
            "egress": list(egress),
            "fetchable": fetchable,
            "version": version,
            "state": "ok",
            "state_reason": "",
            "failed_at": None,
            **dict.fromkeys(LAST_CHECK),
            "fallback_version": row.version if falls_back else None,
            "fallback_until": now + overlap if falls_back and overlap is not None else None,
            "rotate_at": rotate_at(row.rotation_period, now),
            "updated_at": now,
            **refreshing(content, now),
        }

    async def reseal(
        self, tx: AsyncConnection, row: Any, content: Content, now: datetime, egress: tuple[str, ...], *, fetchable: bool
    ) -> None:
        """Seal the same version with another binding."""
        place = binding(row.id, row.version, egress, fetchable=fetchable)
        await versions.reseal(tx, await self.sealer.seal(tx, row.owner_id, place, content, now, None))

    async def agreed(
        self, tx: AsyncConnection, row: Any, now_at: Callable[[], tuple[str, ...]], *, rebind: bool
    ) -> tuple[tuple[str, ...], bool]:
        """Egress set and fetchability for a new value: those that the owner agreed to, once the old value has proved them.

        A row edited in the database must not get an edited egress set sealed. Where the old value does not open, and where the
        owner has just named the address (or the new value itself does), the new one is bound to where the provider is now.
        """
        if await self.current(tx, row) is None:
            return now_at(), False
        return now_at() if rebind else egress_of(row), bool(row.fetchable)

    async def current(self, tx: AsyncConnection, row: Any) -> Content | None:
        """What the version in force holds; ``None`` where it does not open."""
        try:
            return await self.sealer.open(tx, row)
        except Unreadable:
            return None

    async def value(self, row: Any, content: Content) -> SecretBytes:
        """What a secret serves with, now; outside of any transaction, for it may be kept elsewhere.

        Raises ``ReferenceUnreachable``, ``ReferenceDenied``, ``ReferenceMissing``, ``ReferenceWrong``.
        """
        if content.reference is None:
            return content.value
        wanted = Wanted(content.reference, row.owner_id, SecretType(row.secret_type))
        return await self.external.fresh(wanted, (row.id, row.version))

    async def shown(self, tx: AsyncConnection, caller: Caller, row: Any) -> Secret:
        """The secret as it is now, as the caller sees it."""
        mine = await reach.load(tx, self.keyring, caller.user_id)
        return mine.seen(self.secret(await rows.get(tx, row.id, (row.owner_id,), deleted=None)))

    def secret(self, row: Any) -> Secret:
        """The row as listings show it; one that is not intact is unreadable, found out in use or not."""
        found = secret_of(row)
        if found.state == "unreadable" or self.sealer.is_intact(row):
            return found
        return replace(found, state="unreadable")

    async def record(self, tx: AsyncConnection, caller: Caller | None, action: str, row: Any, **detail: str) -> None:
        """Record what is done with a secret, in the transaction that does it."""
        await management.record(self.db, tx, record_of(caller, action, row, **detail))

    async def note(self, tx: AsyncConnection, caller: Caller | None, action: str, row: Any, **detail: str) -> None:
        """Record the change, and tell every process. Before a row is removed: then nobody knows any more whom it concerned."""
        await self.record(tx, caller, action, row, **detail)
        await audience.note_secret(self.db, tx, row.owner_id, row.id)

    async def note_all(self, tx: AsyncConnection, owner_id: UUID, records: Sequence[ManagementRecord]) -> None:
        """As ``note``, of changes of several secrets of one owner's."""
        if records:
            await management.record_all(self.db, tx, records)
            await audience.note_secrets(self.db, tx, owner_id, [UUID(record.subject) for record in records])

    async def mark(self, secret_id: UUID, version: int, state: State, reason: str = "") -> bool:
        """Note what became of a value in use; see ``Secrets.mark``."""
        async with self.db.write(Actor.system()) as tx:
            return await self.mark_within(tx, secret_id, version, state, reason)

    async def mark_within(self, tx: AsyncConnection, secret_id: UUID, version: int, state: State, reason: str) -> bool:
        """``mark``, in a transaction of the system's. From when a key is failed is what its people are told once (``reminders``)."""
        failed_at = datetime.now(UTC) if state == "failed" else None
        row = await rows.mark(tx, secret_id, version, state, reason[:REASON_LIMIT], failed_at)
        if row is None:
            return False
        await self.note(tx, None, f"secret.{state}", row)
        return True

    @asynccontextmanager
    async def marking(self) -> AsyncIterator[None]:
        """Mark the secret whose value did not open, after the transaction that found out."""
        try:
            yield
        except Unreadable as error:
            await self.mark(error.secret_id, error.version, "unreadable")
            raise


def record_of(caller: Caller | None, action: str, row: Any, **detail: str) -> ManagementRecord:
    """What is done with a secret, for the record."""
    return ManagementRecord(action, caller, str(row.id), owner=owner_of(row), detail=tuple(detail.items()))


def require_owner(caller: Caller, row: Any) -> None:
    """Raise ``Forbidden`` for whom a secret is only lent to, be it for management: what cannot be undone is its owner's."""
    if owner_of(row).kind is OwnerKind.USER and row.owner_id != caller.user_id:
        raise Forbidden("Only whose secret it is may do this.", hint="Ask the person who shared it.")


def sealing_actor(caller: Caller) -> Actor:
    """Whose eyes a transaction has that opens or seals values: an administrator's see the system's keys (``policy.actor_of``'s do not)."""
    return Actor.user(caller.user_id, admin=caller.is_admin, system_keys=caller.is_admin)


def refreshing(content: Content, now: datetime) -> dict[str, Any]:
    """The columns of a token that was entered: its end is not known, so that it is refreshed at once, where it can be."""
    return {
        "refresh_at": now if can_refresh(content.oauth) else None,
        "token_expires_at": None,
        "refresh_attempts": 0,
        "refresh_problem": "",
    }


def rotate_at(period: int | None, since: datetime) -> datetime | None:
    """When a value put in force at ``since`` should be replaced; ``period`` in days."""
    return None if period is None else since + timedelta(days=period)
